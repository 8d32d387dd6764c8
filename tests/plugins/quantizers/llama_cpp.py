"""The scale searches of llama.cpp's K-quants without importance matrix, restated in numpy: what ours is measured by.

After ``quantize_row_q2_K_ref`` ... ``quantize_row_q6_K_ref`` and ``make_qkx2_quants``, ``make_q3_quants`` and
``make_qx_quants`` in ggml/src/ggml-quants.c of August 2026 (as in llama-cpp-python 0.3.36). That source,
compiled, gives the same squared errors to three digits. Only what decides the error is here: values, no bytes.
"""

from __future__ import annotations

import numpy as np

F32 = np.float32
Array = np.ndarray


def _half(value: Array) -> Array:
    return value.astype(np.float16).astype(F32)


def _codes(values: Array, low: int, high: int) -> Array:
    return np.clip(np.rint(values), low, high).astype(F32)


def _affine_fit(x: Array, w: Array, top: int, start: float, step: float, tries: int, mad: bool) -> tuple[Array, Array]:
    """``make_qkx2_quants`` of groups [G, n]: scale and minimum [G, 1]."""
    minimum, most = np.minimum(x.min(1, keepdims=True), 0), x.max(1, keepdims=True)
    span = most - minimum

    def total(values: Array) -> Array:
        return (w * values).sum(1, keepdims=True, dtype=F32)

    def error(scale: Array, minimum: Array, codes: Array) -> Array:
        difference = scale * codes + minimum - x
        return total(np.abs(difference) if mad else difference * difference)

    with np.errstate(all="ignore"):
        scale = span / F32(top)
        best = error(scale, minimum, _codes((x - minimum) / scale, 0, top))
        sum_w, sum_x = total(np.ones_like(x)), total(x)
        for number in range(tries + 1):
            # each try begins at the minimum that was best so far
            codes = _codes((x - minimum) * (F32(start + step * number + top) / (most - minimum)), 0, top)
            sum_l, sum_l2, sum_xl = total(codes), total(codes * codes), total(codes * x)
            d = sum_w * sum_l2 - sum_l * sum_l
            this = (sum_w * sum_xl - sum_x * sum_l) / d
            this_min = (sum_l2 * sum_x - sum_l * sum_xl) / d
            this = np.where(this_min > 0, sum_xl / sum_l2, this)
            this_min = np.minimum(this_min, 0)
            found = error(this, this_min, codes)
            better = (d > 0) & (found < best)
            best, scale, minimum = (
                np.where(better, new, old) for new, old in ((found, best), (this, scale), (this_min, minimum))
            )
    return np.where(span > 0, scale, 0), -minimum


def _affine(x: Array, bits: int) -> Array:
    width, top, scale_top = (16, 3, 15) if bits == 2 else (32, (1 << bits) - 1, 63)
    groups = x.reshape(-1, width)
    if bits == 2:
        fitted = _affine_fit(groups, np.abs(groups), top, -0.5, 0.1, 15, True)
    else:
        spread = np.sqrt((groups * groups).mean(1, keepdims=True))
        start, tries = (-1.0, 20) if bits == 4 else (-0.5, 15)
        fitted = _affine_fit(groups, spread + np.abs(groups), top, start, 0.1, tries, False)
    scale, minimum = (one.reshape(-1, 256 // width, 1).astype(F32) for one in fitted)
    quantized = []
    for values in (scale, minimum):
        most = values.max(1, keepdims=True)
        with np.errstate(all="ignore"):
            codes = np.where(most > 0, _codes(values * (F32(scale_top) / most), 0, scale_top), 0)
        quantized.append(_half(most / F32(scale_top)) * codes)
    d, m = quantized
    blocks = x.reshape(-1, 256 // width, width)
    with np.errstate(all="ignore"):
        codes = np.where(d > 0, _codes((blocks + m) / d, 0, top), 0)
    return (d * codes - m).reshape(x.shape)


def _largest(values: Array, axis: int) -> Array:
    return np.take_along_axis(values, np.abs(values).argmax(axis, keepdims=True), axis)


def _symmetric_fit(x: Array, half: int) -> Array:
    """``make_qx_quants`` with ``rmse_type`` 1 of groups [G, n]."""
    largest, w = _largest(x, 1), x * x
    scale = best = None
    with np.errstate(all="ignore"):
        for number in (0, *range(-9, 0), *range(1, 10)):
            codes = _codes(x * (F32(-(half + 0.1 * number)) / largest), -half, half - 1)
            sum_lx = (w * x * codes).sum(1, keepdims=True, dtype=F32)
            sum_l2 = (w * codes * codes).sum(1, keepdims=True, dtype=F32)
            found = np.where(sum_l2 > 0, sum_lx / sum_l2, 0)
            if scale is None or best is None:
                scale, best = found, found * sum_lx
                continue
            better = (sum_l2 > 0) & (sum_lx * sum_lx > best * sum_l2)
            scale, best = np.where(better, found, scale), np.where(better, found * sum_lx, best)
    assert scale is not None
    return scale


def _coordinate_fit(x: Array, half: int) -> Array:
    """``make_q3_quants`` of groups [G, n]: one code after the other is moved where that helps."""
    w = x * x
    with np.errstate(all="ignore"):
        codes = _codes(x * (F32(-half) / _largest(x, 1)), -half, half - 1)
        sum_lx, sum_l2 = (w * x * codes).sum(1, dtype=F32), (w * codes * codes).sum(1, dtype=F32)
        for _ in range(5):
            for i in range(x.shape[1]):
                lx = sum_lx - w[:, i] * x[:, i] * codes[:, i]
                l2 = sum_l2 - w[:, i] * codes[:, i] * codes[:, i]
                new = _codes(x[:, i] * l2 / lx, -half, half - 1)
                new_lx, new_l2 = lx + w[:, i] * x[:, i] * new, l2 + w[:, i] * new * new
                better = (lx > 0) & (new != codes[:, i]) & (new_l2 > 0)
                better &= new_lx * new_lx * sum_l2 > sum_lx * sum_lx * new_l2
                codes[:, i] = np.where(better, new, codes[:, i])
                sum_lx, sum_l2 = np.where(better, new_lx, sum_lx), np.where(better, new_l2, sum_l2)
        return np.where(sum_l2 > 0, sum_lx / sum_l2, 0)[:, None]


def _symmetric(x: Array, bits: int) -> Array:
    half, least, most = (4, -32, 31) if bits == 3 else (32, -128, 127)
    groups = x.reshape(-1, 16)
    scale = (_coordinate_fit if bits == 3 else _symmetric_fit)(groups, half).reshape(-1, 16, 1)
    with np.errstate(all="ignore"):
        per_unit = F32(least) / _largest(scale, 1)
        d = _half(1 / per_unit) * _codes(per_unit * scale, least, most)
        d = np.where(np.isfinite(d), d, 0)
        codes = np.where(d != 0, _codes(x.reshape(-1, 16, 16) / d, -half, half - 1), 0)
    return (d * codes).reshape(x.shape)


def values(x: Array, bits: int) -> Array:
    """What llama.cpp's ``q{bits}_K`` makes of a matrix, float32."""
    return (_symmetric if bits in (3, 6) else _affine)(x.astype(F32), bits)
