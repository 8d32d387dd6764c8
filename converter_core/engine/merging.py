"""LoRAs added to rows of a weight: what every slab needs of them is read once, the rest with the rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ..api.contexts import LoraChange
from ..api.devices import DeviceStream
from ..api.tensors import in_words, upcast
from ..errors import PluginError
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
        """Rows ``start`` to ``stop`` with all terms, float32 if one of them is exact."""
        if not self.terms:
            return weight
        total = _flat(upcast(weight))
        for term, held in zip(self.terms, self._held, strict=True):
            parts = {**held, **self._read(term, start, stop, by_rows=True)}
            form = FORMS[term.form]
            if term.target is None:
                total = change(form, total, parts, term.amount, start)
            else:
                rounded = {role: part.to(total.dtype).to(torch.float32) for role, part in parts.items()}
                product = form.add(torch.zeros_like(total, dtype=torch.float32), rounded, 1.0, start)
                total = self._as_target(term, total, product)
        return total.reshape(weight.shape)

    def _as_target(self, term: Term, rows: Tensor, product: Tensor) -> Tensor:
        assert term.target is not None
        found = term.target.merge_lora(
            rows, LoraChange(term.form, product, term.amount.scale, term.amount.strength, term.alpha)
        )
        if found.dtype != rows.dtype or found.shape != rows.shape:
            raise PluginError(
                f"target {term.target.name}: merge_lora made {in_words(found)} of {in_words(rows)}; it must keep both"
            )
        return found

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
