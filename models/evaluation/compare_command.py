"""`housenumber compare`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import chain, tee
from pathlib import Path
from typing import get_args

import click
from rich import box
from rich.console import Console
from rich.table import Table

from models.data.progress import progress_bar
from models.data.sample import Sample
from models.evaluation.comparison import LEAST_SAMPLES, SIGNIFICANCE, Comparison, Duel, Pair, Side
from models.evaluation.engines import load_engine
from models.evaluation.evaluate import read_samples
from models.evaluation.options import finite, open_data
from models.evaluation.report import COVERAGE_ACCURACY, percent
from service.engine import Provider
from service.reader import DEFAULT_MAX_BATCH_SIZE, Reader

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(
    epilog=f"The candidate is worse when, in a collection of at least {LEAST_SAMPLES} images, it has lost more than"
    f" the tolerance and McNemar's exact test gives p < {SIGNIFICANCE}; or when it has fewer right over all images"
    f" with p < {SIGNIFICANCE}, whatever the tolerance. Smaller losses happen by chance. What the readers"
    " accept is shown, and has no part in this."
)
@click.argument("candidate", type=_FILE)
@click.argument("shipped", type=_FILE)
@click.argument("data", type=click.Path(exists=True, path_type=Path), nargs=-1, required=True)
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 1),
    default=0.02,
    show_default=True,
    callback=finite,
    help="Share of a collection that the candidate may lose.",
)
@click.option("--json", "json_out", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures there.")
@click.option("--provider", type=click.Choice(get_args(Provider)), default="auto", show_default=True)
@click.option("--batch-size", type=click.IntRange(min=1), default=DEFAULT_MAX_BATCH_SIZE, show_default=True)
def compare(
    candidate: Path,
    shipped: Path,
    data: tuple[Path, ...],
    tolerance: float,
    json_out: Path | None,
    provider: Provider,
    batch_size: int,
) -> None:
    """Check that CANDIDATE reads DATA as well as SHIPPED does; the exit code is 1 when it is worse.

    Both are artifacts (.onnx) or weights (.safetensors), and read the same photographs through the service's own code.
    Each DATA is a directory with labels.jsonl, or shards.
    """
    opened = open_data(data)
    total = sum(part.count for part in opened)
    samples = chain.from_iterable(part.samples for part in opened)
    engines = [load_engine(model, provider) for model in (candidate, shipped)]
    readers = [Reader(engine, batch_size) for engine in engines]
    with progress_bar() as bar:
        comparison = Comparison.of(_pairs(readers, bar.track(samples, total, description="images")), tolerance)
    Console().print(_table(comparison))
    if json_out:
        models = {
            role: {"file": path.name, "sha256": engine.sha256}
            for role, path, engine in zip(("candidate", "shipped"), (candidate, shipped), engines, strict=True)
        }
        json_out.write_text(json.dumps({**models, **comparison.to_json()}, indent=1) + "\n")
    if comparison.worse:
        click.echo(f"{candidate} is worse than {shipped}: {', '.join(comparison.worse)}", err=True)
        raise click.exceptions.Exit(1)


def _pairs(readers: list[Reader], samples: Iterable[Sample]) -> Iterator[Pair]:
    """Both readers go through the samples in step, so that no more than a batch is in memory."""
    first, second = (read_samples(reader, stream) for reader, stream in zip(readers, tee(samples), strict=True))
    for (_, candidate), (_, shipped) in zip(first, second, strict=True):
        yield candidate, shipped


def _table(comparison: Comparison) -> Table:
    """Two rows for each collection: candidate above shipped."""
    table = Table(
        box=box.SIMPLE_HEAD,
        caption="right: whole numbers; only: right where the other is not; p: McNemar's exact test;"
        f" coverage: the share that can be answered with {COVERAGE_ACCURACY:.0%} right;"
        " accepted: of the images with a number; accepted right: of all accepted, false numbers included;"
        " false numbers: accepted of the images without one",
    )
    table.add_column("collection", no_wrap=True)
    table.add_column("images", justify="right")
    table.add_column("reader", no_wrap=True)
    for heading in ("right", "only", "p", "coverage", "accepted", "accepted right", "false numbers"):
        table.add_column(heading, justify="right")
    for name, duel in [*comparison.collections.items(), ("all", comparison.overall)]:
        style = "red" if name in comparison.worse else None
        table.add_row(name, str(duel.n), "candidate", *_cells(duel.candidate, duel, duel.only_candidate), style=style)
        table.add_row("", "", "shipped", *_cells(duel.shipped, duel, duel.only_shipped), style=style, end_section=True)
    return table


def _cells(side: Side, duel: Duel, only: int) -> list[str]:
    acceptance = side.acceptance
    shares = (side.coverage, acceptance.accepted, acceptance.accepted_right, acceptance.false_numbers)
    return [f"{side.right / duel.n:.1%}", str(only), f"{duel.p:.3f}", *map(percent, shares)]
