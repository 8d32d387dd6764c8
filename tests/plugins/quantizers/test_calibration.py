"""Activation statistics that nvfp4 writes beside its weights."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from converter_core.api.contexts import WeightContext
from converter_core.api.values import TensorRef, WeightInfo
from converter_core.errors import Refused
from converter_plugins.quantizers.nvfp4 import Nvfp4

NAME = "blocks.0.self_attn.q.weight"


def info(name=NAME):
    return WeightContext(WeightInfo(name, {"weight": TensorRef(name)}, kind="linear"), name)


@pytest.fixture(params=["calib.pt", "calib.safetensors", "calib.json", "flat.json"])
def calibration(request, tmp_path):
    path = tmp_path / request.param
    values = {NAME: torch.tensor(3.1415927), "blocks.0.ffn.0.weight": torch.tensor([12.0])}
    if path.suffix == ".pt":
        torch.save({"absmax": {name: value.bfloat16() for name, value in values.items()}}, path)
    elif path.suffix == ".safetensors":
        save_file(values, path)
    else:
        table = {name: value.item() for name, value in values.items()}
        path.write_text(json.dumps(table if path.name == "flat.json" else {"absmax": table}))
    return str(path)


def test_the_statistic_is_written_as_bf16_can_hold_it(calibration):
    quantizer = Nvfp4(activation_absmax=calibration)
    given = quantizer.inputs(info(), {})
    assert given["input_absmax"].item() == 3.140625
    weight = torch.randn(4, 32)
    parts = quantizer.quantize(weight, **quantizer.observe(weight), **given)
    assert parts["input_absmax"].item() == 3.140625
    assert parts["input_absmax"].dtype is torch.float32
    assert parts["input_absmax"].shape == ()
    assert quantizer.inputs(info("blocks.0.ffn.0.weight"), {})["input_absmax"].shape == ()
    assert list(quantizer.input_files()) == [calibration]


def test_without_the_option_nothing_is_added():
    weight = torch.randn(4, 32)
    quantizer = Nvfp4()
    assert quantizer.inputs(info(), {}) == {}
    assert list(quantizer.input_files()) == list(quantizer.remarks({NAME: {}})) == []
    assert "input_absmax" not in quantizer.quantize(weight, **quantizer.observe(weight))


def test_names_that_match_nothing_are_told(calibration):
    quantizer = Nvfp4(activation_absmax=calibration)
    (remark,) = quantizer.remarks({NAME: {}})
    assert "blocks.0.ffn.0.weight" in remark
    assert NAME not in remark
    assert list(quantizer.remarks({NAME: {}, "blocks.0.ffn.0.weight": {}})) == []


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), 1e-45, "many", [1.0, 2.0], None])
def test_a_statistic_that_is_none(tmp_path, value):
    path = tmp_path / "calib.json"
    path.write_text(json.dumps({"absmax": {NAME: value}}))
    with pytest.raises(Refused, match="activation statistic"):
        Nvfp4(activation_absmax=str(path)).inputs(info(), {})


def test_a_missing_statistic_or_file(tmp_path, calibration):
    with pytest.raises(Refused, match=r"has no activation statistic in .*do_mm_calib"):
        Nvfp4(activation_absmax=calibration).inputs(info("blocks.7.self_attn.q.weight"), {})
    with pytest.raises(Refused, match=r"cannot read .*none.pt: No such file"):
        Nvfp4(activation_absmax=str(tmp_path / "none.pt")).inputs(info(), {})


@pytest.mark.parametrize("name", ["bad.json", "bad.pt", "bad.safetensors"])
def test_a_file_of_another_kind(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"\x08\x00not what it says")
    with pytest.raises(Refused, match=f"activation_absmax: .*{name} is not a calibration file"):
        Nvfp4(activation_absmax=str(path)).inputs(info(), {})


def test_a_pickle_that_would_run_code_is_not_run(tmp_path):
    ran = tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return (open, (str(ran), "w"))

    torch.save({"absmax": {NAME: Payload()}}, tmp_path / "calib.pt")
    with pytest.raises(Refused, match="is not a calibration file"):
        Nvfp4(activation_absmax=str(tmp_path / "calib.pt")).inputs(info(), {})
    assert not ran.exists()


def test_no_mapping(tmp_path):
    path = tmp_path / "calib.json"
    path.write_text("[1, 2]")
    with pytest.raises(Refused, match=r"holds (no|a) mapping"):
        Nvfp4(activation_absmax=str(path)).inputs(info(), {})


def test_a_changed_file_is_read_again(tmp_path):
    path = tmp_path / "calib.json"
    path.write_text(json.dumps({NAME: 1.0}))
    assert Nvfp4(activation_absmax=str(path)).inputs(info(), {})["input_absmax"].item() == 1.0
    path.write_text(json.dumps({NAME: 2.5}))
    assert Nvfp4(activation_absmax=str(path)).inputs(info(), {})["input_absmax"].item() == 2.5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1, "a": 2}', "names 'a' twice"),
        ('{"absmax": {"a": 1' + "0" * 4000 + "}}", "a calibration file|no number"),
        ("[" * 200_000, "not a calibration file"),
    ],
    ids=["a doubled key", "a number of 4000 digits", "nested deeply"],
)
def test_hostile_json(tmp_path, text, said):
    path = tmp_path / "calib.json"
    path.write_text(text)
    with pytest.raises(Refused, match=said):
        Nvfp4(activation_absmax=str(path)).inputs(info("a"), {})


def test_a_pipe_is_no_calibration_file(tmp_path):
    os.mkfifo(tmp_path / "calib.pt")
    with pytest.raises(Refused, match="is not a regular file"):
        Nvfp4(activation_absmax=str(tmp_path / "calib.pt")).inputs(info(), {})
