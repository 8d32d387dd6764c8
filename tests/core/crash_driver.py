"""Run a conversion again and again, killing it, until it has lived through all of it.

Forks: torch is imported once, and each run is a process of its own that SIGKILL really kills.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converter_core.engine.convert import convert
from converter_core.plugins.registry import Registry, load_plugins

STEPS = frozenset({"os.rename", "os.remove", "os.mkdir", "os.rmdir"})
"""Audit events that change which names there are; ``open`` with O_CREAT is another."""


def at_random(recipe: Mapping[str, Any], seed: int, kills: int) -> dict[str, Any]:
    """Kill runs at random moments, each conversion until one run lives to its end, until so many were killed.

    lived: how many conversions that took. problems: what was not as promised, in words.
    """
    registry = load_plugins()
    dice = random.Random(seed)
    out = Path(recipe["output"]["path"])
    started = time.monotonic()
    _was_killed(_begin(recipe, registry))
    usual = time.monotonic() - started
    whole = contents(out)
    problems = []
    killed = lived = 0
    while killed < kills:
        shutil.rmtree(out)
        while True:
            pid = _begin(recipe, registry)
            time.sleep(dice.uniform(0.0, usual))
            os.kill(pid, signal.SIGKILL)
            if not _was_killed(pid):
                break
            killed += 1
        lived += 1
        if contents(out) != whole:
            problems.append(f"conversion {lived}, {killed} runs killed so far: ends with {sorted(contents(out))}")
    return {"killed": killed, "lived": lived, "problems": problems}


def at_every_step(recipe: Mapping[str, Any], before: Path) -> dict[str, Any]:
    """Kill a run before each step it takes in its folder, which begins as a copy of ``before``, and run it again.

    points: how many steps there were. problems: what was not as promised, in words.
    """
    registry = load_plugins()
    out = Path(recipe["output"]["path"])
    old = contents(before)

    def prepare() -> None:
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(before, out)

    prepare()
    _was_killed(_begin(recipe, registry))
    new = contents(out)
    manifest = f"{recipe['output']['name']}.manifest.json"
    problems = []
    point = 1
    while True:
        prepare()
        if not _was_killed(_begin(recipe, registry, point)):
            return {"points": point - 1, "problems": problems}
        halfway = contents(out)
        for name in sorted(set(halfway) | set(old)):
            withdrawn = name == manifest and name not in halfway
            if not withdrawn and halfway.get(name) not in (old.get(name), new.get(name)):
                problems.append(f"step {point}: {name} is neither the old file nor the new one")
        if manifest in halfway and halfway not in (old, new):
            problems.append(f"step {point}: the manifest stands while not all that it names does")
        _was_killed(_begin(recipe, registry))
        if contents(out) != new:
            problems.append(f"step {point}: the rerun ends with {sorted(contents(out))}")
        point += 1


def contents(folder: Path) -> dict[str, bytes]:
    """Of every file that stands under a final name."""
    files = (path for path in folder.rglob("*") if path.is_file())
    named = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: path.read_bytes() for name, path in named.items() if not name.startswith(".")}


def _begin(recipe: Mapping[str, Any], registry: Registry, kill_at: int = 0) -> int:
    pid = os.fork()
    if pid:
        return pid
    steps = 0

    def count(event: str, args: tuple[Any, ...]) -> None:
        nonlocal steps
        if event in STEPS or (event == "open" and isinstance(args[2], int) and args[2] & os.O_CREAT):
            steps += 1
            if steps == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    if kill_at:
        sys.addaudithook(count)
    try:
        result = convert(recipe, registry=registry)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0 if result.status in ("done", "already done") else 9)


def _was_killed(pid: int) -> bool:
    status = os.waitpid(pid, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit(f"a run failed with {os.WEXITSTATUS(status)}")
    return os.WIFSIGNALED(status)


if __name__ == "__main__":
    asked = json.loads(sys.argv[2])
    if sys.argv[1] == "at_random":
        print(json.dumps(at_random(asked, int(sys.argv[3]), int(sys.argv[4]))))
    else:
        print(json.dumps(at_every_step(asked, Path(sys.argv[3]))))
