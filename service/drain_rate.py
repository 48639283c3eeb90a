"""How fast a queue empties, and so when it is worth trying again."""

from __future__ import annotations

import math

MIN_RETRY_AFTER_S = 1
MAX_RETRY_AFTER_S = 60

# What happened so many busy seconds ago counts 1/e of what happens now.
_MEMORY_S = 10.0


class DrainRate:
    """Items per second over the recent past, measured while there is work: an idle night makes no queue slow.

    `now` is the seconds of any clock that does not go back.
    """

    def __init__(self) -> None:
        self._items = 0.0
        self._seconds = 0.0
        # Since when the present item or batch is being worked on; None while there is no work.
        self._since: float | None = None

    def busy(self, now: float) -> None:
        """There is work from now on, if there was none before."""
        if self._since is None:
            self._since = now

    def idle(self) -> None:
        """There is no work at the moment."""
        self._since = None

    def done(self, items: int, now: float) -> None:
        """So many items are done; the time since `busy` or since the last ones is what they took."""
        faded, seconds = self._faded(now)
        self._items, self._seconds = faded + items, seconds
        self._since = now

    def retry_after_s(self, waiting: int, now: float) -> int:
        """Whole seconds until what waits will be gone, between MIN_RETRY_AFTER_S and MAX_RETRY_AFTER_S.

        What is being worked on counts as it goes on, so a queue that has got stuck asks for more and more time.
        Before anything was done, it is as long as the first item has taken so far.
        """
        items, seconds = self._faded(now)
        expected = waiting * seconds / items if items > 0 else seconds
        return math.ceil(min(max(expected, MIN_RETRY_AFTER_S), MAX_RETRY_AFTER_S))

    def _faded(self, now: float) -> tuple[float, float]:
        """Items and seconds, as much as they still count, with the seconds since the last ones were done."""
        elapsed = 0.0 if self._since is None else now - self._since
        keep = math.exp(-elapsed / _MEMORY_S)
        return self._items * keep, self._seconds * keep + elapsed
