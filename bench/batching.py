"""What the batching defaults rest on: batch sizes, spinning threads and batch limits, measured on this machine's CPUs.

    python -m bench.batching sizes       does padding, or warming every size, pay on the CPU?
    python -m bench.batching spinning    what do spinning threads save, and what do they cost?
    python -m bench.batching limits      images per second and waiting, by max_batch_size and max_batch_delay_ms

The alternatives take turns, round after round, so that whatever else the machine does falls on all of them; figures are
medians.
"""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import click
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from bench.images import jpegs
from service.artifact import INPUT_NAME, OUTPUT_NAMES
from service.batcher import Batcher, Image
from service.cpus import usable_cpus
from service.engine import OnnxEngine
from service.imaging import Photo
from service.settings import DEFAULT_MODEL

SPINNING = {
    "off": {"session.intra_op.allow_spinning": "0"},
    "on": {"session.intra_op.allow_spinning": "1"},
    "within a run": {"session.intra_op.allow_spinning": "1", "session.force_spinning_stop": "1"},
}

_model = click.option("--model", type=click.Path(exists=True, path_type=Path), default=DEFAULT_MODEL)
_threads = click.option("--threads", type=click.IntRange(min=1), default=usable_cpus, show_default="usable CPUs")
_rounds = click.option("--rounds", type=click.IntRange(min=1), default=20, show_default=True)


@click.group()
def main() -> None:
    """Measure what the batching defaults rest on."""


@main.command()
@_model
@_threads
@_rounds
@click.option("--largest", type=click.IntRange(min=2), default=32, show_default=True)
def sizes(model: Path, threads: int, rounds: int, largest: int) -> None:
    """First and later runs of every batch size, and of the power of two that it could be padded to."""
    engines = [OnnxEngine(model, "cpu", intra_op_threads=threads) for _ in range(5)]
    images = _images(engines[0], largest)
    numbers = range(1, largest + 1)
    powers = [1 << power for power in range((largest - 1).bit_length() + 1)]
    first: dict[int, list[float]] = {size: [] for size in numbers}
    later: dict[int, list[float]] = {size: [] for size in numbers}
    for engine in engines:
        for size in sorted({*powers} & {*numbers}):
            engine.infer(images[:size])
        for size in numbers:
            times = [_seconds(engine.infer, images[:size]) for _ in range(4)]
            first[size].append(times[0] / min(times))
    for _ in range(rounds):
        for size in numbers:
            later[size].append(_seconds(engines[0].infer, images[:size]))

    table = Table("batch", "first ÷ later runs", "ms", "ms per image", "padded to", "padded ÷ as it is")
    for size in numbers:
        padded = min(next(power for power in powers if power >= size), largest)
        own = statistics.median(later[size])
        table.add_row(
            str(size),
            "warmed" if size in powers else f"{statistics.median(first[size]):.2f}",
            f"{own * 1000:.1f}",
            f"{own / size * 1000:.2f}",
            str(padded),
            f"{statistics.median(later[padded]) / own:.2f}",
        )
    Console().print(table)


@main.command()
@_model
@_threads
@_rounds
@click.option("--pause-ms", type=click.FloatRange(min=0), default=20.0, show_default=True, help="Between lone images.")
def spinning(model: Path, threads: int, rounds: int, pause_ms: float) -> None:
    """Lone images with pauses, then batches of eight beside threads that decode, as a service under load has them."""
    sessions = {name: _session(model, threads, entries) for name, entries in SPINNING.items()}
    eight = _images(OnnxEngine(model, "cpu"), 8)
    figures: dict[str, dict[str, list[float]]] = {name: {} for name in SPINNING}
    for _ in range(rounds):
        for name, run in sessions.items():
            run(eight)
            seconds, busy = [], time.process_time()
            for _ in range(10):
                time.sleep(pause_ms / 1000)
                seconds.append(_seconds(run, eight[:1]))
            _note(figures[name], latency=statistics.median(seconds), cpu=(time.process_time() - busy) / 10)
            time.sleep(0.2)  # what still spins comes to rest
            with _decoding(threads) as decoded:
                before, started = decoded(), time.perf_counter()
                for _ in range(10):
                    run(eight)
                elapsed = time.perf_counter() - started
                _note(figures[name], read=80 / elapsed, decoded=(decoded() - before) / elapsed)
    table = Table("spinning", "lone image, ms", "its CPU, ms", "beside decoding: images/s", "decoded/s")
    for name, noted in figures.items():
        medians = {key: statistics.median(values) for key, values in noted.items()}
        table.add_row(
            name,
            f"{medians['latency'] * 1000:.2f}",
            f"{medians['cpu'] * 1000:.2f}",
            f"{medians['read']:.0f}",
            f"{medians['decoded']:.0f}",
        )
    Console().print(table)


