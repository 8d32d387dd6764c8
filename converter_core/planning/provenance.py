"""Which scheme each weight got, as the header of a file says: rules in their order, the recipe's method last."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import translate
from pathlib import Path
from typing import Any

from ..recipe.schema import Problem, read
from ..recipe.values import QuantizationSection, Rule
from .assignment import DEFAULT_MATCH, rule_name

KEY = "quantization_rules"
"""The metadata that holds them, as JSON."""


def schemes_of(section: QuantizationSection) -> tuple[Rule, ...]:
    return (*section.rules, Rule(DEFAULT_MATCH, section.method, section.options))


def dump(schemes: Sequence[Rule], input_files: Collection[str]) -> str:
    """Of the files that options name only the name is told, wherever they lie."""

    def told(value: Any) -> Any:
        return Path(value).name if isinstance(value, str) and value in input_files else value

    return json.dumps(
        [
            {
                "match": scheme.match,
                "method": scheme.method,
                "options": {name: told(value) for name, value in scheme.options.items()},
            }
            for scheme in schemes
        ],
        sort_keys=True,
    )


def load(metadata: Mapping[str, Any]) -> tuple[Rule, ...]:
    """Empty where there are none, and where a stranger's metadata of the same name says something else."""
    try:
        listed = json.loads(metadata.get(KEY, "[]"))
    except (TypeError, ValueError, RecursionError):
        return ()
    problems: list[Problem] = []
    schemes = tuple(read(Rule, entry, "", problems) for entry in listed) if isinstance(listed, list) else ()
    return () if problems else schemes


def deciding(schemes: Sequence[Rule], names: Collection[str]) -> Iterator[Rule]:
    """Those that speak of a weight; the first that could have quantized it did. names: all that it goes by."""
    for scheme in schemes:
        pattern = re.compile(translate(scheme.match))
        if scheme.match == DEFAULT_MATCH or any(pattern.match(rule_name(name)) for name in names):
            yield scheme
