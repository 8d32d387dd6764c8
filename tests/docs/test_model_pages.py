"""The pages "Models" are what the generator writes; their answers, by a seeded sample of plans; forty lines of code."""

from __future__ import annotations

import importlib.util
import random
import re
import sys
from pathlib import Path

import pytest

from converter_core import load_plugins
from converter_core.api import SourceTensors

DOCS = Path(__file__).parents[2] / "docs"
SAMPLE = 6
_spec = importlib.util.spec_from_file_location("model_matrix", DOCS / "model_matrix.py")
assert _spec
assert _spec.loader
model_matrix = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(model_matrix)
REMEDY = "run python docs/model_matrix.py"


@pytest.fixture(scope="module")
def ours():
    return model_matrix.ours()


@pytest.fixture(scope="module")
def answers():
    return model_matrix.answers_on((DOCS / "models.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", model_matrix.TEXTS)
def test_the_page_is_what_the_generator_writes(name, ours, answers):
    assert (DOCS / name).read_text(encoding="utf-8") == model_matrix.page(name, ours, answers), REMEDY


def test_every_model_and_target_is_there(ours, answers):
    assert list(answers) == [model.name for model in model_matrix.models(ours)], REMEDY
    for targets in answers.values():
        assert set(targets) == set(ours.targets), REMEDY


def test_a_sample_of_the_answers(ours, answers, tmp_path):
    models = {model.name: model for model in model_matrix.models(ours)}
    cells = [
        (name, target, scheme, said)
        for name, targets in answers.items()
        for target, schemes in targets.items()
        for scheme, said in schemes.items()
    ]
    for name, target, scheme, said in random.Random(20).sample(cells, SAMPLE):
        sources = model_matrix.small_sources(models[name], tmp_path)
        found = any(model_matrix.accepted(models[name], target, scheme, source, ours) for source in sources)
        assert found is said, f"{name} as {scheme} for {target}: {REMEDY}"


def test_the_model_of_forty_lines(tmp_path):
    """It is recognised, its missing shard is told, and its rows are what its own checkpoint has."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", (DOCS / "your-own-model.md").read_text(), re.M | re.S)
    assert len(code.strip().splitlines()) <= 40
    path = tmp_path / "my_model.py"
    path.write_text(code)
    spec = importlib.util.spec_from_file_location("my_model", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["my_model"] = module
    try:
        spec.loader.exec_module(module)
        registry = load_plugins(extra=[module])
    finally:
        del sys.modules["my_model"]
    model = registry.models["my_dit"]()
    tensors = SourceTensors(model.synthetic().tensors)
    assert model.recognise(tensors) == "unknown"
    assert list(model.problems(tensors)) == []
    assert {info.module for info in model.weights(tensors) if info.kind == "linear"} == set(model.modules)
    lost = SourceTensors({key: spec for key, spec in tensors.items() if "layers.1." not in key})
    assert any("missing" in problem for problem in model.problems(SourceTensors({**lost, **_one_of(tensors)})))


def _one_of(tensors):
    return {key: spec for key, spec in tensors.items() if key == "layers.1.attn.qkv.weight"}
