from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from converter_core.api.formats import UNQUANTIZED
from converter_core.api.values import PlannedWeight, TensorRef, TensorSpec, WeightInfo
from converter_core.plugins.registry import load_plugins
from converter_plugins.layouts.by_block import ByBlock


def planned(name: str, block: str) -> PlannedWeight:
    info = WeightInfo(name, {"weight": TensorRef(name)}, block=block)
    return PlannedWeight(info, name, TensorSpec("BF16", (4,)), UNQUANTIZED, ())


def names(*weights: PlannedWeight) -> dict[str, list[str]]:
    return {stem: [weight.name for weight in group] for stem, group in ByBlock().files("wan", weights).items()}


def test_blocks_by_number_then_the_rest() -> None:
    assert list(
        names(
            planned("head", ""), planned("x10", "10"), planned("x2", "2"), planned("y10", "10"), planned("z", "")
        ).items()
    ) == [("block_2", ["x2"]), ("block_10", ["x10", "y10"]), ("non_block", ["head", "z"])]


def test_no_empty_file() -> None:
    assert names(planned("x", "0")) == {"block_0": ["x"]}
    assert names(planned("x", "")) == {"non_block": ["x"]}


@given(st.lists(st.sampled_from(["", "0", "1", "12", "up"])))
def test_every_weight_is_in_exactly_one_file(blocks: list[str]) -> None:
    weights = [planned(str(number), block) for number, block in enumerate(blocks)]
    files = ByBlock().files("wan", weights)
    assert sorted(weight.name for group in files.values() for weight in group) == sorted(w.name for w in weights)
    assert all(len({weight.info.block for weight in group}) == 1 for group in files.values())


def test_it_is_offered_and_has_an_index() -> None:
    assert load_plugins().layouts["by_block"] is ByBlock
    assert ByBlock.indexed
