"""Fuzz the readers of what lies in an output folder, and of files that options name. Only ConverterErrors may leave.

    pip install atheris
    python tests/fuzz/fuzz_folders.py journal     -max_total_time=600
    python tests/fuzz/fuzz_folders.py manifest    -max_total_time=600
    python tests/fuzz/fuzz_folders.py torch       -max_total_time=600
    python tests/fuzz/fuzz_folders.py calibration -max_total_time=600

Further arguments are libFuzzer's, as for fuzz_headers.py.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["converter_core", "converter_plugins", "json", "zipfile", "pickle"]):
    from converter_core.api import TensorSpec, WeightContext, WeightInfo
    from converter_core.errors import CheckpointError, ConverterError
    from converter_core.folder import Folder
    from converter_core.output import journal as journals
    from converter_core.output import manifest as manifests
    from converter_core.output.fingerprint import Fingerprint
    from converter_core.output.finished import meet
    from converter_core.output.journal import Begun, Journal
    from converter_core.output.place import LocalPlace
    from converter_core.plugins.registry import load_plugins
    from converter_core.storage.location import locate
    from converter_core.trusted import is_inside
    from converter_core.verification.expected import files_listed, read_manifest
    from converter_plugins.containers.torch_zip import TorchZip
    from converter_plugins.quantizers.nvfp4 import Nvfp4

import torch

warnings.simplefilter("ignore")
MARK = Fingerprint("a", {}, {"model.safetensors": (1, 2, 3)})
STORAGES = load_plugins().storages
SCRATCH = Path(tempfile.mkdtemp(prefix="fuzz_folders."))


def journal(data: bytes) -> None:
    """What is believed names files inside alone, and can be written anew."""
    (SCRATCH / journals.NAME).write_bytes(data)
    with Folder.open(SCRATCH) as folder:
        begun = journals.read(folder)
        if begun is None:
            return
        assert all(map(is_inside, begun.replaces | begun.orphans | begun.publishes))
        assert all(type(crc) is int for sums in begun.done.values() for crc in sums.values())
        assert begun.done.keys() == begun.sources.keys()
        assert all(isinstance(sums, str) for sums in begun.sources.values())
        MARK.moved(begun.identity)
        again = SCRATCH / "again"
        again.mkdir(exist_ok=True)
        with Folder.open(again) as other:
            Journal.begin(other, Begun(begun.fingerprint, begun.made_of, begun.replaces)).close()
            found = journals.read(other)
    assert found is not None
    assert (found.fingerprint, found.replaces) == (begun.fingerprint, begun.replaces)


def manifest(data: bytes) -> None:
    """Data as the file; and, where it is JSON, as the content of one whose own checksum fits."""
    path = SCRATCH / f"x{manifests.SUFFIX}"
    path.write_bytes(data)
    for name in files_listed(locate(path, STORAGES)) or ():
        assert isinstance(name, str)
    _read(path)
    try:
        content = json.loads(data)
        path.write_bytes(manifests.dump(content if isinstance(content, dict) else {"files": content}))
    except (ValueError, RecursionError):
        return
    _read(path)


def _read(path: Path) -> None:
    try:
        expected = read_manifest(locate(path, STORAGES))
    except CheckpointError:
        return
    assert all(map(is_inside, expected.files))
    with Folder.open(path.parent) as folder:
        place = LocalPlace(folder)
        for name, content in manifests.manifests_in(place).read.items():
            found = meet(place, name, content, {}, {*content.get("files", ()), name}, MARK)
            assert isinstance(found, str) or all(map(is_inside, found.damaged))


class File:
    def __init__(self, path: Path) -> None:
        self.name = self.path = str(path)
        self.size, self.version = path.stat().st_size, 0

    def read(self, at: int, into: memoryview) -> None:
        data = Path(self.path).read_bytes()[at : at + len(into)]
        if len(data) < len(into):
            raise CheckpointError("short")
        into[:] = data


def torch_zip(data: bytes) -> None:
    """Every byte of every tensor lies in the file."""
    path = SCRATCH / "x.pth"
    path.write_bytes(data)
    source = File(path)
    contents = TorchZip().read(source)
    for key, spec in contents.tensors.items():
        into = memoryview(bytearray(min(spec.nbytes, 1 << 20)))
        if key in contents.offsets:
            assert contents.offsets[key] + spec.nbytes <= source.size
            source.read(contents.offsets[key], into)
        elif contents.reader is not None:
            contents.reader.read(key, 0, into)
    if contents.reader is not None:
        contents.reader.close()


def calibration(data: bytes) -> None:
    kind, _, rest = data.partition(b"\n")
    path = SCRATCH / f"calibration.{'json' if kind == b'json' else 'safetensors' if kind == b'st' else 'pt'}"
    path.write_bytes(rest)
    quantizer = Nvfp4(activation_absmax=str(path))
    list(quantizer.remarks({"blocks.0.ffn.0": {}}))
    context = WeightContext(WeightInfo("blocks.0.ffn.0", {}, "linear"), "blocks.0.ffn.0", TensorSpec("F32", (16, 16)))
    quantizer.inputs(context, {})


def _saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


LINES = b'\n{"fingerprint":"a","made_of":{"x":1},"replaces":["a","b/c"]}\n'
LINES += b'\n{"weight":"w","crc32":{"w.weight":1},"source":"0f"}\n'
COMPARED = LINES + b'\n{"identity":{"model.safetensors":[1,2,3]},"stale":["w"]}\n'
LISTED = {
    "target": "plain",
    "model": {"adapter": "wan_dit", "variant": "x"},
    "files": {"a.safetensors": {"size": 9, "header_crc32": "00"}, "b.json": {"size": 1, "crc32": "00"}},
    "weights": {"w": {"format": "int8", "source": {"dtype": "F32", "shape": [2]}, "parts": {"weight": "w.weight"}}},
    "formats": {},
    "source": {"files": {"model.safetensors": [9, 1, "00"]}, "checksums": {"w": "0f"}},
    "tensors": {"w.weight": {"file": "a.safetensors", "dtype": "I8", "shape": [2], "crc32": "00000000"}},
}
WHOLE = torch.arange(12.0).reshape(3, 4)
TARGETS = {
    "journal": (journal, [LINES, COMPARED, LINES + b'\n{"publishes":["a"],"replaces":["x"]}\n', b'{"fingerprint":1}']),
    "manifest": (manifest, [json.dumps(LISTED).encode(), manifests.dump(LISTED)]),
    "torch": (
        torch_zip,
        [_saved({"a": WHOLE, "t": WHOLE.t(), "s": WHOLE[1:]}), _saved({"model": {"a": WHOLE.half()}})],
    ),
    "calibration": (
        calibration,
        [
            b'json\n{"absmax": {"blocks.0.ffn.0": 3.5}}',
            b"pt\n" + _saved({"absmax": {"blocks.0.ffn.0": torch.tensor(3.5)}}),
            b"st\n" + bytes(8),
        ],
    ),
}


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: {sys.argv[0]} {{{','.join(TARGETS)}}} [libFuzzer arguments]")
    reader, seeds = TARGETS[sys.argv[1]]
    corpus = SCRATCH / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds):
        (corpus / str(number)).write_bytes(seed)

    def once(data: bytes) -> None:
        try:
            reader(data)
        except ConverterError as error:
            told = [line for problem in error.problems for line in problem.splitlines()]
            assert all(len(line) < 20_000 for line in told), told
            assert all(character.isprintable() for line in told for character in line), told

    atheris.Setup([sys.argv[0], *sys.argv[2:], str(corpus)], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
