"""Output paths and side files that no system expects: a message, or the conversion, and never a traceback."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from converter_core import ConverterError, Registry, convert, make_plan, verify
from converter_core.report.page import write_html

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


def test_a_path_that_is_no_unicode(ask: Asking, plugins: Registry, tmp_path: Path, tiny_source: Path) -> None:
    """Verified too, with the library of the format, which takes no such path, and on a page."""
    out, source = tmp_path / "a\udcffb", tmp_path / "s\udcfe"
    shutil.copytree(tiny_source, source)
    recipe = ask("int8", out) | {"source": {"path": str(source)}}
    assert convert(recipe, registry=plugins).status == "done"
    assert convert(recipe, registry=plugins).status == "already done"
    report = verify(out, source, registry=plugins)
    assert report.ok
    assert report.problems == ()
    write_html(report, tmp_path / "page.html")
    assert "udcffb" in (tmp_path / "page.html").read_text()
    file = out / "block_1.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:8] + data[8:].replace(b"layers.1.up.bias", b"layers.1.up.bios", 1))
    assert "layers.1.up.bias" in {problem.tensor for problem in verify(out, registry=plugins).problems}


def test_a_side_file_whose_name_is_no_unicode(
    ask: Asking, plugins: Registry, tmp_path: Path, tiny_source: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny_source, source)
    (source / "bad\udcff.txt").touch()
    with pytest.raises(ConverterError, match=r"bad.udcff\.txt: its name cannot be"):
        make_plan(ask("int8") | {"source": {"path": str(source)}}, plugins)
