"""Learn what a quantizer and a target make of a weight by running them on stand-ins.

Two descriptions of one thing drift, so there is only one: the code itself. What it makes of zeros has the roles,
shapes and dtypes of what it will make of data; how they grow with the rows is read off runs on one and more tiles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .errors import PluginError, Refused
from .faults import told
from .interfaces import ModelAdapter, Quantizer, Target
from .keep import Keep
from .specs import FLOATING, TensorSpec
from .tensors import dtype_name, in_words, same, spec_of, torch_dtype

if TYPE_CHECKING:
    from .specs import Parts

# The first arithmetic on meta tensors imports torch._dynamo (1 s, 71 MiB with torch 2.13): only where zeros would be
# large, which happens to whole-weight quantizers alone.
LARGEST_ZEROS = 4 << 20


@dataclass(frozen=True)
class Piece:
    """A source as the trial sees it."""

    spec: TensorSpec
    by_rows: bool


@dataclass(frozen=True)
class Outcome:
    """What one quantizer and target make of weights of one shape.

    spec: of the assembled weight. tile: slabs are multiples of this many rows; None: the weight stays whole.
    two_pass: the quantizer wants a statistic first. joined: its parts that grow with the rows, which can be made in
    pieces finer than a slab. outputs: role -> spec, and the bytes each full tile adds (0: the same from every slab).
    """

    spec: TensorSpec
    tile: int | None
    two_pass: bool
    joined: frozenset[str]
    outputs: Mapping[str, tuple[TensorSpec, int]]


class Trials:
    """Trial runs for one adapter and target, remembered: a model has a handful of different shapes."""

    def __init__(self, adapter: ModelAdapter, target: Target) -> None:
        self.adapter = adapter
        self.target = target
        self._seen: dict[object, Outcome | Refused | PluginError] = {}

    def run(self, quantizer: Quantizer, sources: Mapping[str, Piece], inputs: Mapping[str, TensorSpec]) -> Outcome:
        """Raises Refused with the plugin's reason; PluginError if it raises something else or breaks its contract."""
        case = (quantizer, tuple(sources.items()), tuple(inputs.items()))
        if case not in self._seen:
            try:
                self._seen[case] = _Trial(self.adapter, self.target, quantizer, sources, inputs).outcome()
            except (Refused, PluginError) as error:
                self._seen[case] = error
            except Exception as error:
                self._seen[case] = PluginError(f"{told(error)}; what a scheme cannot take, quantize refuses (Refused)")
        result = self._seen[case]
        if isinstance(result, Outcome):
            return result
        raise type(result)(*result.problems)


