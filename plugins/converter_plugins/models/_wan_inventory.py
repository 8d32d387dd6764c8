"""Every tensor of a Wan transformer: its two names, its shape by dimension, its kind. Names, shapes and checks follow
from this one table.

Original key format: wan/modules/model.py and vace_model.py of Wan-Video/Wan2.1, animate and s2v of Wan-Video/Wan2.2.
Diffusers key format: transformer_wan.py and transformer_wan_vace.py of huggingface/diffusers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType

from converter_core.api import TensorSpec

BLOCK = "blocks.{}."
"""Stands for ``blocks.0.``, ``blocks.1.`` ... in both key formats."""

VACE = "vace_blocks.{}."
FUSER = "face_adapter.fuser_blocks.{}."
INJECTOR = "audio_injector.injector.{}."
ADAIN = "audio_injector.injector_adain_layers.{}."

Axis = int | str
"""A length: a number, a dimension (``dim``), or a multiple of one (``6*dim``)."""


@dataclass(frozen=True)
class Row:
    """One tensor, or one of every block where its names hold ``{}``.

    branch: what a model must have to have it: ``image``, ``flf`` (first and last frame) or ``vace``.
    only_first: only the first block of its stack has it.
    """

    name: str
    diffusers: str
    shape: tuple[Axis, ...]
    kind: str
    branch: str = ""
    only_first: bool = False

    @property
    def module(self) -> str:
        """``self_attn``, ``cross_attn`` or ``ffn`` of a transformer block; of an adapter its first name."""
        stack, _, inside = self.name.partition("{}.")
        if not inside:
            return ""
        return (inside if stack in ("blocks.", "vace_blocks.") else stack).partition(".")[0]


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

    def inventory(self, dtype: str = "F32") -> dict[str, TensorSpec]:
        """Every tensor by its original name, in the order of the model's own state dict."""
        dims: Mapping[str, int] = asdict(self)
        specs: dict[str, TensorSpec] = {}
        for part in PARTS:
            for number in range(dims[part.count] if part.count else 1):
                for row in part.rows:
                    if self.has(row) and not (row.only_first and number):
                        lengths = (length(axis, dims) for axis in row.shape)
                        specs[row.name.format(number)] = TensorSpec(dtype, tuple(lengths))
        return specs

    def has(self, row: Row) -> bool:
        return not row.branch or bool(self.vace_layers if row.branch == "vace" else getattr(self, row.branch))


def split(axis: str) -> tuple[int, str]:
    """``6*dim`` -> (6, ``dim``); ``dim`` -> (1, ``dim``)."""
    factor, _, dimension = axis.rpartition("*")
    return int(factor or 1), dimension


def length(axis: Axis, dims: Mapping[str, int]) -> int:
    """KeyError where ``dims`` lacks the dimension."""
    if isinstance(axis, int):
        return axis
    factor, dimension = split(axis)
    return factor * dims[dimension]


def _linear(name: str, diffusers: str, rows: Axis, columns: Axis, kind: str, branch: str = "") -> Iterator[Row]:
    yield Row(f"{name}.weight", f"{diffusers}.weight", (rows, columns), kind, branch)
    yield Row(f"{name}.bias", f"{diffusers}.bias", (rows,), "bias", branch)


def _layer_norm(name: str, diffusers: str, size: Axis, branch: str = "") -> Iterator[Row]:
    yield Row(f"{name}.weight", f"{diffusers}.weight", (size,), "norm", branch)
    yield Row(f"{name}.bias", f"{diffusers}.bias", (size,), "norm", branch)


def _rms_norm(name: str, diffusers: str, branch: str = "") -> Row:
    return Row(f"{name}.weight", f"{diffusers}.weight", ("dim",), "norm", branch)


def _attention(name: str, diffusers: str) -> Iterator[Row]:
    for mine, theirs in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0")):
        yield from _linear(f"{name}.{mine}", f"{diffusers}.{theirs}", "dim", "dim", "linear")
    yield _rms_norm(f"{name}.norm_q", f"{diffusers}.norm_q")
    yield _rms_norm(f"{name}.norm_k", f"{diffusers}.norm_k")


_CONDITION = "condition_embedder"
_IMAGE = f"{_CONDITION}.image_embedder"
_CROSS, _CROSS_DIFFUSERS = f"{BLOCK}cross_attn", f"{BLOCK}attn2"

HEAD_OF_MODEL: tuple[Row, ...] = (
    Row("patch_embedding.weight", "patch_embedding.weight", ("dim", "in_dim", 1, 2, 2), "embedding"),
    Row("patch_embedding.bias", "patch_embedding.bias", ("dim",), "bias"),
    *_linear("text_embedding.0", f"{_CONDITION}.text_embedder.linear_1", "dim", "text_dim", "embedding"),
    *_linear("text_embedding.2", f"{_CONDITION}.text_embedder.linear_2", "dim", "dim", "embedding"),
    *_linear("time_embedding.0", f"{_CONDITION}.time_embedder.linear_1", "dim", "freq_dim", "embedding"),
    *_linear("time_embedding.2", f"{_CONDITION}.time_embedder.linear_2", "dim", "dim", "embedding"),
    *_linear("time_projection.1", f"{_CONDITION}.time_proj", "6*dim", "dim", "embedding"),
)

