"""Read every tensor of an output once for its checksum, and every quantized weight as the runtime does; in parallel."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from .accuracy import Source, copied_equals
from .devices import DEFAULT_MEMORY, MOST_WORKERS
from .errors import ConverterError, Refused
from .interfaces import Quantizer
from .keep import Keep
from .memory import Budget
from .read_back import Slicer, decode, read_slab
from .specs import Source as Part
from .specs import WeightInfo
from .sums import Sums
from .team import Progress, Team
from .verification_files import Reading
from .verification_report import Copied, Structure, Verification, WeightReport
from .verification_subject import Subject, Weight

NEWLINE = "\n"

WORKING_BYTES = 32
"""What each element of a slab may take: its float32 values, and temporaries of the quantizer."""


class Run:
    """Workers take weights one by one; each is read slab by slab."""

    def __init__(self, subject: Subject, source: Source | None, progress: Callable[[Progress], None] | None) -> None:
        self.subject = subject
        self.output = subject.output
        self.target = subject.target
        self.source = source
        self.slicer = Slicer(subject.target)
        self.infos = subject.infos(source)
        self.specs = self.output.tensors
        self.budget = Budget(DEFAULT_MEMORY)
        self.team: Team[Weight] = Team(0, progress)
        self.weights: dict[str, WeightReport] = {}
        self.copied: dict[str, bool] = {}
        self.unnamed = self._unnamed() if source is not None and subject.expected is None else []

    def run(self) -> Verification:
        subject, output = self.subject, self.output
        weights = [
            weight for weight in subject.weights if all(key in self.specs for key in weight.stored.keys.values())
        ]
        self._work(weights)
        if self.source is not None:
            self._account_for_source()
        kept = [weight for weight in weights if weight.stored.format == Keep.name]
        before = [self._bytes_before(weight) for weight in kept]
        return Verification(
            output="",
            model=subject.model,
            target=subject.target.name,
            problems=tuple(sorted(output.problems, key=lambda problem: (problem.file, problem.tensor, problem.reason))),
            structure=Structure(dict(sorted(output.sizes.items())), len(self.specs), output.checksums),
            weights=tuple(self.weights[weight.name] for weight in weights if weight.name in self.weights),
            copied=Copied(
                len(kept),
                self.source is not None,
                tuple(weight.name for weight in kept if not self.copied.get(weight.name, True)),
                sum(nbytes for nbytes in before if nbytes is not None) if None not in before else None,
                sum(self.specs[key].nbytes for weight in kept for key in weight.stored.keys.values()),
            ),
            notes=(*output.notes, *self._unjudged()),
        )

    def _unnamed(self) -> list[str]:
        """Tensors that are not quantized, where the target has names of its own for them; the manifest has both."""
        kept = {weight.name for weight in self.subject.weights if weight.stored.format == Keep.name}
        renamed = [name for name in self.infos if self.target.key(name, "weight") != name]
        return sorted(kept - self.infos.keys()) if renamed else []

    def _unjudged(self) -> list[str]:
        """Formats whose errors are shown but held against nothing."""
        compared = [weight for weight in self.weights.values() if weight.relative_error is not None]
        judged = {weight.format: weight.limit is not None for weight in compared}
        return [
            f"{format}: its quantizer names no step, so its errors are shown but not judged"
            for format, has_limit in sorted(judged.items())
            if not has_limit
        ]

    def _nbytes(self, weight: Weight) -> int:
        stored = sum(self.specs[key].nbytes for key in weight.stored.keys.values())
        return stored + (self._bytes_before(weight) or 0 if self.source is not None else 0)

    def _bytes_before(self, weight: Weight) -> int | None:
        info = self.infos.get(weight.name)
        if self.source is not None and info is not None:
            return self.source.nbytes(info)
        if weight.spec is not None:
            return weight.spec.nbytes
        return 0 if self.subject.expected is not None else None  # what the target added was made of nothing

    def _work(self, weights: list[Weight]) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.team.total = sum(self._nbytes(weight) for weight in weights)
        with _one_thread_each():
            self.team.run(weights, min(cores, MOST_WORKERS), self._worker, self.budget.close)

    def _worker(self, number: int, next_weight: Callable[[], Weight]) -> None:
        torch.set_num_threads(1)
        with torch.inference_mode():
            while True:
                weight = next_weight()
                with self.team.lock:
                    self.team.weight = weight.name
                reading = Reading(self.output.home, self.team.advance)
                if weight.stored.format == Keep.name:
                    self._compare(weight, reading)
                else:
                    self._measure(weight, reading)
                self._checksums(weight, reading)

    def _problem(self, key: str, reason: str) -> None:
        file = self.output.home.get(key)
        with self.team.lock:
            self.output.problem(file.name if file else "", reason, key)

    def _checksums(self, weight: Weight, reading: Reading) -> None:
        for key in weight.stored.keys.values():
            if self.subject.expected is None:
                reading.skip(key)
                continue
            if f"{reading.crc32(key):08x}" != self.subject.expected.tensors[key][2]:
                self._problem(key, "its checksum differs; it was changed after it was written")
            with self.team.lock:
                self.output.checksums += 1

    def _compare(self, weight: Weight, reading: Reading) -> None:
        """One that is not quantized."""
        source, info = self.source, self.infos.get(weight.name)
        if source is None:
            return
        (key,) = weight.stored.keys.values()
        if weight.name in self.unnamed:
            return
        if info is None:
            if weight.spec is not None or self.subject.expected is None:  # else the target added it
                self._problem(key, "is not in the source")
            return
        equal = copied_equals(reading, key, self.specs[key], source, info, self.target)
        if not equal:
            self._problem(key, "is not quantized and yet differs from its source")
        with self.team.lock:
            self.copied[weight.name] = equal
        self.team.advance(source.nbytes(info))

    def _measure(self, weight: Weight, reading: Reading) -> None:
        """One that is quantized."""
        info = self.infos.get(weight.name)
        quantizer = self.subject.quantizer(weight)
        report = WeightReport(
            name=weight.name,
            block=info.block if info else "",
            module=info.module if info else "",
            format=weight.stored.format,
            shape=weight.spec.shape if weight.spec else self.specs[weight.stored.keys["weight"]].shape,
            bytes_before=self._bytes_before(weight),
            bytes_after=sum(self.specs[part].nbytes for part in weight.stored.keys.values()),
        )
        try:
            if self.source is not None and self.source.stored:
                reason = self._relaid(self.source, weight, reading)
            elif self.source is not None and info is None:
                reason = "is not in the source"
            elif quantizer is None:
                reason = f"no installed quantizer reads {weight.stored.format}; install the plugin that does"
            else:
                report, reason = self._measured(report, weight, quantizer, info, reading)
        except ConverterError as error:
            reason = "; ".join(error.problems)
        except Exception as error:  # in the words of a plugin, or of torch
            reason = f"cannot be decoded: {type(error).__name__}: {str(error).strip().partition(NEWLINE)[0]}"
        if reason:
            self._problem(weight.stored.keys["weight"], reason)
        with self.team.lock:
            self.weights[weight.name] = replace(report, ok=not reason)

    def _relaid(self, source: Source, weight: Weight, reading: Reading) -> str:
        """Why a weight is not the one of a source that has the same parts."""
        for key in weight.stored.keys.values():
            if key not in source.checkpoint.tensors:
                return f"{key} is not in the source"
            info = WeightInfo(key, {"weight": Part(key)})
            if not copied_equals(reading, key, self.specs[key], source, info, self.target):
                return f"{key} differs from the source"
        return ""

    def _measured(
        self, report: WeightReport, weight: Weight, quantizer: Quantizer, info: WeightInfo | None, reading: Reading
    ) -> tuple[WeightReport, str]:
        """The weight's report, and what is wrong with it if anything is."""
        parts = {role: self.specs[key] for role, key in weight.stored.keys.items()}
        source = self.source
        spec = source.spec(info) if source is not None and info is not None else weight.spec
        try:
            slices = self.slicer.slices(quantizer, spec, parts)
        except Refused:
            if source is not None:
                raise
            # relaid from a quantized source: what the manifest calls its source are those very parts
            slices = self.slicer.slices(quantizer, None, parts)
        sums = Sums()
        shape = slices.shape
        per_row = math.prod(shape[1:]) * WORKING_BYTES
        for start, stop in slices.runs():
            with self.budget.take((stop - start) * per_row):
                stored = read_slab(reading, weight.stored, parts, slices, start, stop)
                decoded = decode(self.target, quantizer, stored)
                if source is None or info is None:
                    shape = tuple(decoded.weight.shape) if stop - start == slices.rows else shape
                    if not math.isfinite(float(decoded.weight.sum())) and not bool(decoded.weight.isfinite().all()):
                        return replace(report, shape=shape), f"is not finite in rows {start} to {stop - 1}"
                else:
                    rows = source.rows(info, start, stop)
                    if rows.shape != decoded.weight.shape:
                        return report, f"decodes to {list(decoded.weight.shape)}, its source is {list(rows.shape)}"
                    step = quantizer.step(decoded.parts)
                    sums.add(start, rows, decoded.weight, step)
                    self.team.advance(source.nbytes(info) * (stop - start) // max(slices.rows, 1))
        if source is None:
            return replace(report, shape=shape), ""
        measured = replace(
            report,
            shape=shape,
            relative_error=sums.relative_error,
            sqnr_db=sums.sqnr_db,
            cosine=sums.cosine,
            worst=sums.worst,
            limit=sums.limit,
        )
        if not sums.finite:
            return measured, "decodes to something that is not finite"
        if not sums.ok:
            return measured, (
                f"its relative error is {sums.relative_error:.3g}; the steps of {weight.stored.format} allow at most "
                f"{sums.limit:.3g}. "
                "It is damaged or not made of this source, or the scheme's dequantize or step, "
                "or the target's decode, is wrong"
            )
        return measured, ""

    def _account_for_source(self) -> None:
        if self.unnamed:
            self.output.problem(
                "",
                f"{len(self.unnamed)} tensors that are not quantized have names that only the manifest explains, e.g. "
                f"{self.unnamed[0]}; without it they cannot be compared",
            )
            return
        for name in sorted(set(self.infos) - {weight.name for weight in self.subject.weights}):
            self.output.problem("", "is in the source and not in the output", name)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Several workers with one thread each beat one worker with several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
