"""What ``inspect`` names, and what it says to do next."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from converter_core import CheckpointError, convert, inspect, make_plan
from converter_core.cli.app import app
from converter_core.inspection import clues
from converter_plugins.models.wan_dit import WanDit

WAN = WanDit().synthetic().tensors


def wan_tensors(dtype=torch.bfloat16, prefix=""):
    return {prefix + key: torch.ones(spec.shape).to(dtype) for key, spec in WAN.items()}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer"),
        ("x.pth", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull fetches it"),
        ("x.safetensors", b"\n<!DOCTYPE html><html>Please log in</html>", "is a web page"),
        ("x.safetensors", b"", "is empty"),
        ("x.safetensors", b'{"error": "Repository not found"}', "is JSON text and holds no weights"),
        ("x.safetensors", b"PK\x03\x04" + bytes(60), "is a pytorch file by its content: name it .pth"),
    ],
    ids=["lfs", "lfs-pth", "html", "empty", "json", "zip"],
)
def test_a_file_that_is_something_else(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(CheckpointError) as told:
            inspect(path)
        assert all(said in problem for problem in told.value.problems)
    with pytest.raises(CheckpointError, match=said):
        make_plan({"source": {"path": str(tmp_path)}, "output": {"path": str(tmp_path / "o")}})


def test_a_lora_is_named(tmp_path):
    pairs = {
        f"diffusion_model.blocks.{n}.self_attn.q.lora_{side}.weight": torch.ones(4, 4)
        for n in range(3)
        for side in "AB"
    }
    save_file(pairs, tmp_path / "lora.safetensors")
    seen = inspect(tmp_path / "lora.safetensors")
    assert seen.model is None
    assert seen.notes[0].startswith("this is a LoRA or another adapter for 3 layers")
    kohya = {f"lora_unet_blocks_0_self_attn_{x}.lora_down.weight": torch.ones(4, 4) for x in "qkv"}
    save_file(kohya | {"lora_unet_blocks_0_self_attn_q.alpha": torch.ones(())}, tmp_path / "kohya.safetensors")
    assert "this is a LoRA" in inspect(tmp_path / "kohya.safetensors").notes[0]


def test_an_unknown_prefix_is_named(tmp_path):
    save_file(wan_tensors(prefix="wrapped.student."), tmp_path / "x.safetensors")
    seen = inspect(tmp_path / "x.safetensors")
    assert seen.model is None
    assert seen.notes[0].startswith("without 'wrapped.student.' before its names this is wan_dit unknown")


def test_plain_fp8_casts_are_said(tmp_path):
    tensors = wan_tensors()
    casts = [key for key in tensors if ".ffn." in key and key.endswith(".weight")]
    save_file(tensors | {key: tensors[key].to(torch.float8_e4m3fn) for key in casts}, tmp_path / "x.safetensors")
    seen = inspect(tmp_path)
    assert seen.quantized is None
    assert any("6 weights are plain casts to F8_E4M3, without scales" in note for note in seen.notes)


def test_scaled_fp8_that_nobody_reads_is_said(tmp_path):
    tensors = wan_tensors()
    key = "blocks.0.ffn.0.weight"
    tensors |= {key: tensors[key].to(torch.float8_e4m3fn), "blocks.0.ffn.0.scale_odd": torch.ones(())}
    save_file(tensors, tmp_path / "x.safetensors")
    assert any("with scales beside them" in note for note in inspect(tmp_path).notes)


def test_missing_shards_and_tensors(wan_source, tmp_path):
    names = [path.name for path in sorted(wan_source.glob("*.safetensors"))]
    for name in names[:2]:
        (tmp_path / name).symlink_to(wan_source / name)
    seen = inspect(tmp_path)
    assert seen.problems[0] == f"1 of 3 shards are missing: {names[2]}"
    assert any("is a shard missing?" in problem for problem in seen.problems[1:])
    assert seen.next_steps == ("get what is missing or damaged (see the problems), then look again",)
    assert list(clues.of_files(["a.safetensors", "b-00001-of-00001.safetensors"])) == []


def test_the_manifest_says_whose_file_it_is(asked, tmp_path):
    convert(asked("int8", **{"target.format": "plain"}))
    seen = inspect(tmp_path / "out")
    assert seen.quantized.target == "plain"
    assert seen.next_steps[-1].startswith("check it against its source: model-converter verify")
    (tmp_path / "out" / "wan.manifest.json").write_text("{}")
    assert inspect(tmp_path / "out").quantized.target == "plain"


def test_an_all_in_one_file_with_a_quantized_encoder(tmp_path):
    """Only the transformer's own weights say whether it is quantized."""
    tensors = wan_tensors(prefix="model.diffusion_model.")
    name = "text_encoders.umt5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.weight"
    encoder = {name: torch.ones(8, 8, dtype=torch.int8), f"{name}_scale": torch.ones(8, 1)}
    save_file(tensors | encoder, tmp_path / "all.safetensors")
    seen = inspect(tmp_path)
    assert (seen.model, seen.quantized) == ("wan_dit", None)
    recipe = {
        "source": {"path": str(tmp_path / "all.safetensors")},
        "quantization": {"method": "int8"},
        "output": {"path": str(tmp_path / "o")},
    }
    with make_plan(recipe) as plan:
        assert len(plan.outputs[0].weights) == len(WAN)
        assert any("skipping 2 tensors" in warning for warning in plan.warnings)


def test_the_command_ends_with_what_to_do(wan_source, asked, tmp_path):
    run = CliRunner().invoke
    shown = run(app, ["inspect", str(wan_source)]).stdout
    assert shown.splitlines()[-1].startswith("next: convert it: model-converter convert --source")
    convert(asked("fp8"))
    shown = run(app, ["inspect", str(tmp_path / "out")]).stdout
    assert "--runtime-config" in shown
    printed = run(app, ["inspect", str(tmp_path / "out"), "--runtime-config"])
    assert json.loads(printed.stdout) == {
        "dit_quantized": True,
        "dit_quant_scheme": "fp8-vllm",
        "dit_quantized_ckpt": str(tmp_path / "out"),
    }
    assert isinstance(run(app, ["inspect", str(wan_source), "--runtime-config"]).exception, CheckpointError)
