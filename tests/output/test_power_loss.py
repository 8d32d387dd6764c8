"""Power may be lost at any moment: the rerun's bytes are right, and nothing is called complete that is not."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from converter_core import ConverterError, Registry, convert, make_plan, verify

from .conftest import Asking
from .disk import Call, Disk
from .test_met_again import stopped_after

LAYOUTS = ["single_file", "by_block", "chunked"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Recorded:
    """A conversion on the model of a disk. old, new: what stood in its folder before and after.

    before: ``fresh``; ``replacing`` another; ``interrupted``: replacing one that was interrupted while it replaced
    another.
    """

    def __init__(self, ask: Asking, plugins: Registry, layout: str, before: str, folder: Path) -> None:
        replacing = before != "fresh"
        self.plugins = plugins
        self.again = folder / "disk"  # always the same path: it stands in the manifest
        self.again.mkdir()
        out = self.again / "out"
        self.recipe: dict[str, Any] = ask("fp8", out, layout, overwrite=replacing)
        if replacing:
            convert(ask("int8", out, "by_block"), registry=plugins)
        if before == "interrupted":
            with stopped_after(2):
                convert(ask("mxfp4", out, "by_block", overwrite=True), registry=plugins)
        self.old = {} if before == "interrupted" else contents(out)
        self.disk = Disk(self.again)
        with self.disk.recording():
            convert(self.recipe, registry=plugins)
        self.new = contents(out)
        self.seen: set[str] = set()

    def check(self, calls: list[Call]) -> str:
        """What is not as promised in one state of the disk; empty: nothing."""
        shutil.rmtree(self.again, ignore_errors=True)
        self.again.mkdir()
        digest = self.disk.build(calls, self.again)
        if digest in self.seen:
            return ""
        self.seen.add(digest)
        out = self.again / "out"
        found = contents(out) if out.is_dir() else {}
        standing = {name: data for name, data in found.items() if not name.startswith(".")}
        whole = [one for one in (self.old, self.new) if one and one == standing]
        if self._is_called_complete(out) and not whole:
            return f"verify calls it complete: {sorted(standing)}"
        with make_plan(self.recipe, self.plugins) as plan:
            if plan.outputs[0].state.done and standing != self.new:
                return "a plan calls it done"
        convert(self.recipe, registry=self.plugins)
        ended = contents(out)
        wrong = sorted(name for name in self.new.keys() | ended.keys() if self.new.get(name) != ended.get(name))
        return f"the rerun ends with other files: {wrong}" if wrong else ""

    def _is_called_complete(self, out: Path) -> bool:
        try:
            return verify(out, registry=self.plugins).ok
        except ConverterError:
            return False

    def states(self, rng: random.Random) -> Iterator[tuple[int, list[Call]]]:
        for moment in range(len(self.disk.calls) + 1):
            for calls in self.disk.after(moment, rng):
                yield moment, calls


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rerun on the real disk of the test need not be durable."""
    monkeypatch.setattr("os.fsync", lambda fd: None)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("before", ["fresh", "replacing", "interrupted"])
def test_power_loss_at_some_moments(ask: Asking, plugins: Registry, tmp_path: Path, layout: str, before: str) -> None:
    recorded = Recorded(ask, plugins, layout, before, tmp_path)
    rng = random.Random(f"{layout} {before}")
    moments = rng.choices(range(len(recorded.disk.calls) + 1), k=8)
    for moment in moments:
        calls = rng.choice(list(recorded.disk.after(moment, rng)))
        assert recorded.check(calls) == "", f"before call {moment}: {recorded.disk.calls[moment : moment + 1]}"


def test_nothing_is_announced_before_it_is_durable(ask: Asking, plugins: Registry, tmp_path: Path) -> None:
    """With all lost that no fsync covered: what the journal announces is staged, what the manifest lists is there."""
    recorded = Recorded(ask, plugins, "by_block", "replacing", tmp_path)
    calls = recorded.disk.calls
    announced = next(n for n, call in enumerate(calls) if b'"publishes"' in call.data)
    last = next(n for n, call in enumerate(calls) if call.kind == "rename" and call.name == "tiny.manifest.json")
    whole = {name for name in recorded.new if name != "tiny.manifest.json"}
    for moment, place in ((announced, ".tiny.partial/files/"), (last, "")):
        lost = list(recorded.disk.after(moment))[1]
        shutil.rmtree(recorded.again)
        recorded.again.mkdir()
        recorded.disk.build(lost, recorded.again)
        found = contents(recorded.again / "out")
        assert {name for name in whole if found.get(place + name) != recorded.new[name]} == set()
    assert "tiny.manifest.json" not in found
    synced = [call.kind for call in calls[announced:]].index("fsync")
    assert "rename" not in [call.kind for call in calls[announced : announced + synced]]


@pytest.mark.usefixtures("quick")
def test_a_journal_that_takes_over_another_is_whole_from_the_first_moment(
    ask: Asking, plugins: Registry, tmp_path: Path
) -> None:
    """Or nobody would know any more whose the files are that stand without a manifest."""
    recorded = Recorded(ask, plugins, "single_file", "interrupted", tmp_path)
    begun = next(n for n, call in enumerate(recorded.disk.calls) if call.kind == "rename")
    for moment in range(begun + 3):
        for calls in recorded.disk.after(moment):
            assert recorded.check(calls) == "", f"before call {moment}"


@pytest.mark.soak
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("before", ["fresh", "replacing", "interrupted"])
def test_power_loss_at_every_moment(ask: Asking, plugins: Registry, tmp_path: Path, layout: str, before: str) -> None:
    recorded = Recorded(ask, plugins, layout, before, tmp_path)
    wrong = (
        f"before call {moment} {recorded.disk.calls[moment : moment + 1]}: {problem}"
        for moment, calls in recorded.states(random.Random(0))
        if (problem := recorded.check(calls))
    )
    found = list(islice(wrong, 5))
    print(f"{len(recorded.disk.calls)} calls, {len(recorded.seen)} states")
    assert found == []
