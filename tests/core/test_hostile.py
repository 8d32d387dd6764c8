"""Broken and hostile files: refused in words that name the file and the tensor, at no cost."""

from __future__ import annotations

import json
import os
import pickle
import resource
import struct
import tracemalloc
import zipfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from converter_core.checkpoint.files import open_checkpoint
from converter_core.containers.index import parse_index
from converter_core.errors import CheckpointError, RecipeError
from converter_core.recipe.load import load_recipe

MEBIBYTE = 1 << 20


def file_of(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(dtype="U8", shape=(4,), span=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(span)}


def refusal(path, **options):
    """What it is refused with; refusing takes no memory worth naming."""
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(path, **options)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * MEBIBYTE
    assert all("\n" not in problem and problem.isprintable() for problem in caught.value.problems)
    assert all(len(problem) < 700 for problem in caught.value.problems)
    return "\n".join(caught.value.problems)


DEEP = b"[" * 200_000
HEADERS = {
    "not JSON": (b"\x00\x01 nothing", b"", "the header is not JSON"),
    "not UTF-8": (b'{"\xff":1}', b"", "the header is not JSON"),
    "half a surrogate": (b'{"\\ud800":' + json.dumps(entry()).encode() + b"}", b"abcd", "not JSON"),
    "half a surrogate in metadata": (b'{"__metadata__":{"a":"\\udfff"}}', b"", "not JSON"),
    "too deep": (DEEP, b"", "the header is not JSON"),
    "a list": (b"[1, 2]", b"", "not a JSON object"),
    "a huge number": (b'{"a":' + b"9" * 100_000 + b"}", b"", "not JSON"),
    "twice": (b'{"a":1,"b":2,"a":3}', b"", "names 'a' twice"),
    "twice inside": (b'{"a":{"dtype":"U8","dtype":"I8"}}', b"", "names 'dtype' twice"),
    "no object": ({"a": 3}, b"", "'a' must have dtype, shape and data_offsets"),
    "missing": ({"a": {"dtype": "U8", "shape": [4]}}, b"abcd", "'a' must have dtype, shape and data_offsets"),
    "metadata": ({"__metadata__": {"a": 1}}, b"", "__metadata__ must map names to strings"),
    "unknown dtype": ({"a": entry("F31")}, b"abcd", "'a': unknown dtype 'F31'; did you mean 'F32'?"),
    "no dtype": ({"a": entry(None)}, b"abcd", "'a': unknown dtype"),
    "negative size": ({"a": entry(shape=(-4,))}, b"abcd", "'a': shape [-4] is not a list of sizes"),
    "fraction": ({"a": entry(shape=(4.0,))}, b"abcd", "'a': shape [4.0] is not"),
    "truth": ({"a": entry(shape=(True,), span=(0, 1))}, b"a", "'a': shape [True] is not"),
    "overflow": ({"a": entry(shape=(1 << 62, 4))}, b"abcd", "'a': shape [4611686018427387904, 4] overflows"),
    "a million sizes": ({"a": entry(shape=[7] * 100_000)}, b"abcd", "overflows"),
    "10^18 elements": ({"a": entry("F32", (10**9, 10**9))}, b"abcd", "takes 4000000000000000000 bytes"),
    "backwards": ({"a": entry(span=(4, 0))}, b"abcd", "data_offsets [4, 0] are not a begin and an end"),
    "negative offset": ({"a": entry(span=(-4, 0))}, b"abcd", "data_offsets [-4, 0] are not"),
    "three offsets": ({"a": entry(span=(0, 4, 8))}, b"abcd", "data_offsets [0, 4, 8] are not"),
    "wrong length": ({"a": entry(span=(0, 3))}, b"abc", "'a': U8 [4] takes 4 bytes, its offsets span 3"),
    "overlap": ({"a": entry(), "b": entry(span=(2, 6))}, b"abcdef", "'b' overlaps the tensor before it"),
    "hole": ({"a": entry(), "b": entry(span=(5, 9))}, b"abcdefghi", "'b' leaves a hole before it"),
    "first hole": ({"a": entry(span=(1, 5))}, b"abcde", "'a' leaves a hole before it"),
    "beyond the end": ({"a": entry(), "b": entry(span=(4, 8))}, b"abcd", "'b' ends 4 bytes beyond the end of the file"),
    "trailing": ({"a": entry()}, b"abcdef", "2 bytes follow the last tensor"),
    "no tensor": ({"__metadata__": {"format": "pt"}}, b"", "has no tensors"),
    "control characters": ({"\x1b[31m\nred": entry(span=(0, 9))}, b"", r"'\x1b[31m\nred'"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_header(tmp_path, case):
    header, data, message = HEADERS[case]
    said = refusal(file_of(tmp_path / "wan.safetensors", header, data))
    assert message in said
    assert str(tmp_path / "wan.safetensors") in said


@pytest.mark.parametrize("length", [101 * 10**6, 1 << 63, (1 << 64) - 1])
def test_a_header_longer_than_any(tmp_path, length):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}")
    assert f"a header of {length} bytes is no safetensors header" in refusal(path)


def test_a_header_longer_than_the_file(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", 99_000_000) + b"{}")
    assert "the header is 99000000 bytes long but the file only 10" in refusal(path)


def test_every_cut_of_a_file_is_noticed(tmp_path, registry):
    whole = save({"a": torch.arange(6.0), "b": torch.ones(3, dtype=torch.int8)})
    path = tmp_path / "x.safetensors"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"x\.safetensors"):
            open_checkpoint(path, registry=registry)


def test_a_file_with_an_odd_name_does_not_reach_the_terminal_raw(tmp_path):
    said = refusal(file_of(tmp_path / "a\x1b[2J\n.safetensors", b"no"))
    assert r"\x1b[2J\n" in said


def test_many_broken_files_in_one_message(tmp_path):
    for number in range(3):
        file_of(tmp_path / f"{number}.safetensors", {"a": entry("F31")}, b"abcd")
    said = refusal(tmp_path)
    assert [f"{number}.safetensors" in said for number in range(3)] == [True] * 3


@pytest.mark.parametrize(("make", "said"), [(os.mkfifo, "is not a regular file"), (os.mkdir, "Is a directory")])
def test_what_is_no_file_is_not_waited_for(tmp_path, make, said):
    make(tmp_path / "x.safetensors")
    assert f"x.safetensors: cannot be opened: {said}" in refusal(tmp_path)


def test_a_checkpoint_of_more_tensors_than_any_model_has(tmp_path, monkeypatch):
    monkeypatch.setattr("converter_core.checkpoint.files.MOST_TENSORS", 1)
    file_of(tmp_path / "x.safetensors", {"a": entry("U8", [2], [0, 2]), "b": entry("U8", [2], [2, 4])}, b"abcd")
    assert "has 2 tensors; at most 1 are read" in refusal(tmp_path)


def test_a_link_to_nowhere_and_one_to_itself(tmp_path):
    (tmp_path / "gone.safetensors").symlink_to("nowhere")
    (tmp_path / "loop.safetensors").symlink_to("loop.safetensors")
    said = refusal(tmp_path)
    assert "gone.safetensors: cannot be opened: No such file or directory" in said
    assert "loop.safetensors: cannot be opened: Too many levels of symbolic links" in said


# ------------------------------------------------------------------------------------------------------------ index

INDEX = "diffusion_pytorch_model.safetensors.index.json"
INDEXES = {
    "not JSON": (b"{", "is not JSON"),
    "a list": (b"[]", "is not a JSON object"),
    "no map": (b"{}", "weight_map must map tensors to file names"),
    "numbers": (b'{"weight_map":{"a":1}}', "weight_map must map tensors to file names"),
    "empty": (b'{"weight_map":{}}', "names no tensor"),
    "twice": (b'{"weight_map":{"a":"x.safetensors","a":"y.safetensors"}}', "names 'a' twice"),
    "above": (b'{"weight_map":{"a":"../x.safetensors"}}', "'../x.safetensors' must be names of files in the same"),
    "absolute": (b'{"weight_map":{"a":"/etc/passwd"}}', "'/etc/passwd' must be names of files in the same folder"),
    "inside": (b'{"weight_map":{"a":"sub/x.safetensors"}}', "'sub/x.safetensors' must be names of files"),
    "windows": (b'{"weight_map":{"a":"..\\\\x.safetensors"}}', "must be names of files in the same folder"),
    "itself": (b'{"weight_map":{"a":"."}}', "'.' must be names of files in the same folder"),
    "nul": (b'{"weight_map":{"a":"x\\u0000y"}}', "must be names of files in the same folder"),
    "deep": (DEEP, "is not JSON"),
    "half a surrogate": (b'{"weight_map":{"a":"\\ud800"}}', "is not JSON"),
}


@pytest.mark.parametrize("case", INDEXES)
def test_index(tmp_path, case):
    text, message = INDEXES[case]
    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    (tmp_path / INDEX).write_bytes(text)
    said = refusal(tmp_path)
    assert message in said
    assert INDEX in said


def test_everything_an_index_has_wrong_in_one_message(tmp_path):
    save_file({"a": torch.ones(2), "unlisted": torch.ones(1)}, tmp_path / "x.safetensors")
    save_file({"c": torch.ones(2)}, tmp_path / "y.safetensors")
    where = {"a": "x.safetensors", "b": "x.safetensors", "c": "y.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": where}))
    said = refusal(tmp_path)
    assert "x.safetensors: 'unlisted' not in the index" in said
    assert "says that x.safetensors has 'b', which it does not have" in said


