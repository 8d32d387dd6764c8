"""Imports run downhill, the core knows no plugin, and what need not import torch does not."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.metadata import distribution
from pathlib import Path

import pytest

CORE = Path(__file__).resolve().parents[2] / "converter_core"

ORDER = [
    "errors",
    "sizes",
    "system",
    "trusted",
    "folder",
    "native",
    "api",
    "plugins",
    "containers",
    "storage",
    "recipe",
    "checkpoint",
    "lora",
    "output",
    "planning",
    "engine",
    "calibration",
    "inspection",
    "verification",
    "report",
    "testing",
    "scaffold",
    "cli",
]
"""From the ground up: a package imports itself and what stands before it."""

COMMON_WORDS = {"plain", "cpu", "any", "local", "diffusers"}
"""Names of plugins that are also ordinary words, torch's name for the host, Ray's for a cluster of this machine, or the
library that runs pipelines.
"""


def modules() -> Iterator[tuple[str, Path]]:
    """Every file of the core by the name of its package."""
    for path in sorted(CORE.rglob("*.py")):
        name = path.relative_to(CORE).with_suffix("").parts[0]
        if name not in ("__init__", "__main__"):
            yield name, path


def imported(path: Path) -> set[str]:
    """Modules of the core that a file imports (dotted, without ``converter_core``), for type checkers too."""
    package = ["converter_core", *path.relative_to(CORE).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            full = [*base, *(node.module.split(".") if node.module else [])]
            names = [[*full, alias.name] for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        else:
            continue
        found |= {module_of(name[1:]) for name in names if name[0] == "converter_core" and len(name) > 1}
    return found


def module_of(name: list[str]) -> str:
    """The module that a dotted name is, or is in."""
    for count in range(len(name), 0, -1):
        path = CORE.joinpath(*name[:count])
        if path.with_suffix(".py").is_file() or path.is_dir():
            return ".".join(name[:count])
    return name[0]


def test_every_package_has_its_place() -> None:
    assert {name for name, _ in modules()} <= set(ORDER)


def test_imports_run_downhill() -> None:
    uphill = [
        f"{path.relative_to(CORE)} imports {other}"
        for name, path in modules()
        for other in imported(path)
        if ORDER.index(other.split(".")[0]) > ORDER.index(name)
    ]
    assert uphill == []


def test_there_is_no_cycle() -> None:
    graph = {
        ".".join(path.relative_to(CORE).with_suffix("").parts): imported(path)
        for _, path in modules()
        if path.name != "__init__.py"
    }
    order = list(TopologicalSorter(graph).static_order())
    assert order.index("errors") < order.index("plugins.registry") < order.index("planning.planner")


def test_the_command_line_stands_on_no_test_kit() -> None:
    found = [path.name for name, path in modules() if name == "cli" and "testing" in " ".join(imported(path))]
    assert found == []


def plugin_names() -> set[str]:
    points = distribution("model-converter").entry_points
    return {point.name for point in points if point.group == "converter_core"}


def said(path: Path) -> Iterator[tuple[int, str]]:
    """Every string, name and import of a file; docstrings and comments may give examples."""
    tree = ast.parse(path.read_text())
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.lineno, node.value
        elif isinstance(node, ast.Name):
            yield node.lineno, node.id
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.module or ""
        elif isinstance(node, ast.alias):
            yield node.lineno, node.name


def test_no_file_of_the_core_names_a_plugin() -> None:
    names = plugin_names()
    assert {"wan_dit", "int8", "nvfp4", "lightx2v", "by_block", "hygon_dcu"} <= names
    words = re.compile(rf"\b({'|'.join(sorted(names - COMMON_WORDS))}|converter_plugins)\b", re.IGNORECASE)
    found = [
        f"{path.relative_to(CORE)}:{line}: {text[:80]!r}"
        for module, path in modules()
        for line, text in said(path)
        if words.search(text)
    ]
    assert found == []


def authored() -> Iterator[Path]:
    """What plugins are made of: ours, the examples, and the scaffold's templates; tests of plugins need more."""
    for folder in ("plugins", "examples", "converter_core/scaffold"):
        for path in (CORE.parent / folder).rglob("*.py*"):
            script = path.name in ("library_use.py",) or (path.parent == CORE / "scaffold" and path.suffix == ".py")
            if path.suffix in (".py", ".txt") and not path.name.startswith("test_") and not script:
                yield path


def test_a_plugin_imports_one_package_of_the_core() -> None:
    """What ours import a stranger's can import too."""
    imports = re.compile(r"^\s*(?:from|import) (converter_core[\w.]*)", re.MULTILINE)
    used = {(path, module) for path in authored() for module in imports.findall(path.read_text())}
    assert len(used) > 25
    assert [(path.relative_to(CORE.parent), module) for path, module in used if module != "converter_core.api"] == []


@pytest.mark.parametrize(
    "statement",
    [
        "import converter_core",
        "import converter_core.api.hookspecs, converter_core.api, converter_core.plugins.registry",
        "import converter_core.cli",
        "from converter_core import Extras, Parts, Quantizer, Refused, Target, WeightInfo, hookimpl",
        "import converter_core.scaffold",
    ],
)
def test_torch_is_not_imported_by(statement: str) -> None:
    code = f"{statement}\nimport sys\nprint(sorted({{'torch', 'numpy', 'safetensors'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
