"""What takes hours: the suite in the portable way, faults planted in every package, fuzzing, other Pythons."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from ..mutation.__main__ import SELECTION

ROOT = Path(__file__).resolve().parents[2]
FUZZED = {
    "fuzz_headers.py": ("header", "index", "recipe"),
    "fuzz_folders.py": ("journal", "manifest", "torch", "calibration"),
}
FUZZ_SECONDS = 600
PYTHONS = ("3.10", "3.12", "3.13", "3.14")

pytestmark = pytest.mark.soak


def run(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """What it prints is seen with ``-s``."""
    return subprocess.run(list(map(str, command)), cwd=ROOT, env={**os.environ, **environment}, text=True, check=False)


def test_the_suite_in_the_portable_way() -> None:
    """Without descriptors of folders, locks, preallocation and read-ahead."""
    assert run(sys.executable, "-m", "pytest", "-q", "-n", 2, CONVERTER_PORTABLE_IO="1").returncode == 0


@pytest.mark.parametrize("package", SELECTION)
def test_planted_faults(package: str, tmp_path: Path) -> None:
    """The survivors are printed, for a person to look at; what fails here is the tool, or the tests without a fault."""
    found = tmp_path / "found.json"
    assert run(sys.executable, "-m", "tests.mutation", package, "--count", 100, "--json", found).returncode in (0, 1)
    assert found.is_file()


@pytest.mark.skipif(find_spec("atheris") is None, reason="pip install atheris")
@pytest.mark.parametrize(("script", "reader"), [(name, one) for name, each in FUZZED.items() for one in each])
def test_fuzzed(script: str, reader: str) -> None:
    limit = f"-max_total_time={FUZZ_SECONDS}"
    assert run(sys.executable, ROOT / "tests" / "fuzz" / script, reader, limit).returncode == 0


@pytest.mark.parametrize("version", PYTHONS)
def test_another_python(version: str, tmp_path: Path) -> None:
    """It installs and runs there."""
    python = shutil.which(f"python{version}")
    if python is None or run(python, "-m", "venv", tmp_path / "venv").returncode:
        pytest.skip(f"no Python {version} is at hand")
    binaries = tmp_path / "venv" / "bin"
    assert run(binaries / "python", "-m", "pip", "install", "-q", "torch==2.13.0", ROOT).returncode == 0
    assert run(binaries / "model-converter", "demo").returncode == 0
