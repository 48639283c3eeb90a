"""The batcher: images of many callers, one batch at a time through the engine.

It knows nothing of HTTP. Whenever the engine is free it takes what is waiting, up to `max_batch_size` images:
under little load a batch is one image and nobody waits for company, under much load batches fill by themselves.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from service.engine import Outputs
from service.errors import DeadlineExceeded, Draining, Internal, Overloaded

logger = logging.getLogger(__name__)

Infer = Callable[[NDArray[np.uint8]], Outputs]


@dataclass(frozen=True, slots=True)
class Answer:
    """The outputs for one image (N = 1), the seconds it waited and the seconds its batch took."""

    outputs: Outputs
    queue_s: float
    inference_s: float


@dataclass(slots=True)
class _Item:
    pixels: NDArray[np.uint8]
    future: asyncio.Future[Answer]
    deadline: float | None
    arrived: float


class Batcher:
    """Runs `infer` (uint8 [N, H, W, 3] -> Outputs) on batches, in a thread of its own.

    `max_queue_images` bounds what waits, not what is being computed. `observe_batch` is told the size of every
    batch. Use it from one event loop: `start`, then `submit` as often as you like, then `close`.
    """

    def __init__(
        self,
        infer: Infer,
        *,
        max_batch_size: int,
        max_queue_images: int,
        observe_batch: Callable[[int], None] = lambda _size: None,
    ) -> None:
        self._infer = infer
        self._max_batch_size = max_batch_size
        self._max_queue_images = max_queue_images
        self._observe_batch = observe_batch
        self._waiting: deque[_Item] = deque()
        self._wake = asyncio.Event()
        self._closing = False
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts taking batches. Needs the running event loop."""
        self._task = asyncio.create_task(self._run(), name="batcher")

    @property
    def waiting(self) -> int:
        """Images in the queue."""
        return len(self._waiting)

    def submit(
        self, images: Sequence[NDArray[np.uint8]], deadline: float | None = None
    ) -> list[asyncio.Future[Answer]]:
        """Queues images, all or none, and gives one future per image.

        `deadline` is in the event loop's time. An image whose future is cancelled, or whose deadline has passed
        (DeadlineExceeded), is dropped before it is computed. A future fails with Internal when the engine fails
        on that image, with Draining when the batcher closes first. Raises Overloaded or Draining.
        """
        if self._closing:
            raise Draining("the service is stopping")
        if len(self._waiting) + len(images) > self._max_queue_images:
            # Those whose caller has left take no one's place.
            self._waiting = deque(item for item in self._waiting if not item.future.done())
        if len(self._waiting) + len(images) > self._max_queue_images:
            raise Overloaded(f"{len(self._waiting)} images are waiting; the limit is {self._max_queue_images}")
        loop = asyncio.get_running_loop()
        items = [_Item(pixels, loop.create_future(), deadline, perf_counter()) for pixels in images]
        self._waiting.extend(items)
        self._wake.set()
        return [item.future for item in items]

    async def close(self) -> None:
        """Lets the running batch finish, refuses what still waits (Draining) and ends the thread."""
        self._closing = True
        for item in self._waiting:
            if not item.future.done():
                item.future.set_exception(Draining("the service stopped before this image was read"))
        self._waiting.clear()
        self._wake.set()
        if self._task is not None:
            await self._task
        self._executor.shutdown()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            batch = self._take()
            if batch:
                await self._answer(batch)
            elif self._closing:
                return
            else:
                self._wake.clear()

    def _take(self) -> list[_Item]:
        batch: list[_Item] = []
        while self._waiting and len(batch) < self._max_batch_size:
            item = self._waiting.popleft()
            if _still_wanted(item):
                batch.append(item)
        return batch

    async def _answer(self, batch: list[_Item]) -> None:
        error = await self._compute(batch)
        if error is None:
            return
        if len(batch) > 1:
            # One bad image must not take its neighbours with it: find out which one it was.
            logger.warning("a batch of %d images failed (%r); reading them one by one", len(batch), error)
            for item in batch:
                if _still_wanted(item):
                    await self._answer([item])
            return
        logger.error("the engine failed on an image", exc_info=error)
        if not batch[0].future.done():
            batch[0].future.set_exception(Internal("the reader failed on this image"))

    async def _compute(self, batch: list[_Item]) -> BaseException | None:
        loop = asyncio.get_running_loop()
        started = perf_counter()
        pixels = [item.pixels for item in batch]
        result = await loop.run_in_executor(self._executor, _attempt, self._infer, pixels)
        if isinstance(result, BaseException):
            return result
        self._observe_batch(len(batch))
        elapsed = perf_counter() - started
        for item, outputs in zip(batch, result, strict=True):
            if not item.future.done():
                item.future.set_result(Answer(outputs, started - item.arrived, elapsed))
        return None


def _still_wanted(item: _Item) -> bool:
    if item.future.done():
        return False
    if item.deadline is not None and item.deadline <= asyncio.get_running_loop().time():
        item.future.set_exception(DeadlineExceeded("the deadline passed while the image waited to be read"))
        return False
    return True


def _attempt(infer: Infer, pixels: list[NDArray[np.uint8]]) -> list[Outputs] | BaseException:
    """One row of outputs per image, or what went wrong: whatever an engine raises, the loop must go on."""
    try:
        outputs = infer(np.stack(pixels))
        if len(outputs.probabilities) != len(pixels):
            raise RuntimeError(f"{len(outputs.probabilities)} answers for {len(pixels)} images")
        return [outputs.part(index, index + 1) for index in range(len(pixels))]
    except BaseException as error:
        return error
