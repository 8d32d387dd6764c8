"""Batch files: which jobs they hold, and what is wrong with them, with lines and nearest names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from converter_core import RecipeError
from converter_core.recipe.batch import load_batch
from converter_core.recipe.load import load_recipe

LIST = """\
jobs:
  - recipes/one.yaml
  - name: second
    source: {path: in}
    quantization: {method: int8}
    output: {path: out/two}
performance: {device: cpu, num_workers: 2}
"""
MATRIX = """\
matrix:
  models: [in/Wan2.1-I2V, {name: small, path: in/a.safetensors, type: wan_dit}]
  schemes: [int8, {name: fine, method: int8, options: {scale_rule: mse}}]
  targets: [lightx2v, {name: own, format: plain, dtype: float16}]
  layouts: [single_file, {layout: chunked, chunk_size: 1GiB}]
  output: {path: "out/{model}/{scheme}-{target}-{layout}", name: "{model}_{scheme}", overwrite: true}
  exclude: [{scheme: fine, target: own}, {model: small, layout: chunked}]
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "jobs.yaml"
    path.write_text(text)
    return path


def problems(path: Any, **more: Any) -> list[str]:
    with pytest.raises(RecipeError) as found:
        load_batch(path, **more)
    return list(found.value.problems)


def test_a_list_of_recipes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    own = "source: {path: in}\noutput: {path: out/one}\nperformance: {num_workers: 1}\n"
    (tmp_path / "recipes/one.yaml").write_text(own)
    batch = load_batch(written(tmp_path, LIST))
    one, two = batch.jobs
    assert (one.name, two.name, batch.at_once) == ("recipes/one.yaml", "second", 1)
    assert one.recipe.output.path == "out/one"
    assert (one.recipe.performance.num_workers, one.recipe.performance.device) == (1, "auto")
    assert (two.recipe.performance.num_workers, two.recipe.performance.device) == (2, "cpu")
    assert two.recipe.where("quantization.method") == f"{tmp_path}/jobs.yaml:5: quantization.method"
    assert two.recipe.where("performance.device") == f"{tmp_path}/jobs.yaml:7: performance.device"


def test_every_combination_of_a_matrix_but_the_excluded(tmp_path):
    jobs = {job.name: job.recipe for job in load_batch(written(tmp_path, MATRIX)).jobs}
    assert list(jobs) == [
        "Wan2.1-I2V/int8/lightx2v/single_file",
        "Wan2.1-I2V/int8/lightx2v/chunked",
        "Wan2.1-I2V/int8/own/single_file",
        "Wan2.1-I2V/int8/own/chunked",
        "Wan2.1-I2V/fine/lightx2v/single_file",
        "Wan2.1-I2V/fine/lightx2v/chunked",
        "small/int8/lightx2v/single_file",
        "small/int8/own/single_file",
        "small/fine/lightx2v/single_file",
    ]
    chunked = jobs["Wan2.1-I2V/int8/own/chunked"].as_dict()
    assert chunked["source"] == {
        "path": "in/Wan2.1-I2V",
        "lora_numerics": "exact",
        "on_unmatched": "error",
        "dequantize": False,
    }
    assert chunked["quantization"] == {"method": "int8"}
    assert chunked["target"] == {"format": "plain", "layout": "chunked", "chunk_size": "1GiB", "dtype": "float16"}
    assert chunked["output"] == {
        "path": "out/Wan2.1-I2V/int8-own-chunked",
        "name": "Wan2.1-I2V_int8",
        "copy_metadata": False,
        "overwrite": True,
    }
    small = jobs["small/fine/lightx2v/single_file"]
    assert (small.source.path, small.source.type) == ("in/a.safetensors", "wan_dit")
    assert small.quantization.options == {"scale_rule": "mse"}


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("matrix:", "matirx:", ":1: matirx: unknown key 'matirx'; did you mean 'matrix'?"),
        ("[int8, {", "[itn8, {", ":3: quantization.method: unknown quantizer 'itn8'; did you mean 'int8'?"),
        ("scale_rule", "scale_rul", ":3: quantization.options.scale_rul: unknown option of int8 'scale_rul'; did you"),
        ("chunked", "chunkde", ":5: target.layout: unknown layout 'chunkde'; did you mean 'chunked'?"),
        ("format: plain", "formt: plain", ":4: matrix.targets[1].formt: unknown key 'formt'; did you mean 'format'?"),
        ("{layout}", "{layuot}", ":6: matrix.output.path: unknown placeholder 'layuot'; did you mean 'layout'?"),
        ("-{layout}", "", ":6: output.path: out/Wan2.1-I2V/int8-lightx2v of Wan2.1-I2V/int8/lightx2v/chunked is the"),
        ("{scheme: fine", "{scheme: fien", ":7: matrix.exclude[0].scheme: unknown scheme 'fien'; did you mean 'fine'?"),
        ("name: fine", "name: int8", ":3: matrix.schemes[1]: is called 'int8' as matrix.schemes[0] is; give it"),
        ("dtype: float16", "layout: by_block", ":4: matrix.targets[1].layout: cannot stand beside matrix.layouts"),
        (
            "{scheme: fine",
            "{layout: single_file}, {layout: chunked}, {scheme: fine",
            ":7: matrix.exclude: excludes every",
        ),
        ("models: [in/Wan2.1-I2V, ", "model: [in/Wan2.1-I2V, ", ":2: matrix.model: unknown key 'model'; did you mean"),
    ],
)
def test_what_is_wrong_with_a_matrix(tmp_path, before, after, expected):
    assert before in MATRIX
    found = problems(written(tmp_path, MATRIX.replace(before, after)))
    assert found[0].startswith(f"{tmp_path}/jobs.yaml{expected}")
    assert len(found) == len(set(found)) <= 5


