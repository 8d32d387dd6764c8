"""From chosen quantizers to weights and jobs, by trial runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from .errors import PluginError, Refused
from .interfaces import ModelAdapter, Quantizer, Target
from .keep import Keep
from .plan import Group, Job
from .selection import Choice, rule_name
from .specs import OutputTensor, PlannedWeight, Source, Stored, TensorSpec, WeightInfo
from .tensors import spec_of
from .trial import Piece, Trials


class Weigher:
    """Collects what quantizers and the target refuse, a reason at a time, in ``problems``."""

    def __init__(self, adapter: ModelAdapter, target: Target, tensors: Mapping[str, TensorSpec]) -> None:
        self.adapter = adapter
        self.target = target
        self.tensors = tensors
        self.trials = Trials(adapter, target)
        self._refused: dict[tuple[str, str, str], list[str]] = {}
        self._twice: list[str] = []

    @property
    def problems(self) -> list[str]:
        found = []
        for (method, reason, advice), (name, *more) in self._refused.items():
            others = f" (and {len(more)} more)" if more else ""
            rules = f'a rule "{rule_name(name)}"' if not more else "rules"
            found.append(f"{method}: {name}{others} {reason}{advice.format(rules=rules)}")
        return found + self._twice

    def weigh(
        self, choices: Iterable[Choice], stored: Mapping[str, Stored]
    ) -> tuple[tuple[PlannedWeight, ...], tuple[Job, ...]]:
        """stored: weights that are quantized already, by name; their parts are copied one by one."""
        by_key = {weight.keys["weight"]: weight for weight in stored.values()}
        weights, jobs = [], []
        for choice in choices:
            info = choice.info
            whole = by_key.get(next(iter(info.sources.values())).key) if info.sources else None
            parts = whole.keys if whole else {"": ""}
            outputs: list[OutputTensor] = []
            spec = None
            for role, key in parts.items():
                part = WeightInfo(key, {"weight": Source(key)}, info.kind, info.module, info.block) if role else info
                job = self._job(part, Keep() if role else choice.quantizer, choice.rule, relaid=bool(role))
                if job is None:
                    continue
                jobs.append(job)
                outputs += (replace(output, role=role or output.role) for output in job.outputs)
                spec = spec or job.outcome.spec
            if spec is not None:
                format = whole.format if whole else choice.quantizer.format
                name = self.adapter.rename(info.name, self.target.dialect)
                weights.append(PlannedWeight(info, name, spec, format, tuple(outputs)))
        self._twice += self._written_twice(weights)
        return tuple(weights), tuple(jobs)

    def _job(self, info: WeightInfo, quantizer: Quantizer, rule: str, relaid: bool) -> Job | None:
        """None, and a problem, if the quantizer or the target refuses."""
        pieces = {at: Piece(self.tensors[source.key], source.by_rows) for at, source in info.sources.items()}
        name = self.adapter.rename(info.name, self.target.dialect)
        try:
            inputs = {at: spec_of(tensor) for at, tensor in quantizer.inputs(info).items()}
            outcome = self.trials.run(quantizer, pieces, inputs)
        except Refused as refusal:
            advice = f" (chosen by {rule}); add {{rules}} with method none, or choose another method"
            self._refused.setdefault((quantizer.name, str(refusal), advice), []).append(name)
            return None
        except PluginError as error:
            reason = f"shows a fault of the plugin: {error}"
            self._refused.setdefault((quantizer.name, reason, ""), []).append(name)
            return None
        outputs = tuple(
            OutputTensor(info.name if relaid else self.target.key(name, at), at, spec, tile)
            for at, (spec, tile) in outcome.outputs.items()
        )
        return Job(info, quantizer, outcome, outputs, sum(piece.spec.nbytes for piece in pieces.values()))

    def _written_twice(self, weights: Iterable[PlannedWeight]) -> Iterable[str]:
        seen: dict[str, str] = {}
        for weight in weights:
            for output in weight.outputs:
                if output.key in seen:
                    yield f"{output.key}: {seen[output.key]} and {weight.info.name} would both be written under it"
                seen[output.key] = weight.info.name


def groups(jobs: Iterable[Job]) -> tuple[Group, ...]:
    """Jobs summed up by method, kind and module; what is quantized first."""
    sums: dict[tuple[str, str, str], list[int]] = {}
    for job in jobs:
        total = sums.setdefault((job.quantizer.name, job.info.kind, job.info.module), [0, 0, 0])
        total[0] += 1
        total[1] += job.source_nbytes
        total[2] += sum(output.spec.nbytes for output in job.outputs)
    listed = [Group(*key, *total) for key, total in sums.items()]
    return tuple(sorted(listed, key=lambda group: group.method == Keep.name))
