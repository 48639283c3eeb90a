"""How long a request may take."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from service.errors import DeadlineExceeded


class Deadline:
    """An `async with` block with an end, `ms` milliseconds from now, or `asked_ms` if that is sooner.

    What the block waits for then is cancelled (images in a queue are dropped, not computed), and it raises
    DeadlineExceeded. Needs the running event loop.
    """

    def __init__(self, ms: float, asked_ms: float | None = None) -> None:
        self._ms = ms if asked_ms is None else min(ms, asked_ms)
        self._began = asyncio.get_running_loop().time()
        self._timeout = asyncio.timeout_at(self.at)

    @property
    def at(self) -> float:
        """The end, in the event loop's time (`time.monotonic`)."""
        return self._began + self._ms / 1000

    def shorten(self, asked_ms: float | None) -> None:
        """Within the block: brings the end forward to so many milliseconds from the beginning, if that is sooner."""
        if asked_ms is not None and asked_ms < self._ms:
            self._ms = asked_ms
            self._timeout.reschedule(self.at)

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self._timeout.__aexit__(kind, error, traceback)
        except TimeoutError:
            raise DeadlineExceeded(f"no answer within {self._ms:.10g} ms") from None
