"""What is refused, with every key named; what scales; what the plan, the fingerprint and the manifest say."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

import converter_core
from converter_core import ConverterError, PlanError
from converter_core.lora.keys import parse
from converter_core.planning.lora_file import numbered

from .conftest import random

Q = "blocks.0.self_attn.q"


def pair(
    base: str = Q, rank: int = 4, up: str = ".lora_up.weight", down: str = ".lora_down.weight"
) -> dict[str, Tensor]:
    return {base + up: random(128, rank, seed=1), base + down: random(rank, 128, seed=2)}


REFUSED: dict[str, tuple[dict[str, Tensor], str]] = {
    "no such weight": (
        pair() | pair("blocks.0.self_attn.z") | pair("blocks.1.self_attn.z"),
        r"4 of its 6 tensors match no weight: blocks.0-1.self_attn.z.lora_down.weight, "
        r"blocks.0-1.self_attn.z.lora_up.weight; source.on_unmatched: warn leaves them out",
    ),
    "no key at all": (pair("text_model.q"), "match no weight: .*is it for another model than wan_dit"),
    "a word": (pair() | {"hello": torch.ones(1)}, "1 of its 3 tensors match no weight: hello"),
    "half a pair": ({f"{Q}.lora_up.weight": random(128, 4, seed=1)}, f"{Q} has no down, only {Q}.lora_up.weight"),
    "another rank": (
        pair() | {f"{Q}.lora_down.weight": random(5, 128, seed=1)},
        r"lora_down.weight \[5, 128\], .*lora_up.weight \[128, 4\] do not fit each other; the weight is \[128, 128\]",
    ),
    "another size": (
        {f"{Q}.lora_up.weight": random(192, 4, seed=1), f"{Q}.lora_down.weight": random(4, 128, seed=1)},
        r"change \[192, 128\]; the weight is \[128, 128\]",
    ),
    "a difference of another size": (
        {f"{Q}.diff_b": random(64, seed=1)},
        r"diff_b \[64\] change \[64, 1\]; .* \[128\]",
    ),
    "twice": (pair() | pair(f"diffusion_model.{Q}"), "two of its keys mean"),
    "twice in one style": (pair() | pair(up=".lora.up.weight", down=".lora.down.weight"), "says the same twice"),
    "mid": (
        pair() | {f"{Q}.lora_mid.weight": random(4, 4, seed=1)},
        r"a form that is not merged here \(lora_mid.weight\)",
    ),
    "tucker": ({f"{Q}.hada_t1": random(4, 4, seed=1)}, r"not merged here \(hada_t1\): " + Q),
    "oft": ({f"{Q}.oft_blocks": random(4, 4, seed=1)}, r"not merged here \(oft_blocks\)"),
    "alpha of nothing": (
        pair() | {"blocks.0.ffn.0.alpha": torch.tensor(1)},
        "nothing that these belong to: .*ffn.0.alpha",
    ),
    "alpha of zero": (pair() | {f"{Q}.alpha": torch.tensor(0)}, "alpha is 0, so it changes nothing"),
    "no rank": (pair(rank=0), "of rank 0"),
    "alphas": (pair() | {f"{Q}.alpha": torch.ones(4)}, r"alpha \[4\] is not one number"),
    "integers": (pair() | {f"{Q}.lora_up.weight": torch.ones(128, 4, dtype=torch.int8)}, "lora_up.weight is I8"),
    "nothing": (pair() | {f"{Q}.lora_up.weight": torch.zeros(128, 4)}, "changes nothing"),
    "magnitudes of columns": (pair() | {f"{Q}.dora_scale": random(1, 128, seed=1)}, "is one for each column"),
    "a magnitude too few": (pair() | {f"{Q}.dora_scale": random(127, seed=1)}, "no magnitude for each of the 128 rows"),
    "no LoRA": ({"a": torch.ones(1)}, "is no LoRA"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, lora: Any, plan: Any) -> None:
    tensors, words = REFUSED[name]
    with pytest.raises(PlanError, match=words) as told:
        plan([lora(tensors)])
    assert "lora.safetensors: " in str(told.value)


def test_everything_is_told_at_once(lora: Any, plan: Any) -> None:
    broken = {key: value for tensors, _ in REFUSED.values() for key, value in tensors.items() if key != "a"}
    files = [lora(broken, "one"), lora(pair("nowhere"), "two")]
    with pytest.raises(PlanError) as told:
        plan(files)
    assert len(told.value.problems) > 8
    assert {problem.partition(": ")[0].rpartition("/")[2] for problem in told.value.problems} == {
        "one.safetensors",
        "two.safetensors",
    }


def test_a_strength_of_zero_and_files_that_are_none(lora: Any, plan: Any, tmp_path: Any, wan: Any) -> None:
    with pytest.raises(PlanError, match="changes nothing"):
        plan([{"path": str(lora(pair())), "strength": 0}])
    with pytest.raises(ConverterError, match="is no file; a LoRA is one"):
        plan([tmp_path / "nowhere.safetensors"])
    with pytest.raises(ConverterError, match="is no file"):
        plan([wan])
    (tmp_path / "text.safetensors").write_text("no header")
    with pytest.raises(ConverterError, match=r"text.safetensors"):
        plan([tmp_path / "text.safetensors"])
    with pytest.raises(converter_core.RecipeError, match=r"source.loras\[0\].strength: must be a finite number"):
        plan([{"path": "x", "strength": float("nan")}])


def test_unmatched_keys_may_be_left_out(lora: Any, plan: Any) -> None:
    with plan([lora(REFUSED["no such weight"][0])], on_unmatched="warn") as found:
        assert any("4 of its 6 tensors match no weight" in warning for warning in found.warnings)
        assert found.as_dict()["loras"][0]["weights"] == 1
        assert len(found.as_dict()["loras"][0]["unmatched"]) == 4
    with pytest.raises(PlanError, match="is it for another model"):
        plan([lora(pair("nowhere"), "other")], on_unmatched="warn")


def test_a_quantized_source(lora: Any, recipe: Any, registry: Any, tmp_path: Any) -> None:
    first = recipe([], "int8", output="int8")
    converter_core.convert(first, registry=registry)
    again = recipe([lora(pair())])
    again["source"]["path"] = first["output"]["path"]
    with pytest.raises(PlanError, match=r"the source is quantized already .* a LoRA is merged before that"):
        converter_core.make_plan(again, registry)


def amounts(plan: Any) -> list[tuple[float, float]]:
    with plan:
        return [(term.amount.scale, term.amount.strength) for job in plan.jobs for term in job.terms]


def test_where_alpha_comes_from(lora: Any, plan: Any) -> None:
    """Its own tensor, else the header's metadata, else the recipe; else it is the rank."""
    bare, own = lora(pair(), "bare"), lora(pair() | {f"{Q}.alpha": torch.tensor(2)}, "own")
    told = {"transformer.lora_alpha": 12, "transformer.r": 4, "transformer.alpha_pattern": {}}
    header = lora(pair(), "header", {"lora_adapter_metadata": json.dumps(told)})
    told |= {"transformer.alpha_pattern": {"self_attn.q": 6}, "transformer.use_rslora": True}
    patterns = lora(pair(), "patterns", {"lora_adapter_metadata": json.dumps(told)})
    assert amounts(plan([bare])) == [(1.0, 1.0)]
    assert amounts(plan([{"path": str(bare), "alpha": 8, "strength": 2}])) == [(2.0, 2.0)]
    assert amounts(plan([{"path": str(own), "alpha": 8}])) == [(0.5, 1.0)]
    assert amounts(plan([{"path": str(header), "alpha": 8}])) == [(3.0, 1.0)]
    assert amounts(plan([patterns])) == [(3.0, 1.0)]  # 6 by the root of 4
    with pytest.raises(PlanError, match="lora_adapter_metadata cannot be read"):
        plan([lora(pair(), "damaged", {"lora_adapter_metadata": "{"})])


