"""A small model of a disk that loses power, after ALICE (OSDI '14) and CrashMonkey (OSDI '18).

What a run writes is recorded call by call. A state of the disk after a power loss is made of the calls up to some
moment: those that an fsync covered are there, and of the others any may be there or not. As POSIX has it an fsync of a
file covers its bytes, its size and its times, and an fsync of a folder the names in it; a rename is there or is not.
"""

from __future__ import annotations

import hashlib
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch


@dataclass(eq=False)
class Node:
    """A file or a folder, whatever it is called. base: what was in it before."""

    folder: bool
    base: bytes = b""
    names: dict[str, Node] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Call:
    """What one call did to a node; kind: link, unlink, rename, write, size, time, fsync."""

    kind: str
    node: Node
    name: str = ""
    child: Node | None = None
    source: tuple[Node, str] | None = None
    at: int = 0
    data: bytes = b""

    def __repr__(self) -> str:
        return f"{self.kind} {self.name} {self.at} {len(self.data)}"


class Disk:
    """A folder whose calls are recorded. calls: in order."""

    def __init__(self, root: Path) -> None:
        self.path = root
        self.calls: list[Call] = []
        self._lock = threading.RLock()
        self._nodes: dict[int, Node] = {}
        self.root = self._known(root)

    def _known(self, path: Path) -> Node:
        node = Node(path.is_dir(), b"" if path.is_dir() else path.read_bytes())
        self._nodes[path.stat().st_ino] = node
        if node.folder:
            node.names = {one.name: self._known(one) for one in path.iterdir()}
        return node

    def _of(self, fd: int) -> Node | None:
        return self._nodes.get(os.fstat(fd).st_ino)

    def _folder_of(self, path: Any, dir_fd: int | None) -> tuple[Node | None, str]:
        path = Path(path)
        if dir_fd is not None:
            return self._of(dir_fd), path.name
        try:
            return self._nodes.get(path.parent.stat().st_ino), path.name
        except OSError:
            return None, path.name

    @contextmanager
    def recording(self) -> Iterator[None]:
        with patch.multiple(os, **{name: self._wrapped(name) for name in _CALLS}):
            yield

    def _wrapped(self, name: str) -> Callable[..., Any]:
        real, note = getattr(os, name), getattr(self, f"_{name}")

        def call(*args: Any, **keywords: Any) -> Any:
            with self._lock:
                return note(real, *args, **keywords)

        return call

    def _add(self, kind: str, node: Node | None, **facts: Any) -> None:
        if node is not None:
            self.calls.append(Call(kind, node, **facts))

    def _link(self, folder: Node, name: str, ino: int, is_folder: bool) -> None:
        node = self._nodes[ino] = Node(is_folder)
        self._add("link", folder, name=name, child=node)

    def _open(self, real: Any, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        folder, name = self._folder_of(path, dir_fd) if flags & os.O_CREAT else (None, "")
        fd: int = real(path, flags, mode, dir_fd=dir_fd)
        if folder is not None:
            assert flags & os.O_EXCL, f"{path} is created without O_EXCL"
            self._link(folder, name, os.fstat(fd).st_ino, False)
        return fd

    def _mkdir(self, real: Any, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        folder, name = self._folder_of(path, dir_fd)
        real(path, mode, dir_fd=dir_fd)
        if folder is not None:
            self._link(folder, name, os.stat(path, dir_fd=dir_fd).st_ino, True)

    def _unlink(self, real: Any, path: Any, *, dir_fd: int | None = None) -> None:
        folder, name = self._folder_of(path, dir_fd)
        ino = os.stat(path, dir_fd=dir_fd, follow_symlinks=False).st_ino
        real(path, dir_fd=dir_fd)
        node = self._nodes.get(ino)
        if folder is not None and node is not None:
            self._add("unlink", folder, name=name, child=node)

    _rmdir = _unlink

    def _replace(
        self, real: Any, src: Any, dst: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None
    ) -> None:
        folder, name = self._folder_of(src, src_dir_fd)
        target, final = self._folder_of(dst, dst_dir_fd)
        ino = os.stat(src, dir_fd=src_dir_fd).st_ino
        real(src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
        if folder is not None and target is not None:
            self._add("rename", target, name=final, child=self._nodes[ino], source=(folder, name))

    def _pwrite(self, real: Any, fd: int, data: Any, at: int) -> int:
        count: int = real(fd, data, at)
        self._add("write", self._of(fd), at=at, data=bytes(data[:count]))
        return count

    def _write(self, real: Any, fd: int, data: bytes) -> int:
        end = os.fstat(fd).st_size
        count: int = real(fd, data)
        self._add("write", self._of(fd), at=end, data=bytes(data[:count]))
        return count

    def _ftruncate(self, real: Any, fd: int, size: int) -> None:
        real(fd, size)
        self._add("size", self._of(fd), at=size)

    def _posix_fallocate(self, real: Any, fd: int, at: int, size: int) -> None:
        real(fd, at, size)
        self._add("size", self._of(fd), at=max(at + size, os.fstat(fd).st_size))

    def _fsync(self, real: Any, fd: int) -> None:
        self._add("fsync", self._of(fd))  # and nothing else: the real disk of the test may be slow

    def _utime(self, real: Any, path: Any, *args: Any, **keywords: Any) -> None:
        real(path, *args, **keywords)
        if isinstance(path, int):
            self._add("time", self._of(path), at=keywords["ns"][1])

    def after(self, moment: int, rng: random.Random | None = None) -> Iterator[list[Call]]:
        """What may be on the disk where power is lost before call ``moment``: all, none, one, all but one of the
        calls that no fsync covered, and with ``rng`` some random choices of them."""
        past = self.calls[:moment]
        synced = {id(call.node): number for number, call in enumerate(past) if call.kind == "fsync"}
        open_ = [n for n, call in enumerate(past) if call.kind != "fsync" and n > synced.get(id(call.node), -1)]
        choices = [set(open_), set()]
        choices += [{one} for one in open_] + [set(open_) - {one} for one in open_]
        if rng is not None:
            choices += [{one for one in open_ if rng.random() < share} for share in rng.choices((0.2, 0.5, 0.8), k=100)]
        for kept in choices:
            yield [call for n, call in enumerate(past) if n not in open_ or n in kept]

    def build(self, calls: list[Call], folder: Path) -> str:
        """Write the state into an empty folder; a digest of it."""
        nodes = {id(node): node for node in (*_within(self.root), *_nodes_of(calls))}
        names = {number: dict(node.names) for number, node in nodes.items()}
        content = {number: bytearray(node.base) for number, node in nodes.items()}
        times: dict[int, int] = {}
        for call in calls:
            within, data = names[id(call.node)], content[id(call.node)]
            if call.kind in ("unlink", "rename"):
                held, name = (names[id(call.source[0])], call.source[1]) if call.source else (within, call.name)
                if held.get(name) is call.child:
                    del held[name]
            if call.kind in ("link", "rename"):
                assert call.child is not None
                within[call.name] = call.child
            elif call.kind == "write":
                data.extend(bytes(max(0, call.at + len(call.data) - len(data))))
                data[call.at : call.at + len(call.data)] = call.data
            elif call.kind == "size":
                del data[call.at :]
                data.extend(bytes(call.at - len(data)))
            elif call.kind == "time":
                times[id(call.node)] = call.at
        digest = hashlib.sha256()
        self._put(self.root, folder, names, content, times, digest)
        return digest.hexdigest()

    def _put(self, node: Node, path: Path, names: Any, content: Any, times: Any, digest: Any) -> None:
        for name, child in sorted(names[id(node)].items()):
            inner = path / name
            digest.update(repr((str(inner.name), child.folder, len(content[id(child)]))).encode())
            if child.folder:
                inner.mkdir()
                self._put(child, inner, names, content, times, digest)
                digest.update(b"up")
            else:
                inner.write_bytes(content[id(child)])
                digest.update(content[id(child)])
                if id(child) in times:
                    os.utime(inner, ns=(0, times[id(child)]))
                digest.update(str(times.get(id(child))).encode())


def _within(node: Node) -> Iterator[Node]:
    yield node
    for child in node.names.values():
        yield from _within(child)


def _nodes_of(calls: list[Call]) -> Iterator[Node]:
    for call in calls:
        yield call.node
        if call.child is not None:
            yield call.child
        if call.source is not None:
            yield call.source[0]


_CALLS = ("open", "mkdir", "unlink", "rmdir", "replace", "pwrite", "write", "ftruncate", "posix_fallocate", "fsync")
_CALLS += ("utime",)
