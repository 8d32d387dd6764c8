from __future__ import annotations

import json

import pytest

from converter_core.api.formats import QuantFormat
from converter_core.api.values import Stored
from converter_plugins.targets import lightx2v
from converter_plugins.targets._lightx2v_config import CHOICES, DIT, notes, runtime_config


def stored(format: str, *roles: str) -> Stored:
    return Stored(QuantFormat(format, format), {role: f"X.{role}" for role in ("weight", "scale", *roles)})


def test_every_format_has_a_loader() -> None:
    assert set(CHOICES) == {format.name for format in lightx2v.FORMATS}


@pytest.mark.parametrize(
    ("format", "config", "choices"),
    [
        (
            "int8",
            {"dit_quant_scheme": "int8-vllm"},
            "int8-vllm int8-sgl int8-q8f int8-triton int8-torchao int8-vllm-hygon-dcu int8-npu int8-tmo int8-iluvatar",
        ),
        (
            "fp8",
            {"dit_quant_scheme": "fp8-vllm"},
            "fp8-vllm fp8-sgl fp8-q8f fp8-triton fp8-torchao fp8-musa fp8-intel-xpu",
        ),
        ("mxfp4", {"dit_quant_scheme": "mxfp4"}, "mxfp4"),
        ("nvfp4", {"dit_quant_scheme": "nvfp4", "lazy_load": False}, "nvfp4"),
    ],
)
def test_configuration(format: str, config: dict[str, object], choices: str) -> None:
    told = runtime_config(DIT, {"a": stored(format), "b": stored(format)}, "/out/wan")
    assert told["config"] == {"dit_quantized": True, "dit_quantized_ckpt": "/out/wan", **config}
    assert list(told["dit_quant_scheme choices"]) == choices.split()
    assert json.loads(json.dumps(told)) == told


def test_what_no_loader_reads_has_no_configuration() -> None:
    assert runtime_config(DIT, {}, "/out") == {}
    assert runtime_config(DIT, {"a": stored("int8"), "b": stored("fp8")}, "/out") == {}
    assert runtime_config(DIT, {"a": stored("int4")}, "/out") == {}


def test_nvfp4_without_statistics_needs_a_calibration() -> None:
    bare, complete = stored("nvfp4", "global_scale"), stored("nvfp4", "global_scale", "input_absmax")
    first, second = notes({"a": bare, "b": bare})
    assert first.startswith("the nvfp4 weights carry no activation statistics")
    assert "calib.pt" in first
    assert "lazy_load false" in second
    assert next(iter(notes({"a": bare, "b": complete, "c": complete}))).startswith("1 of 3 nvfp4 weights carry no")


def test_complete_nvfp4_keeps_the_warning_of_lazy_load() -> None:
    statistics, note = notes({"a": stored("nvfp4", "global_scale", "input_absmax")})
    assert "carry their activation statistics" in statistics
    assert "computes wrongly with nvfp4 and lazy_load" in note


@pytest.mark.parametrize("expert", ["high_noise", "low_noise"])
def test_an_expert_has_a_key_of_its_own(expert: str) -> None:
    """``dit_quantized_ckpt`` would load the same file for both experts of a Wan2.2 A14B."""
    weights = {"blocks.0.ffn.0.weight": Stored(QuantFormat("int8", "int8"), {"weight": "blocks.0.ffn.0.weight"})}
    path = f"/models/Wan2.2-I2V-A14B/{expert}_model_int8"
    config = runtime_config(DIT, weights, path)["config"]
    assert config[f"{expert}_quantized_ckpt"] == path
    assert "dit_quantized_ckpt" not in config


def test_lazy_load_is_told_of_the_schemes_that_fail_with_it_and_of_no_other() -> None:
    told = {name for choices in CHOICES.values() for name, where in choices.items() if "lazy" in where}
    assert told == {"int8-vllm-hygon-dcu", "int8-npu", "int8-tmo", "int8-iluvatar", "fp8-musa"}
    weights = {"blocks.0.ffn.0.weight": Stored(QuantFormat("int8", "int8"), {"weight": "blocks.0.ffn.0.weight"})}
    assert list(notes(weights)) == []
    assert "lazy_load" not in runtime_config(DIT, weights, "/x")["config"]
