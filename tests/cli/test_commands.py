"""inspect, verify, plugins, init and demo, as a user runs them."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import yaml

from converter_core.cli import run
from converter_core.cli.describe import options, remarks, summary
from converter_core.cli.template import recipe as template
from converter_core.recipe.load import load_recipe
from converter_core.recipe.yaml_file import parse_yaml
from converter_plugins.quantizers.int8 import Int8
from converter_plugins.quantizers.nvfp4 import Nvfp4

CONFIGS = Path(__file__).parents[2] / "examples" / "configs"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a demo: source, recipe, output_int8."""
    folder = tmp_path_factory.mktemp("demo") / "kept"
    assert run(["demo", "--keep", str(folder)]) == 0
    return folder


def test_demo_shows_recipe_result_and_what_loads_it(kept, capsys):
    assert run(["demo", "--keep", str(kept)]) == 0
    out = capsys.readouterr().out
    made = yaml.safe_load((kept / "demo_int8.yaml").read_text())
    assert (made["quantization"], made["target"]["layout"]) == ({"method": "int8"}, "by_block")
    assert (kept / "demo_int8.yaml").read_text() in out
    assert "already done" in out
    assert '"dit_quantized": true' in out
    assert (kept / "output_int8" / "tokenizer" / "tokenizer_config.json").exists()


