"""Where SVHN's photographs come from: the unpacked directory of a split, or its official archive.

Both give the photographs in an order that depends on nothing but the source, each with a function that loads it,
so that a continued run can pass over those that are done without reading them.
"""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NoReturn, Protocol

from models.data.digit_struct import SvhnError

LABELS = "digitStruct.mat"
BROKEN_ARCHIVE = (tarfile.TarError, EOFError, OSError, zlib.error)


class MissingPhotoError(Exception):
    """A photograph that the labels name is not there, or cannot be read; says why."""


@dataclass(frozen=True)
class Photograph:
    """A photograph's file name, and a function that loads its bytes or raises MissingPhotoError.

    `load` is to be called before the next photograph is asked for, or not at all.
    """

    name: str
    load: Callable[[], bytes]


class Source(Protocol):
    """The files of one split."""

    labels: Path
    identity: str
    """What tells this source from another one, beside its labels."""

    def photographs(self, labelled: Sequence[str]) -> Iterator[Photograph]:
        """All photographs: those of the names in `labelled`, missing or not, and those without labels."""


@contextmanager
def open_source(path: Path, split: str) -> Iterator[Source]:
    """Opens a directory or an archive. Raises SvhnError when it is neither, or holds another split."""
    if path.is_dir():
        if not (path / LABELS).is_file():
            raise SvhnError(f"{path} holds no {LABELS}; give the directory that has 1.png and {LABELS}")
        yield _Directory(path)
    elif path.is_file():
        with tempfile.TemporaryDirectory() as unpacked:
            labels = Path(unpacked) / LABELS
            _extract_labels(path, split, labels)
            yield _Archive(path, labels)
    else:
        raise SvhnError(f"{path} is neither a directory nor an archive")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Directory:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.labels = path / LABELS
        self.identity = "a directory"

    def photographs(self, labelled: Sequence[str]) -> Iterator[Photograph]:
        unlabelled = {file.name for file in self.path.glob("*.png")} - set(labelled)
        for name in [*labelled, *sorted(unlabelled)]:
            yield Photograph(name, partial(self._load, name))

    def _load(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise MissingPhotoError(f"cannot be read: {error.strerror}") from error


class _Archive:
    def __init__(self, path: Path, labels: Path) -> None:
        self.path = path
        self.labels = labels
        self.identity = f"an archive of {path.stat().st_size} bytes"

    def photographs(self, labelled: Sequence[str]) -> Iterator[Photograph]:
        missing = dict.fromkeys(labelled)
        reason = "not in the archive"
        with tarfile.open(self.path, "r|*") as archive:
            try:
                for member in _members(archive):
                    if member.isfile() and member.name.endswith(".png"):
                        name = PurePosixPath(member.name).name
                        missing.pop(name, None)
                        yield Photograph(name, partial(_load_member, archive, member))
            except BROKEN_ARCHIVE as error:
                reason = f"the archive breaks off before it: {error}"
        for name in missing:
            yield Photograph(name, partial(_raise_missing, reason))


def _extract_labels(path: Path, split: str, labels: Path) -> None:
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in _members(archive):
                name = PurePosixPath(member.name)
                if name.name != LABELS or (file := archive.extractfile(member)) is None:
                    continue
                if name.parent.name not in (split, ""):
                    raise SvhnError(f"{path} holds the split {name.parent.name!r}, not {split!r}")
                with labels.open("wb") as target:
                    shutil.copyfileobj(file, target)
                return
    except BROKEN_ARCHIVE as error:
        raise SvhnError(f"{path} is not a tar archive, or breaks off before {LABELS}: {error}") from error
    raise SvhnError(f"{path} holds no {LABELS}")


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := archive.next()) is not None:
        yield member
        # Otherwise the archive keeps a record of each of extra's 202,353 files.
        archive.members.clear()  # type: ignore[attr-defined]


def _load_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    try:
        file = archive.extractfile(member)
        assert file is not None, "only regular files are given out"
        return file.read()
    except BROKEN_ARCHIVE as error:
        raise MissingPhotoError(f"the archive breaks off within it: {error}") from error


def _raise_missing(reason: str) -> NoReturn:
    raise MissingPhotoError(reason)
