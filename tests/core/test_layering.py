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
    # values
    [
        "errors",
        "sizes",
        "memory",
        "specs",
        "tensors",
        "compiled",
        "safetensors_file",
        "fingerprint",
        "manifest",
        "journal",
    ],
    # what plugins are, and where they come from
    ["interfaces", "hookspecs", "fitness", "registry", "faults", "keep"],
    # what is there, and what is asked for
    ["index_file", "torch_file", "checkpoint", "declared", "recipe_values", "recipe_yaml", "recipe_check", "recipe"],
    ["inventory", "relayout", "selection", "schemes", "inspection", "trial", "side_files", "output_folder", "devices"],
    # what is to be done
    ["plan", "weighing", "packing", "slabs", "remarks", "planning"],
    # doing it, and looking at what was done
    ["writer", "publication", "team", "conversion"],
    ["verification_report", "verification_files", "verification_structure", "read_back", "accuracy", "sums"],
    ["verification_subject", "verification_run", "verification"],
    # around it
    ["scaffold", "testing", "cli"],
]
"""From the ground up: a module imports what stands before it. One that is not listed must fit in without a cycle."""

RANK = {module: number for number, module in enumerate(module for group in ORDER for module in group)}

COMMON_WORDS = {"plain", "cpu"}
"""Names of plugins that are also ordinary words, or torch's name for the host."""


def modules() -> Iterator[tuple[str, Path]]:
    """Every file of the core; those of a package under its name."""
    for path in sorted(CORE.rglob("*.py")):
        name = path.relative_to(CORE).with_suffix("").parts[0]
        if name not in ("__init__", "__main__"):
            yield name, path


def imported(path: Path) -> set[str]:
    """Modules of the core that a file imports, anywhere in it and for type checkers too."""
    package = ["converter_core", *path.relative_to(CORE).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            full = [*base, *(node.module.split(".") if node.module else [])]
            names = [full] if len(full) > 1 else [[*full, alias.name] for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        else:
            continue
        found |= {name[1] for name in names if name[0] == "converter_core" and len(name) > 1}
    return found


def graph() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name, path in modules():
        found.setdefault(name, set()).update(imported(path) - {name})
    return found


def test_every_module_of_the_order_is_there() -> None:
    assert sorted(RANK.keys() - graph().keys()) == []


def test_imports_run_downhill() -> None:
    uphill = [
        f"{module} imports {other}"
        for module, others in graph().items()
        for other in others
        if module in RANK and other in RANK and RANK[other] > RANK[module]
    ]
    assert uphill == []


def test_there_is_no_cycle() -> None:
    order = list(TopologicalSorter(graph()).static_order())
    assert order.index("errors") < order.index("registry") < order.index("planning") < order.index("conversion")


def test_nothing_stands_on_cli_testing_or_scaffold() -> None:
    for module, others in graph().items():
        if module != "cli":
            assert not others & {"cli", "testing", "scaffold"}, module
    assert "testing" not in graph()["cli"]


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
        if module != "cli"
        for line, text in said(path)
        if words.search(text)
    ]
    assert found == []


@pytest.mark.parametrize(
    "statement",
    [
        "import converter_core",
        "import converter_core.hookspecs, converter_core.interfaces, converter_core.registry",
        "import converter_core.cli",
        "from converter_core import Extras, Parts, Quantizer, Refused, Target, WeightInfo, hookimpl",
        "import converter_core.scaffold",
    ],
)
def test_torch_is_not_imported_by(statement: str) -> None:
    code = f"{statement}\nimport sys\nprint(sorted({{'torch', 'numpy', 'safetensors'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
