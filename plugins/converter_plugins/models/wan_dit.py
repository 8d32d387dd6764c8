"""Wan2.1 and Wan2.2 diffusion transformers: original and diffusers key format, any size, with or without images."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from converter_core.api import ModelAdapter, SourceTensors, SyntheticCheckpoint, TensorRef, WeightInfo, hookimpl

from . import _wan_config, _wan_names
from ._wan_inventory import FUSER, INJECTOR, VACE, VARIANTS, Structure
from ._wan_tensors import WanTensors

__all__ = ["HEAD_DIM", "SYNTHETIC", "VARIANTS", "Structure", "WanDit"]

HEAD_DIM = 128
"""Of every released Wan model. No tensor's shape shows it, so the number of heads is derived from it."""

SYNTHETIC = Structure(dim=256, ffn_dim=640, num_layers=3, in_dim=36, text_dim=512, image_dim=384, image=True)


class WanDit(ModelAdapter):
    """Wan2.1 and Wan2.2 transformers (T2V, I2V, FLF2V, TI2V, VACE, Animate, S2V), and fine-tunes of any size."""

    name: ClassVar[str] = "wan_dit"
    modules: ClassVar[Sequence[str]] = ("self_attn", "cross_attn", "ffn", "face_adapter", "audio_injector")

    def owns_key(self, key: str) -> bool:
        return _wan_names.is_telling(key)

    def recognise(self, tensors: SourceTensors) -> str | None:
        """The name of a released model (``VARIANTS``) by dimensions, branches and blocks, else ``unknown``."""
        found = WanTensors(tensors)
        return found.variant() if found.is_wan else None

    def describe(self, tensors: SourceTensors) -> Mapping[str, Any]:
        """Dimensions as far as the shapes show them; ``num_heads`` supposes heads of ``HEAD_DIM``."""
        found = WanTensors(tensors)
        facts: dict[str, Any] = {"key_format": found.key_format, "prefix": found.prefix}
        dims = ("dim", "ffn_dim", "in_dim", "out_dim", "text_dim", "freq_dim")
        facts |= {dim: found.dims[dim] for dim in dims if dim in found.dims}
        facts["num_layers"] = found.num_layers
        heads, rest = divmod(facts.get("dim", 0), HEAD_DIM)
        if heads and not rest:
            facts["num_heads"] = heads
        facts["image_branch"] = found.image
        facts["first_last_frame"] = found.flf
        adapters = {"vace_blocks": VACE, "face_adapter_blocks": FUSER, "audio_injector_blocks": INJECTOR}
        facts |= {fact: found.layers(stack) for fact, stack in adapters.items() if found.layers(stack)}
        if found.variant() == "I2V-A14B":
            facts["expert"] = "one of two, for high or for low noise; convert each into its own folder"
        facts["extra_tensors"] = len(found.extra)
        return facts

    def problems(self, tensors: SourceTensors) -> Iterable[str]:
        return WanTensors(tensors).problems()

    def foreign(self, tensors: SourceTensors) -> Collection[str]:
        """Of all-in-one files: the VAE and the text encoder beside the transformer."""
        return WanTensors(tensors).foreign

    def weights(self, tensors: SourceTensors) -> Iterator[WeightInfo]:
        """Canonical names are the original ones, without prefix. What the inventory does not know is ``extra``."""
        foreign = set(self.foreign(tensors))
        for key, spec in tensors.items():
            if key in foreign:
                continue
            sources = {"weight": TensorRef(key)}
            known = _wan_names.parse(key)
            if known is None:
                name = _wan_names.bare(key)
                yield WeightInfo(name, sources, "extra", block=_wan_names.block_of(name))
                continue
            kind = known.row.kind
            if kind == "linear" and len(spec.shape) != 2:
                kind = "other"
            module = known.row.module if known.row.module in self.modules else ""
            yield WeightInfo(known.name, sources, kind, module, known.block)

    def rename(self, name: str, key_format: str) -> str:
        """``key_format``: ``original`` or ``diffusers``; PluginError for another."""
        return _wan_names.rename(name, key_format)

    def lora_names(self, name: str) -> Iterable[str]:
        return [_wan_names.rename(name, "diffusers")]

    def config(self, config: Mapping[str, Any], key_format: str) -> Mapping[str, Any]:
        """A diffusers config in the original key format. Any other mapping or key format: the same object."""
        if key_format == "original" and _wan_config.is_diffusers(config):
            return _wan_config.to_original(config)
        return config

    def synthetic(self) -> SyntheticCheckpoint:
        """A Wan2.1-I2V of three small blocks, bf16, 8 MB."""
        return SyntheticCheckpoint(
            SYNTHETIC.inventory("BF16"), _wan_config.original(SYNTHETIC, SYNTHETIC.dim // HEAD_DIM)
        )


@hookimpl
def converter_models() -> Sequence[type[ModelAdapter]]:
    return [WanDit]
