"""What a file is that cannot be opened as what its name says."""

from __future__ import annotations

from pathlib import Path

from ..api.containers import Container
from ..errors import shown
from ..plugins.registry import Catalogue
from ..trusted import open_regular
from .find import has_suffix, ordered

HEAD = 512
"""Bytes that are looked at."""


def nature(path: Path, containers: Catalogue[Container]) -> str:
    """What it is by how it begins, and what to do; empty if nobody can tell."""
    try:
        with open(open_regular(path), "rb") as file:
            head = file.read(HEAD)
    except OSError:
        return ""
    what = _what(head) or _container(path, head, containers)
    return f"{shown(path)}: {what}" if what else ""


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


def _container(path: Path, head: bytes, containers: Catalogue[Container]) -> str:
    """Of another format than its name says."""
    for cls in ordered(containers):
        if cls.recognises(head) and cls.suffixes and not has_suffix(path.name, cls.suffixes):
            return f"is a {cls.name} file by its content: name it {cls.suffixes[0]}, or say so by source.format"
    mark = head[:4]
    if mark.isascii() and mark.isalpha() and mark.isupper():
        return f"is a {mark.decode()} file by its content, which nothing here reads; give the original weights"
    return ""
