"""Workers as actors of Ray: in the cluster that this process is connected to, in that of ``RAY_ADDRESS``, or else in
one of this machine alone that lives as long as the run. No other is looked for: what Ray would find may be long dead.

Standard Ray and nothing more: an actor for each worker, one CPU each, and a GPU where the device is one.
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from .. import system
from ..errors import ConversionError, PlanError, shown
from ..planning.resources import Resources
from .remote import Died, Pending, Process
from .remote_worker import RemoteWorker

ADDRESS = "RAY_ADDRESS"

_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
"""Nothing is reported to anybody; and a worker without a GPU needs none hidden from it."""

_OBJECTS = 128 << 20
"""Bytes for Ray's store of objects where it is ours: recipes and checksums are all that travels."""

_lock = threading.Lock()
_users = 0
_ours = False


@contextmanager
def connection(workers: int = 0) -> Iterator[ModuleType]:
    """Ray, connected. The last who leaves lets go of what was started here; a connection of the host program stays.

    workers: that one machine is to hold, if the cluster begins here.
    """
    global _users, _ours
    with _lock:
        ray = _import()
        if not ray.is_initialized():
            _connect(ray, workers)
            _ours = True
        _users += 1
    try:
        yield ray
    finally:
        with _lock:
            _users -= 1
            if not _users and _ours:
                _ours = False
                ray.shutdown()


def _import() -> ModuleType:
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        with _own_signals():
            ray: ModuleType = importlib.import_module("ray")
    except ImportError:
        raise PlanError("performance.executor: ray is not installed: pip install 'model-converter[ray]'") from None
    return ray


def _connect(ray: ModuleType, workers: int) -> None:
    options = {"log_to_driver": False, "logging_level": "ERROR"}
    address = os.environ.get(ADDRESS)
    with _own_signals():
        if not address:
            cpus = max(workers, system.cores())
            ray.init("local", num_cpus=cpus, include_dashboard=False, object_store_memory=_OBJECTS, **options)
            return
        try:
            _knock(address)
            ray.init(address, **options)
        except (OSError, RuntimeError, ValueError) as error:
            first = str(error).strip().partition("\n")[0]
            raise ConversionError(
                f"{ADDRESS}={shown(address)}: no cluster answers there ({first}); correct it, or unset it to work on "
                "this machine alone"
            ) from error


def _knock(address: str) -> None:
    """OSError where nobody listens: Ray itself would try for minutes, and not to be interrupted."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray takes SIGTERM for itself, when it is imported and when it begins."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def ray_cluster(resources: Resources) -> Iterator[RayCluster]:
    with connection(resources.workers) as ray:
        yield RayCluster(ray, resources)


class RayCluster:
    def __init__(self, ray: ModuleType, resources: Resources) -> None:
        self.ray = ray
        self.needs = {"CPU": 1.0} if resources.backend.last_resort else {"CPU": 1.0, "GPU": 1.0}
        there = ray.cluster_resources()
        self.count = resources.workers or max(1, int(there.get(self.scarcest, 0)))
        self.actor = ray.remote(num_cpus=1, num_gpus=self.needs.get("GPU", 0), max_restarts=0)(RemoteWorker)

    @property
    def scarcest(self) -> str:
        return "GPU" if "GPU" in self.needs else "CPU"

    def start(self) -> Process:
        return _Actor(self.ray, self.actor.remote())

    def lacks(self) -> str:
        there = self.ray.cluster_resources()
        missing = [kind for kind, amount in self.needs.items() if there.get(kind, 0) < amount]
        if not missing:
            return ""
        nodes = sum(node["Alive"] for node in self.ray.nodes())
        return f"a worker needs a {' and a '.join(missing)}, and none of the {nodes} nodes of the cluster has one"


class _Actor:
    def __init__(self, ray: ModuleType, handle: Any) -> None:
        self.ray = ray
        self.handle = handle

    def ask(self, method: str, *args: Any) -> Pending:
        return _Answer(self.ray, getattr(self.handle, method).remote(*args))

    def end(self) -> None:
        self.ray.kill(self.handle, no_restart=True)


class _Answer:
    def __init__(self, ray: ModuleType, reference: Any) -> None:
        self.ray = ray
        self.reference = reference

    def wait(self, seconds: float) -> bool:
        return bool(self.ray.wait([self.reference], timeout=seconds)[0])

    def result(self) -> Any:
        errors = self.ray.exceptions
        try:
            return self.ray.get(self.reference)
        except (errors.RayActorError, errors.WorkerCrashedError, errors.ObjectLostError) as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise Died(" ".join(lines[:6]) or type(error).__name__) from error
