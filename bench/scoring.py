"""Batch scoring: how near `housenumber score` comes to what the machine can do, and how much memory it takes.

    python -m bench.scoring speed                       local ÷ ceiling, on this machine's CPUs
    python -m bench.scoring cluster                     ray ÷ local, and two Ray nodes of one core each ÷ one
    python -m bench.scoring memory                      peak memory of 2,000 and of 20,000 images
    python -m bench.scoring memory --images 1000000     the same of 100,000 and of a million

The ceiling is the fastest of three bare loops on the same cores: decode, resize and session, from bytes in memory to
outputs that nobody looks at, by one session of all threads, by threads and by processes. The alternatives take turns,
round after round; figures are medians, of rates and of the rounds' ratios. What starts is not counted, of neither; what
is written is, but for the last of eight parts. Memory is that of all processes together, what they share once.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import click
import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from rich.console import Console
from rich.table import Table

from bench.processes import environment, proportional_bytes, tree
from bench.report import Figures, Row, show
from service.cpus import usable_cpus
from service.engine import OnnxEngine
from service.imaging import Photo
from service.settings import DEFAULT_MODEL

_SCORE = "housenumber score"
_BATCH = 32
_DISTINCT = 64
_SECONDS_TO_LOAD = 3.0
_SECONDS_BETWEEN_LOOKS = 0.2
_PARTS = 8
_OBJECT_STORE_BYTES = 128 * 2**20
# Ray's workers give way to all else by default; the head is such else, and here it has no machine of its own.
_RAY = {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
_MIB = 2**20

_model = click.option("--model", type=click.Path(exists=True, path_type=Path), default=DEFAULT_MODEL)
_workers = click.option("--workers", type=click.IntRange(min=1), default=usable_cpus, show_default="usable CPUs")


@click.group()
def main() -> None:
    """Measure batch scoring."""


@main.command()
@_model
@_workers
@click.option("--images", type=click.IntRange(min=1), default=4000, show_default=True, help="Of each turn.")
@click.option("--size", nargs=2, type=click.IntRange(min=8), default=(320, 240), show_default=True, help="In pixels.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--json", "json_out", type=click.Path(dir_okay=False, path_type=Path))
def speed(model: Path, workers: int, images: int, size: tuple[int, int], rounds: int, json_out: Path | None) -> None:
    """Images per second of the bare loops and of `housenumber score` with its defaults."""
    photos = _photos(size)
    turns: dict[str, Callable[[], float]] = {
        f"loop, one session of {workers} threads": lambda: _loops(
            model, photos, images, ThreadPoolExecutor, 1, workers
        ),
        f"loop, {workers} threads": lambda: _loops(model, photos, images, ThreadPoolExecutor, workers, 1),
        f"loop, {workers} processes": lambda: _loops(model, photos, images, _processes, workers, 1),
    }
    with tempfile.TemporaryDirectory() as folder:
        manifest = _manifest(Path(folder), photos, images)
        loops = list(turns)
        turns[_SCORE] = lambda: _scored(model, manifest, workers, "--part-size", str(-(-images // _PARTS)))[0]
        figures = Figures()
        for _ in range(rounds):
            for name, turn in turns.items():
                figures.note(name, turn())
    ceiling = max(loops, key=figures.median)
    rows = [Row(name, figures.median(name), "images/s") for name in turns]
    rows.append(Row(f"{_SCORE} ÷ {ceiling}", figures.ratio(_SCORE, ceiling), least=0.95))
    told = {"workers": workers, "images": images, "size": size, "rounds": figures.rounds}
    show(rows, json_out, **environment(), **told)


@main.command()
@_model
@click.option("--images", type=click.IntRange(min=1), default=6000, show_default=True, help="Of each turn.")
@click.option("--size", nargs=2, type=click.IntRange(min=8), default=(320, 240), show_default=True, help="In pixels.")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--json", "json_out", type=click.Path(dir_okay=False, path_type=Path))
def cluster(model: Path, images: int, size: tuple[int, int], rounds: int, json_out: Path | None) -> None:
    """Images per second on one machine with Ray and without, and on Ray nodes that are held to a core each.

    A node is a raylet with its own processes. The driver and the head of the cluster, which many machines have one more
    for, share the cores of the nodes, be it one or two.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise click.ClickException("two nodes of one core each need two cores")
    with tempfile.TemporaryDirectory() as folder:
        manifest = _manifest(Path(folder), _photos(size), images)

        def rate(workers: int, *options: str) -> float:
            part_size = str(-(-images // (_PARTS * workers)))
            return rate_between_parts(_score(model, manifest, workers, "--part-size", part_size, *options), workers)

        def on_nodes(count: int) -> float:
            with _ray_nodes(cores[:count]) as address:
                return rate(count, "--engine", "ray", "--address", address)

        turns: dict[str, Callable[[], float]] = {
            "local, one machine": lambda: rate(len(cores)),
            "ray, one machine": lambda: rate(len(cores), "--engine", "ray"),
            "ray, a node of one core": lambda: on_nodes(1),
            "ray, two nodes of one core": lambda: on_nodes(2),
        }
        figures = Figures()
        for _ in range(rounds):
            for name, turn in turns.items():
                figures.note(name, turn())
    rows = [Row(name, figures.median(name), "images/s") for name in turns]
    for name, other, least in (
        ("ray, one machine", "local, one machine", None),
        ("ray, two nodes of one core", "ray, a node of one core", 1.8),
    ):
        rows.append(Row(f"{name} ÷ {other}", figures.ratio(name, other), least=least))
    show(rows, json_out, **environment(), images=images, size=size, rounds=figures.rounds)


@main.command()
@_model
@_workers
@click.option("--images", type=click.IntRange(min=10), default=20_000, show_default=True, help="Of the larger job.")
def memory(model: Path, workers: int, images: int) -> None:
    """Peak memory of a job and of one with a tenth of its images."""
    photos = _photos((48, 32))
    table = Table("images", "peak memory, MiB", "images/s")
    for count in (images // 10, images):
        with tempfile.TemporaryDirectory() as folder:
            rate, peak = _scored(model, _manifest(Path(folder), photos, count), workers, look=True)
        table.add_row(f"{count:,}", f"{peak / _MIB:.0f}", f"{rate:.0f}")
    Console().print(table)


def _photos(size: tuple[int, int]) -> list[bytes]:
    """Encoded images of (width, height) pixels, each another: noise, smoothed to compress as a photograph does."""
    rng = np.random.default_rng(0)
    photos = []
    for _ in range(_DISTINCT):
        noise = Image.fromarray(rng.integers(0, 256, (size[1] // 8 + 1, size[0] // 8 + 1, 3), np.uint8))
        buffer = io.BytesIO()
        noise.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        photos.append(buffer.getvalue())
    return photos


def _manifest(folder: Path, photos: Sequence[bytes], count: int) -> Path:
    """A manifest of `count` images, in which the photographs come again and again."""
    for index, photo in enumerate(photos):
        (folder / f"{index}.jpg").write_bytes(photo)
    manifest = folder / "manifest.csv"
    with manifest.open("w") as file:
        file.write("id,path\n")
        file.writelines(f"{index},{index % len(photos)}.jpg\n" for index in range(count))
    return manifest


def _scored(model: Path, manifest: Path, workers: int, *options: str, look: bool = False) -> tuple[float, int]:
    """Images per second, without the start of the processes, and, where somebody is to `look`, which costs some of the
    speed, their peak memory in bytes."""
    peak = 0

    def watch(pid: int) -> None:
        nonlocal peak
        peak = max(peak, proportional_bytes(tree(pid)))

    out = _score(model, manifest, workers, *options, watch=watch if look else None)
    return json.loads((out / "_summary.json").read_text())["images_per_s"], peak


def _score(
    model: Path, manifest: Path, workers: int, *options: str, watch: Callable[[int], None] | None = None
) -> Path:
    """Run `housenumber score`; the folder with its output. `watch` is called with its process again and again."""
    out = manifest.parent / f"out{time.monotonic_ns()}"
    flags = ["--output", str(out), "--model", str(model), "--provider", "cpu", "--workers", str(workers)]
    command = [sys.executable, "-m", "housenumber", "score", str(manifest), *flags, *options]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ | _RAY)
    while process.poll() is None:
        if watch:
            watch(process.pid)
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    if process.returncode:
        raise click.ClickException(f"housenumber score ended with {process.returncode}")
    return out


def rate_between_parts(out: Path, workers: int) -> float:
    """Images per second from when each worker, on average, had written a part until the last part was there.

    So nothing that starts is counted. Every engine can be asked this; Ray's summary adds up its actors' seconds.
    """
    written = sorted((part.stat().st_mtime, pq.read_metadata(part).num_rows) for part in out.glob("part-*.parquet"))
    images: int = sum(count for _, count in written[workers:])
    return images / (written[-1][0] - written[workers - 1][0])


@contextmanager
def _ray_nodes(cores: Sequence[int]) -> Iterator[str]:
    """The address of a Ray cluster with a node of one CPU for each of these cores, which its processes are held to.

    Meanwhile the head of the cluster, and whatever else this process starts, have these cores and no others.
    """
    # Imported here: it takes seconds, and is an extra.
    from ray.cluster_utils import Cluster

    ours = os.sched_getaffinity(0)
    os.environ |= _RAY
    nodes = Cluster(shutdown_at_exit=True)
    try:
        os.sched_setaffinity(0, cores)  # children inherit it
        nodes.add_node(num_cpus=0, include_dashboard=False)
        for core in cores:
            os.sched_setaffinity(0, {core})
            nodes.add_node(num_cpus=1, object_store_memory=_OBJECT_STORE_BYTES)
        os.sched_setaffinity(0, cores)
        yield str(nodes.address)
    finally:
        os.sched_setaffinity(0, ours)
        nodes.shutdown()  # type: ignore[no-untyped-call]


def _loops(
    model: Path,
    photos: Sequence[bytes],
    images: int,
    pool: Callable[[int], Executor],
    loops: int,
    threads: int,
) -> float:
    """Images per second of so many loops at once, each with a session of so many threads."""
    with pool(loops) as executor:
        # All begin together, when all have loaded the model: a clock is what threads and processes share.
        work = partial(_loop, model, photos, images // loops, threads, time.monotonic() + _SECONDS_TO_LOAD)
        spans = list(executor.map(work, range(loops)))
    return images // loops * loops / (max(end for _, end in spans) - min(begin for begin, _ in spans))


def _processes(count: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"))


def _loop(
    model: Path, photos: Sequence[bytes], images: int, threads: int, start_at: float, index: int
) -> tuple[float, float]:
    """When it began and ended: decode, resize, session."""
    engine = OnnxEngine(model, "cpu", intra_op_threads=threads)
    size = engine.metadata.input_size
    engine.infer(np.zeros((_BATCH, *size, 3), np.uint8))
    time.sleep(max(0.0, start_at - time.monotonic()))
    begin = time.monotonic()
    for start in range(0, images, _BATCH):
        batch = []
        for number in range(start, min(start + _BATCH, images)):
            photo = Photo.open(photos[number % len(photos)], max_pixels=10**8)
            batch.append(photo.views([photo.whole], size)[0].pixels)
        engine.infer(np.stack(batch))
    return begin, time.monotonic()


if __name__ == "__main__":
    main()
