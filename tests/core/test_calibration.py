"""Gathering activation statistics: what they are, that they add up, and that an interrupted run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import converter_core
from converter_core.calibration import calibrate as running
from converter_core.calibration.statistics import InputStatistics, Kept, generator_of
from converter_core.cli import run

DIM = 16


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.o = (nn.Linear(DIM, DIM) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.o(self.q(x) * self.k(x).relu())


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.head = Attention(), nn.Linear(DIM, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.attn(x))


def recorded(folder: Path, count: int = 3) -> list[Path]:
    paths = []
    for number in range(count):
        paths.append(folder / f"call{number}.safetensors")
        draw = torch.Generator().manual_seed(number)
        save_file({"x": torch.randn(2, 50 + number, DIM, generator=draw) + 1}, paths[-1])
    return paths


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Bare()


def test_what_is_gathered(model: nn.Module, tmp_path: Path, capsys: Any) -> None:
    calls, file = recorded(tmp_path), tmp_path / "c.safetensors"
    settings = converter_core.CalibrationSettings(tokens=64)
    assert converter_core.calibrate(model, file, inputs=calls, settings=settings) == [file]
    found = load_file(file)
    with safe_open(file, "pt") as opened:
        assert opened.metadata()["inputs"] == '{"attn.k": "attn.q"}'
    seen = torch.cat([load_file(path)["x"].flatten(0, 1) for path in calls])
    assert found["attn.q.count"].item() == len(seen) == 306
    assert found["attn.q.absmax"] == seen.abs().max()
    assert torch.allclose(found["attn.q.mean"], seen.mean(0), atol=1e-6)
    assert torch.allclose(found["attn.q.mean_square"], seen.square().mean(0), rtol=1e-5)
    assert found["attn.q.tokens"].shape == (64, DIM)
    known = {tuple(row) for row in seen.bfloat16().tolist()}
    assert {tuple(row) for row in found["attn.q.tokens"].tolist()} <= known
    assert {key.rpartition(".")[0] for key in found} == {"attn.q", "attn.o", "head"}
    assert run(["inspect", str(file)]) == 0
    told = capsys.readouterr().out
    assert "activation statistics of 3 inputs, which 1 more layers share; up to 64 tokens" in told
    assert f"--set source.calibration={file}" in told
    assert "no adapter knows" not in told


def test_an_interrupted_run_goes_on(model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = recorded(tmp_path)
    converter_core.calibrate(model, tmp_path / "whole.safetensors", inputs=calls)
    gather, ran = running._gather, []

    def stops(one: Any, *rest: Any) -> None:
        ran.append(one.label)
        if len(ran) == 3:
            raise KeyboardInterrupt
        gather(one, *rest)

    monkeypatch.setattr(running, "_gather", stops)
    file = tmp_path / "c.safetensors"
    with pytest.raises(KeyboardInterrupt):
        converter_core.calibrate(model, file, inputs=calls)
    assert not file.exists()
    converter_core.calibrate(model, file, inputs=calls)
    assert ran == ["call0.safetensors", "call1.safetensors", *["call2.safetensors"] * 2]
    whole, parts = load_file(tmp_path / "whole.safetensors"), load_file(file)
    assert whole.keys() == parts.keys()
    for key in whole:
        assert torch.allclose(whole[key].float(), parts[key].float(), rtol=1e-5), key
    assert [path.name for path in tmp_path.glob("*.unfinished")] == []


def test_merged_is_as_gathered_in_one_go(model: nn.Module, tmp_path: Path) -> None:
    calls = recorded(tmp_path)
    one, other, both, whole = (tmp_path / f"{name}.safetensors" for name in ("one", "other", "both", "whole"))
    converter_core.calibrate(model, one, inputs=calls[:1])
    converter_core.calibrate(model, other, inputs=calls[1:])
    converter_core.calibrate(model, whole, inputs=calls)
    assert run(["merge-calibrations", str(one), str(other), "-o", str(both)]) == 0
    expected, found = load_file(whole), load_file(both)
    for key in expected:
        if key.endswith(".tokens"):
            assert sorted(expected[key].tolist()) == sorted(found[key].tolist())
        else:
            assert torch.allclose(expected[key].double(), found[key].double(), rtol=1e-5), key
    save_file({"a": torch.ones(1)}, tmp_path / "none.safetensors")
    with pytest.raises(converter_core.CheckpointError, match="is no calibration file"):
        converter_core.merge_calibrations([one, tmp_path / "none.safetensors"], both)


def test_a_sample_is_uniform_over_all_that_was_seen() -> None:
    def numbered(begin: int, end: int) -> InputStatistics:
        tokens = torch.arange(begin, end).float().unsqueeze(1)
        return InputStatistics.of(tokens, Kept(64), generator_of(str(begin)))

    total = numbered(0, 192)
    total.add(numbered(192, 256), Kept(64), generator_of("sum"))
    assert total.count == 256
    assert len(total.tokens) == 64
    late = int((total.tokens >= 192).sum())
    assert 6 <= late <= 26
    assert int((total.tokens[-16:] >= 192).sum()) < late  # in random order: the last quarter is not the last run


def test_what_is_refused(model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(converter_core.ConverterError, match="a bare transformer needs recorded inputs"):
        converter_core.calibrate(model, tmp_path / "c.safetensors", prompts=["a cat"])
    with pytest.raises(converter_core.CheckpointError, match="is no diffusers pipeline or model"):
        converter_core.calibrate(tmp_path, tmp_path / "c.safetensors", prompts=["a cat"])


class Pipeline:
    """As those of diffusers: components as attributes, a call with prompt and generator."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.transformer, self.transformer_2 = Bare(), Bare()

    def __call__(self, prompt: str, generator: torch.Generator, num_inference_steps: int = 5) -> None:
        for step in range(num_inference_steps):
            x = torch.randn(1, 10, DIM, generator=generator)
            (self.transformer if step % 2 else self.transformer_2)(x)


