"""Wan2.1 diffusion transformers: original and diffusers naming, any size, with or without the image branch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from converter_core.hookspecs import hookimpl
from converter_core.interfaces import ModelAdapter
from converter_core.specs import Sample, Source, TensorSpec, WeightInfo

from . import _wan_config, _wan_names
from ._wan_inventory import VARIANTS, Structure
from ._wan_survey import Survey

__all__ = ["HEAD_DIM", "SAMPLE", "VARIANTS", "Structure", "WanDit"]

HEAD_DIM = 128
"""Of every released Wan model. No tensor's shape shows it, so the number of heads is derived from it."""

SAMPLE = Structure(dim=256, ffn_dim=640, num_layers=3, in_dim=36, text_dim=512, image_dim=384, image=True)


class WanDit(ModelAdapter):
    """Wan2.1 text-to-video, image-to-video and first-last-frame transformers, and fine-tunes of any size."""

    name: ClassVar[str] = "wan_dit"
    modules: ClassVar[Sequence[str]] = ("self_attn", "cross_attn", "ffn")

    def knows(self, key: str) -> bool:
        return _wan_names.is_telling(key)

    def recognise(self, tensors: Mapping[str, TensorSpec]) -> str | None:
        """``I2V-14B``, ``T2V-14B``, ``T2V-1.3B``, ``FLF2V-14B`` by dimensions and branches, else ``unknown``."""
        survey = Survey(tensors)
        return survey.variant() if survey.is_wan else None

    def describe(self, tensors: Mapping[str, TensorSpec]) -> Mapping[str, Any]:
        """Dimensions as far as the shapes show them; ``num_heads`` supposes heads of ``HEAD_DIM``."""
        survey = Survey(tensors)
        facts: dict[str, Any] = {"naming": survey.naming, "prefix": survey.prefix}
        dims = ("dim", "ffn_dim", "in_dim", "out_dim", "text_dim", "freq_dim")
        facts |= {dim: survey.dims[dim] for dim in dims if dim in survey.dims}
        facts["num_layers"] = survey.num_layers
        heads, rest = divmod(facts.get("dim", 0), HEAD_DIM)
        if heads and not rest:
            facts["num_heads"] = heads
        facts["image_branch"] = survey.image
        facts["first_last_frame"] = survey.flf
        facts["extra_tensors"] = len(survey.extra)
        return facts

    def problems(self, tensors: Mapping[str, TensorSpec]) -> Iterable[str]:
        return Survey(tensors).problems()

    def weights(self, tensors: Mapping[str, TensorSpec]) -> Iterator[WeightInfo]:
        """Canonical names are the original ones, without prefix. What the inventory does not know is ``extra``."""
        for key, spec in tensors.items():
            sources = {"weight": Source(key)}
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

    def rename(self, name: str, dialect: str) -> str:
        """``dialect``: ``original`` or ``diffusers``; PluginError for another."""
        return _wan_names.rename(name, dialect)

    def config(self, config: Mapping[str, Any], dialect: str) -> Mapping[str, Any]:
        """A diffusers config in the original naming. Any other mapping, and any other dialect: the same object."""
        if dialect == "original" and _wan_config.is_diffusers(config):
            return _wan_config.to_original(config)
        return config

    def sample(self) -> Sample:
        """A Wan2.1-I2V of three small blocks, bf16, 8 MB."""
        return Sample(SAMPLE.inventory("BF16"), _wan_config.original(SAMPLE, SAMPLE.dim // HEAD_DIM))


@hookimpl
def converter_models() -> Sequence[type[ModelAdapter]]:
    return [WanDit]
