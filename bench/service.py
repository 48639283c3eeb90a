"""The service over HTTP against what the cores could do, and against a plain endpoint.

    make bench        (or: python -m bench.service --rounds 5 --json service.json)

The alternatives take turns, round after round, so that whatever else the machine does falls on all of them; ratios are
of figures of one round, and what is shown is the median of the rounds. The load generator runs on the same cores: what
it takes is lost to the service, and stands in the table. With `--apart` it has a CPU of its own, and the service and
the ceiling share the others. Targets that are missed stand in the table too.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from http.client import HTTPConnection
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click

from bench.ceiling import arrangements, images_per_second
from bench.images import jpegs, multipart
from bench.load import Load, offer, post, saturate, send
from bench.processes import Server, environment, serving
from bench.report import Figures, Row, show
from service.cpus import usable_cpus
from service.settings import DEFAULT_MODEL, Settings

PHOTOGRAPHS = jpegs(8)
_BOUNDARY = "bench-5f1c"
BODIES = {
    1: [post("/predict", photograph, "image/jpeg") for photograph in PHOTOGRAPHS],
    32: [post("/predict", multipart(PHOTOGRAPHS * 4, _BOUNDARY), f"multipart/form-data; boundary={_BOUNDARY}")],
}
"""Requests, by the images in each."""
CONNECTIONS = {1: 32, 32: 8}
"""8 requests of 32 images are as many as may wait."""
OVERLOAD = 3
OVERLOAD_CONNECTIONS = 800
"""More than there are requests inside; what is refused frees its connection at once."""
LONE_REQUESTS = 200
FIRST_REQUESTS = 10_000
"""After these its memory has settled: it grows by 5 MiB between 1,000 and 10,000, and by 3 in 200,000 more."""
WARM_S = 0.5
MIB = 2**20


@click.command()
@click.option("--model", type=click.Path(exists=True, path_type=Path), default=DEFAULT_MODEL)
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--seconds", type=click.FloatRange(min=0.1), default=3.0, show_default=True, help="Of each turn.")
@click.option("--workers", multiple=True, type=click.IntRange(min=1), default=(1, 2), show_default=True)
@click.option("--requests", type=click.IntRange(min=1), default=20_000, show_default=True, help="To see memory grow.")
@click.option("--apart", is_flag=True, help="Leave the last CPU to the load generator.")
@click.option("--json", "json_out", type=click.Path(dir_okay=False, path_type=Path))
def main(
    model: Path,
    rounds: int,
    seconds: float,
    workers: tuple[int, ...],
    requests: int,
    apart: bool,
    json_out: Path | None,
) -> None:
    """Measure the service with its default settings, on this machine's CPUs."""
    hold_generator: tuple[Any, ...] = ()
    if apart:
        *others, last = sorted(os.sched_getaffinity(0))
        if not others:
            raise click.UsageError("--apart needs two CPUs: one for the load generator, the others for the service")
        os.sched_setaffinity(0, others)  # and so for what is started from here
        hold_generator = (os.sched_setaffinity, (0, [last]))
    begun = environment()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        generator = stack.enter_context(ProcessPoolExecutor(1, get_context("spawn"), *hold_generator))
        bench = Bench(model, generator, folder, seconds)
        bench.measure_memory(requests)
        servers = {
            (kind, count): stack.enter_context(serving(bench.command(kind, count), folder / f"{kind}-{count}.log"))
            for count in workers
            for kind in ("service", "plain")
        }
        for server in servers.values():
            server.wait_until_ready()
        for turn in range(rounds):
            click.echo(f"round {turn + 1} of {rounds}", err=True)
            bench.measure_start()
            bench.measure_ceiling()
            for (kind, count), server in servers.items():
                for images in BODIES:
                    bench.measure_throughput(server, f"{kind}, {count} workers", images)
            for kind in ("service", "plain"):
                bench.measure_lone_client(servers[kind, workers[0]], kind)
                bench.measure_overload(servers[kind, workers[0]], kind, f"{kind}, {workers[0]} workers")
    show(
        _rows(bench.figures, workers, requests),
        json_out,
        environment=begun,
        load_average_at_the_end=environment()["load_average"],
        options={"model": model.name, "rounds": rounds, "seconds": seconds, "apart": apart, "connections": CONNECTIONS},
        rounds=bench.figures.rounds,
    )


