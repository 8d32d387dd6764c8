"""Whether the tests would notice: plants small faults in a package, one at a time, and runs the tests that should fail.

    python -m tests.mutation engine --count 100 --seed 0 --workers 2

prints every fault that no test noticed, and a score. The tests of a package are those of ``SELECTION``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .faults import Fault, faults_of

ROOT = Path(__file__).resolve().parents[2]

SELECTION: Mapping[str, tuple[str, Sequence[str]]] = {
    "planning": (
        "converter_core/planning",
        ("tests/core/test_planning.py", "tests/interfaces", "tests/core/test_plugin_faults.py", "tests/golden"),
    ),
    "engine": (
        "converter_core/engine",
        ("tests/core/test_conversion.py", "tests/interfaces", "tests/core/test_resume.py"),
    ),
    "output": (
        "converter_core/output",
        ("tests/core/test_resume.py", "tests/core/test_hostile.py", "tests/interfaces"),
    ),
    "verification": (
        "converter_core/verification",
        (
            *("tests/core/test_sums.py", "tests/core/test_verification_findings.py", "tests/core/test_verification.py"),
            *("tests/core/test_calibration.py", "tests/lora", "tests/plugins/targets/test_foreign_files.py"),
        ),
    ),
    "quantizers": ("plugins/converter_plugins/quantizers", ("tests/plugins/quantizers",)),
}
"""Package -> its folder, and the tests that are meant to hold it: quick ones first, as a failure ends the run."""

PATIENCE = 4
"""Times as long as without a fault; one that makes the tests hang is noticed too."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__.splitlines()[0])
    parser.add_argument("package", choices=SELECTION)
    parser.add_argument("--count", type=int, default=100, help="faults to plant, drawn from all of the package")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, help="write what was found here")
    chosen = parser.parse_args()
    folder, tests = SELECTION[chosen.package]
    every = [
        fault for path in sorted((ROOT / folder).glob("*.py")) for fault in faults_of(path.relative_to(ROOT), ROOT)
    ]
    sample = random.Random(chosen.seed).sample(every, min(chosen.count, len(every)))
    print(f"{len(sample)} of {len(every)} faults in {folder}, seed {chosen.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="mutation") as scratch, ThreadPoolExecutor(chosen.workers) as pool:
        trees = [_copy(Path(scratch) / str(number)) for number in range(chosen.workers)]
        started = time.monotonic()
        if not _passes(trees[0], tests, None):
            print("the tests fail without any fault; mend them first")
            return 2
        longest = PATIENCE * (time.monotonic() - started)

        def survives(fault: Fault) -> bool:
            tree = trees.pop()
            try:
                return _survives(tree, fault, tests, longest)
            finally:
                trees.append(tree)

        survivors = []
        for fault, lives in zip(sample, pool.map(survives, sample), strict=True):
            print(f"{'SURVIVED' if lives else 'noticed '} {fault}", flush=True)
            survivors += [fault] if lives else []
    print(f"noticed {len(sample) - len(survivors)} of {len(sample)}")
    if chosen.json:
        chosen.json.write_text(json.dumps({"faults": len(sample), "survivors": list(map(str, survivors))}, indent=1))
    return 1 if survivors else 0


def _copy(tree: Path) -> Path:
    ignored = shutil.ignore_patterns("__pycache__", ".venv", ".git", "*.egg-info", "site", "build", "dist")
    shutil.copytree(ROOT, tree, ignore=ignored)
    return tree


def _survives(tree: Path, fault: Fault, tests: Sequence[str], longest: float) -> bool:
    path = tree / fault.path
    sound = path.read_text()
    path.write_text(fault.planted)
    try:
        return _passes(tree, tests, longest)
    finally:
        path.write_text(sound)


def _passes(tree: Path, tests: Sequence[str], longest: float | None) -> bool:
    """In a process of its own, with the copy's packages in front of the installed ones."""
    path = os.pathsep.join([str(tree), str(tree / "plugins")])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", *tests]
    try:
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, timeout=longest)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
