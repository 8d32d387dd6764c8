"""README and guide say nothing untried: snippets run, sizes are the plan's, both languages agree."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import subprocess
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import typer

from converter_core.api.values import SyntheticCheckpoint
from converter_core.checkpoint.synthetic import write_headers_only, write_synthetic
from converter_core.cli import run
from converter_core.cli.app import app
from converter_core.inspection import inspect
from converter_core.planning.plan import Plan
from converter_core.planning.planner import make_plan
from converter_core.plugins.registry import load_plugins
from converter_plugins.models.wan_dit import SYNTHETIC, VARIANTS, WanDit

ROOT = Path(__file__).parents[2]
PAGES = {"README.md": "README.zh-CN.md", "docs/wan2.1.md": "docs/zh/wan2.1.md"}
ENGLISH = sorted(
    str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md") if "zh" not in path.parts
)
INSTALLS = ("python3 -m venv ", ". .venv/bin/activate", "pip install ")

LIGHTX2V_FLAGS = re.findall(
    r"-\S+",
    """--source -s --output -o --output_name -o_n --output_ext -o_e --model_type -t --direction -d --chunk-size -c
    --save_by_block -b --comfyui_mode --full_quantized --quantized --bits --device --linear_type --linear_dtype
    --non_linear_dtype --lora_path --lora_alpha --lora_strength --lora_key_convert --copy_no_weight_files --single_file
    --parallel --no-parallel --quantization_profile --target-keys --ignore-keys --ignore-quant-keys""",
)
"""Every argument of LightX2V's tools/convert/converter.py, August 2026, and ``--linear_dtype`` of 2025."""


@dataclass(frozen=True)
class Snippet:
    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def bare(self) -> str:
        """Without comments, which are translated."""
        return "\n".join(re.sub(r"(^|\s+)#.*$", "", line) for line in self.text.splitlines())


def snippets(page: str) -> list[Snippet]:
    text = (ROOT / page).read_text()
    fence = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
    return [Snippet(page, text.count("\n", 0, hit.start()) + 1, hit[1], hit[2]) for hit in fence.finditer(text)]


