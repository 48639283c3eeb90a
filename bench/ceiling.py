"""The most that the cores could do: decode, resize and session in a bare loop, with neither HTTP nor batcher."""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle, islice
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.engine import OnnxEngine
from service.imaging import Photo

_MAX_PIXELS = 10**8
_START_TIMEOUT_S = 120

_together: Barrier
"""Where all sessions meet before they begin; each process is told of it."""


@dataclass(frozen=True)
class Arrangement:
    """So many processes, each with so many sessions; of each session so many threads, as many that decode for it, and
    batches of one size."""

    processes: int
    sessions: int
    threads: int
    batch: int

    def __str__(self) -> str:
        return f"{self.processes} x {self.sessions} sessions of {self.threads} threads, batches of {self.batch}"


def arrangements(cpus: int) -> list[Arrangement]:
    """Those among which the best is the ceiling: a process per CPU, a session per CPU, or one for all of them."""
    forms = {(cpus, 1, 1), (1, cpus, 1), (1, 1, cpus)}
    return [Arrangement(*form, batch) for form in sorted(forms) for batch in (8, 32)]


def images_per_second(arrangement: Arrangement, model: Path, jpegs: list[bytes], seconds: float) -> float:
    """Of all its sessions together, which begin at the same moment."""
    context = get_context("spawn")
    together = context.Barrier(arrangement.processes * arrangement.sessions)
    with ProcessPoolExecutor(arrangement.processes, context, _meet_at, (together,)) as pool:
        futures = [pool.submit(_bare_loops, arrangement, model, jpegs, seconds) for _ in range(arrangement.processes)]
        return sum(future.result() for future in futures)


def _meet_at(together: Barrier) -> None:
    global _together
    _together = together


def _bare_loops(arrangement: Arrangement, model: Path, jpegs: list[bytes], seconds: float) -> float:
    """Those of one process."""
    with ThreadPoolExecutor(arrangement.sessions) as pool:
        futures = [
            pool.submit(_bare_loop, model, arrangement.threads, arrangement.batch, jpegs, seconds)
            for _ in range(arrangement.sessions)
        ]
        return sum(future.result() for future in futures)


def _bare_loop(model: Path, threads: int, batch: int, jpegs: list[bytes], seconds: float) -> float:
    engine = OnnxEngine(model, "cpu", intra_op_threads=threads)
    endless = cycle(jpegs)

    def view(jpeg: bytes) -> NDArray[np.uint8]:
        photo = Photo.open(jpeg, max_pixels=_MAX_PIXELS)
        return photo.views([photo.whole], engine.metadata.input_size)[0].pixels

    with ThreadPoolExecutor(threads) as pool:
        each = map if threads == 1 else pool.map

        def step() -> None:
            engine.infer(np.stack(list(each(view, islice(endless, batch)))))

        step()
        _together.wait(_START_TIMEOUT_S)
        images, began = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - began) < seconds:
            step()
            images += batch
        return images / elapsed