class _Trial:
    def __init__(
        self,
        adapter: ModelAdapter,
        target: Target,
        quantizer: Quantizer,
        sources: Mapping[str, Piece],
        inputs: Mapping[str, TensorSpec],
    ) -> None:
        self.adapter = adapter
        self.target = target
        self.quantizer = quantizer
        self.sources = sources
        self.inputs = inputs
        heights = {piece.spec.shape[0] for piece in sources.values() if piece.by_rows and piece.spec.shape}
        if len(heights) > 1:
            raise Refused(f"its sources have different numbers of rows: {sorted(heights)}")
        self.rows = heights.pop() if heights else 0

    def outcome(self) -> Outcome:
        fine, tile = self.quantizer.row_tile, common_tile(self.quantizer.row_tile, self.target.row_tile)
        if not fine or not tile or self.rows <= tile:
            weight, two_pass, parts = self._quantize(None)
            specs = self._encode(parts)
            return Outcome(weight, None, two_pass, frozenset(), {role: (spec, 0) for role, spec in specs.items()})

        weight, two_pass, few = self._quantize(fine)
        more = self._quantize(2 * fine)[2]
        joined = frozenset(role for role, part in few.items() if part.shape != more[role].shape)
        self._check_on_noise(fine, joined)

        def encoded(rows: int) -> dict[str, TensorSpec]:
            count = -(-rows // fine)
            return self._encode(
                {
                    role: part.new_zeros((count * part.shape[0], *part.shape[1:])) if role in joined else part
                    for role, part in few.items()
                }
            )

        full, tail = divmod(self.rows, tile)
        one, two, three = encoded(tile), encoded(2 * tile), encoded(3 * tile)
        last = encoded(tail) if tail else {}
        outputs = {}
        for role, spec in one.items():
            rest = last.get(role)
            if two[role] == three[role] == spec and rest in (None, spec):
                outputs[role] = (spec, 0)
            elif _stack(spec, two[role], three[role], rest):
                rows = full * spec.shape[0] + (rest.shape[0] if rest else 0)
                outputs[role] = (spec.rows(rows), spec.nbytes)
            else:
                raise Refused(
                    f"slabs of {tile} rows do not join: {role} is {spec} of one, {two[role]} of two and {three[role]} "
                    f"of three tiles; row_tile of {self.quantizer.name} or {self.target.name} is not true"
                )
        return Outcome(weight.rows(self.rows), tile, two_pass, joined, outputs)

    def _quantize(self, rows: int | None) -> tuple[TensorSpec, bool, Parts]:
        weight = self.adapter.assemble(
            {
                role: _stand_in(piece.spec if rows is None or not piece.by_rows else piece.spec.rows(rows))
                for role, piece in self.sources.items()
            }
        )
        statistic = self.quantizer.statistic(weight)
        given = {name: _stand_in(spec).to(weight.device) for name, spec in self.inputs.items()}
        try:
            parts = self.quantizer.quantize(weight, **given, **statistic)
        except (NotImplementedError, RuntimeError, TypeError) as error:
            if weight.device.type != "meta":
                raise
            raise PluginError(
                f"{told(error)}; large weights are planned without values (meta): no numpy, no item(), no if on values"
            ) from error
        if not isinstance(self.quantizer, Keep):
            self._check(parts, weight)
        return self._spec(weight), bool(statistic), parts

    def _check(self, parts: Parts, weight: Tensor) -> None:
        """That the parts are parts, and stand for a weight of this shape by the quantizer's own account."""
        if not isinstance(parts, Mapping) or not all(isinstance(part, Tensor) for part in parts.values()):
            raise PluginError(f"quantize must return a dict of tensors by role, not {_type_of(parts)}")
        if "weight" not in parts:
            raise PluginError(f"quantize must name one of its parts weight; it returns {', '.join(map(str, parts))}")
        try:
            restored, step = self.quantizer.dequantize(parts), self.quantizer.step(parts)
        except Exception:
            if weight.device.type == "meta":  # only quantize must do without values
                return
            raise
        if not isinstance(restored, Tensor) or restored.dtype != torch.float32 or restored.shape != weight.shape:
            raise PluginError(f"dequantize must give float32 {list(weight.shape)} here, not {_type_of(restored)}")
        if step is not None and (not isinstance(step, Tensor) or step.shape != weight.shape):
            raise PluginError(f"step must give the weight's shape, {list(weight.shape)} here, not {_type_of(step)}")

    def _check_on_noise(self, fine: int, joined: frozenset[str]) -> None:
        """On noise, for only values show it: that rows are as independent as ``row_tile`` says, and that the target's
        ``decode`` undoes its ``encode``.
        """
        spec = {
            role: piece.spec.rows(2 * fine) if piece.by_rows else piece.spec for role, piece in self.sources.items()
        }
        if any(one.dtype not in FLOATING or one.numel > LARGEST_ZEROS for one in spec.values()):
            return
        generator = torch.Generator().manual_seed(0)
        noise = {
            role: torch.randn(one.shape, generator=generator).to(torch_dtype(one.dtype)) for role, one in spec.items()
        }
        weight = self.adapter.assemble(noise)
        halves = weight[:fine], weight[fine:]
        statistic = self.quantizer.statistic(weight)
        for name, value in statistic.items():
            if not torch.equal(value, torch.maximum(*(self.quantizer.statistic(half)[name] for half in halves))):
                raise PluginError(f"statistic gives another {name} for slabs, combined by maximum, than for the whole")
        given = {name: torch.ones(one.shape, dtype=torch_dtype(one.dtype)) for name, one in self.inputs.items()}
        whole = self.quantizer.quantize(weight, **given, **statistic)
        slabs = [self.quantizer.quantize(half, **given, **statistic) for half in halves]
        for role, part in whole.items():
            pieces = [slab[role] for slab in slabs]
            if not all(same(one, part) for one in ([torch.cat(pieces)] if role in joined else pieces)):
                raise PluginError(f"{role} is another in slabs of {fine} rows; row_tile is not true")
        back = self._asked_of_target(lambda: self.target.decode(self.quantizer.format, self._stored(whole)))
        for role, part in whole.items():
            if role not in back or not same(back[role], part):
                raise PluginError(f"target {self.target.name}: decode does not undo encode; {role} is not what it was")

    def _encode(self, parts: Parts) -> dict[str, TensorSpec]:
        format = self.quantizer.format
        stored = self._stored(parts)
        specs = {role: self._spec(tensor) if format == "none" else spec_of(tensor) for role, tensor in stored.items()}
        return {
            role: TensorSpec(self.target.stored_dtype(format, role, spec.dtype), spec.shape)
            for role, spec in specs.items()
        }

    def _stored(self, parts: Parts) -> Parts:
        format = self.quantizer.format
        stored = self._asked_of_target(lambda: self.target.encode(format, parts))
        if format != Keep.name and "weight" not in stored:
            roles = ", ".join(stored)
            raise PluginError(f"target {self.target.name}: encode must store one part as weight; it returns {roles}")
        return stored

    def _asked_of_target(self, ask: Callable[[], Parts]) -> Parts:
        try:
            return ask()
        except (Refused, PluginError):
            raise
        except Exception as error:
            raise PluginError(f"target {self.target.name}: {told(error)}") from error

    def _spec(self, tensor: Tensor) -> TensorSpec:
        """A tensor's spec; one that is handled as the bytes of a rarer dtype (E8M0, U16) keeps that name."""
        for piece in self.sources.values():
            if torch_dtype(piece.spec.dtype) == tensor.dtype:
                return TensorSpec(piece.spec.dtype, tuple(tensor.shape))
        return TensorSpec(dtype_name(tensor.dtype), tuple(tensor.shape))


def common_tile(*tiles: int | None) -> int | None:
    """The least number of rows that suits all; None if one of them wants whole weights."""
    return math.lcm(*(tile for tile in tiles if tile)) if all(tiles) else None


def _stack(one: TensorSpec, two: TensorSpec, three: TensorSpec, rest: TensorSpec | None) -> bool:
    """Whether the specs of one, two and three tiles and of a part tile at the end join along the first dimension."""
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


def _stand_in(spec: TensorSpec) -> Tensor:
    device = "cpu" if spec.numel <= LARGEST_ZEROS else "meta"
    return torch.zeros(spec.shape, dtype=torch_dtype(spec.dtype), device=device)