def test_a_pipeline_with_two_transformers(tmp_path: Path) -> None:
    settings = converter_core.CalibrationSettings(steps=3)
    with pytest.raises(converter_core.ConverterError, match="Pipeline takes no height"):
        converter_core.calibrate(
            Pipeline(), tmp_path / "c.safetensors", prompts=["a"], settings=converter_core.CalibrationSettings(height=4)
        )
    paths = converter_core.calibrate(Pipeline(), tmp_path / "c.safetensors", prompts=["a", "b"], settings=settings)
    assert [path.name for path in paths] == ["c.transformer.safetensors", "c.transformer_2.safetensors"]
    assert [load_file(path)["head.count"].item() for path in paths] == [20, 40]


def test_a_wan_transformer_made_by_diffusers(tmp_path: Path) -> None:
    """From its folder to a calibrated conversion, in the original names."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    wan = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=32,
        in_channels=4,
        out_channels=4,
        text_dim=32,
        freq_dim=32,
        ffn_dim=128,
        num_layers=1,
        rope_max_seq_len=32,
    )
    folder = tmp_path / "wan"
    wan.to(torch.bfloat16).save_pretrained(folder)
    call = {
        "hidden_states": torch.randn(1, 4, 3, 16, 16),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, 80, 32),
    }
    save_file({name: value.bfloat16() for name, value in call.items()}, tmp_path / "call.safetensors")
    file = tmp_path / "c.safetensors"
    assert run(["calibrate", str(folder), "-o", str(file), "--inputs", str(tmp_path / "call.safetensors")]) == 0
    found = load_file(file)
    assert found["blocks.0.self_attn.q.tokens"].shape == (192, 64)
    assert found["blocks.0.ffn.2.mean_square"].shape == (128,)
    recipe = {
        "source": {"path": str(folder), "calibration": str(file)},
        "quantization": {"method": "int8", "options": {"rounding": "gptq", "bias_correction": True}},
        "output": {"path": str(tmp_path / "out"), "name": "x"},
        "target": {"format": "plain"},
        "performance": {"device": "cpu"},
    }
    with converter_core.make_plan(recipe) as plan:
        assert [job.info.name for job in plan.jobs if job.exports[0].quantizer.name == "int8"]
        result = converter_core.convert(plan)
    assert sum("rows (" in note and "rounding: gptq of int8" in note for note in result.notes) == 1
    assert converter_core.verify(tmp_path / "out", folder).ok

    recipe["quantization"] = {
        "method": "none",
        "rules": [{"match": "blocks.0.ffn.*", "method": "int8", "options": {"rounding": "gptq"}}],
    }
    recipe["source"]["calibration"], recipe["output"]["name"] = str(tmp_path / "ffn.safetensors"), "y"
    settings = converter_core.CalibrationSettings(rank=8, tokens=140)
    calls = [tmp_path / "call.safetensors"] * 3
    converter_core.calibrate(folder, tmp_path / "ffn.safetensors", inputs=calls, settings=settings, recipe=recipe)
    of_layers = {key.partition(".count")[0] for key in load_file(tmp_path / "ffn.safetensors") if ".count" in key}
    assert of_layers == {"blocks.0.ffn.0", "blocks.0.ffn.2"}
    converter_core.convert(recipe)
    file = str(tmp_path / "ffn.safetensors")
    report = converter_core.verify(tmp_path / "out" / "y.manifest.json", folder, calibration=file)
    assert report.ok
    recipe["quantization"]["rules"] = [{"match": "blocks.7.*", "method": "int8"}]
    with pytest.raises(converter_core.ConverterError, match=r"'blocks\.7\.\*' matches no weight"):
        converter_core.calibrate(folder, tmp_path / "z.safetensors", inputs=calls, recipe=recipe)


def correlated(count: int, seed: int) -> torch.Tensor:
    """Most of it in four directions of 40."""
    mix = torch.randn(4, 40, generator=torch.Generator().manual_seed(5)) * 6
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, 4, generator=draw) @ mix + torch.randn(count, 40, generator=draw)


def test_factors_are_the_best_of_their_rank() -> None:
    tokens = correlated(4000, 0)
    found = InputStatistics.of(tokens, Kept(rank=4), generator_of("a"))
    assert found.factors.shape == (4, 40)
    assert found.tokens.shape == (128, 40)
    seen = tokens[torch.randperm(4000, generator=generator_of("a"))[1000:]].double()
    exact = seen.t() @ seen
    values, vectors = torch.linalg.eigh(exact)
    best = vectors[:, -4:] * values[-4:] @ vectors[:, -4:].t()
    least = (exact - best).norm()
    made = found.factors.double().t() @ found.factors.double()
    assert (exact - made).norm() < 1.02 * least
    assert (seen.bfloat16() == found.tokens[0]).all(1).sum() == 0  # what is held out, the factors have not seen


def test_factors_add_up_and_survive_the_file(model: nn.Module, tmp_path: Path, capsys: Any) -> None:
    calls = recorded(tmp_path, 4)
    one, other, both, plain = (tmp_path / f"{name}.safetensors" for name in ("one", "other", "both", "plain"))
    settings = converter_core.CalibrationSettings(rank=DIM)
    converter_core.calibrate(model, one, inputs=calls[:2], settings=settings)
    converter_core.calibrate(model, other, inputs=calls[2:], settings=settings)
    converter_core.calibrate(model, plain, inputs=calls)
    converter_core.merge_calibrations([one, other], both)
    found = load_file(both)
    seen = torch.cat([load_file(path)["x"].flatten(0, 1) for path in calls])
    factors = found["attn.q.factors"]
    exact = seen.t() @ seen / len(seen)  # of all tokens; the factors have seen three quarters of them
    assert torch.allclose(factors.t() @ factors, exact, atol=0.25)
    assert run(["inspect", str(both)]) == 0
    assert "and factors of rank 16" in capsys.readouterr().out
    with pytest.raises(converter_core.ConverterError, match=r"has factors \(--rank\) in one, and none in the other"):
        converter_core.merge_calibrations([one, plain], both)