def test_files_that_an_index_names_and_that_are_not_there(tmp_path):
    where = {"a": "x-1.safetensors", "b": "x-2.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": where}))
    said = refusal(tmp_path)
    assert "x-1.safetensors: cannot be opened: No such file or directory" in said
    assert "x-2.safetensors: cannot be opened: No such file or directory" in said


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=60),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
            max_leaves=8,
        ).map(lambda value: json.dumps({"weight_map": value}).encode()),
        st.dictionaries(st.text(max_size=4), st.text(max_size=6)).map(
            lambda value: json.dumps({"weight_map": value}, ensure_ascii=False).encode(errors="surrogatepass")
        ),
    )
)
def test_any_index_is_read_or_refused(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.safetensors.index.json"
    path.write_bytes(text)
    try:
        where = parse_index(path.read_bytes(), path)
    except CheckpointError as error:
        assert str(path) in str(error)  # noqa: PT017
    else:
        assert where
        assert all((path.parent / name).parent == path.parent for name in where.values())


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=80), st.binary(max_size=20), st.integers(-3, 3))
def test_any_file_is_read_or_refused(tmp_path_factory, registry, header, data, off):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(struct.pack("<Q", max(0, len(header) + off)) + header + data)
    with pytest.raises(CheckpointError, match=r"any\.safetensors"):
        open_checkpoint(path, registry=registry)


