"""The Wan adapter on headers alone: inventories, names, what it recognises and what it refuses."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest

from converter_core.api.contexts import SourceTensors
from converter_core.api.values import TensorRef, TensorSpec
from converter_core.errors import PluginError
from converter_plugins.models.wan_dit import SYNTHETIC, VARIANTS, Structure, WanDit

PREFIX = "model.diffusion_model."
wan = WanDit()
SMALL = SYNTHETIC.inventory("BF16")
SMALL_T2V = dataclasses.replace(SYNTHETIC, image=False, in_dim=16).inventory("BF16")


def respell(tensors, *, key_format="original", prefix=""):
    return {prefix + wan.rename(name, key_format): spec for name, spec in tensors.items()}


SPELLINGS = [
    pytest.param({"key_format": key_format, "prefix": prefix}, id=f"{key_format}{'-prefixed' if prefix else ''}")
    for key_format in ("original", "diffusers")
    for prefix in ("", PREFIX)
]


@pytest.mark.parametrize(
    ("variant", "tensors", "parameters", "fp32_bytes", "linears", "quantized"),
    [
        ("I2V-14B", 1303, 16_394_878_784, 65_579_515_136, 480, 16_148_070_400),
        ("T2V-14B", 1095, 14_288_491_584, 57_153_966_336, 400, 14_050_918_400),
        ("T2V-1.3B", 825, 1_418_996_800, 5_675_987_200, 300, 1_391_984_640),
        ("FLF2V-14B", 1304, 16_395_536_704, 65_582_146_816, 480, 16_148_070_400),
        # eight and fifteen blocks more, each with after_proj; before_proj once, and a patch embedding of 96 channels
        ("VACE-14B", 1331, 17_337_592_896, 69_350_371_584, 480, 16_861_102_080),
        ("VACE-1.3B", 1264, 2_153_972_032, 8_615_888_128, 450, 2_087_976_960),
    ],
)
def test_golden_inventory(variant, tensors, parameters, fp32_bytes, linears, quantized):
    inventory = VARIANTS[variant].inventory()
    assert len(inventory) == tensors
    assert sum(spec.numel for spec in inventory.values()) == parameters
    assert sum(spec.nbytes for spec in inventory.values()) == fp32_bytes
    chosen = [weight for weight in wan.weights(inventory) if weight.kind == "linear"]
    assert len(chosen) == linears
    assert sum(inventory[weight.name].numel for weight in chosen) == quantized
    assert wan.recognise(inventory) == variant
    assert list(wan.problems(inventory)) == []


def test_shapes_of_i2v_14b():
    inventory = VARIANTS["I2V-14B"].inventory()
    shapes = {name: inventory[name].shape for name in inventory}
    assert shapes["patch_embedding.weight"] == (5120, 36, 1, 2, 2)
    assert shapes["text_embedding.0.weight"] == (5120, 4096)
    assert shapes["time_embedding.0.weight"] == (5120, 256)
    assert shapes["time_projection.1.bias"] == (30720,)
    assert shapes["blocks.39.ffn.0.weight"] == (13824, 5120)
    assert shapes["blocks.39.ffn.2.weight"] == (5120, 13824)
    assert shapes["blocks.0.modulation"] == (1, 6, 5120)
    assert shapes["head.head.weight"] == (64, 5120)
    assert shapes["img_emb.proj.3.weight"] == (5120, 1280)
    assert VARIANTS["FLF2V-14B"].inventory()["img_emb.emb_pos"].shape == (1, 514, 1280)


def test_linear_is_what_the_runtime_reads_quantized():
    for inventory in (SMALL, SMALL_T2V):
        weights = list(wan.weights(inventory))
        assert [weight.name for weight in weights] == list(inventory)
        for weight in weights:
            parts = weight.name.split(".")
            expected = (
                parts[0] == "blocks"
                and parts[2] in ("self_attn", "cross_attn", "ffn")
                and parts[-1] == "weight"
                and len(inventory[weight.name].shape) == 2
            )
            assert (weight.kind == "linear") is expected, weight
            assert weight.sources == {"weight": TensorRef(weight.name)}


def test_kinds_modules_and_blocks():
    weights = {weight.name: weight for weight in wan.weights(SYNTHETIC.inventory())}
    seen = {
        name: (weights[name].kind, weights[name].module, weights[name].block)
        for name in (
            "blocks.2.self_attn.q.weight",
            "blocks.2.cross_attn.k_img.bias",
            "blocks.0.self_attn.norm_q.weight",
            "blocks.1.norm3.weight",
            "blocks.1.modulation",
            "patch_embedding.weight",
            "head.head.weight",
            "head.modulation",
            "img_emb.proj.0.weight",
        )
    }
    assert seen == {
        "blocks.2.self_attn.q.weight": ("linear", "self_attn", "2"),
        "blocks.2.cross_attn.k_img.bias": ("bias", "cross_attn", "2"),
        "blocks.0.self_attn.norm_q.weight": ("norm", "self_attn", "0"),
        "blocks.1.norm3.weight": ("norm", "", "1"),
        "blocks.1.modulation": ("modulation", "", "1"),
        "patch_embedding.weight": ("embedding", "", ""),
        "head.head.weight": ("head", "", ""),
        "head.modulation": ("modulation", "", ""),
        "img_emb.proj.0.weight": ("norm", "", ""),
    }
    assert Counter(weight.kind for weight in weights.values())["linear"] == 3 * 12


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_the_same_model(spelling):
    tensors = respell(VARIANTS["FLF2V-14B"].inventory(), **spelling)
    assert wan.recognise(tensors) == "FLF2V-14B"
    assert list(wan.problems(tensors)) == []
    assert [weight.name for weight in wan.weights(tensors)] == list(VARIANTS["FLF2V-14B"].inventory())
    assert [weight.sources["weight"].key for weight in wan.weights(tensors)] == list(tensors)
    facts = wan.describe(tensors)
    assert facts["key_format"] == spelling["key_format"]
    assert facts["prefix"] == spelling["prefix"]


def test_pairs_of_names_that_are_easy_to_get_wrong():
    pairs = {
        "blocks.7.norm3.weight": "blocks.7.norm2.weight",
        "blocks.7.modulation": "blocks.7.scale_shift_table",
        "head.modulation": "scale_shift_table",
        "head.head.bias": "proj_out.bias",
        "blocks.12.self_attn.o.weight": "blocks.12.attn1.to_out.0.weight",
        "blocks.12.cross_attn.norm_k_img.weight": "blocks.12.attn2.norm_added_k.weight",
        "blocks.0.ffn.0.weight": "blocks.0.ffn.net.0.proj.weight",
        "blocks.0.ffn.2.bias": "blocks.0.ffn.net.2.bias",
        "img_emb.emb_pos": "condition_embedder.image_embedder.pos_embed",
        "img_emb.proj.4.bias": "condition_embedder.image_embedder.norm2.bias",
        "time_projection.1.weight": "condition_embedder.time_proj.weight",
        "patch_embedding.weight": "patch_embedding.weight",
        "vace_blocks.0.after_proj.weight": "vace_blocks.0.proj_out.weight",
    }
    for original, diffusers in pairs.items():
        assert wan.rename(original, "diffusers") == diffusers
        assert wan.rename(original, "original") == original
    with pytest.raises(PluginError, match="did you mean 'diffusers'"):
        wan.rename("head.modulation", "difusers")


def test_describe():
    assert wan.describe(respell(VARIANTS["T2V-1.3B"].inventory(), key_format="diffusers")) == {
        "key_format": "diffusers",
        "prefix": "",
        "dim": 1536,
        "ffn_dim": 8960,
        "in_dim": 16,
        "out_dim": 16,
        "text_dim": 4096,
        "freq_dim": 256,
        "num_layers": 30,
        "num_heads": 12,
        "image_branch": False,
        "first_last_frame": False,
        "extra_tensors": 0,
    }
    assert "num_heads" not in wan.describe(Structure(dim=96, ffn_dim=160, num_layers=1).inventory())


FOREIGN = (
    # the umT5 encoder beside Wan: wan/modules/t5.py
    "token_embedding.weight",
    "blocks.0.norm1.weight",
    "blocks.0.attn.q.weight",
    "blocks.0.attn.o.weight",
    "blocks.0.norm2.weight",
    "blocks.0.ffn.gate.0.weight",
    "blocks.0.ffn.fc1.weight",
    "blocks.0.ffn.fc2.weight",
    "blocks.0.pos_embedding.embedding.weight",
    "norm.weight",
    # the same in transformers' naming
    "shared.weight",
    "encoder.block.0.layer.0.SelfAttention.q.weight",
    "encoder.block.0.layer.1.DenseReluDense.wi_0.weight",
    # CLIP: wan/modules/clip.py, and in transformers' naming
    "log_scale",
    "visual.cls_embedding",
    "visual.patch_embedding.weight",
    "visual.pre_norm.weight",
    "visual.transformer.0.norm1.weight",
    "visual.transformer.0.attn.to_qkv.weight",
    "visual.transformer.0.mlp.0.weight",
    "visual.head",
    "textual.token_embedding.weight",
    "textual.blocks.0.attn.q.weight",
    "textual.blocks.0.ffn.0.weight",
    "textual.blocks.0.norm2.weight",
    "textual.head.0.weight",
    "vision_model.embeddings.patch_embedding.weight",
    # VAE: wan/modules/vae.py, and in diffusers' naming
    "encoder.conv1.weight",
    "encoder.downsamples.0.residual.0.gamma",
    "encoder.head.2.weight",
    "decoder.middle.1.to_qkv.weight",
    "decoder.upsamples.3.resample.1.weight",
    "conv1.weight",
    "quant_conv.weight",
    "decoder.mid_block.attentions.0.norm.gamma",
    # adapters made for Wan, which are not Wan
    "diffusion_model.blocks.0.self_attn.q.lora_A.weight",
    "blocks.0.self_attn.q.lora_down.weight",
    "blocks.00.self_attn.q.weight",
    "blocks.x.self_attn.q.weight",
)


@pytest.mark.parametrize("key", FOREIGN)
def test_does_not_know_the_keys_of_other_models(key):
    assert not wan.owns_key(key)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_knows_its_own_keys(spelling):
    unknown = [key for key in respell(VARIANTS["FLF2V-14B"].inventory(), **spelling) if not wan.owns_key(key)]
    shared_with_t5 = [key for key in unknown if key.endswith(".norm2.weight")]
    assert unknown == shared_with_t5
    assert len(unknown) == (40 if spelling == {"key_format": "diffusers", "prefix": ""} else 0)


def test_knows_what_quantization_adds():
    assert wan.owns_key("blocks.0.self_attn.q.weight_scale")
    assert wan.owns_key("blocks.0.ffn.2.weight_global_scale")
    assert not wan.owns_key("blocks.0.attn.q.weight_scale")
    assert not wan.owns_key("head.head.weight_scale")


def test_other_models_are_not_recognised():
    spec = TensorSpec("BF16", (256, 256))
    assert wan.recognise(dict.fromkeys(FOREIGN, spec)) is None
    assert wan.recognise({}) is None
    # a T5 decoder calls its attentions like Wan's
    decoder = [f"blocks.0.{module}.{part}.weight" for module in ("self_attn", "cross_attn") for part in "qkvo"]
    assert wan.recognise(dict.fromkeys([*decoder, "blocks.0.norm3.weight"], spec)) is None


def test_fine_tunes_and_incomplete_models_are_of_the_family():
    assert wan.recognise(SMALL) == "unknown"
    one_block = {name: spec for name, spec in SMALL.items() if name.startswith("blocks.1.")}
    assert wan.recognise(one_block) == "unknown"
    the_rest = {name: spec for name, spec in SMALL.items() if not name.startswith("blocks.")}
    assert wan.recognise(the_rest) == "unknown"
    wider = dataclasses.replace(VARIANTS["I2V-14B"], in_dim=48).inventory()
    assert wan.recognise(wider) == "unknown"
    assert list(wan.problems(wider)) == []


def without(tensors, *gone):
    return {name: spec for name, spec in tensors.items() if not name.startswith(gone)}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_missing_tensor_is_named_as_the_file_would(spelling):
    for name in SMALL:
        tensors = respell(SMALL, **spelling)
        key = spelling["prefix"] + wan.rename(name, spelling["key_format"])
        del tensors[key]
        (problem,) = wan.problems(tensors)
        assert f": {key};" in problem
        assert "missing 1 " in problem


def test_a_missing_shard_is_summarised():
    names = list(SMALL)
    cut = slice(names.index("blocks.1.self_attn.v.weight"), names.index("blocks.2.cross_attn.q.weight"))
    tensors = {name: SMALL[name] for name in names if name not in names[cut]}
    assert list(wan.problems(tensors)) == [
        "missing 27 of the 32 tensors of block 1: blocks.1.self_attn.v.weight, blocks.1.self_attn.v.bias, "
        "blocks.1.self_attn.o.weight, blocks.1.self_attn.o.bias and 23 more; is a shard missing?",
        "missing 13 of the 32 tensors of block 2: blocks.2.modulation, blocks.2.self_attn.q.weight, "
        "blocks.2.self_attn.q.bias, blocks.2.self_attn.k.weight and 9 more; is a shard missing?",
    ]


def test_the_same_lack_in_many_blocks_is_one_message():
    tensors = {name: spec for name, spec in SMALL.items() if ".norm3." not in name}
    assert list(wan.problems(tensors)) == [
        "missing 2 of the 32 tensors of each of blocks 0-2: blocks.0.norm3.weight, blocks.0.norm3.bias; "
        "is a shard missing?"
    ]


def test_holes_in_the_block_numbers():
    tensors = without(dataclasses.replace(SYNTHETIC, num_layers=9).inventory(), "blocks.0.", "blocks.4.", "blocks.5.")
    assert list(wan.problems(tensors)) == [
        "missing every tensor of blocks 0, 4-5, while there are blocks up to 8; is a shard missing?"
    ]


def test_an_absurd_block_number_costs_nothing():
    (hole, lack) = wan.problems(SMALL | {"blocks.999999.norm3.bias": TensorSpec("BF16", (256,))})
    assert "blocks 3-999998" in hole
    assert "missing 31 of the 32 tensors of block 999999" in lack


def test_no_block_at_all():
    (problem,) = wan.problems(without(SMALL, "blocks."))
    assert "no block at all (no blocks.0.self_attn.q.weight)" in problem


def test_an_image_branch_is_whole_or_not_there():
    assert list(wan.problems(SMALL_T2V)) == []
    half = {name: spec for name, spec in SMALL.items() if not name.startswith("img_emb.")}
    (problem,) = wan.problems(half)
    assert problem.startswith("missing 8 tensors outside the blocks: img_emb.proj.0.weight")


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("blocks.1.self_attn.q.weight", (256, 128), "[256, 256]"),
        ("blocks.1.ffn.0.weight", (641, 256), "[640, 256]"),
        ("blocks.1.ffn.2.weight", (640, 256), "[256, 640]"),
        ("blocks.1.modulation", (6, 256), "[1, 6, 256]"),
        ("patch_embedding.weight", (255, 36, 1, 2, 2), "[256, 36, 1, 2, 2]"),
        ("time_projection.1.weight", (1535, 256), "[1536, 256]"),
        ("img_emb.proj.1.weight", (384, 256), "[384, 384]"),
    ],
)
def test_an_unexpected_shape_is_the_only_one_blamed(name, shape, expected):
    tensors = respell(SMALL | {name: TensorSpec("BF16", shape)}, key_format="diffusers", prefix=PREFIX)
    (problem,) = wan.problems(tensors)
    key = PREFIX + wan.rename(name, "diffusers")
    assert problem == f"{key} has the shape {list(shape)}, expected {expected}"


def test_many_unexpected_shapes_are_summarised():
    odd = {name: TensorSpec("BF16", (7, 7)) for name in SMALL if ".self_attn." in name}
    problems = list(wan.problems(SMALL | odd))
    assert len(problems) == 9
    assert problems[-1] == f"{len(odd) - 8} more tensors have an unexpected shape"


def test_two_spellings_of_the_same_tensor():
    name = "blocks.1.self_attn.q.weight"
    both = SMALL | {"blocks.1.attn1.to_q.weight": SMALL[name]}
    (problem,) = wan.problems(both)
    assert problem == (
        "1 tensor there more than once, in different spellings: blocks.1.self_attn.q.weight (as "
        "blocks.1.self_attn.q.weight and as blocks.1.attn1.to_q.weight); keep only one of the files"
    )
    (problem,) = wan.problems(SMALL | respell(SMALL, prefix=PREFIX))
    assert f"{len(SMALL)} tensors there more than once" in problem
    assert f"(as patch_embedding.weight and as {PREFIX}patch_embedding.weight)" in problem


def test_tensors_beyond_the_inventory_are_extra():
    spec = TensorSpec("BF16", (256, 256))
    extra = {
        f"{PREFIX}motion_encoder.enc.fc.0.weight": spec,
        f"{PREFIX}face_adapter.fuser_blocks.1.q_norm.weight": TensorSpec("BF16", (128,)),
        f"{PREFIX}blocks.2.self_attn.q.lora_A.weight": spec,
        f"{PREFIX}blocks.1.cross_attn.processor.k_proj.weight": spec,
    }
    tensors = respell(SMALL, prefix=PREFIX) | extra
    assert list(wan.problems(tensors)) == []
    assert wan.describe(tensors)["extra_tensors"] == 4
    found = [weight for weight in wan.weights(tensors) if weight.kind == "extra"]
    assert [(weight.name, weight.module, weight.block, weight.sources["weight"].key) for weight in found] == [
        (key.removeprefix(PREFIX), "", block, key) for key, block in zip(extra, ["", "1", "2", "1"], strict=True)
    ]


def test_an_already_quantized_checkpoint_is_still_wan():
    inventory = VARIANTS["I2V-14B"].inventory("BF16")
    quantized = {}
    for weight in wan.weights(inventory):
        rows, *columns = inventory[weight.name].shape
        quantized[weight.name] = inventory[weight.name]
        if weight.kind == "linear":
            quantized[weight.name] = TensorSpec("U8", (rows, columns[0] // 2))
            quantized[f"{weight.name}_scale"] = TensorSpec("F8_E4M3", (rows, columns[0] // 16))
            quantized[f"{weight.name}_global_scale"] = TensorSpec("F32", ())
    assert wan.recognise(quantized) == "I2V-14B"
    assert list(wan.problems(quantized)) == []
    assert wan.describe(quantized)["ffn_dim"] == 13824
    assert wan.describe(quantized)["extra_tensors"] == 0


I2V_480P_DIFFUSERS = {
    "_class_name": "WanTransformer3DModel",
    "_diffusers_version": "0.33.0.dev0",
    "added_kv_proj_dim": 5120,
    "attention_head_dim": 128,
    "cross_attn_norm": True,
    "eps": 1e-06,
    "ffn_dim": 13824,
    "freq_dim": 256,
    "image_dim": 1280,
    "in_channels": 36,
    "num_attention_heads": 40,
    "num_layers": 40,
    "out_channels": 16,
    "patch_size": [1, 2, 2],
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 1024,
    "text_dim": 4096,
}


def test_config_of_diffusers_in_the_runtimes_keys():
    expected = {
        "dim": 5120,
        "ffn_dim": 13824,
        "num_heads": 40,
        "num_layers": 40,
        "in_dim": 36,
        "out_dim": 16,
        "freq_dim": 256,
        "text_len": 512,
        "eps": 1e-06,
        "model_type": "i2v",
    }
    assert wan.config(SourceTensors({}, config=I2V_480P_DIFFUSERS), "original") == expected
    flf = I2V_480P_DIFFUSERS | {"pos_embed_seq_len": 514}
    assert wan.config(SourceTensors({}, config=flf), "original") == expected | {"model_type": "flf2v"}
    small = {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960, "image_dim": None, "in_channels": 16}
    assert wan.config(SourceTensors({}, config=small), "original") == expected | {
        "dim": 1536,
        "ffn_dim": 8960,
        "num_heads": 12,
        "num_layers": 30,
        "in_dim": 16,
        "model_type": "t2v",
    }


def test_config_that_needs_no_change_stays_the_same_object():
    sample = wan.synthetic()
    assert wan.config(SourceTensors({}, config=sample.config), "original") is sample.config
    assert wan.config(SourceTensors({}, config=I2V_480P_DIFFUSERS), "diffusers") is I2V_480P_DIFFUSERS


def test_sample_is_a_small_i2v():
    sample = wan.synthetic()
    facts = wan.describe(sample.tensors)
    assert wan.recognise(sample.tensors) == "unknown"
    assert list(wan.problems(sample.tensors)) == []
    assert facts["image_branch"]
    assert {spec.dtype for spec in sample.tensors.values()} == {"BF16"}
    assert sum(spec.nbytes for spec in sample.tensors.values()) < 10_000_000
    assert sample.config["model_type"] == "i2v"
    for key in ("dim", "ffn_dim", "in_dim", "out_dim", "num_layers", "num_heads", "freq_dim"):
        assert sample.config[key] == facts[key]
    linears = [weight.name for weight in wan.weights(sample.tensors) if weight.kind == "linear"]
    assert len(linears) == 36
    assert all(size % 128 == 0 for name in linears for size in sample.tensors[name].shape)


VACE = dataclasses.replace(SYNTHETIC, image=False, in_dim=16, vace_layers=2).inventory("BF16")


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_vace_blocks_are_quantized_like_the_others(spelling):
    tensors = respell(VACE, **spelling)
    assert list(wan.problems(tensors)) == []
    weights = {weight.name: weight for weight in wan.weights(tensors)}
    assert list(weights) == list(VACE)
    linear = [name for name, weight in weights.items() if weight.kind == "linear" and name.startswith("vace_blocks.")]
    assert len(linear) == 2 * 10
    assert {weights[name].module for name in linear} == {"self_attn", "cross_attn", "ffn"}
    assert weights["vace_blocks.1.ffn.0.weight"].block == "1"
    copied = ("vace_blocks.0.before_proj", "vace_blocks.0.after_proj", "vace_blocks.1.after_proj")
    assert {weights[f"{name}.weight"].kind for name in copied} == {"other"}
    assert weights["vace_patch_embedding.weight"].kind == "embedding"
    assert "vace_blocks.1.before_proj.weight" not in weights


def test_a_missing_part_of_vace_is_named():
    assert list(wan.problems(without(VACE, "vace_blocks.1.self_attn.q.weight", "vace_blocks.0.before_proj.bias"))) == [
        "missing 1 of the 31 tensors of block 0 of vace_blocks: vace_blocks.0.before_proj.bias; is a shard missing?",
        "missing 1 of the 29 tensors of block 1 of vace_blocks: vace_blocks.1.self_attn.q.weight; is a shard missing?",
    ]
    (problem,) = wan.problems(without(VACE, "vace_blocks."))
    assert problem.startswith("there is no block of vace_blocks at all (no vace_blocks.0.self_attn.q.weight)")


def test_adapters_that_the_runtime_reads_quantized():
    """``face_adapter`` of Animate and ``audio_injector`` of S2V are built with the class of the blocks' weights."""
    adapters = dataclasses.replace(SYNTHETIC, fuser_layers=2, injector_layers=1).inventory("BF16")
    adapters["audio_injector.injector_adain_layers.0.linear.weight"] = TensorSpec("BF16", (512, 128))
    adapters["audio_injector.injector_adain_layers.0.linear.bias"] = TensorSpec("BF16", (512,))
    assert list(wan.problems(adapters)) == []
    found = [weight for weight in wan.weights(adapters) if weight.kind == "linear" and weight.name[:7] != "blocks."]
    assert Counter(weight.module for weight in found) == {"face_adapter": 6, "audio_injector": 5}
    assert all(weight.block for weight in found)


