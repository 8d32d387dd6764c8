"""A conversion to an object store that is killed at any request ends with the bytes of an undisturbed one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from converter_plugins.storages._s3_writer import S3Writer

from .conftest import PART, Asking
from .s3 import S3
from .test_outputs import Converting, convert, right, same, stored

__all__ = ["convert", "right"]

DRIVER = Path(__file__).with_name("kill_driver.py")


def drive(mode: str, recipe: Any, *arguments: Any) -> Any:
    command = [sys.executable, str(DRIVER), mode, str(PART), json.dumps(recipe), *map(json.dumps, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_killed_at_some_requests(s3: S3, url: str, ask: Asking, right: Any, tmp_path: Path) -> None:
    points = [
        ("upload_part", 4, "after"),  # sent, and nobody noted it
        ("complete_multipart_upload", 2, "after"),
        ("put_object", 2, "before"),
        ("put_object", 3, "before"),  # all but the manifest
    ]
    *killed, last = drive("at_points", ask(url), points)
    assert [one["killed"] for one in (*killed, last)] == [True] * 4 + [False]
    assert killed[0]["names"] == []
    assert any(name.endswith(".safetensors") for name in killed[1]["names"])
    assert not any("tiny.manifest.json" in one["names"] for one in killed)
    assert "tiny.manifest.json" in last["names"]
    assert last["uploads"] == 0
    assert same(stored(url), right())
    assert [path for path in (tmp_path / "state").rglob("*") if path.name != "model-converter"] == []


def test_killed_while_another_is_replaced(s3: S3, url: str, ask: Asking, convert: Converting, right: Any) -> None:
    convert(ask(url, layout="single_file"))
    points = [("delete_object", 1, "before"), ("delete_object", 1, "after"), ("complete_multipart_upload", 1, "after")]
    told = drive("at_points", ask(url, "fp8", overwrite=True), [*points, ("delete_object", 1, "after")])
    assert ["tiny.manifest.json" in one["names"] for one in told] == [True, False, False, False, True]
    assert same(stored(url), right("fp8", overwrite=True))


@pytest.mark.soak
@pytest.mark.parametrize("layout", ["single_file", "by_block"])
def test_killed_at_random_requests(layout: str, s3: S3, url: str, ask: Asking, right: Any) -> None:
    urls = drive("at_random", ask(url, layout=layout), 7, 50)
    expected = right(layout=layout)
    assert len(urls) > 2
    assert [one for one in urls if not same(stored(one), expected)] == []
    assert S3Writer().uploads(url.rpartition("/")[0]) == []
