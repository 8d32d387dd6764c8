"""Qwen-Image and Qwen-Image-Edit: transformer_qwenimage.py of huggingface/diffusers, whose names all readers use."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import ClassVar

from converter_core.api import ModelAdapter, Row, Size, Table, TableModel, hookimpl, linear, norm

BLOCK = "transformer_blocks.{}."
_TIME = "time_text_embed.timestep_embedder"


def _rows() -> Iterator[Row]:
    yield from linear(f"{_TIME}.linear_1", "dim", "freq_dim", kind="embedding")
    yield from linear(f"{_TIME}.linear_2", "dim", "dim", kind="embedding")
    layered = "time_text_embed.addition_t_embedding.weight"
    yield Row(layered, (2, "dim"), "embedding", branch="layered")
    yield from norm("txt_norm", "text_dim")
    yield from linear("img_in", "dim", "in_dim", kind="embedding")
    yield from linear("txt_in", "dim", "text_dim", kind="embedding")
    yield from linear(f"{BLOCK}img_mod.1", "6*dim", "dim")
    for name in ("norm_q", "norm_k"):
        yield from norm(f"{BLOCK}attn.{name}", "head_dim")
    for name in ("to_q", "to_k", "to_v", "add_k_proj", "add_v_proj", "add_q_proj", "to_out.0", "to_add_out"):
        yield from linear(f"{BLOCK}attn.{name}", "dim", "dim")
    for name in ("norm_added_q", "norm_added_k"):
        yield from norm(f"{BLOCK}attn.{name}", "head_dim")
    for stream in ("img", "txt"):
        if stream == "txt":
            yield from linear(f"{BLOCK}txt_mod.1", "6*dim", "dim")
        yield from linear(f"{BLOCK}{stream}_mlp.net.0.proj", "mlp_dim", "dim")
        yield from linear(f"{BLOCK}{stream}_mlp.net.2", "dim", "mlp_dim")
    yield from linear("norm_out.linear", "2*dim", "dim", kind="head")
    yield from linear("proj_out", "out_dim", "dim", kind="head")


def _size(blocks: int, dim: int, head_dim: int, text_dim: int, in_dim: int, *branches: str) -> Size:
    dims = {"dim": dim, "mlp_dim": 4 * dim, "head_dim": head_dim, "text_dim": text_dim, "in_dim": in_dim}
    return Size({**dims, "out_dim": in_dim, "freq_dim": 256}, {BLOCK: blocks}, frozenset(branches))


class QwenImageDit(TableModel):
    """Qwen-Image transformers (also Edit and Layered)."""

    name: ClassVar[str] = "qwen_image_dit"
    modules: ClassVar[Sequence[str]] = ("attn", "img_mlp", "txt_mlp", "img_mod", "txt_mod")
    table: ClassVar[Table] = Table(_rows(), ("original", "diffusers"))
    signature: ClassVar[Sequence[Collection[str]]] = ((f"{BLOCK}img_mod.1.weight", f"{BLOCK}txt_mod.1.weight"),)
    shared: ClassVar[Collection[str]] = ("norm_out.linear.weight", "norm_out.linear.bias", "proj_out.weight")
    classes: ClassVar[Collection[str]] = ("QwenImageTransformer2DModel",)
    variants: ClassVar[Mapping[str, Size]] = {
        "Qwen-Image": _size(60, 3072, 128, 3584, 64),
        "Qwen-Image-Layered": _size(60, 3072, 128, 3584, 64, "layered"),
    }
    sample: ClassVar[Size] = _size(2, 64, 32, 48, 16)


@hookimpl
def converter_models() -> Sequence[type[ModelAdapter]]:
    return [QwenImageDit]
