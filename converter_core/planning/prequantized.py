"""Weights that are quantized already in a way that no target here reads: their scales stand beside them.

Such a file must not be taken for ordinary weights: codes without their scales are noise, and nothing would tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..api.contexts import SourceTensors
from ..api.values import FLOAT8, TensorSpec
from ..errors import shown

CODES = FLOAT8 | {"I8", "U8"}


def unread_scales(tensors: SourceTensors, path: object) -> Iterator[str]:
    """Why a checkpoint cannot be taken as it is; nothing if no codes have scales beside them.

    ``X.weight`` of 8 bits beside ``X.scale_weight``, ``X.weight_scale``, ``X.weight.scale`` and the like, packed into
    one dimension or not; or a ``config.json`` that names how its weights of 8 bits are quantized.
    """
    config = tensors.config.get("quantization_config")
    told = config.get("quant_method") if isinstance(config, Mapping) else None
    codes = [key for key, spec in tensors.items() if spec.dtype in CODES and spec.shape]
    scales: dict[str, str] = {}
    for key in tensors:
        stem, _, leaf = key.rpartition(".")
        if "scale" in leaf:
            scales.setdefault(f"{stem}.weight", key)
            scales.setdefault(stem, key)
    found = [key for key in codes if key in scales]
    if codes and not found and told is not None:
        yield (
            f"{shown(path)}: its config.json says that it is quantized by {shown(told)}, and no installed target reads "
            "that format; give the original checkpoint, or install the plugin of the target that reads it"
        )
    if found:
        example = found[0]
        yield (
            f"{shown(path)}: {len(found)} weights are {tensors[example].dtype} with scales beside them, e.g. "
            f"{shown(example)} with {shown(scales[example])}, and no installed target reads that format; give the "
            "original checkpoint, or install the plugin of the target that reads it"
        )


def plain_casts(tensors: Mapping[str, TensorSpec]) -> Iterator[str]:
    """Of weights of 8-bit floats in which nobody found codes: a cast lost what it lost."""
    casts = [key for key, spec in tensors.items() if spec.dtype in FLOAT8 and len(spec.shape) > 1]
    if casts:
        dtypes = " and ".join(sorted({tensors[key].dtype for key in casts}))
        yield (
            f"{len(casts)} weights are plain casts to {dtypes}, without scales: they are taken as the values that they "
            "are; what the cast lost does not come back, so prefer the original checkpoint"
        )
