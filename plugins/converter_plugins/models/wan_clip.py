"""The image encoder of Wan's image-to-video models (open_clip's XLM-Roberta ViT-H/14): wan/modules/clip.py."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import ClassVar

from converter_core.api import PREFIXES, ModelAdapter, Row, Size, SourceRoot, Table, TableModel, hookimpl, linear, norm

BLOCK = "visual.transformer.{}."


def _rows() -> Iterator[Row]:
    yield Row("log_scale", ())
    yield Row("visual.cls_embedding", (1, 1, "dim"), "embedding")
    yield Row("visual.pos_embedding", (1, "tokens", "dim"), "embedding")
    yield Row("visual.head", ("dim", "out_dim"), "head")
    yield Row("visual.patch_embedding.weight", ("dim", 3, "patch", "patch"), "embedding")
    yield from norm("visual.pre_norm", "dim", bias=True)
    yield from norm(f"{BLOCK}norm1", "dim", bias=True)
    yield from linear(f"{BLOCK}attn.to_qkv", "3*dim", "dim")
    yield from linear(f"{BLOCK}attn.proj", "dim", "dim")
    yield from norm(f"{BLOCK}norm2", "dim", bias=True)
    yield from linear(f"{BLOCK}mlp.0", "mlp_dim", "dim")
    yield from linear(f"{BLOCK}mlp.2", "dim", "mlp_dim")
    yield from norm("visual.post_norm", "dim", bias=True)


def _size(blocks: int, dim: int, mlp_dim: int, out_dim: int, patch: int, tokens: int) -> Size:
    dims = {"dim": dim, "mlp_dim": mlp_dim, "out_dim": out_dim, "patch": patch, "tokens": tokens}
    return Size(dims, {BLOCK: blocks})


class WanClip(TableModel):
    """The image half of the CLIP that comes with Wan; its text half, which Wan does not use, is left out."""

    name: ClassVar[str] = "wan_clip"
    modules: ClassVar[Sequence[str]] = ("attn", "mlp")
    table: ClassVar[Table] = Table(_rows(), ("original",), prefixes=("clip.", "image_encoder.", *PREFIXES))
    signature: ClassVar[Sequence[Collection[str]]] = ((f"{BLOCK}attn.to_qkv.weight", f"{BLOCK}mlp.0.weight"),)
    shared: ClassVar[Collection[str]] = ("log_scale",)
    ignored: ClassVar[tuple[str, ...]] = ("textual.",)
    variants: ClassVar[Mapping[str, Size]] = {"XLM-Roberta ViT-H/14": _size(32, 1280, 5120, 1024, 14, 257)}
    sample: ClassVar[Size] = _size(2, 64, 160, 48, 14, 5)
    auxiliary: ClassVar[bool] = True
    component: ClassVar[str] = "clip"

    def components(self, root: SourceRoot) -> Mapping[str, str]:
        """The file beside the released transformers."""
        files = root.matching("models_clip_open-clip-xlm-roberta-large-vit-huge-14.*", "models_clip_*")
        return {self.component: files[0]} if files else {}

    def output_name(self, method: str) -> str:
        """What LightX2V looks for, but for the suffix."""
        return f"models_clip_open-clip-xlm-roberta-large-vit-huge-14-{method}"


@hookimpl
def converter_models() -> Sequence[type[ModelAdapter]]:
    return [WanClip]
