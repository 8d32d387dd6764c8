"""The types of tensors in GGUF files: ``enum ggml_type`` of ggml.h, and the sizes of its blocks."""

from __future__ import annotations

from collections.abc import Mapping

DTYPES: Mapping[str, int] = {"F32": 0, "F16": 1, "I8": 24, "I16": 25, "I32": 26, "I64": 27, "F64": 28, "BF16": 30}
"""Plain ones, under the names that they have here too -> number."""

_PACKED: Mapping[str, tuple[int, int, int]] = {
    "Q4_0": (2, 32, 18),
    "Q4_1": (3, 32, 20),
    "Q5_0": (6, 32, 22),
    "Q5_1": (7, 32, 24),
    "Q8_0": (8, 32, 34),
    "Q8_1": (9, 32, 40),
    "Q2_K": (10, 256, 84),
    "Q3_K": (11, 256, 110),
    "Q4_K": (12, 256, 144),
    "Q5_K": (13, 256, 176),
    "Q6_K": (14, 256, 210),
    "Q8_K": (15, 256, 292),
    "IQ2_XXS": (16, 256, 66),
    "IQ2_XS": (17, 256, 74),
    "IQ3_XXS": (18, 256, 98),
    "IQ1_S": (19, 256, 50),
    "IQ4_NL": (20, 32, 18),
    "IQ3_S": (21, 256, 110),
    "IQ2_S": (22, 256, 82),
    "IQ4_XS": (23, 256, 136),
    "IQ1_M": (29, 256, 56),
    "TQ1_0": (34, 256, 54),
    "TQ2_0": (35, 256, 66),
    "MXFP4": (39, 32, 17),
    "NVFP4": (40, 64, 36),
    "Q1_0": (41, 128, 18),
}
"""Name -> number, elements and bytes of a block."""

BLOCKS: Mapping[str, tuple[int, int]] = {name: (elements, nbytes) for name, (_, elements, nbytes) in _PACKED.items()}

NUMBERS: Mapping[str, int] = {**DTYPES, **{name: number for name, (number, _, _) in _PACKED.items()}}
