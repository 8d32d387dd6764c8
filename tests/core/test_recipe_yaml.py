"""YAML as plain data with lines; everything else that YAML can do is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter_core.errors import RecipeError
from converter_core.recipe.yaml_file import LARGEST, parse_value, parse_yaml, read_yaml


def refused(text: str | bytes) -> str:
    with pytest.raises(RecipeError) as caught:
        parse_yaml(text if isinstance(text, bytes) else text.encode(), "wan.yaml")
    return str(caught.value)


def test_data_and_the_line_of_every_key():
    document = parse_yaml(
        b"source:\n"
        b"  path: /models/wan\n"
        b"quantization:\n"
        b"  method: none\n"
        b"  rules:\n"
        b"    - match: 'blocks.0.*'\n"
        b"      method: int8\n"
        b"    - {match: a, method: fp8}\n",
        "wan.yaml",
    )
    assert document.data == {
        "source": {"path": "/models/wan"},
        "quantization": {
            "method": "none",
            "rules": [{"match": "blocks.0.*", "method": "int8"}, {"match": "a", "method": "fp8"}],
        },
    }
    assert document.places == {
        "": "wan.yaml",
        "source": "wan.yaml:1",
        "source.path": "wan.yaml:2",
        "quantization": "wan.yaml:3",
        "quantization.method": "wan.yaml:4",
        "quantization.rules": "wan.yaml:5",
        "quantization.rules[0]": "wan.yaml:6",
        "quantization.rules[0].match": "wan.yaml:6",
        "quantization.rules[0].method": "wan.yaml:7",
        "quantization.rules[1]": "wan.yaml:8",
        "quantization.rules[1].match": "wan.yaml:8",
        "quantization.rules[1].method": "wan.yaml:8",
    }
    assert not document.problems


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("none", "none"),
        ("null", None),
        ("~", None),
        ("", None),
        ("true", True),
        ("yes", True),
        ("4", 4),
        ("4GiB", "4GiB"),
        ("1e-5", 1e-5),
        ("1.5e3", 1500.0),
        ("0.25", 0.25),
        ("2026-08-01", "2026-08-01"),
        ("cuda:0", "cuda:0"),
        ("'4'", "4"),
        ("[self_attn, ffn]", ["self_attn", "ffn"]),
        ("{a: 1}", {"a": 1}),
    ],
)
def test_a_value_by_itself(text: str, value: object):
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


def test_a_byte_order_mark_is_no_part_of_the_first_key():
    assert parse_yaml("\ufeffsource: a\n".encode(), "wan.yaml").data == {"source": "a"}


def test_a_key_that_stands_twice_is_told_with_both_lines():
    document = parse_yaml(b"output:\n  path: a\n  name: x\n  path: b\n", "wan.yaml")
    assert document.problems == ["wan.yaml:4: output.path: stands here a second time; first at wan.yaml:2"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &x [1]\nb: *x\n", ["wan.yaml:1", "anchors"]),
        ("b: *x\n", ["wan.yaml:1", "anchors"]),
        ("&k a: 1\n", ["wan.yaml:1", "anchors"]),
        ("a: !!python/object/apply:os.system [ls]\n", ["wan.yaml:1", "tags"]),
        ("a: 1\nb: !!int 3\n", ["wan.yaml:2", "tags"]),
        ("a:\n\tb: 1\n", ["wan.yaml:2", "tabs"]),
        ("- a\n- b\n", ["must be a mapping"]),
        ("just text\n", ["must be a mapping"]),
        ("", ["is empty"]),
        ("# only a comment\n", ["is empty"]),
        ("a: 1\n---\nb: 2\n", ["wan.yaml:2", "second document"]),
        ("a: 1\nb: [1\n", ["wan.yaml:3", "not valid YAML"]),
        ("a: 1\n b: 2\n", ["wan.yaml:2", "not valid YAML"]),
        ("a: 1\nb: \x07\n", ["wan.yaml:2", "does not allow"]),
        ("a: 1\nb: 0x_\n", ["wan.yaml:2", "not a value"]),
        ("? [a]\n: 1\n", ["wan.yaml:1", "key must be text"]),
        ("a: " + "[" * 40 + "]" * 40, ["wan.yaml:1", "nested"]),
        ("[" * 100_000, ["wan.yaml:1", "nested"]),
        ("a: " + "9" * 5000, ["wan.yaml:1", "not a value"]),
        (b"a: 1\nb: \xff\xfe\n", ["wan.yaml:2", "UTF-8"]),
        ("a: 1\n".encode("utf-16"), ["UTF-8"]),
        (b"a" * (LARGEST + 1), ["larger than"]),
    ],
)
def test_refused(text: str | bytes, words: list[str]):
    message = refused(text)
    assert all(word in message for word in words), message


def test_nested_anchors_do_not_explode():
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60)]
    assert "anchors" in refused("\n".join(lines))


def test_a_file_that_is_not_there_and_a_folder(tmp_path):
    with pytest.raises(RecipeError, match=r"none.yaml: cannot be read: No such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="cannot be read: Is a directory"):
        read_yaml(tmp_path)


_syntax = st.text("ab01e_.~=: \n\t-?[]{},&*!'\"|>#%<\u2028\ufeffé", max_size=60)


@settings(max_examples=300, deadline=None)
@given(st.one_of(_syntax.map(str.encode), st.binary(max_size=80)))
def test_any_bytes_are_data_or_a_refusal(content: bytes):
    try:
        document = parse_yaml(content, "wan.yaml")
    except RecipeError:
        return
    assert set(document.data) <= set(document.places)
