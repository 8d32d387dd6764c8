"""What a calibration file tells of a weight: statistics of the layer's input, as references the engine reads.

The format is described in ``docs/calibration-file.md``: tensors ``{input}.{statistic}``, and in the metadata, under
``inputs``, a JSON object layer -> input for layers whose input has another layer's name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..errors import Refused
from .contexts import SourceTensors, WeightContext
from .values import TensorRef, TensorSpec, refs_of

if TYPE_CHECKING:
    from torch import Tensor

ORIGINAL = "original"
"""The key format of the names in a calibration file."""

CALIBRATION = "calibration"
"""The store of ``source.calibration``; every quantizer may refer to it."""

STATISTICS = ("absmax", "count", "factors", "mean", "mean_square", "tokens")
"""absmax, count: of one number, F32 and I64 []. mean, mean_square: F32 [I]. tokens: BF16 [T, I]. factors: F32 [R, I],
``E[x x^T]`` as ``factors^T factors`` beside the rest of its diagonal."""

_SHAPES: Mapping[str, tuple[frozenset[str], int]] = {
    "absmax": (frozenset({"F32"}), 0),
    "count": (frozenset({"I64"}), 0),
    "factors": (frozenset({"F32"}), 2),
    "mean": (frozenset({"F32"}), 1),
    "mean_square": (frozenset({"F32"}), 1),
    "tokens": (frozenset({"BF16", "F16", "F32"}), 2),
}


HELD_OUT = 4
"""One in so many of the sampled tokens, the last ones, is for comparing only."""


def split_tokens(tokens: Tensor, has_factors: bool = False) -> tuple[Tensor, Tensor]:
    """(those that a rounding may look at, those that are held out), of [T, I].

    has_factors: the input has ``factors``, which have seen none of the tokens; all of them are held out then.
    """
    seen = 0 if has_factors else len(tokens) - max(1, len(tokens) // HELD_OUT)
    return tokens[:seen], tokens[seen:]


def layer_of(name: str) -> str:
    """``blocks.0.self_attn.q`` for ``blocks.0.self_attn.q.weight``."""
    return name.removesuffix(".weight")


def inputs_of(tensors: SourceTensors) -> Mapping[str, str]:
    """Layer -> input, of the layers that the file's metadata names. Refused if that is no such mapping."""
    text = tensors.metadata.get("inputs")
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise Refused('has a calibration file whose metadata "inputs" is no JSON object {layer: input}')
    return found


def statistics(context: WeightContext, stores: Mapping[str, SourceTensors]) -> Mapping[str, TensorRef] | None:
    """Statistic -> where it is read from, of a weight's input; None without a calibration file.

    A layer is looked up by its original name, then by the one that the adapter gives it and the key that it has in the
    source. Refused if the file does not know it,
    or knows an input of another width.
    """
    tensors = stores.get(CALIBRATION)
    if tensors is None:
        return None
    inputs = inputs_of(tensors)
    names = [
        context.original,
        context.info.name,
        *(ref.key for source in context.info.sources.values() for ref in refs_of(source)),
    ]
    for layer in dict.fromkeys(layer_of(name) for name in names if name):
        given = inputs.get(layer, layer)
        found = {one: TensorRef(f"{given}.{one}", CALIBRATION, by_rows=False) for one in STATISTICS}
        found = {one: ref for one, ref in found.items() if ref.key in tensors}
        if found:
            for one, ref in found.items():
                _check(one, ref.key, tensors[ref.key], context)
            return found
    raise Refused("has no statistics in the calibration file; calibrate its layer too, or leave it out by a rule")


def _check(statistic: str, key: str, spec: TensorSpec, context: WeightContext) -> None:
    dtypes, dimensions = _SHAPES[statistic]
    if spec.dtype not in dtypes or len(spec.shape) != dimensions:
        wanted = f"{' or '.join(sorted(dtypes))} of {dimensions} dimensions"
        raise Refused(f"has {key} as {spec} in the calibration file; needs {wanted}")
    columns = context.spec.shape[-1] if context.spec is not None and context.spec.shape else None
    if dimensions and columns is not None and spec.shape[-1] != columns:
        raise Refused(
            f"has {columns} columns, and {key} of the calibration file {spec.shape[-1]}; that file is another model's"
        )
