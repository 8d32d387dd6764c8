"""Ray itself: bytes equal whatever the workers, and whatever is killed. Soak: it starts clusters of real processes."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from converter_core import ConversionError, convert, convert_batch
from converter_core.checkpoint.synthetic import write_synthetic
from converter_plugins.models.wan_dit import WanDit

ray = pytest.importorskip("ray", reason="extra: ray")
psutil = pytest.importorskip("psutil")

pytestmark = [pytest.mark.soak, pytest.mark.filterwarnings("ignore")]
"""Ray and what it brings warn of their own future."""

ROUNDS = 3
"""A small checkpoint is done in no time: so many outputs of one read take a while."""


def outputs(folder: Path) -> list[dict[str, Any]]:
    target = {"format": "plain", "layout": "by_block"}
    return [
        {"quantization": {"method": method}, "target": target, "output": {"path": str(folder / f"{method}{number}")}}
        for method in ("int8", "fp8")
        for number in range(ROUNDS)
    ]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    write_synthetic(folder, WanDit().synthetic())
    return folder


def recipe(source: Path, folder: Path, **performance: Any) -> dict[str, Any]:
    return {
        "source": {"path": str(source)},
        "outputs": outputs(folder),
        "performance": {"device": "cpu", "executor": "ray", **performance},
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(".manifest.json")
    }


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What threads make."""
    folder = tmp_path_factory.mktemp("whole")
    convert(recipe(source, folder, executor="threads", num_workers=1))
    found = contents(folder)
    assert len(found) > 4 * ROUNDS
    return found


def workers_at_work(below: Any = None) -> list[Any]:
    """Processes of workers that have a job now: Ray calls them by the method."""
    found = []
    for process in (below or psutil.Process()).children(recursive=True):
        try:
            if " ".join(process.cmdline()).startswith("ray::RemoteWorker.do"):
                found.append(process)
        except psutil.Error:
            continue
    return found


@contextmanager
def meanwhile(act: Callable[[threading.Event], None]) -> Iterator[None]:
    """act: told when it is over."""
    over = threading.Event()
    thread = threading.Thread(target=act, args=(over,))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_bytes_are_those_of_threads(source, whole, tmp_path, count):
    events = []
    result = convert(recipe(source, tmp_path, num_workers=count), progress=events.append)
    assert contents(tmp_path) == whole
    assert {one.status for one in result.outputs} == {"done"}
    assert events[-1].done == events[-1].total
    assert not ray.is_initialized()


@pytest.mark.parametrize("seed", range(3))
def test_workers_killed_at_random(source, whole, tmp_path, seed):
    killed: list[int] = []
    dice = random.Random(seed)

    def shoot(over: threading.Event) -> None:
        while not over.wait(dice.uniform(0.0, 0.02)) and len(killed) < 5:
            for process in workers_at_work()[:1]:
                process.send_signal(signal.SIGKILL)
                killed.append(process.pid)
                over.wait(0.5)

    with meanwhile(shoot):
        convert(recipe(source, tmp_path, num_workers=2))
    assert killed
    assert contents(tmp_path) == whole


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Two nodes of two CPUs each, as processes of this machine; this process is the driver and on neither."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [made.add_node(num_cpus=2) for _ in range(2)]
    made.wait_for_nodes()
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    made.both = nodes
    yield made
    ray.shutdown()
    made.shutdown()


def test_a_whole_node_killed(source, whole, tmp_path, cluster):
    dead: list[Any] = []

    def pull_the_plug(over: threading.Event) -> None:
        while not over.wait(0.01):
            for node in cluster.both:
                raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
                if workers_at_work(raylet):
                    _kill_all(raylet)
                    dead.append(node)
                    return

    with meanwhile(pull_the_plug):
        convert(recipe(source, tmp_path, num_workers=4))
    assert len(dead) == 1
    assert contents(tmp_path) == whole
    assert ray.is_initialized()  # the host program's connection stays
    late = time.monotonic() + 60  # Ray asks its nodes for signs of life now and then
    while sum(node["Alive"] for node in ray.nodes()) != 2:
        assert time.monotonic() < late
        time.sleep(0.5)


def _kill_all(process: Any) -> None:
    for one in [*process.children(recursive=True), process]:
        try:
            one.kill()
        except psutil.Error:
            continue


def test_a_batch_side_by_side(source, whole, tmp_path):
    jobs = []
    for number, output in enumerate(outputs(tmp_path)):
        job = {"source": {"path": str(source)}, **output}
        jobs.append({**job, "performance": {"device": "cpu", "executor": "ray", "num_workers": 1 + number % 2}})
    result = convert_batch(jobs, at_once=2)
    assert {one.state for one in result.jobs} == {"done"}
    assert contents(tmp_path) == whole


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_and_resumed(source, whole, tmp_path, number, code):
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe(source, tmp_path / "out", num_workers=2)))
    line = [sys.executable, "-m", "converter_core", "convert", str(path)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        children = psutil.Process(process.pid)
        while not any(b'"weight"' in path.read_bytes() for path in (tmp_path / "out").glob("*/.*/journal.jsonl")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        started = children.children(recursive=True)
        os.kill(process.pid, number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "finished weights are kept, and the same command resumes" in err
    assert "Traceback" not in err
    _, alive = psutil.wait_procs(started, timeout=20)
    assert alive == []
    assert not [name for name in contents(tmp_path / "out") if ".partial" not in name]
    result = convert(recipe(source, tmp_path / "out", num_workers=2))
    assert contents(tmp_path / "out") == whole
    assert sum(one.resumed["tensors"] for one in result.outputs) > 0


def test_an_address_where_nobody_listens(source, tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with pytest.raises(ConversionError, match=f"RAY_ADDRESS=127.0.0.1:{port}: no cluster answers there"):
        convert(recipe(source, tmp_path))
