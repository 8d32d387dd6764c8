"""Which files make a checkpoint, and every byte of its tensors."""

from __future__ import annotations

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from converter_core.api.tensors import dtype_name
from converter_core.api.values import TensorSpec
from converter_core.checkpoint.files import open_checkpoint
from converter_core.errors import CheckpointError

INDEX = "diffusion_pytorch_model.safetensors.index.json"


def numbers(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def data(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def read(checkpoint, key):
    into = bytearray(checkpoint.tensors[key].nbytes)
    checkpoint.read(key, 0, memoryview(into))
    return bytes(into)


def refused(path, **options):
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path, **options)
    return str(caught.value)


def dit(key):
    return key.startswith("blocks.")


def write_index(folder, name=INDEX, **where):
    (folder / name).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))


ODD = {
    "0-d": torch.tensor(-3.5, dtype=torch.bfloat16),
    "5-D": numbers(2, 3, 1, 2, 2, dtype=torch.float16),
    "empty": torch.zeros(0, 7),
    "with space, \"quotes\", 'quotes' and \n": numbers(3),
    "模型.блок.ü": torch.arange(5, dtype=torch.int64),
    "fp8": numbers(4, 4).to(torch.float8_e4m3fn),
    "true": torch.tensor([True, False, True]),
}


@pytest.fixture(params=["safetensors", "pth"])
def odd(request, tmp_path):
    path = tmp_path / f"odd.{request.param}"
    save_file(ODD, path) if request.param == "safetensors" else torch.save(ODD, path)
    return path


def test_odd_names_and_shapes(odd):
    with open_checkpoint(odd) as checkpoint:
        assert set(checkpoint.tensors) == set(ODD)
        for key, tensor in ODD.items():
            assert checkpoint.tensors[key] == TensorSpec(dtype_name(tensor.dtype), tuple(tensor.shape))
            assert read(checkpoint, key) == data(tensor)
            assert checkpoint.file_of(key) == odd.name


def test_every_range_of_a_tensor(odd):
    whole = data(ODD["5-D"])
    with open_checkpoint(odd) as checkpoint:
        for start in range(len(whole) + 1):
            for stop in range(start, len(whole) + 1):
                into = bytearray(stop - start)
                checkpoint.read("5-D", start, memoryview(into))
                assert into == whole[start:stop]
        with pytest.raises(ValueError, match="of a tensor of 48"):
            checkpoint.read("5-D", 47, memoryview(bytearray(2)))
        checkpoint.will_need("5-D", 0, len(whole))
        checkpoint.will_need("empty", 0, 0)


def test_many_threads(odd):
    tensor = numbers(64, 1024)
    path = odd.with_name(f"large{odd.suffix}")
    save_file({"w": tensor}, path) if odd.suffix == ".safetensors" else torch.save({"w": tensor.t().clone().t()}, path)
    whole = data(tensor)

    def piece(at):
        into = bytearray(min(9000, len(whole) - at))
        checkpoint.read("w", at, memoryview(into))
        return bytes(into) == whole[at : at + len(into)]

    with open_checkpoint(path) as checkpoint, ThreadPoolExecutor(8) as pool:
        assert all(pool.map(piece, range(0, len(whole), 7001)))


def test_what_is_known_of_the_files(tmp_path):
    save_file({"b": numbers(2), "a": numbers(3)}, tmp_path / "2.safetensors", {"who": "two", "only": "here"})
    save_file({"c": numbers(2)}, tmp_path / "1.safetensors", {"who": "one"})
    with open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.tensors) == ["c", "a", "b"]
        assert checkpoint.metadata == {"who": "one", "only": "here"}
        assert checkpoint.root.path == checkpoint.location.path == tmp_path
        assert (checkpoint.format, checkpoint.indexed, checkpoint.skipped) == ("safetensors", False, ())
        for file, name in zip(checkpoint.files, ["1.safetensors", "2.safetensors"], strict=True):
            status = (tmp_path / name).stat()
            assert (file.name, file.path) == (name, str(tmp_path / name))
            assert (file.size, file.version) == (status.st_size, status.st_mtime_ns)
        assert len({file.header_hash for file in checkpoint.files}) == 2


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_header_hash_is_of_names_and_shapes_not_of_values(tmp_path, suffix):
    def hash_of(tensors):
        path = tmp_path / f"x{suffix}"
        save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
        with open_checkpoint(path) as checkpoint:
            return checkpoint.files[0].header_hash

    one = hash_of({"a": numbers(4, 2), "b": numbers(3)})
    assert hash_of({"b": numbers(3, seed=5), "a": numbers(4, 2, seed=6)}) == one
    assert hash_of({"a": numbers(2, 4), "b": numbers(3)}) != one
    assert hash_of({"a": numbers(4, 2).half(), "b": numbers(3)}) != one
    assert hash_of({"a": numbers(4, 2), "c": numbers(3)}) != one