class Bench:
    """Notes figures under names that `_rows` reads."""

    def __init__(self, model: Path, generator: ProcessPoolExecutor, folder: Path, seconds: float) -> None:
        self.figures = Figures()
        self._model = model
        self._generator = generator
        self._folder = folder
        self._seconds = seconds

    def command(self, kind: str, workers: int) -> list[str]:
        """With one worker, as it is without saying how many."""
        program = ["housenumber", "serve", "--provider", "cpu"] if kind == "service" else ["bench.plain"]
        return [*program, "--model", str(self._model), *(["--workers", str(workers)] if workers > 1 else [])]

    def measure_start(self) -> None:
        """Seconds from the start of the process until it is ready."""
        began = time.perf_counter()
        with serving(self.command("service", 1), self._folder / "start.log") as server:
            server.wait_until_ready()
            self.figures.note("start", time.perf_counter() - began)

    def measure_ceiling(self) -> None:
        for arrangement in arrangements(usable_cpus()):
            rate = images_per_second(arrangement, self._model, PHOTOGRAPHS, self._seconds)
            self.figures.note(f"ceiling, {arrangement}", rate)

    def measure_throughput(self, server: Server, name: str, images: int) -> None:
        """Images per second, and milliseconds of CPU per image in the server and in the load generator."""
        busy, began = server.cpu_s, time.perf_counter()
        load = self._run(
            saturate, server, images, connections=CONNECTIONS[images], warm_s=WARM_S, seconds=self._seconds
        )
        busy_share = (server.cpu_s - busy) / (time.perf_counter() - began)
        rate = load.good * images
        self.figures.note(f"{name}, {images} per request", rate)
        self.figures.note(f"{name}, {images} per request: server CPU", busy_share / rate * 1000)
        self.figures.note(f"{name}, {images} per request: generator CPU", load.cpu_s / load.seconds / rate * 1000)
        self.figures.note(f"{name}, {images} per request: failed", load.answers.total() - load.answers[200])

    def measure_overload(self, server: Server, kind: str, name: str) -> None:
        """Requests of one image at OVERLOAD times the rate of the saturation that was measured last."""
        most = self.figures.rounds[f"{name}, 1 per request"][-1]
        load = self._run(
            offer,
            server,
            1,
            rate=OVERLOAD * most,
            connections=OVERLOAD_CONNECTIONS,
            warm_s=1 + WARM_S,  # until the queues are full
            seconds=self._seconds,
        )
        server.wait_until_idle()
        self.figures.note(f"overload, {kind}: offered", (load.answers.total() + load.unsent) / load.seconds / most)
        self.figures.note(f"overload, {kind}: goodput", load.good / most)
        self.figures.note(f"overload, {kind}: p50", load.quantile(0.5) * 1000)
        self.figures.note(f"overload, {kind}: p99", load.quantile(0.99) * 1000)
        self.figures.note(f"overload, {kind}: unsent", load.unsent / (load.answers.total() + load.unsent))
        # What may wait and the batches before it, at the rate at which images are read when nobody is refused.
        inside = Settings().max_queue_images + Settings().max_batch_size * usable_cpus()
        self.figures.note(f"overload, {kind}: p99 / limit", load.quantile(0.99) * most / inside)

    def measure_lone_client(self, server: Server, kind: str) -> None:
        """Milliseconds of one request after the other, as the client sees them and as the answers say."""
        load = self._run(send, server, 1, connections=1, count=LONE_REQUESTS)
        self.figures.note(f"lone client, {kind}", load.quantile(0.5) * 1000)
        if kind == "service":
            timings = _timings(server.port)
            added = [timing["total"] - timing["decode"] - timing["inference"] for timing in timings]
            self.figures.note("lone client: added in the service", statistics.median(added))

    def measure_memory(self, requests: int) -> None:
        """MiB of a process when it is ready, after its first requests, and after so many more."""
        with serving(self.command("service", 1), self._folder / "memory.log") as server:
            server.wait_until_ready()
            self.figures.note("memory, ready", server.memory_bytes / MIB)
            self._run(send, server, 1, connections=CONNECTIONS[1], count=FIRST_REQUESTS)
            self.figures.note("memory, warm", server.memory_bytes / MIB)
            self._run(send, server, 1, connections=CONNECTIONS[1], count=requests)
            self.figures.note("memory, at the end", server.memory_bytes / MIB)

    def _run(self, kind: Callable[..., Load], server: Server, images: int, **options: float) -> Load:
        load = self._generator.submit(kind, server.port, BODIES[images], **options).result()
        if load.broken:
            raise click.ClickException(f"{load.broken} connections broke off; the server's log:\n{server.log_tail}")
        return load


