"""Repositories of the Hugging Face hub, read in place by the ``huggingface_hub`` package.

Its token, endpoint, proxies and offline mode are honoured. What its cache has already is read from there.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from converter_core.api import (
    ByteSource,
    CheckpointError,
    Entry,
    LocalFile,
    Refused,
    RemoteFile,
    Storage,
    Writer,
    hookimpl,
    shown,
)

INSTALL = 'install it with: pip install "model-converter[hub]"'
_URL = re.compile(r"hf://(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?(/(?P<path>.*?))?/?")

_commits: dict[tuple[str, str], str] = {}
_lock = threading.Lock()


class Hub(Storage):
    """hf://org/repo[@revision]/folder by range requests (extra: hub)."""

    name = "hub"
    schemes = ("hf",)

    def open(self, url: str, /) -> ByteSource:
        at = _At(url)
        cached = at.cached
        if cached is None and at.is_offline:
            raise CheckpointError(_not_cached(url))
        return LocalFile(cached) if cached else _File(at)

    def entries(self, url: str, /) -> Sequence[Entry] | None:
        at = _At(url)
        if at.is_offline:
            return _entries_of(at.snapshot / at.path, url)
        try:
            if not at.fs.isdir(at.full):
                at.fs.info(at.full)
                return None
            listed = at.fs.ls(at.full, detail=True)
        except Exception as error:
            raise CheckpointError(_words(url, error)) from None
        found = (Entry(one["name"].rpartition("/")[2], one["type"] == "directory") for one in listed)
        return sorted(found, key=lambda entry: entry.name)

    def writer(self, url: str, /) -> Writer:
        raise Refused(
            "the hub is only read from; convert into a folder on this machine, then: hf upload ORG/REPO FOLDER"
        )


class _At:
    """A place in a repository, at the commit that its revision meant when it was first asked for."""

    def __init__(self, url: str) -> None:
        found = _URL.fullmatch(url)
        if found is None:
            raise CheckpointError(f"{shown(url)}: must be hf://org/repo, hf://org/repo@revision or a path in it")
        self.url, self.repo, self.path = url, found["repo"], found["path"] or ""
        self.revision = (found["revision"] or "main").replace("%2F", "/").replace("%2f", "/")

    @cached_property
    def fs(self) -> Any:
        try:
            from huggingface_hub import HfFileSystem
        except ImportError:
            raise CheckpointError(f"{shown(self.url)}: needs the package huggingface_hub; {INSTALL}") from None
        return HfFileSystem()

    @property
    def is_offline(self) -> bool:
        """By HF_HUB_OFFLINE: what the cache has is all that there is."""
        _ = self.fs
        from huggingface_hub import constants

        return bool(constants.HF_HUB_OFFLINE)

    @property
    def snapshot(self) -> Path:
        """Where the cache has the files of this commit."""
        return self._cache / "snapshots" / self.commit

    @property
    def _cache(self) -> Path:
        from huggingface_hub import constants

        return Path(constants.HF_HUB_CACHE) / f"models--{self.repo.replace('/', '--')}"

    def _cached_commit(self) -> str:
        """What the revision meant when it was last asked for."""
        for there in (self._cache / "snapshots" / self.revision, self._cache / "refs" / self.revision):
            if there.is_dir():
                return self.revision
            if there.is_file():
                return there.read_text().strip()
        raise CheckpointError(_not_cached(self.url))

    @cached_property
    def commit(self) -> str:
        """All files of one conversion are of one commit, also when somebody pushes meanwhile."""
        if self.is_offline:
            return self._cached_commit()
        from huggingface_hub import HfApi

        with _lock:
            case = self.repo, self.revision
            if case not in _commits:
                try:
                    _commits[case] = HfApi().model_info(self.repo, revision=self.revision).sha or self.revision
                except Exception as error:
                    raise CheckpointError(_words(self.url, error)) from None
            return _commits[case]

    @property
    def full(self) -> str:
        _ = self.fs
        return f"{self.repo}@{self.commit}" + (f"/{self.path}" if self.path else "")

    @property
    def cached(self) -> str | None:
        """Where the hub's cache has the file."""
        _ = self.fs
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.repo, self.path, revision=self.commit)
        return found if isinstance(found, str) else None


class _File(RemoteFile):
    def __init__(self, at: _At) -> None:
        self._at = at
        super().__init__(at.url, 0, "")
        self.size, self.version = self._tried(self.current)

    def current(self) -> tuple[int, int | str]:
        """A commit does not change; its files are named by their content."""
        try:
            found = self._at.fs.info(self._at.full)
        except OSError as error:
            raise _raised(self.name, error) from None
        except Exception as error:
            raise CheckpointError(_words(self.name, error)) from None
        if found["type"] != "file":
            raise CheckpointError(f"{shown(self.name)}: is not a file")
        large = found.get("lfs") or {}
        return int(found["size"]), str(large.get("sha256") or found.get("blob_id") or self._at.commit)

    def fetch(self, at: int, nbytes: int, /) -> bytes:
        try:
            return bytes(self._at.fs.cat_file(self._at.full, start=at, end=at + nbytes, cache_type="none"))
        except Exception as error:
            raise _raised(self.name, error) from None


def _entries_of(path: Path, url: str) -> list[Entry] | None:
    """Of the cache."""
    if not path.exists():
        raise CheckpointError(_not_cached(url))
    if not path.is_dir():
        return None
    return sorted((Entry(one.name, one.is_dir()) for one in path.iterdir()), key=lambda entry: entry.name)


def _not_cached(url: str) -> str:
    return f"{shown(url)}: is not in the cache of the hub, and HF_HUB_OFFLINE is set; unset it, or download it before"


def _raised(url: str, error: Exception) -> Exception:
    """An OSError for what may pass, a CheckpointError for what does not."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, FileNotFoundError) or status in (401, 403, 404, 416):
        return CheckpointError(_words(url, error))
    return OSError(_reason(error))


def _words(url: str, error: Exception) -> str:
    return (
        f"{shown(url)}: cannot be read ({_reason(error)}); check the name and revision, and log in if the repository "
        "needs it (hf auth login, or HF_TOKEN)"
    )


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return shown(lines[0][:300]) if lines else type(error).__name__


@hookimpl
def converter_storages() -> list[type[Storage]]:
    return [Hub]
