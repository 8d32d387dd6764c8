"""HunyuanVideo 1.5: hyvideo/models/transformers of Tencent-Hunyuan/HunyuanVideo-1.5, and diffusers' naming of it.

Two things have no counterpart in the other key format: the fused projections of the text refiner, and the final layer,
whose scale and shift stand in another order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from converter_core.api import ModelAdapter, Row, Size, SourceRoot, Table, TableModel, hookimpl, linear, norm

BLOCK, REFINER = "double_blocks.{}.", "txt_in.individual_token_refiner.blocks.{}."
BLOCK_D, REFINER_D = "transformer_blocks.{}.", "context_embedder.token_refiner.refiner_blocks.{}."
_TEXT_D, _TIME_D = "context_embedder.time_text_embed", "time_embed.timestep_embedder"

EMBEDDINGS = (
    ("vision_in.proj.1", "image_embedder.linear_1", "image_dim", "image_dim"),
    ("vision_in.proj.3", "image_embedder.linear_2", "dim", "image_dim"),
    ("time_in.mlp.0", f"{_TIME_D}.linear_1", "dim", "freq_dim"),
    ("time_in.mlp.2", f"{_TIME_D}.linear_2", "dim", "dim"),
    ("time_r_in.mlp.0", f"{_TIME_D}_r.linear_1", "dim", "freq_dim", "meanflow"),
    ("time_r_in.mlp.2", f"{_TIME_D}_r.linear_2", "dim", "dim", "meanflow"),
    ("txt_in.t_embedder.mlp.0", f"{_TEXT_D}.timestep_embedder.linear_1", "dim", "freq_dim"),
    ("txt_in.t_embedder.mlp.2", f"{_TEXT_D}.timestep_embedder.linear_2", "dim", "dim"),
    ("txt_in.c_embedder.linear_1", f"{_TEXT_D}.text_embedder.linear_1", "dim", "text_dim"),
    ("txt_in.c_embedder.linear_2", f"{_TEXT_D}.text_embedder.linear_2", "dim", "dim"),
    ("txt_in.input_embedder", "context_embedder.proj_in", "dim", "text_dim"),
    ("byt5_in.fc1", "context_embedder_2.linear_1", "glyph_hidden", "glyph_dim"),
    ("byt5_in.fc2", "context_embedder_2.linear_2", "glyph_hidden", "glyph_hidden"),
    ("byt5_in.fc3", "context_embedder_2.linear_3", "dim", "glyph_hidden"),
    (f"{REFINER}self_attn_proj", f"{REFINER_D}attn.to_out.0", "dim", "dim"),
    (f"{REFINER}mlp.fc1", f"{REFINER_D}ff.net.0.proj", "mlp_dim", "dim"),
    (f"{REFINER}mlp.fc2", f"{REFINER_D}ff.net.2", "dim", "mlp_dim"),
    (f"{REFINER}adaLN_modulation.1", f"{REFINER_D}norm_out.linear", "2*dim", "dim"),
)
"""Linear layers that stay as they are: name, name in diffusers, rows, columns, branch."""

NORMS = (
    ("vision_in.proj.0", "image_embedder.norm_in", "image_dim"),
    ("vision_in.proj.4", "image_embedder.norm_out", "dim"),
    ("byt5_in.layernorm", "context_embedder_2.norm", "glyph_dim"),
    (f"{REFINER}norm1", f"{REFINER_D}norm1", "dim"),
    (f"{REFINER}norm2", f"{REFINER_D}norm2", "dim"),
)


def _stream(mine: str, mod: str, projections: Sequence[str], norms: Sequence[str], mlp: str) -> Iterator[Row]:
    """One of the two streams of a block, ``img`` or ``txt``."""
    yield from linear(f"{BLOCK}{mine}_mod.linear", "6*dim", "dim", also=(f"{BLOCK_D}{mod}.linear",))
    for name, theirs in zip(("attn_q", "attn_k", "attn_v", "attn_proj"), projections, strict=True):
        yield from linear(
            f"{BLOCK}{mine}_{name}", "dim", "dim", also=(f"{BLOCK_D}attn.{theirs}",), module=f"{mine}_attn"
        )
    for name, theirs in zip(("attn_q_norm", "attn_k_norm"), norms, strict=True):
        yield from norm(f"{BLOCK}{mine}_{name}", "head_dim", also=(f"{BLOCK_D}attn.{theirs}",))
    yield from linear(f"{BLOCK}{mine}_mlp.fc1", "mlp_dim", "dim", also=(f"{BLOCK_D}{mlp}.net.0.proj",))
    yield from linear(f"{BLOCK}{mine}_mlp.fc2", "dim", "mlp_dim", also=(f"{BLOCK_D}{mlp}.net.2",))


def _only(key_format: str, name: str, rows: str, kind: str) -> Iterator[Row]:
    return (replace(row, only=key_format) for row in linear(name, rows, "dim", kind=kind))


def _rows() -> Iterator[Row]:
    yield Row("img_in.proj.weight", ("dim", "in_dim", 1, 1, 1), "embedding", also=("x_embedder.proj.weight",))
    yield Row("img_in.proj.bias", ("dim",), "bias", also=("x_embedder.proj.bias",))
    yield Row("cond_type_embedding.weight", (3, "dim"), "embedding", also=("cond_type_embed.weight",))
    for name, theirs, rows, columns, *branch in EMBEDDINGS:
        yield from linear(name, rows, columns, also=(theirs,), kind="embedding", branch="".join(branch))
    for name, theirs, size in NORMS:
        yield from norm(name, size, also=(theirs,), bias=True)
    yield from _only("original", f"{REFINER}self_attn_qkv", "3*dim", "embedding")
    for name in ("to_q", "to_k", "to_v"):
        yield from _only("diffusers", f"{REFINER_D}attn.{name}", "dim", "embedding")
    added = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    yield from _stream("img", "norm1", ("to_q", "to_k", "to_v", "to_out.0"), ("norm_q", "norm_k"), "ff")
    yield from _stream("txt", "norm1_context", added, ("norm_added_q", "norm_added_k"), "ff_context")
    yield from linear("final_layer.linear", "out_dim", "dim", also=("proj_out",), kind="head")
    yield from _only("original", "final_layer.adaLN_modulation.1", "2*dim", "head")
    yield from _only("diffusers", "norm_out.linear", "2*dim", "head")


def _size(blocks: int, dim: int, head_dim: int, text_dim: int, glyph_dim: int, image_dim: int, *branches: str) -> Size:
    dims = {"dim": dim, "mlp_dim": 4 * dim, "head_dim": head_dim, "text_dim": text_dim, "image_dim": image_dim}
    more = {"glyph_dim": glyph_dim, "glyph_hidden": 2048, "in_dim": 65, "out_dim": 32, "freq_dim": 256}
    return Size(dims | more, {BLOCK: blocks, REFINER: 2, REFINER_D: 2}, frozenset(branches))


class HunyuanDit(TableModel):
    """HunyuanVideo 1.5 transformers: original and diffusers key format."""

    name: ClassVar[str] = "hunyuan_dit"
    modules: ClassVar[Sequence[str]] = tuple(
        f"{stream}_{module}" for stream in ("img", "txt") for module in ("mod", "attn", "mlp")
    )
    table: ClassVar[Table] = Table(_rows(), ("original", "diffusers"))
    signature: ClassVar[Sequence[Collection[str]]] = (
        (f"{BLOCK}img_attn_q.weight", "cond_type_embedding.weight"),
        (f"{BLOCK}txt_attn_q.weight", "byt5_in.fc1.weight"),
        (f"{BLOCK}txt_mod.linear.weight", "byt5_in.fc1.weight"),
    )
    shared: ClassVar[Collection[str]] = tuple(f"{one}.weight" for one in ("final_layer.linear", "norm_out.linear"))
    classes: ClassVar[Collection[str]] = ("HunyuanVideo15Transformer3DModel",)
    variants: ClassVar[Mapping[str, Size]] = {
        "HunyuanVideo-1.5": _size(54, 2048, 128, 3584, 1472, 1152),
        "HunyuanVideo-1.5 (mean flow)": _size(54, 2048, 128, 3584, 1472, 1152, "meanflow"),
    }
    sample: ClassVar[Size] = _size(2, 64, 32, 48, 40, 24)

    def components(self, root: SourceRoot) -> Mapping[str, str]:
        """Of the released repository ``transformer/480p_t2v`` and the like; the transformers of a pipeline."""
        folders = {file.rpartition("/")[0] for file in root.matching("transformer/*p_*/diffusion_pytorch_model*")}
        return {folder.rpartition("/")[2]: folder for folder in sorted(folders)} or super().components(root)


@hookimpl
def converter_models() -> Sequence[type[ModelAdapter]]:
    return [HunyuanDit]
