"""Z-Image and Z-Image-Turbo: transformer_z_image.py of huggingface/diffusers, as Tongyi-MAI releases them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import ClassVar

from converter_core.api import ModelAdapter, Row, Size, Table, TableModel, hookimpl, linear, norm

BLOCK = "layers.{}."
NOISE, CONTEXT, SIGLIP = "noise_refiner.{}.", "context_refiner.{}.", "siglip_refiner.{}."
_PATCH = "2-1"
"""Patch size and frames of a patch: of all released models."""


def _block(stack: str, modulated: bool, branch: str = "") -> Iterator[Row]:
    for name in ("norm_q", "norm_k"):
        yield from norm(f"{stack}attention.{name}", "head_dim", branch=branch)
    for name in ("to_q", "to_k", "to_v", "to_out.0"):
        yield from linear(f"{stack}attention.{name}", "dim", "dim", branch=branch, bias=False)
    for name, rows, columns in (("w1", "mlp_dim", "dim"), ("w2", "dim", "mlp_dim"), ("w3", "mlp_dim", "dim")):
        yield from linear(f"{stack}feed_forward.{name}", rows, columns, branch=branch, bias=False)
    for name in ("attention_norm1", "ffn_norm1", "attention_norm2", "ffn_norm2"):
        yield from norm(f"{stack}{name}", "dim", branch=branch)
    if modulated:
        yield from linear(f"{stack}adaLN_modulation.0", "4*dim", "time_dim", branch=branch)


def _rows() -> Iterator[Row]:
    yield Row("x_pad_token", (1, "dim"), "embedding")
    yield Row("cap_pad_token", (1, "dim"), "embedding")
    yield Row("siglip_pad_token", (1, "dim"), "embedding", branch="siglip")
    yield from linear(f"all_x_embedder.{_PATCH}", "dim", "patch_dim", kind="embedding")
    final = f"all_final_layer.{_PATCH}"
    yield from linear(f"{final}.linear", "patch_dim", "dim", module="final")
    yield from linear(f"{final}.adaLN_modulation.1", "dim", "time_dim", module="final")
    yield from _block(NOISE, True)
    yield from _block(CONTEXT, False)
    yield from linear("t_embedder.mlp.0", "time_hidden", 256, kind="embedding")
    yield from linear("t_embedder.mlp.2", "time_dim", "time_hidden", kind="embedding")
    yield from norm("cap_embedder.0", "text_dim")
    yield from linear("cap_embedder.1", "dim", "text_dim", kind="embedding")
    yield from norm("siglip_embedder.0", "image_dim", branch="siglip")
    yield from linear("siglip_embedder.1", "dim", "image_dim", kind="embedding", branch="siglip")
    yield from _block(SIGLIP, False, "siglip")
    yield from _block(BLOCK, True)


def _size(blocks: int, dim: int, mlp_dim: int, head_dim: int, text_dim: int, time_hidden: int, time_dim: int) -> Size:
    dims = {"dim": dim, "mlp_dim": mlp_dim, "head_dim": head_dim, "text_dim": text_dim, "patch_dim": 64}
    times = {"time_hidden": time_hidden, "time_dim": time_dim}
    return Size(dims | times, {BLOCK: blocks, NOISE: 2, CONTEXT: 2})


class ZImageDit(TableModel):
    """Z-Image transformers (base and Turbo)."""

    name: ClassVar[str] = "z_image_dit"
    modules: ClassVar[Sequence[str]] = ("attention", "feed_forward", "adaLN_modulation", "final")
    table: ClassVar[Table] = Table(_rows(), ("original", "diffusers"))
    signature: ClassVar[Sequence[Collection[str]]] = (
        (f"{BLOCK}attention.to_q.weight", f"{BLOCK}adaLN_modulation.0.weight", "cap_pad_token"),
        (f"{BLOCK}feed_forward.w1.weight", f"{NOISE}feed_forward.w1.weight", "cap_pad_token"),
    )
    classes: ClassVar[Collection[str]] = ("ZImageTransformer2DModel",)
    variants: ClassVar[Mapping[str, Size]] = {"Z-Image": _size(30, 3840, 10240, 128, 2560, 1024, 256)}
    sample: ClassVar[Size] = _size(2, 64, 170, 32, 48, 1024, 64)


@hookimpl
def converter_models() -> Sequence[type[ModelAdapter]]:
    return [ZImageDit]
