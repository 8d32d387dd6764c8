"""``batch``: states, tables, lines of JSON, exit codes, interruption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from converter_core.cli import run


@pytest.fixture
def jobs(wan_source: Path, tmp_path: Path) -> Path:
    """Two jobs of one source, and one whose source is not there."""
    matrix = {
        "models": [{"name": "wan", "path": str(wan_source)}, {"name": "gone", "path": str(tmp_path / "gone")}],
        "schemes": ["int8", "fp8"],
        "output": {"path": f"{tmp_path}/out/{{model}}_{{scheme}}"},
        "exclude": [{"model": "gone", "scheme": "fp8"}],
    }
    path = tmp_path / "jobs.yaml"
    path.write_text(yaml.safe_dump({"matrix": matrix, "performance": {"device": "cpu"}}))
    return path


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_states_before_and_after(jobs, tmp_path, capsys):
    assert run(["batch", str(jobs), "--dry-run", "--json"]) == 1
    assert [(one["job"], one["state"]) for one in lines(capsys.readouterr().out)] == [
        ("wan/int8", "new"),
        ("wan/fp8", "new"),
        ("gone/int8", "refused"),
    ]
    assert not (tmp_path / "out").exists()
    assert run(["batch", str(jobs)]) == 1
    out, err = capsys.readouterr()
    assert "2 done, 1 failed" in out
    assert f"error: gone/int8: {tmp_path}/gone: cannot be opened" in err
    assert "Traceback" not in err
    assert run(["batch", str(jobs), "--json"]) == 1
    found = lines(capsys.readouterr().out)
    assert [(one["job"], one["state"], one["exit_code"]) for one in found] == [
        ("wan/int8", "skipped", 0),
        ("wan/fp8", "skipped", 0),
        ("gone/int8", "failed", 1),
    ]
    assert found[2]["error"]["kind"] == "CheckpointError"
    assert found[0]["read_with"] == ["wan/fp8"]
    assert run(["batch", str(jobs), "--dry-run"]) == 1
    out = capsys.readouterr().out
    assert [line.split()[:2] for line in out.splitlines() if line.startswith((" wan", " gone"))] == [
        ["wan/int8", "done"],
        ["wan/fp8", "done"],
        ["gone/int8", "refused"],
    ]


def test_all_done_is_exit_code_0_and_quiet_is_quiet(jobs, capsys):
    jobs.write_text(jobs.read_text().replace("scheme: fp8", "scheme: fp8\n  - model: gone"))
    assert run(["batch", str(jobs), "-q"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("width", [80])
def test_the_table_fits(jobs, width, capsys, monkeypatch):
    from rich.console import Console

    monkeypatch.setattr(
        "converter_core.cli.tables.console", lambda: Console(width=width, markup=False, highlight=False)
    )
    text = jobs.read_text().replace("name: wan", f"name: {'Wan2.1-I2V-14B-480P-' * 3}")
    jobs.write_text(text)
    run(["batch", str(jobs), "-q", "--json"])
    capsys.readouterr()
    run(["batch", str(jobs)])
    out = capsys.readouterr().out
    assert all(len(line) <= width for line in out.splitlines())
    assert "2 skipped, 1 failed" in out
    assert "7.62 MiB" in out


def test_a_batch_that_is_wrong_is_refused_as_a_whole(jobs, tmp_path, capsys):
    jobs.write_text(jobs.read_text().replace("fp8", "fp9"))
    assert run(["batch", str(jobs), "--json"]) == 1
    out, err = capsys.readouterr()
    (found,) = lines(out)
    assert found["error"]["kind"] == "RecipeError"
    assert "quantization.method: unknown quantizer 'fp9'; did you mean 'fp8'?" in err
    assert not (tmp_path / "out").exists()


def test_interrupted_and_run_again(jobs, tmp_path, capsys):
    """Ctrl-C while the first conversion is under way."""
    script = (
        "import os, signal, sys, time\n"
        "from converter_core.engine import making\n"
        "store = making.Making.store\n"
        "def slowly(self, *rows):\n"
        "    os.write(1, b'under way\\n')\n"
        "    time.sleep(0.05)\n"
        "    store(self, *rows)\n"
        "making.Making.store = slowly\n"
        "from converter_core.cli import main\n"
        "main()\n"
    )
    line = [sys.executable, "-c", script, "batch", str(jobs)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "under way\n"
        time.sleep(0.2)
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; finished weights are kept, and the same command resumes" in err
    assert "3 pending" in out
    assert run(["batch", str(jobs), "--dry-run", "--json"]) == 1
    assert [one["state"] for one in lines(capsys.readouterr().out)] == ["resume", "resume", "refused"]
    assert run(["batch", str(jobs), "--json"]) == 1
    found = lines(capsys.readouterr().out)
    assert [one["state"] for one in found] == ["done", "done", "failed"]
    assert found[0]["outputs"][0]["resumed"]["tensors"] > 0
