"""A compiled library that cannot be used leaves its work to torch, with one warning."""

from __future__ import annotations

from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from converter_core.native import loader
from converter_core.verification import error_stats


def place(folder: Path, data: bytes) -> str:
    (folder / f"_kernels{EXTENSION_SUFFIXES[-1]}").write_bytes(data)
    return str(folder / "module.py")


@pytest.fixture(scope="module")
def good() -> bytes:
    if error_stats._library is None:
        pytest.skip("the kernels are not compiled")
    return Path(error_stats._library._name).read_bytes()


@pytest.mark.parametrize("data", [b"", b"no library", b"\x7fELF", b"\x7fELF\x02\x01" + bytes(58)])
def test_a_file_that_is_no_library(data: bytes, tmp_path: Path) -> None:
    with pytest.warns(RuntimeWarning, match="cannot be used") as warned:
        assert loader.load_kernels(place(tmp_path, data), "_kernels") is None
    assert len(warned) == 1


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_cut_library(good: bytes, share: float, tmp_path: Path) -> None:
    with pytest.warns(RuntimeWarning, match="cannot be used"):
        assert loader.load_kernels(place(tmp_path, good[: int(len(good) * share)]), "_kernels") is None


def test_a_library_of_another_machine(good: bytes, tmp_path: Path) -> None:
    other = good[:0x12] + b"\xf3\x00" + good[0x14:]
    with pytest.warns(RuntimeWarning, match="cannot be used"):
        assert loader.load_kernels(place(tmp_path, other), "_kernels") is None


def test_a_missing_function(good: bytes, tmp_path: Path) -> None:
    with pytest.warns(RuntimeWarning, match="no_such_kernel"):
        assert loader.load_kernels(place(tmp_path, good), "_kernels", no_such_kernel=()) is None


def test_a_stale_library(good: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "ABI", loader.ABI + 1)
    with pytest.warns(RuntimeWarning, match="another version"):
        assert loader.load_kernels(place(tmp_path, good), "_kernels", compare=()) is None


def test_a_big_endian_machine_uses_none(good: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = place(tmp_path, good)
    assert loader.load_kernels(path, "_kernels", compare=()) is not None
    monkeypatch.setattr(loader.sys, "byteorder", "big")
    assert loader.load_kernels(path, "_kernels", compare=()) is None
