"""Where an output goes: a folder of this machine, or a URL with a folder of this machine for what is not sent yet."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from ..api.storages import Storage
from ..api.writers import PartWriter, Writer
from ..errors import CheckpointError, PlanError, Refused, shown
from ..folder import Folder
from ..plugins.registry import Catalogue
from ..recipe.values import OutputSection
from ..storage.location import Location, locate
from .place import LocalPlace, Place, RemotePlace


@dataclass(frozen=True)
class Destination:
    """text: as it was typed. folder: of this machine, where unfinished files lie: the output itself, or the state of a
    URL. location, writer: of a URL.
    """

    text: str
    folder: Path
    location: Location | None = None
    writer: Writer | None = None

    def __str__(self) -> str:
        return self.text

    @property
    def name(self) -> str:
        return self.location.name if self.location is not None else self.folder.name

    @property
    def takes_parts(self) -> bool:
        """Whether what is sent needs no room here any longer."""
        return isinstance(self.writer, PartWriter)

    def at(self, name: str) -> str:
        """A file in it, as a user would type it."""
        return str(self.location / name) if self.location is not None else str(self.folder / name)

    def place(self, folder: Folder | None) -> Place:
        """What lies there. folder: the output on this machine; None: it lies elsewhere."""
        if self.location is not None and self.writer is not None:
            return RemotePlace(self.location, self.writer)
        assert folder is not None
        return LocalPlace(folder)

    def is_within(self, other: Destination) -> bool:
        """Whether it is the other one, or lies in it."""
        if (self.location is None) != (other.location is None):
            return False
        if self.location is not None:
            return is_inside_url(self.text, other.text)
        return self.folder.resolve().is_relative_to(other.folder.resolve())


def destination(output: OutputSection, storages: Catalogue[Storage]) -> Destination:
    """PlanError where nothing can be written."""
    try:
        location = locate(output.path, storages)
        if location.path is not None:
            return Destination(output.path, location.path)
        writer = location.storage.writer(location.url)
    except (CheckpointError, Refused) as error:
        raise PlanError(*(f"output.path: {shown(output.path)}: {problem}" for problem in error.problems)) from None
    plain = Location(location.storage, _plain(location.url))
    return Destination(output.path, state_folder(output.path, output.state_folder), plain, writer)


def state_home(typed: str | None = None) -> Path:
    """The folder that holds the state of every URL. typed: ``output.state_folder``."""
    if typed is not None:
        return Path(typed).absolute()
    home = os.environ.get("XDG_STATE_HOME", "")
    return (Path(home) if Path(home).is_absolute() else Path.home() / ".local" / "state") / "model-converter"


def state_folder(url: str, typed: str | None = None) -> Path:
    """Of one URL."""
    return state_home(typed) / hashlib.sha256(os.fsencode(_plain(url))).hexdigest()[:24]


def is_inside_url(url: str, other: str) -> bool:
    """Whether it is the other one, or lies in it."""
    return f"{_plain(url)}/".startswith(f"{_plain(other)}/")


def _plain(url: str) -> str:
    scheme, colon, rest = url.partition("://")
    return f"{scheme.lower()}{colon}{rest.rstrip('/')}"