def test_only_headers_are_read_at_first(tmp_path):
    """A terabyte that is a hole: no time, no disk, no memory."""
    text = json.dumps({"w": {"dtype": "U8", "shape": [1 << 40], "data_offsets": [0, 1 << 40]}}).encode()
    with open(tmp_path / "x.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.seek(8 + len(text) + (1 << 40) - 1)
        file.write(b"\x07")
    with open_checkpoint(tmp_path) as checkpoint:
        into = bytearray(2)
        checkpoint.read("w", (1 << 40) - 2, memoryview(into))
    assert into == b"\x00\x07"


# ------------------------------------------------------------------------------------------------------------- folders


def test_a_folder_goes_by_its_index(tmp_path):
    save_file({"blocks.0.w": numbers(3)}, tmp_path / "m-1.safetensors")
    save_file({"blocks.1.w": numbers(4), "other": numbers(1)}, tmp_path / "m-2.safetensors")
    save_file({"blocks.0.w": numbers(9)}, tmp_path / "stale.safetensors")
    torch.save({"blocks.0.w": numbers(9)}, tmp_path / "vae.pth")
    write_index(
        tmp_path, **{"blocks.1.w": "m-2.safetensors", "blocks.0.w": "m-1.safetensors", "other": "m-2.safetensors"}
    )
    with open_checkpoint(tmp_path, owns_key=lambda key: False) as checkpoint:
        assert checkpoint.indexed
        assert [file.name for file in checkpoint.files] == ["m-1.safetensors", "m-2.safetensors"]
        assert checkpoint.tensors["blocks.0.w"].shape == (3,)
        assert checkpoint.skipped == ("stale.safetensors", "vae.pth")
    with open_checkpoint(tmp_path / INDEX) as checkpoint:
        assert set(checkpoint.tensors) == {"blocks.0.w", "blocks.1.w", "other"}


def test_several_indexes(tmp_path):
    save_file({"a": numbers(3)}, tmp_path / "x.safetensors")
    save_file({"b": numbers(3)}, tmp_path / "y.safetensors")
    write_index(tmp_path, "one.safetensors.index.json", a="x.safetensors")
    write_index(tmp_path, "two.safetensors.index.json", b="y.safetensors")
    said = refused(tmp_path)
    assert "several indexes; name one as the path: 'one.safetensors.index.json', 'two.safetensors.index.json'" in said
    with open_checkpoint(tmp_path / "two.safetensors.index.json") as checkpoint:
        assert list(checkpoint.tensors) == ["b"]
    write_index(tmp_path, INDEX, a="x.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.tensors) == ["a"]


def test_a_folder_without_an_index_takes_what_is_known(tmp_path):
    save_file({"blocks.0.w": numbers(3), "odd": numbers(1)}, tmp_path / "dit-1.safetensors")
    save_file({"blocks.1.w": numbers(3)}, tmp_path / "dit-2.safetensors")
    save_file({"encoder.w": numbers(3)}, tmp_path / "t5.safetensors")
    (tmp_path / "models_t5.pth").write_bytes(b"never opened")
    (tmp_path / "._dit-1.safetensors").write_bytes(b"what a Mac leaves behind")
    (tmp_path / ".wan.partial").mkdir()
    (tmp_path / ".wan.partial" / "x.safetensors").write_bytes(b"unfinished")
    (tmp_path / "config.json").write_text("{}")
    with open_checkpoint(tmp_path, owns_key=dit) as checkpoint:
        assert set(checkpoint.tensors) == {"blocks.0.w", "odd", "blocks.1.w"}
        assert checkpoint.skipped == ("models_t5.pth", "t5.safetensors")
        assert not checkpoint.indexed


def test_a_tensor_in_two_files(tmp_path):
    many = {f"blocks.{number}.w": numbers(2) for number in range(6)}
    save_file(many, tmp_path / "fp16.safetensors")
    save_file(many | {"blocks.9.w": numbers(1)}, tmp_path / "fp32.safetensors")
    said = refused(tmp_path, owns_key=dit)
    assert "fp16.safetensors and fp32.safetensors both have 'blocks.0.w', 'blocks.1.w', 'blocks.2.w' and 3 more" in said


def test_the_only_pth(tmp_path):
    torch.save({"blocks.0.w": numbers(3)}, tmp_path / "dit.pth")
    save_file({"encoder.w": numbers(3)}, tmp_path / "t5.safetensors")
    with open_checkpoint(tmp_path, owns_key=dit) as checkpoint:
        assert (checkpoint.format, list(checkpoint.tensors)) == ("pytorch", ["blocks.0.w"])
        assert checkpoint.skipped == ("t5.safetensors",)


def test_pth_beside_other_pth_must_be_named(tmp_path):
    torch.save({"blocks.0.w": numbers(3)}, tmp_path / "dit.pth")
    torch.save({"decoder.w": numbers(3)}, tmp_path / "vae.pt")
    said = refused(tmp_path)
    assert "several .pth or .pt or .bin or .ckpt files; name one as the path: 'dit.pth', 'vae.pt'" in said
    with open_checkpoint(tmp_path, owns_key=dit) as checkpoint:  # one alone has what is looked for
        assert (list(checkpoint.tensors), checkpoint.skipped) == (["blocks.0.w"], ("vae.pt",))
    (tmp_path / "broken.bin").write_bytes(b"PK\x03\x04")
    with open_checkpoint(tmp_path, owns_key=dit) as checkpoint:
        assert list(checkpoint.tensors) == ["blocks.0.w"]
    with open_checkpoint(tmp_path / "dit.pth", owns_key=dit) as checkpoint:
        assert checkpoint.root.path == tmp_path
        assert list(checkpoint.tensors) == ["blocks.0.w"]


def test_a_format_that_is_asked_for(tmp_path):
    save_file({"a": numbers(3)}, tmp_path / "x.safetensors")
    torch.save({"b": numbers(3)}, tmp_path / "x.pth")
    with open_checkpoint(tmp_path, format="pytorch") as checkpoint:
        assert (list(checkpoint.tensors), checkpoint.skipped) == (["b"], ("x.safetensors",))
    with open_checkpoint(tmp_path, format="safetensors") as checkpoint:
        assert list(checkpoint.tensors) == ["a"]
    (tmp_path / "x.safetensors").rename(tmp_path / "x.bin")
    with open_checkpoint(tmp_path / "x.bin", format="safetensors") as checkpoint:
        assert list(checkpoint.tensors) == ["a"]
    with open_checkpoint(tmp_path / "x.bin") as checkpoint:  # by how it begins
        assert (checkpoint.format, list(checkpoint.tensors)) == ("safetensors", ["a"])
    (tmp_path / "y.weights").write_bytes(b"neither")
    said = refused(tmp_path / "y.weights")
    assert "neither .safetensors nor " in said
    assert " nor .ckpt, nor does it begin like one; if it is one of them" in said
    assert "has no weights (.safetensors); there is 'x.bin', 'x.pth'" in refused(tmp_path, format="safetensors")
    assert "unknown container 'safetensor'; did you mean 'safetensors'?" in refused(tmp_path, format="safetensor")


def test_nothing_that_is_known(tmp_path):
    save_file({"encoder.w": numbers(3)}, tmp_path / "t5.safetensors")
    torch.save({"decoder.w": numbers(3)}, tmp_path / "vae.pth")
    said = refused(tmp_path, owns_key=dit)
    assert "no file in it has a tensor with a name that is known; looked into 't5.safetensors', 'vae.pth'" in said


def test_a_cached_repository_is_all_links(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0a1b"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    tensors = {"a": numbers(3), "b": numbers(4)}
    for number, key in enumerate(tensors):
        save_file({key: tensors[key]}, blobs / f"c0ffee{number}")
        (snapshot / f"m-{number}.safetensors").symlink_to(f"../../blobs/c0ffee{number}")
    write_index(tmp_path, a="m-0.safetensors", b="m-1.safetensors")
    (tmp_path / INDEX).rename(blobs / "beef")
    (snapshot / INDEX).symlink_to("../../blobs/beef")
    (tmp_path / "link").symlink_to(snapshot)
    for path in (snapshot, tmp_path / "link"):
        with open_checkpoint(path) as checkpoint:
            assert [file.name for file in checkpoint.files] == ["m-0.safetensors", "m-1.safetensors"]
            assert {key: read(checkpoint, key) for key in tensors} == {key: data(tensors[key]) for key in tensors}


def test_a_pipeline_names_the_folder_inside(tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    assert "whole pipeline" in refused(tmp_path)
    for name in ("vae", "transformer"):
        (tmp_path / name).mkdir()
        save_file({"a": numbers(2)}, tmp_path / name / "m.safetensors")
    said = refused(tmp_path)
    assert f"is a whole pipeline; give the folder of its transformer: {tmp_path / 'transformer'}" in said
    assert "vae" not in said


def test_empty_and_missing(tmp_path):
    assert re.search(r"has no weights \(\.safetensors, .*\.pth, \.pt, \.bin, \.ckpt\)", refused(tmp_path))
    assert "nowhere: cannot be opened: No such file or directory; check the path" in refused(tmp_path / "nowhere")
    assert "cannot be opened: embedded null" in refused("a\0b")
    (tmp_path / "deeper").mkdir()
    save_file({"a": numbers(2)}, tmp_path / "deeper" / "m.safetensors")
    assert f"there are some in {tmp_path / 'deeper'}: give one of these" in refused(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"x")
    assert ".ckpt); there is 'model.onnx'" in refused(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"x")
    assert "model.bin: this is no file of torch.save" in refused(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_files_that_may_not_be_read(tmp_path):
    save_file({"a": numbers(2)}, tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").chmod(0)
    assert "x.safetensors: cannot be opened: Permission denied" in refused(tmp_path)


# --------------------------------------------------------------------------------------------------------------- .pth


WRAPPED = ["state_dict", "model_state_dict", "model", "module", "params", "generator", "generator_ema", "ema"]


@pytest.mark.parametrize("wrap", [*((name,) for name in WRAPPED), ("model", "module")])
def test_wrapped_tensors(tmp_path, wrap):
    content = {"a": numbers(3)}
    for name in wrap:
        content = {name: content, "epoch": 4}
    torch.save(content, tmp_path / "x.pth")
    with open_checkpoint(tmp_path) as checkpoint:
        assert {key: read(checkpoint, key) for key in checkpoint.tensors} == {"a": data(numbers(3))}


def test_two_wrappers(tmp_path):
    torch.save({"model": {"a": numbers(2)}, "state_dict": {"a": numbers(3)}}, tmp_path / "x.pth")
    assert "holds 'state_dict' and 'model'; save the one that is meant" in refused(tmp_path)


def test_tensors_that_share_a_storage_or_are_not_contiguous(tmp_path):
    base = numbers(6, 8, dtype=torch.bfloat16)
    tensors = {
        "base": base,
        "rows": base[2:5],
        "turned": base.t(),
        "columns": base[:, 1::2],
        "spread": torch.tensor([1.5, -2.0]).expand(3, 2),
        "deep": numbers(2, 3, 4).permute(2, 0, 1),
        "parameter": torch.nn.Parameter(numbers(2, 2)),
    }
    torch.save(tensors, tmp_path / "x.pth")
    with open_checkpoint(tmp_path) as checkpoint:
        for key, tensor in tensors.items():
            whole = data(tensor.detach())
            assert read(checkpoint, key) == whole
            for start in range(0, len(whole), 3):
                into = bytearray(min(5, len(whole) - start))
                checkpoint.read(key, start, memoryview(into))
                assert into == whole[start : start + len(into)]


def test_a_mapped_file_reads_the_same_again_after_its_pages_were_given_back(tmp_path):
    tensor = numbers(512, 1024)
    torch.save({"w": tensor}, tmp_path / "x.pth")
    with open_checkpoint(tmp_path) as checkpoint:
        assert read(checkpoint, "w") == data(tensor)
        assert read(checkpoint, "w") == data(tensor)


def test_reading_a_mapped_file_does_not_keep_it_in_memory(tmp_path):
    torch.save({"w": numbers(32, 1 << 20)}, tmp_path / "x.pth")

    def mapped():
        text = Path("/proc/self/smaps").read_text()
        entry = text.split("x.pth", 1)[1]
        return int(entry.split("Rss:", 1)[1].split()[0])

    with open_checkpoint(tmp_path) as checkpoint:
        into = memoryview(bytearray(8 << 20))
        for start in range(0, 128 << 20, 8 << 20):
            checkpoint.read("w", start, into)
        assert mapped() < 16 << 10  # KiB


# ---------------------------------------------------------------------------------------------------- while it is read


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_replaced_while_it_is_read(tmp_path, suffix):
    def write(path, seed):
        tensors = {"a": numbers(50, seed=seed)}
        save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)

    path = tmp_path / f"x{suffix}"
    write(path, 1)
    with open_checkpoint(path) as checkpoint:
        checkpoint.check_unchanged()
        status = path.stat()
        other = tmp_path / "other"
        write(other, 2)
        os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
        other.replace(path)
        with pytest.raises(CheckpointError, match=r"x\.\w+: was replaced while it was read"):
            checkpoint.check_unchanged()
        assert read(checkpoint, "a") == data(numbers(50, seed=1))
        path.unlink()
        with pytest.raises(CheckpointError, match=r"x\.\w+: was removed while it was read"):
            checkpoint.check_unchanged()


def test_a_file_written_to_while_it_is_read(tmp_path):
    save_file({"a": numbers(50)}, tmp_path / "x.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        os.utime(tmp_path / "x.safetensors", ns=(1, 1))
        with pytest.raises(CheckpointError, match="was replaced while it was read"):
            checkpoint.check_unchanged()


def test_closing_gives_the_files_back(tmp_path):
    save_file({"a": numbers(5)}, tmp_path / "1.safetensors")
    save_file({"encoder": numbers(5)}, tmp_path / "2.safetensors")
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with open_checkpoint(tmp_path, owns_key=lambda key: key == "a") as checkpoint:
        assert len(os.listdir("/proc/self/fd")) == before + 1  # noqa: PTH208
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    with pytest.raises(ValueError, match="closed"):
        read(checkpoint, "a")
    (tmp_path / "3.safetensors").write_bytes(b"broken")
    refused(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


@pytest.mark.parametrize("suffix", [".bin", ".ckpt"])
def test_numbers_and_text_beside_tensors_are_skipped(tmp_path, suffix):
    content = {"a": numbers(3), "step": 7, "version": "2.1", "ema_decay": 0.999, "note": None, "last": True}
    torch.save({"generator": content, "epoch": 3}, tmp_path / f"x{suffix}")
    for path in (tmp_path, tmp_path / f"x{suffix}"):
        with open_checkpoint(path) as checkpoint:
            assert list(checkpoint.tensors) == ["a"]
            (note,) = checkpoint.notes
            assert f"x{suffix}: skipping step, version, ema_decay and 2 more, which are no tensors" in note
    torch.save({"a": numbers(3), "optimizer": [numbers(1)]}, tmp_path / f"x{suffix}")
    assert "'optimizer' is a list, not a tensor" in refused(tmp_path)


def test_shards_of_torch_files_with_an_index(tmp_path):
    torch.save({"a": numbers(3)}, tmp_path / "m-1.bin")
    torch.save({"b": numbers(4)}, tmp_path / "m-2.bin")
    write_index(tmp_path, "diffusion_pytorch_model.bin.index.json", a="m-1.bin", b="m-2.bin")
    with open_checkpoint(tmp_path) as checkpoint:
        assert (checkpoint.format, list(checkpoint.tensors), checkpoint.indexed) == ("pytorch", ["a", "b"], True)


def test_a_missing_shard_is_to_be_downloaded(tmp_path):
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "m-1.safetensors"}}))
    said = refused(tmp_path)
    assert said.endswith(
        "m-1.safetensors: cannot be opened: No such file or directory; the index "
        "m.safetensors.index.json lists it: download it"
    )