# --------------------------------------------------------------------------------------------------------- .pth


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_payload_is_not_run(tmp_path):
    torch.save({"a": torch.ones(2), "b": Payload(tmp_path / "owned")}, tmp_path / "x.pth")
    said = refusal(tmp_path / "x.pth")
    assert "holds Python objects other than tensors, which could run code when loaded, and is not opened" in said
    assert "system" in said
    assert "weights_only" not in said
    assert not (tmp_path / "owned").exists()
    # the payload is a real one
    with zipfile.ZipFile(tmp_path / "x.pth") as archive:
        assert b"touch" in archive.read("x/data.pkl")


def test_a_bare_pickle_with_a_payload_is_not_even_unpickled(tmp_path):
    (tmp_path / "x.pt").write_bytes(pickle.dumps(Payload(tmp_path / "owned")))
    assert "cannot be read piece by piece" in refusal(tmp_path / "x.pt")
    assert not (tmp_path / "owned").exists()


def test_the_old_format_says_how_to_save_anew(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    said = refusal(tmp_path / "old.pth")
    assert "cannot be read piece by piece" in said
    assert "torch.save(torch.load(" in said


def test_every_third_cut_of_a_pth_is_noticed(tmp_path, registry):
    torch.save({"a": torch.ones(2)}, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    for length in range(0, len(whole), 3):
        (tmp_path / "x.pth").write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"x\.pth"):
            open_checkpoint(tmp_path / "x.pth", registry=registry)


def rewritten(path, change, compression=zipfile.ZIP_STORED):
    """A copy of an archive with other records."""
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    change(records)
    copy = path.with_name("changed.pth")
    with zipfile.ZipFile(copy, "w", compression) as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    return copy


def test_compressed_records(tmp_path):
    torch.save({"a": torch.zeros(4 * MEBIBYTE)}, tmp_path / "x.pth")
    copy = rewritten(tmp_path / "x.pth", lambda records: None, zipfile.ZIP_DEFLATED)
    assert "its records are compressed" in refusal(copy)


def test_a_pickle_that_is_garbage(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "x.pth")
    copy = rewritten(tmp_path / "x.pth", lambda records: records.update({"x/data.pkl": b"\x80\x02}q\x00garbage"}))
    assert "changed.pth" in refusal(copy)


def test_a_tensor_that_claims_more_than_its_storage(tmp_path):
    torch.save({"a": torch.ones(1000)}, tmp_path / "x.pth")

    def change(records):
        old = records["x/data.pkl"]
        assert old.count(b"K\x00M\xe8\x03\x85") == 1  # offset 0, shape (1000,)
        large = b"\x8a\x08" + (10**17).to_bytes(8, "little")
        records["x/data.pkl"] = old.replace(b"K\x00M\xe8\x03\x85", b"K\x00" + large + b"\x85")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = refusal(rewritten(tmp_path / "x.pth", change))
    assert "torch cannot load it" in said
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB


def test_another_kind_of_file_under_the_name(tmp_path):
    (tmp_path / "x.pth").write_bytes(b"just some text")
    assert "this is no file of torch.save" in refusal(tmp_path / "x.pth")


def test_entries_that_are_no_tensors_are_named(tmp_path):
    torch.save({"a": torch.ones(2), "epoch": 3, "list": [torch.ones(1)]}, tmp_path / "x.pth")
    said = refusal(tmp_path / "x.pth")
    assert "'list' is a list, not a tensor" in said
    assert "epoch" not in said  # a number is left out, and told


def test_a_list_of_tensors(tmp_path):
    torch.save([torch.ones(2)], tmp_path / "x.pth")
    assert "holds a list, not a mapping of names to tensors" in refusal(tmp_path / "x.pth")


def test_a_mapping_that_holds_itself(tmp_path):
    content = {}
    content["model"] = content
    torch.save(content, tmp_path / "x.pth")
    assert "wrapped more than 4 mappings deep" in refusal(tmp_path / "x.pth")


def test_tensors_that_no_safetensors_file_can_hold(tmp_path):
    tensors = {
        "complex": torch.ones(2, dtype=torch.complex128),
        "sparse": torch.eye(3).to_sparse(),
        "conjugate": torch.ones(2, dtype=torch.complex64).conj(),
        3: torch.ones(1),
    }
    torch.save(tensors, tmp_path / "x.pth")
    said = refusal(tmp_path / "x.pth")
    assert "'complex' has dtype torch.complex128" in said
    assert "'sparse' is not a plain dense tensor" in said
    assert "'conjugate' is not a plain dense tensor" in said
    assert "3 is not a name" in said


# --------------------------------------------------------------------------------------------------- found by fuzzing


@pytest.mark.parametrize("key", ["a[[b", "]", "[", "a[1][x", "..", "a.[", "x]]"])
def test_a_key_that_looks_like_a_path(tmp_path, registry, key):
    """The search for the line of one with a lone bracket did not end."""
    path = tmp_path / "wan.yaml"
    path.write_text(f"source:\n  path: /a\n  {json.dumps(key)}: 1\noutput: {{path: /b}}\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, registry=registry)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{path}:3: source.{key}: unknown key")


def test_a_key_that_moves_the_cursor(tmp_path, registry):
    path = tmp_path / "wan.yaml"
    path.write_text('source: {path: /a, "\\e[2J": 1}\noutput: {path: /b}\n')
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, registry=registry)
    assert "\x1b" not in str(caught.value)
    assert r"source.\x1b[2J: unknown key" in str(caught.value)
