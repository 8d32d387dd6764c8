"""What a storage implements that outputs can be written to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class StoredFile:
    """What lies in a folder. version: an ETag or the like; another one where the file was written again."""

    name: str
    size: int = 0
    version: str = ""
    is_folder: bool = False


@dataclass(frozen=True)
class StoredPart:
    """A part of an upload that has not been completed. version: what ``complete`` is given again."""

    version: str
    size: int


@dataclass(frozen=True)
class PendingUpload:
    """An upload that was begun and neither completed nor aborted. started: when, as the store tells it."""

    url: str
    id: str
    started: str = ""


class UploadGone(Exception):
    """The store no longer has an upload, or a part of it is not what was sent: its file is made again."""


class Writer(ABC):
    """Puts files below a URL. A file is there whole or not at all, and never half.

    Any number of threads at a time. OSError for what may succeed when it is tried again (the core does), a
    ConversionError with what to do for what may not.
    """

    @abstractmethod
    def listing(self, url: str, /) -> Sequence[StoredFile]:
        """What lies in a folder, sorted by name; empty where there is nothing."""

    @abstractmethod
    def put(self, url: str, path: str, /) -> str:
        """A file of this machine, whole, in the place of what lies there; its version."""

    @abstractmethod
    def delete(self, url: str, /) -> None:
        """A file; nothing where there is none."""


class PartWriter(Writer):
    """One that takes a file in parts, in any order, and goes on with them after its process was killed."""

    smallest_part: ClassVar[int] = 8 << 20
    """Bytes of every part but the last of a file, or more."""

    most_parts: ClassVar[int] = 10_000

    @abstractmethod
    def begin(self, url: str, /) -> str:
        """The id of a new upload. Nothing can be seen under the URL before it is completed."""

    @abstractmethod
    def send(self, url: str, id: str, number: int, data: bytearray, /) -> str:
        """Part ``number``, from 1 on; its version. What was sent under that number before is replaced. UploadGone."""

    @abstractmethod
    def parts(self, url: str, id: str, /) -> Mapping[int, StoredPart]:
        """What the store has of an upload, by number. UploadGone."""

    @abstractmethod
    def complete(self, url: str, id: str, versions: Mapping[int, str], /) -> str:
        """Make a file of these parts, all at once; its version. UploadGone.

        Of an upload that is gone because it was completed to these very parts: the version too.
        """

    @abstractmethod
    def abort(self, url: str, id: str, /) -> None:
        """Away with an upload and its parts; nothing where it is gone."""

    @abstractmethod
    def uploads(self, url: str, /) -> Sequence[PendingUpload]:
        """Everybody's pending uploads of files in a folder and below it."""
