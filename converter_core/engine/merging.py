"""LoRAs added to rows of a weight: what every slab needs of them is read once, the rest with the rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ..api.devices import DeviceStream
from ..lora.forms import FORMS, change
from ..planning.jobs import Term
from ..planning.stores import Stores
from .finite import check_finite
from .reading import Reader

if TYPE_CHECKING:
    from torch import Tensor


class Merger:
    """The terms of one weight. rows: of the weight."""

    def __init__(self, terms: Sequence[Term], stores: Stores, stream: DeviceStream, rows: int) -> None:
        self.terms = terms
        self.reader = Reader(stores, stream, own_buffer=True)
        self.rows = rows
        self._held = [self._read(term, 0, 0, by_rows=False) for term in terms]

    def merged(self, weight: Tensor, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop`` with all terms, float32; as they are if there are none."""
        if not self.terms:
            return weight
        total = _flat(weight)
        for term, held in zip(self.terms, self._held, strict=True):
            parts = {**held, **self._read(term, start, stop, by_rows=True)}
            total = change(FORMS[term.form], total, parts, term.amount, start)
        return total.reshape(weight.shape)

    def _read(self, term: Term, start: int, stop: int, by_rows: bool) -> dict[str, Tensor]:
        """float32 [rows, columns] by role."""
        wanted = {role: (bound,) for role, bound in term.parts.items() if bound.ref.by_rows == by_rows}
        if not wanted:
            return {}
        tensors = self.reader.read(wanted, start, stop, self.rows)
        found = {}
        for role, tensor in tensors.items():
            bound = wanted[role][0]
            check_finite(tensor, f"{bound.path}: {bound.ref.key!r}", start)
            found[role] = _flat(tensor).to(torch.float32)
        return found


def _flat(tensor: Tensor) -> Tensor:
    return tensor.reshape(tensor.shape[0] if tensor.dim() else 1, -1)
