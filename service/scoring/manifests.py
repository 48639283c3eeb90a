"""Manifests: tables with a row per image, which name its file or hold its bytes."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from service.errors import BadRequest, ServiceError
from service.scoring.inputs import File, InputError
from service.scoring.records import Columns, Position, Record, as_text
from service.scoring.storage import Place

_BLOCK_BYTES = 4 * 2**20
# Rows may hold their images' bytes: few enough that they fit in memory.
_ROWS_AT_ONCE = 64
# A cell may hold an image in base64.
_LARGEST_CELL = 2**31 - 1


def of_lines(file: File, source: BinaryIO, columns: Columns, start: Position) -> Iterator[Record]:
    """CSV with a header, or JSON lines. Every value is text, what is no text in JSON as JSON; bytes are base64."""
    # Imported here: it belongs to HTTP's way in, which most jobs do without.
    from service.requests import from_base64

    rows = _csv_rows(source) if file.kind == "csv" else _json_rows(source)
    for number, row in enumerate(rows):
        if number >= start.offset:
            consumed = file.begins + source.tell()
            yield _record(file, number, row, columns, consumed, decode=lambda text: from_base64(text)[0])


def of_parquet(file: File, source: BinaryIO, columns: Columns, start: Position) -> Iterator[Record]:
    """Parquet: values keep their types, bytes are bytes."""
    manifest = _parquet(file, source)
    total, number = manifest.metadata.num_rows, 0
    for group in range(manifest.num_row_groups):
        rows = manifest.metadata.row_group(group).num_rows
        if number + rows <= start.offset:
            number += rows
            continue
        for batch in manifest.iter_batches(_ROWS_AT_ONCE, row_groups=[group], use_threads=False):
            skipped = min(max(0, start.offset - number), batch.num_rows)
            number += skipped
            for row in batch.slice(skipped).to_pylist():
                consumed = file.begins + file.size * (number + 1) // total
                yield _record(file, number, row, columns, consumed, decode=bytes)
                number += 1


def csv_columns(file: File, source: BinaryIO, columns: Columns) -> dict[str, pa.DataType]:
    """The columns to be passed through; raises InputError for a manifest without a path or bytes."""
    with _text(source) as text:
        names = next(csv.reader(text), [])
    _check(file, names, columns)
    return {name: pa.string() for name in names if name not in columns.own}


def parquet_columns(file: File, source: BinaryIO, columns: Columns) -> dict[str, pa.DataType]:
    """As `csv_columns`, with the columns' own types."""
    schema = _parquet(file, source).schema_arrow
    _check(file, schema.names, columns)
    return {field.name: field.type for field in schema if field.name not in columns.own}


def _check(file: File, names: list[str], columns: Columns) -> None:
    if columns.path not in names and columns.content not in names:
        raise InputError(
            f"{file.place}: it has neither a column {columns.path!r} nor {columns.content!r}, but"
            f" {', '.join(map(repr, names)) or 'none'}; --path-column or --bytes-column names the one"
        )


def _record(
    file: File, number: int, row: Mapping[str, Any] | ServiceError, columns: Columns, consumed: int, decode: Any
) -> Record:
    """The record of a row. Where there are bytes they are read, else the path."""
    source = f"{file.place}#{number}"
    after = Position(file.index, number + 1)
    if isinstance(row, ServiceError):
        return Record(source, source, row, after, consumed)
    content: bytes | Place | ServiceError
    encoded, path = row.get(columns.content), row.get(columns.path)
    try:
        if encoded:
            content = decode(encoded)
        elif path:
            content = file.place.beside(str(path))
            source = str(content)
        else:
            content = BadRequest(f"row {number} has neither {columns.path!r} nor {columns.content!r}")
    except (ValueError, TypeError) as error:
        content = BadRequest(f"row {number}: {error}")
    return Record.described(source, content, row, columns, after, consumed)


def _csv_rows(source: BinaryIO) -> Iterator[Mapping[str, Any] | ServiceError]:
    csv.field_size_limit(_LARGEST_CELL)
    with _text(source) as text:
        reader = csv.DictReader(text, strict=True)
        while True:
            try:
                row = next(reader, None)
            except csv.Error as error:
                yield BadRequest(f"line {reader.line_num}: not CSV: {error}")
                continue
            if row is None:
                return
            # Cells beyond the header are under None; those that are missing are None.
            if None in row or None in row.values():
                yield BadRequest(f"line {reader.line_num}: not as many cells as the header has")
            else:
                yield row


def _json_rows(source: BinaryIO) -> Iterator[Mapping[str, Any] | ServiceError]:
    with _text(source) as text:
        for number, line in enumerate(text, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                yield BadRequest(f"line {number}: not JSON: {error}")
                continue
            yield as_text(row) if isinstance(row, dict) else BadRequest(f"line {number}: not a JSON object")


@contextmanager
def _text(source: BinaryIO) -> Iterator[io.TextIOWrapper]:
    text = io.TextIOWrapper(source, encoding="utf-8-sig", errors="replace", newline="")
    try:
        yield text
    finally:
        if not source.closed:  # as it is where somebody stopped reading in the middle
            text.detach()  # the file is closed by whoever opened it


def _parquet(file: File, source: BinaryIO) -> pq.ParquetFile:
    try:
        # Read page by page: a row group with images in it may be larger than the memory.
        return pq.ParquetFile(source, buffer_size=_BLOCK_BYTES, pre_buffer=False)
    except pa.ArrowInvalid as error:
        raise InputError(f"{file.place}: {error}") from error
