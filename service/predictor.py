"""A request's way from pictures to predictions: decoded, batched, read."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter

from service.batcher import Answer, Batcher
from service.decode_pool import DecodePool
from service.engine import Outputs
from service.errors import Internal, ServiceError
from service.imaging import View
from service.metrics import Metrics
from service.pictures import Picture, prepare
from service.reader import Reader, Reading
from service.schemas import ModelInfo, Prediction
from service.settings import Settings


@dataclass(frozen=True, slots=True)
class Predicted:
    """Predictions in the order asked, and the seconds of the stages (see `schemas.Timing`)."""

    predictions: list[Prediction]
    decode_s: float
    queue_s: float
    inference_s: float


class Predictor:
    """A loaded reader with its batcher, and the pool that decodes for it."""

    def __init__(self, reader: Reader, pool: DecodePool, settings: Settings, metrics: Metrics) -> None:
        self.model = ModelInfo.of(reader)
        self._reader = reader
        self._pool = pool
        self._prepare = partial(prepare, size=reader.metadata.input_size, max_pixels=settings.max_pixels)
        self._batcher = Batcher(
            reader.engine.infer,
            max_batch_size=settings.max_batch_size,
            max_queue_images=settings.max_queue_images,
            observe_batch=metrics.observe_batch,
        )
        self._batcher.start()
        metrics.watch_queue(lambda: self._batcher.waiting)

    async def close(self) -> None:
        await self._batcher.close()

    async def predict(
        self, pictures: Sequence[Picture], *, min_confidence: float | None, boxes: bool, deadline: float
    ) -> Predicted:
        """Reads every picture and region through the one batcher; `deadline` is in the event loop's time.

        What is wrong with one of several pictures stands in its predictions. Raises ServiceError for what is
        wrong with a request's only picture and for what concerns the request as a whole.
        """
        started = perf_counter()
        items = [item for group in await self._pool.map(self._prepare, pictures) for item in group]
        decode_s = perf_counter() - started
        if len(pictures) == 1:
            _refuse([item.view for item in items])

        views = [item.view for item in items if isinstance(item.view, View)]
        futures = self._batcher.submit([view.pixels for view in views], deadline)
        results = await asyncio.gather(*futures, return_exceptions=True)
        readings = iter(self._readings(views, results, min_confidence, boxes))
        answers = [next(readings) if isinstance(item.view, View) else item.view for item in items]

        if len(pictures) == 1:
            _refuse(answers)
        answered = [result for result in results if isinstance(result, Answer)]
        return Predicted(
            [item.prediction(answer, boxes=boxes) for item, answer in zip(items, answers, strict=True)],
            decode_s=decode_s,
            queue_s=max((answer.queue_s for answer in answered), default=0.0),
            inference_s=max((answer.inference_s for answer in answered), default=0.0),
        )

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
        in_order = iter(composed)
        return [result if isinstance(result, Internal) else next(in_order) for result in results]


def _refuse(answers: Sequence[object]) -> None:
    """With a single image, the first error is the answer."""
    for answer in answers:
        if isinstance(answer, ServiceError):
            raise answer
