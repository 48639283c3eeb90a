"""How many images a caller may send: a token bucket for each."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from math import ceil
from time import monotonic

from service.errors import RateLimited

# A caller with more addresses than this gets a little more than its share; the memory is bounded.
_MAX_CALLERS = 10_000
# Of an image: sums of seconds are rounded, and who waits exactly as long as it is told to is to be let in.
_ROUNDING = 1e-6


class RateLimit:
    """`per_minute` images per minute for each caller, of which a whole minute's may come at once.

    A caller who has any left may send a request of any size: what it takes beyond that is a debt, which is waited
    for before the next one. So no request is too large ever to be answered, and the rate is kept all the same.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = monotonic) -> None:
        self._capacity = per_minute
        self._per_second = per_minute / 60
        self._clock = clock
        # Of each caller, how many images are left and since when (in the clock's seconds); the longest unseen first.
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, caller: str, images: int) -> None:
        """Takes `images` (0: only asks); raises RateLimited, and takes nothing, when not even one is left."""
        now = self._clock()
        left, since = self._left.pop(caller, (float(self._capacity), now))
        left = min(left + (now - since) * self._per_second, self._capacity)
        allowed = left >= 1 - _ROUNDING
        self._left[caller] = (left - images if allowed else left, now)
        if len(self._left) > _MAX_CALLERS:
            self._left.popitem(last=False)
        if not allowed:
            raise RateLimited(
                f"more than {self._capacity} images per minute", max(1, ceil((1 - left) / self._per_second))
            )
