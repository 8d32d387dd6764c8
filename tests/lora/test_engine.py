"""LoRAs under way: interrupted and resumed, verified, within the budget, and merged as LightX2V's tool does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import converter_core
from converter_core import PlanError, Target, VerificationError
from converter_core.checkpoint.checkpoint import Checkpoint
from converter_core.output.journal import Journal
from converter_core.planning.slab_size import cut

from .conftest import random

NAMES = [f"blocks.{block}.{layer}" for block in range(2) for layer in ("self_attn.q", "cross_attn.o", "ffn.0")]


def some(weights: Mapping[str, Tensor], rank: int = 4, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """Pairs with alpha, and differences."""
    made = {}
    for number, name in enumerate(NAMES):
        rows, columns = weights[f"{name}.weight"].shape
        made[f"diffusion_model.{name}.lora_up.weight"] = random(rows, rank, seed=number, dtype=dtype)
        made[f"diffusion_model.{name}.lora_down.weight"] = random(rank, columns, seed=number + 50, dtype=dtype)
        made[f"diffusion_model.{name}.alpha"] = torch.tensor(3.0)
        made[f"diffusion_model.{name}.diff_b"] = random(rows, seed=number + 70, dtype=dtype)
    return made


class Interrupted(Exception):
    pass


def test_a_run_that_was_interrupted_goes_on(
    lora: Any, recipe: Any, registry: Any, weights: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [lora(some(weights), "one"), lora(some(weights, 7), "two")]
    converter_core.convert(recipe(files, "int8", output="whole"), registry=registry)
    count = 0
    real = Journal.done

    def done(self: Journal, *given: Any) -> None:
        nonlocal count
        real(self, *given)
        count += 1
        if count == 40:
            raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "done", done)
        with pytest.raises(Interrupted):
            converter_core.convert(recipe(files, "int8"), registry=registry)
    asked = recipe(files, "int8")
    with converter_core.make_plan(recipe(files[::-1], "int8"), registry) as other:
        assert other.outputs[0].status == "new"  # in another order other bytes
    result = converter_core.convert(asked, registry=registry)
    assert result.outputs[0].resumed["tensors"] >= 39
    whole, resumed = (tmp_path / folder / "x.safetensors" for folder in ("whole", "out"))
    assert whole.read_bytes() == resumed.read_bytes()


@pytest.mark.parametrize("numerics", ["exact", "lightx2v"])
def test_verify_merges_too(
    lora: Any, recipe: Any, registry: Any, weights: Any, wan: Path, tmp_path: Path, numerics: str
) -> None:
    file = lora(some(weights))
    converter_core.convert(recipe([file], "int8", lora_numerics=numerics), registry=registry)
    found = converter_core.verify(tmp_path / "out", wan, registry=registry)
    assert found.ok, found.problems
    assert all(weight.relative_error < 0.01 for weight in found.weights)
    lora({**some(weights), "diffusion_model.blocks.0.norm3.diff": random(128, seed=1)})
    with pytest.raises(VerificationError, match=r"lora.safetensors: is not the file that was merged"):
        converter_core.verify(tmp_path / "out", wan, registry=registry)
    file.unlink()
    with pytest.raises(VerificationError, match=r"a LoRA was merged, and .*lora.safetensors: is no file"):
        converter_core.verify(tmp_path / "out", wan, registry=registry)


def apply_lora(weights: dict[str, Tensor], lora: Mapping[str, Tensor], alpha: float | None, strength: float) -> None:
    """LoRALoader.apply_lora of LightX2V (lightx2v/utils/lora_loader.py), for the keys of ``some``."""
    for name in NAMES:
        param, base = weights[f"{name}.weight"], f"diffusion_model.{name}"
        up, down = (lora[f"{base}.lora_{way}.weight"].to(param.dtype) for way in ("up", "down"))
        delta = torch.mm(up, down) * (lora[f"{base}.alpha"].item() / down.shape[0])
        param += delta * float(strength)
    for name in NAMES:
        bias = weights[f"{name}.bias"]
        diff = lora[f"diffusion_model.{name}.diff_b"].to(bias.dtype)
        bias += diff * strength if alpha is None else diff * alpha * strength


@pytest.mark.parametrize("alpha", [None, 2.0])
def test_as_lightx2v_merges(lora: Any, merged: Any, weights: Any, alpha: float | None) -> None:
    """In bf16, step by step. Its product may sum in another order: one in some ten thousand differs by a bit."""
    tensors = some(weights, rank=16, dtype=torch.float16)
    section = {"path": str(lora(tensors)), "strength": 0.7, **({"alpha": alpha} if alpha else {})}
    found = merged([section], lora_numerics="lightx2v")
    expected = {key: tensor.clone() for key, tensor in weights.items()}
    apply_lora(expected, tensors, alpha, 0.7)
    exact = merged([section])
    for key, tensor in found.items():
        different = (tensor != expected[key]).double().mean()
        assert different < 1e-3, key
        assert tensor.dtype == torch.bfloat16
    changed = [f"{name}.weight" for name in NAMES]
    assert all((exact[key] != found[key]).double().mean() > 0.005 for key in changed)


def test_numerics_that_nobody_has(lora: Any, plan: Any, weights: Any) -> None:
    file = lora(some(weights))
    with pytest.raises(converter_core.RecipeError, match=r"unknown numerics 'diffuser'.*exact, lightx2v"):
        plan([file], lora_numerics="diffuser")
    dora = some(weights) | {f"diffusion_model.{NAMES[0]}.dora_scale": random(128, 1, seed=1)}
    with pytest.raises(PlanError, match=r"lightx2v merges no such form; use source.lora_numerics: exact"):
        plan([lora(dora, "dora")], lora_numerics="lightx2v")
    assert not Target.lora_forms


def test_what_is_read_and_held(lora: Any, recipe: Any, registry: Any, weights: Any, monkeypatch: Any) -> None:
    """A once for each weight, B's rows with the slab, nothing twice; and the cut counts both."""
    rank = 64
    file = lora({key: tensor for key, tensor in some(weights, rank).items() if "diff_b" not in key})
    read: dict[str, int] = {}
    largest = 0
    real = Checkpoint.read

    def spy(self: Checkpoint, key: str, start: int, into: memoryview) -> None:
        nonlocal largest
        if "lora" in key:
            read[key] = read.get(key, 0) + len(into)
            largest = max(largest, len(into))
        real(self, key, start, into)

    asked = recipe([file], "int8")
    asked["performance"]["max_memory"] = "256KiB"
    with converter_core.make_plan(asked, registry) as plan:
        job = next(job for job in plan.jobs if job.info.name == "blocks.0.ffn.0.weight")
        how = cut(job, 5 << 19, 256 << 10)
        bare = cut(next(job for job in plan.jobs if job.info.name == "blocks.0.self_attn.k.weight"), 5 << 19, 256 << 10)
        monkeypatch.setattr(Checkpoint, "read", spy)
        converter_core.convert(plan)
    assert how.nbytes <= 256 << 10
    assert how.span < bare.span
    with monkeypatch.context():
        sizes = {key: tensor.numel() * 2 for key, tensor in load_file(file).items() if "alpha" not in key}
    assert read == sizes
    assert largest == rank * 128 * 2
