"""The pages of recipe keys are what the generator writes, and name flags that exist."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
_spec = importlib.util.spec_from_file_location("recipe_keys", DOCS / "recipe_keys.py")
assert _spec
assert _spec.loader
recipe_keys = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(recipe_keys)


@pytest.mark.parametrize("name", recipe_keys.TEXTS)
def test_the_page_is_what_the_generator_writes(name):
    assert (DOCS / name).read_text(encoding="utf-8") == recipe_keys.page(name), "run python docs/recipe_keys.py"


def test_flags_and_values_belong_to_keys_and_flags_exist():
    known = {key for key, _, _ in recipe_keys.keys(recipe_keys.Recipe)}
    assert {*recipe_keys.FLAGS, *recipe_keys.VALUES} <= known
    flags = (DOCS.parent / "converter_core/cli/flags.py").read_text()
    listed = [flag for text in recipe_keys.FLAGS.values() for flag in text.split(", ")]
    assert [flag for flag in listed if flag not in flags] == []
