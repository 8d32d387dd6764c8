"""What a checkpoint is, told from headers."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from converter_core.api.values import TensorSpec
from converter_core.checkpoint.synthetic import write_headers_only
from converter_core.engine.convert import convert
from converter_core.errors import CheckpointError
from converter_core.inspection import FileSummary, QuantizedSummary, TensorSummary, inspect
from converter_core.plugins.registry import load_plugins
from converter_core.recipe.load import Rule
from converter_plugins.models.wan_dit import WanDit

LINEARS = 3 * (4 + 4 + 2 + 2)  # in each block: self attention, cross attention, its image branch, ffn
SYNTHETIC = WanDit().synthetic()
PARAMETERS = sum(spec.numel for spec in SYNTHETIC.tensors.values())


def test_a_sharded_checkpoint(wan_source, registry):
    seen = inspect(wan_source, registry)
    assert (seen.model, seen.variant, seen.format) == ("wan_dit", "unknown", "safetensors")
    assert seen.facts == WanDit().describe(SYNTHETIC.tensors)
    assert seen.dtypes == {"BF16": len(SYNTHETIC.tensors)}
    assert (seen.parameters, seen.bytes) == (PARAMETERS, 2 * PARAMETERS)
    assert sum(file.tensors for file in seen.files) == len(seen.tensors) == len(SYNTHETIC.tensors)
    assert {file.name: file.size for file in seen.files} == {
        path.name: path.stat().st_size for path in wan_source.glob("*.safetensors")
    }
    assert (seen.quantized, seen.runtime_config, seen.notes, seen.skipped) == (None, {}, (), ())
    first = seen.tensors[0]
    assert first.shape == SYNTHETIC.tensors[first.key].shape
    assert first.file == "diffusion_pytorch_model-00001-of-00003.safetensors"


def test_it_is_json(wan_source, registry):
    seen = inspect(wan_source, registry).as_dict()
    assert json.loads(json.dumps(seen))["tensors"][0] == {
        "key": seen["tensors"][0]["key"],
        "dtype": "BF16",
        "shape": list(seen["tensors"][0]["shape"]),
        "file": "diffusion_pytorch_model-00001-of-00003.safetensors",
    }
    assert set(seen) == {
        *("path", "format", "model", "variant", "facts", "dtypes", "parameters", "bytes", "files", "skipped"),
        *("quantized", "runtime_config", "notes", "tensors", "problems", "next_steps", "components"),
    }


@pytest.mark.parametrize("target", ["lightx2v", "plain"])
@pytest.mark.parametrize("method", ["int8", "fp8", "mxfp4", "nvfp4"])
def test_our_own_outputs(asked, tmp_path, registry, method, target):
    """Recognised, and counted and described as what they were made from, whatever their scales and packing."""
    convert(asked(method, **{"target.format": target, "target.layout": "by_block"}))
    output = tmp_path / "out"
    (output / ".wan.partial").mkdir(exist_ok=True)
    (output / ".wan.partial" / "wan.safetensors").write_bytes(b"unfinished")
    seen = inspect(output, registry)
    assert seen.quantized == QuantizedSummary(target, {method: LINEARS}, (Rule("(target_modules)", method),))
    assert (seen.model, seen.variant) == ("wan_dit", "unknown")
    assert seen.facts == WanDit().describe(SYNTHETIC.tensors)
    assert seen.parameters == PARAMETERS
    assert seen.bytes < 2 * PARAMETERS
    assert [file.name for file in seen.files] == [f"block_{n}.safetensors" for n in range(3)] + [
        "non_block.safetensors"
    ]
    if target == "lightx2v":
        config = seen.runtime_config["config"]
        assert (config["dit_quantized"], config["dit_quantized_ckpt"]) == (True, str(output))
        assert config["dit_quant_scheme"].startswith(method)
        assert any("calib" in note for note in seen.notes) == (method == "nvfp4")


def test_a_relative_path_is_absolute_in_the_configuration(asked, tmp_path, registry, monkeypatch):
    convert(asked("fp8"))
    monkeypatch.chdir(tmp_path)
    seen = inspect("out/wan.safetensors", registry)
    assert seen.path == "out/wan.safetensors"
    assert seen.runtime_config["config"]["dit_quantized_ckpt"] == str(tmp_path / "out" / "wan.safetensors")


def test_a_full_size_model_of_which_only_headers_exist(tmp_path, registry):
    write_headers_only(tmp_path, {f"blocks.{n}.ffn.0.weight": TensorSpec("F32", (13824, 5120)) for n in range(40)})
    seen = inspect(tmp_path, registry)
    assert seen.parameters == 40 * 13824 * 5120
    assert seen.bytes == 4 * seen.parameters
    assert len(seen.files) == 7


def test_a_stranger_is_described_too(tmp_path, registry):
    save_file({"encoder.w": torch.ones(2, 3), "encoder.b": torch.ones(3).half()}, tmp_path / "t5.safetensors")
    seen = inspect(tmp_path, registry)
    assert (seen.model, seen.variant, seen.facts, seen.quantized) == (None, None, {}, None)
    assert (seen.dtypes, seen.parameters, seen.bytes) == ({"F32": 1, "F16": 1}, 9, 30)
    assert seen.files == (FileSummary("t5.safetensors", (tmp_path / "t5.safetensors").stat().st_size, 2),)
    assert seen.tensors == (
        TensorSummary("encoder.w", "F32", (2, 3), "t5.safetensors"),
        TensorSummary("encoder.b", "F16", (3,), "t5.safetensors"),
    )


def test_beside_other_models(wan_source, tmp_path, registry):
    folder = tmp_path / "repository"
    shutil.copytree(wan_source, folder)
    next(folder.glob("*.index.json")).unlink()
    save_file({"encoder.w": torch.ones(2)}, folder / "t5.safetensors")
    (folder / "vae.pth").write_bytes(b"never opened")
    seen = inspect(folder, registry)
    assert (seen.model, seen.parameters) == ("wan_dit", PARAMETERS)
    assert seen.skipped == ("t5.safetensors", "vae.pth")


def test_a_pth(tmp_path, registry):
    tensors = {key: torch.ones(spec.shape, dtype=torch.bfloat16) for key, spec in SYNTHETIC.tensors.items()}
    torch.save({"model": tensors}, tmp_path / "dit.pth")
    seen = inspect(tmp_path, registry)
    assert (seen.model, seen.format, seen.parameters) == ("wan_dit", "pytorch", PARAMETERS)


def test_without_any_plugin(wan_source):
    registry = load_plugins(
        blocked=[
            origin.plugin
            for kind in load_plugins().catalogues()
            for origin in kind.origins.values()
            if kind.kind not in ("container", "storage")
        ]
    )
    seen = inspect(wan_source, registry)
    assert (seen.model, seen.quantized, seen.parameters) == (None, None, PARAMETERS)


def test_what_is_broken_stays_an_error(tmp_path, registry):
    (tmp_path / "x.safetensors").write_bytes(b"broken")
    with pytest.raises(CheckpointError, match="6 bytes are no safetensors file"):
        inspect(tmp_path, registry)