BLOCKS: tuple[Row, ...] = (
    Row(f"{BLOCK}modulation", f"{BLOCK}scale_shift_table", (1, 6, "dim"), "modulation"),
    *_attention(f"{BLOCK}self_attn", f"{BLOCK}attn1"),
    # diffusers counts the norms as they are called, the original as they are defined; the other two hold no parameters
    *_layer_norm(f"{BLOCK}norm3", f"{BLOCK}norm2", "dim"),
    *_attention(_CROSS, _CROSS_DIFFUSERS),
    *_linear(f"{_CROSS}.k_img", f"{_CROSS_DIFFUSERS}.add_k_proj", "dim", "dim", "linear", "image"),
    *_linear(f"{_CROSS}.v_img", f"{_CROSS_DIFFUSERS}.add_v_proj", "dim", "dim", "linear", "image"),
    _rms_norm(f"{_CROSS}.norm_k_img", f"{_CROSS_DIFFUSERS}.norm_added_k", "image"),
    *_linear(f"{BLOCK}ffn.0", f"{BLOCK}ffn.net.0.proj", "ffn_dim", "dim", "linear"),
    *_linear(f"{BLOCK}ffn.2", f"{BLOCK}ffn.net.2", "dim", "ffn_dim", "linear"),
)

TAIL_OF_MODEL: tuple[Row, ...] = (
    Row("head.modulation", "scale_shift_table", (1, 2, "dim"), "modulation"),
    # 4: the pixels of a patch of 1 x 2 x 2
    *_linear("head.head", "proj_out", "4*out_dim", "dim", "head"),
    Row("img_emb.emb_pos", f"{_IMAGE}.pos_embed", (1, "image_tokens", "image_dim"), "embedding", "flf"),
    *_layer_norm("img_emb.proj.0", f"{_IMAGE}.norm1", "image_dim", "image"),
    *_linear("img_emb.proj.1", f"{_IMAGE}.ff.net.0.proj", "image_dim", "image_dim", "embedding", "image"),
    *_linear("img_emb.proj.3", f"{_IMAGE}.ff.net.2", "dim", "image_dim", "embedding", "image"),
    *_layer_norm("img_emb.proj.4", f"{_IMAGE}.norm2", "dim", "image"),
)

VACE_BLOCKS: tuple[Row, ...] = (
    *(
        replace(
            row,
            name=VACE + row.name.removeprefix(BLOCK),
            diffusers=VACE + row.diffusers.removeprefix(BLOCK),
            branch="vace",
        )
        for row in BLOCKS
        if not row.branch
    ),
    *(
        replace(row, only_first=True)
        for row in _linear(f"{VACE}before_proj", f"{VACE}proj_in", "dim", "dim", "other", "vace")
    ),
    *_linear(f"{VACE}after_proj", f"{VACE}proj_out", "dim", "dim", "other", "vace"),
)

VACE_EMBEDDING: tuple[Row, ...] = (
    Row(
        "vace_patch_embedding.weight",
        "vace_patch_embedding.weight",
        ("dim", "vace_in_dim", 1, 2, 2),
        "embedding",
        "vace",
    ),
    Row("vace_patch_embedding.bias", "vace_patch_embedding.bias", ("dim",), "bias", "vace"),
)

# Of Animate and S2V the table lists what LightX2V builds with its quantized class; their other tensors are extra.
FUSERS: tuple[Row, ...] = (
    *_linear(f"{FUSER}linear1_kv", f"{FUSER}linear1_kv", "2*dim", "dim", "linear"),
    *_linear(f"{FUSER}linear1_q", f"{FUSER}linear1_q", "dim", "dim", "linear"),
    *_linear(f"{FUSER}linear2", f"{FUSER}linear2", "dim", "dim", "linear"),
)
INJECTORS: tuple[Row, ...] = tuple(
    row for name in "qkvo" for row in _linear(f"{INJECTOR}{name}", f"{INJECTOR}{name}", "dim", "dim", "linear")
)
# only some S2V models have these; nothing but the tensor itself says how large they are
ADAINS: tuple[Row, ...] = tuple(_linear(f"{ADAIN}linear", f"{ADAIN}linear", "adain_rows", "adain_columns", "linear"))


@dataclass(frozen=True)
class Part:
    """Rows that follow each other in the state dict. count: the field of ``Structure`` that says how many times."""

    rows: tuple[Row, ...]
    count: str = ""


PARTS = (
    Part(HEAD_OF_MODEL),
    Part(BLOCKS, "num_layers"),
    Part(TAIL_OF_MODEL),
    Part(VACE_BLOCKS, "vace_layers"),
    Part(VACE_EMBEDDING),
    Part(FUSERS, "fuser_layers"),
    Part(INJECTORS, "injector_layers"),
)

OUTSIDE = (*HEAD_OF_MODEL, *TAIL_OF_MODEL, *VACE_EMBEDDING)
"""What stands once in a model."""

STACKS: Mapping[str, tuple[Row, ...]] = MappingProxyType(
    {BLOCK: BLOCKS, VACE: VACE_BLOCKS, FUSER: FUSERS, INJECTOR: INJECTORS, ADAIN: ADAINS}
)
"""What stands in every block of a stack."""

ROWS = (*OUTSIDE, *(row for rows in STACKS.values() for row in rows))

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
