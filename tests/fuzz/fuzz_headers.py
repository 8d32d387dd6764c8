"""Fuzz the readers of what comes from outside: safetensors headers, indexes, recipes. Only ConverterErrors may leave.

    pip install atheris
    python tests/fuzz/fuzz_headers.py header -max_total_time=120
    python tests/fuzz/fuzz_headers.py index  -max_total_time=120
    python tests/fuzz/fuzz_headers.py recipe -max_total_time=120

Further arguments are libFuzzer's. A folder among them keeps the corpus; without one, it starts from a few seeds.
"""

from __future__ import annotations

import json
import struct
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["converter_core", "json", "yaml"]):
    import yaml  # noqa: F401 (instrumented)

    from converter_core.containers.index import parse_index
    from converter_core.errors import ConverterError
    from converter_core.plugins.registry import load_plugins
    from converter_core.recipe.load import load_recipe
    from converter_plugins.containers.safetensors import Safetensors

SCRATCH = Path(tempfile.mkdtemp(prefix="fuzz_headers."))
REGISTRY = load_plugins()


class Bytes:
    """A file in memory."""

    name = "fuzzed.safetensors"

    def __init__(self, data: bytes) -> None:
        self.data, self.size = data, len(data)

    def read(self, at: int, into: memoryview) -> None:
        into[:] = self.data[at : at + len(into)]


def header(data: bytes) -> None:
    """Data as a file: what is accepted fits into it without holes, and can be written anew."""
    end = 8 + int.from_bytes(data[:8], "little")
    found = Safetensors().read(Bytes(data))
    assert sum(spec.nbytes for spec in found.tensors.values()) == len(data) - end
    for key, spec in found.tensors.items():
        key.encode()
        assert end <= found.offsets[key] <= found.offsets[key] + spec.nbytes <= len(data)
    assert all(isinstance(text, str) for pair in found.metadata.items() for text in pair)


def header_text(data: bytes) -> None:
    """Data as the text of a header, behind its right length and before as many bytes as it asks for."""
    text, _, rest = data.partition(b"\n\n")
    header(struct.pack("<Q", len(text)) + text + rest)


def index(data: bytes) -> None:
    path = SCRATCH / "fuzzed.safetensors.index.json"
    path.write_bytes(data)
    where = parse_index(path.read_bytes(), path)
    assert where
    for key, name in where.items():
        key.encode()
        assert (SCRATCH / name).parent == SCRATCH
        assert (SCRATCH / name).name == name


def recipe(data: bytes) -> None:
    path = SCRATCH / "fuzzed.yaml"
    path.write_bytes(data)
    made = load_recipe(path, registry=REGISTRY)
    assert load_recipe(made.as_dict(), registry=REGISTRY) == made


ENTRY = b'{"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},"__metadata__":{"k":"v"}}'
TARGETS = {
    "header": ((header, header_text), [struct.pack("<Q", len(ENTRY)) + ENTRY + bytes(8), ENTRY + b"\n\n12345678"]),
    "index": ((index,), [json.dumps({"metadata": {}, "weight_map": {"a": "x.safetensors"}}).encode()]),
    "recipe": (
        (recipe,),
        [
            b"source: {path: /a}\noutput: {path: /b}\n",
            b"source:\n  path: /a\nquantization:\n  method: int8\n"
            b"  options: {target_modules: [ffn], per_channel: true}\n"
            b"  rules:\n    - match: 'blocks.0.*'\n      method: none\noutput: {path: /b, name: x}\n"
            b"target: {layout: chunked, chunk_size: 4GiB, dtype: bfloat16}\nperformance: {max_memory: 1GiB}\n",
        ],
    ),
}
SPECIAL = (
    r'"\ud800"',
    r'"\u0000"',
    "9" * 5000,
    "-1",
    "1e999",
    "NaN",
    "9223372036854775808",
    "[" * 100,
    "../",
    "\x1b[2J",
    "0x_",
    "=",
    "<<",
    "0:0",
    "\ufeff",
)


def mutate(data: bytes, largest: int, seed: int) -> bytes:
    """Now and then one of the things that readers stumble over, in the middle of it."""
    mutated: bytes = atheris.Mutate(data, largest)
    if seed % 8 == 0:
        at = seed % (len(mutated) + 1)
        mutated = mutated[:at] + SPECIAL[seed // 8 % len(SPECIAL)].encode() + mutated[at:]
    return mutated[:largest]


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: {sys.argv[0]} {{{','.join(TARGETS)}}} [libFuzzer arguments]")
    readers, seeds = TARGETS[sys.argv[1]]
    corpus = SCRATCH / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds):
        (corpus / str(number)).write_bytes(seed)

    def once(data: bytes) -> None:
        for reader in readers:
            try:
                reader(data)
            except ConverterError as error:
                # a message is for a terminal: short, and nothing in it that moves the cursor
                told = [line for problem in error.problems for line in problem.splitlines()]
                assert all(len(line) < 20_000 for line in told), told
                assert all(character.isprintable() for line in told for character in line), told

    atheris.Setup([sys.argv[0], *sys.argv[2:], str(corpus)], once, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
