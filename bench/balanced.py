"""Overload before and behind the load balancer: what a reader reads when three times as much is sent.

    python -m bench.balanced --json balanced.json

One reader; the balancer is HAProxy with the file that ships, told where the reader is instead of asking DNS. The
reader has the first CPU, and the load generator shares the last one with the balancer. Sent straight to the reader,
what is too much is refused there, on the CPU that reads; the balancer keeps it waiting, `maxconn` requests at a time
inside.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from pathlib import Path

import click

from bench.load import Load, offer, saturate
from bench.processes import Server, environment, free_port, serving
from bench.report import Figures, Row, show
from bench.service import BODIES, CONNECTIONS, OVERLOAD, OVERLOAD_CONNECTIONS, WARM_S
from service.settings import DEFAULT_MODEL

CONFIGURATION = Path(__file__).resolve().parent.parent / "deploy/haproxy/haproxy.cfg"
WAITING_CONNECTIONS = 3000
"""More than the balancer answers within its `timeout queue`, so that it refuses what is left."""
HEADROOM = 100


@click.command()
@click.option("--model", type=click.Path(exists=True, path_type=Path), default=DEFAULT_MODEL)
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--seconds", type=click.FloatRange(min=0.1), default=10.0, show_default=True, help="Of each turn.")
@click.option("--json", "json_out", type=click.Path(dir_okay=False, path_type=Path))
def main(model: Path, rounds: int, seconds: float, json_out: Path | None) -> None:
    """Measure overload of one reader, straight and through the balancer."""
    if _haproxy() is None:
        raise click.UsageError("haproxy is not installed; on Debian: apt-get install haproxy")
    *first, last = sorted(os.sched_getaffinity(0))
    if not first:
        raise click.UsageError("it takes two CPUs: one for the reader, one for the load generator and the balancer")
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))  # the generator's and the balancer's too
    queue_s = _queue_s()
    figures, begun = Figures(), environment()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        generator = stack.enter_context(ProcessPoolExecutor(1, get_context("spawn"), os.sched_setaffinity, (0, [last])))
        os.sched_setaffinity(0, first[:1])
        server = stack.enter_context(
            serving(["housenumber", "serve", "--provider", "cpu", "--model", str(model)], folder / "reader.log")
        )
        os.sched_setaffinity(0, [last])
        balancer = stack.enter_context(balancing(server.port, folder))
        for each in (server, balancer):
            each.wait_until_ready()

        def run(kind: Callable[..., Load], port: int, **options: float) -> Load:
            return generator.submit(kind, port, BODIES[1], seconds=seconds, **options).result()

        # With the connections that an overload comes over, and the seconds until the queues are full.
        ways = (
            ("straight", server.port, OVERLOAD_CONNECTIONS, 1.0),
            ("balanced", balancer.port, WAITING_CONNECTIONS, queue_s),
        )
        for turn in range(rounds):
            click.echo(f"round {turn + 1} of {rounds}", err=True)
            for name, port, _, _ in ways:
                load = run(saturate, port, connections=CONNECTIONS[1], warm_s=WARM_S)
                figures.note(f"{name}: saturation", load.good)
            most = figures.rounds["straight: saturation"][-1]
            for name, port, connections, fill_s in ways:
                load = run(offer, port, rate=OVERLOAD * most, connections=connections, warm_s=fill_s + WARM_S)
                _note(figures, name, load, most)
                server.wait_until_idle()
    show(
        _rows(figures, queue_s),
        json_out,
        environment=begun,
        options={"model": model.name, "rounds": rounds, "seconds": seconds},
        rounds=figures.rounds,
    )


def _queue_s() -> float:
    """How long the balancer lets a request wait, in seconds."""
    found = re.search(r"timeout queue (\d+)s", CONFIGURATION.read_text())
    assert found is not None
    return float(found[1])


def _haproxy() -> str | None:
    """Its path; Debian has it where only root looks."""
    return shutil.which("haproxy", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")


@contextmanager
def balancing(port_of_reader: int, folder: Path) -> Iterator[Server]:
    """HAProxy before one reader, whose `/readyz` is its own; its files are in `folder`."""
    shipped = CONFIGURATION.read_text()
    told = re.sub(r"server-template .*", f"server reader 127.0.0.1:{port_of_reader}", shipped)
    told = told.replace(" resolvers dns resolve-prefer ipv4 init-addr none", "")
    assert told.count("\n") == shipped.count("\n")
    configuration = folder / "haproxy.cfg"
    configuration.write_text(told)
    port, log = free_port(), folder / "haproxy.log"
    variables = {
        "LISTEN": f"127.0.0.1:{port}",
        "INSIDE": f"127.0.0.1:{free_port()}",
        "MAX_CONNECTIONS": str(WAITING_CONNECTIONS + HEADROOM),
    }
    program = _haproxy()
    assert program is not None
    with log.open("wb") as output:
        popen = subprocess.Popen(
            [program, "-f", str(configuration)],
            env={**os.environ, **variables},
            stdout=subprocess.DEVNULL,
            stderr=output,
        )
    try:
        yield Server(popen, port, log)
    finally:
        popen.terminate()
        popen.wait()


def _note(figures: Figures, name: str, load: Load, most: float) -> None:
    answered = load.answers.total()
    figures.note(f"{name}: goodput", load.good / most)
    figures.note(f"{name}: p99", load.quantile(0.99))
    figures.note(f"{name}: refused", (answered - load.answers[200]) / answered)
    figures.note(f"{name}: unsent", load.unsent / (answered + load.unsent))
    figures.note(f"{name}: broken", load.broken)


def _rows(figures: Figures, queue_s: float) -> list[Row]:
    rows = []
    for name in ("straight", "balanced"):
        rows += [
            Row(f"{name}: saturation", figures.median(f"{name}: saturation"), "images/s"),
            Row(f"    goodput at {OVERLOAD} x ÷ straight", figures.median(f"{name}: goodput"), least=0.9),
            Row("    99 % of the accepted within", figures.median(f"{name}: p99"), "s"),
            Row("    refused, of those answered", figures.median(f"{name}: refused")),
            Row("    unsent: no connection was free", figures.median(f"{name}: unsent")),
            Row("    connections that broke", figures.median(f"{name}: broken"), most=0),
        ]
    return [*rows, Row("    longest wait at the balancer", queue_s, "s")]


if __name__ == "__main__":
    main()
