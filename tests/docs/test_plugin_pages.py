"""What plugin authors read: every hook documented, every example a plugin that passes its kit, the tutorial in step."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from converter_core.plugins.registry import KINDS, load_plugins

ROOT = Path(__file__).parents[2]
PAGES = {
    "models": "mlp",
    "quantizers": "nearest",
    "targets": "bare",
    "layouts": "halves",
    "devices": "here",
    "containers": "crate",
    "storages": "archive",
}
EXAMPLE = ROOT / "examples/third_party_quantizer"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / "docs" / page).read_text(), re.M | re.S)


@pytest.mark.parametrize("kind", KINDS)
def test_every_hook_is_documented_and_leads_to_a_page(kind: str) -> None:
    hook, base = KINDS[kind]
    page = re.search(rf"^\| `{hook}\(\)` \| .*\((plugins/\w+\.md)\)", (ROOT / "docs/hooks.md").read_text(), re.M)
    assert page, f"docs/hooks.md says nothing of {hook}"
    text = (ROOT / "docs" / page[1]).read_text()
    assert f"def {hook}():" in text
    assert f"::: converter_core.api.{base.__name__}\n" in text


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples of each page as one module of tests."""
    folder = tmp_path_factory.mktemp("pages")
    for page in PAGES:
        (folder / f"test_{page}.py").write_text("\n".join(blocks(f"plugins/{page}.md", "python")))
    return folder


@pytest.mark.parametrize(("page", "name"), PAGES.items())
def test_the_example_of_a_page_is_a_plugin(page: str, name: str, written: Path) -> None:
    module = load(written / f"test_{page}.py")
    try:
        registry = load_plugins(extra=[module])
    finally:
        del sys.modules[module.__name__]
    assert name in getattr(registry, page)
    assert not [broken for broken in registry.broken if broken.origin.plugin == module.__name__]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"page_{path.stem}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_examples_pass_their_kits(written: Path) -> None:
    options = ["-q", "-p", "no:cacheprovider", "--import-mode=importlib", "-W", "error", "--rootdir", str(written)]
    done = subprocess.run([sys.executable, "-m", "pytest", *options, str(written)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 30  # type: ignore[index]


def test_the_tutorial_shows_the_code_of_the_example() -> None:
    files = [path.read_text() for path in (*EXAMPLE.rglob("*.py"), EXAMPLE / "pyproject.toml")]
    shown = [*blocks("tutorial.md", "python"), *blocks("tutorial.md", "toml")]
    assert len(shown) == 4
    differing = [text for text in shown if not any(text.strip() in file for file in files)]
    assert not differing
