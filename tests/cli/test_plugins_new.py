"""``plugins new`` writes packages that are found, listed and pass their tests as they stand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from converter_core import PluginError, load_plugins
from converter_core.cli import run
from converter_core.scaffold import KINDS, new_plugin


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a plugin of each kind, each in a folder of that name."""
    folder = tmp_path_factory.mktemp("written")
    for kind in KINDS:
        assert run(["plugins", "new", kind, f"my_{kind}", "--dir", str(folder / kind)]) == 0
    return folder


def test_what_is_written(written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plugins", "new", "layout", "mine", "--dir", str(tmp_path / "new")]) == 0
    assert f"pip install -e '{tmp_path / 'new'}[test]'" in capsys.readouterr().out
    for kind in KINDS:
        files = sorted(str(path.relative_to(written / kind)) for path in (written / kind).rglob("*.*"))
        expected = ["README.md", f"converter_my_{kind}/__init__.py", "pyproject.toml", f"tests/test_my_{kind}.py"]
        assert [file for file in files if "cache" not in file] == expected


def install(kind: str, folder: Path, installed: Any) -> str:
    """As pip would; the path to find it on."""
    name = f"my_{kind}"
    return os.pathsep.join([str(folder), str(installed(f"converter-my-{kind}", {name: f"converter_{name}"}, folder))])


def pytest_in(folders: list[Path], path: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", str(folders[0] / "pyproject.toml")]
    return subprocess.run(
        [*command, *options, *map(str, folders)],
        env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_it_passes_its_tests_as_it_stands(written: Path, installed: Any) -> None:
    path = os.pathsep.join(install(kind, written / kind, installed) for kind in KINDS)
    done = pytest_in([written / kind for kind in KINDS], path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_its_tests_notice_a_misspelt_hook(tmp_path: Path, installed: Any) -> None:
    new_plugin("quantizer", "my_quantizer", tmp_path / "new")
    module = tmp_path / "new" / "converter_my_quantizer" / "__init__.py"
    module.write_text(module.read_text().replace("def converter_quantizers", "def converter_quantisers"))
    path = install("quantizer", tmp_path / "new", installed)
    done = pytest_in([tmp_path / "new"], path, "-k", "installed_package")
    assert done.returncode == 1
    assert "unknown hook 'converter_quantisers'; did you mean 'converter_quantizers'?" in done.stdout


def test_its_tests_say_that_it_is_not_installed(tmp_path: Path) -> None:
    new_plugin("quantizer", "my_scheme", tmp_path / "new")
    done = pytest_in([tmp_path / "new"], str(tmp_path / "new"), "-k", "installed_package")
    assert done.returncode == 1
    assert "unknown quantizer 'my_scheme'" in done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_found(kind: str, written: Path, installed: Any) -> None:
    name = f"my_{kind}"
    install(kind, written / kind, installed)
    registry = load_plugins()
    catalogue = next(catalogue for catalogue in registry.catalogues() if catalogue.kind == kind)
    assert catalogue[name].__module__ == f"converter_{name}"
    assert registry.broken == ()


def test_the_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert new_plugin("quantizer", "my_scheme")[0] == Path("converter-my-scheme/pyproject.toml")
    text = (tmp_path / "converter-my-scheme" / "pyproject.toml").read_text()
    assert 'my_scheme = "converter_my_scheme"' in text
    assert (
        "class MyScheme(Quantizer):"
        in (tmp_path / "converter-my-scheme" / "converter_my_scheme" / "__init__.py").read_text()
    )


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("quantiser", "mine", "did you mean 'quantizer'"),
        ("quantizer", "My-Scheme", "'My-Scheme' cannot be the name"),
        ("quantizer", "class", "'class' cannot be the name"),
        ("quantizer", "../up", "cannot be the name"),
        ("quantizer", "int8", "installed already \\(of model-converter\\)"),
    ],
)
def test_what_it_refuses(kind: str, name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=words):
        new_plugin(kind, name, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_it_writes_over_nothing(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(PluginError, match="not empty"):
        new_plugin("quantizer", "my_scheme", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
