"""Qwen-Image, Z-Image, HunyuanVideo 1.5, FLUX.2 and LTX-2 against the models that diffusers builds.

Small ones are saved by diffusers, converted, and opened; of the released ones the inventories are checked.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from safetensors.torch import load_file

from converter_core import PlanError, PluginError, convert, inspect, make_plan
from converter_core.api.tensors import spec_of
from converter_core.api.values import TensorSpec
from converter_plugins.models.flux2_dit import Flux2Dit
from converter_plugins.models.hunyuan_dit import HunyuanDit
from converter_plugins.models.ltx2_dit import Ltx2Dit
from converter_plugins.models.qwen_image_dit import QwenImageDit
from converter_plugins.models.z_image_dit import ZImageDit

SMALL = {
    QwenImageDit(): (
        "QwenImageTransformer2DModel",
        {
            "num_layers": 2,
            "attention_head_dim": 32,
            "num_attention_heads": 2,
            "joint_attention_dim": 48,
            "in_channels": 16,
            "out_channels": 4,
            "axes_dims_rope": (8, 12, 12),
        },
    ),
    ZImageDit(): (
        "ZImageTransformer2DModel",
        {"dim": 64, "n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 48, "axes_dims": [8, 12, 12]},
    ),
    HunyuanDit(): (
        "HunyuanVideo15Transformer3DModel",
        {
            "num_layers": 2,
            "attention_head_dim": 32,
            "num_attention_heads": 2,
            "text_embed_dim": 48,
            "text_embed_2_dim": 40,
            "image_embed_dim": 24,
            "rope_axes_dim": (8, 12, 12),
        },
    ),
    Flux2Dit(): (
        "Flux2Transformer2DModel",
        {
            "num_layers": 1,
            "num_single_layers": 2,
            "attention_head_dim": 32,
            "num_attention_heads": 2,
            "joint_attention_dim": 96,
            "timestep_guidance_channels": 32,
            "axes_dims_rope": (8, 8, 8, 8),
        },
    ),
    Ltx2Dit(): (
        "LTX2VideoTransformer3DModel",
        {
            "num_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 4,
            "cross_attention_dim": 64,
            "audio_num_attention_heads": 4,
            "audio_attention_head_dim": 8,
            "audio_cross_attention_dim": 32,
            "caption_channels": 48,
        },
    ),
}
MODELS = {model.name: model for model in SMALL}


@pytest.fixture(scope="module")
def diffusers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what diffusers and what it imports warn of is not ours
        return pytest.importorskip("diffusers")


@pytest.fixture
def built(diffusers, request):
    """A small model with weights."""
    name, options = SMALL[request.param]
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = getattr(diffusers, name)(**options)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)  # some begin as zeros, which hide mistakes
    return request.param, network


each = pytest.mark.parametrize("built", SMALL, indirect=True, ids=lambda model: model.name)


@each
def test_a_small_one_from_diffusers_is_converted(built, tmp_path, registry):
    model, network = built
    state = network.state_dict()
    expected = model.table.inventory(model.sample, "F32", "diffusers")
    assert {name: spec_of(tensor) for name, tensor in state.items()} == expected
    network.save_pretrained(tmp_path / "transformer")
    fused = model.name == "hunyuan_dit"
    recipe = {
        "source": {"path": str(tmp_path / "transformer")},
        "quantization": {"method": "int8"},
        "output": {"path": str(tmp_path / "o"), "name": "made"},
    }
    if fused:
        with pytest.raises(PluginError, match="give the checkpoint in its original form"):
            make_plan(recipe)
        return
    convert(recipe)
    made = load_file(tmp_path / "o" / "made.safetensors")
    infos = list(model.weights(expected))
    assert set(made) == {info.name for info in infos} | {f"{i.name}_scale" for i in infos if i.kind == "linear"}
    for info in infos:
        source = state[info.sources["weight"].key]
        if info.kind == "linear":
            decoded = made[info.name].float() * made[f"{info.name}_scale"]
            assert (decoded - source).norm() < 0.012 * source.norm(), info.name
        else:
            assert torch.equal(made[info.name], source), info.name
    seen = inspect(tmp_path / "o", registry)
    assert (seen.model, seen.quantized.target) == (model.name, "lightx2v")
    assert seen.runtime_config["config"]["dit_quantized"] is True


RELEASED = [
    # tensors and quantized weights of the key format that LightX2V reads; parameters of both
    ("qwen_image_dit", "Qwen-Image", 1933, 60 * 14, 20_430_401_088, 20_384_317_440),
    ("z_image_dit", "Z-Image", 521, 34 * 7 + 32 + 2, 6_154_908_736, 6_143_262_720),
    ("hunyuan_dit", "HunyuanVideo-1.5", 1793, 54 * 14, 8_326_608_160, 8_153_726_976),
    ("flux2_dit", "FLUX.2-dev", 331, 8 * 12 + 48 * 2 + 11, 32_223_281_152, 32_223_264_768),
    ("ltx2_dit", "LTX-2-19B", 3510, 48 * 28, 18_876_174_592, 18_522_046_464),
]


@pytest.mark.parametrize(("name", "variant", "tensors", "linears", "parameters", "quantized"), RELEASED)
def test_golden_inventory(name, variant, tensors, linears, parameters, quantized):
    model = MODELS[name]
    inventory = model.table.inventory(model.variants[variant], "BF16")
    chosen = [info for info in model.weights(inventory) if info.kind == "linear"]
    assert (len(inventory), len(chosen)) == (tensors, linears)
    assert sum(spec.numel for spec in inventory.values()) == parameters
    assert sum(inventory[info.name].numel for info in chosen) == quantized
    assert (model.recognise(inventory), list(model.problems(inventory))) == (variant, [])
    assert not [other.name for other in MODELS.values() if other is not model and other.recognise(inventory)]


@pytest.mark.parametrize(("name", "variant"), [row[:2] for row in RELEASED])
def test_what_lightx2v_builds_quantized_is_quantized(name, variant):
    """The key component and the modules of its converter, and the layers outside the blocks that its classes name."""
    modules = {
        "qwen_image_dit": {"attn", "img_mlp", "txt_mlp", "txt_mod", "img_mod"},
        "z_image_dit": {"attention", "feed_forward", "adaLN_modulation", "linear"},
        "hunyuan_dit": {
            f"{s}_{m}" for s in ("img", "txt") for m in ["mod", "attn_q", "attn_k", "attn_v", "attn_proj", "mlp"]
        },
    }
    model = MODELS[name]
    inventory = model.table.inventory(model.variants[variant], "BF16")
    chosen = {info.name for info in model.weights(inventory) if info.kind == "linear"}
    matrices = {key for key, spec in inventory.items() if len(spec.shape) == 2 and key.endswith(".weight")}
    if name in modules:
        assert chosen == {key for key in matrices if key.split(".")[2:3] and key.split(".")[2] in modules[name]}
    elif name == "flux2_dit":  # every linear layer
        assert chosen == matrices
    else:
        block = "model.diffusion_model.transformer_blocks."
        assert chosen == {key for key in matrices if key.startswith(block)}


def test_the_released_naming_of_ltx2_is_what_diffusers_renames(diffusers):
    from diffusers.loaders.single_file_utils import convert_ltx2_transformer_to_diffusers

    model = MODELS["ltx2_dit"]
    names = model.table.inventory(model.sample)
    theirs = convert_ltx2_transformer_to_diffusers({name: name for name in names})
    assert {name: key for key, name in theirs.items()} == {name: model.rename(name, "diffusers") for name in names}


def test_ltx2_of_later_releases():
    """Gates, modulation of the prompt; no caption projection."""
    model = MODELS["ltx2_dit"]
    rows = {row.name: row.branch for row in model.table.rows}
    block = "model.diffusion_model.transformer_blocks.{}."
    assert rows[f"{block}attn1.to_gate_logits.weight"] == "gated"
    assert rows[f"{block}prompt_scale_shift_table"] == "prompt"
    plain = model.table.inventory(model.sample)
    later = {name: spec for name, spec in plain.items() if "caption" not in name}
    later |= {
        f"{block.format(number)}{attention}.to_gate_logits.{part}": TensorSpec("F32", shape)
        for number in range(2)
        for attention, width in {
            "attn1": 64,
            "attn2": 64,
            "audio_attn1": 32,
            "audio_attn2": 32,
            "audio_to_video_attn": 64,
            "video_to_audio_attn": 32,
        }.items()
        for part, shape in (("weight", (4, width)), ("bias", (4,)))
    }
    assert list(model.problems(later)) == []
    gates = [info for info in model.weights(later) if "gate_logits.weight" in info.name]
    assert {info.kind for info in gates} == {"linear"}


def test_hunyuan_in_its_own_naming():
    """Pairs of diffusers' own conversion script."""
    pairs = {
        "double_blocks.3.img_attn_proj.bias": "transformer_blocks.3.attn.to_out.0.bias",
        "double_blocks.3.txt_attn_proj.weight": "transformer_blocks.3.attn.to_add_out.weight",
        "double_blocks.3.txt_attn_q.weight": "transformer_blocks.3.attn.add_q_proj.weight",
        "double_blocks.3.img_attn_k_norm.weight": "transformer_blocks.3.attn.norm_k.weight",
        "double_blocks.3.img_mod.linear.weight": "transformer_blocks.3.norm1.linear.weight",
        "double_blocks.3.txt_mlp.fc2.weight": "transformer_blocks.3.ff_context.net.2.weight",
        "txt_in.c_embedder.linear_1.weight": "context_embedder.time_text_embed.text_embedder.linear_1.weight",
        "txt_in.individual_token_refiner.blocks.1.adaLN_modulation.1.bias": (
            "context_embedder.token_refiner.refiner_blocks.1.norm_out.linear.bias"
        ),
        "byt5_in.fc3.weight": "context_embedder_2.linear_3.weight",
        "vision_in.proj.4.bias": "image_embedder.norm_out.bias",
        "final_layer.linear.weight": "proj_out.weight",
    }
    model = MODELS["hunyuan_dit"]
    assert {name: model.rename(name, "diffusers") for name in pairs} == pairs
    with pytest.raises(PluginError, match=r"self_attn_qkv\.weight is of the original key format"):
        model.rename("txt_in.individual_token_refiner.blocks.0.self_attn_qkv.weight", "diffusers")


