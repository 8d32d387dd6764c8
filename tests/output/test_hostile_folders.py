"""Whatever lies in an output folder, nothing outside of it is written or deleted, and nothing hangs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from converter_core import ConverterError, Registry, convert, inspect, make_plan, verify
from converter_core.output.manifest import dump

from .conftest import Asking

STAGING = ".tiny.partial"
PLACES = [
    STAGING,
    f"{STAGING}/files",
    f"{STAGING}/files/block_0.safetensors",
    f"{STAGING}/files/config.json",
    f"{STAGING}/files/tokenizer",
    f"{STAGING}/files/tiny.manifest.json",
    f"{STAGING}/journal.jsonl",
    f"{STAGING}/journal.jsonl.new",
    "block_0.safetensors",
    "config.json",
    "tokenizer",
    "tokenizer/vocab.json",
    "tiny.manifest.json",
    "other.manifest.json",
    "diffusion_pytorch_model.safetensors.index.json",
]
NAMES = [
    "../decoy/victim.txt",
    "../decoy",
    "DECOY/victim.txt",
    "link/victim.txt",
    "a/../../decoy/victim.txt",
    "..",
    ".",
    "",
    "/",
    "\0",
    "..\\decoy\\victim.txt",
    "block_0.safetensors",
    "block_1.safetensors",
    "config.json",
    "tokenizer/vocab.json",
    "tokenizer",
    "tiny.manifest.json",
    STAGING,
]

names = st.lists(st.sampled_from(NAMES), max_size=4)
odd = st.sampled_from([None, 1, "../decoy/victim.txt", {"../decoy": 1}, [["x"]], -1.5])
fingerprints = st.sampled_from(["SAME", "other"])
journals = st.fixed_dictionaries(
    {"kind": st.just("journal"), "fingerprint": fingerprints},
    optional={
        "replaces": names | odd,
        "orphans": names | odd,
        "publishes": names | odd,
        "later": names | odd,
        "identity": odd,
        "stale": names | odd,
    },
)
manifests = st.fixed_dictionaries(
    {
        "kind": st.just("manifest"),
        "fingerprint": fingerprints,
        "place": st.sampled_from(["tiny.manifest.json", "other.manifest.json"]),
        "files": names | odd | st.just("LEFT OUT"),
        "source": st.sampled_from([None, {"files": {}, "checksums": {}}, {"files": {"model.safetensors": []}}]),
    }
)
things = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["link", "link to folder", "hard link", "pipe", "folder", "file", "zeros"]),
        "place": st.sampled_from(PLACES),
    }
)
plants = st.lists(journals | manifests | things, max_size=6)


class World:
    """An output folder in which things are planted, beside a tree that must not change."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.out, self.decoy = folder / "out", folder / "decoy"
        self.fingerprint = fingerprint
        (self.decoy / "deep").mkdir(parents=True)
        for name in ("victim.txt", "block_0.safetensors", "vocab.json", "journal.jsonl", "deep/file"):
            (self.decoy / name).write_bytes(f"precious {name}".encode())
        self.out.mkdir()
        (self.out / "link").symlink_to(self.decoy)

    def tree(self) -> dict[str, bytes]:
        return {
            path.relative_to(self.decoy).as_posix(): path.read_bytes() if path.is_file() else b""
            for path in self.decoy.rglob("*")
        }

    def names(self, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        return [name.replace("DECOY", str(self.decoy)) if isinstance(name, str) else name for name in value]

    def plant(self, thing: dict[str, Any]) -> None:
        thing = {key: self.names(value) for key, value in thing.items()}
        if thing.get("fingerprint") == "SAME":
            thing["fingerprint"] = self.fingerprint
        with suppress(OSError):  # something stands in the way
            {"journal": self._journal, "manifest": self._manifest}.get(thing["kind"], self._thing)(thing)

    def _journal(self, thing: dict[str, Any]) -> None:
        keys = ("replaces", "orphans", "publishes", "identity")
        head = {"fingerprint": thing["fingerprint"], "made_of": {}, **{key: thing[key] for key in keys if key in thing}}
        lines = [head] + ([{"publishes": thing["later"], "replaces": thing["later"]}] if "later" in thing else [])
        if "stale" in thing:
            lines.append({"weight": "norm.weight", "crc32": {"norm.weight": 1}, "source": thing["stale"]})
            lines.append({"identity": thing["stale"], "stale": thing["stale"]})
        (self.out / STAGING).mkdir(exist_ok=True)
        _write(self.out / STAGING / "journal.jsonl", "\n".join(map(json.dumps, lines)).encode())

    def _manifest(self, thing: dict[str, Any]) -> None:
        files = thing["files"]
        if isinstance(files, list):
            files = {name: {"size": 3, "crc32": "00000000"} for name in files if isinstance(name, str)}
        content = {"fingerprint": thing["fingerprint"], "tensors": {}, "weights": {}, "source": thing.get("source")}
        if files != "LEFT OUT":
            content["files"] = files
        _write(self.out / thing["place"], dump(content))

    def _thing(self, thing: dict[str, Any]) -> None:
        place = self.out / thing["place"]
        place.parent.mkdir(parents=True, exist_ok=True)
        file = self.decoy / ("block_0.safetensors" if place.suffix == ".safetensors" else "victim.txt")
        make: dict[str, Callable[[], object]] = {
            "link": lambda: place.symlink_to(file),
            "link to folder": lambda: place.symlink_to(self.decoy),
            "hard link": lambda: place.hardlink_to(file),
            "pipe": lambda: os.mkfifo(place),
            "folder": lambda: place.mkdir(),
            "file": lambda: place.write_bytes(b"abc"),
            "zeros": lambda: place.symlink_to("/dev/zero"),
        }
        make[thing["kind"]]()


def _write(path: Path, content: bytes) -> None:
    """OSError where a pipe was planted, which nobody reads."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK, 0o644)
    with os.fdopen(fd, "wb") as file:
        file.write(content)


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    def hangs(number: int, frame: FrameType | None) -> NoReturn:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def journal(**facts: Any) -> dict[str, Any]:
    return {"kind": "journal", "fingerprint": "other", **facts}


OUTSIDE = ["../decoy/victim.txt"]


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(planted=plants, layout=st.sampled_from(["single_file", "by_block"]))
@example(planted=[journal(replaces=OUTSIDE)], layout="by_block")
@example(planted=[journal(replaces=["DECOY/victim.txt"])], layout="by_block")
@example(planted=[journal(later=OUTSIDE)], layout="by_block")
@example(planted=[journal(replaces=["link/victim.txt"], publishes=["x"])], layout="by_block")
@example(
    planted=[{"kind": "manifest", "fingerprint": "other", "place": "tiny.manifest.json", "files": OUTSIDE}],
    layout="by_block",
)
@example(planted=[{"kind": "link to folder", "place": STAGING}], layout="by_block")
@example(planted=[{"kind": "link", "place": f"{STAGING}/journal.jsonl.new"}], layout="by_block")
@example(
    planted=[
        journal(fingerprint="SAME", publishes=[]),
        {"kind": "hard link", "place": f"{STAGING}/files/block_0.safetensors"},
        {"kind": "link to folder", "place": f"{STAGING}/files/tokenizer"},
        {"kind": "link to folder", "place": "tokenizer"},
    ],
    layout="by_block",
)
def test_nothing_outside_is_touched(ask: Asking, plugins: Registry, planted: list[dict[str, Any]], layout: str) -> None:
    use_hostile_folder(ask, plugins, planted, layout)


@pytest.mark.soak
@settings(max_examples=5000, deadline=None, suppress_health_check=list(HealthCheck))
@given(planted=plants, layout=st.sampled_from(["single_file", "by_block", "chunked"]))
def test_nothing_outside_is_touched_at_length(
    ask: Asking, plugins: Registry, planted: list[dict[str, Any]], layout: str
) -> None:
    use_hostile_folder(ask, plugins, planted, layout)


def use_hostile_folder(ask: Asking, plugins: Registry, planted: list[dict[str, Any]], layout: str) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch, at_most(60):
        patch.setattr("os.fsync", lambda fd: None)
        out = Path(name) / "out"
        recipe = ask("int8", out, layout)
        with make_plan(recipe, plugins) as plan:
            fingerprint = plan.outputs[0].fingerprint.value
        world = World(Path(name), fingerprint)
        for thing in planted:
            world.plant(thing)
        before = world.tree()  # only now: a thing may have been planted through a link
        steps: list[Callable[[], object]] = [
            lambda: make_plan(recipe, plugins).close(),
            lambda: inspect(out, plugins),
            lambda: verify(out, registry=plugins),
            lambda: convert(recipe, registry=plugins),
            lambda: convert(ask("int8", out, layout, overwrite=True), registry=plugins),
            lambda: convert(ask("fp8", out, layout, overwrite=True), registry=plugins, resume=False),
            lambda: verify(out / "tiny.manifest.json", registry=plugins),
        ]
        for step in steps:
            with suppress(ConverterError):
                step()
            assert world.tree() == before
        shutil.rmtree(out, ignore_errors=True)
