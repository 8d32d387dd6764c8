from __future__ import annotations

from converter_core.api.formats import UNQUANTIZED
from converter_core.api.values import PlannedWeight, TensorRef, TensorSpec, WeightInfo
from converter_core.plugins.registry import load_plugins
from converter_plugins.layouts.single_file import SingleFile


def test_all_in_one_file_without_an_index() -> None:
    spec = TensorSpec("BF16", (4,))
    weights = [
        PlannedWeight(WeightInfo(n, {"weight": TensorRef(n)}), n, spec, UNQUANTIZED, ()) for n in ("b", "a", "c")
    ]
    layout = SingleFile()
    files = layout.files("wan2.1_i2v_480p_int8", weights)
    assert {stem: [weight.name for weight in group] for stem, group in files.items()} == {
        "wan2.1_i2v_480p_int8": ["b", "a", "c"]
    }
    assert not layout.indexed


def test_it_is_offered_and_the_default() -> None:
    layouts = load_plugins().layouts
    assert layouts["single_file"] is SingleFile
    assert layouts.default() == "single_file"
