"""FLUX.2: transformer_flux2.py of huggingface/diffusers, whose names LightX2V reads too.

LightX2V builds every linear layer with the quantized class, those outside the blocks too; with ``target_modules`` the
ones of the blocks alone are quantized for other readers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import ClassVar

from converter_core.api import ModelAdapter, Row, Size, Table, TableModel, hookimpl, linear, norm

BLOCK, SINGLE = "transformer_blocks.{}.", "single_transformer_blocks.{}."


def _linear(name: str, rows: str, columns: str, module: str = "", branch: str = "") -> Iterator[Row]:
    return linear(name, rows, columns, module=module, branch=branch, bias=False)


def _norms(stack: str, *names: str) -> Iterator[Row]:
    for name in names:
        yield from norm(f"{stack}attn.{name}", "head_dim")


def _rows() -> Iterator[Row]:
    for name, branch in (("timestep", ""), ("guidance", "guidance")):
        embedder = f"time_guidance_embed.{name}_embedder"
        yield from _linear(f"{embedder}.linear_1", "dim", "freq_dim", "embedder", branch)
        yield from _linear(f"{embedder}.linear_2", "dim", "dim", "embedder", branch)
    yield from _linear("double_stream_modulation_img.linear", "6*dim", "dim", "modulation")
    yield from _linear("double_stream_modulation_txt.linear", "6*dim", "dim", "modulation")
    yield from _linear("single_stream_modulation.linear", "3*dim", "dim", "modulation")
    yield from _linear("x_embedder", "dim", "in_dim", "embedder")
    yield from _linear("context_embedder", "dim", "text_dim", "embedder")
    for name in ("to_q", "to_k", "to_v"):
        yield from _linear(f"{BLOCK}attn.{name}", "dim", "dim")
    yield from _norms(BLOCK, "norm_q", "norm_k")
    yield from _linear(f"{BLOCK}attn.to_out.0", "dim", "dim")
    yield from _norms(BLOCK, "norm_added_q", "norm_added_k")
    for name in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"):
        yield from _linear(f"{BLOCK}attn.{name}", "dim", "dim")
    for name in ("ff", "ff_context"):
        yield from _linear(f"{BLOCK}{name}.linear_in", "2*mlp_dim", "dim")
        yield from _linear(f"{BLOCK}{name}.linear_out", "dim", "mlp_dim")
    # three projections and the two halves of the gated feed-forward layer; its output beside that of the attention
    yield from _linear(f"{SINGLE}attn.to_qkv_mlp_proj", "fused_rows", "dim")
    yield from _norms(SINGLE, "norm_q", "norm_k")
    yield from _linear(f"{SINGLE}attn.to_out", "dim", "fused_columns")
    yield from _linear("norm_out.linear", "2*dim", "dim", "head")
    yield from _linear("proj_out", "out_dim", "dim", "head")


def _size(blocks: int, singles: int, dim: int, head_dim: int, text_dim: int, *branches: str, freq: int = 256) -> Size:
    dims = {"dim": dim, "mlp_dim": 3 * dim, "fused_rows": 9 * dim, "fused_columns": 4 * dim, "head_dim": head_dim}
    more = {"text_dim": text_dim, "in_dim": 128, "out_dim": 128, "freq_dim": freq}
    return Size(dims | more, {BLOCK: blocks, SINGLE: singles}, frozenset(branches))


class Flux2Dit(TableModel):
    """FLUX.2 transformers, with guidance (dev) or without (klein), in diffusers' key format."""

    name: ClassVar[str] = "flux2_dit"
    modules: ClassVar[Sequence[str]] = ("attn", "ff", "ff_context", "modulation", "embedder", "head")
    table: ClassVar[Table] = Table(_rows(), ("original", "diffusers"))
    signature: ClassVar[Sequence[Collection[str]]] = (
        (f"{SINGLE}attn.to_qkv_mlp_proj.weight", "double_stream_modulation_img.linear.weight"),
    )
    shared: ClassVar[Collection[str]] = tuple(
        f"{name}.weight" for name in ("x_embedder", "context_embedder", "norm_out.linear", "proj_out")
    )
    classes: ClassVar[Collection[str]] = ("Flux2Transformer2DModel",)
    variants: ClassVar[Mapping[str, Size]] = {"FLUX.2-dev": _size(8, 48, 6144, 128, 15360, "guidance")}
    sample: ClassVar[Size] = _size(1, 2, 64, 32, 96, "guidance", freq=32)


@hookimpl
def converter_models() -> Sequence[type[ModelAdapter]]:
    return [Flux2Dit]
