"""What a conversion did, as values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class OutputResult:
    """One output. status: ``done`` or ``already done``. files: name -> bytes. resumed: from an earlier run."""

    status: str
    output: str
    manifest: str
    files: Mapping[str, int]
    counts: Mapping[str, int]
    groups: tuple[Mapping[str, Any], ...]
    bytes_before: int
    bytes_after: int
    resumed: Mapping[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            key: list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value
            for key, value in vars(self).items()
        }


@dataclass(frozen=True)
class Result:
    """What a conversion did. seconds: wall time of this run. peak_memory: bytes, of the whole process.

    What is said of a single output can be asked of the result itself: ``result.files`` for
    ``result.outputs[0].files``; AttributeError where there are several.
    """

    outputs: tuple[OutputResult, ...]
    seconds: float
    peak_memory: int
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> Any:
        outputs = self.__dict__.get("outputs", ())
        if len(outputs) != 1 or name.startswith("_"):
            raise AttributeError(f"{name}: ask one of the {len(outputs)} outputs of the result")
        return getattr(outputs[0], name)

    def as_dict(self) -> dict[str, Any]:
        """JSON values. Of a single output they stand beside the rest; of several under ``outputs``."""
        outputs = [output.as_dict() for output in self.outputs]
        return {
            **(outputs[0] if len(outputs) == 1 else {"outputs": outputs}),
            "seconds": self.seconds,
            "peak_memory": self.peak_memory,
            "notes": list(self.notes),
            "warnings": list(self.warnings),
        }


def joined(results: Sequence[Result], seconds: float) -> Result:
    """What several conversions did, one after the other."""
    if len(results) == 1:
        return results[0]
    return Result(
        tuple(output for result in results for output in result.outputs),
        seconds,
        max(result.peak_memory for result in results),
        tuple(dict.fromkeys(note for result in results for note in result.notes)),
        tuple(dict.fromkeys(warning for result in results for warning in result.warnings)),
    )