def _timings(port: int) -> list[dict[str, float]]:
    connection = HTTPConnection("127.0.0.1", port)
    timings = []
    for index in range(LONE_REQUESTS):
        connection.request("POST", "/predict", PHOTOGRAPHS[index % len(PHOTOGRAPHS)])
        timings.append(json.loads(connection.getresponse().read())["timing_ms"])
    connection.close()
    return timings


def _rows(figures: Figures, workers: Sequence[int], requests: int) -> list[Row]:
    ceilings = [f"ceiling, {arrangement}" for arrangement in arrangements(usable_cpus())]
    ceiling = max(ceilings, key=figures.median)
    rows = [Row(name, figures.median(name), "images/s") for name in ceilings]
    for count in workers:
        for images, least in ((1, 0.8), (32, 0.95)):
            ours, plain = (f"{kind}, {count} workers, {images} per request" for kind in ("service", "plain"))
            server_ms, generator_ms = (figures.median(f"{ours}: {who} CPU") for who in ("server", "generator"))
            rows += [
                Row(ours, figures.median(ours), "images/s"),
                Row("    ÷ ceiling", figures.ratio(ours, ceiling), least=least),
                Row("    ÷ plain endpoint", figures.ratio(ours, plain)),
                Row("    CPU per image, service", server_ms, "ms"),
                Row("    CPU per image, load generator", generator_ms, "ms"),
                Row("    CPU per image, ceiling", 1000 * usable_cpus() / figures.median(ceiling), "ms"),
                Row("    requests not answered with 200", sum(figures.rounds[f"{ours}: failed"]), most=0),
            ]
    for kind in ("service", "plain"):
        target = 0.9 if kind == "service" else None
        name = f"overload, {kind}"
        rows += [
            Row(f"{name}: offered ÷ saturation", figures.median(f"{name}: offered")),
            Row("    not sent for want of a free connection", figures.median(f"{name}: unsent")),
            Row("    goodput ÷ saturation", figures.median(f"{name}: goodput"), least=target),
            Row("    accepted, median", figures.median(f"{name}: p50"), "ms"),
            Row("    accepted, 99 %", figures.median(f"{name}: p99"), "ms"),
        ]
    rows += [
        Row("    service: 99 % ÷ what a full queue takes", figures.median("overload, service: p99 / limit"), most=1.0),
        Row("lone client, service", figures.median("lone client, service"), "ms"),
        Row("    total - decode - inference", figures.median("lone client: added in the service"), "ms", most=1.0),
        Row("lone client, plain endpoint", figures.median("lone client, plain"), "ms"),
        Row("memory of a process, ready", figures.median("memory, ready"), "MiB", most=400),
        Row(f"    after {FIRST_REQUESTS} requests", figures.median("memory, warm"), "MiB", most=400),
        Row(f"    {requests} requests later", figures.median("memory, at the end"), "MiB", most=400),
        Row("    growth over these", 100 * (figures.ratio("memory, at the end", "memory, warm") - 1), "%", most=2),
        Row("start to ready", figures.median("start"), "s", most=3.0),
    ]
    return rows


if __name__ == "__main__":
    main()
