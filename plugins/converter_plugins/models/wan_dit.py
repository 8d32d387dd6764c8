"""Wan2.1 and Wan2.2 diffusion transformers: original and diffusers key format, any size, with or without images."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

from converter_core.api import (
    ModelAdapter,
    Size,
    SourceRoot,
    SourceTensors,
    SyntheticCheckpoint,
    Table,
    TableModel,
    hookimpl,
)

from . import _wan_config
from ._wan_inventory import BLOCK, FUSER, INJECTOR, TABLE, VACE, VARIANTS, Structure

__all__ = ["HEAD_DIM", "SYNTHETIC", "VARIANTS", "Structure", "WanDit"]

HEAD_DIM = 128
"""Of every released Wan model. No tensor's shape shows it, so the number of heads is derived from it."""

EXPERTS = ("high_noise_model", "low_noise_model")
"""The folders of a Wan2.2 A14B pair."""

SYNTHETIC = Structure(dim=256, ffn_dim=640, num_layers=3, in_dim=36, text_dim=512, image_dim=384, image=True)


class WanDit(TableModel):
    """Wan2.1 and Wan2.2 transformers (T2V, I2V, FLF2V, TI2V, VACE, Animate, S2V), and fine-tunes of any size."""

    name: ClassVar[str] = "wan_dit"
    modules: ClassVar[Sequence[str]] = ("self_attn", "cross_attn", "ffn", "face_adapter", "audio_injector")
    default: ClassVar[bool] = True
    classes: ClassVar[Collection[str]] = (
        "WanTransformer3DModel",
        "WanVACETransformer3DModel",
        "WanAnimateTransformer3DModel",
    )
    table: ClassVar[Table] = TABLE
    # a modulation table, and what it modulates: together they occur in no other model of these key formats
    signature: ClassVar[Sequence[Collection[str]]] = (
        tuple(row.name for row in TABLE.rows if row.kind == "modulation"),
        ("patch_embedding.weight", f"{BLOCK}self_attn.q.weight"),
    )
    variants: ClassVar[Mapping[str, Size]] = {name: structure.size for name, structure in VARIANTS.items()}

    def components(self, root: SourceRoot) -> Mapping[str, str]:
        """The two experts of Wan2.2 A14B, the transformer beside its encoders, or the transformers of a pipeline."""
        experts = {name: name for name in EXPERTS if root.holds_weights(name)}
        released = root.matching("diffusion_pytorch_model*.safetensors") and root.matching("models_t5_*")
        return experts or ({"dit": "."} if released else super().components(root))

    def owns_key(self, key: str) -> bool:
        """Not ``blocks.N.norm2.weight``: that in the diffusers key format, and also of the T5 that comes with Wan."""
        return super().owns_key(key) and not (key.startswith("blocks.") and key.endswith(".norm2.weight"))

    def describe(self, tensors: SourceTensors) -> Mapping[str, Any]:
        """Dimensions as far as the shapes show them; ``num_heads`` supposes heads of ``HEAD_DIM``."""
        found = self.contents(tensors)
        facts: dict[str, Any] = {"key_format": found.key_format, "prefix": found.prefix}
        dims = ("dim", "ffn_dim", "in_dim", "out_dim", "text_dim", "freq_dim")
        facts |= {dim: found.dims[dim] for dim in dims if dim in found.dims}
        facts["num_layers"] = found.layers(BLOCK)
        heads, rest = divmod(facts.get("dim", 0), HEAD_DIM)
        if heads and not rest:
            facts["num_heads"] = heads
        facts["image_branch"] = "image" in found.branches
        facts["first_last_frame"] = "flf" in found.branches
        adapters = {"vace_blocks": VACE, "face_adapter_blocks": FUSER, "audio_injector_blocks": INJECTOR}
        facts |= {fact: found.layers(stack) for fact, stack in adapters.items() if found.layers(stack)}
        if self.variant(found) == "I2V-A14B":
            facts["expert"] = "one of two, for high or for low noise; convert each into its own folder"
        facts["extra_tensors"] = len(found.extra)
        return facts

    def config(self, tensors: SourceTensors, key_format: str) -> Mapping[str, Any]:
        """A diffusers config in the original key format; a diffusers config made of the tensors. Else the same object.

        Refused in diffusers' for Animate and S2V, whose tensors it cuts and joins differently or not at all.
        """
        config = tensors.config
        diffusers = _wan_config.is_diffusers(config)
        if key_format == "original" and diffusers:
            return _wan_config.to_original(config)
        if key_format == "diffusers" and not diffusers:
            return _wan_config.to_diffusers(self.contents(tensors), config, HEAD_DIM)
        return config

    def synthetic(self) -> SyntheticCheckpoint:
        """A Wan2.1-I2V of three small blocks, bf16, 8 MB."""
        return SyntheticCheckpoint(
            SYNTHETIC.inventory("BF16"), _wan_config.original(SYNTHETIC, SYNTHETIC.dim // HEAD_DIM)
        )


@hookimpl
def converter_models() -> Sequence[type[ModelAdapter]]:
    return [WanDit]
