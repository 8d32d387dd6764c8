"""The files of tensors that a plan reads from: the checkpoint, and what plugins name beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..api.calibration import CALIBRATION
from ..api.contexts import SourceTensors
from ..api.models import ModelAdapter
from ..api.quantizers import Quantizer
from ..api.tensors import raw, typed
from ..api.values import BASE, TensorSpec
from ..checkpoint.checkpoint import Checkpoint, SourceFile
from ..errors import PlanError, PluginError, unknown


def read_whole(checkpoint: Checkpoint, key: str) -> Tensor:
    """A tensor on the host."""
    spec = checkpoint.tensors[key]
    buffer = torch.empty(spec.nbytes, dtype=torch.uint8)
    checkpoint.read(key, 0, raw(buffer))
    return typed(buffer, spec)


class Stores:
    """``base``, and every other file once, however many plugins name it. Only headers are read until ``read``."""

    def __init__(
        self, base: Checkpoint, open_file: Callable[[str], Checkpoint], calibration: str | None = None
    ) -> None:
        """calibration: path of the file of ``source.calibration``, which every quantizer may refer to."""
        self.base = base
        self._shared = {} if calibration is None else {CALIBRATION: calibration}
        self._open = open_file
        self._files: dict[str, Checkpoint] = {"": base}
        self._seen: dict[str, SourceTensors] = {}
        self._closed = False

    def of(self, owner: ModelAdapter | Quantizer) -> dict[str, SourceTensors]:
        """The tensors of each store that a plugin names."""
        return {name: self._described(path) for name, path in self._paths(owner).items()}

    def path(self, owner: ModelAdapter | Quantizer, store: str) -> str:
        """Empty for the checkpoint itself."""
        if store == BASE:
            return ""
        known = self._paths(owner)
        if store not in known:
            raise PluginError(f"{owner.name} refers to {unknown('store', store, (BASE, *known))}")
        return known[store]

    def tensors(self, owner: ModelAdapter | Quantizer, store: str) -> Mapping[str, TensorSpec]:
        return self._file(self.path(owner, store)).tensors

    def file(self, path: str) -> Checkpoint:
        """One that was opened while planning; empty: the checkpoint."""
        return self._files[path]

    def open(self, path: str) -> Checkpoint:
        """A file that the recipe names."""
        return self._file(path)

    def decode(self, decoded: Checkpoint) -> None:
        """Put the checkpoint as it is decoded in the place of the checkpoint."""
        self.base = self._files[""] = decoded

    def others(self) -> dict[str, Checkpoint]:
        """By path, without the checkpoint."""
        return {path: file for path, file in self._files.items() if path}

    def files_of(self, adapter: ModelAdapter) -> tuple[SourceFile, ...]:
        """Every file that weights are read from: of the checkpoint, and of what the adapter names beside it."""
        others = (
            replace(file, name=f"{store}: {file.name}")
            for store, path in adapter.stores().items()
            for file in self._file(path).files
        )
        return (*self.base.files, *others)

    def check_open(self) -> None:
        """PlanError once they were closed: a plan is carried out once."""
        if self._closed:
            raise PlanError("this plan was carried out already and its source is closed; make a new plan")

    def check_unchanged(self) -> None:
        for file in self._files.values():
            file.check_unchanged()

    def close(self) -> None:
        self._closed = True
        for file in self._files.values():
            file.close()

    def _paths(self, owner: ModelAdapter | Quantizer) -> dict[str, str]:
        shared = self._shared if isinstance(owner, Quantizer) else {}
        return {**shared, **owner.stores()}

    def _described(self, path: str) -> SourceTensors:
        if path not in self._seen:
            file = self._file(path)
            self._seen[path] = SourceTensors(file.tensors, file.metadata, read=partial(read_whole, file))
        return self._seen[path]

    def _file(self, path: str) -> Checkpoint:
        if path not in self._files:
            self._files[path] = self._open(path)
        return self._files[path]