def test_all_jobs_are_checked_and_told_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = LIST.replace("int8", "itn8").replace("device: cpu", "device: cup").replace("path: in", "pth: in")
    found = problems(written(tmp_path, text))
    assert [one.partition(": ")[0] for one in found] == [f"{tmp_path}/jobs.yaml:{line}" for line in (2, 4, 7, 5)]
    assert "recipes/one.yaml: cannot be read" in found[0]


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (("a", "b/../a"), "output.path: b/../a of a is the folder of a too; give each output a folder of its own"),
        (("a", "a/b"), "output.path: a/b of b lies inside the output of a; give each output a folder of its own"),
    ],
)
def test_outputs_of_two_jobs_lie_apart(tmp_path, monkeypatch, paths, expected):
    monkeypatch.chdir(tmp_path)
    found = problems([{"source": {"path": "in"}, "output": {"path": path}} for path in paths])
    assert found == [f"jobs[1]: {expected}"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({}, "batch: holds no job; list recipes under jobs, or write a matrix"),
        ({"jobs": [3]}, "jobs[0]: must be the path of a recipe, or a recipe"),
        (
            {"jobs": [{"name": 3, "source": {"path": "a"}, "output": {"path": "b"}}]},
            "jobs[0].name: must be text, not 3",
        ),
        ({"jobs": [{"source": {"path": "a"}}]}, "jobs[0]: output.path: is required"),
        ({"at_once": 0, "jobs": []}, "at_once: must be at least 1, not 0"),
        ({"matrix": {"models": ["a"], "schemes": [], "output": {"path": "b"}}}, "matrix.schemes: is empty; list at"),
        ({"matrix": {"schemes": ["int8"], "output": {"path": "b"}}}, "matrix.models: is required"),
    ],
)
def test_what_no_batch_is(data, expected):
    assert problems(data)[0].startswith(expected)


def test_an_override_belongs_to_every_job(tmp_path):
    path, labels = written(tmp_path, MATRIX), {"performance.device": "--device"}
    batch = load_batch(path, {"performance.device": "cpu"}, labels=labels)
    assert {job.recipe.performance.device for job in batch.jobs} == {"cpu"}
    (found,) = problems(path, overrides={"performance.device": "x"}, labels=labels)
    assert found.startswith("--device: performance.device: unknown device 'x'")


def test_recipe_and_batch_are_told_apart(tmp_path):
    recipe = "source: {path: in}\nquantization: {method: int8}\noutput: {path: out}\n"
    assert problems(written(tmp_path, recipe)) == [
        f"{tmp_path}/jobs.yaml: is a recipe, not a batch; convert it by itself, or list it under jobs"
    ]
    with pytest.raises(RecipeError) as refused:
        load_recipe(written(tmp_path, "jobs: [one.yaml]\n"))
    assert refused.value.problems == (f"{tmp_path}/jobs.yaml: is a batch of recipes; run model-converter batch on it",)
