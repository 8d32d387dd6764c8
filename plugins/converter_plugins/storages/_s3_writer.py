"""Buckets of S3 written by ``boto3``, which shows parts and the ids of uploads: a killed run goes on with them."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from converter_core.api import (
    ConversionError,
    PartWriter,
    PendingUpload,
    StoredFile,
    StoredPart,
    UploadGone,
    shown,
)

ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
"""The last one is obstore's own, which reads."""

CONNECTIONS = 32
PASSING = {"RequestTimeout", "RequestTimeTooSkewed", "SlowDown", "Throttling", "ThrottlingException", "BadDigest"}
PASSING |= {"InternalError", "ServiceUnavailable", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"}
SPOILED = {"NoSuchUpload", "InvalidPart", "InvalidPartOrder"}
AT_ONCE = 64 << 20
"""Bytes of a file that is put by one request."""

T = TypeVar("T")

_clients: dict[tuple[Any, ...], Any] = {}
_lock = threading.Lock()


class S3Writer(PartWriter):
    def listing(self, url: str, /) -> Sequence[StoredFile]:
        bucket, key = _place(url)
        prefix = f"{key}/" if key else ""
        found = []
        for page in self._pages(url, "list_objects_v2", Bucket=bucket, Prefix=prefix, Delimiter="/"):
            for one in page.get("Contents", ()):
                if one["Key"] != prefix:  # the folder itself, as some tools make it
                    found.append(StoredFile(_last(one["Key"]), one["Size"], one["ETag"]))
            for one in page.get("CommonPrefixes", ()):
                found.append(StoredFile(_last(one["Prefix"]), is_folder=True))
        return sorted(found, key=lambda file: file.name)

    def put(self, url: str, path: str, /) -> str:
        bucket, key = _place(url)
        if Path(path).stat().st_size <= AT_ONCE:
            with open(path, "rb") as file:
                return str(self._ask(url, "put_object", Bucket=bucket, Key=key, Body=file)["ETag"])
        client = _client(url)
        _told(url, lambda: client.upload_file(path, bucket, key))
        return str(self._ask(url, "head_object", Bucket=bucket, Key=key)["ETag"])

    def delete(self, url: str, /) -> None:
        bucket, key = _place(url)
        self._ask(url, "delete_object", Bucket=bucket, Key=key)

    def begin(self, url: str, /) -> str:
        bucket, key = _place(url)
        return str(self._ask(url, "create_multipart_upload", Bucket=bucket, Key=key)["UploadId"])

    def send(self, url: str, id: str, number: int, data: bytearray, /) -> str:
        bucket, key = _place(url)
        sent = self._ask(url, "upload_part", Bucket=bucket, Key=key, UploadId=id, PartNumber=number, Body=data)
        return str(sent["ETag"])

    def parts(self, url: str, id: str, /) -> Mapping[int, StoredPart]:
        bucket, key = _place(url)
        pages = self._pages(url, "list_parts", Bucket=bucket, Key=key, UploadId=id)
        return {
            one["PartNumber"]: StoredPart(one["ETag"], one["Size"]) for page in pages for one in page.get("Parts", ())
        }

    def complete(self, url: str, id: str, versions: Mapping[int, str], /) -> str:
        bucket, key = _place(url)
        parts = [{"PartNumber": number, "ETag": versions[number]} for number in sorted(versions)]
        try:
            done = self._ask(
                url, "complete_multipart_upload", Bucket=bucket, Key=key, UploadId=id, MultipartUpload={"Parts": parts}
            )
        except UploadGone:
            # the answer to an earlier request may have been lost
            if versions and self._version(url) == _version_of(versions):
                return _version_of(versions)
            raise
        return str(done["ETag"])

    def abort(self, url: str, id: str, /) -> None:
        bucket, key = _place(url)
        with suppress(UploadGone):
            self._ask(url, "abort_multipart_upload", Bucket=bucket, Key=key, UploadId=id)

    def uploads(self, url: str, /) -> Sequence[PendingUpload]:
        bucket, key = _place(url)
        pages = self._pages(url, "list_multipart_uploads", Bucket=bucket, Prefix=f"{key}/" if key else "")
        return [
            PendingUpload(f"s3://{bucket}/{one['Key']}", one["UploadId"], f"{one['Initiated']:%Y-%m-%d %H:%M:%SZ}")
            for page in pages
            for one in page.get("Uploads", ())
        ]

    def _version(self, url: str) -> str:
        """Empty where there is no such file."""
        parent, _, name = url.rstrip("/").rpartition("/")
        return next((file.version for file in self.listing(parent) if file.name == name), "")

    def _ask(self, url: str, operation: str, **arguments: Any) -> Any:
        call = getattr(_client(url), operation)
        return _told(url, lambda: call(**arguments))

    def _pages(self, url: str, operation: str, **arguments: Any) -> list[Any]:
        pages = _client(url).get_paginator(operation)
        return _told(url, lambda: list(pages.paginate(**arguments)))


def _version_of(versions: Mapping[int, str]) -> str:
    """The ETag of a file made of these parts, as S3 makes it where nothing else encrypts; empty where it does not."""
    try:
        digests = b"".join(bytes.fromhex(versions[number].strip('"')) for number in sorted(versions))
    except ValueError:
        return ""
    return f'"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(versions)}"'


def _place(url: str) -> tuple[str, str]:
    """Bucket and key."""
    parts = urlsplit(url)
    return parts.netloc, parts.path.strip("/")


def _last(key: str) -> str:
    return key.rstrip("/").rpartition("/")[2]


def _client(url: str) -> Any:
    """One for all buckets, which any number of threads use; another one where the variables changed."""
    environment = os.environ
    endpoint = next((environment[name] for name in ENDPOINTS if environment.get(name)), None)
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
    virtual = environment.get("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "").lower() == "true"
    case = endpoint, region, virtual, environment.get("AWS_ACCESS_KEY_ID"), environment.get("AWS_PROFILE")
    with _lock:
        if case not in _clients:
            _clients[case] = _told(url, lambda: _make(endpoint, region, virtual))
        return _clients[case]


def _make(endpoint: str | None, region: str | None, virtual: bool) -> Any:
    import boto3
    from botocore.config import Config

    style = "virtual" if virtual else "path" if endpoint else "auto"
    config = Config(
        retries={"total_max_attempts": 1, "mode": "standard"},  # whoever asks tries again, with pauses
        max_pool_connections=CONNECTIONS,
        connect_timeout=20,
        s3={"addressing_style": style},
    )
    return boto3.session.Session().client("s3", endpoint_url=endpoint, region_name=region, config=config)


def _told(url: str, ask: Callable[[], T]) -> T:
    """An OSError for what may pass, UploadGone or a ConversionError for what does not."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

    try:
        return ask()
    except ClientError as error:
        answer = error.response.get("Error", {})
        code, status = answer.get("Code", ""), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        reason = shown(f"{code}: {answer.get('Message', '')}"[:300])
        if code in SPOILED:
            raise UploadGone(reason) from None
        if code in PASSING or status >= 500 or status in (408, 409, 429):
            raise OSError(reason) from None
        raise ConversionError(
            f"{shown(url)}: the store refuses it ({reason}); check the name of the bucket, the credentials, and that "
            "they may list, write and delete there"
        ) from None
    except HTTPClientError as error:  # connections that fail, break or take too long
        raise OSError(shown(str(error)[:300])) from None
    except (BotoCoreError, Boto3Error) as error:
        raise ConversionError(
            f"{shown(url)}: cannot be written to ({shown(str(error)[:300])}); check the credentials and AWS_REGION"
        ) from None
