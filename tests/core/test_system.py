"""The portable ways do what the system's own do: a conversion, its resume and its verification with them forced."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import converter_core
from converter_core import system

SCENARIO = """
import json, os, sys, threading
from pathlib import Path
import torch
import converter_core
from converter_core import folder
from converter_core.checkpoint.synthetic import write_synthetic
from converter_core.engine import slabs
from converter_plugins.models.wan_dit import WanDit

assert not folder._RELATIVE
root = Path(sys.argv[1])
write_synthetic(root / "in", WanDit().synthetic(), shards=2)
recipe = {
    "source": {"path": str(root / "in")},
    "quantization": {"method": "int8"},
    "target": {"layout": "by_block"},
    "output": {"path": str(root / "out"), "name": "wan", "copy_metadata": True},
    "performance": {"device": "cpu", "num_workers": 4, "max_memory": "256KiB"},
}
run, left = slabs.Worker.run, [30]

def stops(self, *arguments):
    left[0] -= 1
    if not left[0]:
        raise converter_core.ConversionError("enough")
    return run(self, *arguments)

slabs.Worker.run = stops
try:
    converter_core.convert(recipe)
except converter_core.ConversionError:
    pass
slabs.Worker.run = run
result = converter_core.convert(recipe).outputs[0]
assert result.status == "done" and result.resumed["tensors"] > 10, result
assert converter_core.convert(recipe).outputs[0].status == "already done"
report = converter_core.verify(root / "out", root / "in")
assert report.ok, report.problems
"""


def test_a_conversion_in_the_portable_way_gives_the_same_bytes(tmp_path: Path) -> None:
    environment = {**os.environ, system.PORTABLE_VARIABLE: "1"}
    command = [sys.executable, "-c", SCENARIO, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "out" / "wan.manifest.json").read_text())
    recipe = {**manifest["recipe"], "output": {"path": str(tmp_path / "own"), "name": "wan"}}
    recipe["source"] = {"path": str(tmp_path / "in")}
    converter_core.convert(recipe)
    own, portable = (
        {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.safetensors")} for name in ("own", "out")
    )
    assert own == portable
    assert len(own) > 2


@pytest.mark.parametrize("portable", ["0", "1"])
def test_reads_and_writes_at_an_offset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, portable: str) -> None:
    monkeypatch.setenv(system.PORTABLE_VARIABLE, portable)
    monkeypatch.setattr(system, "LARGEST_WRITE", 1000)
    content = bytes(number % 251 for number in range(100_000))
    fd = os.open(tmp_path / "x", os.O_RDWR | os.O_CREAT)
    try:
        system.allocate(fd, len(content))
        assert os.fstat(fd).st_size == len(content)

        def write(number: int) -> None:
            at = number * 5000
            system.write_at(fd, memoryview(content)[at : at + 5000], at)

        def read(number: int) -> bool:
            into = bytearray(5000)
            return (
                system.read_at(fd, memoryview(into), number * 4999) == 5000
                and bytes(into) == (content[number * 4999 : number * 4999 + 5000])
            )

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write, range(20)))
            assert all(pool.map(read, range(20)))
        into = bytearray(100)
        assert system.read_at(fd, memoryview(into), len(content) - 40) == 40
        system.will_need(fd, 0, 1000)
        system.start_writeback(fd)
        folder = os.open(tmp_path, os.O_RDONLY)
        assert system.lock(folder) is (portable == "0")
        os.close(folder)
    finally:
        os.close(fd)


def test_what_could_not_be_written_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrote = iter([1000, OSError(28, "No space left on device")])

    def fails(*arguments: object) -> int:
        answer = next(wrote)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(os, "pwrite", fails)
    with pytest.raises(OSError, match="No space") as caught:
        system.write_at(0, memoryview(bytes(2500)), 0)
    assert caught.value.missing == 1500  # type: ignore[attr-defined]