def test_a_missing_shard_of_a_fused_and_of_a_split_model():
    model = MODELS["hunyuan_dit"]
    for key_format, lost in (
        ("original", "txt_in.individual_token_refiner.blocks.0.self_attn_qkv.weight"),
        ("diffusers", "context_embedder.token_refiner.refiner_blocks.0.attn.to_q.weight"),
    ):
        inventory = model.table.inventory(model.sample, "F32", key_format)
        assert list(model.problems(inventory)) == []
        del inventory[lost]
        (problem,) = model.problems(inventory)
        assert lost in problem


def test_flux2_partly_quantized_is_not_for_lightx2v(tmp_path):
    from converter_core.checkpoint.synthetic import write_synthetic

    write_synthetic(tmp_path / "flux2", MODELS["flux2_dit"].synthetic())
    recipe = {
        "source": {"path": str(tmp_path / "flux2")},
        "quantization": {"method": "int8", "options": {"target_modules": ["attn", "ff", "ff_context"]}},
        "output": {"path": str(tmp_path / "o")},
    }
    with pytest.raises(PlanError, match="all quantized or none of them"):
        make_plan(recipe)
    with make_plan({**recipe, "target": {"format": "plain"}}) as plan:
        assert {group.method for group in plan.outputs[0].groups} == {"int8", "none"}
