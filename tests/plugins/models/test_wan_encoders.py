"""The text and image encoders of Wan: what is quantized, what is left out, what LightX2V is told."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from converter_core import ConverterError, PlanError, convert, inspect, make_plan
from converter_core.api.values import TensorSpec
from converter_plugins.models.wan_clip import WanClip
from converter_plugins.models.wan_t5 import WanT5

t5, clip = WanT5(), WanClip()


def released(model):
    (size,) = model.variants.values()
    return model.table.inventory(size, "BF16")


def tensors_of(model, dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(1)
    specs = model.synthetic().tensors
    return {key: torch.randn(spec.shape, generator=generator).to(dtype) for key, spec in specs.items()}


@pytest.mark.parametrize(
    ("model", "tensors", "quantized", "parameters", "variant"),
    [
        # 24 blocks of 7 linear layers, of 10; 168 is also the count of ComfyUI's published file
        (t5, 242, 168, 4_630_511_616, "umT5-XXL"),
        # 32 blocks of 4 linear layers, of 12 tensors
        (clip, 5 + 2 + 32 * 12 + 2, 128, 629_145_600, "XLM-Roberta ViT-H/14"),
    ],
)
def test_inventory(model, tensors, quantized, parameters, variant):
    inventory = released(model)
    linear = [info for info in model.weights(inventory) if info.kind == "linear"]
    assert (len(inventory), len(linear)) == (tensors, quantized)
    assert sum(inventory[info.name].numel for info in linear) == parameters
    assert all(info.block for info in linear)
    assert model.recognise(inventory) == variant
    assert list(model.problems(inventory)) == []


def test_shapes_of_the_released_encoders():
    shapes = {name: spec.shape for name, spec in (released(t5) | released(clip)).items()}
    assert shapes["token_embedding.weight"] == (256384, 4096)
    assert shapes["blocks.23.ffn.gate.0.weight"] == shapes["blocks.23.ffn.fc1.weight"] == (10240, 4096)
    assert shapes["blocks.23.ffn.fc2.weight"] == (4096, 10240)
    assert shapes["blocks.0.pos_embedding.embedding.weight"] == (32, 64)
    assert shapes["visual.patch_embedding.weight"] == (1280, 3, 14, 14)
    assert shapes["visual.pos_embedding"] == (1, 257, 1280)
    assert shapes["visual.transformer.31.attn.to_qkv.weight"] == (3840, 1280)
    assert shapes["visual.transformer.31.mlp.0.weight"] == (5120, 1280)
    assert shapes["visual.head"] == (1280, 1024)
    assert shapes["log_scale"] == ()


def test_t5_in_the_naming_of_transformers():
    """As ComfyUI's ``umt5_xxl`` files have it, and the encoders of diffusers' pipelines."""
    pairs = {
        "token_embedding.weight": "shared.weight",
        "blocks.3.attn.q.weight": "encoder.block.3.layer.0.SelfAttention.q.weight",
        "blocks.3.attn.o.weight": "encoder.block.3.layer.0.SelfAttention.o.weight",
        "blocks.3.norm1.weight": "encoder.block.3.layer.0.layer_norm.weight",
        "blocks.3.norm2.weight": "encoder.block.3.layer.1.layer_norm.weight",
        "blocks.3.ffn.gate.0.weight": "encoder.block.3.layer.1.DenseReluDense.wi_0.weight",
        "blocks.3.ffn.fc1.weight": "encoder.block.3.layer.1.DenseReluDense.wi_1.weight",
        "blocks.3.ffn.fc2.weight": "encoder.block.3.layer.1.DenseReluDense.wo.weight",
        "blocks.3.pos_embedding.embedding.weight": (
            "encoder.block.3.layer.0.SelfAttention.relative_attention_bias.weight"
        ),
        "norm.weight": "encoder.final_layer_norm.weight",
    }
    assert {name: t5.rename(name, "transformers") for name in pairs} == pairs
    respelt = {t5.rename(name, "transformers"): spec for name, spec in released(t5).items()}
    assert t5.recognise(respelt) == "umT5-XXL"
    assert [info.name for info in t5.weights(respelt)] == list(released(t5))


def test_a_half_of_an_encoder_is_told():
    inventory = t5.synthetic().tensors
    rest = {name: spec for name, spec in inventory.items() if not name.startswith("blocks.1.ffn")}
    assert list(t5.problems(rest)) == [
        "missing 3 of the 10 tensors of block 1: blocks.1.ffn.gate.0.weight, blocks.1.ffn.fc1.weight, "
        "blocks.1.ffn.fc2.weight; is a shard missing?"
    ]


@pytest.mark.parametrize("method", ["int8", "fp8"])
@pytest.mark.parametrize("model", [t5, clip])
def test_lightx2v_reads_it(model, method, tmp_path, registry):
    """From a .pth: the model's own names and one scale for each linear layer, and nothing else."""
    tensors = tensors_of(model)
    path = tmp_path / "encoder.pth"
    torch.save(tensors | ({"textual.head.0.weight": torch.ones(2, 2)} if model is clip else {}), path)
    convert(
        {"source": {"path": str(path)}, "quantization": {"method": method}, "output": {"path": str(tmp_path / "o")}}
    )
    name = model.output_name(method)
    assert name.startswith(("models_t5_umt5-xxl-enc-", "models_clip_open-clip-xlm-roberta-large-vit-huge-14-"))
    output = load_file(tmp_path / "o" / f"{name}.safetensors")
    linear = {info.name for info in model.weights(model.synthetic().tensors) if info.kind == "linear"}
    assert set(output) == {*tensors, *(f"{one}_scale" for one in linear)}
    for one in linear:
        assert output[one].dtype == (torch.int8 if method == "int8" else torch.float8_e4m3fn)
        assert output[f"{one}_scale"].shape == (tensors[one].shape[0], 1)
        decoded = output[one].float() * output[f"{one}_scale"].float()
        assert (decoded - tensors[one].float()).norm() / tensors[one].float().norm() < 0.04
    assert all(torch.equal(output[one], tensors[one]) for one in set(tensors) - linear)
    seen = inspect(tmp_path / "o", registry)
    assert (seen.model, seen.quantized.target) == (model.name, "lightx2v")
    scheme = {"int8": "int8-vllm", "fp8": "fp8-sgl"}[method]
    part = model.component
    assert seen.runtime_config["config"] == {
        f"{part}_quantized": True,
        f"{part}_quant_scheme": scheme,
        f"{part}_quantized_ckpt": str(tmp_path / "o" / f"{name}.safetensors"),
    }
    assert f"{part}_quant_scheme choices" in seen.runtime_config


