"""The threads that turn bytes into pixels, so that the event loop never waits for a decoder."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from service.errors import Overloaded

Job = TypeVar("Job")
Result = TypeVar("Result")


class DecodePool:
    """`threads` threads with at most `max_jobs` jobs waiting or running."""

    def __init__(self, threads: int, max_jobs: int) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._max_jobs = max_jobs
        self._jobs = 0
        # Jobs end in their threads, and go on there after their caller was cancelled.
        self._lock = threading.Lock()

    async def map(self, function: Callable[[Job], Result], jobs: Sequence[Job]) -> list[Result]:
        """`function` of every job, in order. Cancelled, it drops the jobs that have not begun.

        Raises Overloaded, before anything is begun, when not all of them fit, and what `function` raises.
        """
        with self._lock:
            if self._jobs + len(jobs) > self._max_jobs:
                raise Overloaded(f"{self._jobs} images are being decoded; the limit is {self._max_jobs}")
            self._jobs += len(jobs)
        futures = [self._executor.submit(function, job) for job in jobs]
        for future in futures:
            future.add_done_callback(self._done)
        return await asyncio.gather(*map(asyncio.wrap_future, futures))

    def close(self) -> None:
        """Drops what has not begun; what runs ends by itself."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _done(self, _future: Future[Result]) -> None:
        with self._lock:
            self._jobs -= 1
