"""The least there is to do: read the source's bytes, write as many as the output has, fsync. Two threads."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

BLOCK = 4 << 20


def main(source: str, output: str, written: str) -> None:
    size, total = Path(source).stat().st_size, int(written)
    Path(output).mkdir(parents=True, exist_ok=True)
    reader = os.open(source, os.O_RDONLY)
    writer = os.open(Path(output) / "floor.bin", os.O_RDWR | os.O_CREAT)
    if total:
        os.posix_fallocate(writer, 0, total)

    def every_second(number: int) -> None:
        buffer = memoryview(bytearray(BLOCK))
        for at in range(number * BLOCK, size, 2 * BLOCK):
            os.preadv(reader, [buffer], at)
            start, stop = at * total // size, min(at + BLOCK, size) * total // size
            os.pwrite(writer, buffer[: stop - start], start)

    threads = [threading.Thread(target=every_second, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.fsync(writer)


if __name__ == "__main__":
    main(*sys.argv[1:])