def test_what_lightx2v_cannot_read_of_an_encoder_is_refused(tmp_path):
    save_file(tensors_of(t5) | {"blocks.0.attn.extra": torch.ones(2)}, tmp_path / "t5.safetensors")
    recipe = {
        "source": {"path": str(tmp_path / "t5.safetensors")},
        "quantization": {"method": "mxfp4"},
        "output": {"path": str(tmp_path / "o")},
    }
    with pytest.raises(PlanError) as refused:
        make_plan(recipe)
    assert "LightX2V reads t5 as int8 or fp8, not as mxfp4; use --linear-type int8 or fp8" in refused.value.problems
    assert any("blocks.0.attn.extra" in problem for problem in refused.value.problems)


def test_beside_the_transformer_an_encoder_is_taken_by_name_only(wan_source, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    for path in wan_source.glob("*.safetensors"):
        (folder / path.name).symlink_to(path)
    save_file(tensors_of(t5), folder / "t5.safetensors")
    recipe = {"source": {"path": str(folder)}, "output": {"path": str(tmp_path / "o")}}
    with make_plan(recipe) as plan:
        assert plan.adapter.name == "wan_dit"
        assert "t5.safetensors" in plan.checkpoint.skipped
    with make_plan({**recipe, "source": {"path": str(folder), "type": "wan_t5"}}) as plan:
        assert [file.name for file in plan.checkpoint.files] == ["t5.safetensors"]
        assert len(plan.jobs) == len(t5.synthetic().tensors)


def test_a_family_member_of_another_size_is_unknown():
    (size,) = t5.variants.values()
    wider = replace(size, dims={**size.dims, "ffn_dim": 5120})
    assert t5.recognise(t5.table.inventory(wider)) == "unknown"
    assert t5.recognise({"blocks.0.attn.q.weight": TensorSpec("F32", (4, 4))}) is None


@pytest.mark.parametrize("method", ["int8", "fp8"])
def test_comfyui_reads_t5_with_its_tokenizer(method, tmp_path, registry):
    """As ``umt5_xxl_*_scaled`` files: transformers' names, the sentencepiece file as bytes, a marker for each layer."""
    tensors = tensors_of(t5)
    save_file(tensors, tmp_path / "t5.safetensors")
    (tmp_path / "spiece.model").write_bytes(bytes(range(200)))
    recipe = {
        "source": {"path": str(tmp_path / "t5.safetensors"), "type": "wan_t5"},
        "quantization": {"method": method},
        "target": {"format": "comfyui"},
        "output": {"path": str(tmp_path / "o"), "name": "umt5"},
    }
    with pytest.raises(PlanError, match=r"spiece\.model"):
        make_plan(recipe)
    recipe["source"]["options"] = {"tokenizer": str(tmp_path / "spiece.model")}
    convert(recipe)
    output = load_file(tmp_path / "o" / "umt5.safetensors")
    assert bytes(output.pop("spiece_model").numpy()) == bytes(range(200))
    names = {t5.rename(name, "transformers"): name for name in tensors}
    marked = {key.removesuffix(".comfy_quant") for key in output if key.endswith(".comfy_quant")}
    linear = {t5.rename(i.name, "transformers") for i in t5.weights(t5.synthetic().tensors) if i.kind == "linear"}
    assert {f"{name}.weight" for name in marked} == linear
    assert set(names) <= set(output)
    for name, own in names.items():
        if name not in linear:
            assert torch.equal(output[name], tensors[own])
            continue
        scale = output[f"{name.removesuffix('.weight')}.weight_scale"]
        decoded = output[name].float() * scale
        assert (decoded - tensors[own].float()).norm() < 0.04 * tensors[own].float().norm()
    told = json.loads(bytes(output[f"{min(marked)}.comfy_quant"].numpy()))
    assert told["format"] == {"int8": "int8_tensorwise", "fp8": "float8_e4m3fn"}[method]
    seen = inspect(tmp_path / "o", registry)
    assert (seen.model, seen.quantized.target) == ("wan_t5", "comfyui")
    assert seen.runtime_config["folder"] == "ComfyUI/models/text_encoders"


def test_another_tokenizer_is_another_conversion(tmp_path):
    save_file(tensors_of(t5), tmp_path / "t5.safetensors")
    (tmp_path / "spiece.model").write_bytes(b"one")
    recipe = {
        "source": {
            "path": str(tmp_path / "t5.safetensors"),
            "type": "wan_t5",
            "options": {"tokenizer": str(tmp_path / "spiece.model")},
        },
        "target": {"format": "comfyui"},
        "output": {"path": str(tmp_path / "o")},
    }
    with make_plan(recipe) as plan:
        first = plan.outputs[0].fingerprint.value
    (tmp_path / "spiece.model").write_bytes(b"two")
    with make_plan(recipe) as plan:
        assert plan.outputs[0].fingerprint.value != first
    (tmp_path / "empty.model").touch()
    for name in ("absent.model", "empty.model"):
        recipe["source"]["options"] = {"tokenizer": str(tmp_path / name)}
        with pytest.raises(ConverterError, match="is no sentencepiece file"):
            make_plan(recipe)


def test_comfyui_knows_clip_by_other_names_only(tmp_path):
    save_file(tensors_of(clip), tmp_path / "clip.safetensors")
    recipe = {
        "source": {"path": str(tmp_path / "clip.safetensors")},
        "target": {"format": "comfyui"},
        "output": {"path": str(tmp_path / "o")},
    }
    with pytest.raises(PlanError, match="ComfyUI reads wan_clip with the naming of transformers"):
        make_plan(recipe)
