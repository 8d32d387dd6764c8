"""What must be quick is: help, version and completion import neither torch nor the engine."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

from converter_core.cli import run

CHECK = """
import sys
from converter_core.cli import run
code = run(sys.argv[1:])
heavy = {"torch", "numpy", "yaml", "converter_core.engine", "converter_core.plugins"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else code)
"""


@pytest.mark.parametrize("args", [["--help"], ["convert", "--help"], ["--version"], ["plugins", "-h"]])
def test_help_and_version_import_nothing_heavy(args):
    found = subprocess.run([sys.executable, "-c", CHECK, *args], capture_output=True, text=True, timeout=60)
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout


def test_completion_imports_nothing_heavy():
    program = f"{CHECK}"
    environment = {"_MODEL_CONVERTER_COMPLETE": "complete_bash", "COMP_WORDS": "model-converter pl", "COMP_CWORD": "1"}
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env=environment)
    assert found.stdout.split() == ["plan", "plugins"]
    assert "imported" not in found.stderr


def test_version(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"model-converter {version('model-converter')}\n"


def test_without_arguments_the_help_is_shown(capsys):
    assert run([]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("convert", "plan", "inspect", "verify", "calibrate", "init", "demo", "plugins"))


def test_python_dash_m():
    found = subprocess.run(
        [sys.executable, "-m", "converter_core", "--version"], capture_output=True, text=True, timeout=60
    )
    assert found.stdout == f"model-converter {version('model-converter')}\n"


@pytest.mark.parametrize("closed", [1, 2])
def test_a_closed_stream_is_no_fault(closed):
    command = [sys.executable, "-m", "converter_core", "plugins"]
    run = f"import os; os.close({closed}); os.execv({sys.executable!r}, {command!r})"
    done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True)
    assert done.returncode == 0
    assert "Traceback" not in done.stdout + done.stderr
