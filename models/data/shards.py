"""Samples on disk: Parquet shards, each written whole or not at all.

A directory of shards that is still being written holds `unfinished.json`, which is removed as the last step:
half a collection can thus never be taken for a whole one. Columns: image (binary), label (string), region
and number_box (four float64 x, y, width, height in pixels of the upright image, or null), source (string),
collection (string).
Nothing is compressed, because the images already are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from models.data.sample import Sample
from models.files import replacing, temporary_path
from service.geometry import Region

UNFINISHED = "unfinished.json"

SCHEMA = pa.schema(
    [
        pa.field("image", pa.binary(), nullable=False),
        pa.field("label", pa.string(), nullable=False),
        pa.field("region", pa.list_(pa.float64(), 4)),
        pa.field("source", pa.string(), nullable=False),
        pa.field("collection", pa.string(), nullable=False),
        pa.field("number_box", pa.list_(pa.float64(), 4)),
    ]
)
NOTE_KEY = b"housenumber"
ROWS_IN_MEMORY = 256

T = TypeVar("T")


class ShardError(Exception):
    """Shards that cannot be read, or a directory that must not be written to; one line for the user."""


def write_shards(samples: Iterable[Sample], out: Path, *, shard_rows: int = 2048) -> None:
    """Writes `samples` in their order to `out/shard-00000.parquet` and on, `shard_rows` rows each.

    Raises ShardError when `out` already holds something, except what a killed run left there.
    """
    begin(out, {"writer": "write_shards"})
    for index, rows in enumerate(chunks(samples, shard_rows)):
        write_shard(rows, shard_path(out, index))
    finish(out)


def begin(out: Path, task: dict[str, Any], *, go_on: bool = False) -> None:
    """Claims `out` for `task`: an empty directory, or one that a killed run of the same task left.

    The shards of a killed run are removed, unless `go_on`. Raises ShardError for any other directory.
    """
    marker = out / UNFINISHED
    if marker.exists():
        if (found := json.loads(marker.read_text())) != task:
            raise ShardError(f"{out} holds an unfinished run of another task: {found}; this one is {task}")
    elif out.exists() and (not out.is_dir() or set(out.iterdir()) - {temporary_path(marker)}):
        raise ShardError(f"{out} already exists and is not empty")
    else:
        out.mkdir(parents=True, exist_ok=True)
        write_text(marker, json.dumps(task))
    leftovers = [*out.glob("*.tmp")] if go_on else [*out.glob("*.tmp"), *out.glob("*.parquet")]
    for leftover in leftovers:
        leftover.unlink()


def finish(out: Path) -> None:
    """Declares the shards in `out` complete."""
    (out / UNFINISHED).unlink()


def is_complete(out: Path) -> bool:
    """Whether `out` is a directory of shards whose writing has come to its end."""
    return not (out / UNFINISHED).exists() and any(out.glob("*.parquet"))


def shard_path(out: Path, index: int) -> Path:
    return out / f"shard-{index:05d}.parquet"


def write_shard(samples: Iterable[Sample], path: Path, note: dict[str, Any] | None = None) -> None:
    """Writes one shard through a temporary file; `note` (JSON values) travels in the file's metadata."""
    schema = SCHEMA.with_metadata({NOTE_KEY: json.dumps(note).encode()})
    with (
        replacing(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="none", use_dictionary=False) as writer,
    ):
        for rows in chunks(samples, ROWS_IN_MEMORY):
            writer.write_batch(
                pa.record_batch(
                    {
                        "image": [row.image for row in rows],
                        "label": [row.label for row in rows],
                        "region": [_region_values(row.region) for row in rows],
                        "source": [row.source for row in rows],
                        "collection": [row.collection for row in rows],
                        "number_box": [_region_values(row.number_box) for row in rows],
                    },
                    schema=schema,
                )
            )


def read_note(path: Path) -> Any:
    """The note that `write_shard` put into this shard."""
    with _open(path) as file:
        return json.loads(file.schema_arrow.metadata[NOTE_KEY])


def read_shards(path: Path) -> Iterator[Sample]:
    """The samples of one shard, or of all shards in a directory, in order; `ROWS_IN_MEMORY` at a time.

    Raises ShardError, before the first sample, when there is no complete set of shards at `path`.
    """
    files = _shard_files(path)
    for file in files:
        _open(file).close()
    return _rows(files)


def count_rows(path: Path) -> int:
    """How many samples one shard, or all shards in a directory, hold; reads the footers only."""
    rows = 0
    for path_of_shard in _shard_files(path):
        with _open(path_of_shard) as file:
            rows += file.metadata.num_rows
    return rows


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one perhaps shorter; takes from `items` no earlier than needed."""
    remaining = iter(items)
    while chunk := list(islice(remaining, size)):
        yield chunk


def write_text(path: Path, text: str) -> None:
    """Writes a whole file or none."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def _rows(paths: list[Path]) -> Iterator[Sample]:
    for path in paths:
        with _open(path) as file:
            for batch in file.iter_batches(batch_size=ROWS_IN_MEMORY):
                for row in batch.to_pylist():
                    for column in ("region", "number_box"):
                        row[column] = None if row[column] is None else Region(*row[column])
                    yield Sample(**row)


def _shard_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if (path / UNFINISHED).exists():
        raise ShardError(f"{path} is unfinished: run the command that wrote it again")
    if not (files := sorted(path.glob("*.parquet"))):
        raise ShardError(f"{path} holds no shards (*.parquet)")
    return files


def _open(path: Path) -> Any:
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ShardError(f"{path} is not a Parquet file: {error}") from error
    if file.schema_arrow.remove_metadata() != SCHEMA:
        raise ShardError(f"{path} is not a shard of samples: its columns are {file.schema_arrow.names}")
    return file


def _region_values(region: Region | None) -> list[float] | None:
    return None if region is None else [region.x, region.y, region.width, region.height]
