"""The statistics of a layer's input, as they are gathered and added up."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..api.calibration import HELD_OUT
from .low_rank import compressed, factors_of

TOKENS = 1024
"""Sampled of each input where nobody says otherwise."""

HELD_OUT_TOKENS = 128
"""The same where there are factors: all of them are for comparing only."""

PIECE = 1024
"""Tokens that are looked at at a time."""


@dataclass(frozen=True)
class Kept:
    """What is kept of an input beside its sums. tokens: at the most; None: as many as are useful. rank: of factors."""

    tokens: int | None = None
    rank: int = 0

    @property
    def sampled(self) -> int:
        return self.tokens if self.tokens is not None else HELD_OUT_TOKENS if self.rank else TOKENS

    def nbytes(self, columns: int) -> int:
        """Of one input, with what adding a run to it takes."""
        return columns * (2 * 8 + 2 * self.sampled + 2 * 4 * self.rank)


@dataclass
class InputStatistics:
    """Of one input of ``I`` channels, on the host.

    total, squares: float64 [I], sums over all tokens. tokens: bfloat16 [T, I], a uniform sample in random order.
    factors: float32 [R, I], so that ``factors^T factors`` is the sum of ``x x^T``, but for what lies outside their
    span; R is 0 where none are wanted. They see three of four tokens, and ``tokens`` are sampled from the others.
    """

    count: int
    absmax: float
    total: Tensor
    squares: Tensor
    tokens: Tensor
    factors: Tensor

    @classmethod
    def of(cls, tokens: Tensor, kept: Kept, generator: torch.Generator) -> InputStatistics:
        """Of tokens [N, I] on any device."""
        order = torch.randperm(len(tokens), generator=generator)
        seen = order[len(order) // HELD_OUT :] if kept.rank else order[:0]
        picked = (order[: len(order) - len(seen)] if kept.rank else order)[: kept.sampled]
        columns = tokens.shape[1]
        total, squares = (torch.zeros(columns, dtype=torch.float64, device=tokens.device) for _ in range(2))
        absmax = 0.0
        for piece in tokens.split(PIECE):  # type: ignore[no-untyped-call]
            values = piece.float()
            absmax = max(absmax, float(values.abs().amax()))
            total += values.sum(0, dtype=torch.float64)
            squares += values.square().sum(0, dtype=torch.float64)
        return cls(
            len(tokens),
            absmax,
            total.cpu(),
            squares.cpu(),
            tokens[picked.to(tokens.device)].to(torch.bfloat16).cpu(),
            factors_of(tokens, seen.to(tokens.device), kept.rank).cpu(),
        )

    def add(self, other: InputStatistics, kept: Kept, generator: torch.Generator) -> None:
        """Both together; of the sampled tokens as many from each side as it has seen."""
        self.tokens = _sample(self, other, kept.sampled, generator)
        self.factors = compressed(torch.cat([self.factors, other.factors]), kept.rank)
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

    def add(self, other: Calibration, kept: Kept) -> None:
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
            elif bool(len(mine.factors)) != bool(len(one.factors)):
                raise ValueError(f"{name} has factors (--rank) in one, and none in the other")
            else:
                mine.add(one, kept, generator_of(f"{name} {mine.count}"))
        self.layers = {**other.layers, **self.layers}

    def kept(self) -> Kept:
        """As much as the input that holds the most."""
        tokens = max((len(one.tokens) for one in self.inputs.values()), default=0)
        return Kept(tokens, max((len(one.factors) for one in self.inputs.values()), default=0))

    def _input(self, layer: str) -> str:
        return self.layers.get(layer, layer)


def generator_of(text: str) -> torch.Generator:
    """Seeded by a text: the same sample whenever the same is run."""
    return torch.Generator().manual_seed(zlib.crc32(text.encode()))
