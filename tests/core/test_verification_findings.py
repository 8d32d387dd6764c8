"""verify: what a manifest leaves out or contradicts is a finding, and nothing in an output makes it raise."""

from __future__ import annotations

import json
import os
import zlib
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from converter_core.api import Quantizer, TensorRef, TensorSpec, WeightContext
from converter_core.engine.convert import convert
from converter_core.errors import CheckpointError, ConverterError, listed, printable
from converter_core.output.manifest import dump, load_manifest
from converter_core.planning.decode import Slicer, Slices
from converter_core.storage.location import locate
from converter_core.verification.expected import manifests_beside
from converter_core.verification.result import Copied, Problem, Verification
from converter_core.verification.verify import verify
from converter_plugins.targets.plain import Plain

MANIFEST = "wan.manifest.json"


@pytest.fixture
def output(asked: Any, tmp_path: Any) -> Any:
    convert(asked("int8"))
    return tmp_path / "out"


def rewrite(out: Any, change: Any) -> None:
    """The manifest changed, with a checksum that fits."""
    path = out / MANIFEST
    content = {key: value for key, value in load_manifest(path).items() if key not in ("kind", "version", "crc32")}
    change(content)
    path.write_bytes(dump(content))


def reasons(report: Any) -> set[str]:
    return {problem.reason for problem in report.problems}


def test_weights_replaced_by_a_side_file_are_missing(output: Any, registry: Any) -> None:
    (output / "wan.safetensors").write_bytes(b"x")
    side = {"size": 1, "crc32": f"{zlib.crc32(b'x'):08x}"}
    rewrite(output, lambda content: content["files"].update({"wan.safetensors": side}))
    report = verify(output, registry=registry)
    assert report.status == "failed"
    assert {problem.file for problem in report.problems} == {"wan.safetensors"}


@pytest.mark.parametrize("section", ["weights", "tensors", "files"])
def test_a_manifest_that_leaves_out_a_section_fails(output: Any, registry: Any, section: str) -> None:
    rewrite(output, lambda content: content.update({section: {}}))
    report = verify(output, registry=registry)
    assert f"lists no {section}" in reasons(report)


def test_contradictions_of_a_manifest_are_named(output: Any, registry: Any) -> None:
    def change(content: Any) -> None:
        weights = content["weights"]
        weights["head.head.bias"]["parts"]["weight"] = "blocks.0.ffn.0.bias"
        del content["tensors"]["blocks.1.ffn.0.bias"]["crc32"]
        del content["files"]["wan.safetensors"]["header_crc32"]

    rewrite(output, change)
    report = verify(output, registry=registry)
    found = {(problem.tensor, problem.reason) for problem in report.problems}
    assert ("head.head.bias", "belongs to no weight that the manifest lists") in found
    assert ("blocks.1.ffn.0.bias", "has no checksum in the manifest") in found
    assert ("", "has no header_crc32 in the manifest, so it cannot be checked in full") in found
    assert any(
        tensor == "blocks.0.ffn.0.bias" and reason.startswith("is claimed twice: by ") for tensor, reason in found
    )


def test_an_unfinished_conversion_of_this_output_is_a_problem(output: Any, registry: Any) -> None:
    (output / ".wan.partial").mkdir()
    assert verify(output, registry=registry).status == "ok"
    (output / ".wan.partial" / "journal.jsonl").touch()
    report = verify(output, registry=registry)
    assert [problem.file for problem in report.problems] == [".wan.partial"]
    (output / MANIFEST).unlink()
    assert verify(output, registry=registry).status == "failed"


@pytest.mark.parametrize(
    "change",
    [
        {"model": []},
        {"target": {}},
        {"recipe": 7},
        {"weights": []},
        {"tensors": {"a": 1}},
        {"files": {"a": 1}},
    ],
    ids=str,
)
def test_wrong_types_in_a_manifest_are_a_problem(output: Any, registry: Any, change: Any) -> None:
    rewrite(output, lambda content: content.update(change))
    (problem,) = verify(output, registry=registry).problems
    assert "is not laid out as a manifest of this tool" in problem.reason


