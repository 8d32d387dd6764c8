"""From assigned quantizers to jobs: what each output makes of each weight, by dry runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..api.calibration import ORIGINAL
from ..api.contexts import ModelFacts, WeightContext
from ..api.formats import UNQUANTIZED
from ..api.models import ModelAdapter
from ..api.quantizers import Quantizer
from ..api.targets import Target
from ..api.tensors import spec_of
from ..api.values import OutputTensor, PlannedWeight, Stored, TensorRef, TensorSpec, WeightInfo
from ..errors import PluginError, Refused
from .assignment import Assignment, rule_name
from .encoding import BIAS, Encoding
from .output_schema import SourceSpec
from .passthrough import Passthrough
from .shape_inference import ShapeInference
from .stores import Stores
from .transcoder import Transcoders

if TYPE_CHECKING:
    from torch import Tensor
from .jobs import BoundTensor, Export, Job, Term, bias_name, bind, joined_spec

SMALL_INPUT = 64 << 10
"""Bytes of the largest tensor that a quantizer may hand over by itself."""


class JobBuilder:
    """Builds the jobs of one output. What quantizers and the target refuse is collected in ``problems``."""

    def __init__(
        self,
        number: int,
        adapter: ModelAdapter,
        model: ModelFacts,
        target: Target,
        stores: Stores,
        inference: ShapeInference,
        passthrough: Passthrough,
        terms: Mapping[str, tuple[Term, ...]],
        transcoders: Transcoders | None = None,
    ) -> None:
        """terms: what LoRAs add to weights, by name. transcoders: of a source that is quantized already."""
        self.number = number
        self.adapter = adapter
        self.model = model
        self.target = target
        self.key_format = target.key_format_for(adapter.key_formats)
        self.stores = stores
        self.inference = inference
        self.passthrough = passthrough
        self.terms = terms
        self._transcoders = transcoders
        self.markers: dict[str, Tensor] = {}
        self.without_bias: list[str] = []
        self._refused: dict[tuple[str, str, str], list[str]] = {}

    def problems(self, targets: Mapping[str, type[Target]]) -> list[str]:
        """targets: those that are installed, by name; the advice names the ones that read a refused scheme."""
        found = []
        for (method, reason, advice), (name, *more) in self._refused.items():
            others = f" (and {len(more)} more)" if more else ""
            rules = f'a rule "{rule_name(name)}"' if not more else "rules"
            readers = [one for one, cls in targets.items() if method in cls.runs_on and one != self.target.name]
            choices = f", choose another method, or target.format: {' or '.join(readers)}"
            choice = choices if readers else ", or choose another method"
            found.append(f"{method}: {name}{others} {reason}{advice.format(rules=rules, choice=choice)}")
        return found

    def build(
        self, assignments: Sequence[Assignment], quantized: Mapping[str, Stored]
    ) -> tuple[tuple[PlannedWeight, ...], tuple[Job, ...]]:
        """quantized: weights that are quantized already, by name."""
        by_name = {assignment.info.name: assignment for assignment in assignments}
        biases = {one.info.name: self._bias(one, by_name) for one in assignments if one.quantizer.wants_bias}
        taken = {bias.info.name for bias in biases.values() if bias is not None}
        weights, jobs = [], []
        self.without_bias = [name for name, bias in biases.items() if bias is None]
        for assignment in assignments:
            if assignment.info.name in taken:
                continue
            stored = quantized.get(assignment.info.name)
            if stored is not None and self._fits(assignment.info, stored):
                made = self._copied(assignment.info, stored)
            elif stored is not None:
                made = self._transcoded(assignment.info, stored)
            else:
                made = self._made(assignment, biases.get(assignment.info.name))
            if made is not None:
                weights.append(made[0])
                jobs += made[1]
        return tuple(weights), tuple(jobs)

    def _bias(self, assignment: Assignment, by_name: Mapping[str, Assignment]) -> Assignment | None:
        """The bias of a layer."""
        info = assignment.info
        name = bias_name(info)
        return by_name.get(name) if name != info.name else None

    def _fits(self, info: WeightInfo, stored: Stored) -> bool:
        """Whether a weight is dressed as the target would do it: then its parts can be copied one by one."""
        if self._transcoders is None or self._transcoders.quantized.target != self.target.name:
            return False
        context = self._context(info, stored)
        try:
            keys = {role: self.target.key(context, role) for role in stored.keys}
        except KeyError:
            return False
        return keys == dict(stored.keys) and not self.target.markers(context)

    def _context(self, info: WeightInfo, stored: Stored) -> WeightContext:
        spec = TensorSpec("F32", stored.shape) if stored.shape is not None else None
        name = self.adapter.rename(info.name, self.key_format)
        return WeightContext(info, name, spec, stored.format, self.model, roles=tuple(stored.keys))

    def _transcoded(self, info: WeightInfo, stored: Stored) -> tuple[PlannedWeight, list[Job]] | None:
        """The same codes and scales as the target wants them."""
        assert self._transcoders is not None
        made, refs = self._transcoders.of(info, stored)
        part = replace(info, sources={"weight": TensorRef(stored.primary)})
        job = self._job(part, made, None, "", spec=TensorSpec("F32", made.shape), given=refs)
        if job is None:
            return None
        (export,) = job.exports
        encoding = self._transcoders.dressed(info, stored, made, refs, export.encoding)
        export = replace(export, encoding=encoding)
        job = replace(job, exports=(export,))
        context = export.encoding.context
        outputs = (*export.tensors, *self._marked(replace(context, roles=tuple(export.schema.outputs))))
        return PlannedWeight(info, context.name, TensorSpec("F32", made.shape), stored.format, outputs), [job]

    def _copied(self, info: WeightInfo, stored: Stored) -> tuple[PlannedWeight, list[Job]] | None:
        jobs, outputs = [], []
        for role, key in stored.keys.items():
            part = WeightInfo(key, {"weight": TensorRef(key)}, info.kind, info.module, info.block)
            job = self._job(part, Passthrough(), None, "", key=key)
            if job is None:
                return None
            jobs.append(job)
            outputs += [replace(tensor, role=role) for tensor in job.exports[0].tensors]
        shape = stored.shape or jobs[0].spec.shape
        name = self.adapter.rename(info.name, self.key_format)
        assert self._transcoders is not None
        self._transcoders.keep(info, name)
        return PlannedWeight(info, name, TensorSpec("F32", shape), stored.format, tuple(outputs)), jobs

    def _made(self, assignment: Assignment, bias: Assignment | None) -> tuple[PlannedWeight, list[Job]] | None:
        job = self._job(assignment.info, assignment.quantizer, bias, assignment.rule)
        if job is None:
            return None
        (export,) = job.exports
        context = export.encoding.context
        weight = PlannedWeight(assignment.info, context.name, job.spec, context.format, export.tensors)
        marked = self._marked(replace(context, roles=tuple(export.schema.outputs)))
        return replace(weight, outputs=(*weight.outputs, *marked)), [job]

    def _marked(self, context: WeightContext) -> list[OutputTensor]:
        """The constant tensors that the target puts beside a weight."""
        outputs = []
        for role, tensor in self.target.markers(context).items():
            key = self.target.key(context, role)
            self.markers[key] = tensor
            outputs.append(OutputTensor(key, role, spec_of(tensor)))
        return outputs

    def _job(
        self,
        info: WeightInfo,
        quantizer: Quantizer,
        bias: Assignment | None,
        rule: str,
        key: str | None = None,
        spec: TensorSpec | None = None,
        given: Mapping[str, TensorRef] | None = None,
    ) -> Job | None:
        """None, and a problem, if the quantizer or the target refuses.

        key: of a part that is copied as it is. spec: of the weight, where it is not that of what is read. given: what
        the quantizer takes beside that, where the quantizer itself does not know.
        """
        name = self.adapter.rename(info.name, self.key_format)
        sources = {role: bind(self.stores, source, self.adapter) for role, source in info.sources.items()}
        specs = {role: joined_spec(several) for role, several in sources.items()}
        main = specs.get("weight") or next(iter(specs.values()))
        # assembling usually keeps the shape of its first source; the dry run says what it is in the end
        original = self.adapter.rename(info.name, ORIGINAL)
        context = WeightContext(info, name, spec or main.spec, quantizer.format, self.model, original=original)
        cast = bias.quantizer if bias is not None and isinstance(bias.quantizer, Passthrough) else self.passthrough
        encoding = Encoding(self.target, context, self._bias_context(bias), cast)
        terms = self.terms.get(info.name, ())
        in_float32 = any(term.target is None for term in terms)
        if in_float32 and isinstance(quantizer, Passthrough) and quantizer.dtype is None:
            quantizer = Passthrough(main.spec.dtype)  # merged in float32, stored as it was
        try:
            inputs = self._inputs(quantizer, context)
            inputs |= {role: bind(self.stores, ref, self.adapter)[0] for role, ref in (given or {}).items()}
            if bias is not None:
                (inputs[BIAS],) = (
                    one for source in bias.info.sources.values() for one in bind(self.stores, source, self.adapter)
                )
            beside = {name: _spec(one) for name, one in inputs.items() if not _is_prepared(quantizer, one)}
            schema = self.inference.run(quantizer, encoding, specs, beside, merged=in_float32)
        except Refused as refusal:
            advice = f" (chosen by {rule}); add {{rules}} with method none{{choice}}"
            if not rule:
                advice = (
                    "; the source is quantized already: for this target give the original checkpoint, or write "
                    "source.dequantize: true"
                )
            self._refused.setdefault((quantizer.name, str(refusal), advice), []).append(name)
            return None
        except PluginError as error:
            self._refused.setdefault((quantizer.name, f"shows a fault of the plugin: {error}", ""), []).append(name)
            return None
        encoding = replace(encoding, context=replace(context, spec=spec or schema.spec))
        tensors = tuple(
            OutputTensor(encoding.key(role) if key is None else key, role, spec, nbytes)
            for role, (spec, nbytes) in schema.outputs.items()
        )
        bias_terms = self.terms.get(bias.info.name, ()) if bias is not None else ()
        export = Export(self.number, quantizer, encoding, schema, tensors, inputs, bias_terms)
        return Job(info, schema.spec, self.model, sources, (export,), terms)

    def _bias_context(self, bias: Assignment | None) -> WeightContext | None:
        if bias is None:
            return None
        name = self.adapter.rename(bias.info.name, self.key_format)
        return WeightContext(bias.info, name, None, UNQUANTIZED, self.model)

    def _inputs(self, quantizer: Quantizer, context: WeightContext) -> dict[str, BoundTensor | Tensor]:
        found: dict[str, BoundTensor | Tensor] = {}
        for name, given in quantizer.inputs(context, self.stores.of(quantizer)).items():
            if isinstance(given, TensorRef):
                (found[name],) = bind(self.stores, given, quantizer)
            elif given.numel() * given.element_size() > SMALL_INPUT:
                raise PluginError(
                    f"inputs hands over {name} of {given.numel() * given.element_size()} bytes; return a TensorRef for "
                    f"what is larger than {SMALL_INPUT}"
                )
            else:
                found[name] = given
        return found


def _is_prepared(quantizer: Quantizer, given: BoundTensor | Tensor) -> bool:
    whole = isinstance(given, BoundTensor) and not given.ref.by_rows
    return whole and type(quantizer).prepare is not Quantizer.prepare


def _spec(given: BoundTensor | Tensor) -> SourceSpec:
    if isinstance(given, BoundTensor):
        return SourceSpec(given.spec, given.ref.by_rows)
    return SourceSpec(spec_of(given), False)