def test_what_the_plan_and_the_manifest_say(lora: Any, recipe: Any, registry: Any, tmp_path: Any) -> None:
    file = lora(pair() | pair("blocks.1.self_attn.k") | {"blocks.1.norm3.diff": random(128, seed=3)})
    with converter_core.make_plan(recipe([file]), registry) as found:
        (told,) = found.as_dict()["loras"]
        converter_core.convert(found)
    assert told["modules"] == {"self_attn": 2, "norm": 1}
    assert (told["weights"], told["strength"], told["alpha"]) == (3, 1.0, None)
    manifest = json.loads((tmp_path / "out" / "x.manifest.json").read_text())
    assert manifest["source"]["loras"] == [told]
    assert len(told["sha256"]) == 64


def test_the_fingerprint_is_of_content_strength_and_alpha(lora: Any, plan: Any, tmp_path: Any) -> None:
    def mark(*loras: Any) -> str:
        with plan(loras) as found:
            value: str = found.outputs[0].fingerprint.value
            return value

    file = lora(pair())
    first = mark(file)
    (tmp_path / "elsewhere").mkdir()
    moved = tmp_path / "elsewhere" / file.name
    moved.write_bytes(file.read_bytes())
    assert mark(moved) == first
    assert (
        len(
            {first, mark({"path": str(file), "strength": 0.5}), mark({"path": str(file), "alpha": 2}), mark(file, file)}
        )
        == 4
    )
    lora(pair() | {f"{Q}.lora_up.weight": random(128, 4, seed=9)})
    assert mark(file) != first


def test_several_outputs_read_and_merge_once(
    lora: Any, recipe: Any, registry: Any, tmp_path: Any, monkeypatch: Any
) -> None:
    asked = recipe([lora(pair())], "int8")
    single = [dict(asked, output={"path": str(tmp_path / name), "name": "x"}) for name in ("a", "b")]
    single[1]["quantization"] = {"method": "none"}
    for one in single:
        converter_core.convert(one, registry=registry)
    outputs = [
        {key: one[key] for key in ("quantization", "target")}
        | {"output": {"path": f"{one['output']['path']}2", "name": "x"}}
        for one in single
    ]
    both = {"source": asked["source"], "performance": asked["performance"], "outputs": outputs}
    with converter_core.make_plan(both, registry) as plan:
        assert [len(job.exports) for job in plan.jobs if job.terms] == [2]
        converter_core.convert(plan)
    for name in ("a", "b"):
        alone, together = (tmp_path / folder / "x.safetensors" for folder in (name, f"{name}2"))
        assert alone.read_bytes() == together.read_bytes()


def test_keys_are_counted_in_runs() -> None:
    keys = [f"blocks.{n}.q" for n in (0, 1, 2, 7, 9, 10)] + ["head"]
    assert numbered(keys) == "blocks.0-2,7,9-10.q, head"


def test_every_key_is_accounted_for() -> None:
    keys = [key for tensors, _ in REFUSED.values() for key in tensors]
    keys = list(dict.fromkeys(keys))
    parsed = parse(keys)
    told = [key for change in parsed.changes for key in change.parts.values()]
    told += [*parsed.unknown, *parsed.twice, *parsed.loose, *(key for some in parsed.refused.values() for key in some)]
    assert sorted(told) == sorted(keys)
