"""``--also``: further outputs of one read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from converter_core.cli import run

NONE = "none:plain"
ALSO = ["--also", "fp8", "--also", f"{NONE}:by_block"]


def weight_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".safetensors"}


def given(source: Path, output: Path, method: str = "int8", *more: str) -> list[str]:
    chosen = ["--linear-type", method, "--quantized"] if method != "none" else []
    return ["convert", "--source", str(source), "--output", str(output), *chosen, "--device", "cpu", "-q", *more]


def test_each_output_is_what_a_conversion_of_its_own_gives(wan_source: Path, tmp_path: Path) -> None:
    together = tmp_path / "together"
    assert run(given(wan_source, together, "int8", "--output-name", "mine", *ALSO)) == 0
    plain = ["--set", "target.format=plain", "--save-by-block"]
    alone = {
        "lightx2v_int8_single_file": ("int8", ["--output-name", "mine"]),
        "lightx2v_fp8_single_file": ("fp8", []),
        "plain_none_by_block": ("none", plain),
    }
    assert {path.name for path in together.iterdir()} == set(alone)
    for name, (method, flags) in alone.items():
        assert run(given(wan_source, tmp_path / name, method, *flags)) == 0
        assert weight_files(together / name) == weight_files(tmp_path / name)


def test_what_a_further_output_takes_over(wan_source: Path, tmp_path: Path, capsys: Any) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        json.dumps(
            {
                "source": {"path": str(wan_source)},
                "quantization": {"method": "int8", "options": {"scale_rule": "mse"}},
                "target": {"format": "plain", "layout": "chunked", "chunk_size": 20, "dtype": "float16"},
                "output": {"path": str(tmp_path / "o"), "copy_metadata": True},
            }
        )
    )
    assert run(["plan", str(recipe), "--also", "mxfp4", "--also", "int8:lightx2v:single_file", "--json"]) == 0
    main, same, other = json.loads(capsys.readouterr().out)["outputs"]
    assert [Path(one["output"]).name for one in (main, same, other)] == [
        "plain_int8_chunked",
        "plain_mxfp4_chunked",
        "lightx2v_int8_single_file",
    ]
    # all of it but the method and its options; with another layout the chunk size goes too
    assert len(same["files"]) == len(main["files"]) > 2
    assert len(other["files"]) == 1
    assert all("config.json" in one["copies"] for one in (main, same, other))
    assert same["bytes_after"] < other["bytes_after"] == main["bytes_after"]


def test_the_plan_shows_them_side_by_side(wan_source: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    asked = given(wan_source, tmp_path / "o", "int8", "--also", "nvfp4", "--dry-run")
    assert run([part for part in asked if part != "-q"]) == 0
    out = capsys.readouterr().out
    table = out[out.index("Outputs of one read") : out.index("Weights")]
    assert "lightx2v_int8_single_file" in table
    assert "lightx2v_nvfp4_single_file" in table
    assert "LightX2V runs it on NVIDIA sm_120 (RTX 50)" in " ".join(table.split())
    assert "ratio" in table


@pytest.mark.parametrize(
    ("also", "reason"),
    [
        (["int8"], "--also: outputs[1].output.path: is the folder of outputs[0].output.path too"),
        (["fp8", "fp8"], "--also: outputs[2].output.path: is the folder of outputs[1].output.path too"),
        (["int9"], "--also: outputs[1].quantization.method: unknown quantizer 'int9'; did you mean 'int8'?"),
        (["fp8:plian"], "--also: outputs[1].target.format: unknown target 'plian'; did you mean 'plain'?"),
        (["fp8:plain:byblock"], "--also: outputs[1].target.layout: unknown layout 'byblock'; did you mean"),
        ([":plain"], "--also ':plain': write it as SCHEME[:TARGET[:LAYOUT]]; model-converter plugins lists the names"),
        (["a:b:c:d"], "--also 'a:b:c:d': write it as SCHEME[:TARGET[:LAYOUT]]"),
    ],
)
def test_what_is_refused(also: list[str], reason: str, wan_source: Path, tmp_path: Path, capsys: Any) -> None:
    flags = [part for scheme in also for part in ("--also", scheme)]
    assert run(given(wan_source, tmp_path / "o", "int8", *flags)) != 0
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert reason in said
    assert not (tmp_path / "o").exists()


def test_a_recipe_that_lists_outputs(wan_source: Path, tmp_path: Path, capsys: Any) -> None:
    recipe = tmp_path / "r.yaml"
    one = {"quantization": {"method": "int8"}, "output": {"path": str(tmp_path / "o")}}
    recipe.write_text(json.dumps({"source": {"path": str(wan_source)}, "outputs": [one]}))
    assert run(["plan", str(recipe), "--also", "fp8"]) != 0
    assert "--also adds to a recipe of one output; add to this list instead" in capsys.readouterr().err
    recipe.write_text(
        json.dumps({"source": {"path": str(wan_source)}, "outputs": [one], "target": {"format": "plain"}})
    )
    assert run(["plan", str(recipe)]) != 0
    assert "cannot stand beside outputs; move target into each of the outputs" in capsys.readouterr().err
