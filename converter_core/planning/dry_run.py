"""One run of a quantizer and a target on zeros and on noise: what it makes, and whether it keeps its contract."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..api.formats import UNQUANTIZED
from ..api.models import ModelAdapter
from ..api.quantizers import Quantizer
from ..api.tensors import dtype_name, dtype_of, in_words, same, spec_of
from ..api.values import FLOATING, TensorSpec
from ..errors import PluginError, Refused
from ..plugins.attribution import describe
from .encoding import BIAS, Encoding
from .output_schema import OutputSchema, SourceSpec, common_row_block
from .passthrough import Passthrough, as_taken

if TYPE_CHECKING:
    from ..api.values import Parts

# The first arithmetic on meta tensors imports torch._dynamo (1 s, 71 MiB with torch 2.13): only where zeros would be
# large, which happens to whole-weight quantizers alone.


LARGEST_ZEROS = 4 << 20


class DryRun:
    """Of one adapter, quantizer and encoding on sources of given specs."""

    def __init__(
        self,
        adapter: ModelAdapter,
        quantizer: Quantizer,
        encoding: Encoding,
        sources: Mapping[str, SourceSpec],
        inputs: Mapping[str, SourceSpec],
        merged: bool,
    ) -> None:
        self.adapter = adapter
        self.quantizer = quantizer
        self.encoding = encoding
        self.target = encoding.target
        self.sources = sources
        self.inputs = inputs
        self.merged = merged
        heights = {one.spec.shape[0] for one in (*sources.values(), *inputs.values()) if one.by_rows and one.spec.shape}
        if len(heights) > 1:
            raise Refused(f"its sources have different numbers of rows: {sorted(heights)}")
        self.rows = heights.pop() if heights else 0

    def schema(self) -> OutputSchema:
        fine, block = self.quantizer.row_block, common_row_block(self.quantizer.row_block, self.target.row_block)
        if not fine or not block or self.rows <= block:
            weight, two_pass, parts = self._quantize(None)
            outputs = {role: (spec, 0) for role, spec in self._encode(parts).items()}
            return OutputSchema(self._spec(weight), None, two_pass, outputs)

        weight, two_pass, few = self._quantize(fine)
        more = self._quantize(2 * fine)[2]
        heights = {role: part.shape[0] for role, part in few.items() if part.shape != more[role].shape}
        self._check_on_noise(fine, frozenset(heights))

        def encoded(blocks: int) -> dict[str, TensorSpec]:
            count = blocks * block // fine
            parts = {
                role: part.new_zeros((count * heights[role], *part.shape[1:])) if role in heights else part
                for role, part in few.items()
            }
            return self._encode(parts)

        full, tail = divmod(self.rows, block)
        rest = self._encode(self._quantize(tail)[2]) if tail else {}
        outputs = self._joined(full, (encoded(1), encoded(2), encoded(3)), rest)
        return OutputSchema(self._spec(weight).rows(self.rows), block, two_pass, outputs, heights)

    def _joined(
        self, full: int, of_blocks: tuple[dict[str, TensorSpec], ...], rest: Mapping[str, TensorSpec]
    ) -> dict[str, tuple[TensorSpec, int]]:
        """Outputs of ``full`` row blocks and a rest, from those of one, two and three."""
        one, two, three = of_blocks
        outputs = {}
        for role, spec in one.items():
            last = rest.get(role)
            if two[role] == three[role] == spec and last in (None, spec):
                outputs[role] = (spec, 0)
            elif _stack(spec, two[role], three[role], last):
                rows = full * spec.shape[0] + (last.shape[0] if last else 0)
                outputs[role] = (spec.rows(rows), spec.nbytes)
            else:
                raise Refused(
                    f"outputs of slabs cannot be concatenated: {role} is {spec} of one row block, {two[role]} of two, "
                    f"{three[role]} of three; check row_block of {self.quantizer.name} and {self.target.name}"
                )
        return outputs

    def _stand_ins(self, specs: Mapping[str, SourceSpec], rows: int | None) -> dict[str, Tensor]:
        return {
            role: _zeros(one.spec if rows is None or not one.by_rows else one.spec.rows(rows))
            for role, one in specs.items()
        }

    def _assembled(self, sources: Parts) -> Tensor:
        weight = self.adapter.assemble(self.encoding.context, sources)
        expected = {part.shape[0] for role, part in sources.items() if self.sources[role].by_rows and part.dim()}
        if not isinstance(weight, Tensor) or (weight.dim() and expected and {weight.shape[0]} != expected):
            raise PluginError(
                f"model {self.adapter.name}: assemble must give one tensor with the {min(expected, default=0)} rows of "
                f"its sources, not {_type_of(weight)}"
            )
        return weight.to(torch.float32) if self.merged else weight

    def _taken(self, sources: Parts) -> Tensor:
        return as_taken(self.quantizer, self._assembled(sources))

    def _quantize(self, rows: int | None) -> tuple[Tensor, bool, Parts]:
        weight = self._assembled(self._stand_ins(self.sources, rows))
        observed = self.quantizer.observe(taken := as_taken(self.quantizer, weight))
        given = {name: one.to(weight.device) for name, one in self._stand_ins(self.inputs, rows).items()}
        try:
            parts = self.quantizer.quantize(taken, **given, **observed)
        except (NotImplementedError, RuntimeError, TypeError) as error:
            if weight.device.type != "meta":
                raise
            raise PluginError(
                f"{describe(error)}; large weights are planned without values (meta): no numpy, no item(), no if on "
                "values"
            ) from error
        if not isinstance(self.quantizer, Passthrough):
            self._check(parts, weight)
        if BIAS in given:
            parts = {BIAS: given[BIAS], **parts}
        return weight, bool(observed), parts

    def _check(self, parts: Parts, weight: Tensor) -> None:
        """That the parts are parts, and stand for a weight of this shape by the quantizer's own account."""
        if not isinstance(parts, Mapping) or not all(isinstance(part, Tensor) for part in parts.values()):
            raise PluginError(f"quantize must return a dict of tensors by role, not {_type_of(parts)}")
        if not parts.keys() - {BIAS}:
            raise PluginError("quantize must return at least one part; it returns none")
        try:
            restored, step = self.quantizer.dequantize(parts), self.quantizer.quantization_step(parts)
        except Exception:
            if weight.device.type == "meta":  # only quantize must do without values
                return
            raise
        if not isinstance(restored, Tensor) or restored.dtype != torch.float32 or restored.shape != weight.shape:
            raise PluginError(f"dequantize must give float32 {list(weight.shape)} here, not {_type_of(restored)}")
        if step is not None and (not isinstance(step, Tensor) or step.shape != weight.shape):
            raise PluginError(
                f"quantization_step must give the weight's shape, {list(weight.shape)} here, not {_type_of(step)}"
            )

    def _check_on_noise(self, fine: int, joined: frozenset[str]) -> None:
        """On noise, for only values show it: that rows are as independent as ``row_block`` says, and that the target's
        ``decode`` undoes its ``encode``.
        """
        specs = {role: one.spec.rows(2 * fine) if one.by_rows else one.spec for role, one in self.sources.items()}
        if any(one.dtype not in FLOATING or one.numel > LARGEST_ZEROS for one in specs.values()):
            return
        noise = _noise(specs)
        weight = self._taken(noise)
        halves = weight[:fine], weight[fine:]
        for start, half in ((0, halves[0]), (fine, halves[1])):
            rows = {
                role: part[start : start + fine] if self.sources[role].by_rows else part for role, part in noise.items()
            }
            if not same(self._taken(rows), half):
                raise PluginError(f"model {self.adapter.name}: assemble gives other values for a slab of rows")
        observed = self.quantizer.observe(weight)
        for name, value in observed.items():
            if not same(value, torch.maximum(*(self.quantizer.observe(half)[name] for half in halves))):
                raise PluginError(f"observe gives another {name} for slabs, combined by maximum, than for the whole")
        whole, slabs = self._quantized_twice(weight, halves, observed, fine)
        for role, part in whole.items():
            pieces = [slab[role] for slab in slabs]
            if not all(same(one, part) for one in ([torch.cat(pieces)] if role in joined else pieces)):
                raise PluginError(f"{role!r} changes when quantized {fine} rows at a time; row_block={fine} is wrong")
        self._check_decode(whole, self._spec(weight))

    def _quantized_twice(
        self, weight: Tensor, halves: tuple[Tensor, Tensor], observed: Parts, fine: int
    ) -> tuple[Parts, list[Parts]]:
        """The parts of two row blocks together, and of each by itself."""
        ones = {
            name: torch.ones(
                (one.spec.rows(2 * fine) if one.by_rows else one.spec).in_memory.shape, dtype=dtype_of(one.spec)
            )
            for name, one in self.inputs.items()
        }
        whole = self.quantizer.quantize(weight, **ones, **observed)
        slabs = []
        for number, half in enumerate(halves):
            given = {
                name: value[number * fine : (number + 1) * fine] if self.inputs[name].by_rows else value
                for name, value in ones.items()
            }
            slabs.append(self.quantizer.quantize(half, **given, **observed))
        return whole, slabs

    def _check_decode(self, parts: Parts, spec: TensorSpec) -> None:
        own = {role: part for role, part in parts.items() if role != BIAS}
        context = replace(self.encoding.context, spec=spec)
        stored = self._asked_of_target(lambda: self.target.encode(context, own))
        back = self._asked_of_target(lambda: self.target.decode(context, stored))
        for role, part in own.items():
            if role not in back or not same(back[role], part):
                raise PluginError(f"target {self.target.name}: decode does not undo encode; {role} is not what it was")

    def _encode(self, parts: Parts) -> dict[str, TensorSpec]:
        copied = isinstance(self.quantizer, Passthrough) and self.quantizer.format == UNQUANTIZED
        context = self.encoding.context
        specs = {}
        for role, tensor in self._stored(parts).items():
            if not isinstance(tensor, Tensor):
                raise PluginError(
                    f"target {self.target.name}: encode must return tensors by role, not {_type_of(tensor)}"
                )
            spec = self._spec(tensor) if copied or role == BIAS else spec_of(tensor)
            stored = self.target.stored_spec(context, role, spec)
            if stored.nbytes != spec.nbytes:
                raise PluginError(f"target {self.target.name}: stored_spec makes {stored} of {spec}, of another size")
            specs[role] = stored
        return specs

    def _stored(self, parts: Parts) -> Parts:
        bias = parts.get(BIAS) if self.encoding.bias is not None else None
        stored = self._asked_of_target(lambda: self.encoding.stored(parts, bias))
        if not stored.keys() - {BIAS}:
            raise PluginError(f"target {self.target.name}: encode must store at least one part; it returns none")
        return stored

    def _asked_of_target(self, ask: Callable[[], Parts]) -> Parts:
        try:
            return ask()
        except (Refused, PluginError):
            raise
        except Exception as error:
            raise PluginError(f"target {self.target.name}: {describe(error)}") from error

    def _spec(self, tensor: Tensor) -> TensorSpec:
        """A tensor's spec; one that is handled as the bytes of a rarer dtype (E8M0, U16, packed) keeps that name."""
        for one in self.sources.values():
            if dtype_of(one.spec) == tensor.dtype:
                return one.spec.from_memory(tuple(tensor.shape))
        return TensorSpec(dtype_name(tensor.dtype), tuple(tensor.shape))


def _stack(one: TensorSpec, two: TensorSpec, three: TensorSpec, rest: TensorSpec | None) -> bool:
    """Whether the specs of one, two and three row blocks and of a rest join along the first dimension."""
    if not one.shape:
        return False
    height = one.shape[0]
    tail = rest is None or (bool(rest.shape) and rest == one.rows(rest.shape[0]))
    return tail and two == one.rows(2 * height) and three == one.rows(3 * height)


def _type_of(value: object) -> str:
    if isinstance(value, Tensor):
        return in_words(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{role}: {_type_of(part)}" for role, part in value.items()) or "an empty one"
    return type(value).__name__


def _zeros(spec: TensorSpec) -> Tensor:
    device = "cpu" if spec.numel <= LARGEST_ZEROS else "meta"
    return torch.zeros(spec.in_memory.shape, dtype=dtype_of(spec), device=device)


def _noise(specs: Mapping[str, TensorSpec]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {role: torch.randn(one.shape, generator=generator).to(dtype_of(one)) for role, one in specs.items()}
