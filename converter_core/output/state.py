"""What stands in an output folder already, whose it is, and whether a plan may write there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..api.values import FileLayout
from ..errors import CheckpointError, ConversionError, shown
from ..folder import Folder
from .destination import Destination
from .fingerprint import Fingerprint
from .finished import Finished, meet
from .manifest import Manifests, manifest_name, manifests_in
from .place import Place
from .unfinished import Unfinished, look_for_unfinished


@dataclass(frozen=True)
class OutputState:
    """finished: this very conversion was published here. replaces: files that give way when this plan is published.

    staged: bytes that an interrupted run of this plan has reserved already. resumes: that run's journal fits.
    orphans: those of them that no manifest lists any more, because an interrupted run has begun to replace them.
    leftover: a staging folder lies there that a finished output needs no longer.
    """

    finished: Finished | None = None
    resumes: bool = False
    staged: int = 0
    leftover: bool = False
    replaces: tuple[str, ...] = ()
    orphans: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    @property
    def done(self) -> bool:
        """Published, and nothing shows that a file changed since."""
        return self.finished is not None and self.finished.is_right


def output_state(
    output: Destination,
    name: str,
    layouts: Mapping[str, FileLayout],
    planned: Iterable[str],
    print_: Fingerprint,
    overwrite: bool,
    other_source: bool = False,
) -> OutputState:
    """layouts: of the weight files. planned: every file that would be published, the manifest included.

    other_source: what is published here was made of other source files, though their headers are the same.
    """
    try:
        folder = Folder.open(output.folder)
    except FileNotFoundError:
        if output.folder.is_symlink():
            problem = f"{output.folder}: is a link that leads nowhere; it must be a folder"
            return OutputState(problems=(problem,))
        if output.location is None:
            return OutputState()
        folder = None
    except NotADirectoryError:
        return OutputState(problems=(f"{output.folder}: is a file, or lies in one; it must be a folder",))
    except OSError as error:
        return OutputState(problems=(f"{output.folder}: cannot be looked into ({error.strerror})",))
    try:
        unfinished = look_for_unfinished(folder, name) if folder is not None else Unfinished()
        survey = _Survey(output.place(folder), unfinished, name, layouts, frozenset(planned), print_)
        return survey.state(overwrite, other_source)
    except OSError as error:
        where = shown(error.filename or output)
        return OutputState(problems=(f"{where}: cannot be looked into ({error.strerror}); move it away",))
    except (CheckpointError, ConversionError) as error:
        return OutputState(problems=error.problems)
    finally:
        if folder is not None:
            folder.close()


class _Survey:
    def __init__(
        self,
        folder: Place,
        unfinished: Unfinished,
        name: str,
        layouts: Mapping[str, FileLayout],
        planned: frozenset[str],
        print_: Fingerprint,
    ) -> None:
        self.folder = folder
        self.path = shown(folder)
        self.layouts = layouts
        self.planned = planned
        self.print_ = print_
        self.own = manifest_name(name)
        self.unfinished = unfinished
        begun = unfinished.begun
        self.resumes = begun is not None and begun.resumes(print_)
        self.manifests: Manifests = manifests_in(folder)

    def state(self, overwrite: bool, other_source: bool) -> OutputState:
        staged = self.unfinished.staged if self.resumes else 0
        if not other_source and self.manifests.read.get(self.own, {}).get("fingerprint") == self.print_.value:
            own = self.manifests.read[self.own]
            found = meet(self.folder, self.own, own, self.layouts, self.planned, self.print_)
            if isinstance(found, Finished):
                leftover = self.unfinished.exists and (self.resumes or self.unfinished.empty)
                return OutputState(found, self.resumes, staged, leftover, warnings=tuple(self._damages(found)))
            self._refuse_own(found)
        met, asked, foreign = self._conflicts()
        problems = [self._foreign(file) for file in foreign]
        if asked and not overwrite:
            problems.append(self._needs_overwrite(met, asked))
        gone = self._giving_way(met) if overwrite else frozenset()
        begun = self.unfinished.begun
        return OutputState(
            resumes=self.resumes,
            staged=staged,
            replaces=tuple(sorted(gone)),
            orphans=tuple(sorted(gone & self._orphans())),
            problems=tuple(problems),
            warnings=(*self._moved(), *self._beside(met, gone)),
            changed=tuple(begun.differences(self.print_)) if begun and not self.resumes else (),
        )

    def _moved(self) -> Iterable[str]:
        begun = self.unfinished.begun
        if begun is not None and self.resumes and (moved := self.print_.moved(begun.identity)):
            yield (
                f"{self.path}: by inode or times, {_some(moved)} may be another source than the interrupted run there "
                "had; convert reads again what finished weights were made of, and compares the checksums"
            )

    def _refuse_own(self, reason: str) -> None:
        """Believe nothing that the manifest of this name says."""
        others = {name: content for name, content in self.manifests.read.items() if name != self.own}
        self.manifests = Manifests(others, {**self.manifests.refused, self.own: reason})

    def _conflicts(self) -> tuple[set[str], list[str], list[str]]:
        """Manifests of conversions that would lose files; files that give way if the user agrees; files of nobody."""
        met: set[str] = set()
        asked, foreign = [], []
        orphans = self._orphans()
        for file in sorted(self.planned):
            there = self.folder.standing(file)
            if there is None:
                continue
            if there.is_folder:
                foreign.append(file)
                continue
            owners = {name for name in self.manifests.read if self._owns(name, file)}
            if owners:
                met |= owners
                asked.append(file)
            elif file in orphans:
                asked.append(file)
            elif not (self.resumes and file in self.unfinished.publishes):
                foreign.append(file)
        asked += sorted(file for file in orphans - self.planned if self.folder.standing(file) is not None)
        return met, asked, foreign

    def _orphans(self) -> frozenset[str]:
        """Files of conversions that an interrupted run took the manifest from, and files that it published itself.

        Those that it published are not counted where that run is ours.
        """
        begun = self.unfinished.begun
        if begun is None:
            return frozenset()
        found = begun.orphans | (begun.replaces if begun.publishes else frozenset())
        published = begun.publishes - self.unfinished.files
        found = found - published if self.resumes else found | begun.publishes
        return frozenset(
            file for file in found if not any(self._owns(name, file) for name in self.manifests.read if name != file)
        )

    def _owns(self, manifest: str, file: str) -> bool:
        return file == manifest or file in self.manifests.read[manifest]["files"]

    def _giving_way(self, met: set[str]) -> frozenset[str]:
        """All of the conversions that are met, but nothing that another one lists too."""
        listed = {file for name in met for file in (*self.manifests.read[name]["files"], name)} | self._orphans()
        others = self.manifests.read.keys() - met
        return frozenset(file for file in listed if not any(self._owns(name, file) for name in others))

    def _damages(self, found: Finished) -> Iterable[str]:
        for file, wrong in found.damaged.items():
            yield f"{self.path}: {shown(file)} {wrong}; it is made again"
        if found.moved:
            yield (
                f"{self.path}: was made of a source with other modification times (now {_some(found.moved)}); convert "
                "reads the source again and compares the checksums"
            )
        if found.touched:
            yield (
                f"{self.path}: {_some(found.touched)} may have changed since the conversion, by its time or ETag; "
                "convert compares the checksums"
            )

    def _foreign(self, file: str) -> str:
        there = self.folder.standing(file)
        a_folder = there is not None and there.is_folder
        why = "it is a folder" if a_folder else self.manifests.refused.get(file, "no manifest lists it")
        return f"{shown(self.folder.text(file))}: exists and is not ours ({why}); move it away or choose another output"

    def _needs_overwrite(self, met: set[str], asked: list[str]) -> str:
        whose = ", ".join(map(shown, sorted(met))) or "an interrupted run"
        return (
            f"{self.path}: {_some(asked)} would be replaced, of the conversion in {whose}; set output.overwrite: true "
            "to replace that whole conversion, or choose another output.path or output.name"
        )

    def _beside(self, met: set[str], gone: frozenset[str]) -> Iterable[str]:
        others = sorted(self.manifests.read.keys() - met - {self.own})
        suffixes = {Path(name).suffix for name in self.layouts}
        strays = [name for name in self.folder.names() if Path(name).suffix in suffixes and name not in gone]
        strays = [name for name in strays if name not in self.planned]
        if others or strays:
            yield (
                f"{self.path} also holds {_some(others or strays)}: a runtime that is given the folder may load every "
                "weight file in it, so give it the file, or use a folder for each conversion"
            )


def _some(names: Iterable[str], most: int = 3) -> str:
    names = list(map(shown, names))
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
