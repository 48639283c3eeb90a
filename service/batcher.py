"""The batcher: images of many callers, in batches through the engine.

It knows nothing of HTTP. Whenever the engine is free for another batch it takes what is waiting, up to
`max_batch_size` images in the order they came: under little load a batch is one image and nobody waits for company,
under much load they fill by themselves, and a request of a hundred images shares them with a hundred requests of one.

The thread that runs a batch also asks its images for their pixels. Where that is decoding, a core that does one after
the other reads a fifth more than one on which several threads take turns (docs/results.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import monotonic

import numpy as np
from numpy.typing import NDArray

from service.drain_rate import DrainRate
from service.engine import Infer, Outputs
from service.errors import DeadlineExceeded, Draining, Internal, Overloaded, ServiceError, Unavailable
from service.infer_each import FAILED, infer_each
from service.observing import Dropped, tell, unheard, why_given_up

logger = logging.getLogger(__name__)

Image = Callable[[], NDArray[np.uint8]]
"""Gives its pixels, uint8 [H, W, 3], when it is called, from any thread; or raises the ServiceError that is its answer.
A second call gives the same."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The outputs for one image (N = 1), the seconds until its batch began, and what the batch then took: to get the
    pixels of all its images, and in the engine."""

    outputs: Outputs
    queue_s: float
    decode_s: float
    inference_s: float


def seconds_of_last(results: Iterable[Answer | ServiceError]) -> tuple[float, float, float]:
    """`queue_s`, `decode_s` and `inference_s` of the image that was answered last; 0 where none was answered."""
    answers = (result for result in results if isinstance(result, Answer))
    return max(((a.queue_s, a.decode_s, a.inference_s) for a in answers), key=sum, default=(0.0, 0.0, 0.0))


@dataclass(slots=True)
class _Item:
    image: Image
    future: asyncio.Future[Answer]
    deadline: float | None
    arrived: float

    def is_wanted(self, now: float) -> bool:
        return not (self.future.done() or self.is_late(now))

    def is_late(self, now: float) -> bool:
        return self.deadline is not None and self.deadline <= now


class Batcher:
    """Runs `infer` (uint8 [N, H, W, 3] -> Outputs) on up to `parallel_batches` batches at a time, each in a thread.

    `max_queue_images` bounds what waits, and what will wait once it is decoded (`reserve`), not what is being computed.
    Without a delay, what waits is shared among the batches that may begin. With `max_batch_delay_s` it goes together,
    and a batch that is not full goes when its first image has waited so long, whatever comes after it. `observe_batch`
    is told the size of every batch that is given to `infer`, `observe_dropped` why an image was not computed,
    `observe_rejected` how many images found no place; what they raise is logged. Use it from one event loop: `submit`
    as often as you like, then `close`.
    """

    def __init__(
        self,
        infer: Infer,
        *,
        max_batch_size: int,
        max_queue_images: int,
        max_batch_delay_s: float = 0.0,
        parallel_batches: int = 1,
        observe_batch: Callable[[int], None] = unheard,
        observe_dropped: Callable[[Dropped], None] = unheard,
        observe_rejected: Callable[[int], None] = unheard,
    ) -> None:
        self._infer = _contained(infer)
        self._max_batch_size = max_batch_size
        self._max_queue_images = max_queue_images
        self._max_batch_delay_s = max_batch_delay_s
        self._parallel_batches = parallel_batches
        self._observe_batch = observe_batch
        self._observe_dropped = observe_dropped
        self._observe_rejected = observe_rejected
        # By future, in the order they came: a caller that leaves takes its images out at once.
        self._waiting: OrderedDict[asyncio.Future[Answer], _Item] = OrderedDict()
        # Places that are kept for images still to come.
        self._reserved = 0
        self._rate = DrainRate()
        self._timer: asyncio.TimerHandle | None = None
        self._closing = False
        self._executor = ThreadPoolExecutor(max_workers=parallel_batches, thread_name_prefix="engine")
        self._running: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """Images in the queue."""
        return len(self._waiting)

    @property
    def is_full(self) -> bool:
        """Whether not even one more image may wait."""
        return self.taken >= self._max_queue_images

    @property
    def taken(self) -> int:
        """Places in the queue that are taken, or kept for images still to come."""
        return len(self._waiting) + self._reserved

    def check_room(self, images: int = 1) -> None:
        """Raises Draining, and Overloaded, with the time that the queue takes to drain, where so many do not fit."""
        if self._closing:
            raise Draining("the service is stopping")
        taken = self.taken
        if taken + images > self._max_queue_images:
            tell(self._observe_rejected, images)
            raise Overloaded(
                f"{taken} images are waiting; the limit is {self._max_queue_images}",
                self._rate.retry_after_s(taken, monotonic()),
            )

    @contextlib.contextmanager
    def reserve(self, images: int) -> Iterator[None]:
        """Keeps places in the queue, all or none, while the images are being decoded, so that none is refused after it
        has cost so much. Raises as `check_room` does.

        With the end of the block the places are free again: `submit` before the event loop does anything else.
        """
        self.check_room(images)
        self._reserved += images
        self._rate.busy(monotonic())
        try:
            yield
        finally:
            self._reserved -= images
            self._advance_soon()  # there may be nothing left to do

    def submit(self, images: Sequence[Image], deadline: float | None = None) -> list[asyncio.Future[Answer]]:
        """Queues images, all or none, and gives one future per image.

        `deadline` is in the event loop's time (`time.monotonic`). An image whose future is cancelled, or whose
        deadline has passed (DeadlineExceeded), is dropped before it is asked for its pixels. A future fails with what
        the image raises, with Internal when that is no ServiceError or the engine fails on the image, and with Draining
        when the batcher closes first. Raises as `check_room` does.
        """
        self.check_room(len(images))
        now, loop = monotonic(), asyncio.get_running_loop()
        items = [_Item(image, loop.create_future(), deadline, now) for image in images]
        for item in items:
            item.future.add_done_callback(self._on_done)
            self._waiting[item.future] = item
        self._advance_soon()
        return [item.future for item in items]

    async def compute(self, images: Sequence[Image], deadline: float) -> list[Answer | ServiceError]:
        """The answer for each image, or what is wrong with it.

        Raises what concerns all of them, as `submit` does and their futures: DeadlineExceeded, Draining. Who gives up
        waiting gives them up.
        """
        futures = self.submit(images, deadline)
        results: list[Answer | ServiceError] = []
        try:
            for future in futures:
                try:
                    results.append(await future)
                except ServiceError as error:
                    if isinstance(error, DeadlineExceeded | Unavailable):
                        raise
                    # Its traceback would hold this frame, which holds the error: the engine would outlive its model.
                    results.append(error.with_traceback(None))
        finally:
            for future in futures:
                future.cancel()  # those that nobody waits for any more
        return results

    async def close(self) -> None:
        """Lets the running batches finish, refuses what still waits (Draining) and ends the threads."""
        self._refuse()
        if self._running:
            # Not `gather`: who gives up waiting for the end must not take the running batches along.
            await asyncio.wait(self._running)
        self._executor.shutdown(wait=False)

    def _refuse(self) -> None:
        """What waits, and all that may come."""
        self._closing = True
        self._stop_timer()
        _fail(self._waiting.values(), Draining, "the service stopped before this image was read")
        self._waiting.clear()

    def _advance_soon(self) -> None:
        """After what else is ready now, whose images may go into the same batch."""
        asyncio.get_running_loop().call_soon(self._advance)

    def _advance(self) -> None:
        """Begins the batches that may begin, and sees to it that the next one does when its time comes."""
        self._stop_timer()
        while (pause := self._pause()) == 0:
            if batch := self._take():
                self._begin(batch)
        if pause is not None:
            self._timer = asyncio.get_running_loop().call_later(pause, self._advance)
        if not (self._reserved or self._running):
            self._rate.idle()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _pause(self) -> float | None:
        """Seconds until the next batch goes, as far as is known: None while nothing waits, or the engine is busy."""
        if not self._waiting or len(self._running) == self._parallel_batches:
            return None
        if len(self._waiting) >= self._max_batch_size:
            return 0.0
        first = next(iter(self._waiting.values()))
        return max(0.0, first.arrived + self._max_batch_delay_s - monotonic())

    def _take(self) -> list[_Item]:
        most = self._max_batch_size
        if not self._max_batch_delay_s:
            most = min(most, math.ceil(len(self._waiting) / (self._parallel_batches - len(self._running))))
        batch: list[_Item] = []
        while self._waiting and len(batch) < most:
            _, item = self._waiting.popitem(last=False)
            if self._still_wanted(item):
                batch.append(item)
        return batch

    def _begin(self, batch: list[_Item]) -> None:
        task = asyncio.create_task(self._serve(batch), name="batch")
        self._running.add(task)
        task.add_done_callback(self._on_served)

    def _on_served(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if task.cancelled():  # the event loop ends without `close`
            self._refuse()
        self._advance()

    async def _serve(self, batch: list[_Item]) -> None:
        """Sees to it that every future of the batch is done, and raises no Exception."""
        self._rate.busy(monotonic())
        try:
            await self._answer(batch)
        except Exception:
            logger.exception("a batch was not computed")
        finally:
            _fail(batch, Internal, FAILED)
            self._rate.done(len(batch), monotonic())

    async def _answer(self, batch: list[_Item]) -> None:
        """Gives every image of the batch what came of it."""
        run = await asyncio.get_running_loop().run_in_executor(
            self._executor, _run, self._infer, batch, self._observe_batch
        )
        for item, result in zip(batch, run.results, strict=True):
            if result is None:
                self._still_wanted(item)  # says why it is not
            elif item.future.done():
                continue
            elif isinstance(result, ServiceError):
                item.future.set_exception(result)
            else:
                item.future.set_result(Answer(result, run.began - item.arrived, run.decode_s, run.inference_s))

    def _still_wanted(self, item: _Item) -> bool:
        now = monotonic()
        if item.future.done():
            tell(self._observe_dropped, why_given_up(item.deadline, now))
            return False
        if item.is_late(now):
            item.future.set_exception(DeadlineExceeded("the deadline passed while the image waited to be read"))
            tell(self._observe_dropped, "expired")
            return False
        return True

    def _on_done(self, future: asyncio.Future[Answer]) -> None:
        """What is done before it was taken was cancelled by its caller."""
        if item := self._waiting.pop(future, None):
            tell(self._observe_dropped, why_given_up(item.deadline, monotonic()))


def _fail(items: Iterable[_Item], error: type[ServiceError], detail: str) -> None:
    """Gives the error to those who have no answer yet."""
    for item in items:
        if not item.future.done():
            item.future.set_exception(error(detail))


def _contained(infer: Infer) -> Infer:
    """The same, of which an exit or an interrupt is a failure like others: it would end the event loop."""

    def contained(images: NDArray[np.uint8]) -> Outputs:
        try:
            return infer(images)
        except Exception:
            raise
        except BaseException as error:
            raise RuntimeError("the engine was about to end the program") from error

    return contained


@dataclass(frozen=True, slots=True)
class _Run:
    """What came of a batch: for each image its outputs (N = 1), or why there are none, or None where it was not wanted
    any more."""

    began: float
    decode_s: float
    inference_s: float
    results: list[Outputs | ServiceError | None]


def _run(infer: Infer, batch: Sequence[_Item], observe_batch: Callable[[int], None]) -> _Run:
    """A batch, in its thread."""
    began = monotonic()
    # A batch of large photographs takes its time: who has left meanwhile, or whose time is up, does not cost any more.
    prepared = [_pixels_of(item.image) if item.is_wanted(monotonic()) else None for item in batch]
    decoded = monotonic()
    pixels = [of_image for of_image in prepared if isinstance(of_image, np.ndarray)]
    read = iter(infer_each(infer, pixels, observe_batch))
    results = [next(read) if isinstance(of_image, np.ndarray) else of_image for of_image in prepared]
    return _Run(began, decoded - began, monotonic() - decoded, results)


def _pixels_of(image: Image) -> NDArray[np.uint8] | ServiceError:
    try:
        return image()
    except ServiceError as error:
        # With its frames it would keep alive what they know, the engine and itself among it.
        error.__cause__ = error.__context__ = None
        return error.with_traceback(None)
    except BaseException as error:
        logger.error("an image gave no pixels", exc_info=error)
        return Internal("the image could not be prepared")
