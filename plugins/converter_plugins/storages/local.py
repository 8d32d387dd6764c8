"""Files on disks of this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from converter_core.api import ByteSource, CheckpointError, Entry, LocalFile, Storage, hookimpl, shown


class Local(Storage):
    """Plain paths, and ``file://`` URLs."""

    name = "local"
    schemes = ("file",)
    default = True

    def open(self, url: str, /) -> ByteSource:
        return LocalFile(self.path(url))

    def entries(self, url: str, /) -> Sequence[Entry] | None:
        path = Path(self.path(url))
        try:
            if not path.is_dir():
                path.stat()
                return None
            return sorted((Entry(one.name, one.is_dir()) for one in path.iterdir()), key=lambda entry: entry.name)
        except (OSError, ValueError) as error:
            verb = "listed" if path.is_dir() else "opened"
            reason = getattr(error, "strerror", None) or str(error)
            remedy = "; check the path" if isinstance(error, FileNotFoundError) else ""
            raise CheckpointError(f"{shown(url)}: cannot be {verb}: {reason}{remedy}") from None

    def path(self, url: str, /) -> str:
        return unquote(urlsplit(url).path) if url.lower().startswith("file://") else url

    def join(self, url: str, name: str, /) -> str:
        return str(Path(self.path(url)) / name)

    def parent(self, url: str, /) -> str:
        return str(Path(self.path(url)).parent)

    def basename(self, url: str, /) -> str:
        return Path(self.path(url)).name


@hookimpl
def converter_storages() -> list[type[Storage]]:
    return [Local]
