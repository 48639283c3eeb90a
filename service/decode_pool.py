"""The threads that turn bytes into pixels, so that the event loop never waits for a decoder."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from time import monotonic
from typing import TypeVar

from service.drain_rate import DrainRate
from service.errors import DeadlineExceeded, Draining, Internal, Overloaded
from service.observing import Dropped, tell, unheard, why_given_up

logger = logging.getLogger(__name__)

Job = TypeVar("Job")
Result = TypeVar("Result")


class DecodePool:
    """`threads` threads with at most `max_jobs` jobs waiting or running.

    `observe_dropped` is told why a job was not begun, `observe_rejected` how many jobs found no place; the first is
    called from any thread. What they raise is logged.
    """

    def __init__(
        self,
        threads: int,
        max_jobs: int,
        *,
        observe_dropped: Callable[[Dropped], None] = unheard,
        observe_rejected: Callable[[int], None] = unheard,
    ) -> None:
        self.threads = threads
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._max_jobs = max_jobs
        self._observe_dropped = observe_dropped
        self._observe_rejected = observe_rejected
        self._closed = False
        self._jobs = 0
        self._rate = DrainRate()
        # Jobs end in their threads, and go on there after their caller was cancelled.
        self._lock = threading.Lock()

    @property
    def jobs(self) -> int:
        """Jobs that wait or run."""
        return self._jobs

    @property
    def is_full(self) -> bool:
        """Whether not even one more job may wait."""
        return self._jobs >= self._max_jobs

    async def map(
        self, function: Callable[[Job], Result], jobs: Sequence[Job], deadline: float | None = None
    ) -> list[Result]:
        """`function` of every job, in order. Cancelled, it drops the jobs that have not begun.

        `deadline` is in the event loop's time (`time.monotonic`): a job that has not begun by then is dropped.
        Raises Overloaded, before anything is begun, when not all of them fit; DeadlineExceeded; Draining when the pool
        was closed first; and what `function` raises.
        """
        if not jobs:
            return []
        self._reserve(len(jobs))
        futures: list[Future[Result]] = []
        try:
            for job in jobs:
                futures.append(self._executor.submit(self._work, function, job, deadline))
                futures[-1].add_done_callback(partial(self._on_done, deadline))
            return await asyncio.gather(*map(asyncio.wrap_future, futures))
        except asyncio.CancelledError:
            if self._closed and not _told_to_stop():
                raise Draining("the service stopped before this image was decoded") from None
            raise
        finally:
            # Of those that have begun or are done, none is touched; the rest nobody waits for any more.
            for future in futures:
                future.cancel()
            with self._lock:
                self._jobs -= len(jobs) - len(futures)

    def close(self) -> None:
        """Drops what has not begun; what runs ends by itself."""
        self._closed = True
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _reserve(self, jobs: int) -> None:
        with self._lock:
            now = monotonic()
            if self._closed:
                raise Draining("the service is stopping")
            if self._jobs + jobs <= self._max_jobs:
                self._rate.busy(now)
                self._jobs += jobs
                return
            overloaded = Overloaded(
                f"{self._jobs} images are being decoded; the limit is {self._max_jobs}",
                self._rate.retry_after_s(self._jobs, now),
            )
        tell(self._observe_rejected, jobs)
        raise overloaded

    def _work(self, function: Callable[[Job], Result], job: Job, deadline: float | None) -> Result:
        if deadline is not None and deadline <= monotonic():
            tell(self._observe_dropped, "expired")
            raise DeadlineExceeded("the deadline passed while the image waited to be decoded")
        try:
            return function(job)
        except BaseException as error:
            if isinstance(error, Exception) and not isinstance(error, StopIteration):
                raise
            # These mean something to an event loop: they would end it, or leave the caller waiting.
            logger.error("a job failed", exc_info=error)
            raise Internal("the image could not be decoded") from error

    def _on_done(self, deadline: float | None, future: Future[Result]) -> None:
        dropped = future.cancelled()
        if dropped:
            tell(self._observe_dropped, why_given_up(deadline, monotonic()))
        with self._lock:
            self._jobs -= 1
            if not dropped:
                self._rate.done(1, monotonic())
            if self._jobs == 0:
                self._rate.idle()


def _told_to_stop() -> bool:
    """Whether it is the running task that was cancelled, and not only what it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
