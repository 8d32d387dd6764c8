"""The commands end to end: by flags as LightX2V's users type them, by YAML, planned, interrupted, repeated."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open

from converter_core.cli import convert as command
from converter_core.cli import run

ROOT = Path(__file__).parents[2]


@pytest.fixture
def models(wan_source: Path, tmp_path: Path) -> Path:
    """A folder with Wan2.1-I2V-14B-480P and -720P, small, as they would be downloaded."""
    folder = tmp_path / "models"
    for size in ("480P", "720P"):
        shutil.copytree(wan_source, folder / f"Wan2.1-I2V-14B-{size}")
    return folder


def dtypes(*files: Path) -> Counter[str]:
    found: Counter[str] = Counter()
    for file in files:
        with safe_open(file, framework="pt") as opened:
            found.update(opened.get_slice(key).get_dtype() for key in opened.keys())  # noqa: SIM118
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_480p_int8_in_a_single_file_as_typed(models, tmp_path, capsys):
    line = (
        "convert --source …/Wan2.1-I2V-14B-480P/ --output …_int8 --output_name wan2.1_i2v_480p_int8 "
        "--output_ext .safetensors --model_type wan_dit --linear_type int8 --quantized --single_file"
    )
    assert run(shlex.split(line.replace("…", str(models)))) == 0
    output = Path(f"{models}_int8")
    assert sorted(path.name for path in output.iterdir()) == [
        "wan2.1_i2v_480p_int8.manifest.json",
        "wan2.1_i2v_480p_int8.safetensors",
    ]
    assert dtypes(output / "wan2.1_i2v_480p_int8.safetensors") == {"I8": 36, "F32": 36, "BF16": 83}
    out, err = capsys.readouterr()
    assert "int8" in out
    assert "wan2.1_i2v_480p_int8.manifest.json" in out
    assert "Traceback" not in err


def test_720p_fp8_by_block_as_typed(models, tmp_path):
    line = (
        "convert --source …/Wan2.1-I2V-14B-720P/ --output …_fp8 --output_name wan2.1_i2v_720p_fp8 "
        "--output_ext .safetensors --model_type wan_dit --linear_type fp8 --quantized --save_by_block"
    )
    assert run(shlex.split(line.replace("…", str(models)))) == 0
    output = Path(f"{models}_fp8")
    blocks = [output / f"block_{number}.safetensors" for number in range(3)]
    assert sorted(path.name for path in output.iterdir()) == [
        *(block.name for block in blocks),
        "diffusion_pytorch_model.safetensors.index.json",
        "non_block.safetensors",
        "wan2.1_i2v_720p_fp8.manifest.json",
    ]
    assert dtypes(*blocks, output / "non_block.safetensors") == {"F8_E4M3": 36, "F32": 36, "BF16": 83}


def test_the_batch_script(models, tmp_path):
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    script = ROOT / "examples" / "batch_convert.sh"
    subprocess.run([script, models, tmp_path / "converted"], check=True, env=environment, timeout=300)
    for size in ("480p", "720p"):
        output = tmp_path / "converted" / f"Wan2.1-I2V-14B-{size.upper()}_int8"
        assert dtypes(output / f"wan2.1_i2v_{size}_int8.safetensors")["I8"] == 36
        assert (output / "config.json").exists()


def test_the_library_example(wan_source, tmp_path):
    script = ROOT / "examples" / "library_use.py"
    found = subprocess.run(
        [sys.executable, script, wan_source, tmp_path / "out"], capture_output=True, text=True, timeout=300
    )
    assert found.returncode == 0, found.stderr
    assert "'int8': 36" in found.stdout
    assert "\nalready done\n" in found.stdout
    assert '"dit_quantized": true' in found.stdout
    assert dtypes(*(tmp_path / "out").glob("*.safetensors"))["I8"] == 36


def test_yaml_and_flags_write_the_same_bytes(models, tmp_path):
    source = str(models / "Wan2.1-I2V-14B-480P")
    flags = ["-o_n", "wan", "-t", "wan_dit", "--linear_type", "fp8", "--quantized", "-c", "40"]
    assert run(["-s", source, "-o", str(tmp_path / "by_flags"), *flags]) == 0
    recipe = {
        "source": {"type": "wan_dit", "path": source},
        "quantization": {"method": "fp8"},
        "output": {"path": str(tmp_path / "by_yaml"), "name": "wan"},
        "target": {"layout": "chunked", "chunk_size": 40},
    }
    (tmp_path / "wan.yaml").write_text(yaml.safe_dump(recipe))
    assert run(["--config", str(tmp_path / "wan.yaml")]) == 0

    def files(folder: Path) -> dict[str, bytes]:
        return {name: content for name, content in contents(folder).items() if not name.endswith(".manifest.json")}

    assert len(files(tmp_path / "by_yaml")) == 4
    assert files(tmp_path / "by_yaml") == files(tmp_path / "by_flags")


@pytest.fixture
def recipe(asked, tmp_path: Path) -> Path:
    path = tmp_path / "wan.yaml"
    path.write_text(yaml.safe_dump(asked("int8")))
    return path


def test_json_is_all_there_is(recipe, tmp_path, capsys):
    assert run(["--config", str(recipe), "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    result = json.loads(out)
    assert result["status"] == "done"
    assert result["counts"] == {"int8": 36, "none": 83}
    assert result["files"]["wan.safetensors"] == (tmp_path / "out" / "wan.safetensors").stat().st_size
    assert run(["--config", str(recipe), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "already done"
    assert run(["--config", str(recipe)]) == 0
    assert "already done" in capsys.readouterr().out


def test_plan_and_dry_run_say_the_same_and_write_nothing(recipe, tmp_path, capsys):
    assert run(["plan", "--config", str(recipe), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "out").exists()
    assert run(["convert", "--config", str(recipe), "--dry-run", "--json"]) == 0
    dry = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "out").exists()
    for found in (plan, dry):
        found.pop("free_disk")
    assert plan == dry
    assert run(["plan", "--config", str(recipe)]) == 0
    out = capsys.readouterr().out
    assert run(["--config", str(recipe), "--json"]) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert plan["files"]["wan.safetensors"] == files["wan.safetensors"]
    assert f"{plan['files']['wan.safetensors']:,}" in out
    assert all(word in out for word in ("self_attn", "(target_modules)", "workers", "free"))


def test_an_absent_device_is_a_warning_of_plan_and_an_error_of_convert(recipe, capsys):
    absent = ["--config", str(recipe), "--device", "cpu:7"]
    assert run(["plan", *absent]) == 0
    assert "warning: cpu:7 is not here" in capsys.readouterr().out
    assert run(["convert", *absent]) == 1
    assert "--device: performance.device: cpu:7 is not here" in capsys.readouterr().err


def test_all_that_is_wrong_is_told_at_once_without_a_traceback(tmp_path, capsys):
    (tmp_path / "bad.yaml").write_text("source:\n  pth: a\noutput:\n  path: b\n  overwrite: no way\n")
    assert run(["--config", str(tmp_path / "bad.yaml")]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        f"error: {tmp_path}/bad.yaml:2: source.pth: unknown key 'pth'; did you mean 'path'? "
        "(known: calibration, components, dequantize, format, lora_numerics, loras, on_unmatched, options, path, type)",
        f"error: {tmp_path}/bad.yaml:5: output.overwrite: must be true or false, not 'no way'",
    ]


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_stops_it_in_good_order_and_the_same_command_resumes(
    recipe, tmp_path, capsys, monkeypatch, number, code, word
):
    line = ["--config", str(recipe), "--no-parallel", "--json"]
    undisturbed = [*line, "--set", f"output.path={tmp_path}/undisturbed"]
    assert run(undisturbed) == 0

    @contextmanager
    def strike(quiet, log):
        yield lambda event: os.kill(os.getpid(), number) if 0 < event.done < event.total else None

    before = signal.getsignal(signal.SIGTERM)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(command, "progress", strike)
        patch.setattr("converter_core.engine.worker_pool.POLL", 0.001)
        assert run(line) == code
    out, err = capsys.readouterr()
    stopped = json.loads(out)
    assert (stopped["error"]["kind"], stopped["exit_code"]) == (word.capitalize(), code)
    assert err == f"{word}; finished weights are kept, and the same command resumes\n"
    assert signal.getsignal(signal.SIGTERM) == before
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".wan.partial"]
    assert run(line) == 0
    assert json.loads(capsys.readouterr().out)["resumed"]["tensors"] > 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"wan.safetensors", "wan.manifest.json"}
    ours, theirs = (tmp_path / folder / "wan.safetensors" for folder in ("out", "undisturbed"))
    assert ours.read_bytes() == theirs.read_bytes()


def test_no_resume_starts_anew(recipe, capsys, monkeypatch):
    seen = {}

    def record(plan, *, resume, progress):
        seen["resume"] = resume
        raise KeyboardInterrupt

    monkeypatch.setattr("converter_core.engine.convert.convert", record)
    assert run(["--config", str(recipe), "--no-resume"]) == 130
    assert seen == {"resume": False}
    assert run(["--config", str(recipe)]) == 130
    assert seen == {"resume": True}


def test_what_the_system_says_of_a_file_is_no_traceback(recipe, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert run(["--config", str(recipe), "--output", str(tmp_path / "file" / "out")]) == 1
    assert f"error: {tmp_path}/file/out: is a file, or lies in one" in capsys.readouterr().err


def test_a_bug_shows_its_traceback(recipe, monkeypatch):
    def broken(*arguments, **keywords):
        raise ZeroDivisionError

    monkeypatch.setattr("converter_core.engine.convert.convert", broken)
    with pytest.raises(ZeroDivisionError):
        run(["--config", str(recipe)])


@pytest.mark.parametrize("layout", ["by_block", "single_file"])
def test_config_with_a_scheme_from_a_flag_and_a_layout_from_set(recipe, tmp_path, capsys, layout):
    line = ["convert", "--config", str(recipe), "--linear_type", "mxfp4", "--set", f"target.layout={layout}", "--json"]
    assert run(line) == 0
    assert json.loads(capsys.readouterr().out)["counts"] == {"mxfp4": 36, "none": 83}
    assert (tmp_path / "out" / "block_0.safetensors").exists() == (layout == "by_block")


def test_the_summary_is_short_and_verbose_prints_the_table(recipe, tmp_path, capsys):
    assert run([str(recipe)]) == 0
    out, err = capsys.readouterr()
    assert 3 <= len(out.splitlines()) <= 5
    assert "36 weights to int8, 83 copied" in out
    first, *_, last = err.splitlines()
    assert " converting /" in first
    assert first.endswith(f" to {tmp_path}/out")
    assert "[wan] done: 1 file" in last
    assert run([str(recipe), "--set", f"output.path={tmp_path}/again", "--verbose"]) == 0
    assert "self_attn" in capsys.readouterr().out


def test_quiet_prints_nothing(recipe, capsys):
    assert run([str(recipe), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_errors_are_json_on_stdout_too(tmp_path, capsys):
    assert run(["--config", str(tmp_path / "none.yaml"), "--json"]) == 1
    out, err = capsys.readouterr()
    assert err.startswith("error: ")
    found = json.loads(out)
    assert found["error"]["kind"] == "RecipeError"
    assert "none.yaml" in found["error"]["problems"][0]
    assert found["exit_code"] == 1
    assert run(["convert", "-s", "a", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["kind"] == "UsageError"


def test_several_recipes_are_done_though_one_fails(recipe, tmp_path, capsys):
    bad = tmp_path / "bad.yaml"
    bad.write_text("source: {path: none}\noutput: {path: out}\n")
    second = tmp_path / "second.yaml"
    second.write_text(recipe.read_text().replace(f"{tmp_path}/out", f"{tmp_path}/out_2"))
    assert run(["convert", str(bad), str(recipe), str(second)]) == 1
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["failed", "done", "done"]
    assert f"error: {bad}: " in err
    assert (tmp_path / "out_2" / "wan.safetensors").exists()
    assert run([str(bad), str(recipe), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [done["exit_code"] for done in found["conversions"]] == [1, 0]


def test_the_first_line_is_printed_before_torch_is_imported(recipe):
    code = (
        "import sys\nfrom converter_core.cli import log, run\n"
        "log.message = lambda text: print(text, 'torch' in sys.modules)\n"
        "run(sys.argv[1:])"
    )
    found = subprocess.run([sys.executable, "-c", code, str(recipe)], capture_output=True, text=True, timeout=120)
    first = found.stdout.splitlines()[0]
    assert "converting" in first
    assert first.endswith("False")
