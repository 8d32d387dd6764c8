from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter_core.api.formats import QuantFormat
from converter_core.api.values import OutputTensor, PlannedWeight, TensorRef, TensorSpec, WeightInfo
from converter_core.errors import Refused
from converter_core.plugins.registry import load_plugins, options_of
from converter_plugins.layouts.chunked import Chunked


def planned(name: str, nbytes: int, scales: int = 0) -> PlannedWeight:
    outputs = [OutputTensor(name, "weight", TensorSpec("I8", (nbytes,)))]
    outputs += [OutputTensor(f"{name}_scale", "scale", TensorSpec("F32", (scales,)))] if scales else []
    info = WeightInfo(name, {"weight": TensorRef(name)})
    return PlannedWeight(
        info,
        name,
        TensorSpec("BF16", (nbytes,)),
        QuantFormat("int8", "int8", 8, "row", scale_dtype="F32"),
        tuple(outputs),
    )


def names(chunk_size: int | str, *weights: PlannedWeight) -> dict[str, list[str]]:
    files = Chunked(chunk_size).files("wan", weights)
    return {stem: [weight.name for weight in group] for stem, group in files.items()}


def test_files_are_filled_in_order_up_to_the_size() -> None:
    weights = [planned("a", 600), planned("b", 424), planned("c", 1), planned("d", 1000), planned("e", 24)]
    assert list(names("1KiB", *weights).items()) == [
        ("wan-00001-of-00003", ["a", "b"]),
        ("wan-00002-of-00003", ["c", "d"]),
        ("wan-00003-of-00003", ["e"]),
    ]


def test_order_of_the_source_does_not_show() -> None:
    groups = [
        ["blocks.2.ffn.0", "blocks.2.ffn.00", "blocks.2.q"],
        ["blocks.10.a", "blocks.10.ffn.2", "head"],
        ["x1", "x01y"],
    ]
    weights = [planned(name, 10) for group in groups for name in group]
    expected = {f"wan-0000{number}-of-00003": group for number, group in enumerate(groups, 1)}
    for start in range(len(weights)):
        assert names(3, *weights[start:], *weights[:start]) == expected
        assert names(3, *reversed(weights[start:]), *weights[:start]) == expected


def test_digits_that_are_no_ascii_are_text() -> None:
    weights = [planned(name, 1) for name in ("a²", "a1", "a٣")]
    assert names(9, *weights) == {"wan-00001-of-00001": ["a1", "a²", "a٣"]}


def test_scales_count() -> None:
    assert names("1000B", planned("a", 500, scales=10), planned("b", 460)) == {"wan-00001-of-00001": ["a", "b"]}
    assert len(names("1000B", planned("a", 500, scales=10), planned("b", 461))) == 2


def test_a_weight_larger_than_the_chunk_is_alone() -> None:
    assert list(names("100B", planned("a", 10), planned("b", 101), planned("c", 10)).values()) == [["a"], ["b"], ["c"]]
    assert list(names("100B", planned("b", 500), planned("c", 10)).values()) == [["b"], ["c"]]


@pytest.mark.parametrize("count", [2, "2"])
def test_a_bare_number_counts_a_weight_and_its_scales_as_one(count: int | str) -> None:
    weights = [planned(name, 10, scales=3) for name in "abcde"]
    assert names(count, *weights) == {
        "wan-00001-of-00003": ["a", "b"],
        "wan-00002-of-00003": ["c", "d"],
        "wan-00003-of-00003": ["e"],
    }


def test_four_gibibytes_by_default() -> None:
    gib = 2**30
    weights = [planned("a", 3 * gib), planned("b", gib), planned("c", 1)]
    files = Chunked().files("wan", weights)
    assert [[weight.name for weight in group] for group in files.values()] == [["a", "b"], ["c"]]
    assert [option.name for option in options_of(Chunked)] == ["chunk_size"]


@given(st.lists(st.integers(0, 300)), st.integers(1, 200))
def test_every_weight_is_in_exactly_one_file_and_none_is_too_full(sizes: list[int], limit: int) -> None:
    weights = [planned(f"w{number}", size) for number, size in enumerate(sizes)]
    groups = list(Chunked(f"{limit}B").files("wan", weights).values())
    assert [weight for group in groups for weight in group] == weights
    for group in groups:
        assert len(group) == 1 or sum(weight.nbytes for weight in group) <= limit
    for group, following in pairwise(groups):
        assert sum(weight.nbytes for weight in (*group, following[0])) > limit


@pytest.mark.parametrize("size", ["4", "1", 1, 7, "10MB", "4GiB"])
def test_good_sizes(size: int | str) -> None:
    assert Chunked(size).chunk_size == size


@pytest.mark.parametrize("size", [0, -1, "0", True, 1.5, None, "", "4 gigs", "0GiB", "-4GiB"])
def test_bad_sizes_are_refused(size: object) -> None:
    with pytest.raises(Refused, match=r"chunk_size: .*(GiB|tensors)"):
        Chunked(size)  # type: ignore[arg-type]


def test_it_is_offered_and_has_an_index() -> None:
    assert load_plugins().layouts["chunked"] is Chunked
    assert Chunked.indexed
