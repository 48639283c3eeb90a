"""The files of the dataset: each covers a run of records, says which in its own metadata, and is whole or not there."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from service.scoring.records import Position, Record
from service.scoring.schema import METADATA_KEY, SCHEMA_VERSION
from service.scoring.storage import Place

logger = logging.getLogger(__name__)

# Footers are small and far away: many are read at once.
_READERS = 16


@dataclass
class Counts:
    """What is in a part, or in several: `rows` are images, or regions where regions are given."""

    images: int = 0
    rows: int = 0
    accepted: int = 0
    errors: dict[str, int] = field(default_factory=dict)

    @property
    def failed(self) -> int:
        """Rows with an error."""
        return sum(self.errors.values())

    @classmethod
    def of(cls, images: int, batch: pa.RecordBatch) -> Self:
        codes = pc.value_counts(batch.column("error_code")).to_pylist()
        errors = {item["values"]: item["counts"] for item in codes if item["values"] is not None}
        return cls(images, batch.num_rows, batch.column("accepted").true_count, errors)

    def add(self, other: Counts) -> None:
        self.images += other.images
        self.rows += other.rows
        self.accepted += other.accepted
        for code, count in other.errors.items():
            self.errors[code] = self.errors.get(code, 0) + count


@dataclass
class Part:
    """The manifest of a part, the `index`-th: the records from position `first` up to `next`, of the job `job`.
    `consumed` is the job's progress in bytes at its end, `seconds` the time since the part before was written."""

    job: str
    index: int
    first: Position
    next: Position
    consumed: int
    counts: Counts = field(default_factory=Counts)
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return f"part-{self.index:05d}.parquet"

    def cover(self, records: Sequence[Record], rows: pa.RecordBatch) -> Counts:
        """Takes in the rows of the next records, at least one; gives their counts."""
        counts = Counts.of(len(records), rows)
        self.counts.add(counts)
        self.next, self.consumed = records[-1].next, records[-1].consumed
        return counts

    def to_json(self) -> str:
        return json.dumps({"schema_version": SCHEMA_VERSION, **asdict(self)})

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        fields: dict[str, Any] = json.loads(text)
        fields.pop("schema_version")
        first, following = Position(*fields.pop("first")), Position(*fields.pop("next"))
        counts = Counts(**fields.pop("counts"))
        return cls(first=first, next=following, counts=counts, **fields)


def write_part(out: Place, part: Part, schema: pa.Schema, batches: list[pa.RecordBatch]) -> None:
    """Writes a part with its manifest. Raises OSError, StorageError."""
    with (out / part.name).replacing() as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        writer.write_table(pa.Table.from_batches(batches, schema))
        writer.add_key_value_metadata({METADATA_KEY.decode(): part.to_json()})


def finished_parts(out: Place) -> dict[int, Part]:
    """The parts that are there, by index. A file that is no part, which this program never leaves, counts as not there.
    Raises OSError, StorageError."""
    names = [entry.place for entry in out.entries() if entry.place.name.startswith("part-")]
    with ThreadPoolExecutor(_READERS) as pool:
        return {part.index: part for part in pool.map(read_manifest, names) if part is not None}


def read_manifest(place: Place) -> Part | None:
    """That of the part that is there; None for what is no part. Raises OSError, StorageError."""
    with place.open() as file:
        try:
            return Part.from_json(pq.read_metadata(file).metadata[METADATA_KEY])
        except (pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
            logger.warning("%s is not a part of a job and will be replaced: %s", place, error)
            return None
