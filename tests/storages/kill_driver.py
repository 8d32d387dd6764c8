"""Convert to an object store again and again, killing the run at requests, until it has lived through all of it.

Forks: torch is imported once, and each run is a process of its own that SIGKILL really kills.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from converter_core.engine.convert import convert
from converter_core.plugins.registry import Registry, load_plugins
from converter_plugins.storages import _s3_writer
from converter_plugins.storages._s3_writer import S3Writer
from tests.interfaces.conftest import Plugins, Tiny


def at_points(recipe: Mapping[str, Any], registry: Registry, points: list[list[Any]]) -> list[dict[str, Any]]:
    """Kill a run at each (request, how many of its kind, ``before`` or ``after``), then let one live.

    Of each: whether it was killed, what can be seen then, and how many uploads there are.
    """
    told = []
    for point in [*points, None]:
        killed = _killed(recipe, registry, point)
        told.append({"killed": killed, **_seen(recipe["output"]["path"])})
    return told


def at_random(recipe: Mapping[str, Any], registry: Registry, seed: int, kills: int) -> list[str]:
    """Kill runs at random requests, each conversion until one lives; the URLs of the conversions."""
    dice = random.Random(seed)
    killed, urls = 0, []
    while killed < kills:
        urls.append(f"{recipe['output']['path']}-{len(urls)}")
        asked = {**recipe, "output": {**recipe["output"], "path": urls[-1]}}
        while _killed(asked, registry, ["", dice.randint(1, 90), dice.choice(["before", "after"])]):
            killed += 1
    return urls


def _seen(url: str) -> dict[str, Any]:
    _s3_writer._clients.clear()
    writer = S3Writer()
    names = [file.name for file in writer.listing(url)]
    return {"names": names, "uploads": len(writer.uploads(url))}


def _killed(recipe: Mapping[str, Any], registry: Registry, point: list[Any] | None) -> bool:
    pid = os.fork()
    if not pid:
        try:
            _s3_writer._clients.clear()  # a connection must not be used by two processes
            if point:
                _arm(*point)
            result = convert(recipe, registry=registry)
            os._exit(0 if result.status in ("done", "already done") else 9)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    status = os.waitpid(pid, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit(f"a run failed with {os.WEXITSTATUS(status)}")
    return os.WIFSIGNALED(status)


def _arm(operation: str, count: int, when: str) -> None:
    left, lock = count, threading.Lock()

    def armed(real: Callable[..., Any]) -> Callable[..., Any]:
        def ask(self: S3Writer, url: str, name: str, **arguments: Any) -> Any:
            nonlocal left
            with lock:
                left -= name.startswith(operation)
                last = left == 0 and name.startswith(operation)
            if last and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            answer = real(self, url, name, **arguments)
            if last:
                os.kill(os.getpid(), signal.SIGKILL)
            return answer

        return ask

    S3Writer._ask = armed(S3Writer._ask)  # type: ignore[method-assign]
    S3Writer._pages = armed(S3Writer._pages)  # type: ignore[method-assign]


if __name__ == "__main__":
    S3Writer.smallest_part = int(sys.argv[2])
    asked = json.loads(sys.argv[3])
    plugins = load_plugins(extra=[Plugins(models=[Tiny])])
    run: Callable[..., Any] = at_points if sys.argv[1] == "at_points" else at_random
    print(json.dumps(run(asked, plugins, *map(json.loads, sys.argv[4:]))))
