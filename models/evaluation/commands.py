"""`housenumber evaluate`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import get_args

import click
from rich import box
from rich.console import Console
from rich.table import Table

from models.checkpoint import CheckpointError
from models.data.collections import CollectionError, count_samples, load_collection
from models.data.preview import contact_sheet
from models.data.progress import progress_bar
from models.data.sample import Sample
from models.data.shards import ShardError
from models.evaluation.checkpoint_engine import CheckpointEngine
from models.evaluation.evaluate import read_samples
from models.evaluation.report import Figures, Outcome, Report
from service.artifact import ArtifactError
from service.engine import Engine, OnnxEngine, Provider
from service.reader import DEFAULT_MAX_BATCH_SIZE, Reader

MOST_ERRORS_SHOWN = 240


@click.command()
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("data", type=click.Path(exists=True, path_type=Path), nargs=-1, required=True)
@click.option("--json", "json_out", type=click.Path(dir_okay=False, path_type=Path), help="Write the report there.")
@click.option(
    "--errors",
    "errors_out",
    type=click.Path(dir_okay=False, path_type=Path),
    help=f"Write a contact sheet (PNG) of the first {MOST_ERRORS_SHOWN} misread images there.",
)
@click.option("--provider", type=click.Choice(get_args(Provider)), default="auto", show_default=True)
@click.option("--batch-size", type=click.IntRange(min=1), default=DEFAULT_MAX_BATCH_SIZE, show_default=True)
def evaluate(
    model: Path,
    data: tuple[Path, ...],
    json_out: Path | None,
    errors_out: Path | None,
    provider: Provider,
    batch_size: int,
) -> None:
    """Read every number in DATA with MODEL, through the service's own code, and say how much was right.

    MODEL is an artifact (.onnx) or weights (.safetensors). Each DATA is a directory with labels.jsonl, or shards.
    """
    try:
        total = sum(count_samples(path) for path in data)
        samples = chain.from_iterable([load_collection(path) for path in data])
    except (CollectionError, ShardError) as error:
        raise click.UsageError(str(error)) from error
    if not total:
        raise click.UsageError(f"{', '.join(map(str, data))}: no samples")
    engine = _engine(model, provider)
    with progress_bar() as bar:
        outcomes, misread = _read(Reader(engine, batch_size), bar.track(samples, total, description="images"))
    report = Report.of(outcomes)
    # Printed first: files that cannot be written must not cost the user the figures.
    Console().print(_table(report))
    for outcome in report.errors:
        if outcome.error:
            click.echo(f"not readable: {outcome.collection} {outcome.source}: {outcome.error}", err=True)
    if json_out:
        described = {"file": model.name, "sha256": engine.sha256, "provider": engine.provider}
        json_out.write_text(json.dumps({"model": described, **report.to_json()}, indent=1) + "\n")
    if errors_out and misread:
        contact_sheet(misread).save(errors_out, "PNG")
    elif errors_out:
        click.echo(f"nothing was misread: {errors_out} is not written", err=True)


def _engine(model: Path, provider: Provider) -> Engine:
    if model.suffix == ".onnx":
        return OnnxEngine(model, provider)
    if model.suffix == ".safetensors":
        try:
            return CheckpointEngine(model, provider)
        except CheckpointError as error:
            raise ArtifactError(str(error)) from error  # for the user it is the same: a model that cannot be loaded
    raise click.UsageError(f"{model} is neither an artifact (.onnx) nor weights (.safetensors)")


def _read(reader: Reader, samples: Iterable[Sample]) -> tuple[list[Outcome], list[Sample]]:
    """All outcomes, and the first samples that were misread; the others' photographs are let go of."""
    outcomes: list[Outcome] = []
    misread: list[Sample] = []
    for sample, outcome in read_samples(reader, samples):
        outcomes.append(outcome)
        if outcome.read is not None and not outcome.correct and len(misread) < MOST_ERRORS_SHOWN:
            misread.append(replace(sample, label=f"{sample.label}: {outcome.read or '(none)'}"))
    return outcomes, misread


def _table(report: Report) -> Table:
    """A row for each collection, and below it one for each length of its numbers."""
    table = Table(
        box=box.SIMPLE_HEAD,
        caption="right: whole numbers; coverage: the share that can be answered with 98 % right",
    )
    table.add_column("collection", no_wrap=True)
    for heading in ("images", "right", "digits right", "confidence", "coverage"):
        table.add_column(heading, justify="right")
    for name, breakdown in [*report.collections.items(), ("all", report.overall)]:
        table.add_row(name, *_cells(breakdown.total), style="bold")
        for length, figures in breakdown.by_length.items():
            table.add_row(f"  {length} digit{'s' * (length != 1)}", *_cells(figures))
        table.add_section()
    return table


def _cells(figures: Figures) -> list[str]:
    shares = (figures.accuracy, figures.digit_accuracy, figures.mean_confidence, figures.coverage)
    return [str(figures.n), *(f"{share:.1%}" for share in shares)]
