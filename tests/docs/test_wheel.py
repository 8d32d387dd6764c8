"""The wheel holds all of both packages, what they read at run time, and nothing else."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from configparser import ConfigParser
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import version
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"converter_core": ROOT, "converter_plugins": ROOT / "plugins"}
pytest.importorskip("setuptools", "77", reason="older ones do not know this pyproject.toml")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from a copy: a build leaves folders behind, and would find those of an earlier one."""
    folder = tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so")
    for name in ("converter_core", "plugins"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    build = "from setuptools import build_meta; build_meta.build_wheel('.')"
    done = subprocess.run([sys.executable, "-c", build], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_all_files_of_both_packages_and_no_others(wheel: zipfile.ZipFile) -> None:
    expected = {
        path.relative_to(root).as_posix()
        for name, root in PACKAGES.items()
        for path in (root / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so"
    }
    held = {name for name in wheel.namelist() if ".dist-info" not in PurePosixPath(name).parts[0]}
    compiled = {name for name in held if name.endswith(".so")}
    assert held - compiled == expected
    suffix = EXTENSION_SUFFIXES[-1]
    libraries = re.findall(r'^name = "(.*_compiled_.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert libraries
    assert compiled <= {library.replace(".", "/") + suffix for library in libraries}
    assert {f"{name}/py.typed" for name in PACKAGES} <= held


def test_it_is_for_one_platform_and_every_python(wheel: zipfile.ZipFile) -> None:
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert Path(str(wheel.filename)).name == f"model_converter-{version('model-converter')}-py3-none-{platform}.whl"


def test_every_entry_point_leads_to_a_module(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    points = ConfigParser()
    points.read_string(wheel.read(name).decode())
    declared = (
        (ROOT / "pyproject.toml").read_text().split("[project.entry-points.converter_core]\n")[1].split("\n\n")[0]
    )
    assert len(points["converter_core"]) == len(declared.splitlines())
    assert dict(points["console_scripts"]) == {"model-converter": "converter_core.cli:main"}
    for module in points["converter_core"].values():
        assert f"{module.replace('.', '/')}.py" in wheel.namelist()


def test_the_licence_is_in_it(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith("/LICENSE"))
    assert "Apache License" in wheel.read(name).decode()


def test_the_sdist_holds_tests_docs_and_examples(tmp_path: Path) -> None:
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so", ".*", "build", "dist")
    shutil.copytree(ROOT, tmp_path / "tree", ignore=ignore)
    build = "from setuptools import build_meta; print(build_meta.build_sdist('.'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=tmp_path / "tree", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "tree").glob("*.tar.gz")
    with tarfile.open(path) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert held >= {"CHANGELOG.md", "README.md", "README.zh-CN.md", "Makefile", "LICENSE", "pyproject.toml"}
    for folder in ("tests", "docs", "examples", "converter_core", "plugins"):
        files = (p for p in (ROOT / folder).rglob("*") if p.is_file() and p.suffix not in (".so", ".pyc"))
        own = {p.relative_to(ROOT).as_posix() for p in files if not re.search(r"egg-info|/site/|/\.", p.as_posix())}
        assert own - held == set()
