"""Every tensor of a Wan transformer: its two names, its shape by dimension, its kind. Names, shapes and checks follow
from this one table.

Original key format: wan/modules/model.py and vace_model.py of Wan-Video/Wan2.1, animate and s2v of Wan-Video/Wan2.2.
Diffusers key format: transformer_wan.py and transformer_wan_vace.py of huggingface/diffusers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from converter_core.api import Row, Size, Table, TensorSpec, linear, norm

BLOCK = "blocks.{}."
"""Stands for ``blocks.0.``, ``blocks.1.`` ... in both key formats."""

VACE = "vace_blocks.{}."
FUSER = "face_adapter.fuser_blocks.{}."
INJECTOR = "audio_injector.injector.{}."
ADAIN = "audio_injector.injector_adain_layers.{}."


@dataclass(frozen=True)
class Structure:
    """The dimensions of a Wan transformer: what decides its tensors and their shapes.

    image: image cross-attention and image embedding. flf: the position embedding of first-last-frame models.
    vace_layers, fuser_layers, injector_layers: blocks of VACE, of Animate's face adapter, of S2V's audio injector.
    """

    dim: int
    ffn_dim: int
    num_layers: int
    in_dim: int = 16
    out_dim: int = 16
    text_dim: int = 4096
    freq_dim: int = 256
    image_dim: int = 1280
    image_tokens: int = 514
    image: bool = False
    flf: bool = False
    vace_layers: int = 0
    vace_in_dim: int = 96
    fuser_layers: int = 0
    injector_layers: int = 0

    @property
    def size(self) -> Size:
        dims = ("dim", "ffn_dim", "in_dim", "out_dim", "text_dim", "freq_dim", "image_dim", "image_tokens")
        blocks = {
            BLOCK: self.num_layers,
            VACE: self.vace_layers,
            FUSER: self.fuser_layers,
            INJECTOR: self.injector_layers,
        }
        branches = {
            "image": self.image,
            "flf": self.flf,
            "vace": bool(self.vace_layers),
            "face": bool(self.fuser_layers),
            "audio": bool(self.injector_layers),
        }
        return Size(
            {dim: getattr(self, dim) for dim in (*dims, "vace_in_dim")},
            blocks,
            frozenset(branch for branch, there in branches.items() if there),
            frozenset({"adain"}) if self.injector_layers else frozenset(),
        )

    def inventory(self, dtype: str = "F32") -> dict[str, TensorSpec]:
        """Every tensor by its original name, in the order of the model's own state dict."""
        return TABLE.inventory(self.size, dtype)


def _attention(name: str, diffusers: str) -> Iterator[Row]:
    for mine, theirs in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0")):
        yield from linear(f"{name}.{mine}", "dim", "dim", also=(f"{diffusers}.{theirs}",))
    for one in ("norm_q", "norm_k"):
        yield from norm(f"{name}.{one}", "dim", also=(f"{diffusers}.{one}",))


def _embedding(name: str, diffusers: str, rows: int | str, columns: int | str, branch: str = "") -> Iterator[Row]:
    return linear(name, rows, columns, also=(diffusers,), kind="embedding", branch=branch)


_CONDITION = "condition_embedder"
_IMAGE = f"{_CONDITION}.image_embedder"
_CROSS, _CROSS_DIFFUSERS = f"{BLOCK}cross_attn", f"{BLOCK}attn2"

HEAD_OF_MODEL: tuple[Row, ...] = (
    Row("patch_embedding.weight", ("dim", "in_dim", 1, 2, 2), "embedding"),
    Row("patch_embedding.bias", ("dim",), "bias"),
    *_embedding("text_embedding.0", f"{_CONDITION}.text_embedder.linear_1", "dim", "text_dim"),
    *_embedding("text_embedding.2", f"{_CONDITION}.text_embedder.linear_2", "dim", "dim"),
    *_embedding("time_embedding.0", f"{_CONDITION}.time_embedder.linear_1", "dim", "freq_dim"),
    *_embedding("time_embedding.2", f"{_CONDITION}.time_embedder.linear_2", "dim", "dim"),
    *_embedding("time_projection.1", f"{_CONDITION}.time_proj", "6*dim", "dim"),
)

BLOCKS: tuple[Row, ...] = (
    Row(f"{BLOCK}modulation", (1, 6, "dim"), "modulation", also=(f"{BLOCK}scale_shift_table",)),
    *_attention(f"{BLOCK}self_attn", f"{BLOCK}attn1"),
    # diffusers counts the norms as they are called, the original as they are defined; the other two hold no parameters
    *norm(f"{BLOCK}norm3", "dim", also=(f"{BLOCK}norm2",), bias=True),
    *_attention(_CROSS, _CROSS_DIFFUSERS),
    *linear(f"{_CROSS}.k_img", "dim", "dim", also=(f"{_CROSS_DIFFUSERS}.add_k_proj",), branch="image"),
    *linear(f"{_CROSS}.v_img", "dim", "dim", also=(f"{_CROSS_DIFFUSERS}.add_v_proj",), branch="image"),
    *norm(f"{_CROSS}.norm_k_img", "dim", also=(f"{_CROSS_DIFFUSERS}.norm_added_k",), branch="image"),
    *linear(f"{BLOCK}ffn.0", "ffn_dim", "dim", also=(f"{BLOCK}ffn.net.0.proj",)),
    *linear(f"{BLOCK}ffn.2", "dim", "ffn_dim", also=(f"{BLOCK}ffn.net.2",)),
)

