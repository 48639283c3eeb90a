"""What a loaded model has done so far: requests and batches, how many, and how long their stages took."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from service.engine import Infer, Outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """Seconds of an answered request, one after the other, from `began` (a `perf_counter`) on.

    The wait of the image that was answered last, and its batch: bytes to pixels, and in the engine; outputs to answer.
    Where `decoded_ahead`, the images of the request were decoded before they waited.
    """

    began: float
    decoded_ahead: bool
    queue_s: float
    decode_s: float
    inference_s: float
    compose_s: float


@dataclass(slots=True)
class Duration:
    """How often something happened, and how many nanoseconds it took altogether."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.ns += round(seconds * 1e9)


class Statistics:
    """Counts for as long as the model is loaded.

    Requests are counted in the event loop, batches in the engine's threads.
    """

    def __init__(self) -> None:
        self.success, self.fail = Duration(), Duration()
        self.queue, self.compute_input = Duration(), Duration()
        self.compute_infer, self.compute_output = Duration(), Duration()
        self.last_inference_ms = 0
        self._batches: dict[int, Duration] = {}
        self._lock = threading.Lock()

    @property
    def batches(self) -> dict[int, Duration]:
        """The engine's runs that succeeded, by the number of images."""
        return dict(sorted(self._batches.copy().items()))

    def timing(self, infer: Infer) -> Infer:
        """`infer`, with its runs counted."""

        def timed(images: NDArray[np.uint8]) -> Outputs:
            started = perf_counter()
            outputs = infer(images)
            seconds = perf_counter() - started
            with self._lock:
                self._batches.setdefault(len(images), Duration()).add(seconds)
                self.last_inference_ms = time.time_ns() // 1_000_000
            return outputs

        return timed

    def succeeded(self, seconds: float, stages: Stages) -> None:
        """A request was answered, this long after it was given to the model."""
        self.success.add(seconds)
        self.compute_input.add(stages.decode_s)
        self.queue.add(stages.queue_s)
        self.compute_infer.add(stages.inference_s)
        self.compute_output.add(stages.compose_s)

    def failed(self, seconds: float) -> None:
        """A request failed or was given up."""
        self.fail.add(seconds)
