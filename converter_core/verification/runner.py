"""Read every tensor of an output once for its checksum, and every quantized weight as the runtime does; in parallel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from ..api.contexts import WeightContext
from ..api.formats import UNQUANTIZED
from ..engine.memory import Budget
from ..engine.worker_pool import Progress, WorkerPool
from ..errors import ConverterError
from ..planning.encoding import BIAS
from ..planning.jobs import bias_name
from ..planning.resources import DEFAULT_MEMORY, MOST_WORKERS
from ..plugins.attribution import describe
from ..system import cores
from .files import Reading
from .held_out import HeldOut
from .measure import Measure, Wrong
from .opened import OpenedOutput, Weight
from .result import Copied, Structure, Verification, WeightReport
from .source import Source, copied_equals


class Run:
    """Workers take weights one by one; each is read slab by slab."""

    def __init__(
        self,
        opened: OpenedOutput,
        source: Source | None,
        progress: Callable[[Progress], None] | None,
        held_out: HeldOut | None = None,
    ) -> None:
        self.opened = opened
        self.output = opened.output
        self.target = opened.target
        self.source = source
        self.infos = opened.infos(source)
        self.specs = self.output.tensors
        self.budget = Budget(DEFAULT_MEMORY)
        self.pool: WorkerPool[Weight] = WorkerPool(0, progress)
        self.measure = Measure(opened.target, source, self.budget, self.pool.advance, held_out)
        self.weights: dict[str, WeightReport] = {}
        self.copied: dict[str, bool] = {}
        self.checked: set[str] = set()
        self.unnamed = self._unnamed() if source is not None and opened.expected is None else []

    def run(self) -> Verification:
        opened, output = self.opened, self.output
        weights = [weight for weight in opened.weights if all(key in self.specs for key in weight.stored.keys.values())]
        self._work(weights)
        self._account_for_manifest()
        if self.source is not None:
            self._account_for_source()
        return Verification(
            output="",
            model=opened.model,
            target=opened.target.name,
            problems=tuple(sorted(output.problems, key=lambda problem: (problem.file, problem.tensor, problem.reason))),
            structure=Structure(dict(sorted(output.sizes.items())), len(self.specs), output.checksums),
            weights=tuple(self.weights[weight.name] for weight in weights if weight.name in self.weights),
            kept=tuple(map(self._blank_report, filter(self._is_kept, weights))),
            copied=self._copied([weight for weight in weights if weight.stored.format == UNQUANTIZED]),
            recipe=dict(opened.expected.recipe) if opened.expected else {},
            written_by=opened.expected.written_by if opened.expected else "",
            notes=(*output.notes, *self._without_limit()),
        )

    def _is_kept(self, weight: Weight) -> bool:
        info = self.infos.get(weight.name)
        return weight.stored.format == UNQUANTIZED and info is not None and info.kind == "linear"

    def _copied(self, weights: list[Weight]) -> Copied:
        before = [self._bytes_before(weight) for weight in weights]
        added = sum(map(self._is_added, weights))
        return Copied(
            count=len(weights) - added,
            added=added,
            compared=self.source is not None,
            unequal=tuple(weight.name for weight in weights if not self.copied.get(weight.name, True)),
            bytes_before=sum(nbytes for nbytes in before if nbytes is not None) if None not in before else None,
            bytes_after=sum(self.specs[key].nbytes for weight in weights for key in weight.stored.keys.values()),
        )

    def _unnamed(self) -> list[str]:
        """Tensors that are not quantized, where the target has names of its own for them; the manifest has both."""
        kept = {weight.name for weight in self.opened.weights if weight.stored.format == UNQUANTIZED}
        keys = {name: self.target.key(WeightContext(info, name), "weight") for name, info in self.infos.items()}
        renamed = [name for name, key in keys.items() if key != name]
        return sorted(kept - self.infos.keys()) if renamed else []

    def _without_limit(self) -> list[str]:
        compared = [weight for weight in self.weights.values() if weight.relative_error is not None]
        has_limit = {weight.format: weight.limit is not None for weight in compared}
        return [
            f"{format} has no quantization_step; errors are reported without a pass/fail limit"
            for format in sorted(has_limit)
            if not has_limit[format]
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
        return 0 if self.opened.expected is not None else None  # what the target added was made of nothing

    def _work(self, weights: list[Weight]) -> None:
        self.pool.total = sum(self._nbytes(weight) for weight in weights)
        with _one_thread_each():
            self.pool.run(weights, min(cores(), MOST_WORKERS), self._worker, self.budget.close)

    def _worker(self, number: int, next_weight: Callable[[], Weight]) -> None:
        torch.set_num_threads(1)
        with torch.inference_mode():
            while True:
                weight = next_weight()
                with self.pool.lock:
                    self.pool.weight = weight.name
                reading = Reading(self.output.weight_map, self.pool.advance)
                if weight.stored.format == UNQUANTIZED:
                    self._compare(weight, reading)
                else:
                    self._measure(weight, reading)
                self._checksums(weight, reading)

    def _problem(self, key: str, reason: str) -> None:
        file = self.output.weight_map.get(key)
        with self.pool.lock:
            self.output.problem(file.name if file else "", reason, key)

    def _checksums(self, weight: Weight, reading: Reading) -> None:
        for key in weight.stored.keys.values():
            if self.opened.expected is None:
                reading.skip(key)
                continue
            try:
                crc32 = f"{reading.crc32(key):08x}"
            except ConverterError as error:
                self._problem(key, "; ".join(error.problems))
                continue
            expected = self.opened.expected.tensors[key].crc32
            if expected and crc32 != expected:
                self._problem(key, "its checksum differs; it was changed after it was written")
            with self.pool.lock:
                self.checked.add(key)
                self.output.checksums += 1

    def _account_for_manifest(self) -> None:
        """Whatever the reason: a tensor that the manifest lists and that was not read is never passed over."""
        expected = self.opened.expected
        if expected is None:
            return
        problematic = {problem.file for problem in self.output.problems}
        problematic |= {problem.tensor for problem in self.output.problems}
        for key, tensor in expected.tensors.items():
            if key not in self.checked and not {key, tensor.file} & problematic:
                self.output.problem(tensor.file, "could not be checked", key)

    def _compare(self, weight: Weight, reading: Reading) -> None:
        """One that is not quantized."""
        source, info = self.source, self.infos.get(weight.name)
        if source is None or weight.name in self.unnamed:
            return
        if info is None:
            if not self._is_added(weight):
                self._problem(weight.key, "is not in the source")
            return
        equal = False
        try:
            equal = copied_equals(reading, weight.key, self.specs[weight.key], source, info, self.target)
            reason = "" if equal else "is not quantized and yet differs from its source"
        except ConverterError as error:
            reason = "; ".join(error.problems)
        except Exception as error:  # from a plugin or from torch
            reason = f"cannot be compared with its source: {describe(error)}"
        if reason:
            self._problem(weight.key, reason)
        with self.pool.lock:
            self.copied[weight.name] = equal
        self.pool.advance(source.nbytes(info))

    def _is_added(self, weight: Weight) -> bool:
        """Made by the target: the manifest names no source for it, and neither does the model."""
        if self.opened.expected is None or weight.spec is not None or weight.stored.format != UNQUANTIZED:
            return False
        return self.source is None or weight.name not in self.infos

    def _measure(self, weight: Weight, reading: Reading) -> None:
        """One that is quantized."""
        report = self._blank_report(weight)
        reason = ""
        try:
            report = self._measured(report, weight, reading)
        except Wrong as wrong:
            report, reason = wrong.report, str(wrong)
        except ConverterError as error:
            reason = "; ".join(error.problems)
        except Exception as error:  # from a plugin or from torch
            reason = f"cannot be decoded: {describe(error)}"
        if reason:
            self._problem(weight.key, reason)
        with self.pool.lock:
            self.weights[weight.name] = replace(report, ok=not reason)

    def _blank_report(self, weight: Weight) -> WeightReport:
        info = self.infos.get(weight.name)
        return WeightReport(
            name=weight.name,
            block=info.block if info else "",
            module=info.module if info else "",
            format=weight.stored.format.name,
            shape=weight.spec.shape if weight.spec else self.specs[weight.key].shape,
            bytes_before=self._bytes_before(weight),
            bytes_after=sum(self.specs[part].nbytes for part in weight.stored.keys.values()),
            original=info.name if info else "",
        )

    def _measured(self, report: WeightReport, weight: Weight, reading: Reading) -> WeightReport:
        info = self.infos.get(weight.name)
        own = {role: key for role, key in weight.stored.keys.items() if role != BIAS}
        weight = replace(weight, stored=replace(weight.stored, keys=own))
        specs = {role: self.specs[key] for role, key in weight.stored.keys.items()}
        if self.source is not None and self.source.quantized is not None:
            reason = self.measure.same_parts(weight, specs, reading, info)
            if reason:
                raise Wrong(reason, report)
            return report
        if self.source is not None and info is None:
            raise Wrong("is not in the source", report)
        quantizer = self.opened.quantizer(weight, info)
        if quantizer is None:
            raise Wrong(f"no installed quantizer reads {report.format}; install the plugin that does", report)
        if info is None or self.source is None:
            return self.measure.finite(report, weight, quantizer, specs, reading)
        return self.measure.against_source(report, weight, quantizer, specs, reading, info)

    def _has_bias(self, weight: Weight) -> bool:
        """Whether the layer's bias was made together with its weight."""
        return BIAS in weight.stored.keys and weight.name in self.infos

    def _account_for_source(self) -> None:
        if self.unnamed:
            self.output.problem(
                "",
                f"{len(self.unnamed)} tensors that are not quantized have names that only the manifest explains, e.g. "
                f"{self.unnamed[0]}; without it they cannot be compared",
            )
            return
        there = {weight.name for weight in self.opened.weights}
        named = {info.name: name for name, info in self.infos.items()}
        corrected = [bias_name(self.infos[one.name]) for one in self.opened.weights if self._has_bias(one)]
        there |= {named.get(bias, bias) for bias in corrected}
        for name in sorted(set(self.infos) - there):
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
