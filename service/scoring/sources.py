"""From the list of files to records, in a fixed order that can be taken up again at any position."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import BinaryIO

import pyarrow as pa

from service.scoring.inputs import File, InputError, read_listing
from service.scoring.manifests import csv_columns, of_lines, of_parquet, parquet_columns
from service.scoring.records import Columns, Position, Record
from service.scoring.storage import Place
from service.scoring.tar_shards import of_tar

# How many rows of JSON lines, or images of a tar, are looked at for the names of what comes with them.
_SNIFFED = 100


def records(listing: Place, inputs: Sequence[str], columns: Columns, start: Position) -> Iterator[Record]:
    """The records from a position on.

    What is wrong with one record, or with what it refers to, stands in the record. Raises InputError for a manifest or
    a tar that is not what it was when it was listed, and StorageError.
    """
    for file in read_listing(listing, inputs, start.file):
        yield from records_of(file, columns, start if start.file == file.index else Position(file.index))


def records_of(file: File, columns: Columns, start: Position) -> Iterator[Record]:
    """The records of one file, from a position in it on."""
    if file.kind == "image":
        source = str(file.place)
        yield Record(source, source, file.place, Position(file.index + 1), file.begins + file.size)
        return
    with _opened(file) as content:
        match file.kind:
            case "tar":
                yield from of_tar(file, content, columns, start)
            case "parquet":
                yield from of_parquet(file, content, columns, start)
            case _:
                yield from of_lines(file, content, columns, start)


def passed_columns(file: File, columns: Columns) -> dict[str, pa.DataType]:
    """The names and types of what the records of a file bring along to be passed through; raises as `records` does, and
    InputError for a manifest that has neither a path nor bytes."""
    if file.kind == "image":
        return {}
    if file.kind in ("tar", "jsonl"):
        first = islice(records_of(file, columns, Position(file.index)), _SNIFFED)
        return {name: pa.string() for record in first for name in record.passed or ()}
    with _opened(file) as content:
        return (csv_columns if file.kind == "csv" else parquet_columns)(file, content, columns)


@contextmanager
def _opened(file: File) -> Iterator[BinaryIO]:
    """A file with many records in it. Positions in it mean something only as long as it does not change."""
    now = file.place.entry()
    if now is None:
        raise InputError(f"{file.place}: it is not there any more")
    if (now.size, now.modified) != (file.size, file.modified):
        raise InputError(f"{file.place}: it has changed since this job began; give another --output for a new job")
    with file.place.open() as content:
        yield content
