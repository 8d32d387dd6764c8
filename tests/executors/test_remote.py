"""Jobs done by processes of a cluster: here a cluster whose processes are objects, which die when a test says so."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from converter_core import ConversionError, ConverterError, PlanError, RecipeError, convert, load_recipe, make_plan
from converter_core.engine import ray_cluster, remote, remote_worker
from converter_core.engine.remote import Died
from converter_core.engine.remote_worker import RemoteWorker
from converter_core.output.manifest import load_manifest
from converter_core.planning import resources

Ask = Callable[[RemoteWorker, str, tuple[Any, ...]], Any]


class Answer:
    """Done when it is asked for, as a process far away is not."""

    def __init__(self, ask: Callable[[], Any]) -> None:
        self.ask = ask

    def wait(self, seconds: float) -> bool:
        return True

    def result(self) -> Any:
        return self.ask()


class Never(Answer):
    """There is no room in the cluster."""

    def wait(self, seconds: float) -> bool:
        return False


class Process:
    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.worker = RemoteWorker()

    def ask(self, method: str, *args: Any) -> Answer:
        if self.cluster.full:
            return Never(lambda: None)
        return Answer(lambda: self.cluster.ask(self.worker, method, args))

    def end(self) -> None:
        self.cluster.ended += 1
        self.worker._stack.close()  # what the end of a process does


class Cluster:
    """``ask``: what becomes of a question."""

    def __init__(self, ask: Ask, count: int) -> None:
        self.ask = ask
        self.count = count
        self.started = self.ended = 0
        self.full = False
        self.lacking = ""

    def start(self) -> Process:
        self.started += 1
        return Process(self)

    def lacks(self) -> str:
        return self.lacking


def answered(worker: RemoteWorker, method: str, args: tuple[Any, ...]) -> Any:
    return getattr(worker, method)(*args)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Cluster]:
    """cluster(ask, count): runs with ``executor: ray`` get this one."""
    monkeypatch.setattr(resources, "find_spec", lambda name: True)
    # this process is the suite's
    monkeypatch.setattr(remote_worker, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(remote_worker.torch, "set_num_threads", lambda count: None)

    def make(ask: Ask = answered, count: int = 2) -> Cluster:
        made = Cluster(ask, count)

        @contextmanager
        def found(asked: Any) -> Iterator[Cluster]:
            yield made

        monkeypatch.setattr(ray_cluster, "ray_cluster", found)
        return made

    return make


def far(recipe: dict[str, Any], output: Path) -> dict[str, Any]:
    return {**recipe, "output": {**recipe["output"], "path": str(output)}, "performance": {"executor": "ray"}}


def weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".safetensors"}


def test_the_bytes_are_those_of_threads(asked, cluster, tmp_path):
    recipe = asked("nvfp4", **{"target.layout": "by_block"})
    convert(recipe)
    made = cluster()
    events = []
    result = convert(far(recipe, tmp_path / "far"), progress=events.append)
    assert weights(tmp_path / "far") == weights(tmp_path / "out")
    here, there = (load_manifest(tmp_path / folder / "wan.manifest.json")["source"] for folder in ("out", "far"))
    assert here == there
    assert (made.started, made.ended) == (2, 2)
    assert events[-1].done == events[-1].total > 0
    assert result.outputs[0].counts == {"nvfp4": 36, "none": 83}


def test_a_worker_that_dies_costs_its_job(asked, cluster, tmp_path):
    """Before, while and after it writes; the job is done by whoever is there."""
    recipe = asked()
    convert(recipe)
    deaths: list[int] = []

    def mortal(worker: RemoteWorker, method: str, args: tuple[Any, ...]) -> Any:
        if method == "do" and args[0] in (0, 7, 11) and deaths.count(args[0]) < 2:
            deaths.append(args[0])
            if args[0] == 7:  # it has written all, and nobody hears of it
                worker.do(*args)
            raise Died("shot")
        return answered(worker, method, args)

    made = cluster(mortal)
    convert(far(recipe, tmp_path / "far"))
    assert sorted(deaths) == [0, 0, 7, 7, 11, 11]
    assert made.started == made.ended == 8
    assert weights(tmp_path / "far") == weights(tmp_path / "out")


def test_a_job_that_kills_every_worker_ends_the_run_and_keeps_the_rest(asked, cluster, tmp_path):
    recipe = asked()
    with make_plan(recipe) as plan:
        name = plan.jobs[5].info.name

    def deadly(worker: RemoteWorker, method: str, args: tuple[Any, ...]) -> Any:
        if method == "do" and args[0] == 5:
            raise Died("out of memory")
        return answered(worker, method, args)

    cluster(deadly, 1)
    with pytest.raises(ConversionError) as found:
        convert(far(recipe, tmp_path / "far"))
    assert str(found.value).startswith(f"{name}: 3 workers died while they converted it; the last: out of memory.")
    assert "lower performance.max_memory or num_workers" in str(found.value)
    assert weights(tmp_path / "far") == {}
    cluster()
    result = convert(far(recipe, tmp_path / "far"))
    assert result.outputs[0].resumed["tensors"] >= 5
    convert(recipe)
    assert weights(tmp_path / "far") == weights(tmp_path / "out")


def test_workers_that_cannot_begin(asked, cluster, tmp_path):
    def stillborn(worker: RemoteWorker, method: str, args: tuple[Any, ...]) -> Any:
        raise Died("no module named converter_core")

    made = cluster(stillborn, 1)
    with pytest.raises(ConversionError, match="3 workers died one after the other before they could begin"):
        convert(far(asked(), tmp_path / "far"))
    assert made.started == made.ended == 3


def test_a_worker_that_plans_something_else_is_refused(asked, cluster, tmp_path):
    def older(worker: RemoteWorker, method: str, args: tuple[Any, ...]) -> Any:
        if method == "prepare":
            marks = {n: ("0" * 64, {**made_of, "version of acme": "1"}) for n, (_, made_of) in args[0].marks.items()}
            args = (replace(args[0], marks=marks),)
        return answered(worker, method, args)

    cluster(older)
    with pytest.raises(ConversionError, match="another conversion than the driver: version of acme differ"):
        convert(far(asked(), tmp_path / "far"))


def test_a_worker_that_reads_another_source_is_refused(asked, cluster, tmp_path):
    """Its header is the same, and its file was written at another time."""

    def apart(worker: RemoteWorker, method: str, args: tuple[Any, ...]) -> Any:
        if method == "prepare":
            args = (replace(args[0], versions={name: [1] for name in args[0].versions}),)
        return answered(worker, method, args)

    cluster(apart)
    with pytest.raises(ConversionError, match=r"than the driver: the modification time of .*safetensors.* differ"):
        convert(far(asked(), tmp_path / "far"))


def test_a_worker_that_does_not_see_the_output_is_refused(asked, cluster, tmp_path):
    def elsewhere(worker: RemoteWorker, method: str, args: tuple[Any, ...]) -> Any:
        if method == "prepare":
            recipe = {**args[0].recipe, "output": {**args[0].recipe["output"], "path": str(tmp_path / "own")}}
            args = (replace(args[0], recipe=recipe),)
        return answered(worker, method, args)

    cluster(elsewhere)
    with pytest.raises(ConversionError, match=r"own: the driver's output is not here; output.path must lie on"):
        convert(far(asked(), tmp_path / "far"))


def test_a_worker_that_writes_into_a_folder_of_its_own_is_found_out(asked, cluster, tmp_path):
    """What an earlier run left on its node has the name and the fingerprint of ours."""

    def apart(worker: RemoteWorker, method: str, args: tuple[Any, ...]) -> Any:
        if method == "prepare":
            shutil.copytree(tmp_path / "far", tmp_path / "own", dirs_exist_ok=True)
            recipe = {**args[0].recipe, "output": {**args[0].recipe["output"], "path": str(tmp_path / "own")}}
            args = (replace(args[0], recipe=recipe),)
        return answered(worker, method, args)

    cluster(apart, 1)
    with pytest.raises(ConversionError, match="far: what a worker has written there is not there for the driver"):
        convert(far(asked(), tmp_path / "far"))


def test_what_is_wrong_with_a_weight_is_told_as_ever(asked, cluster, tmp_path):
    """A value that float16 does not hold."""
    recipe = asked("none", **{"target.format": "plain", "target.dtype": "float16"})

    def broken(worker: RemoteWorker, method: str, args: tuple[Any, ...]) -> Any:
        if method == "do":
            worker.plan.stores.base.read = _infinite  # type: ignore[method-assign]
        return answered(worker, method, args)

    cluster(broken)
    with pytest.raises(ConversionError, match=r"inf at \[0.*mend or exclude it in the source checkpoint"):
        convert(far(recipe, tmp_path / "far"))


def _infinite(key: str, begin: int, into: memoryview) -> None:
    into[:] = (b"\x80\x7f" * (len(into) // 2 + 1))[: len(into)]


def test_a_bug_of_a_worker_is_a_bug(asked, cluster, tmp_path):
    def faulty(worker: RemoteWorker, method: str, args: tuple[Any, ...]) -> Any:
        return 1 / 0 if method == "do" else answered(worker, method, args)

    cluster(faulty)
    with pytest.raises(ZeroDivisionError):
        convert(far(asked(), tmp_path / "far"))


def test_an_interrupt_ends_the_workers(asked, cluster, tmp_path):
    made = cluster()

    def interrupt(event: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(far(asked(), tmp_path / "far"), progress=interrupt)
    assert made.started == made.ended


def test_a_cluster_that_has_no_room_is_waited_for_and_one_that_never_has_is_not(asked, cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "PATIENCE", 0.0)
    made = cluster()
    made.full = True
    told: list[int] = []

    def later(event: Any) -> None:
        told.append(event.done)
        if len(told) == 3:
            made.lacking = "a worker needs a GPU, and none of the 2 nodes of the cluster has one"

    with pytest.raises(ConversionError, match="no worker can start: a worker needs a GPU, and none of the 2 nodes"):
        convert(far(asked(), tmp_path / "far"), progress=later)
    assert len(told) >= 3
    assert made.started == made.ended == 2


def test_the_machine_of_the_driver_need_not_have_the_device(asked, cluster, registry):
    """What the workers have, the workers say."""
    cluster()
    recipe = {**asked(), "performance": {"executor": "ray", "device": "hygon_dcu"}}
    with make_plan(recipe, registry, require_device=True) as plan:
        assert not plan.resources.absence
        assert (plan.resources.name, plan.resources.workers) == ("hygon_dcu", 0)
        assert plan.resources.max_memory == 512 << 20
    with pytest.raises(ConverterError, match="hygon_dcu is not here"):
        convert(recipe, registry=registry)


@pytest.mark.parametrize(
    ("performance", "expected"),
    [
        ({"executor": "raay"}, "performance.executor: unknown executor 'raay'; did you mean 'ray'?"),
        (
            {"executor": "ray", "device": "cuda:1"},
            "performance.device: 'cuda:1': executor ray chooses the cards",
        ),
        ({"executor": "ray", "parallel": False, "num_workers": 4}, "performance.num_workers: 4 workers contradict"),
    ],
)
def test_what_a_recipe_cannot_ask_of_a_cluster(asked, registry, performance, expected):
    with pytest.raises(RecipeError) as found:
        load_recipe({**asked(), "performance": performance}, registry=registry)
    assert found.value.problems[0].startswith(expected)


def test_a_cluster_may_have_more_workers_than_this_machine_has_cores(asked, registry):
    recipe = load_recipe({**asked(), "performance": {"executor": "ray", "num_workers": 512}}, registry=registry)
    assert recipe.performance.num_workers == 512


def test_without_ray_it_is_said_what_to_install(asked, registry, monkeypatch):
    monkeypatch.setattr(resources, "find_spec", lambda name: None)
    recipe = {**asked(), "performance": {"executor": "ray"}}
    with make_plan(recipe, registry) as plan:
        assert plan.warnings == ("ray is not installed: pip install 'model-converter[ray]'",)
    with pytest.raises(PlanError, match=r"executor: ray is not installed: pip install 'model-converter\[ray"):
        convert(recipe, registry=registry)
    assert not Path(recipe["output"]["path"]).exists()


def test_what_a_worker_says_is_done_is_on_the_disk(asked, cluster, tmp_path, monkeypatch):
    """Its node may be gone a moment later, and with it all that it had not written yet."""
    settled: list[int] = []
    at_answer: list[int] = []
    monkeypatch.setattr(os, "fdatasync", settled.append)

    def watched(worker: RemoteWorker, method: str, args: tuple[Any, ...]) -> Any:
        found = answered(worker, method, args)
        at_answer.append(len(settled))
        return found

    cluster(watched, 1)
    result = convert(far(asked(), tmp_path / "far"))
    assert at_answer == list(range(sum(result.outputs[0].counts.values()) + 1))


class StubbedRay:
    """What ``RayCluster`` asks of Ray. there: resources of the cluster."""

    def __init__(self, **there: float) -> None:
        self.there = there
        self.asked: dict[str, Any] = {}

    def cluster_resources(self) -> dict[str, float]:
        return self.there

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True}, {"Alive": False}, {"Alive": True}]

    def remote(self, **options: Any) -> Callable[[Any], Any]:
        self.asked = options
        return lambda cls: cls


@pytest.mark.parametrize(
    ("device", "asked_for", "there", "count", "gpus", "lacks"),
    [
        ("cpu", None, {"CPU": 64.0, "GPU": 8.0}, 64, 0, ""),
        ("cpu", 5, {"CPU": 64.0}, 5, 0, ""),
        ("cuda", None, {"CPU": 64.0, "GPU": 8.0}, 8, 1, ""),
        ("cuda", 3, {"CPU": 64.0}, 3, 1, "a worker needs a GPU, and none of the 2 nodes of the cluster has one"),
    ],
)
def test_what_is_asked_of_ray(asked, registry, device, asked_for, there, count, gpus, lacks):
    performance = {"executor": "ray", "device": device, "num_workers": asked_for}
    recipe = load_recipe({**asked(), "performance": performance}, registry=registry)
    stub: Any = StubbedRay(**there)
    made = ray_cluster.RayCluster(stub, resources.choose(recipe, registry))
    assert made.count == count
    assert stub.asked == {"num_cpus": 1, "num_gpus": gpus, "max_restarts": 0}
    assert made.lacks() == lacks
