"""What searches cost: the service with them beside the service without, on photographs of which most are searched.

    python -m bench.searches --rounds 5 --json searches.json

Both take turns, round after round; ratios are of figures of one round, and what is shown is the median of the rounds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path

import click
from prometheus_client.parser import text_string_to_metric_families

from bench.images import jpegs
from bench.load import Load, offer, post, saturate, send
from bench.processes import Server, environment, serving
from bench.report import Figures, Row, show
from bench.service import CONNECTIONS, MIB, OVERLOAD, OVERLOAD_CONNECTIONS

# A number is 13 pixels high in the view of the whole: of 32 photographs 24 are searched.
REQUESTS = [post("/predict", photograph, "image/jpeg") for photograph in jpegs(32, (1280, 960), share=0.1)]
KINDS = {"searching": [], "not searching": ["--search", "false"]}
WARM_S = 1.0


@click.command()
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--seconds", type=click.FloatRange(min=0.1), default=5.0, show_default=True, help="Of each turn.")
@click.option("--requests", type=click.IntRange(min=1), default=5_000, show_default=True, help="To see memory grow.")
@click.option("--json", "json_out", type=click.Path(dir_okay=False, path_type=Path))
def main(rounds: int, seconds: float, requests: int, json_out: Path | None) -> None:
    """Measure one process of the service with its default settings, on this machine's CPUs."""
    begun = environment()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bench = Bench(stack.enter_context(ProcessPoolExecutor(1, get_context("spawn"))))
        servers = {
            kind: stack.enter_context(
                serving(["housenumber", "serve", "--provider", "cpu", *flags], folder / f"{kind}.log")
            )
            for kind, flags in KINDS.items()
        }
        for server in servers.values():
            server.wait_until_ready()
        for turn in range(rounds):
            click.echo(f"round {turn + 1} of {rounds}", err=True)
            for kind, server in servers.items():
                bench.measure_throughput(server, kind, seconds)
            bench.measure_overload(servers["searching"], seconds)
        bench.measure_memory(servers["searching"], requests)
    show(
        _rows(bench.figures, requests),
        json_out,
        environment=begun,
        options={"rounds": rounds, "seconds": seconds, "connections": CONNECTIONS[1]},
        rounds=bench.figures.rounds,
    )


class Bench:
    """Notes figures under names that `_rows` reads."""

    def __init__(self, generator: ProcessPoolExecutor) -> None:
        self.figures = Figures()
        self._generator = generator

    def measure_throughput(self, server: Server, kind: str, seconds: float) -> None:
        load = self._run(kind, saturate, server, connections=CONNECTIONS[1], warm_s=WARM_S, seconds=seconds)
        self.figures.note(kind, load.good)
        self.figures.note(f"{kind}: 99 %", load.quantile(0.99) * 1000)

    def measure_overload(self, server: Server, seconds: float) -> None:
        """Requests at OVERLOAD times the rate of the saturation that was measured last."""
        most = self.figures.rounds["searching"][-1]
        load = self._run(
            "overload",
            offer,
            server,
            rate=OVERLOAD * most,
            connections=OVERLOAD_CONNECTIONS,
            warm_s=WARM_S,
            seconds=seconds,
        )
        server.wait_until_idle()
        self.figures.note("overload: goodput", load.good / most)
        self.figures.note("overload: 99 %", load.quantile(0.99) * 1000)

    def measure_memory(self, server: Server, requests: int) -> None:
        """MiB after the turns, and after so many more requests."""
        self.figures.note("memory", server.memory_bytes / MIB)
        self._run("soak", send, server, connections=CONNECTIONS[1], count=requests)
        self.figures.note("memory, at the end", server.memory_bytes / MIB)

    def _run(self, name: str, kind: Callable[..., Load], server: Server, **options: float) -> Load:
        """Notes what became of the searches, and how many requests were neither answered with 200 nor refused."""
        before = _searches(server)
        load: Load = self._generator.submit(kind, server.port, REQUESTS, **options).result()
        outcomes = {outcome: count - before[outcome] for outcome, count in _searches(server).items()}
        if total := sum(outcomes.values()):
            self.figures.note(f"{name}: given up", 100 * outcomes["given_up"] / total)
        failed = load.answers.total() - load.answers[200] - load.answers[503]
        self.figures.note("failed", failed + load.broken)
        return load


def _searches(server: Server) -> dict[str, float]:
    """How many there were, by what came of them."""
    return {
        sample.labels["outcome"]: sample.value
        for family in text_string_to_metric_families(server.get("/metrics")[1].decode())
        for sample in family.samples
        if sample.name == "housenumber_searches_total"
    }


def _rows(figures: Figures, requests: int) -> list[Row]:
    return [
        Row("searching", figures.median("searching"), "images/s"),
        Row("    ÷ not searching", figures.ratio("searching", "not searching")),
        Row("    99 % answered within", figures.median("searching: 99 %"), "ms"),
        Row("    searches given up", figures.median("searching: given up"), "%"),
        Row("not searching", figures.median("not searching"), "images/s"),
        Row(f"{OVERLOAD} times as many as are searched: goodput ÷ saturation", figures.median("overload: goodput")),
        Row("    99 % of the accepted within", figures.median("overload: 99 %"), "ms"),
        Row("    searches given up", figures.median("overload: given up"), "%"),
        Row("requests neither answered nor refused with 503", sum(figures.rounds["failed"]), most=0),
        Row("memory after all that", figures.median("memory"), "MiB", most=400),
        Row(f"    {requests} requests later", figures.median("memory, at the end"), "MiB", most=400),
    ]


if __name__ == "__main__":
    main()
