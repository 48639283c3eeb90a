"""Batch scoring: how near `housenumber score` comes to what the machine can do, and how much memory it takes.

    python -m bench.scoring speed                       local ÷ ceiling, on this machine's CPUs
    python -m bench.scoring cluster                     ray ÷ local, and two Ray nodes of one core each ÷ one
    python -m bench.scoring memory                      peak memory of 2,000 and of 20,000 images
    python -m bench.scoring memory --images 1000000     the same of 100,000 and of a million

The ceiling is the fastest of the bare loops of `bench.ceiling` on the same cores, which write nothing. The alternatives
take turns, round after round; figures are medians, of rates and of the rounds' ratios. What starts is not counted, of
neither; what is written is, but for the last of eight parts. Memory is that of all processes together, what they share
once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import click
import pyarrow.parquet as pq

from bench.ceiling import arrangements, images_per_second
from bench.images import SIZE, jpegs
from bench.processes import environment, proportional_bytes, tree
from bench.report import Figures, Row, show
from service.cpus import usable_cpus
from service.settings import DEFAULT_MODEL

_SCORE = "housenumber score"
_DISTINCT = 64
_SECONDS_BETWEEN_LOOKS = 0.2
_PARTS = 8
_OBJECT_STORE_BYTES = 128 * 2**20
# Ray's workers give way to all else by default; the head is such else, and here it has no machine of its own.
_RAY = {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
_MIB = 2**20

_model = click.option("--model", type=click.Path(exists=True, path_type=Path), default=DEFAULT_MODEL)
_workers = click.option("--workers", type=click.IntRange(min=1), default=usable_cpus, show_default="usable CPUs")
_size = click.option("--size", nargs=2, type=click.IntRange(min=8), default=SIZE, show_default=True, help="In pixels.")
_json = click.option("--json", "json_out", type=click.Path(dir_okay=False, path_type=Path))


@click.group()
def main() -> None:
    """Measure batch scoring."""


@main.command()
@_model
@_workers
@click.option("--images", type=click.IntRange(min=1), default=4000, show_default=True, help="Of a turn of the job.")
@click.option("--seconds", type=click.FloatRange(min=0.1), default=3.0, show_default=True, help="Of a loop's turn.")
@_size
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@_json
def speed(
    model: Path,
    workers: int,
    images: int,
    seconds: float,
    size: tuple[int, int],
    rounds: int,
    json_out: Path | None,
) -> None:
    """Images per second of the bare loops and of `housenumber score` with its defaults."""
    photos = jpegs(_DISTINCT, size)
    turns: dict[str, Callable[[], float]] = {
        f"loop, {arrangement}": partial(images_per_second, arrangement, model, photos, seconds)
        for arrangement in arrangements(workers)
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
    told = {"workers": workers, "images": images, "seconds": seconds, "size": size, "rounds": figures.rounds}
    show(rows, json_out, **environment(), **told)


@main.command()
@_model
@click.option("--images", type=click.IntRange(min=1), default=6000, show_default=True, help="Of each turn.")
@_size
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@_json
def cluster(model: Path, images: int, size: tuple[int, int], rounds: int, json_out: Path | None) -> None:
    """Images per second on one machine with Ray and without, and on Ray nodes that are held to a core each.

    A node is a raylet with its own processes. The driver and the head of the cluster, which many machines have one more
    for, share the cores of the nodes, be it one or two.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise click.ClickException("two nodes of one core each need two cores")
    with tempfile.TemporaryDirectory() as folder:
        manifest = _manifest(Path(folder), jpegs(_DISTINCT, size), images)

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
@_json
def memory(model: Path, workers: int, images: int, json_out: Path | None) -> None:
    """Peak memory of a job and of one with a tenth of its images."""
    photos = jpegs(_DISTINCT, (48, 32))
    rows = []
    for count in (images // 10, images):
        with tempfile.TemporaryDirectory() as folder:
            rate, peak = _scored(model, _manifest(Path(folder), photos, count), workers, look=True)
        rows += [
            Row(f"{count:,} images, peak memory", peak / _MIB, "MiB"),
            Row("    read meanwhile", rate, "images/s"),
        ]
    show(rows, json_out, **environment(), workers=workers)


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


if __name__ == "__main__":
    main()
