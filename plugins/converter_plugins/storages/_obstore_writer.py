"""Buckets written by ``obstore``: file by file, whole, for it shows no ids of uploads and no single parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from converter_core.api import ConversionError, StoredFile, Writer, shown

T = TypeVar("T")


class ObstoreWriter(Writer):
    def __init__(self, place: Callable[[str], tuple[Any, str]]) -> None:
        """place: the store of a URL, and the path in it."""
        self._place = place

    def listing(self, url: str, /) -> Sequence[StoredFile]:
        import obstore

        store, path = self._place(url)
        listed = _told(url, lambda: obstore.list_with_delimiter(store, f"{path}/" if path else None))
        found = [StoredFile(_last(one["path"]), one["size"], _version(one)) for one in listed["objects"]]
        found += [StoredFile(_last(prefix), is_folder=True) for prefix in listed["common_prefixes"]]
        return sorted(found, key=lambda file: file.name)

    def put(self, url: str, path: str, /) -> str:
        import obstore

        store, key = self._place(url)
        _told(url, lambda: obstore.put(store, key, Path(path)))
        return _version(_told(url, lambda: obstore.head(store, key)))

    def delete(self, url: str, /) -> None:
        import obstore

        store, path = self._place(url)
        with suppress(FileNotFoundError):
            _told(url, lambda: obstore.delete(store, path))


def _version(found: Any) -> str:
    return found["e_tag"] or f"{found['last_modified']:%Y-%m-%dT%H:%M:%S}"


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _told(url: str, ask: Callable[[], T]) -> T:
    """An OSError for what may pass, a ConversionError for what does not."""
    from obstore import exceptions

    lasting = (
        PermissionError,
        exceptions.PermissionDeniedError,
        exceptions.UnauthenticatedError,
        exceptions.NotSupportedError,
    )
    try:
        return ask()
    except (FileNotFoundError, exceptions.NotFoundError) as error:
        raise FileNotFoundError(shown(str(error)[:300])) from None
    except lasting as error:
        raise ConversionError(
            f"{shown(url)}: the store refuses it ({_reason(error)}); check the name of the bucket and the credentials"
        ) from None
    except Exception as error:
        raise OSError(_reason(error)) from None


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return shown(lines[0][:300]) if lines else type(error).__name__
