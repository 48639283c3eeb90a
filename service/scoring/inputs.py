"""What is to be read: folders, globs, manifests, tar shards and single images become one list of files.

The list is made once, when a job begins, and kept with the job: it gives the order, whatever comes into the folders
later. It is written and read in pieces, and never whole in memory.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from service.scoring.storage import Entry, Place

Kind = Literal["image", "tar", "csv", "jsonl", "parquet"]

_KINDS: dict[str, Kind] = {"tar": "tar", "csv": "csv", "jsonl": "jsonl", "ndjson": "jsonl", "parquet": "parquet"}
# Formats that are not served are listed too: each becomes a row that says so.
_IMAGES = frozenset(
    ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff", "avif", "heic", "heif", "jp2", "jxl")
)
_MAGIC = re.compile(r"[*?[]")
_TOKEN = re.compile(r"\*\*/|\*\*|\*|\?|\[!?[^]]+]|.", re.DOTALL)

_LISTING = pa.schema(
    [
        ("input", pa.int32()),
        ("key", pa.binary()),
        ("size", pa.int64()),
        ("modified", pa.int64()),
        ("begins", pa.int64()),
    ]
)
_ROWS_AT_ONCE = 16_384


class InputError(Exception):
    """What was named cannot be read as a whole; one line that says why."""


@dataclass(frozen=True, slots=True)
class File:
    """A file of the list, the `index`-th. `begins` is the sum of the sizes of those before it, in bytes."""

    index: int
    place: Place
    size: int
    modified: int
    begins: int

    @property
    def kind(self) -> Kind:
        return kind_of(self.place.name) or "image"


@dataclass
class Survey:
    """Counts of a list: files by kind, bytes, and how many files of the folders were passed over."""

    files: dict[str, int]
    size: int = 0
    passed_over: int = 0


def suffix_of(name: str) -> str:
    return name.rpartition(".")[2].lower() if "." in name else ""


def kind_of(name: str) -> Kind | None:
    """How a file is read, by the extension of its name; None where it says nothing."""
    suffix = suffix_of(name)
    return "image" if suffix in _IMAGES else _KINDS.get(suffix)


def parse_input(text: str) -> Place:
    """A path or URL as a user writes it; raises InputError for a URL that nothing here speaks."""
    try:
        return Place.parse(text)
    except ValueError as error:
        raise InputError(f"{text}: {error}") from error


def found(inputs: Sequence[str], survey: Survey) -> Iterator[tuple[int, Entry]]:
    """Every file to be read, with the number of the input that named it; counts them in `survey`.

    Of a folder these are images and tar shards, wherever in it, hidden files and folders aside; a manifest has to be
    named. Raises InputError for an input that is not there and for a pattern that nothing matches.
    """
    for number, text in enumerate(inputs):
        place = parse_input(text)
        entry = place.entry()
        if entry is not None and not entry.is_folder:
            files = iter([entry])
        elif entry is not None:
            files = _of_folder(place, survey)
        elif _MAGIC.search(place.key):
            files = _matching(place)
        else:
            raise InputError(f"{place}: there is no such file or folder")
        matched = False
        for file in files:
            matched = True
            kind = kind_of(file.place.name) or "image"
            survey.files[kind] = survey.files.get(kind, 0) + 1
            survey.size += file.size
            yield number, file
        if not matched and entry is None:
            raise InputError(f"{place}: no file matches this pattern")


def write_listing(place: Place, inputs: Sequence[str]) -> Survey:
    """Makes the list of the inputs' files; raises as `found` does, OSError, StorageError."""
    survey = Survey({})
    with place.replacing() as out, pq.ParquetWriter(out, _LISTING, compression="zstd") as writer:
        rows: list[dict[str, int | bytes]] = []
        for number, file in found(inputs, survey):
            # As bytes: the name of a local file may be no text.
            key = os.fsencode(file.place.key)
            begins = survey.size - file.size
            rows.append({"input": number, "key": key, "size": file.size, "modified": file.modified, "begins": begins})
            if len(rows) == _ROWS_AT_ONCE:
                writer.write_table(pa.Table.from_pylist(rows, _LISTING))
                rows = []
        writer.write_table(pa.Table.from_pylist(rows, _LISTING))
    return survey


def read_listing(place: Place, inputs: Sequence[str], first: int = 0) -> Iterator[File]:
    """The files of the list from the one with the index `first` on."""
    bases = [Place.parse(text).base for text in inputs]
    with place.open() as source, pq.ParquetFile(source) as listing:
        index = 0
        for group in range(listing.num_row_groups):
            rows = listing.metadata.row_group(group).num_rows
            if index + rows <= first:
                index += rows
                continue
            for row in listing.read_row_group(group).to_pylist():
                if index >= first:
                    place = Place(bases[row["input"]], os.fsdecode(row["key"]))
                    yield File(index, place, row["size"], row["modified"], row["begins"])
                index += 1


def _of_folder(folder: Place, survey: Survey) -> Iterator[Entry]:
    for entry in _walk(folder):
        if kind_of(entry.place.name) in ("image", "tar"):
            yield entry
        else:
            survey.passed_over += 1


def _matching(pattern: Place) -> Iterator[Entry]:
    """The files that a pattern means: `*`, `?` and `[...]` within a name, `**` for any number of folders."""
    segments = pattern.key.split("/")
    fixed = next(index for index, segment in enumerate(segments) if _MAGIC.search(segment))
    root = Place(pattern.base, "/".join(segments[:fixed]) or ("/" if pattern.is_local else ""))
    segments = segments[fixed:]
    try:
        wanted = re.compile(_TOKEN.sub(_regex_of, "/".join(segments)), re.DOTALL)
    except re.error as error:
        raise InputError(f"{pattern}: not a pattern: {error}") from error
    depth = None if "**" in segments else len(segments)
    start = len(root.key.rstrip("/")) + 1 if root.key else 0
    return (entry for entry in _walk(root, depth) if wanted.fullmatch(entry.place.key[start:]))


def _regex_of(token: re.Match[str]) -> str:
    match token[0]:
        case "**/":
            return "(?:[^/]+/)*"
        case "**":
            return ".*"
        case "*":
            return "[^/]*"
        case "?":
            return "[^/]"
        case text if len(text) > 1:  # a set of characters
            return f"[{text[1:-1].replace('!', '^', 1) if text[1] == '!' else text[1:-1]}]"
        case character:
            return re.escape(character)


def _walk(folder: Place, depth: int | None = None) -> Iterator[Entry]:
    """The files in a folder and, `depth` levels deep, in those within it; nothing whose name begins with a dot."""
    for entry in folder.entries():
        if entry.place.name.startswith("."):
            continue
        if not entry.is_folder:
            yield entry
        elif depth is None or depth > 1:
            yield from _walk(entry.place, None if depth is None else depth - 1)