def test_a_deep_manifest_and_a_pipe_are_problems(output: Any, registry: Any) -> None:
    path = output / MANIFEST
    path.write_text("[" * 200_000)
    assert verify(output, registry=registry).problems
    path.unlink()
    os.mkfifo(path)
    assert "is not a regular file" in verify(output, registry=registry).problems[0].reason


def test_an_error_while_reading_is_a_problem(output: Any, registry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    report = verify(output, registry=registry)
    assert any("cannot be read (Input/output error)" in reason for reason in reasons(report))


def test_a_target_that_returns_nothing_is_a_problem(
    output: Any, wan_source: Any, registry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = registry.targets["lightx2v"]
    monkeypatch.setattr(target, "encode", lambda self, format, parts: {})
    monkeypatch.setattr(target, "decode", lambda self, format, stored: {})
    report = verify(output, wan_source, registry=registry)
    assert not report.ok
    assert all(problem.file == "wan.safetensors" and problem.tensor for problem in report.problems)


def test_an_error_just_above_one_step_fails(output: Any, wan_source: Any, registry: Any) -> None:
    """Every code one step off: the error is sqrt(1 + 1/12) = 1.04 steps, so a limit of any larger factor passes it."""
    path = output / "wan.safetensors"
    tensors = load_file(path)
    codes = tensors["blocks.1.ffn.0.weight"]
    tensors["blocks.1.ffn.0.weight"] = torch.where(codes < 127, codes + 1, codes - 1)
    save_file(tensors, path)
    (output / MANIFEST).unlink()
    report = verify(output, wan_source, registry=registry)
    (weight,) = [weight for weight in report.weights if not weight.ok]
    assert weight.name == "blocks.1.ffn.0.weight"
    assert 1.0 < weight.relative_error / weight.limit < 1.1


def test_clipping_that_a_scheme_means_to_do_passes(asked: Any, wan_source: Any, tmp_path: Any, registry: Any) -> None:
    """mxfp4's floor rule stores 1.99 as 1.5: 0.98 steps."""
    tensors = {}
    for path in sorted(wan_source.glob("*.safetensors")):
        tensors |= load_file(path)
    name = "blocks.1.ffn.0.weight"
    tensors[name] = torch.full_like(tensors[name], 1.99)
    (tmp_path / "constant").mkdir()
    save_file(tensors, tmp_path / "constant" / "model.safetensors")
    recipe = asked("mxfp4", **{"source.path": str(tmp_path / "constant")})
    recipe["quantization"]["options"] = {"scale_rule": "floor"}
    convert(recipe)
    report = verify(tmp_path / "out", tmp_path / "constant", registry=registry)
    assert report.ok
    (weight,) = [weight for weight in report.weights if weight.name == name]
    assert 0.9 < weight.relative_error / weight.limit < 1.0


def test_what_a_file_says_is_escaped_and_bounded() -> None:
    assert printable("a\x1b[31m\nb\u202e\udc80") == "a\\x1b[31m\\nb\\u202e\\udc80"
    assert len(printable("x" * 10**7)) == 300
    assert printable("start" + "x" * 1000 + "end", 20).endswith("end")
    assert str(ConverterError("two\nlines\x07")) == "two\nlines\\x07"
    assert listed(range(25), rest=" problems")[-1] == "and 5 more problems"
    assert len(listed(range(20))) == 20
    line = str(Problem("f\x1b", "t\x07" * 1000, "r\x9b"))
    assert line.isprintable()
    assert len(line) < 1000


def test_status_of_a_report() -> None:
    assert Verification("out").status == "structure only"
    assert Verification("out", manifest="m").status == "ok"
    assert Verification("out", against="s").status == "ok"
    assert Verification("out", "m", "s", problems=(Problem("f", "", "r"),)).status == "failed"
    values = Verification("out", copied=Copied(count=3, added=2)).as_dict()
    assert json.loads(json.dumps(values))["copied"]["added"] == 2


def test_nothing_has_no_bytes() -> None:
    nothing = Verification("out")
    assert (nothing.bytes_before, nothing.bytes_after) == (0, 0)
    assert not nothing.copied.compared


def test_a_file_of_another_size_is_one_problem_and_not_opened(output: Any, registry: Any) -> None:
    file = output / "wan.safetensors"
    size = file.stat().st_size
    with file.open("ab") as appended:
        appended.write(b"x")
    found = [problem for problem in verify(output, registry=registry).problems if problem.file == file.name]
    assert [problem.reason for problem in found] == [f"has {size + 1} bytes, the manifest says {size}"]


def test_a_place_that_cannot_be_listed_has_no_manifests_beside() -> None:
    class Silent:
        def entries(self) -> None:
            raise CheckpointError("a web server does not list its folders")

    assert manifests_beside(Silent()) == []  # type: ignore[arg-type]


def test_manifests_beside(output: Any, registry: Any) -> None:
    (found,) = manifests_beside(locate(output, registry.storages))
    assert found.name == MANIFEST


def test_a_manifest_that_takes_a_part_for_the_weight(output: Any, registry: Any) -> None:
    """As older ones of transcoded outputs do."""

    def confuse(content: Any) -> None:
        for entry in content["weights"].values():
            if entry["format"] == "int8":
                scale = content["tensors"][entry["parts"]["scale"]]
                entry["source"] = {"dtype": scale["dtype"], "shape": scale["shape"]}

    rewrite(output, confuse)
    report = verify(output, registry=registry)
    assert report.problems == ()
    assert {weight.shape for weight in report.weights} > {(256, 256)}


class NeedsInput(Quantizer):
    """Quantizes with something that only the checkpoint can give."""

    name = "needs_input"
    row_block = 4

    def inputs(self, context: WeightContext, stores: Any, /) -> dict[str, TensorRef]:
        return {"given": TensorRef("given")}

    def quantize(self, weight: torch.Tensor, *, given: torch.Tensor) -> dict[str, torch.Tensor]:  # type: ignore[override]
        return {"weight": weight * given}

    def dequantize(self, parts: Any, /) -> torch.Tensor:
        return parts["weight"]  # type: ignore[no-any-return]


class Whole(NeedsInput):
    row_block = None


def spec(*shape: int) -> TensorSpec:
    return TensorSpec("F32", shape)


@pytest.mark.parametrize(
    ("quantizer", "weight", "parts", "expected"),
    [
        # what has as many rows as the weight is cut with it, and nothing else is
        (NeedsInput, (6, 8), {"weight": (6, 8), "scale": (6, 1), "row": (1, 6), "one": ()}, (4, {"weight", "scale"})),
        (NeedsInput, (6, 8), {"row": (1, 6), "one": ()}, (6, set())),
        (Whole, (6, 8), {"weight": (6, 8), "one": ()}, (6, set())),
        (NeedsInput, (1, 8), {"weight": (1, 8), "one": ()}, (4, {"weight"})),
        (NeedsInput, (), {"weight": (2, 1), "one": ()}, (1, set())),
        (NeedsInput, (), {"weight": (1, 1)}, (4, {"weight"})),
    ],
)
def test_parts_of_a_quantizer_that_needs_inputs_are_cut_by_their_rows(
    quantizer: Any, weight: Any, parts: Any, expected: Any
) -> None:
    tile, cut = expected
    found = Slicer(Plain()).slices(quantizer(), spec(*weight), {role: spec(*shape) for role, shape in parts.items()})
    assert found.shape == weight
    assert found.tile == tile
    assert found.heights == {role: tile if role in cut else 0 for role in parts}
    assert found.step % tile == 0
    assert found.step >= tile
    if not cut:
        assert found.step == tile


@pytest.mark.parametrize(("shape", "rows"), [((6, 8), 6), ((0, 8), 1), ((), 1)])
def test_parts_of_a_weight_that_nobody_knows_are_read_whole(shape: Any, rows: int) -> None:
    found = Slicer(Plain()).slices(NeedsInput(), None, {"weight": spec(*shape)})
    assert found == Slices(shape, rows, rows, {"weight": 0})
