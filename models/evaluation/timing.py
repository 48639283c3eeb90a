"""What reading costs: engines timed side by side, so that whatever else the machine is doing falls on all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import numpy as np

from service.engine import Engine

RUNS_IN_A_ROW = 5
"""Of one engine in its turn, as in a service: most runs then find its weights where the run before left them."""


def milliseconds_per_image(
    engines: Mapping[str, Engine], batch: int, rounds: int, advance: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """The median time of each engine, by its name.

    Args:
        engines: by name; each gets noise of its own input size.
        batch: images at once.
        rounds: how often the engines take turns.
        advance: called after each round.
    """
    rng = np.random.default_rng(0)
    images = {
        name: rng.integers(0, 256, (batch, *engine.metadata.input_size, 3), np.uint8)
        for name, engine in engines.items()
    }
    for name, engine in engines.items():
        engine.infer(images[name])
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(rounds):
        for name, engine in engines.items():
            for _ in range(RUNS_IN_A_ROW):
                started = time.perf_counter()
                engine.infer(images[name])
                seconds[name].append(time.perf_counter() - started)
        advance()
    return {name: statistics.median(times) / batch * 1000 for name, times in seconds.items()}
