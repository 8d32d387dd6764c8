"""What is public is listed, sorted, there, and the same for type checkers as for everybody else."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import converter_core
import converter_core.testing


def test_all_is_sorted_and_complete() -> None:
    public = converter_core.__all__
    assert public == sorted(set(public), key=lambda name: (not name.isupper(), name))  # constants first, as ruff has it
    assert dir(converter_core) == sorted(public)
    lazy = {name for names in converter_core._HOME.values() for name in names}
    assert set(public) == lazy | {"__version__"}


@pytest.mark.parametrize("name", converter_core.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(converter_core, name) is not None


def test_type_checkers_see_the_same() -> None:
    tree = ast.parse(Path(converter_core.__file__).read_text())
    declared = {
        (node.module, alias.name)
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert declared == {(module, name) for module, names in converter_core._HOME.items() for name in names}


def test_no_name_is_hidden_by_a_module() -> None:
    """``converter_core.verify`` must stay the function, whatever is imported."""
    folder = Path(converter_core.__file__).parent
    assert {path.stem for path in folder.iterdir()} & set(converter_core.__all__) == set()


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match="module 'converter_core' has no attribute 'quantise'"):
        _ = converter_core.quantise


def test_public_names_are_documented() -> None:
    bare = []
    for name in converter_core.__all__:
        value = getattr(converter_core, name)
        own = inspect.isclass(value) and issubclass(value, converter_core.ConverterError)
        if (inspect.isclass(value) or inspect.isfunction(value)) and not own and not inspect.getdoc(value):
            bare.append(name)
    assert bare == []


def test_the_kits() -> None:
    assert converter_core.testing.__all__ == sorted(converter_core.testing.__all__)
    for name in converter_core.testing.__all__:
        kit = getattr(converter_core.testing, name)
        assert any(test.startswith("test_") for test in dir(kit))
        assert kit.__doc__.startswith("Subclass it with")
