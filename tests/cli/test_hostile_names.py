"""Whatever files call their tensors and themselves, nothing that a terminal obeys is printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from converter_core.cli import run

EVIL = "evil\x1b]0;owned\x07\x9b2J\r\nname\u202e"


@pytest.fixture
def evil_source(wan_source: Path, tmp_path: Path) -> Path:
    """A checkpoint with such tensors, metadata and side files."""
    folder = tmp_path / "source"
    folder.mkdir()
    tensors = {key: value for path in wan_source.glob("*.safetensors") for key, value in load_file(path).items()}
    tensors |= {f"blocks.0.{EVIL}{number}": torch.ones(2, dtype=torch.bfloat16) for number in range(30)}
    save_file(tensors, folder / "model.safetensors", {"format": "pt", EVIL: EVIL})
    (folder / f"note{EVIL.replace('/', '')}.txt").write_text("x")
    (folder / f"odd{EVIL}.gguf").write_text("x")
    return folder


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    text = captured.out + captured.err
    assert all(char.isprintable() or char == "\n" for char in text), [char for char in text if not char.isprintable()]
    return text


def test_nothing_that_a_terminal_obeys_is_printed(
    evil_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    asked = [
        "--source",
        str(evil_source),
        "--quantized",
        "--linear-type",
        "int8",
        "--output",
        str(out),
        "--device",
        "cpu",
    ]
    run(["inspect", str(evil_source), "--tensors"])
    assert "evil" in printed(capsys)
    run(["plan", *asked, "--set", "output.copy_metadata=true"])
    printed(capsys)
    assert run(["convert", *asked, "--verbose"]) == 0
    printed(capsys)
    for path in out.glob("*.safetensors"):
        data = path.read_bytes()
        header = 8 + int.from_bytes(data[:8], "little")
        path.write_bytes(data[:header] + bytes(len(data) - header))
    assert run(["verify", str(out), "--against", str(evil_source)]) == 1
    printed(capsys)
    assert run(["verify", str(out)]) == 1
    text = printed(capsys)
    assert run(["verify", str(out), "--json"]) == 1
    report = json.loads(printed(capsys))
    assert any("\x1b" in problem["tensor"] for problem in report["problems"])
    assert text.count("error: ") <= 21 < len(report["problems"])
    assert f"and {len(report['problems']) - 20:,} more; --json prints all" in text
