"""The HTTP engine: a service calls the scoring core, that of `POST /predict`, behind its load balancer.

A batch of records becomes as few requests as the service's limits allow: multipart, or JSON where there are regions.
What is wrong with a record before anybody reads it (a file that is not there) is found here, as everywhere; what the
service says of an image is its row. Model and rounding are the service's, so the rows are those of a reader at hand.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import httpx
import pyarrow as pa
from PIL import Image
from pydantic import BaseModel

from service.errors import ServiceError, TooLarge
from service.schemas import ImageInfo, ModelInfo, Prediction, Rectangle
from service.scoring.core import Answers, content_of
from service.scoring.http_client import HttpClient, RequestTooLargeError
from service.scoring.inputs import InputError
from service.scoring.job import Job
from service.scoring.reading import ContentReader
from service.scoring.records import Position, Record
from service.scoring.run import EngineError
from service.scoring.schema import rows

# Batches that are being read, or have been and wait for their requests.
_AHEAD = 2
# In a request's body, at most: what is around an image, and a region in JSON.
_BYTES_AROUND_IMAGE, _BYTES_OF_REGION = 300, 120


@dataclass(frozen=True, slots=True)
class Limits:
    """What the service takes in one request: bytes, and images, of which each region counts as one."""

    body_bytes: int
    images: int


@dataclass(frozen=True, slots=True)
class Piece:
    """An image of a request: a record's, with all of its regions, or with some of them where there are very many."""

    record: Record
    content: bytes
    regions: tuple[Rectangle, ...]

    @property
    def items(self) -> int:
        """How many predictions it asks for."""
        return max(1, len(self.regions))

    @property
    def size(self) -> int:
        """Bytes in a request, at most."""
        encoded = -(-len(self.content) // 3) * 4 if self.regions else len(self.content)
        return encoded + _BYTES_AROUND_IMAGE + _BYTES_OF_REGION * len(self.regions)


def _companion() -> Piece:
    """The smallest image. What is wrong with the only image of a request, or with one of its regions, would be the
    answer to the whole request; so a request has two."""
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, "PNG")
    return Piece(Record("", "", b"", Position(0), 0), buffer.getvalue(), ())


COMPANION = _companion()


class _Answer(BaseModel):
    """An answer of `/predict`, as far as rows are made of it."""

    model: ModelInfo
    predictions: list[Prediction]


class Service:
    """`/predict` of the service at `url`. Thread-safe; at most `requests` are under way. Raises InputError for what is
    no URL of a service, and for limits of fewer images than an image and its companion."""

    def __init__(self, url: str, api_key: str | None, answers: Answers, limits: Limits, requests: int) -> None:
        parameters = {"boxes": str(answers.boxes).lower()}
        if answers.min_confidence is not None:
            parameters["min_confidence"] = repr(answers.min_confidence)
        if limits.images < 1 + COMPANION.items:
            raise InputError(f"{url}: its requests may have {limits.images} image; scoring takes two (max_images)")
        self.limits = limits
        self.client = HttpClient(_predict_of(url), parameters, api_key, requests)

    def model(self) -> ModelInfo:
        """Who answers. Raises EngineError."""
        return self._post([COMPANION]).model

    def predict(self, pieces: Sequence[Piece], model: ModelInfo) -> list[list[Prediction] | ServiceError]:
        """The predictions of each piece, or why the service does not take it; raises EngineError, also where it is not
        `model` that answers."""
        asked = pieces if len(pieces) > 1 else [*pieces, COMPANION]
        try:
            answer = self._post(asked)
        except RequestTooLargeError as error:
            if len(pieces) == 1:
                return [TooLarge(str(error))]
            middle = len(pieces) // 2
            return self.predict(pieces[:middle], model) + self.predict(pieces[middle:], model)
        if answer.model.identity != model.identity:
            raise EngineError(
                f"{self.client.url}: another model answers now: {_spelt(answer.model)}; this job's is {_spelt(model)}."
                " Give another --output for a new job, or have the service load that one again"
            )
        if len(answer.predictions) != sum(piece.items for piece in asked):
            raise EngineError(f"{self.client.url}: {len(answer.predictions)} predictions are not what was asked for")
        in_order = iter(answer.predictions)
        return [
            [next(in_order).model_copy(update={"id": piece.record.id}) for _ in range(piece.items)] for piece in pieces
        ]

    def _post(self, pieces: Sequence[Piece]) -> _Answer:
        if any(piece.regions for piece in pieces):
            content = self.client.post(json={"images": list(map(_as_json, pieces))})
        else:
            files = [("image", ("image", piece.content, "application/octet-stream")) for piece in pieces]
            content = self.client.post(files=files)
        try:
            answer = json.loads(content)
            for prediction in answer["predictions"]:
                prediction.setdefault("boxes", None)  # they are left out where they were not asked for
            return _Answer.model_validate(answer)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise EngineError(f"{self.client.url}: what answers there is no service of this kind") from None


