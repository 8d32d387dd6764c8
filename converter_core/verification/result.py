"""What a verification found, as values. Nothing here imports torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ..errors import LONGEST_LINE, printable

Status = Literal["ok", "failed", "structure only"]


@dataclass(frozen=True)
class Problem:
    """Something that is not as it should be. file: relative to the output's folder. tensor: empty for a whole file."""

    file: str
    tensor: str
    reason: str

    def __str__(self) -> str:
        """A line for people: every part may come from a file, so every part is escaped and bounded."""
        where = [printable(self.file)] * bool(self.file) + [f"'{printable(self.tensor)}'"] * bool(self.tensor)
        return ": ".join([*where, printable(self.reason, LONGEST_LINE // 2)])


@dataclass(frozen=True)
class Worst:
    """The element that is furthest from its source. error: absolute. position: index in the weight."""

    error: float
    position: tuple[int, ...]


@dataclass(frozen=True)
class WeightReport:
    """One quantized weight. Everything that needs the source is None without it.

    relative_error: Frobenius(error) / Frobenius(source). sqnr_db: signal to quantization noise, infinite for none.
    limit: the relative error that the scheme's quantization steps allow; None: the quantizer has no quantization_step.
    output_error: Frobenius(error of the layer's outputs) / Frobenius(outputs), for held-out tokens.
    bytes_before: None where neither the source nor a manifest tells. original: what its model calls the weight, by
    which outputs of unlike names are compared; empty where no model is known.
    """

    name: str
    block: str
    module: str
    format: str
    shape: tuple[int, ...]
    bytes_before: int | None
    bytes_after: int
    relative_error: float | None = None
    sqnr_db: float | None = None
    cosine: float | None = None
    worst: Worst | None = None
    limit: float | None = None
    output_error: float | None = None
    ok: bool = True
    original: str = ""


@dataclass(frozen=True)
class Copied:
    """Tensors that are not quantized. compared: with their sources, bit by bit, after the cast if there is one.

    count: copied or cast from the source. added: made by the target, e.g. marker tensors; they have no source to be
    compared with. bytes_after: of both.
    """

    count: int = 0
    compared: bool = False
    unequal: tuple[str, ...] = ()
    bytes_before: int | None = None
    bytes_after: int = 0
    added: int = 0


@dataclass(frozen=True)
class Structure:
    """files: name -> bytes of each that is there. checksums: how many were compared; 0 without a manifest."""

    files: Mapping[str, int] = field(default_factory=dict)
    tensors: int = 0
    checksums: int = 0


@dataclass(frozen=True)
class Verification:
    """Whether an output is what it should be. seconds: wall time.

    manifest: its path; None: there is none. against: the source that every weight was compared with; None: none was.
    kept: linear weights that are not quantized. recipe, written_by: what the manifest tells of the conversion.
    finished: when the verification ended, UTC.
    """

    output: str
    manifest: str | None = None
    against: str | None = None
    model: str = ""
    target: str = ""
    problems: tuple[Problem, ...] = ()
    structure: Structure = field(default_factory=Structure)
    weights: tuple[WeightReport, ...] = ()
    kept: tuple[WeightReport, ...] = ()
    copied: Copied = field(default_factory=Copied)
    notes: tuple[str, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    written_by: str = ""
    finished: str = ""
    seconds: float = 0.0

    @property
    def status(self) -> Status:
        """``ok``: all that the manifest lists is there and right, or all of it was compared with the source.

        ``structure only``: no manifest and no source, so names, dtypes and shapes fit, and the values may be anything.
        """
        if self.problems:
            return "failed"
        return "structure only" if self.manifest is None and self.against is None else "ok"

    @property
    def ok(self) -> bool:
        return self.status == "ok"

    @property
    def bytes_before(self) -> int | None:
        """Of all weights, as they were; None where that is not known of each."""
        before = [weight.bytes_before for weight in self.weights]
        if self.copied.count:
            before.append(self.copied.bytes_before)
        known = [nbytes for nbytes in before if nbytes is not None]
        return sum(known) if len(known) == len(before) else None

    @property
    def bytes_after(self) -> int:
        return sum(weight.bytes_after for weight in self.weights) + self.copied.bytes_after

    def as_dict(self) -> dict[str, Any]:
        """JSON values; what is infinite or not a number is null."""
        values = {
            "ok": self.ok,
            "status": self.status,
            **asdict(self),
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
        }
        plain: dict[str, Any] = _json(values)
        return plain


def _json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
