"""Flags of LightX2V's converter, as they are typed there, and the recipe that they stand for."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from converter_core.cli import convert as command
from converter_core.cli import run
from converter_core.cli.asked import Asked
from converter_core.plugins.registry import load_plugins
from converter_plugins.targets.lightx2v import LightX2V

INSTEAD = LightX2V.replaced_flags


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Any:
    """asked("convert --source a ...") -> what the engine would be given."""
    seen: list[Asked] = []

    def record(given: Asked, **keywords: Any) -> dict[str, Any]:
        seen.append(given)
        return {}

    monkeypatch.setattr(command, "run", record)
    monkeypatch.setattr(command, "show_result", lambda result, verbose: None)

    def parse(line: str) -> Asked:
        assert run(shlex.split(line)) == 0
        return seen.pop()

    return parse


FULL = (
    "--source models/wan/ --output out --output_name wan2.1_i2v_480p_int8 --output_ext .safetensors "
    "--model_type wan_dit --linear_type int8 --quantized --save_by_block --copy_no_weight_files "
    "--non_linear_dtype torch.bfloat16 --no-parallel --device cuda:1"
)
MEANT = {
    "source.path": "models/wan/",
    "output.path": "out",
    "output.name": "wan2.1_i2v_480p_int8",
    "source.type": "wan_dit",
    "quantization.method": "int8",
    "target.precision": "int8",
    "target.chunk_size": None,
    "output.copy_metadata": True,
    "target.dtype": "bfloat16",
    "performance.parallel": False,
    "performance.num_workers": None,
    "performance.device": "cuda:1",
}


@pytest.mark.parametrize(
    "line",
    [
        f"convert {FULL}",
        FULL,
        f"convert {FULL}".replace("_", "-")
        .replace("wan2.1-i2v-480p-int8", "wan2.1_i2v_480p_int8")
        .replace("wan-dit", "wan_dit"),
        "-s models/wan/ -o out -o_n wan2.1_i2v_480p_int8 -o_e .safetensors -t wan_dit --linear_type int8 --quantized "
        "-b --copy_no_weight_files --non_linear_dtype bfloat16 --no-parallel --device cuda:1",
    ],
)
def test_every_flag_in_every_spelling(asked, line):
    found = asked(line)
    assert found.source == {}
    assert found.overrides == MEANT


def test_a_recipe_by_flags_is_a_recipe(asked, registry):
    found = asked(FULL.replace("cuda:1", "cpu"))
    recipe = found.load(registry)
    assert recipe.as_dict() == {
        "source": {
            "path": "models/wan/",
            "type": "wan_dit",
            "dequantize": False,
            "lora_numerics": "exact",
            "on_unmatched": "error",
        },
        "quantization": {"method": "int8"},
        "output": {"path": "out", "name": "wan2.1_i2v_480p_int8", "copy_metadata": True, "overwrite": False},
        "target": {"precision": "int8", "layout": "by_block", "dtype": "bfloat16"},
        "performance": {"parallel": False, "device": "cpu", "executor": "threads"},
    }
    assert recipe.where("performance.device") == "--device: performance.device"


@pytest.mark.parametrize(
    ("flags", "layout", "chunk_size"),
    [
        ("", None, None),
        ("--single_file", "single_file", None),
        ("--save_by_block", "by_block", None),
        ("-c 100", "chunked", 100),
        ("--chunk-size 4GiB", "chunked", "4GiB"),
        ("--chunk_size 2GB", "chunked", "2GB"),
    ],
)
def test_layouts(asked, flags, layout, chunk_size):
    found = asked(f"-s a -o b {flags}")
    target = found.load(load_plugins()).target
    assert target.layout == layout
    assert target.chunk_size == chunk_size


def test_without_a_scheme_nothing_is_quantized(asked):
    assert asked("-s a -o b").overrides == {"source.path": "a", "output.path": "b"}


def test_config_without_a_command_and_flags_that_win(asked):
    found = asked("--config wan.yaml --linear_type fp8 --device cpu")
    assert found.source == "wan.yaml"
    assert found.overrides == {
        "quantization.method": "fp8",
        "target.precision": "fp8",
        "performance.device": "cpu",
    }
    assert asked("convert --config wan.yaml --quantized").overrides == {}


def test_set_wins_over_flags_and_takes_yaml(asked):
    settings = (
        "performance.device=cuda",
        "quantization.options.target_modules=[ffn,self_attn]",
        "output.overwrite=yes",
        "output.name=",
        "target.chunk_size=4",
    )
    found = asked("-s a -o b --device cpu " + " ".join(f"--set {setting}" for setting in settings))
    assert found.overrides == {
        "source.path": "a",
        "output.path": "b",
        "performance.device": "cuda",
        "quantization.options.target_modules": ["ffn", "self_attn"],
        "output.overwrite": True,
        "output.name": None,
        "target.chunk_size": 4,
    }
    assert found.labels["performance.device"] == "--set"


def test_set_may_give_what_flags_do_not(asked):
    assert asked("--set source.path=a --set output.path=b").overrides == {"source.path": "a", "output.path": "b"}


@pytest.mark.parametrize("line", ["{} --device cpu", "--device cpu {}", "{} wan.yaml"])
def test_several_loras(asked, line):
    loras = "--lora_path one.safetensors two.safetensors --lora_strength -0.5 2 --lora_alpha 8 --lora_key_convert auto"
    source = "" if "yaml" in line else "-s a -o b "
    assert asked(source + line.format(loras)).overrides["source.loras"] == [
        {"path": "one.safetensors", "strength": -0.5, "alpha": 8.0},
        {"path": "two.safetensors", "strength": 2.0, "alpha": 8.0},
    ]
    assert asked(source + line.format("--lora-path one --lora-path=two")).overrides["source.loras"] == [
        {"path": "one"},
        {"path": "two"},
    ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("-s a -o b --lora_strength 1", ["--lora-strength has 1 values for 0 LoRAs"]),
        ("-s a -o b --lora_path x y z --lora_alpha 1 2", ["--lora-alpha has 2 values for 3 LoRAs", "or one each"]),
        ("-s a -o b --lora_path x --lora_key_convert back", ["write auto, same or convert"]),
        ("-s a -o b --lora_path", ["--lora-path"]),
        ("-s a -o b --lora_path x --lora_strength strong", ["--lora-strength", "number"]),
        ("-s a -o b --linear_type int8", ["--linear-type int8", "add --quantized"]),
        ("-s a -o b --linear_type int8 --scheme fp8", ["--scheme and --linear-type are the same"]),
        ("-s a -o b --quantized", ["add --linear-type SCHEME", "fp8, "]),
        ("-s a -o b --single_file --save_by_block", ["exclude each other"]),
        ("-s a -o b --single_file -c 100", ["exclude each other"]),
        ("-s a -o b -b --chunk-size 4GiB", ["exclude each other"]),
        ("-s a", ["--config", "--output"]),
        ("convert", ["--config", "--source and --output"]),
        ("-s a -o b --set target.layout", ["key=value"]),
        ("-s a -o b --set =3", ["key=value"]),
        ("-s a -o b --no-such-flag", ["--no-such-flag"]),
        ("-s a -o b stray", ["stray", "not a recipe"]),
        ("a.yaml b.yaml -o c", ["--output cannot apply to 2 recipes"]),
        ("-s a -o b --workers 4", ["--set performance.num_workers=4"]),
        ("-s a -o b --num_workers 4", ["--set performance.num_workers=4"]),
        ("-s a -o b --layout x", ["--set target.layout=VALUE"]),
        ("-s a -o b --method x", ["--set quantization.method=VALUE"]),
        ("-s a -o b --target_modules ffn", ["--set quantization.options.target_modules="]),
        ("-s a -o b --scale-rule mse", ["--set quantization.options.scale_rule=VALUE", "nvfp4"]),
        ("convrt --config a.yaml", ["convrt"]),
        ("plan --config a.yaml --dry-run", ["--dry-run"]),
    ],
)
def test_usage_errors(line, words, capsys):
    assert run(shlex.split(line)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert all(word in err for word in words), err


@pytest.mark.parametrize("command_name", ["convert", "plan"])
@pytest.mark.parametrize("flag", [*INSTEAD, "--full_quantized", "--ignore_keys"])
def test_flags_that_there_are_none_of_are_refused_by_name(flag, command_name, capsys):
    assert run([command_name, "-s", "a", "-o", "b", flag, "backward"]) == 2
    err = capsys.readouterr().err
    name = flag if flag in INSTEAD else flag.replace("_", "-")
    assert f"there is no {name} here: {INSTEAD[name]}" in err


@pytest.mark.parametrize("spelling", ["--direction forward", "--direction=forward", "-dforward", "-d forward"])
def test_forward_is_target_diffusers(spelling, asked):
    found = asked(f"convert -s a {spelling} -o b --linear_type int8 --quantized")
    assert (found.overrides["target.format"], found.overrides["output.path"]) == ("diffusers", "b")
    assert found.overrides["quantization.method"] == "int8"


def test_scheme_and_target_need_no_other_flag(asked):
    found = asked("convert -s a -o b --scheme fp8 --target comfyui")
    assert found.overrides["quantization.method"] == found.overrides["target.precision"] == "fp8"
    assert found.overrides["target.format"] == "comfyui"
    assert asked("--config wan.yaml --scheme int8 --quantized").labels["quantization.method"] == "--scheme"


@pytest.mark.parametrize("spelling", ["--direction=backward", "-dbackward", "-d backward"])
def test_direction_in_other_spellings(spelling, capsys):
    assert run(["-s", "a", "-o", "b", *spelling.split()]) == 2
    assert "the naming of the source is recognised" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("-s a -o b --set target.layout=[", ["--set: target.layout: '['", "not valid YAML"]),
        ("-s a -o b --set target.layuot=by_block", ["--set: target.layuot", "did you mean 'layout'"]),
        ("-s a -o b --linear_type int9 --quantized", ["--linear-type: quantization.method", "did you mean 'int8'"]),
        ("-s a -o b -c 4Gib3", ["--chunk-size: target.chunk_size", "4Gib3"]),
        ("-s a -o b --model_type wan_t9", ["--model-type: source.type", "unknown model 'wan_t9'"]),
        ("-s a -o b --non_linear_dtype torch.float64", ["--non-linear-dtype: target.dtype", "float32"]),
        ("--config none.yaml", ["none.yaml: cannot be read"]),
    ],
)
def test_what_is_wrong_with_the_recipe_is_refused_with_one(line, words, capsys):
    assert run(shlex.split(line)) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert all(word in err for word in words), err
    assert "Traceback" not in err