class HttpEngine:
    """Scores batches by a service. At most `in_flight` should be submitted and not yet done."""

    def __init__(self, service: Service, model: ModelInfo, job: Job) -> None:
        self._service = service
        self._model = model
        self._job = job
        self._reader = ContentReader()
        self._threads = ThreadPoolExecutor(service.client.window.most + _AHEAD, "score")

    @property
    def in_flight(self) -> int:
        return self._service.client.window.size + _AHEAD

    def submit(self, records: Sequence[Record]) -> Future[pa.RecordBatch]:
        """The rows of the records, in order, some time later; or EngineError, StorageError."""
        return self._threads.submit(self._work, records)

    def close(self) -> None:
        """Drops what has not begun, and waits for what is under way, but not for another attempt."""
        self._service.client.give_up()
        self._threads.shutdown(cancel_futures=True)
        self._reader.close()

    def _work(self, records: Sequence[Record]) -> pa.RecordBatch:
        pieces = [piece for record in self._reader.read(records) for piece in self._pieces(record)]
        requests = _requests((piece for piece, error in pieces if error is None), self._service.limits)
        answers = chain.from_iterable(self._service.predict(request, self._model) for request in requests)
        answered: list[tuple[Record, Prediction]] = []
        for piece, error in pieces:
            answer = next(answers) if error is None else error
            predictions = self._refused(piece, answer) if isinstance(answer, ServiceError) else answer
            answered += [(piece.record, prediction) for prediction in predictions]
        return rows(answered, self._model, self._job.passed, self._job.schema)

    def _pieces(self, record: Record) -> Iterator[tuple[Piece, ServiceError | None]]:
        """A record's pieces, each with the reason why it cannot be asked for."""
        content = content_of(record, self._job.passed)
        error = content if isinstance(content, ServiceError) else None
        most = self._service.limits.images - 1  # one that is alone gets company
        for start in range(0, max(1, len(record.regions)), most):
            image = content if isinstance(content, bytes) else b""
            piece = Piece(record, image, record.regions[start : start + most])
            if error is None and piece.size + COMPANION.size > self._service.limits.body_bytes:
                limit = self._service.limits.body_bytes
                yield piece, TooLarge(f"the image has {len(image)} bytes; a request may have {limit}")
            else:
                yield piece, error

    def _refused(self, piece: Piece, error: ServiceError) -> list[Prediction]:
        image, boxes = ImageInfo(index=0, width=None, height=None), self._job.ask.answers.boxes
        regions: tuple[Rectangle | None, ...] = piece.regions or (None,)
        return [Prediction.of(error, id=piece.record.id, image=image, region=region, boxes=boxes) for region in regions]


@contextmanager
def http_engine(service: Service, model: ModelInfo, job: Job) -> Iterator[HttpEngine]:
    engine = HttpEngine(service, model, job)
    try:
        yield engine
    finally:
        engine.close()


def _predict_of(text: str) -> httpx.URL:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise InputError(f"{text}: {error}") from error
    if url.scheme not in ("http", "https") or not url.host or url.query:
        raise InputError(f"{text}: not the URL of a service, such as https://readers.example")
    return url.copy_with(path=f"{url.path.rstrip('/')}/predict")


def _requests(pieces: Iterable[Piece], limits: Limits) -> Iterator[list[Piece]]:
    """The pieces in as few requests as the limits allow; the images of one all have regions, or none has."""
    request: list[Piece] = []
    for piece in pieces:
        whole = [*request, piece]
        fits = sum(one.items for one in whole) <= limits.images and sum(one.size for one in whole) <= limits.body_bytes
        if request and not (fits and bool(piece.regions) == bool(request[0].regions)):
            yield request
            request = []
        request.append(piece)
    if request:
        yield request


def _as_json(piece: Piece) -> dict[str, Any]:
    data = base64.b64encode(piece.content).decode()
    return {"data": data, "regions": piece.regions} if piece.regions else {"data": data}


def _spelt(model: ModelInfo) -> str:
    return f"{model.name} {model.version} (SHA-256 {model.sha256[:12]})"