TAIL_OF_MODEL: tuple[Row, ...] = (
    Row("head.modulation", (1, 2, "dim"), "modulation", also=("scale_shift_table",)),
    # 4: the pixels of a patch of 1 x 2 x 2
    *linear("head.head", "4*out_dim", "dim", also=("proj_out",), kind="head"),
    Row("img_emb.emb_pos", (1, "image_tokens", "image_dim"), "embedding", also=(f"{_IMAGE}.pos_embed",), branch="flf"),
    *norm("img_emb.proj.0", "image_dim", also=(f"{_IMAGE}.norm1",), branch="image", bias=True),
    *_embedding("img_emb.proj.1", f"{_IMAGE}.ff.net.0.proj", "image_dim", "image_dim", "image"),
    *_embedding("img_emb.proj.3", f"{_IMAGE}.ff.net.2", "dim", "image_dim", "image"),
    *norm("img_emb.proj.4", "dim", also=(f"{_IMAGE}.norm2",), branch="image", bias=True),
)


def _vace(row: Row) -> Row:
    """The row of a VACE block that is as one of a block."""
    also = tuple(VACE + name.removeprefix(BLOCK) for name in row.also)
    return replace(row, name=VACE + row.name.removeprefix(BLOCK), also=also, branch="vace")


VACE_BLOCKS: tuple[Row, ...] = (
    *(_vace(row) for row in BLOCKS if not row.branch),
    *(
        replace(row, only_first=True)
        for row in linear(f"{VACE}before_proj", "dim", "dim", also=(f"{VACE}proj_in",), kind="other", branch="vace")
    ),
    *linear(f"{VACE}after_proj", "dim", "dim", also=(f"{VACE}proj_out",), kind="other", branch="vace"),
)

VACE_EMBEDDING: tuple[Row, ...] = (
    Row("vace_patch_embedding.weight", ("dim", "vace_in_dim", 1, 2, 2), "embedding", branch="vace"),
    Row("vace_patch_embedding.bias", ("dim",), "bias", branch="vace"),
)

# Of Animate and S2V the table lists what LightX2V builds with its quantized class; their other tensors are extra.
FUSERS: tuple[Row, ...] = (
    *linear(f"{FUSER}linear1_kv", "2*dim", "dim", module="face_adapter", branch="face"),
    *linear(f"{FUSER}linear1_q", "dim", "dim", module="face_adapter", branch="face"),
    *linear(f"{FUSER}linear2", "dim", "dim", module="face_adapter", branch="face"),
)
INJECTORS: tuple[Row, ...] = tuple(
    row for name in "qkvo" for row in linear(f"{INJECTOR}{name}", "dim", "dim", module="audio_injector", branch="audio")
)
# only some S2V models have these; nothing but the tensor itself says how large they are
ADAINS: tuple[Row, ...] = tuple(
    linear(f"{ADAIN}linear", "adain_rows", "adain_columns", module="audio_injector", branch="adain")
)

TABLE = Table(
    (*HEAD_OF_MODEL, *BLOCKS, *TAIL_OF_MODEL, *VACE_BLOCKS, *VACE_EMBEDDING, *FUSERS, *INJECTORS, *ADAINS),
    ("original", "diffusers"),
    implied={"flf": "image"},
)

_14B = Structure(dim=5120, ffn_dim=13824, num_layers=40)
_1_3B = Structure(dim=1536, ffn_dim=8960, num_layers=30)

VARIANTS: Mapping[str, Structure] = MappingProxyType(
    {
        "I2V-14B": replace(_14B, in_dim=36, image=True),
        "T2V-14B": _14B,
        "T2V-1.3B": _1_3B,
        "FLF2V-14B": replace(_14B, in_dim=36, image=True, flf=True),
        "VACE-14B": replace(_14B, vace_layers=8),
        "VACE-1.3B": replace(_1_3B, vace_layers=15),
        "I2V-A14B": replace(_14B, in_dim=36),
        "TI2V-5B": Structure(dim=3072, ffn_dim=14336, num_layers=30, in_dim=48, out_dim=48),
        "Animate-14B": replace(_14B, in_dim=36, image=True, fuser_layers=8),
        "S2V-14B": replace(_14B, injector_layers=12),
    }
)
"""The released Wan2.1 and Wan2.2 models: wan/configs/*.py, and ``in_dim`` from the checkpoints' own config.json.

An expert of T2V-A14B has the tensors of T2V-14B, one of VACE-Fun-A14B those of VACE-14B. Of Animate and S2V the
inventory lists less than they hold.
"""
