"""Power loss on a real file system: what a block device holds at each step of a run is copied and mounted again.

The process stops itself before and after every sync, rename and removal; what the file system has not sent to the
device by then is lost, as with the power. At some steps somebody else syncs a file of his own: names and sizes that are
in the same journal become durable, and data that are not synced do not. Needs root, loop devices and a ``mkfs``; skips
where there is none.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from converter_core import ConverterError, Registry, convert, verify

from .conftest import Asking

SIZES = {"ext4": 16 << 20, "xfs": 320 << 20, "btrfs": 128 << 20}
STEPS = ("fsync", "replace", "unlink", "rmdir", "mkdir")


def run(*command: str | Path) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{command[0]} does not work here: {done.stderr.strip()}")


@contextmanager
def mounted(image: Path, place: Path) -> Iterator[Path]:
    place.mkdir(exist_ok=True)
    run("mount", "-o", "loop", image, place)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def stopping(recipe: dict[str, Any], plugins: Registry) -> int:
    """A process that stops at each step, and goes on when it is told to."""
    pid = os.fork()
    if pid:
        return pid

    def stepping(real: Any) -> Any:
        def step(*args: Any, **keywords: Any) -> Any:
            os.kill(os.getpid(), signal.SIGSTOP)
            found = real(*args, **keywords)
            os.kill(os.getpid(), signal.SIGSTOP)
            return found

        return step

    code = 1
    try:
        for name in STEPS:
            setattr(os, name, stepping(getattr(os, name)))
        convert(recipe, registry=plugins)
        code = 0
    finally:
        os._exit(code)


def snapshot(image: Path, copy: Path) -> None:
    """Copied until nothing was written meanwhile."""
    before = b""
    while True:
        run("cp", "--sparse=always", image, copy)
        now = subprocess.run(["md5sum", str(copy)], capture_output=True, check=True).stdout
        if now == before:
            return
        before = now


def commit(place: Path) -> None:
    with (place / "probe").open("ab") as file:
        file.write(b"x")
        file.flush()
        os.fsync(file.fileno())


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def is_called_complete(out: Path, plugins: Registry) -> bool:
    try:
        return verify(out, registry=plugins).ok
    except ConverterError:
        return False


@pytest.mark.soak
@pytest.mark.parametrize("replacing", [False, True])
@pytest.mark.parametrize("system", SIZES)
def test_power_loss_on_a_real_file_system(
    ask: Asking, plugins: Registry, tmp_path: Path, system: str, replacing: bool
) -> None:
    if os.geteuid() or shutil.which(f"mkfs.{system}") is None:
        pytest.skip(f"needs root and mkfs.{system}")
    image, copy, place = tmp_path / "image", tmp_path / "copy", tmp_path / "mounted"
    with image.open("wb") as file:
        file.truncate(SIZES[system])
    run(f"mkfs.{system}", "-q", image)
    first, out = ask("int8", place / "out"), place / "out"
    recipe = ask("fp8", place / "out", overwrite=replacing)
    with mounted(image, place):
        if replacing:
            convert(first, registry=plugins)
            os.sync()
        old = contents(out)
    snapshot(image, copy)
    with mounted(copy, place):
        convert(recipe, registry=plugins)
        new = contents(out)
    states: list[Path] = []
    dice = random.Random(f"{system} {replacing}")
    with mounted(image, place):
        pid = stopping(recipe, plugins)
        while os.WIFSTOPPED(status := os.waitpid(pid, os.WUNTRACED)[1]):
            if dice.random() < 0.5:
                commit(place)
            states.append(tmp_path / f"state-{len(states)}")
            snapshot(image, states[-1])
            os.kill(pid, signal.SIGCONT)
        assert os.waitstatus_to_exitcode(status) == 0
    for state in states:
        with mounted(state, place):
            found = contents(out)
            standing = {name: data for name, data in found.items() if not name.startswith(".")}
            if is_called_complete(out, plugins):
                assert standing in (old, new), f"{state.name}: verify calls it complete"
            convert(recipe, registry=plugins)
            assert contents(out) == new, state.name
        state.unlink()
    print(f"{system}: {len(states)} states")
    assert len(states) > 40
