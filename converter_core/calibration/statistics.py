"""The statistics of a layer's input, as they are gathered and added up."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

TOKENS = 1024
"""Sampled of each input where nobody says otherwise."""


@dataclass
class InputStatistics:
    """Of one input of ``I`` channels, on the host.

    total, squares: float64 [I], sums over all tokens. tokens: bfloat16 [T, I], a uniform sample in random order.
    """

    count: int
    absmax: float
    total: Tensor
    squares: Tensor
    tokens: Tensor

    @classmethod
    def of(cls, tokens: Tensor, sampled: int, generator: torch.Generator) -> InputStatistics:
        """Of tokens [N, I] on any device."""
        values = tokens.float()
        few = torch.randperm(len(values), generator=generator)[:sampled].to(values.device)
        return cls(
            len(values),
            float(values.abs().amax()),
            values.sum(0, dtype=torch.float64).cpu(),
            values.square().sum(0, dtype=torch.float64).cpu(),
            values[few].to(torch.bfloat16).cpu(),
        )

    def add(self, other: InputStatistics, sampled: int, generator: torch.Generator) -> None:
        """Both together; of the sampled tokens as many from each side as it has seen."""
        self.tokens = _sample(self, other, sampled, generator)
        self.count += other.count
        self.absmax = max(self.absmax, other.absmax)
        self.total = self.total + other.total
        self.squares = self.squares + other.squares


def _sample(one: InputStatistics, other: InputStatistics, sampled: int, generator: torch.Generator) -> Tensor:
    """Uniform over the tokens that both have seen."""
    joined = torch.cat([one.tokens, other.tokens])
    if len(joined) <= sampled:
        return joined[torch.randperm(len(joined), generator=generator)]
    seen = one.count + other.count
    from_one = int((torch.rand(sampled, generator=generator, dtype=torch.float64) * seen < one.count).sum())
    from_one = min(max(from_one, sampled - len(other.tokens)), len(one.tokens))
    picked = torch.cat([one.tokens[:from_one], other.tokens[: sampled - from_one]])
    return picked[torch.randperm(len(picked), generator=generator)]


@dataclass
class Calibration:
    """What a file holds. inputs: by name. layers: layer -> name of its input, where that is another's.

    told: what else stands in the file's metadata.
    """

    inputs: dict[str, InputStatistics] = field(default_factory=dict)
    layers: dict[str, str] = field(default_factory=dict)
    told: Mapping[str, str] = field(default_factory=dict)

    def add(self, other: Calibration, sampled: int = TOKENS) -> None:
        """Both together. ValueError where they are of different models."""
        for layer in {*self.layers, *other.layers}:
            here, there = self._input(layer), other._input(layer)
            if here != there and here in self.inputs and there in other.inputs:
                raise ValueError(f"{layer} has the input of {here} in one, and that of {there} in the other")
        for name, one in other.inputs.items():
            mine = self.inputs.get(name)
            if mine is None:
                self.inputs[name] = one
            elif mine.total.shape != one.total.shape:
                raise ValueError(f"{name} has {len(mine.total)} channels in one, and {len(one.total)} in the other")
            else:
                mine.add(one, sampled, generator_of(f"{name} {mine.count}"))
        self.layers = {**other.layers, **self.layers}

    def _input(self, layer: str) -> str:
        return self.layers.get(layer, layer)


def generator_of(text: str) -> torch.Generator:
    """Seeded by a text: the same sample whenever the same is run."""
    return torch.Generator().manual_seed(zlib.crc32(text.encode()))
