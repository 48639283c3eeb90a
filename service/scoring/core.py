"""From records to rows: the one place where batch scoring reads images, whoever calls it.

It is what `POST /predict` does, without HTTP: the same decoding, limits, reader, rounding and errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pyarrow as pa

from service.artifact import ArtifactError
from service.engine import CUDA, OnnxEngine, Provider, Spinning
from service.errors import BadRequest, ServiceError
from service.imaging import Photo
from service.pictures import Item, Picture, answers_of, prepare, views_of
from service.reader import Reader
from service.schemas import ModelInfo
from service.scoring.records import Record
from service.scoring.schema import output_schema, rows


@dataclass(frozen=True, slots=True)
class Answers:
    """What is asked of the reader: `min_confidence` replaces the artifact's own threshold, `second_look` is whether it
    looks twice at what stands crooked, `search` whether it searches photographs that it is not sure of. (Of
    `max_pixels` and the last two a service decides for itself.)"""

    min_confidence: float | None
    boxes: bool
    max_pixels: int
    second_look: bool
    search: bool


@dataclass(frozen=True, slots=True)
class Loader:
    """Loads the reader, in whichever process is to score: unlike a session it can be sent there.

    `sha256`, where it is given, is that of the only artifact that will do.
    """

    model: Path
    provider: Provider
    intra_op_threads: int
    spinning: Spinning
    gpu_memory_mib: int
    batch_size: int
    sha256: str | None = None

    def load(self, answers: Answers) -> Reader:
        """A reader that answers as asked. Raises ArtifactError, ProviderError."""
        engine = OnnxEngine(
            self.model,
            self.provider,
            intra_op_threads=self.intra_op_threads,
            spinning=self.spinning,
            gpu_memory_mib=self.gpu_memory_mib,
        )
        if self.sha256 not in (None, engine.sha256):
            raise ArtifactError(f"{self.model}: it is not the file any more that this job began with")
        return Reader(engine, self.batch_size, second_look=answers.second_look, search=answers.search)

    def pinned(self, reader: Reader) -> Loader:
        """One that loads what `reader` reads with, or nothing: the same artifact, on the same kind of device."""
        provider: Provider = "cuda" if reader.engine.provider == CUDA else "cpu"
        return replace(self, provider=provider, sha256=reader.engine.sha256)


def content_of(record: Record, passed: Mapping[str, pa.DataType]) -> bytes | ServiceError:
    """The encoded image, or why there is none; a column that is not among those `passed` through has no place in the
    rows. Raises StorageError."""
    if unknown := (record.passed or {}).keys() - passed.keys():
        return BadRequest(f"the column {min(unknown)!r} does not occur in the first records of the input")
    return record.read()


class Scorer:
    """Scores records with a reader. Thread-safe; `passed` are the columns that are passed through, with their types."""

    def __init__(self, reader: Reader, answers: Answers, passed: Mapping[str, pa.DataType]) -> None:
        self.model = ModelInfo.of(reader)
        self._reader = reader
        self._answers = answers
        self._passed = passed
        self._schema = output_schema(passed)

    def score(self, records: Sequence[Record]) -> pa.RecordBatch:
        """The rows of the records, in order. What is wrong with a record is in its row; raises StorageError alone."""
        owners, items = [], []
        for record in records:
            picture = Picture(content_of(record, self._passed), 0, record.id, record.regions)
            for item in prepare(picture, self._reader.metadata.input_size, self._answers.max_pixels):
                owners.append(record)
                items.append(self._without_file(item, record))
        readings = self._reader.read_each(
            views_of(items), min_confidence=self._answers.min_confidence, boxes=self._answers.boxes
        )
        answers = answers_of(items, readings)
        predictions = [
            item.prediction(answer, boxes=self._answers.boxes) for item, answer in zip(items, answers, strict=True)
        ]
        return rows(list(zip(owners, predictions, strict=True)), self.model, self._passed, self._schema)

    def _without_file(self, item: Item, record: Record) -> Item:
        """The files of a batch would take a lot of memory; the few that are searched are read once more."""
        if isinstance(item.view, ServiceError):
            return item
        return replace(item, view=replace(item.view, photo=partial(self._photo, record)))

    def _photo(self, record: Record) -> Photo:
        """Once more; raises StorageError, and ServiceError."""
        content = content_of(record, self._passed)
        if isinstance(content, ServiceError):
            raise content
        return Photo.open(content, max_pixels=self._answers.max_pixels)


def make_scorer(loader: Loader, answers: Answers, passed: Mapping[str, pa.DataType]) -> Scorer:
    """A scorer with a reader that is loaded here and now. Raises ArtifactError, ProviderError."""
    return Scorer(loader.load(answers), answers, passed)
