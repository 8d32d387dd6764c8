"""Files behind https://, and in buckets of S3, Google Cloud and Azure, read by the ``obstore`` package.

obstore is a thin layer over the Rust crate ``object_store``: no Python in the way of the bytes, connections kept, the
same credentials and variables (``AWS_*``, ``GOOGLE_*``, ``AZURE_*``) as the vendors' own tools. S3 is written by boto3.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from converter_core.api import ByteSource, CheckpointError, Entry, Refused, RemoteFile, Storage, Writer, hookimpl, shown

from ._obstore_writer import ObstoreWriter
from ._s3_writer import S3Writer

INSTALL = 'install it with: pip install "model-converter[object-store]"'
WEB = ("https", "http")

_stores: dict[str, Any] = {}
_lock = threading.Lock()


class ObjectStore(Storage):
    """https://, s3://bucket/, gs://bucket/ and az://container/ by range requests; buckets are written too
    (extra: object-store)."""

    name = "object_store"
    schemes = (*WEB, "s3", "gs", "az")

    def open(self, url: str, /) -> ByteSource:
        store, path = _store(url)
        return _File(url, store, path)

    def entries(self, url: str, /) -> Sequence[Entry] | None:
        if urlsplit(url).scheme.lower() in WEB:
            if self.basename(url).count("."):
                return None
            raise CheckpointError(
                f"{shown(url)}: a web server does not list its folders; give the URL of a file of weights, or of the "
                "index of several"
            )
        store, path = _store(url)
        import obstore

        if path:
            try:
                obstore.head(store, path)
            except (FileNotFoundError, obstore.exceptions.NotFoundError):
                pass
            except Exception as error:
                raise CheckpointError(_words(url, error)) from None
            else:
                return None
        try:
            listed = obstore.list_with_delimiter(store, f"{path}/" if path else None)
        except Exception as error:
            raise CheckpointError(_words(url, error)) from None
        found = [Entry(_last(one["path"])) for one in listed["objects"]]
        found += [Entry(_last(prefix), True) for prefix in listed["common_prefixes"]]
        if not found:
            raise CheckpointError(f"{shown(url)}: there is nothing of that name")
        return sorted(found, key=lambda entry: entry.name)

    def writer(self, url: str, /) -> Writer:
        parts = urlsplit(url)
        scheme = parts.scheme.lower()
        if scheme in WEB:
            raise Refused(
                "a web server is only read from; convert into a folder on this machine, or write to s3://, gs:// or "
                "az://"
            )
        if parts.query or parts.fragment or not parts.netloc:
            raise Refused(f"must be {scheme}://BUCKET/FOLDER, without ? and #")
        package = "boto3" if scheme == "s3" else "obstore"
        if any(find_spec(name) is None for name in ("obstore", package)):
            raise Refused(f"needs the packages obstore and {package}; {INSTALL}")
        return S3Writer() if scheme == "s3" else ObstoreWriter(_store)


class _File(RemoteFile):
    def __init__(self, url: str, store: Any, path: str) -> None:
        self._store, self._path = store, path
        super().__init__(url, 0, "")
        self.size, self.version = self._tried(self.current)

    def current(self) -> tuple[int, int | str]:
        import obstore

        try:
            found = obstore.head(self._store, self._path)
        except Exception as error:
            raise _raised(self.name, error) from None
        return found["size"], found["e_tag"] or f"{found['last_modified']:%Y-%m-%dT%H:%M:%S}"

    def fetch(self, at: int, nbytes: int, /) -> bytes:
        import obstore

        options: Any = {"range": (at, at + nbytes)}
        if isinstance(self.version, str) and self.version.startswith('"'):  # a strong ETag
            options["if_match"] = self.version
        try:
            return bytes(obstore.get(self._store, self._path, options=options).bytes())
        except Exception as error:
            raise _raised(self.name, error) from None


def _store(url: str) -> tuple[Any, str]:
    """The store of a URL's bucket or server, made once, and the path in it."""
    try:
        from obstore.store import from_url
    except ImportError:
        raise CheckpointError(f"{shown(url)}: needs the package obstore; {INSTALL}") from None
    parts = urlsplit(url)
    if parts.query or parts.fragment:
        raise CheckpointError(
            f"{shown(url)}: what follows the ? or # cannot be sent; give the plain URL, or download the file"
        )
    root = urlunsplit(parts._replace(path="", query="", fragment=""))
    path = parts.path.strip("/")
    options: dict[str, Any] = {"client_options": {"allow_http": True}} if parts.scheme == "http" else {}
    with _lock:
        if root not in _stores:
            try:
                _stores[root] = from_url(root, **options, **(_profile() if parts.scheme == "s3" else {}))
            except Exception as error:
                raise CheckpointError(_words(url, error)) from None
        return _stores[root], path


def _profile() -> dict[str, Any]:
    """The credentials of the files in ``~/.aws``, which boto3 knows and obstore does not; nothing where variables say
    them, or there is no boto3, or no such file."""
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        return {}
    try:
        import boto3
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        return {}
    session = boto3.Session()
    if not session.available_profiles or session.get_credentials() is None:
        return {}
    options: dict[str, Any] = {"credential_provider": Boto3CredentialProvider(session)}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3")
    return {**options, "endpoint": endpoint} if endpoint else options


def _raised(url: str, error: Exception) -> Exception:
    """Of what the library raises: an OSError for what may pass, a CheckpointError for what does not."""
    from obstore import exceptions

    if isinstance(error, exceptions.PreconditionError):
        return CheckpointError(f"{shown(url)}: was replaced while it was read; run again with the new file")
    lasting = (
        FileNotFoundError,
        PermissionError,
        exceptions.NotFoundError,
        exceptions.PermissionDeniedError,
        exceptions.UnauthenticatedError,
        exceptions.NotSupportedError,
    )
    if isinstance(error, lasting):
        return CheckpointError(_words(url, error))
    return OSError(_reason(error))


def _words(url: str, error: Exception) -> str:
    return f"{shown(url)}: cannot be opened ({_reason(error)}); check the URL, and the credentials if it needs some"


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return shown(lines[0][:300]) if lines else type(error).__name__


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


@hookimpl
def converter_storages() -> list[type[Storage]]:
    return [ObjectStore]
