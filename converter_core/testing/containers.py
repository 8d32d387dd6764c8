"""The kit for containers."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch

from ..api.containers import Container
from ..api.formats import UNQUANTIZED
from ..api.local_file import LocalFile
from ..api.values import FileLayout, OutputTensor, PlannedWeight, TensorSpec, WeightInfo
from ..containers.find import HEAD
from ..containers.tensor_file import TensorFile
from ..errors import CheckpointError
from ..planning.validate import spans
from .options import check_class

if TYPE_CHECKING:
    from torch import Tensor

SHAPES = ((5,), (3, 4), (2, 3, 2), (7, 1))
"""Of plain tensors; of packed ones the last dimension is two blocks."""


class ContainerConformance:
    """Subclass it with ``container = MyFormat()``; once more with ``write`` for what another library writes.

    metadata: values of each type that the format has. A container that only reads gives ``write`` and ``specs``.
    """

    container: Container
    metadata: ClassVar[Mapping[str, Any]] = {"note": "text", "of": "another kind"}

    def specs(self) -> Mapping[str, TensorSpec]:
        """The tensors that are tried, by key: of each dtype one."""
        plain = sorted(self.container.dtypes)
        found = {f"t.{dtype}": TensorSpec(dtype, SHAPES[n % len(SHAPES)]) for n, dtype in enumerate(plain)}
        for dtype, block in self.container.blocks.items():
            found[f"p.{dtype}"] = TensorSpec(dtype, (3, 2 * block[0]), block)
        return found

    def write(self, path: Path, tensors: Mapping[str, tuple[TensorSpec, bytes]]) -> None:
        """A file with these tensors (spec and bytes of each) and ``metadata``; by ``place``, where not overridden."""
        placed = self._placed({key: spec for key, (spec, _) in tensors.items()})
        content = bytearray(placed.size)
        content[: len(placed.header)] = placed.header
        for key, (_, data) in tensors.items():
            content[placed.offsets[key] : placed.offsets[key] + len(data)] = data
        path.write_bytes(content)

    def test_it_is_a_plugin(self) -> None:
        check_class(self.container, Container)

    def test_what_is_written_is_read(self) -> None:
        tensors = self._tensors()
        with self._written(tensors) as path, _opened(path, self.container) as file:
            found = {key: file.tensors.get(key) for key in tensors}
            expected = {key: spec for key, (spec, _) in tensors.items()}
            assert found == expected, f"read {found}, written was {expected}"
            assert set(file.tensors) == set(tensors), f"also reads {sorted(set(file.tensors) - set(tensors))}"
            for key, (spec, data) in tensors.items():
                whole, part = bytearray(spec.nbytes), bytearray(spec.nbytes // 2)
                file.read(key, 0, memoryview(whole))
                assert bytes(whole) == data, f"{key}: other bytes"
                file.read(key, spec.nbytes - len(part), memoryview(part))
                assert bytes(part) == data[len(data) - len(part) :], f"{key}: other bytes when its end alone is read"

    def test_metadata_comes_back(self) -> None:
        if self._reads_only():
            return
        with self._written(self._tensors()) as path, _opened(path, self.container) as file:
            for key, value in self.metadata.items():
                found = file.metadata.get(key)
                same = (type(found), found) == (type(value), value)
                assert same, f"metadata {key!r} is {found!r}, written was {value!r}"

    def test_its_files_are_recognised(self) -> None:
        if type(self.container).recognises(b"") or not (self.container.magic or self._tells()):
            return
        with self._written(self._tensors()) as path:
            head = path.read_bytes()[:HEAD]
            assert type(self.container).recognises(head), f"a file that begins with {head!r} is not recognised"
        for other in (b"", b"\0" * HEAD, b"{}", bytes(range(HEAD))):
            assert not type(self.container).recognises(other), f"recognises {other!r}"

    def test_a_cut_file_is_refused(self) -> None:
        with self._written(self._tensors()) as path:
            whole = path.read_bytes()
            steps = sorted({*range(min(len(whole), 40)), *range(0, len(whole), max(1, len(whole) // 60))})
            for length in steps:
                path.write_bytes(whole[:length])
                with pytest.raises(CheckpointError, match=path.name):
                    self._check(path)
                    pytest.fail(f"of {len(whole)} bytes the first {length} are taken for the file")

    def test_a_damaged_header_is_read_or_refused(self) -> None:
        """Never another exception, and never a tensor outside the file."""
        choose = random.Random(0)
        with self._written(self._tensors()) as path:
            whole = path.read_bytes()
            with _opened(path, self.container) as file:
                header = min(file._contents.header or len(whole), len(whole))
            for _ in range(150):
                changed = bytearray(whole)
                for _ in range(choose.randrange(1, 4)):
                    changed[choose.randrange(header)] = choose.choice((0, 1, 127, 255, choose.randrange(256)))
                path.write_bytes(changed)
                try:
                    self._check(path)
                except CheckpointError as error:
                    message = str(error)
                    assert "cannot read it" not in message, f"raises something else than CheckpointError: {message}"
                    assert path.name in message, f"a message without the file's name: {message}"

    def test_its_files_are_laid_out_soundly(self) -> None:
        if self._reads_only():
            return
        specs = self.specs()
        placed = self._placed(specs)
        assert set(placed.offsets) == set(specs), f"places {sorted(placed.offsets)}, asked for {sorted(specs)}"
        wrong = list(spans(placed, specs))
        assert not wrong, "; ".join(wrong)
        assert placed == self._placed(specs), "the same tensors are placed elsewhere when asked again"

    def test_a_file_of_one_tensor_and_one_of_none(self) -> None:
        if self._reads_only():
            return
        for specs in ({}, dict([next(iter(self.specs().items()))])):
            tensors = {key: (spec, bytes(spec.nbytes)) for key, spec in specs.items()}
            with self._written(tensors) as path, _opened(path, self.container) as file:
                assert set(file.tensors) == set(specs)

    def test_the_formats_own_library_agrees(self) -> None:
        tensors = self._tensors()
        with self._written(tensors) as path:
            found = self.container.reference(str(path))
            if found is not None:
                expected = {key: spec for key, (spec, _) in tensors.items()}
                assert dict(found) == expected, f"the library reads {dict(found)}, written was {expected}"

    def _tensors(self) -> dict[str, tuple[TensorSpec, bytes]]:
        choose = random.Random(0)
        return {
            key: (spec, bytes(choose.randrange(2 if spec.dtype == "BOOL" else 256) for _ in range(spec.nbytes)))
            for key, spec in self.specs().items()
        }

    def _placed(self, specs: Mapping[str, TensorSpec]) -> FileLayout:
        weights: Sequence[PlannedWeight] = [
            PlannedWeight(WeightInfo(key, {}), key, spec, UNQUANTIZED, (OutputTensor(key, "weight", spec),))
            for key, spec in specs.items()
        ]
        return self.container.place(weights, {**self.container.metadata, **self.metadata})

    @contextmanager
    def _written(self, tensors: Mapping[str, tuple[TensorSpec, bytes]]) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"file{self.container.suffixes[0]}"
            self.write(path, tensors)
            yield path

    def _check(self, path: Path) -> None:
        with _opened(path, self.container) as file:
            for key, spec in file.tensors.items():
                if spec.nbytes:
                    file.read(key, spec.nbytes - 1, memoryview(bytearray(1)))

    def _reads_only(self) -> bool:
        return type(self.container).place is Container.place

    def _tells(self) -> bool:
        return type(self.container).recognises.__func__ is not Container.recognises.__func__  # type: ignore[attr-defined]


@contextmanager
def _opened(path: Path, container: Container) -> Iterator[TensorFile]:
    file = TensorFile(LocalFile(path), lambda source: container)
    try:
        yield file
    finally:
        file.close()


def tensor_of(spec: TensorSpec, data: bytes) -> Tensor:
    """A tensor of these bytes, for a library that writes tensors."""
    from ..api.tensors import typed

    return typed(torch.frombuffer(bytearray(data), dtype=torch.uint8).clone(), spec)
