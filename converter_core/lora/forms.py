"""The forms in which a file says how a weight changes: which tensors, of which shapes, and the formula of each.

All arithmetic is in float32, in chains of fused multiply-adds (``arithmetic``). ``scale`` is ``alpha / rank`` and
``strength`` the user's; both together are one float32 number ``s``, rounded once.

=========  =====================================================================================================
``lora``   ``W + s B A``; ``s`` multiplies ``B``, whose elements are then rounded to float32 (E. Hu et al., 2021)
``diff``   ``W + s D``, with ``s`` the strength alone
``loha``   ``W + s (B1 A1) * (B2 A2)``; ``s`` multiplies the rounded first product (FedPara, N. Hyeon-Woo et al., 2021)
``lokr``   ``W + s kron(W1, W2)``, either of them a product or whole; ``s`` multiplies ``W1`` (LyCORIS, S.-Y. Yeh, 2023)
=========  =====================================================================================================

With a ``magnitude`` m of each row (DoRA, S.-Y. Liu et al., 2024) ``W'`` of these, at strength 1, becomes
``W' m / |W'|``, with the Euclidean norm of each row; ``strength`` then goes that part of the way from W to there.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from ..api.values import TensorSpec
from .arithmetic import add_product, multiply_add

if TYPE_CHECKING:
    from torch import Tensor

    from ..api.values import Parts

Specs = Mapping[str, TensorSpec]

MAGNITUDE = "magnitude"


class Form(ABC):
    """roles: of its tensors. by_rows: those of which a slab of rows of the weight needs the same rows."""

    name: ClassVar[str]
    roles: ClassVar[tuple[str, ...]]
    by_rows: ClassVar[frozenset[str]] = frozenset()

    def missing(self, roles: Mapping[str, object]) -> list[str]:
        """The roles that are not there and must be."""
        return [role for role in self.roles if role not in roles]

    @abstractmethod
    def shape(self, specs: Specs, weight: TensorSpec) -> tuple[int, ...] | None:
        """Of the change that these tensors make, None where they do not fit each other.

        It must be the weight's [rows, columns], all dimensions but the first as one.
        """

    def rank(self, specs: Specs) -> int | None:
        """What ``alpha`` is divided by; None: ``alpha`` means nothing."""
        return None

    @abstractmethod
    def add(self, weight: Tensor, parts: Parts, scale: float, first: int) -> Tensor:
        """Rows of a weight from row ``first`` on and ``scale`` times this, float32 [rows, columns]."""


class LowRank(Form):
    name = "lora"
    roles = ("up", "down")
    by_rows = frozenset({"up"})

    def shape(self, specs: Specs, weight: TensorSpec) -> tuple[int, ...] | None:
        up, down = flat(specs["up"]), flat(specs["down"])
        return (up[0], down[1]) if up[1] == down[0] else None

    def rank(self, specs: Specs) -> int:
        return specs["down"].shape[0]

    def add(self, weight: Tensor, parts: Parts, scale: float, first: int) -> Tensor:
        return add_product(weight, scaled(parts["up"], scale), parts["down"])


class Diff(Form):
    name = "diff"
    roles = ("diff",)
    by_rows = frozenset({"diff"})

    def shape(self, specs: Specs, weight: TensorSpec) -> tuple[int, ...] | None:
        return flat(specs["diff"])

    def add(self, weight: Tensor, parts: Parts, scale: float, first: int) -> Tensor:
        return multiply_add(number(scale, weight), parts["diff"], weight.to(torch.float32))


class Hadamard(Form):
    name = "loha"
    roles = ("w1_a", "w1_b", "w2_a", "w2_b")
    by_rows = frozenset({"w1_a", "w2_a"})

    def shape(self, specs: Specs, weight: TensorSpec) -> tuple[int, ...] | None:
        one, two = (_product(specs, f"w{number}") for number in (1, 2))
        return one if one == two else None

    def rank(self, specs: Specs) -> int:
        return specs["w1_b"].shape[0]

    def add(self, weight: Tensor, parts: Parts, scale: float, first: int) -> Tensor:
        zeros = torch.zeros_like(weight, dtype=torch.float32)
        one, two = (add_product(zeros, parts[f"w{n}_a"], parts[f"w{n}_b"]) for n in (1, 2))
        return multiply_add(scaled(one, scale), two, weight.to(torch.float32))


class Kronecker(Form):
    name = "lokr"
    roles = ("w1", "w2")

    def missing(self, roles: Mapping[str, object]) -> list[str]:
        return [
            role
            for whole in self.roles
            if whole not in roles
            for role in (f"{whole}_a", f"{whole}_b")
            if role not in roles
        ]

    def shape(self, specs: Specs, weight: TensorSpec) -> tuple[int, ...] | None:
        one, two = (flat(specs[w]) if w in specs else _product(specs, w) for w in self.roles)
        return (one[0] * two[0], one[1] * two[1]) if one and two else None

    def rank(self, specs: Specs) -> int | None:
        """LyCORIS scales by ``alpha`` only where one of the two is a product."""
        return next((specs[role].shape[0] for role in ("w2_b", "w1_b") if role in specs), None)

    def add(self, weight: Tensor, parts: Parts, scale: float, first: int) -> Tensor:
        one, two = (self._whole(parts, w) for w in self.roles)
        rows = torch.arange(first, first + weight.shape[0], device=weight.device)
        left = scaled(one[rows // two.shape[0]], scale).repeat_interleave(two.shape[1], 1)
        right = two[rows % two.shape[0]].repeat(1, one.shape[1])
        return multiply_add(left, right, weight.to(torch.float32))

    def _whole(self, parts: Parts, name: str) -> Tensor:
        if name in parts:
            return parts[name]
        left, right = parts[f"{name}_a"], parts[f"{name}_b"]
        return add_product(left.new_zeros((left.shape[0], right.shape[1])), left, right)


FORMS: Mapping[str, Form] = {form.name: form for form in (LowRank(), Diff(), Hadamard(), Kronecker())}


@dataclass(frozen=True)
class Amount:
    """How much of a change is added. scale: ``alpha / rank``."""

    scale: float
    strength: float


def change(form: Form, weight: Tensor, parts: Parts, amount: Amount, first: int) -> Tensor:
    """Rows of a weight, from row ``first`` on, as this changes them; float32 [rows, columns].

    weight: any floating dtype, [rows, columns]. parts: float32 [rows, columns]; those by rows for these rows alone.
    """
    if MAGNITUDE not in parts:
        return form.add(weight, parts, amount.scale * amount.strength, first)
    merged = form.add(weight, parts, amount.scale, first)
    magnitude = parts[MAGNITUDE].reshape(-1)[first : first + weight.shape[0], None]
    norm = norms(merged)
    merged *= torch.where(norm == 0, 0.0, magnitude.double() / norm).float()
    if amount.strength == 1:
        return merged
    before = weight.to(torch.float32)
    return multiply_add(number(amount.strength, before), merged - before, before)


def norms(rows: Tensor) -> Tensor:
    """The Euclidean norm of each row, float64 [rows, 1]. Halves are added to each other, so the order is defined."""
    squares = rows.double() ** 2
    while squares.shape[1] > 1:
        if squares.shape[1] % 2:
            squares = torch.nn.functional.pad(squares, (0, 1))
        half = squares.shape[1] // 2
        squares = squares[:, :half] + squares[:, half:]
    return squares.sqrt()


def flat(spec: TensorSpec) -> tuple[int, int]:
    """[rows, columns]: all dimensions but the first as one; a vector is a column, a scalar one element."""
    return (spec.shape[0], math.prod(spec.shape[1:])) if spec.shape else (1, 1)


def scaled(factor: Tensor, scale: float) -> Tensor:
    return factor if scale == 1 else factor * number(scale, factor)


def number(value: float, like: Tensor) -> Tensor:
    """A float32 scalar: a Python number would be rounded by some devices and not by others."""
    return torch.tensor(value, dtype=torch.float32, device=like.device)


def _product(specs: Specs, name: str) -> tuple[int, int] | None:
    left, right = flat(specs[f"{name}_a"]), flat(specs[f"{name}_b"])
    return (left[0], right[1]) if left[1] == right[0] else None
