from __future__ import annotations

import json

import pytest
import torch

from converter_core.api.contexts import ModelFacts, SourceTensors, WeightContext
from converter_core.api.formats import UNQUANTIZED, QuantFormat
from converter_core.api.values import PlannedWeight, TensorRef, TensorSpec, WeightInfo
from converter_core.errors import CheckpointError
from converter_core.plugins.registry import load_plugins
from converter_plugins.targets.plain import Plain

FORMAT_OF = {"none": UNQUANTIZED}
TARGET = Plain()
U8 = TensorSpec("U8", (4, 4))


def context(format: str, name: str = "x.weight") -> WeightContext:
    return WeightContext(WeightInfo(name, {}), name, None, FORMAT_OF.get(format, QuantFormat(format, format)))


def planned(name: str, format: str) -> PlannedWeight:
    return PlannedWeight(
        WeightInfo(name, {"weight": TensorRef(name)}),
        name,
        TensorSpec("BF16", (4, 4)),
        FORMAT_OF.get(format, QuantFormat(format, format)),
        (),
    )


def test_it_is_offered_and_not_the_default() -> None:
    assert load_plugins().targets["plain"] is Plain
    assert not Plain.default


def test_keys() -> None:
    assert [
        TARGET.key(context("none", "x.weight"), role)
        for role in ("weight", "scale", "global_scale", "zero_point", "any_role")
    ] == [
        "x.weight",
        "x.weight_scale",
        "x.weight_global_scale",
        "x.weight_zero_point",
        "x.weight_any_role",
    ]
    assert TARGET.key(context("none", "blocks.0.modulation"), "weight") == "blocks.0.modulation"


def test_any_format_is_stored_as_it_is_and_any_mix_is_fine() -> None:
    parts = {"weight": torch.arange(6).reshape(2, 3), "codebook": torch.tensor(2.5), "zero_point": torch.ones(2, 1)}
    stored = TARGET.encode(context("a_stranger's"), parts)
    assert {role: part.tolist() for role, part in stored.items()} == {
        "weight": [[0, 1, 2], [3, 4, 5]],
        "codebook": 2.5,
        "zero_point": [[1.0], [1.0]],
    }
    assert TARGET.decode(context("a_stranger's"), stored) is stored
    assert TARGET.row_block == 1
    assert not list(
        TARGET.refuse(ModelFacts(), [planned("a.weight", "int8"), planned("b.weight", "nvfp4"), planned("c", "none")])
    )


def test_formats_are_written_to_the_metadata_and_read_back() -> None:
    weights = [planned("b.weight", "nvfp4"), planned("a.weight", "int8"), planned("a.bias", "none")]
    metadata = TARGET.extras(ModelFacts(), weights).metadata
    assert {key: json.loads(value) for key, value in metadata.items()} == {
        "plain.formats": {"a.weight": "int8", "b.weight": "nvfp4"},
        "plain.format_facts": {name: context(name).format.facts() for name in ("int8", "nvfp4")},
    }
    of_a = ["a.bias", "a.weight", "a.weight_scale", "a.weight_zero_point"]
    of_b = ["b.weight", "b.weight_scale", "b.weight_global_scale"]
    found = TARGET.detect(SourceTensors(dict.fromkeys([*of_a, *of_b, "c_scale"], U8), metadata))
    assert {name: stored.format.name for name, stored in found.items()} == {"a.weight": "int8", "b.weight": "nvfp4"}
    assert found["a.weight"].keys == {
        "weight": "a.weight",
        "scale": "a.weight_scale",
        "zero_point": "a.weight_zero_point",
    }
    assert found["b.weight"].keys == {
        "weight": "b.weight",
        "scale": "b.weight_scale",
        "global_scale": "b.weight_global_scale",
    }


def test_metadata_does_not_depend_on_the_order_of_weights() -> None:
    weights = [planned(f"{letter}.weight", "int8") for letter in "cab"]
    assert TARGET.extras(ModelFacts(), weights) == TARGET.extras(ModelFacts(), weights[::-1])


def test_names_that_begin_alike_keep_their_parts() -> None:
    metadata = {"plain.formats": '{"w":"int8","w_up":"fp8"}'}
    found = TARGET.detect(SourceTensors(dict.fromkeys(("w_up_scale", "w_scale", "w_up", "w"), U8), metadata))
    assert {name: dict(stored.keys) for name, stored in found.items()} == {
        "w": {"weight": "w", "scale": "w_scale"},
        "w_up": {"weight": "w_up", "scale": "w_up_scale"},
    }


def test_weights_of_other_files_are_passed_over() -> None:
    metadata = {"plain.formats": '{"a.weight":"int8","b.weight":"int8"}'}
    assert list(TARGET.detect(SourceTensors({"a.weight": U8, "b.weight_scale": U8}, metadata))) == ["a.weight"]


def test_without_the_metadata_nothing_is_claimed() -> None:
    assert TARGET.detect(SourceTensors({"a.weight": U8, "a.weight_scale": U8}, {"format": "pt"})) == {}


@pytest.mark.parametrize("text", ["{", "[]", '{"a.weight": 8}', "[" * 100_000])
def test_damaged_metadata_is_an_error(text: str) -> None:
    with pytest.raises(CheckpointError, match=r"plain\.formats.* the file is damaged"):
        TARGET.detect(SourceTensors({"a.weight": U8}, {"plain.formats": text}))
