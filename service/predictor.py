"""A request's way from pictures to predictions: decoded, batched, read."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.artifact import ArtifactMetadata
from service.batcher import Answer, Batcher
from service.decode_pool import DecodePool
from service.engine import Outputs
from service.errors import Internal, ServiceError
from service.geometry import Region
from service.imaging import View
from service.metrics import Metrics
from service.pictures import Item, Picture, answers_of, prepare, views_of
from service.reader import Reader, Reading
from service.schemas import ModelInfo, Prediction
from service.settings import Settings
from service.statistics import Stages, Statistics


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted(Stages):
    """Predictions in the order asked."""

    predictions: list[Prediction]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inferred(Stages):
    """The artifact's own outputs for N images, and what they read as."""

    outputs: Outputs
    readings: list[Reading]


Answered = TypeVar("Answered", bound=Stages)
Kept = TypeVar("Kept", View, Reading)


class Predictor:
    """A loaded reader with its batcher, and the pool that decodes for it."""

    def __init__(self, reader: Reader, pool: DecodePool, settings: Settings, metrics: Metrics) -> None:
        self.model = ModelInfo.of(reader)
        self.statistics = Statistics()
        self._reader = reader
        self._pool = pool
        self._prepare = partial(prepare, size=reader.metadata.input_size, max_pixels=settings.max_pixels)
        self._batcher = Batcher(
            self.statistics.timing(reader.infer),
            max_batch_size=settings.max_batch_size,
            max_queue_images=settings.max_queue_images,
            max_batch_delay_s=settings.max_batch_delay_ms / 1000,
            parallel_batches=reader.engine.parallel_batches,
            observe_batch=metrics.observe_batch,
            observe_dropped=partial(metrics.observe_dropped, "queue"),
            observe_rejected=partial(metrics.observe_rejected, "queue"),
        )
        self._batcher.start()
        self._observe_reading = metrics.observe_reading
        self._requests = 0
        self._left = asyncio.Event()

    @property
    def metadata(self) -> ArtifactMetadata:
        return self._reader.metadata

    @property
    def parallel_batches(self) -> int:
        """How many batches are computed at a time."""
        return self._reader.engine.parallel_batches

    @property
    def waiting(self) -> int:
        """Images in the queue."""
        return self._batcher.waiting

    @contextmanager
    def in_use(self) -> Iterator[Self]:
        """For a request, from the moment it is admitted until it is answered."""
        self._requests += 1
        try:
            yield self
        finally:
            self._requests -= 1
            self._left.set()

    async def unused(self) -> None:
        """Until no request uses it."""
        while self._requests:
            self._left.clear()
            await self._left.wait()

    @property
    def is_full(self) -> bool:
        """Whether not even one more image may wait."""
        return self._batcher.is_full

    def check_room(self) -> None:
        """Raises Draining, and Overloaded where not even one more image may wait."""
        self._batcher.check_room()

    async def close(self) -> None:
        await self._batcher.close()

    async def predict(
        self, pictures: Sequence[Picture], *, min_confidence: float | None, boxes: bool, deadline: float
    ) -> Predicted:
        """Reads every picture and region through the one batcher; `deadline` is in the event loop's time.

        What is wrong with one of several pictures stands in its predictions. Raises ServiceError for what is
        wrong with a request's only picture and for what concerns the request as a whole.
        """
        return await self._counted(self._predict(pictures, min_confidence, boxes, deadline))

    async def infer(self, images: Sequence[Picture] | NDArray[np.uint8], *, deadline: float) -> Inferred:
        """The artifact's outputs for pictures, each as a whole, or for views as the artifact takes them.

        Views are uint8 [N, input_height, input_width, 3]. Raises ServiceError, also where only one image is to blame:
        then it says which.
        """
        return await self._counted(self._infer(images, deadline))

    async def _counted(self, work: Coroutine[Any, Any, Answered]) -> Answered:
        started = perf_counter()
        try:
            answered = await work
        except BaseException:
            self.statistics.failed(perf_counter() - started)
            raise
        self.statistics.succeeded(perf_counter() - started, answered)
        return answered

    async def _predict(
        self, pictures: Sequence[Picture], min_confidence: float | None, boxes: bool, deadline: float
    ) -> Predicted:
        started = perf_counter()
        items = await self._items(pictures, deadline)
        decode_s = perf_counter() - started
        if len(pictures) == 1:
            _refuse([item.view for item in items])

        views = views_of(items)
        futures = self._batcher.submit([view.pixels for view in views], deadline)
        results = await asyncio.gather(*futures, return_exceptions=True)
        answered_at = perf_counter()
        answers = answers_of(items, self._readings(views, results, min_confidence, boxes))

        if len(pictures) == 1:
            _refuse(answers)
        queue_s, inference_s = _of_the_last([result for result in results if isinstance(result, Answer)])
        return Predicted(
            predictions=[item.prediction(answer, boxes=boxes) for item, answer in zip(items, answers, strict=True)],
            began=started,
            decode_s=decode_s,
            queue_s=queue_s,
            inference_s=inference_s,
            compose_s=perf_counter() - answered_at,
        )

    async def _infer(self, images: Sequence[Picture] | NDArray[np.uint8], deadline: float) -> Inferred:
        started = perf_counter()
        views = await self._views(images, deadline)
        decode_s = perf_counter() - started
        futures = self._batcher.submit([view.pixels for view in views], deadline)
        results = await asyncio.gather(*futures, return_exceptions=True)
        answered_at = perf_counter()
        readings = _unfailed(self._readings(views, results, None, boxes=False))
        answered = [result for result in results if isinstance(result, Answer)]
        queue_s, inference_s = _of_the_last(answered)
        return Inferred(
            outputs=Outputs.joined([answer.outputs for answer in answered]),
            readings=readings,
            began=started,
            decode_s=decode_s,
            queue_s=queue_s,
            inference_s=inference_s,
            compose_s=perf_counter() - answered_at,
        )

    async def _views(self, images: Sequence[Picture] | NDArray[np.uint8], deadline: float) -> list[View]:
        if isinstance(images, np.ndarray):
            height, width = self.metadata.input_size
            return [View(pixels, Region.whole(width, height)) for pixels in images]
        return _unfailed([item.view for item in await self._items(images, deadline)])

    async def _items(self, pictures: Sequence[Picture], deadline: float) -> list[Item]:
        """What the pictures ask for, decoded. When it comes back there is still room for all of it in the queue."""
        with self._batcher.reserve(sum(picture.items for picture in pictures)):
            groups = await self._pool.map(self._prepare, pictures, deadline)
        return [item for group in groups for item in group]

    def _readings(
        self,
        views: Sequence[View],
        results: Sequence[Answer | BaseException],
        min_confidence: float | None,
        boxes: bool,
    ) -> list[Reading | ServiceError]:
        """One per view, in order. Only Internal is the fault of one image; anything else is raised."""
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, Internal):
                raise result
        read = [(v, r.outputs) for v, r in zip(views, results, strict=True) if isinstance(r, Answer)]
        composed: list[Reading] = []
        if read:
            outputs = Outputs.joined([outputs for _, outputs in read])
            regions = [view.region for view, _ in read]
            composed = self._reader.compose(outputs, regions, min_confidence=min_confidence, boxes=boxes)
        for reading in composed:
            self._observe_reading(reading)
        in_order = iter(composed)
        return [result if isinstance(result, Internal) else next(in_order) for result in results]


def _of_the_last(answers: Sequence[Answer]) -> tuple[float, float]:
    """Seconds of the wait and of the batch of the image that was answered last; 0 where none was."""
    return max(((answer.queue_s, answer.inference_s) for answer in answers), key=sum, default=(0.0, 0.0))


def _refuse(answers: Sequence[object]) -> None:
    """With a single image, the first error is the answer."""
    for answer in answers:
        if isinstance(answer, ServiceError):
            raise answer


def _unfailed(results: Sequence[Kept | ServiceError]) -> list[Kept]:
    """All results, one per image; or the first error is raised, and says which image's it is."""
    kept: list[Kept] = []
    for index, result in enumerate(results):
        if isinstance(result, ServiceError):
            raise type(result)(f"image {index}: {result.detail}") from result
        kept.append(result)
    return kept
