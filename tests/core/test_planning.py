"""Plans of the full models from headers alone, and what plans refuse."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from converter_core.api.tensors import raw
from converter_core.checkpoint.synthetic import write_headers_only, write_synthetic
from converter_core.engine.convert import convert
from converter_core.errors import ConverterError, PlanError
from converter_core.planning.planner import make_plan
from converter_plugins.models.wan_dit import VARIANTS, WanDit

LINEAR_PARAMETERS = {"I2V-14B": 16_148_070_400, "T2V-14B": 14_050_918_400, "T2V-1.3B": 1_391_984_640}


@pytest.mark.parametrize(
    ("variant", "tensors", "quantized", "parameters"),
    [
        ("I2V-14B", 1303, 480, 16_394_878_784),
        ("T2V-14B", 1095, 400, 14_288_491_584),
        ("T2V-1.3B", 825, 300, 1_418_996_800),
    ],
)
@pytest.mark.parametrize("scheme", ["int8", "fp8", "mxfp4", "nvfp4"])
def test_golden_plans(
    variant: str, tensors: int, quantized: int, parameters: int, scheme: str, asked: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("converter_core.output.surroundings.free_disk", lambda output: 1 << 40)
    source = tmp_path / "source"
    write_headers_only(source, VARIANTS[variant].inventory("F32"))
    with make_plan(asked(scheme, **{"source.path": str(source), "target.dtype": "bfloat16"})) as plan:
        told = plan.as_dict()
    assert told["model"]["variant"] == variant
    assert told["source"]["tensors"] == tensors
    assert told["bytes_before"] == 4 * parameters
    linear = LINEAR_PARAMETERS[variant]
    rows = sum(job.spec.shape[0] for job in plan.jobs if job.exports[0].quantizer.name == scheme)
    weights = {
        "int8": linear + 4 * rows,
        "fp8": linear + 4 * rows,
        "mxfp4": linear // 2 + linear // 32,
        "nvfp4": linear // 2 + linear // 16 + 4 * quantized,
    }
    assert sum(group["count"] for group in told["groups"] if group["method"] == scheme) == quantized
    assert told["bytes_after"] == weights[scheme] + 2 * (parameters - linear)
    (size,) = told["files"].values()
    assert 0 < size - told["bytes_after"] < 1_000_000


def test_a_plan_imports_no_compiler_and_reads_no_data(
    asked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("converter_core.output.surroundings.free_disk", lambda output: 1 << 40)
    before = set(sys.modules)
    write_headers_only(tmp_path / "source", VARIANTS["I2V-14B"].inventory("BF16"))
    with make_plan(asked("nvfp4", **{"source.path": str(tmp_path / "source")})) as plan:
        assert len(plan.jobs) == 1303
    assert not any(name.startswith("torch._dynamo") for name in set(sys.modules) - before)


def rewritten(source: Path, folder: Path, change: Any) -> Path:
    tensors = {}
    for file in sorted(source.glob("*.safetensors")):
        tensors.update(load_file(file))
    change(tensors)
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_all_refusals_come_in_one_message(asked: Any, wan_source: Path, tmp_path: Path) -> None:
    def harm(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["blocks.1.self_attn.q.bias"]
        tensors["blocks.0.norm3.weight"] = torch.ones(7)
        tensors["blocks.2.ffn.2.weight"] = torch.randn(256, 100)

    source = rewritten(wan_source, tmp_path / "harmed", harm)
    recipe = asked("nvfp4", **{"source.path": str(source), "output.path": str(source / "inside")})
    recipe["quantization"]["rules"] = [{"match": "nothing.*", "method": "none"}]
    with pytest.raises(PlanError) as error:
        make_plan(recipe)
    text = str(error.value)
    for words in (
        "blocks.1.self_attn.q.bias",
        "blocks.0.norm3.weight",
        "multiple of 16",
        "quantization.method",
        "'nothing.*' matches no weight",
        "inside the source",
    ):
        assert words in text
    assert len(error.value.problems) >= 5


def test_extra_tensors_are_copied_and_listed(asked: Any, wan_source: Path, tmp_path: Path) -> None:
    source = rewritten(
        wan_source,
        tmp_path / "vace",
        lambda tensors: tensors.update({"adapter_of_mine.0.proj.weight": torch.ones(4, 4)}),
    )
    with make_plan(asked("int8", **{"source.path": str(source)})) as plan:
        assert plan.as_dict()["extra_tensors"] == ["adapter_of_mine.0.proj.weight"]
        assert "adapter_of_mine.0.proj.weight" in plan.outputs[0].weight_map


@pytest.mark.parametrize("leaf", ["scale_weight", "weight_scale", "weight.scale"])
@pytest.mark.parametrize("method", ["none", "int8"])
def test_codes_whose_scales_no_target_reads_are_refused(
    asked: Any, wan_source: Path, tmp_path: Path, leaf: str, method: str
) -> None:
    def scale(tensors: dict[str, torch.Tensor]) -> None:
        for key in [key for key in tensors if ".ffn." in key and key.endswith(".weight")]:
            amax = tensors[key].float().abs().amax()
            tensors[f"{key.removesuffix('.weight')}.{leaf}"] = amax / 448
            tensors[key] = (tensors[key].float() / (amax / 448)).to(torch.float8_e4m3fn)

    source = rewritten(wan_source, tmp_path / "scaled", scale)
    words = rf"6 weights are F8_E4M3 with scales beside them, e\.g\. blocks\.0\.ffn\.0\.weight with .*{leaf}"
    with pytest.raises(PlanError, match=words):
        make_plan(asked(method, **{"source.path": str(source)}))


def test_a_width_no_scheme_takes_names_the_rule(asked: Any, tmp_path: Path) -> None:
    sample = WanDit().synthetic()
    assert sample is not None
    write_synthetic(tmp_path / "source", sample)
    recipe = asked("int8", **{"source.path": str(tmp_path / "source"), "quantization.options": {"symmetric": False}})
    with pytest.raises(PlanError, match=r"int8: blocks\..*zero.point.*chosen by quantization\.method"):
        make_plan(recipe)


def test_target_modules_that_leave_some_out_are_refused_for_lightx2v(asked: Any) -> None:
    recipe = asked("int8", **{"quantization.options": {"target_modules": ["ffn"]}})
    with pytest.raises(PlanError, match="30"):
        make_plan(recipe)
    recipe["target"]["format"] = "plain"
    with make_plan(recipe) as plan:
        assert plan.outputs[0].rules[-1].matched == 6
    recipe["quantization"]["options"]["target_modules"] = ["fnn"]
    with pytest.raises(ConverterError, match="'ffn'"):
        make_plan(recipe)


def test_an_absent_device_is_a_warning_of_the_plan_and_an_error_of_the_run(asked: Any) -> None:
    recipe = asked("int8", **{"performance.device": "cuda:3"})
    with make_plan(recipe) as plan:
        assert any("cuda:3" in warning and "cpu" in warning for warning in plan.warnings)
    with pytest.raises(PlanError, match=r"cuda:3.*cpu"):
        make_plan(recipe, require_device=True)
    for device in ("tpu", "cuda:x"):
        recipe["performance"]["device"] = device
        with pytest.raises(ConverterError, match=r"performance\.device"):
            make_plan(recipe)


def test_workers_and_memory_are_chosen_and_stated(asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with make_plan(asked("int8", **{"performance.parallel": False, "performance.max_memory": "1GiB"})) as plan:
        assert (plan.resources.workers, plan.resources.max_memory) == (1, 1 << 30)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    with make_plan(asked("int8")) as plan:
        assert plan.resources.workers == 8
        assert 0 < plan.resources.max_memory <= 4 << 30


def test_a_folder_that_also_holds_other_models(asked: Any, wan_source: Path, tmp_path: Path) -> None:
    source = tmp_path / "repo"
    shutil.copytree(wan_source, source)
    (source / "diffusion_pytorch_model.safetensors.index.json").unlink()
    save_file({"token_embedding.weight": torch.ones(4, 4)}, source / "t5.safetensors")
    torch.save({"encoder.conv1.weight": torch.ones(3)}, source / "Wan2.1_VAE.pth")
    with make_plan(asked("int8", **{"source.path": str(source)})) as plan:
        assert plan.as_dict()["source"]["skipped"] == ["Wan2.1_VAE.pth", "t5.safetensors"]
        assert len(plan.jobs) == 119


def test_a_single_file_may_have_its_output_beside_it(asked: Any, wan_source: Path, tmp_path: Path) -> None:
    file = rewritten(wan_source, tmp_path / "models", lambda tensors: None) / "model.safetensors"
    recipe = asked("int8", **{"source.path": str(file), "output.path": str(tmp_path / "models" / "out")})
    with make_plan(recipe) as plan:
        assert len(plan.jobs) == 119
    recipe["output"]["path"] = str(tmp_path / "models")
    with pytest.raises(PlanError, match=r"the source .* lies inside it"):
        make_plan(recipe)


def test_prefix_and_pickle_make_no_difference(asked: Any, wan_source: Path, tmp_path: Path) -> None:
    tensors = {}
    for file in sorted(wan_source.glob("*.safetensors")):
        tensors.update(load_file(file))
    torch.save({"state_dict": tensors}, tmp_path / "wan.pth")
    save_file({"model.diffusion_model." + key: tensor for key, tensor in tensors.items()}, tmp_path / "p.safetensors")
    written = []
    for source in (wan_source, tmp_path / "wan.pth", tmp_path / "p.safetensors"):
        out = tmp_path / f"from-{source.name}"
        convert(asked("mxfp4", **{"source.path": str(source), "output.path": str(out)}))
        written.append(load_file(out / "wan.safetensors"))
    for other in written[1:]:
        assert other.keys() == written[0].keys()
        assert all(bytes(raw(other[key])) == bytes(raw(written[0][key])) for key in other)


def test_a_lora_given_as_the_source(asked: Any, tmp_path: Path) -> None:
    names = ("lora_down", "lora_up")
    save_file(
        {f"diffusion_model.blocks.0.ffn.0.{one}.weight": torch.ones(4, 4) for one in names}, tmp_path / "l.safetensors"
    )
    with pytest.raises(PlanError, match=r"l\.safetensors: is a LoRA, .*source\.loras \(--lora-path\)"):
        make_plan(asked("int8", **{"source.path": str(tmp_path / "l.safetensors")}))