def test_demo_without_a_folder_leaves_nothing(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run(["demo", "--scheme", "nvfp4"]) == 0
    out, err = capsys.readouterr()
    assert '"dit_quant_scheme": "nvfp4"' in out
    assert "--keep DIR" in err
    assert not list(tmp_path.iterdir())


def test_demo_of_an_unknown_scheme(capsys):
    assert run(["demo", "--scheme", "int9"]) == 1
    assert "did you mean 'int8'" in capsys.readouterr().err


def test_inspect_of_source_and_output(kept, capsys):
    assert run(["inspect", str(kept / "source")]) == 0
    source = capsys.readouterr().out
    assert "wan_dit" in source
    assert "original" in source
    assert run(["inspect", str(kept / "output_int8"), "--tensors"]) == 0
    output = capsys.readouterr().out
    assert "for lightx2v: 36 int8" in output
    assert "schemes" in output
    assert "(target_modules) int8" in output
    assert '"dit_quant_scheme": "int8-vllm"' in output
    assert "blocks.2.ffn.0.weight_scale" in output


def test_inspect_as_json(kept, capsys):
    assert run(["inspect", str(kept / "output_int8"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["quantized"] == {
        "target": "lightx2v",
        "formats": {"int8": 36},
        "schemes": [{"match": "(target_modules)", "method": "int8", "options": {}}],
        "arrangement": {},
        "options": {},
    }
    assert "tensors" not in found
    assert run(["inspect", str(kept / "output_int8"), "--json", "--tensors"]) == 0
    tensors = {tensor["key"]: tensor for tensor in json.loads(capsys.readouterr().out)["tensors"]}
    assert tensors["blocks.0.self_attn.q.weight"]["dtype"] == "I8"


def test_inspect_of_nothing(tmp_path, capsys):
    assert run(["inspect", str(tmp_path / "none")]) == 1
    assert "none" in capsys.readouterr().err
    assert run(["inspect"]) == 2


def test_demo_of_a_scheme_for_one_file(tmp_path, capsys):
    assert run(["demo", "--scheme", "q4_k", "--keep", str(tmp_path / "kept")]) == 0
    out = capsys.readouterr().out
    assert "layout: single_file" in out
    assert "note: q4_k cannot take weights of shape [256, 640]" in out


def test_verify_in_words_and_json(kept, capsys):
    line = ["verify", str(kept / "output_int8"), "--against", str(kept / "source")]
    assert run(line) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "The worst 10" in out
    assert "36 weights, int8" in out
    assert all(f"\n {block} " in out for block in range(3))
    assert run([*line, "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert err == ""
    assert found["ok"] is True
    errors = [weight["relative_error"] for weight in found["weights"]]
    assert len(errors) == 36
    assert 0.001 < min(errors) < max(errors) < 0.02


def test_verify_writes_a_page(kept, tmp_path, capsys):
    pytest.importorskip("plotly")
    page = tmp_path / "errors.html"
    assert run(["verify", str(kept / "output_int8"), "--against", str(kept / "source"), "--html", str(page)]) == 0
    assert capsys.readouterr().err == f"written: {page}\n"
    assert "blocks.0.self_attn.q" in page.read_text()


def test_a_page_that_cannot_be_drawn_is_refused_before_the_work(kept, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setattr("converter_core.verification.verify", lambda *arguments, **keywords: pytest.fail("too late"))
    assert run(["verify", str(kept / "output_int8"), "--html", str(tmp_path / "errors.html")]) == 1
    assert "install" in capsys.readouterr().err


def test_verify_compares_two_conversions(kept, tmp_path, capsys):
    one, other, source = str(kept / "output_int8"), str(tmp_path / "fp8"), str(kept / "source")
    assert (
        run(["convert", "--source", source, "--output", other, "--linear-type", "fp8", "--quantized", "--quiet"]) == 0
    )
    capsys.readouterr()
    page = tmp_path / "both.html"
    assert run(["verify", one, "--compare", other, "--against", source, "--html", str(page)]) == 0
    said = "".join(capsys.readouterr())
    assert "Where they differ most" in said
    assert "the second is closer to the source in 0 weights, less close in" in said
    assert "output_int8 and fp8: compared" in page.read_text()
    assert run(["verify", one, "--compare", other, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["compared"]) == 2


def test_verify_without_a_manifest_says_structure_only_and_exits_with_3(kept, tmp_path, capsys):
    copied = tmp_path / "copied"
    shutil.copytree(kept / "output_int8", copied)
    for manifest in copied.glob("*.manifest.json"):
        manifest.unlink()
    assert run(["verify", str(copied)]) == 3
    assert re.search(r"^result +structure only$", capsys.readouterr().out, re.MULTILINE)


def test_verify_names_a_flipped_bit_and_exits_with_1(kept, tmp_path, capsys):
    import shutil

    shutil.copytree(kept / "output_int8", tmp_path / "out")
    file = tmp_path / "out" / "block_1.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 4
    file.write_bytes(content)
    assert run(["verify", str(tmp_path / "out")]) == 1
    out, err = capsys.readouterr()
    assert "1 problem\n" in out
    assert err.startswith("error: block_1.safetensors: ")
    assert run(["verify", str(tmp_path / "out"), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False


def test_plugins_lists_all_with_their_options(capsys):
    assert run(["plugins", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {(p["kind"], p["name"]) for p in found["plugins"]} >= {
        ("model", "wan_dit"),
        *(("quantizer", name) for name in ("int8", "fp8", "mxfp4", "nvfp4")),
        *(("target", name) for name in ("lightx2v", "plain")),
        *(("layout", name) for name in ("single_file", "by_block", "chunked")),
        *(("device", name) for name in ("cpu", "cuda", "hygon_dcu")),
    }
    assert all(p["description"] and p["distribution"] for p in found["plugins"])
    (int8,) = (p for p in found["plugins"] if p["name"] == "int8")
    assert {option["name"]: option["default"] for option in int8["options"]} == {
        "per_channel": True,
        "symmetric": True,
        "numerics": "exact",
        "scale_rule": "absmax",
        "bias_correction": False,
        "rounding": "nearest",
        "scale_dtype": "bfloat16",
    }
    assert run(["plugins"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("wan_dit", "chunk_size", "4GiB", "activation_absmax"))


def test_plugins_tells_why_one_is_not_usable(capsys, monkeypatch):
    monkeypatch.setenv("CONVERTER_DISABLE_PLUGINS", "mxfp4")
    assert run(["plugins"]) == 0
    out = capsys.readouterr().out
    assert "Not usable" in out
    assert "CONVERTER_DISABLE_PLUGINS names it" in out
    assert run(["init", "--scheme", "mxfp4"]) == 1
    assert "blocked" in capsys.readouterr().err


def test_what_a_plugin_says_of_itself():
    assert summary(Int8).startswith("8-bit integers")
    assert {option["name"]: option["type"] for option in options(Nvfp4)} == {
        "numerics": "exact or lightx2v",
        "scale_rule": "mse, absmax, four_over_six or weighted",
        "bias_correction": "true or false",
        "rounding": "nearest or gptq",
        "activation_absmax": "text",
    }
    assert all(option["description"] for cls in (Int8, Nvfp4) for option in options(cls))
    assert "``" not in "".join(remarks(Int8).values())


EXAMPLES = {
    "wan_dit_int8.yaml": ("int8", "auto"),
    "wan_dit_int8_dcu.yaml": ("int8", "hygon_dcu"),
    "wan_dit_fp8.yaml": ("fp8", "auto"),
    "wan_dit_mxfp4.yaml": ("mxfp4", "auto"),
    "wan_dit_nvfp4.yaml": ("nvfp4", "auto"),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_recipes_are_what_init_writes(name, tmp_path, registry):
    scheme, device = EXAMPLES[name]
    words = ["--scheme", scheme, "--device", device, "--source", "/path/to/Wan2.1-I2V-14B-480P"]
    assert run(["init", *words, str(tmp_path / name)]) == 0
    hint = f"model-converter init {' '.join(words)} examples/configs/{name}"
    assert (CONFIGS / name).read_text() == (tmp_path / name).read_text(), f"write it again: {hint}"
    recipe = load_recipe(CONFIGS / name, registry=registry)
    assert (recipe.quantization.method, recipe.performance.device) == (scheme, device)


def test_every_example_recipe_is_one(registry):
    files = sorted(CONFIGS.glob("*.yaml"))
    assert {file.name for file in files} >= set(EXAMPLES)
    for file in files:
        assert load_recipe(file, registry=registry).source.path


@pytest.mark.parametrize("cls", [Int8, Nvfp4])
def test_what_is_commented_out_is_valid_and_changes_nothing(cls, registry):
    text = template(cls, registry)
    known = {"format", "name", "copy_metadata", "overwrite", "chunk_size", "dtype", "parallel", "num_workers"}
    known |= {"max_memory", *(option["name"] for option in options(cls))} - {"name", "chunk_size", "activation_absmax"}
    lines = []
    for line in text.splitlines():
        key = line.strip().removeprefix("# ").partition(":")[0]
        lines.append(line.replace("# ", "", 1) if line.strip().startswith("# ") and key in known else line)
    plain = load_recipe(parse_yaml(text.encode(), "a").data, registry=registry)
    full = load_recipe(parse_yaml("\n".join(lines).encode(), "b").data, {"target.chunk_size": None}, registry)
    assert sum(line != old for line, old in zip(lines, text.splitlines(), strict=True)) >= 9
    assert set(full.quantization.options) > set(plain.quantization.options)
    assert full.output.overwrite == plain.output.overwrite
    assert full.performance.parallel == plain.performance.parallel


def test_init_writes_to_stdout_or_to_a_new_file(tmp_path, capsys):
    assert run(["init", "--scheme", "fp8", "--source", "/a b/c", "--output", "/out"]) == 0
    found = yaml.safe_load(capsys.readouterr().out)
    assert found["source"]["path"] == "/a b/c"
    assert found["output"]["path"] == "/out"
    file = tmp_path / "wan.yaml"
    assert run(["init", str(file)]) == 0
    file.write_text("mine")
    assert run(["init", str(file)]) == 1
    assert file.read_text() == "mine"
    assert "is there already" in capsys.readouterr().err
    assert run(["init", str(tmp_path / "none" / "wan.yaml")]) == 1


def test_a_recipe_for_a_scheme_from_outside_is_for_the_plain_target(registry):
    @dataclass(frozen=True)
    class Ternary(Int8):
        """Three values.

        threshold: what counts as zero, in units of the mean.
        """

        name: ClassVar[str] = "ternary"
        threshold: float = 0.7

    text = template(Ternary, registry)
    found = yaml.safe_load(text)
    assert found["quantization"]["method"] == found["target"]["precision"] == "ternary"
    assert found["target"]["format"] == "plain"
    assert "    # threshold: 0.7\n    #     what counts as zero, in units of the mean.\n" in text
