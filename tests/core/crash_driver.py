"""Run a conversion again and again, killing it at random moments, until one run lives to the end.

Forks: torch is imported once, and each run is a process of its own that SIGKILL really kills.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time

from converter_core.conversion import convert
from converter_core.registry import load_plugins


def run(recipe: dict[str, object], seed: int, kills: int) -> dict[str, int]:
    """How many runs were killed before one lived."""
    registry = load_plugins()
    dice = random.Random(seed)
    killed = 0
    while True:
        pid = os.fork()
        if pid == 0:
            result = convert(recipe, registry=registry)
            os._exit(0 if result.status in ("done", "already done") else 9)
        if killed < kills:
            time.sleep(dice.uniform(0.0, 0.15))
            os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        if os.WIFSIGNALED(status):
            killed += 1
        elif os.WEXITSTATUS(status):
            raise SystemExit(f"a run failed with {os.WEXITSTATUS(status)}")
        else:
            return {"killed": killed}


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