PREFIXES = (
    *("model.diffusion_model.", "diffusion_model.", "model.", "module.", "transformer.", "pipe.dit.", "dit."),
    *("generator.model.", "generator.", "net.", "_orig_mod.", "module._orig_mod.", "module.model._orig_mod."),
)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_are_stripped(prefix):
    tensors = respell(SMALL, prefix=prefix)
    assert wan.recognise(tensors) == "unknown"
    assert list(wan.problems(tensors)) == []
    assert [weight.name for weight in wan.weights(tensors)] == list(SMALL)
    assert wan.describe(tensors)["prefix"] == prefix


def test_one_tensor_under_two_prefixes_names_both_keys():
    name = "blocks.1.self_attn.q.weight"
    (problem,) = wan.problems(respell(SMALL, prefix="module.") | {f"net.{name}": SMALL[name]})
    assert f"{name} (as module.{name} and as net.{name})" in problem


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_other_models_in_the_same_file_are_foreign(prefix):
    spec = TensorSpec("BF16", (4, 4))
    others = {"first_stage_model.conv1.weight": spec, "text_encoders.umt5xxl.transformer.shared.weight": spec}
    extra = {f"{prefix}motion_encoder.enc.fc.0.weight": spec}
    tensors = respell(SMALL, prefix=prefix) | others | extra
    assert wan.recognise(tensors) == "unknown"
    assert list(wan.problems(tensors)) == []
    assert list(wan.foreign(tensors)) == list(others)
    assert wan.describe(tensors)["extra_tensors"] == 1
    names = [weight.name for weight in wan.weights(tensors)]
    assert names == [*SMALL, "motion_encoder.enc.fc.0.weight"]
