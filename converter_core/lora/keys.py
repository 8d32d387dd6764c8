"""What the keys of a LoRA file say: which tensors change one weight together, and in which form."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

_ADAPTER = r"(?:\.(?!weight$)\w+)?(?:\.weight)?"
"""PEFT puts the name of the adapter, ``default``, between ``lora_A`` and ``weight``; some leave ``weight`` out."""


class _Meaning(NamedTuple):
    """form: of the change; empty: of something that belongs to a change of any form. suffix: of the changed tensor."""

    form: str
    role: str
    suffix: str = ".weight"


def _pair(way: str, peft: str) -> str:
    styles = (rf"\.lora_{way}\.weight", rf"_lora\.{way}\.weight", rf"\.lora\.{way}\.weight")
    return "|".join((*styles, rf"\.lora_linear_layer\.{way}\.weight", rf"\.lora_{peft}{_ADAPTER}"))


_ENDINGS: Mapping[str, _Meaning] = {
    _pair("up", "B"): _Meaning("lora", "up"),
    _pair("down", "A"): _Meaning("lora", "down"),
    r"\.diff|\.w_norm": _Meaning("diff", "diff"),
    r"\.diff_b|\.b_norm": _Meaning("diff", "diff", ".bias"),
    r"\.diff_m": _Meaning("diff", "diff", ".modulation"),
    **{rf"\.hada_{role}": _Meaning("loha", role) for role in ("w1_a", "w1_b", "w2_a", "w2_b")},
    **{rf"\.lokr_{role}": _Meaning("lokr", role) for role in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b")},
    r"\.alpha": _Meaning("", "alpha"),
    rf"\.dora_scale|\.lora_magnitude_vector{_ADAPTER}": _Meaning("", "magnitude"),
}
_MEANINGS = [(re.compile(f"(.+?)(?:{ending})"), meaning) for ending, meaning in _ENDINGS.items()]

_REFUSED = re.compile(
    r"(.+?)\.(lora_mid\.weight|hada_t[12]|lokr_t[12]|lora_[AB]\.(?:\w+\.)?bias|lora_E(?:\.\w+)?|lora_embedding_[AB]|"
    r"oft_\w+|boft_\w+|vera_\w+|ia3_\w+(?:\.\w+)?|glora_\w+|[ab][12]\.weight|on_input|set_weight|reshape_weight|scalar|"
    r"bias_(?:indices|values|size))"
)
"""Endings of forms that are known and not merged here."""


@dataclass(frozen=True)
class Change:
    """The tensors that change one weight together.

    base: the key without its ending. suffix: what the name of the changed tensor ends in. parts: role -> key.
    """

    base: str
    form: str
    suffix: str
    parts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ParsedKeys:
    """refused: ending -> keys, of forms that are not merged. unknown: keys of no known style. twice: keys that give a
    part that another key gives already. loose: alphas and magnitudes that belong to nothing.
    """

    changes: tuple[Change, ...]
    refused: Mapping[str, tuple[str, ...]]
    unknown: tuple[str, ...]
    twice: tuple[str, ...]
    loose: tuple[str, ...]


def parse(keys: Iterable[str]) -> ParsedKeys:
    """Every key is in exactly one field of what this returns."""
    changes: dict[tuple[str, str, str], Change] = {}
    beside: list[tuple[str, str, str]] = []
    refused: dict[str, tuple[str, ...]] = {}
    unknown: list[str] = []
    twice: list[str] = []
    for key in keys:
        if (known := _REFUSED.fullmatch(key)) is not None:
            refused[known[2]] = (*refused.get(known[2], ()), key)
            continue
        base, meaning = next(
            ((match[1], meaning) for pattern, meaning in _MEANINGS if (match := pattern.fullmatch(key))), (key, None)
        )
        if meaning is None:
            unknown.append(key)
        elif not meaning.form:
            beside.append((base, meaning.role, key))
        else:
            case = (base, meaning.form, meaning.suffix)
            change = changes.setdefault(case, Change(*case))
            if change.parts.setdefault(meaning.role, key) != key:
                twice.append(key)
    loose = []
    for base, role, key in beside:
        owners = [change for change in changes.values() if change.base == base and change.form != "diff"]
        if not owners:
            loose.append(key)
        elif any(change.parts.setdefault(role, key) != key for change in owners):
            twice.append(key)
    return ParsedKeys(tuple(changes.values()), refused, tuple(unknown), tuple(twice), tuple(loose))


def is_lora(keys: Iterable[str]) -> bool:
    """Whether every key is one that a LoRA would have, and there is a change among them."""
    found = parse(keys)
    return bool(found.changes) and not found.unknown
