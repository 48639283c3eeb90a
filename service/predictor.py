"""A request's way from pictures to predictions: decoded, batched, searched where that is worth it, read."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.artifact import ArtifactMetadata
from service.batcher import Answer, Batcher, Image, seconds_of_last
from service.decode_pool import DecodePool
from service.engine import CUDA, Outputs
from service.engine_watch import EngineWatch
from service.errors import ServiceError
from service.imaging import View
from service.metrics import Metrics
from service.pictures import Item, Picture, Preparation, prepare
from service.reader import Reader, Reading
from service.schemas import ModelInfo, Prediction
from service.searcher import Doubtful, Searcher
from service.settings import Settings
from service.statistics import Stages, Statistics


@dataclass(frozen=True, slots=True)
class Predicted:
    """Predictions in the order asked."""

    predictions: list[Prediction]
    stages: Stages


@dataclass(frozen=True, slots=True)
class Inferred:
    """The artifact's own outputs for N images, and what they read as."""

    outputs: Outputs
    readings: list[Reading]
    stages: Stages


Answered = TypeVar("Answered", Predicted, Inferred)
Kept = TypeVar("Kept", View, Reading)


class Predictor:
    """A loaded reader with its batcher, and the pool that decodes for it where its batches do not; `watch` is of its
    engine."""

    def __init__(self, reader: Reader, pool: DecodePool, settings: Settings, metrics: Metrics) -> None:
        engine = reader.engine
        self.model = ModelInfo.of(reader)
        self.statistics = Statistics()
        self._reader = reader
        self._pool = pool
        # Otherwise the threads of the batches decode: on the CPU, where they are as many as are to decode.
        self._decodes_ahead = engine.provider == CUDA or engine.parallel_batches != pool.threads
        self._prepare = partial(prepare, size=reader.metadata.input_size, max_pixels=settings.max_pixels)
        self.watch = EngineWatch(reader.infer, reader.metadata.input_size)
        self._batcher = Batcher(
            self.statistics.timing(self.watch.infer),
            max_batch_size=settings.max_batch_size,
            max_queue_images=settings.max_queue_images,
            max_batch_delay_s=settings.max_batch_delay_ms / 1000,
            parallel_batches=engine.parallel_batches,
            observe_batch=metrics.observe_batch,
            observe_dropped=partial(metrics.observe_dropped, "queue"),
            observe_rejected=partial(metrics.observe_rejected, "queue"),
        )
        self._searcher = Searcher(reader.metadata, pool, self._batcher, settings, metrics.observe_search)
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
        self.statistics.succeeded(perf_counter() - started, answered.stages)
        return answered

    async def _predict(
        self, pictures: Sequence[Picture], min_confidence: float | None, boxes: bool, deadline: float
    ) -> Predicted:
        started = perf_counter()
        preparations, ahead_s = await self._prepared(pictures, deadline)
        results = await self._read(preparations, ahead_s, deadline)
        answered_at = perf_counter()
        items = _items_of(preparations)
        answers = [
            self._reading(item.view, result, min_confidence, boxes) for item, result in zip(items, results, strict=True)
        ]
        if len(pictures) == 1:
            _refuse(answers)
        predictions = [item.prediction(answer, boxes=boxes) for item, answer in zip(items, answers, strict=True)]
        return Predicted(predictions, self._stages(started, ahead_s, results, answered_at))

    async def _infer(self, images: Sequence[Picture] | NDArray[np.uint8], deadline: float) -> Inferred:
        started = perf_counter()
        if isinstance(images, np.ndarray):
            preparations = [Preparation.of_view(index, pixels) for index, pixels in enumerate(images)]
            ahead_s = 0.0
        else:
            preparations, ahead_s = await self._prepared(images, deadline)
        results = await self._read(preparations, ahead_s, deadline)
        answered_at = perf_counter()
        views = _unfailed([item.view for item in _items_of(preparations)])
        readings = _unfailed(
            [self._reading(view, result, None, boxes=False) for view, result in zip(views, results, strict=True)]
        )
        outputs = Outputs.joined([result.outputs for result in results if isinstance(result, Answer)])
        return Inferred(outputs, readings, self._stages(started, ahead_s, results, answered_at))

    async def _prepared(self, pictures: Sequence[Picture], deadline: float) -> tuple[list[Preparation], float]:
        """The pictures, decoded where that is done ahead, and the seconds it took. There is still room in the queue for
        all of them then, until the event loop does something else."""
        preparations = [Preparation(picture, self._prepare) for picture in pictures]
        ahead = preparations if self._decodes_ahead else [one for one in preparations if one.picture.is_costly]
        if not ahead:
            return preparations, 0.0
        started = perf_counter()
        with self._batcher.reserve(sum(picture.items for picture in pictures)):
            await self._pool.map(Preparation.items, ahead, deadline)
        return preparations, perf_counter() - started

    async def _read(
        self, preparations: Sequence[Preparation], ahead_s: float, deadline: float
    ) -> list[Answer | ServiceError]:
        """The answer for each image, after a search where that is worth it, or what is wrong with the image; raises
        what concerns the request as a whole. `ahead_s` is what it took to decode ahead."""
        results = await self._batcher.compute(_images_of(preparations), deadline)
        doubtful: dict[int, Doubtful] = {}
        for n, (item, result) in enumerate(zip(_items_of(preparations), results, strict=True)):
            view = item.view
            if not isinstance(view, View) or view.photo is None or not isinstance(result, Answer):
                continue
            if self._reader.is_worth_searching(view, result.outputs):
                doubtful[n] = Doubtful(view.photo(), view.region, result)
        if doubtful:
            await self._searcher.search(doubtful.values(), ahead_s, deadline)
        for n, searched in doubtful.items():
            results[n] = searched.answer
        return results

    def _stages(
        self, began: float, ahead_s: float, results: Iterable[Answer | ServiceError], answered_at: float
    ) -> Stages:
        """Of a request that has taken `ahead_s` before its images waited, and is composed since `answered_at`."""
        queue_s, decode_s, inference_s = seconds_of_last(results)
        return Stages(
            began=began,
            decoded_ahead=ahead_s > 0,
            queue_s=queue_s,
            decode_s=ahead_s + decode_s,
            inference_s=inference_s,
            compose_s=perf_counter() - answered_at,
        )

    def _reading(
        self, view: View | ServiceError, result: Answer | ServiceError, min_confidence: float | None, boxes: bool
    ) -> Reading | ServiceError:
        """What the result for an image says, or why there is none."""
        if isinstance(view, ServiceError):
            return view
        if isinstance(result, ServiceError):
            return result
        reading = self._reader.compose(result.outputs, view.region, min_confidence=min_confidence, boxes=boxes)
        self._observe_reading(reading)
        return reading


def _images_of(preparations: Iterable[Preparation]) -> list[Image]:
    return [
        partial(preparation.pixels, index) for preparation in preparations for index in range(preparation.picture.items)
    ]


def _items_of(preparations: Iterable[Preparation]) -> list[Item]:
    return [item for preparation in preparations for item in preparation.outcome()]


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
