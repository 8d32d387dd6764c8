"""umT5-XXL, the text encoder of Wan: wan/modules/t5.py of Wan-Video/Wan2.1, and transformers' naming of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from converter_core.api import (
    PREFIXES,
    ModelAdapter,
    Refused,
    Row,
    Size,
    SourceRoot,
    SourceTensors,
    Table,
    TableModel,
    hookimpl,
    linear,
    norm,
)

LARGEST_TOKENIZER = 64 << 20
"""Bytes; that of umT5 has 4.5 MB."""

BLOCK = "blocks.{}."
LAYER = "encoder.block.{}.layer."
_ATTENTION, _FEED_FORWARD = f"{LAYER}0.SelfAttention", f"{LAYER}1.DenseReluDense"


def _rows() -> Iterator[Row]:
    yield Row("token_embedding.weight", ("vocab", "dim"), "embedding", also=("shared.weight",))
    yield from norm(f"{BLOCK}norm1", "dim", also=(f"{LAYER}0.layer_norm",))
    for name in "qkv":
        yield from linear(f"{BLOCK}attn.{name}", "attn_dim", "dim", also=(f"{_ATTENTION}.{name}",), bias=False)
    yield from linear(f"{BLOCK}attn.o", "dim", "attn_dim", also=(f"{_ATTENTION}.o",), bias=False)
    yield from norm(f"{BLOCK}norm2", "dim", also=(f"{LAYER}1.layer_norm",))
    for mine, theirs in (("ffn.gate.0", "wi_0"), ("ffn.fc1", "wi_1")):
        yield from linear(f"{BLOCK}{mine}", "ffn_dim", "dim", also=(f"{_FEED_FORWARD}.{theirs}",), bias=False)
    yield from linear(f"{BLOCK}ffn.fc2", "dim", "ffn_dim", also=(f"{_FEED_FORWARD}.wo",), bias=False)
    bias = f"{_ATTENTION}.relative_attention_bias.weight"
    yield Row(f"{BLOCK}pos_embedding.embedding.weight", ("buckets", "heads"), "embedding", also=(bias,))
    yield from norm("norm", "dim", also=("encoder.final_layer_norm",))


def _size(blocks: int, dim: int, ffn_dim: int, heads: int, vocab: int) -> Size:
    dims = {"dim": dim, "attn_dim": dim, "ffn_dim": ffn_dim, "heads": heads, "vocab": vocab, "buckets": 32}
    return Size(dims, {BLOCK: blocks})


@dataclass(frozen=True)
class WanT5(TableModel):
    """The umT5-XXL text encoder that comes with Wan: original and transformers key format.

    tokenizer: its sentencepiece file (``google/umt5-xxl/spiece.model``), for runtimes that read it out of the weights.
    """

    name: ClassVar[str] = "wan_t5"
    modules: ClassVar[Sequence[str]] = ("attn", "ffn")
    table: ClassVar[Table] = Table(
        _rows(),
        ("original", "transformers"),
        prefixes=("text_encoders.umt5xxl.transformer.", "text_encoders.umt5xxl.", "text_encoder.", "t5.", *PREFIXES),
    )
    signature: ClassVar[Sequence[Collection[str]]] = (
        (f"{BLOCK}attn.q.weight", f"{BLOCK}pos_embedding.embedding.weight"),
        (f"{BLOCK}ffn.gate.0.weight", f"{BLOCK}pos_embedding.embedding.weight"),
    )
    shared: ClassVar[Collection[str]] = (
        "token_embedding.weight",
        "norm.weight",
        f"{BLOCK}norm1.weight",
        f"{BLOCK}norm2.weight",
    )
    classes: ClassVar[Collection[str]] = ("UMT5EncoderModel",)
    variants: ClassVar[Mapping[str, Size]] = {"umT5-XXL": _size(24, 4096, 10240, 64, 256384)}
    sample: ClassVar[Size] = _size(2, 64, 160, 4, 96)
    auxiliary: ClassVar[bool] = True
    component: ClassVar[str] = "t5"

    tokenizer: str = ""

    def __post_init__(self) -> None:
        path = Path(self.tokenizer)
        if self.tokenizer and not (path.is_file() and 0 < path.stat().st_size <= LARGEST_TOKENIZER):
            raise Refused(
                f"tokenizer: {self.tokenizer} is no sentencepiece file; it is called spiece.model where Wan is "
                "downloaded"
            )

    def input_files(self) -> Sequence[str]:
        return (self.tokenizer,) if self.tokenizer else ()

    def describe(self, tensors: SourceTensors) -> Mapping[str, Any]:
        """And where the tokenizer lies."""
        return {**super().describe(tensors), **({"tokenizer": self.tokenizer} if self.tokenizer else {})}

    def components(self, root: SourceRoot) -> Mapping[str, str]:
        """The file beside the released transformers, or the folder of a pipeline."""
        files = root.matching("models_t5_umt5-xxl-enc-bf16.*", "models_t5_umt5-xxl-enc-*")
        return {self.component: files[0]} if files else super().components(root)

    def output_name(self, method: str) -> str:
        """What LightX2V looks for, but for the suffix."""
        return f"models_t5_umt5-xxl-enc-{method}"


@hookimpl
def converter_models() -> Sequence[type[ModelAdapter]]:
    return [WanT5]