def rows(page: str, heading: str) -> Iterator[list[str]]:
    """The cells of the rows of the first table under a heading, without its head."""
    _, _, below = (ROOT / page).read_text().partition(f"\n## {heading}\n")
    table = re.search(r"^\|[-|]+\|\n((?:\|.*\n)+)", below, re.M)
    assert table, f"{page}: no table under {heading}"
    for line in table[1].splitlines():
        yield [cell.strip() for cell in line.strip("|").split(" | ")]


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the pages assume it, with small models in the place of the real ones."""
    image = WanDit().synthetic()
    text = SyntheticCheckpoint(replace(SYNTHETIC, image=False, in_dim=16).inventory("BF16"), image.config)
    write_synthetic(tmp_path / "models/Wan2.1-I2V-14B-480P", image)
    write_synthetic(tmp_path / "models/Wan2.1-I2V-14B-720P", image, dtype="F32", seed=1)
    write_synthetic(tmp_path / "models/Wan2.1-T2V-1.3B", text, shards=1)
    linears = [f"blocks.{number}.{name}.weight" for number in range(SYNTHETIC.num_layers) for name in LINEARS]
    absmax = {name: torch.tensor(1.0 + index) for index, name in enumerate(linears)}
    torch.save({"absmax": absmax}, tmp_path / "calib.pt")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


LINEARS = [
    *(f"self_attn.{name}" for name in "qkvo"),
    *(f"cross_attn.{name}" for name in ("q", "k", "v", "o", "k_img", "v_img")),
    "ffn.0",
    "ffn.2",
]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_every_snippet_runs_in_the_order_of_the_page(page: str, downloads: Path) -> None:
    ran = 0
    for snippet in snippets(page):
        match snippet.language:
            case "bash":
                run_bash(snippet)
            case "yaml":
                name = re.match(r"# (\S+\.yaml)\n", snippet.text)
                assert name, f"{snippet}: says not which file it is"
                (downloads / name[1]).write_text(snippet.text)
            case "python" if "@hookimpl" in snippet.text:
                run_plugin(snippet)
            case "python":
                exec(compile(snippet.text, str(snippet), "exec"), {})
            case "json":
                shown = json.loads(snippet.text)
                path = downloads / shown["dit_quantized_ckpt"].removeprefix("/data/")
                assert {**shown, "dit_quantized_ckpt": str(path)} == inspect(path).runtime_config["config"], snippet
            case "text":
                continue
            case language:
                pytest.fail(f"{snippet}: nobody runs {language!r}")
        ran += 1
    assert ran > 8
    assert list((downloads / "converted").glob("**/*.manifest.json")), "nothing was converted"
    assert not list((downloads / "converted").glob("**/.*.partial"))


def run_bash(snippet: Snippet) -> None:
    lines = snippet.text.splitlines()
    if lines[0].startswith("make "):
        subprocess.run(["make", "-n", "-C", ROOT, *lines[0].split()[1:]], check=True, capture_output=True)
        return
    if all(line.startswith(INSTALLS) for line in lines):  # what make test did to get here
        return
    commands = [shlex.split(line) for line in snippet.text.replace("\\\n", " ").splitlines()]
    if all(command[0] == "model-converter" for command in commands):  # in this process: torch is slow to import
        for command in commands:
            assert run(command[1:]) == 0, f"{snippet}: {shlex.join(command)}"
        return
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", snippet.text], capture_output=True, text=True)
    assert done.returncode == 0, f"{snippet}: {snippet.text}\n{done.stdout}\n{done.stderr}"


def run_plugin(snippet: Snippet) -> None:
    module = types.ModuleType("snippet")
    sys.modules["snippet"] = module  # dataclasses look their module up
    try:
        exec(compile(snippet.text, str(snippet), "exec"), vars(module))
        quantizer = load_plugins(extra=[module], blocked=["ternary"]).quantizers["ternary"](threshold=0.5)  # type: ignore[call-arg]
    finally:
        del sys.modules["snippet"]
    weight = torch.tensor([[1.0, -1.0, 0.25, 0.0], [0.0, 0.0, 8.0, 0.0]])
    parts = quantizer.quantize(weight)
    assert parts["weight"].tolist() == [[1, -1, 0, 0], [0, 0, 1, 0]]
    assert quantizer.dequantize(parts).tolist() == [[0.5625, -0.5625, 0.0, 0.0], [0.0, 0.0, 2.0, 0.0]]


@pytest.mark.parametrize(("english", "chinese"), PAGES.items())
def test_both_languages_carry_the_same_snippets(english: str, chinese: str) -> None:
    ours, theirs = snippets(english), snippets(chinese)
    pairs = zip(ours, theirs, strict=True)
    differing = [
        f"{one} and {two}"
        for one, two in pairs
        if one.language != two.language or (one.bare != two.bare and one.language != "text")
    ]
    assert not differing


@pytest.mark.parametrize(("english", "chinese"), PAGES.items())
def test_both_languages_have_the_same_sections_and_tables(english: str, chinese: str) -> None:
    def shape(page: str) -> list[str]:
        text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.M | re.S)
        heads = re.findall(r"^(#+) |^(\|.*)$", text, re.M)
        return [level or " ".join(re.findall(r"`[^`]+`", row.split(" | ")[0])) for level, row in heads]

    assert shape(english) == shape(chinese)


@pytest.mark.parametrize("page", [*PAGES.values(), "README.md", *(f"docs/{name}" for name in ENGLISH)])
def test_links_within_the_repository_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)#\s]*)(#[^)\s]*)?\)", (ROOT / page).read_text())
    for path, anchor in links:
        if path.startswith("http"):
            continue
        goal = (ROOT / page).parent / path if path else ROOT / page
        assert goal.exists(), f"{page}: {path}"
        if anchor:
            assert anchor[1:] in {slug(head) for head in re.findall(r"^#+ (.*)$", goal.read_text(), re.M)}, anchor


def test_every_promise_names_tests_that_exist() -> None:
    text = (ROOT / "docs/reliability.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(named) > 30
    for path, test in named:
        assert re.search(rf"^( {{4}})?def {test}\(", (ROOT / path).read_text(), re.M), f"{path}::{test}"
    promises = [
        line for line in text.splitlines() if line.startswith("|") and not line.startswith(("|---", "| promise"))
    ]
    assert all("`tests/" in line for line in promises)


def test_what_the_guide_quotes_of_refusals_is_what_is_said() -> None:
    sources = [path for root in ("converter_core", "plugins") for path in (ROOT / root).rglob("*.py")]
    said = "".join(path.read_text() for path in sources)
    said = re.sub(r'"\s+f?"', "", said)  # messages that go over several lines
    quoted = [text for cell, _ in rows("docs/wan2.1.md", "When it refuses") for text in re.findall(r"`([^`]+)`", cell)]
    assert len(quoted) > 5
    assert not [text for text in quoted if text not in said]


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_the_dcu_section_installs_all_dependencies_but_torch() -> None:
    (line,) = re.findall(r'^pip install (".*)$', (ROOT / "README.md").read_text(), re.M)
    (declared,) = re.findall(r"^dependencies = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.M | re.S)
    wanted = {name for name in re.findall(r'"([^"]+)"', declared) if not name.startswith("torch")}
    assert set(re.findall(r'"([^"]+)"', line)) == wanted


def gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


@pytest.fixture(scope="module")
def headers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("headers")
    for name, structure in VARIANTS.items():
        write_headers_only(folder / name, structure.inventory("F32"))
    return folder


@functools.cache
def planned(headers: Path, variant: str, method: str, dtype: str = "keep") -> Plan:
    recipe = {
        "source": {"path": str(headers / variant)},
        "quantization": {"method": method},
        "output": {"path": str(headers / "out")},
        "target": {"dtype": dtype},
        "performance": {"device": "cpu"},
    }
    plan = make_plan(recipe)
    plan.checkpoint.close()
    return plan


def test_the_sizes_of_the_readme_are_those_of_the_plan(headers: Path) -> None:
    for scheme, _, size, _ in rows("README.md", "Schemes"):
        assert size == gigabytes(planned(headers, "I2V-14B", scheme.strip("`")).outputs[0].bytes_after), scheme


def test_the_sizes_of_the_guide_are_those_of_the_plan(headers: Path) -> None:
    for scheme, *sizes, _ in rows("docs/wan2.1.md", "Which scheme?"):
        method, *more = re.findall(r"`([^`]+)`", scheme)
        dtype = more[0].removeprefix("--non_linear_dtype ") if more else "keep"
        expected = [
            planned(headers, name, method, dtype).outputs[0].bytes_after for name in ("I2V-14B", "T2V-14B", "T2V-1.3B")
        ]
        assert sizes == [gigabytes(count) for count in expected], scheme


def test_the_models_of_the_guide_are_those_of_the_plan(headers: Path) -> None:
    for name, blocks, dims, tensors, quantized, size in rows("docs/wan2.1.md", "Supported models"):
        variant = name.split(" ")[0]
        plan = planned(headers, variant, "int8")
        structure = VARIANTS[variant]
        assert plan.model.variant == variant
        assert [blocks, dims] == [str(structure.num_layers), f"{structure.dim} / {structure.ffn_dim}"]
        assert tensors == str(len(plan.checkpoint.tensors))
        assert quantized == str(sum(group.count for group in plan.outputs[0].groups if group.method == "int8"))
        assert size == gigabytes(plan.outputs[0].bytes_before)


def test_the_table_of_flags_names_every_flag_of_lightx2v_and_no_other() -> None:
    named = [flag for cell, _ in rows("docs/wan2.1.md", FLAGS) for flag in re.findall(r"`(-[^`]+)`", cell)]
    assert sorted(named) == sorted(LIGHTX2V_FLAGS)


FLAGS = "What you type today with LightX2V's tool"


def test_a_flag_of_the_table_is_there_or_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    command = typer.main.get_command(app).commands["convert"]  # type: ignore[attr-defined]
    known = {flag.replace("_", "-") for param in command.params for flag in (*param.opts, *param.secondary_opts)}
    known |= {flag for target in load_plugins().targets.values() for flag in target.flags}
    for cell, here in rows("docs/wan2.1.md", FLAGS):
        for flag in re.findall(r"`(-[^`]+)`", cell):
            code = run(["convert", "-s", "a", "-o", "b", flag])
            told = " ".join(capsys.readouterr().err.replace("│", "").split())
            if here.startswith("refused"):
                assert code == 2
                assert f"there is no {flag.replace('_', '-')} here:" in told
            else:
                assert flag.replace("_", "-") in known, flag
                assert "there is no --" not in told, flag
