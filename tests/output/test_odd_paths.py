"""Output paths and side files that no system expects: a message, or the conversion, and never a traceback."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from converter_core import ConverterError, Registry, convert, make_plan

from .conftest import Asking


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("loop", "is no folder that can be written to"),
        ("loop/x", "is no folder that can be written to"),
        ("dangling", "is a link that leads nowhere"),
        ("dangling/x", "No such file or directory"),
        ("file", "is a file, or lies in one"),
        ("file/x", "is a file, or lies in one"),
        ("a" * 300, "name too long"),
    ],
)
def test_output_paths(ask: Asking, plugins: Registry, tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "file").touch()
    before = sorted(os.listdir(tmp_path))  # noqa: PTH208
    with pytest.raises(ConverterError, match=f"(?i){said}"):
        convert(ask("int8", tmp_path / name), registry=plugins)
    assert sorted(os.listdir(tmp_path)) == before  # noqa: PTH208


def test_a_path_that_is_no_unicode(ask: Asking, plugins: Registry, tmp_path: Path) -> None:
    recipe = ask("int8", tmp_path / "a\udcffb")
    assert convert(recipe, registry=plugins).status == "done"
    assert convert(recipe, registry=plugins).status == "already done"


def test_a_side_file_whose_name_is_no_unicode(
    ask: Asking, plugins: Registry, tmp_path: Path, tiny_source: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny_source, source)
    (source / "bad\udcff.txt").touch()
    with pytest.raises(ConverterError, match=r"bad.udcff\.txt: its name cannot be"):
        make_plan(ask("int8") | {"source": {"path": str(source)}}, plugins)
