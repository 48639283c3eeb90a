"""From records to rows: the one place where batch scoring reads images, whoever calls it.

It is what `POST /predict` does, without HTTP: the same decoding, limits, reader, rounding and errors.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from service.batcher import attempt
from service.engine import Outputs
from service.errors import BadRequest, Internal, ServiceError
from service.imaging import View
from service.pictures import Picture, prepare
from service.reader import Reader, Reading
from service.schemas import ModelInfo
from service.scoring.records import Record
from service.scoring.schema import output_schema, rows

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answers:
    """What is asked of the reader, as in a request: `min_confidence` replaces the artifact's own threshold."""

    min_confidence: float | None
    boxes: bool
    max_pixels: int


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
            picture = Picture(self._content(record), 0, record.id, record.regions)
            for item in prepare(picture, self._reader.metadata.input_size, self._answers.max_pixels):
                owners.append(record)
                items.append(item)
        readings = iter(self._read([item.view for item in items if isinstance(item.view, View)]))
        answers = [next(readings) if isinstance(item.view, View) else item.view for item in items]
        predictions = [
            item.prediction(answer, boxes=self._answers.boxes) for item, answer in zip(items, answers, strict=True)
        ]
        return rows(list(zip(owners, predictions, strict=True)), self.model, self._passed, self._schema)

    def _content(self, record: Record) -> bytes | ServiceError:
        if unknown := (record.passed or {}).keys() - self._passed.keys():
            return BadRequest(f"the column {min(unknown)!r} does not occur in the first records of the input")
        return record.read()

    def _read(self, views: Sequence[View]) -> Iterator[Reading | ServiceError]:
        for start in range(0, len(views), self._reader.max_batch_size):
            yield from self._answer(views[start : start + self._reader.max_batch_size])

    def _answer(self, views: Sequence[View]) -> list[Reading | ServiceError]:
        result = attempt(self._reader.infer, [view.pixels for view in views])
        if isinstance(result, BaseException):
            if len(views) > 1:
                logger.warning("a batch of %d images failed (%r); reading them one by one", len(views), result)
                return [answer for view in views for answer in self._answer([view])]
            logger.error("the engine failed on an image", exc_info=result)
            result = [None]
        known = [(view, outputs) for view, outputs in zip(views, result, strict=True) if outputs is not None]
        readings: list[Reading] = []
        if known:
            readings = self._reader.compose(
                Outputs.joined([outputs for _, outputs in known]),
                [view.region for view, _ in known],
                min_confidence=self._answers.min_confidence,
                boxes=self._answers.boxes,
            )
        in_order = iter(readings)
        failed = Internal("the reader failed on this image")
        return [failed if outputs is None else next(in_order) for outputs in result]