@main.command()
@_model
@_threads
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--seconds", type=click.FloatRange(min=0.1), default=1.0, show_default=True, help="Of each turn.")
def limits(model: Path, threads: int, rounds: int, seconds: float) -> None:
    """Callers that each wait for their answer, many of them (saturation) and a few that also pause."""
    engine = OnnxEngine(model, "cpu", intra_op_threads=threads)
    image = partial(np.asarray, _images(engine, 1)[0])
    turns = [
        (size, delay, callers, pause)
        for callers, pause in ((128, 0.0), (4, 0.01))
        for size in (1, 4, 8, 16, 32, 64)
        for delay in ((0.0, 5.0) if size in (8, 64) else (0.0,))
    ]
    noted: dict[tuple[int, float, int, float], list[tuple[float, float, float]]] = {}
    for _ in range(rounds):
        for turn in turns:
            noted.setdefault(turn, []).append(asyncio.run(_load(engine, image, *turn, seconds)))
    table = Table("callers", "pause, ms", "max batch", "delay, ms", "images/s", "ms, median", "ms, 99 %")
    for (size, delay, callers, pause), measured in noted.items():
        rate, median, slow = (statistics.median(values) for values in zip(*measured, strict=True))
        table.add_row(
            str(callers),
            f"{pause * 1000:g}",
            str(size),
            f"{delay:g}",
            f"{rate:.0f}",
            f"{median * 1000:.1f}",
            f"{slow * 1000:.1f}",
        )
    Console().print(table)


async def _load(
    engine: OnnxEngine,
    image: Image,
    size: int,
    delay_ms: float,
    callers: int,
    pause: float,
    seconds: float,
) -> tuple[float, float, float]:
    """Images per second, median and 99th percentile of the seconds until the answer."""
    batcher = Batcher(engine.infer, max_batch_size=size, max_queue_images=callers, max_batch_delay_s=delay_ms / 1000)
    waits: list[float] = []
    end = time.perf_counter() + seconds

    async def caller() -> None:
        while (started := time.perf_counter()) < end:
            await batcher.submit([image])[0]
            waits.append(time.perf_counter() - started)
            await asyncio.sleep(pause)

    await asyncio.gather(*(caller() for _ in range(callers)))
    await batcher.close()
    return len(waits) / seconds, float(np.median(waits)), float(np.quantile(waits, 0.99))


def _images(engine: OnnxEngine, count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, *engine.metadata.input_size, 3), np.uint8)


def _session(model: Path, threads: int, entries: dict[str, str]) -> Callable[[NDArray[np.uint8]], object]:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    for name, value in entries.items():
        options.add_session_config_entry(name, value)
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(OUTPUT_NAMES, {INPUT_NAME: images})


@contextmanager
def _decoding(threads: int) -> Iterator[Callable[[], int]]:
    """Threads that decode a photograph over and over; gives how many they have done."""
    (photograph,) = jpegs(1, (800, 600))
    done, stop = [0] * threads, threading.Event()

    def work(index: int) -> None:
        while not stop.is_set():
            Photo.open(photograph, max_pixels=10**6).rgb()
            done[index] += 1

    workers = [threading.Thread(target=work, args=(index,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    try:
        yield lambda: sum(done)
    finally:
        stop.set()
        for worker in workers:
            worker.join()


def _seconds(run: Callable[[NDArray[np.uint8]], object], images: NDArray[np.uint8]) -> float:
    started = time.perf_counter()
    run(images)
    return time.perf_counter() - started


def _note(figures: dict[str, list[float]], **values: float) -> None:
    for name, value in values.items():
        figures.setdefault(name, []).append(value)


if __name__ == "__main__":
    main()
