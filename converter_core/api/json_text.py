"""JSON that comes from outside, read with distrust."""

from __future__ import annotations

import json
from collections import Counter
from reprlib import repr as short
from typing import Any

from ..errors import CheckpointError


def load_json_object(text: bytes, what: str, remedy: str) -> dict[str, Any]:
    """A JSON object that names nothing twice and holds Unicode text only; else a CheckpointError about ``what``."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen = dict(pairs)
        if len(seen) != len(pairs):
            twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            raise CheckpointError(f"{what} names {short(twice)} twice; the file is damaged")
        for key, value in pairs:
            # half of a surrogate pair can be written as an escape, but never as UTF-8 again
            key.encode()
            if isinstance(value, str):
                value.encode()
        return seen

    try:
        content = json.loads(text.decode(), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{what} is not JSON ({error}); {remedy}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{what} is not a JSON object; {remedy}")
    return content
