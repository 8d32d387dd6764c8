"""Files that torchao, sdnq and compressed-tensors write themselves are known for what they are."""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import converter_core
from converter_core.errors import ConverterError

from . import small_wan

LEFT_OUT = ["condition_embedder", "proj_out", "patch_embedding"]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SDNQ_USE_TORCH_COMPILE", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for package in ("diffusers", "torchao", "sdnq", "compressed_tensors"):
            pytest.importorskip(package)
        yield


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return small_wan.save(tmp_path / "source", "diffusers")


def torchao(method: str) -> Any:
    quantization = importlib.import_module("torchao.quantization")
    kind = {"int8": quantization.Int8WeightOnlyConfig, "fp8": quantization.Float8WeightOnlyConfig}[method]
    config = kind(version=2, granularity=quantization.PerRow())
    return importlib.import_module("diffusers").TorchAoConfig(config, modules_to_not_convert=LEFT_OUT)


def sdnq(dtype: str, group: int = -1) -> Any:
    return importlib.import_module("sdnq").SDNQConfig(
        weights_dtype=dtype,
        group_size=group,
        modules_to_not_convert=LEFT_OUT,
        minimum_allowed_numel=0,
        minimum_allowed_channel_size=0,
    )


def written(source: Path, folder: Path, config: Any) -> Path:
    """Quantized and saved by diffusers."""
    cls = importlib.import_module("diffusers").WanTransformer3DModel
    cls.from_pretrained(source, quantization_config=config, torch_dtype=torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("method", "style", "config"),
    [
        ("int8", "torchao", lambda: torchao("int8")),
        ("fp8", "torchao", lambda: torchao("fp8")),
        ("int8", "sdnq", lambda: sdnq("int8")),
        ("fp8", "sdnq", lambda: sdnq("float8_e4m3fn")),
    ],
)
def test_what_diffusers_writes(method: str, style: str, config: Any, source: Path, tmp_path: Path) -> None:
    folder = written(source, tmp_path / "o", config())
    found = converter_core.inspect(folder)
    assert (found.model, found.quantized.target, dict(found.quantized.formats)) == (
        "wan_dit",
        "diffusers",
        {method: 24},
    )
    assert converter_core.verify(folder, source).ok
    # laid out anew without touching a byte
    asked = {
        "source": {"path": str(folder)},
        "target": {"format": "diffusers", "options": {"style": style}, "layout": "chunked", "chunk_size": 40},
        "output": {"path": str(tmp_path / "again")},
    }
    converter_core.convert(asked)
    parts = [load_file(file) for file in (tmp_path / "again").glob("*.safetensors")]
    again = {key: tensor for part in parts for key, tensor in part.items()}
    before = load_file(folder / "diffusion_pytorch_model.safetensors")
    assert again.keys() == before.keys()
    assert all(torch.equal(again[key].view(torch.uint8), tensor.view(torch.uint8)) for key, tensor in before.items())
    steps = [small_wan.step(read(one)) for one in (folder, tmp_path / "again")]
    assert torch.equal(*steps)


def read(folder: Path) -> Any:
    return importlib.import_module("diffusers").WanTransformer3DModel.from_pretrained(
        folder, torch_dtype=torch.bfloat16
    )


def test_what_is_known_of_no_one_is_refused(source: Path, tmp_path: Path) -> None:
    folder = written(source, tmp_path / "o", sdnq("uint4", 32))
    asked = {"source": {"path": str(folder)}, "output": {"path": str(tmp_path / "again")}}
    with pytest.raises(ConverterError, match="24 weights are U8 with scales beside them"):
        converter_core.make_plan(asked)


def test_a_config_that_names_a_method_no_one_knows(source: Path, tmp_path: Path) -> None:
    """Such as bitsandbytes: int8 ``X.weight`` beside ``X.SCB``."""
    file = source / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["blocks.0.ffn.net.2.weight"] = torch.ones(64, 96, dtype=torch.int8)
    tensors["blocks.0.ffn.net.2.SCB"] = torch.ones(64)
    save_file(tensors, file)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "bitsandbytes"}}))
    asked = {"source": {"path": str(source)}, "output": {"path": str(tmp_path / "o")}}
    with pytest.raises(
        ConverterError, match=r"config\.json says that it is quantized by bitsandbytes, and no installed"
    ):
        converter_core.make_plan(asked)


def test_what_compressed_tensors_writes(source: Path, tmp_path: Path) -> None:
    """With scales in bf16, as the library has them."""
    compress = importlib.import_module("compressed_tensors.compressors.base").compress_module
    quantization = importlib.import_module("compressed_tensors.quantization")
    tensors = load_file(source / "diffusion_pytorch_model.safetensors")
    arguments = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
    scheme = quantization.QuantizationScheme(
        targets=["Linear"],
        weights=quantization.QuantizationArgs(**arguments),
        input_activations=quantization.QuantizationArgs(
            num_bits=8, type="int", strategy="token", symmetric=True, dynamic=True
        ),
        format="int-quantized",
    )
    for name in [name for name, tensor in tensors.items() if name.startswith("blocks") and tensor.dim() == 2]:
        layer = torch.nn.Linear(*tensors[name].shape[::-1], bias=False, dtype=torch.bfloat16)
        layer.weight.data = tensors[name]
        quantization.initialize_module_for_quantization(layer, scheme)
        layer.weight_scale.data = tensors[name].abs().amax(1, True) / 127
        compress(layer)
        tensors[name], tensors[f"{name}_scale"] = layer.weight.data, layer.weight_scale.data
    assert tensors["blocks.0.ffn.net.2.weight_scale"].dtype == torch.bfloat16
    save_file(tensors, source / "diffusion_pytorch_model.safetensors")
    config = json.loads((source / "config.json").read_text())
    told = {"quant_method": "compressed-tensors", "format": "int-quantized"}
    (source / "config.json").write_text(json.dumps({**config, "quantization_config": told}))
    found = converter_core.inspect(source)
    assert (found.quantized.target, dict(found.quantized.formats)) == ("compressed_tensors", {"int8": 24})
