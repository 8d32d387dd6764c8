"""The example packages: their own tests pass, and a recipe that names them converts, verifies and resumes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open

from converter_core import RecipeError, convert, load_plugins, make_plan, verify

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
QUANTIZER, TARGET = EXAMPLES / "third_party_quantizer", EXAMPLES / "third_party_target"


def project(folder: Path) -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")
    return tomllib.loads((folder / "pyproject.toml").read_text())["project"]  # type: ignore[no-any-return]


@pytest.fixture
def examples(installed: Any) -> None:
    """Both packages as ``pip install -e`` leaves them: on the path, with their metadata."""
    for folder in (QUANTIZER, TARGET):
        told = project(folder)
        installed(told["name"], told["entry-points"]["converter_core"], folder=folder)


@pytest.mark.parametrize("folder", [QUANTIZER, TARGET], ids=lambda folder: folder.name)
def test_their_own_tests_pass(folder: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


@pytest.mark.usefixtures("examples")
def test_they_are_found_where_they_come_from() -> None:
    registry = load_plugins()
    assert registry.quantizers.origins["ternary"].distribution == "converter-ternary"
    assert registry.targets.origins["tinyrt"].distribution == "converter-tinyrt"
    assert "even_int8" in registry.quantizers
    assert registry.broken == ()


@pytest.mark.usefixtures("examples")
def test_ternary_from_yaml(asked: Any, tmp_path: Path) -> None:
    recipe = asked("ternary", **{"quantization.options": {"threshold": 0.5}, "target.format": "plain"})
    path = tmp_path / "ternary.yaml"
    path.write_text(yaml.safe_dump(recipe))
    assert convert(path).status == "done"
    assert convert(path).status == "already done"

    name = "blocks.0.ffn.0.weight"
    with safe_open(tmp_path / "out" / "wan.safetensors", "pt") as file:
        packed, scale = file.get_tensor(name), file.get_tensor(f"{name}_scale")
        assert json.loads(file.metadata()["plain.formats"])[name] == "ternary"
    source = source_tensor(recipe["source"]["path"], name)
    # the scheme again, in plain words: one row, element by element
    row = source[3].double().abs()
    kept = row > 0.5 * row.mean()
    codes = torch.where(kept, source[3].double().sign(), 0).add(1)
    unpacked = [int(byte) >> shift & 3 for byte in packed[3] for shift in (0, 2, 4, 6)]
    assert unpacked == codes.int().tolist()
    assert scale[3].item() == pytest.approx(row[kept].mean().item(), rel=1e-6)

    (tmp_path / "other.yaml").write_text(path.read_text().replace("threshold: 0.5", "threshold: half"))
    with pytest.raises(RecipeError, match="threshold: must be a number, not 'half'"):
        make_plan(tmp_path / "other.yaml")


@pytest.mark.usefixtures("examples")
def test_one_over_another_is_verified_against_the_source(asked: Any, tmp_path: Path) -> None:
    recipe = asked("even_int8", **{"target.format": "plain"})
    convert(recipe)
    report = verify(tmp_path / "out", recipe["source"]["path"])
    assert report.ok, report
    with safe_open(tmp_path / "out" / "wan.safetensors", "pt") as file:
        factor = file.get_tensor("blocks.0.ffn.0.weight_column_factor")
    assert torch.equal(torch.frexp(factor).mantissa, torch.full_like(factor, 0.5))


@pytest.mark.usefixtures("examples")
def test_a_target_the_core_has_never_heard_of(asked: Any, tmp_path: Path) -> None:
    recipe = asked("int8", **{"target.format": "tinyrt", "target.layout": "by_block"})
    convert(recipe)
    table = json.loads((tmp_path / "out" / "tinyrt_tensors.json").read_text())
    entry = table["blocks.1.self_attn.q.weight"]
    assert entry["format"] == "int8"
    with safe_open(tmp_path / "out" / "block_1.safetensors", "pt") as file:
        codes = file.get_tensor("tinyrt/blocks/1/self_attn/q/weight#q").int() - 128
        scale = file.get_tensor(entry["tensors"]["scale"])
        assert file.metadata()["runtime"] == "tinyrt"
    source = source_tensor(recipe["source"]["path"], "blocks.1.self_attn.q.weight").float()
    assert float((codes * scale - source).norm()) < 0.01 * float(source.norm())
    report = verify(tmp_path / "out", recipe["source"]["path"])
    assert report.ok, report


def source_tensor(folder: str, name: str) -> torch.Tensor:
    (index,) = Path(folder).glob("*.index.json")
    file = json.loads(index.read_text())["weight_map"][name]
    with safe_open(Path(folder) / file, "pt") as opened:
        tensor: torch.Tensor = opened.get_tensor(name)
    return tensor
