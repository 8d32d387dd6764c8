"""Roots as they were downloaded: found, planned, converted and inspected as a whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from converter_core import PlanError, VerificationError, convert, inspect, make_plan, verify
from converter_core.api import SourceRoot, SyntheticCheckpoint
from converter_core.checkpoint.synthetic import write_synthetic
from converter_core.cli import run
from converter_core.planning.components import component_recipes, make_plans
from converter_core.plugins.registry import load_plugins
from converter_core.verification.folders import outputs_in
from converter_plugins.models.hunyuan_dit import HunyuanDit
from converter_plugins.models.wan_clip import WanClip
from converter_plugins.models.wan_dit import Structure, WanDit
from converter_plugins.models.wan_t5 import WanT5

SMALL = SyntheticCheckpoint(
    Structure(dim=64, ffn_dim=96, num_layers=1, text_dim=32, freq_dim=32).inventory("BF16"), {"dim": 64}
)
EXPERTS = ("high_noise_model", "low_noise_model")


def encoder(model):
    specs = model.synthetic().tensors
    generator = torch.Generator().manual_seed(2)
    return {key: torch.randn(spec.shape, generator=generator).bfloat16() for key, spec in specs.items()}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Wan2.2-T2V-A14B as released: two experts, and the encoder beside them."""
    root = tmp_path_factory.mktemp("roots") / "Wan2.2-T2V-A14B"
    for seed, expert in enumerate(EXPERTS):
        write_synthetic(root / expert, SMALL, seed=seed, shards=2)
    torch.save(encoder(WanT5()), root / "models_t5_umt5-xxl-enc-bf16.pth")
    torch.save({"conv1.weight": torch.ones(2, 2)}, root / "Wan2.1_VAE.pth")
    (root / "configuration.json").write_text("{}")
    return root


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """The same as diffusers keeps it."""
    root = tmp_path_factory.mktemp("roots") / "pipeline"
    for seed, name in enumerate(("transformer", "transformer_2")):
        write_synthetic(root / name, SMALL, seed=seed, shards=1, rename=lambda key: WanDit().rename(key, "diffusers"))
    respelt = {WanT5().rename(key, "transformers"): tensor for key, tensor in encoder(WanT5()).items()}
    (root / "text_encoder").mkdir()
    save_file(respelt, root / "text_encoder" / "model.safetensors")
    index = {
        "_class_name": "WanPipeline",
        "boundary_ratio": 0.9,
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "transformer_2": ["diffusers", "WanTransformer3DModel"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
        "image_encoder": [None, None],
    }
    (root / "model_index.json").write_text(json.dumps(index))
    return root


def recipe(root, output, **source):
    return {
        "source": {"path": str(root), **source},
        "quantization": {"method": "int8"},
        "output": {"path": str(output), "name": "made"},
    }


@pytest.mark.parametrize("root", ["pair", "pipeline"])
def test_both_experts_are_converted(root, tmp_path, request, registry):
    source = request.getfixturevalue(root)
    names = EXPERTS if root == "pair" else ("transformer", "transformer_2")
    result = convert(recipe(source, tmp_path / "o"))
    assert [output.output for output in result.outputs] == [str(tmp_path / "o" / name) for name in names]
    made = [load_file(tmp_path / "o" / name / "made.safetensors") for name in names]
    assert made[0].keys() == made[1].keys()
    assert not torch.equal(made[0]["blocks.0.ffn.0.weight"], made[1]["blocks.0.ffn.0.weight"])
    convert(recipe(source / names[0], tmp_path / "alone"))
    alone = (tmp_path / "alone" / "made.safetensors").read_bytes()
    assert alone == (tmp_path / "o" / names[0] / "made.safetensors").read_bytes()
    again = convert(recipe(source, tmp_path / "o"))
    assert [output.status for output in again.outputs] == ["already done"] * 2
    if root == "pair":
        assert inspect(tmp_path / "o", registry).runtime_config["config"] == {
            "dit_quantized": True,
            "dit_quant_scheme": "int8-vllm",
            "high_noise_quantized_ckpt": str(tmp_path / "o" / "high_noise_model"),
            "low_noise_quantized_ckpt": str(tmp_path / "o" / "low_noise_model"),
        }


def test_a_component_is_picked_by_name(pair, pipeline, tmp_path):
    (only,) = component_recipes(recipe(pair, tmp_path, components=["low_noise_model"]))
    assert (only.source.path, only.output.path) == (str(pair / EXPERTS[1]), str(tmp_path / EXPERTS[1]))
    assert only.source.type is None
    chosen = component_recipes(recipe(pair, tmp_path, components=["t5", "high_noise_model"]))
    assert [(one.source.path, one.source.type) for one in chosen] == [
        (str(pair / EXPERTS[0]), None),
        (str(pair / "models_t5_umt5-xxl-enc-bf16.pth"), "wan_t5"),
    ]
    (encoder,) = component_recipes(recipe(pipeline, tmp_path, components=["text_encoder"]))
    assert (encoder.source.path, encoder.source.type) == (str(pipeline / "text_encoder"), "wan_t5")
    (by_type,) = component_recipes(recipe(pair, tmp_path, type="wan_t5"))
    assert by_type.source.path == str(pair / "models_t5_umt5-xxl-enc-bf16.pth")
    assert convert(recipe(pair, tmp_path, components=["t5"])).counts == {"int8": 14, "none": 8}


def test_what_is_not_there_is_refused(pair, wan_source, tmp_path):
    with pytest.raises(PlanError, match=r"source\.components: unknown component 'hi_noise_model'.*high_noise_model"):
        convert(recipe(pair, tmp_path, components=["hi_noise_model"]))
    with pytest.raises(PlanError, match="is no folder with components"):
        convert(recipe(wan_source, tmp_path, components=["high_noise_model"]))


def test_a_lora_of_a_pair_says_whose_it_is(pair, wan_source, tmp_path):
    one, other = {"path": "a.safetensors"}, {"path": "b.safetensors", "component": "low_noise_model"}
    with pytest.raises(PlanError, match=r"loras\[0\]: say which of high_noise_model and low_noise_model it is for"):
        component_recipes(recipe(pair, tmp_path, loras=[one, other]))
    high, low = component_recipes(recipe(pair, tmp_path, loras=[other]))
    assert (high.source.loras, [lora.path for lora in low.source.loras]) == ((), ["b.safetensors"])
    (picked,) = component_recipes(recipe(pair, tmp_path, loras=[one], components=["high_noise_model"]))
    assert [lora.path for lora in picked.source.loras] == ["a.safetensors"]
    for source in (pair, wan_source):
        with pytest.raises(PlanError, match="unknown component 'low'"):
            component_recipes(recipe(source, tmp_path, loras=[{"path": "c", "component": "low"}]))


def test_an_ordinary_folder_is_one_conversion(wan_source, tmp_path):
    (same,) = component_recipes(recipe(wan_source, tmp_path / "o"))
    assert (same.source.path, same.output.path) == (str(wan_source), str(tmp_path / "o"))


def test_wan21_as_released(wan_source, tmp_path):
    """The transformer lies at the root itself, beside its encoders."""
    root = tmp_path / "Wan2.1-I2V"
    root.mkdir()
    for path in wan_source.iterdir():
        (root / path.name).symlink_to(path)
    torch.save(encoder(WanT5()), root / "models_t5_umt5-xxl-enc-bf16.pth")
    torch.save(encoder(WanClip()), root / "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth")
    (same,) = component_recipes(recipe(root, tmp_path / "o"))
    assert (same.source.path, same.output.path) == (str(root), str(tmp_path / "o"))
    everything = component_recipes(recipe(root, tmp_path / "o", components=["dit", "clip", "t5"]))
    assert [one.output.path for one in everything] == [str(tmp_path / "o" / name) for name in ("clip", "dit", "t5")]
    with make_plan(everything[0]) as plan:
        assert plan.adapter.name == "wan_clip"
    seen = inspect(root)
    assert (seen.model, {name: part.model for name, part in seen.components.items()}) == (
        "wan_dit",
        {"clip": "wan_clip", "t5": "wan_t5"},
    )


def test_inspect_says_what_is_there(pair):
    seen = inspect(pair)
    assert {name: (part.model, part.variant) for name, part in seen.components.items()} == {
        "high_noise_model": ("wan_dit", "unknown"),
        "low_noise_model": ("wan_dit", "unknown"),
        "t5": ("wan_t5", "unknown"),
    }
    assert (seen.model, seen.tensors, seen.files) == (None, (), ())
    assert seen.parameters == sum(part.parameters for part in seen.components.values())
    assert "--component NAME (high_noise_model, low_noise_model, t5)" in seen.next_steps[0]


def test_a_root_needs_the_disk_of_all_its_outputs(pair, tmp_path, monkeypatch):
    from converter_core.output import surroundings

    with make_plan(recipe(pair / EXPERTS[0], tmp_path / "x")) as plan:
        one = plan.outputs[0].needed_disk
    monkeypatch.setattr(surroundings, "free_disk", lambda path: one + 1)
    plans = make_plans(recipe(pair, tmp_path / "o"))
    assert all(any("low_noise_model: needs" in problem for problem in plan.problems) for plan in plans)
    with pytest.raises(PlanError, match="needs"):
        convert(plans)


def test_several_outputs_of_a_root(pair, tmp_path):
    several = {
        "source": {"path": str(pair)},
        "outputs": [
            {"output": {"path": str(tmp_path / "a")}, "quantization": {"method": "int8"}},
            {"output": {"path": str(tmp_path / "b")}, "target": {"format": "plain"}},
        ],
    }
    assert [output.output for output in convert(several).outputs] == [
        str(tmp_path / target / expert) for expert in EXPERTS for target in ("a", "b")
    ]


def test_a_listing_knows_depth_and_classes():
    weights = ("a/b.safetensors", "c.pth", "a/d/e.safetensors", "t/f.safetensors")
    index = {"t": ["diffusers", "X"], "a": ["diffusers", "Y"], "v": "X"}
    root = SourceRoot((*weights, "t/config.json"), weights, index)
    assert root.holds_weights("a")
    assert root.holds_weights("a/d")
    assert not root.holds_weights("c.pth")
    assert root.matching("*.safetensors") == []
    assert root.matching("*/*.safetensors", "*.pth") == ["a/b.safetensors", "t/f.safetensors", "c.pth"]
    assert root.of_classes(["X"]) == {"t": "t"}


def test_a_hostile_index_of_a_pipeline(tmp_path):
    """What an index says is looked up among the files that are there."""
    (tmp_path / "model_index.json").write_text(json.dumps({"../x": ["diffusers", "WanTransformer3DModel"], "n": 3}))
    assert len(component_recipes(recipe(tmp_path, tmp_path / "o"))) == 1


def test_verify_finds_each_output_and_its_component(pair, tmp_path, capsys):
    assert run(["convert", "-s", str(pair), "-o", str(tmp_path), "--scheme", "int8", "--quiet"]) == 0
    assert outputs_in(str(tmp_path), load_plugins()) == [str(tmp_path / expert) for expert in EXPERTS]
    assert run(["verify", str(tmp_path), "--against", str(pair), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["outputs"]
    assert [(one["output"], one["ok"]) for one in found] == [(str(tmp_path / expert), True) for expert in EXPERTS]
    assert all(weight["relative_error"] < 0.05 for one in found for weight in one["weights"])

    assert run(["verify", str(tmp_path), "--against", str(pair / EXPERTS[0]), "--quiet"]) == 1
    assert run(["verify", str(tmp_path), "--compare", str(tmp_path / EXPERTS[0])]) == 1
    assert "holds several outputs; --compare takes one of them" in capsys.readouterr().err

    verified = verify(tmp_path / EXPERTS[1], pair)
    assert (verified.ok, verified.against) == (True, str(pair / EXPERTS[1]))
    for manifest in (tmp_path / EXPERTS[1]).glob("*.manifest.json"):
        manifest.unlink()
    with pytest.raises(VerificationError, match="holds several models; give the one that was converted"):
        verify(tmp_path / EXPERTS[1], pair)


def test_the_released_folder_of_hunyuanvideo(tmp_path):
    root, model = tmp_path / "HunyuanVideo-1.5", HunyuanDit()
    for seed, name in enumerate(("480p_t2v", "720p_i2v")):
        write_synthetic(root / "transformer" / name, model.synthetic(), seed=seed, shards=1)
    (root / "vae").mkdir()
    save_file({"conv_in.weight": torch.ones(2, 2)}, root / "vae" / "diffusion_pytorch_model.safetensors")
    recipe = {
        "source": {"path": str(root), "components": ["720p_i2v"]},
        "quantization": {"method": "int8"},
        "output": {"path": str(tmp_path / "out")},
        "performance": {"device": "cpu"},
    }
    convert(recipe)
    assert [folder.name for folder in (tmp_path / "out").iterdir()] == ["720p_i2v"]
    assert verify(tmp_path / "out" / "720p_i2v", root / "transformer" / "720p_i2v").ok
    del recipe["source"]["components"]
    assert [Path(one.output.path).name for one in component_recipes(recipe)] == ["480p_t2v", "720p_i2v"]
