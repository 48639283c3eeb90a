"""Whether an engine that is asked still answers.

A CUDA context that has failed once fails every call until its process ends, and a driver may not come back at all.
Neither is seen from outside: `/livez` is well, and every request is answered with an error.
"""

from __future__ import annotations

import asyncio
import threading

import numpy as np
from numpy.typing import NDArray

from service.engine import Infer, Outputs

TICK_S = 1.0


class _Call:
    """That an engine is at; `seconds` of it have been seen."""

    def __init__(self) -> None:
        self.seconds = 0.0


class EngineWatch:
    """Stands before an engine's `infer` and watches what becomes of its calls.

    After a failure, which is also an answer without a finite number, the engine is asked once a second whether it can
    read a black image of `size` (height, width), until it can: one image that it cannot read, or one moment in which
    memory was short, is no stall. Seconds are those in which the event loop could see it: what the whole process
    sleeps through, frozen or moved, does not count.
    """

    def __init__(self, infer: Infer, size: tuple[int, int]) -> None:
        self._infer = infer
        self._black = np.zeros((1, *size, 3), np.uint8)
        self._calls: set[_Call] = set()
        # Since the first failure after which nothing was answered; None while it answers.
        self._failing_s: float | None = None
        self._asking = False

    def infer(self, images: NDArray[np.uint8]) -> Outputs:
        """As the engine's, from any thread."""
        call = _Call()
        self._calls.add(call)
        try:
            outputs = self._infer(images)
            answered = bool(outputs.finite().any())
        except BaseException:
            self._note(answered=False)
            raise
        finally:
            self._calls.discard(call)
        self._note(answered)
        return outputs

    @property
    def is_failing(self) -> bool:
        """Whether the engine has failed on the black image too."""
        return (self._failing_s or 0.0) > TICK_S

    @property
    def stalled_s(self) -> float:
        """For how many seconds the engine has failed, or its oldest call has not come back."""
        return max([self._failing_s or 0.0, *(call.seconds for call in tuple(self._calls))])

    async def stalled(self, limit_s: float) -> None:
        """Watches, and returns when the engine has stalled for so long."""
        while self.stalled_s < limit_s:
            await asyncio.sleep(TICK_S)
            for call in tuple(self._calls):
                call.seconds += TICK_S
            if self._failing_s is not None:
                self._failing_s += TICK_S
                if not self._asking:
                    self._asking = True
                    # Not of a pool, whose threads the process would wait for at its end.
                    threading.Thread(target=self._ask, name="engine watch", daemon=True).start()

    def _ask(self) -> None:
        try:
            self.infer(self._black)
        except BaseException:
            pass  # is noted, and the failure before it is in the log
        finally:
            self._asking = False

    def _note(self, answered: bool) -> None:
        if answered:
            self._failing_s = None
        elif self._failing_s is None:
            self._failing_s = 0.0
