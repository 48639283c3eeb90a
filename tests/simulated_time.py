"""An event loop on a clock of its own, which jumps to the next timer: hours pass at once, and always the same way."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar
from unittest.mock import patch

Result = TypeVar("Result")


class SimulatedLoop(asyncio.SelectorEventLoop):
    """Starts at 1000 s. Nothing else than timers may wake it: it fails where everybody waits for ever."""

    def __init__(self) -> None:
        self.now = 1000.0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        return self.now


class _JumpingSelector(selectors.SelectSelector):
    def __init__(self, loop: SimulatedLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "everybody waits for ever"
            self._loop.now += max(timeout, 0.0)
        return ready


class SimulatedThreads:
    """Stands in for an executor: each call ends so many seconds of the loop's time later."""

    def __init__(self, seconds: Callable[[], float], max_workers: int) -> None:
        self._seconds = seconds
        self._threads = self._free = max_workers

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        assert self._free, "more batches at once than there are threads"
        self._free -= 1
        future: Future[Any] = Future()

        def end() -> None:
            self._free += 1
            if future.set_running_or_notify_cancel():
                future.set_result(result)

        result = function(*args)
        asyncio.get_running_loop().call_later(self._seconds(), end)
        return future

    def shutdown(self, **_options: Any) -> None:
        assert self._free == self._threads


def simulate(main: Callable[[], Coroutine[Any, Any, Result]], batch_seconds: Callable[[], float]) -> Result:
    """Runs `main`, in whose batchers each batch takes `batch_seconds()`."""
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        loop = runner.get_loop()
        with (
            patch("service.batcher.monotonic", loop.time),
            patch(
                "service.batcher.ThreadPoolExecutor",
                lambda max_workers, **_: SimulatedThreads(batch_seconds, max_workers),
            ),
        ):
            return runner.run(main())
