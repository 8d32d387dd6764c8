"""One LoRA of a recipe: which weights its tensors change, and everything that speaks against it."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from ..api.models import ModelAdapter
from ..api.targets import Target
from ..api.tensors import raw, typed
from ..api.values import FLOAT8, FLOATING, TensorRef, TensorSpec, WeightInfo
from ..checkpoint.checkpoint import Checkpoint
from ..errors import CheckpointError, shown
from ..lora.forms import FORMS, MAGNITUDE, Amount, flat
from ..lora.keys import Change, ParsedKeys, parse
from ..lora.names import Names
from ..lora.scale import Configured, configured
from ..recipe.check import EXACT
from ..recipe.load import LoraSection
from .jobs import BoundTensor, Term, bind, joined_spec
from .stores import Stores, read_whole

PIECE = 1 << 20
"""Bytes that are read at a time where a tensor is looked through."""


class LoraFile:
    """One file, and what ``run`` finds: terms by weight, unmatched keys, problems."""

    def __init__(
        self,
        section: LoraSection,
        stores: Stores,
        adapter: ModelAdapter,
        weights: Mapping[str, WeightInfo],
        names: Names,
        target: Target | None,
    ) -> None:
        self.section = section
        self.path = section.path
        if not Path(self.path).is_file():
            raise CheckpointError(f"{shown(self.path)}: is no file; a LoRA is one file of tensors")
        self.file: Checkpoint = stores.open(self.path)
        self.stores = stores
        self.adapter = adapter
        self.weights = weights
        self.names = names
        self.target = target
        self.terms: dict[str, list[Term]] = {}
        self.unmatched: list[str] = []
        self._wrong: list[str] = []

    @property
    def problems(self) -> list[str]:
        return [f"{shown(self.path)}: {problem}" for problem in self._wrong]

    def modules(self) -> dict[str, int]:
        infos = [self.weights[name] for name in self.terms]
        return dict(Counter(info.module or info.kind for info in infos))

    def run(self) -> None:
        parsed = parse(self.file.tensors)
        try:
            config = configured(self.file.metadata)
        except ValueError as error:
            self._wrong.append(str(error))
            config = Configured()
        self._forms(parsed)
        self.unmatched += parsed.unknown
        seen: dict[tuple[str, str], Change] = {}
        # pairs before differences, in the order of the file
        for change in sorted(parsed.changes, key=lambda change: change.form == "diff"):
            name = self.names.find(change.base, change.suffix)
            if name is None:
                self.unmatched += change.parts.values()
            elif (other := seen.setdefault((name, change.form), change)) is not change:
                self._wrong.append(f"two of its keys mean {name}: {other.base} and {change.base}")
            elif (term := self._term(change, self.weights[name], config)) is not None:
                self.terms.setdefault(name, []).append(term)
        if not parsed.changes and not parsed.refused:
            self._wrong.append("is no LoRA: none of its tensors has a name that one would have")
        elif not self._wrong and self.terms and not self._changes_something():
            self._wrong.append("changes nothing: its strength, or every change in it, is zero; leave it out")

    def _forms(self, parsed: ParsedKeys) -> None:
        for ending, keys in parsed.refused.items():
            self._wrong.append(f"has tensors of a form that is not merged here ({ending}): {numbered(keys)}")
        if parsed.twice:
            self._wrong.append(f"says the same twice: {numbered(parsed.twice)}")
        if parsed.loose:
            self._wrong.append(f"there is nothing that these belong to: {numbered(parsed.loose)}")

    def unmatched_told(self, relaxed: bool) -> Iterator[str]:
        if self.unmatched:
            rest = "they are left out" if relaxed else "source.on_unmatched: warn leaves them out"
            if not self.terms:
                rest = f"is it for another model than {self.adapter.name}?"
            yield (
                f"{shown(self.path)}: {len(self.unmatched)} of its {len(self.file.tensors)} tensors match no weight: "
                f"{numbered(self.unmatched)}; {rest}"
            )

    def _term(self, change: Change, info: WeightInfo, config: Configured) -> Term | None:
        form, specs = FORMS[change.form], {role: self.file.tensors[key] for role, key in change.parts.items()}
        if missing := form.missing(change.parts):
            self._wrong.append(
                f"{change.base} has no {' and no '.join(missing)}, only {', '.join(change.parts.values())}"
            )
            return None
        if odd := [key for role, key in change.parts.items() if role != "alpha" and specs[role].dtype not in FLOATING]:
            self._wrong.append(f"{odd[0]} is {self.file.tensors[odd[0]].dtype}, no dtype that a LoRA has")
            return None
        if self.target is not None and (change.form not in self.target.lora_forms or MAGNITUDE in change.parts):
            self._wrong.append(
                f"{change.base}: {self.target.name} merges no such form; use source.lora_numerics: {EXACT}"
            )
            return None
        stored = next(joined_spec(bind(self.stores, source, self.adapter)) for source in info.sources.values()).spec
        if reason := self._misfit(change, specs, stored):
            self._wrong.append(reason)
            return None
        scale = self._scale(change, specs, config)
        if scale is None:
            return None
        parts = {
            role: BoundTensor(self.path, TensorRef(key, self.path, by_rows=role in form.by_rows), specs[role])
            for role, key in change.parts.items()
            if role != "alpha"
        }
        return Term(change.form, parts, Amount(scale, self.section.strength), self.section.alpha, self.target)

    def _misfit(self, change: Change, specs: Mapping[str, TensorSpec], weight: TensorSpec) -> str:
        form, keys = FORMS[change.form], [key for role, key in change.parts.items() if role != "alpha"]
        listed = ", ".join(f"{key} {list(self.file.tensors[key].shape)}" for key in keys)
        if weight.dtype not in FLOATING:
            return f"{change.base}: the weight is {weight.dtype}; a LoRA is merged into floating ones"
        if weight.dtype in FLOAT8 and self.target is not None:
            return (
                f"{change.base}: the weight is {weight.dtype}, in which {self.target.name} does not compute; use "
                f"source.lora_numerics: {EXACT}"
            )
        if any(not specs[role].shape for role in form.by_rows) and weight.shape:
            return f"{listed}: a scalar cannot change {weight}"
        if form.rank(specs) == 0:
            return f"{listed}: of rank 0"
        made = form.shape(specs, weight)
        if made != flat(weight):
            change_of = "do not fit each other" if made is None else f"change {list(made)}"
            return f"{listed} {change_of}; the weight is {list(weight.shape)}"
        if MAGNITUDE in specs:
            magnitude = specs[MAGNITUDE]
            if magnitude.numel != made[0] or (magnitude.shape[-1:] == magnitude.shape[:1] == (1,)):
                return (
                    f"{change.parts[MAGNITUDE]} {list(magnitude.shape)} is no magnitude for each of the "
                    f"{made[0]} rows; others are not merged here"
                )
            if len(magnitude.shape) == 2 and magnitude.shape[0] == 1 and made[0] != 1:
                return f"{change.parts[MAGNITUDE]} {list(magnitude.shape)} is one for each column; not merged here"
        return ""

    def _scale(self, change: Change, specs: Mapping[str, TensorSpec], config: Configured) -> float | None:
        """``alpha / rank``; None, and a problem, for what cannot be."""
        rank = FORMS[change.form].rank(specs)
        if rank is None:
            return 1.0
        key = change.parts.get("alpha")
        if key is not None:
            if specs["alpha"].numel != 1:
                self._wrong.append(f"{key} {list(specs['alpha'].shape)} is not one number")
                return None
            alpha: float | None = float(read_whole(self.file, key).item())
        else:
            alpha = config.alpha_of(change.base)
            alpha = self.section.alpha if alpha is None else alpha
        if alpha is None:
            return 1.0
        if not alpha or not math.isfinite(alpha):
            self._wrong.append(f"{change.base}: alpha is {alpha:g}, so it changes nothing or everything")
            return None
        return alpha / config.divisor(rank)

    def _changes_something(self) -> bool:
        """Whether there is a term whose tensors all have an element that is not zero. Of most files two pieces tell."""
        if not self.section.strength:
            return False
        every = (term for several in self.terms.values() for term in several)
        return any(all(self._nonzero(bound) for bound in term.parts.values()) for term in every)

    def _nonzero(self, bound: BoundTensor) -> bool:
        for start in range(0, bound.spec.nbytes, PIECE):
            piece = torch.empty(min(PIECE, bound.spec.nbytes - start), dtype=torch.uint8)
            self.file.read(bound.ref.key, start, raw(piece))
            if bool(typed(piece, TensorSpec(bound.spec.dtype, (-1,))).to(torch.float32).any()):
                return True
        return False


def numbered(keys: Iterable[str]) -> str:
    """All of them, those that differ in their first number alone as one: ``blocks.0-39.attn.q``."""
    groups: dict[tuple[str, str], list[int]] = {}
    for key in keys:
        match = re.search(r"\d{1,6}", key)
        head, number, tail = (key[: match.start()], int(match[0]), key[match.end() :]) if match else (key, -1, "")
        groups.setdefault((head, tail), []).append(number)
    return ", ".join(shown(f"{head}{_runs(sorted(set(numbers)))}{tail}") for (head, tail), numbers in groups.items())


def _runs(numbers: Sequence[int]) -> str:
    if numbers[0] < 0:
        return ""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)
