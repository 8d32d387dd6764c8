"""What a file is that cannot be opened as what its name says."""

from __future__ import annotations

from ..api.containers import ByteSource, Container
from ..errors import CheckpointError
from ..plugins.registry import Catalogue
from .find import has_suffix, ordered

HEAD = 512
"""Bytes that are looked at."""


def nature(source: ByteSource, name: str, containers: Catalogue[Container]) -> str:
    """What a file of that name is by how it begins, and what to do; empty if nobody can tell."""
    head = bytearray(min(source.size, HEAD))
    try:
        source.read(0, memoryview(head))
    except CheckpointError:
        return ""
    return _what(bytes(head)) or _container(name, bytes(head), containers)


def _what(head: bytes) -> str:
    text = head.lstrip().lower()
    if not head:
        return "is empty: the download has not begun or was cut; fetch it again"
    if head.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer, which says where the file lies and is not the file: git lfs pull fetches it"
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        return "is a web page, e.g. of a login or an error, that was saved under this name; fetch the file again"
    if text.startswith(b"{"):
        return "is JSON text and holds no weights, e.g. an answer of a server; fetch the file again"
    return ""


def _container(name: str, head: bytes, containers: Catalogue[Container]) -> str:
    """Of another format than its name says."""
    for cls in ordered(containers):
        if cls.recognises(head) and cls.suffixes and not has_suffix(name, cls.suffixes):
            return f"is a {cls.name} file by its content: name it {cls.suffixes[0]}, or say so by source.format"
    mark = head[:4]
    if mark.isascii() and mark.isalpha() and mark.isupper():
        return f"is a {mark.decode()} file by its content, which nothing here reads; give the original weights"
    return ""
