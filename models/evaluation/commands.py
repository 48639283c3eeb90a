"""`housenumber evaluate`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import get_args

import click
from rich import box
from rich.console import Console
from rich.table import Table

from models.data.preview import contact_sheet
from models.data.progress import progress_bar
from models.data.sample import Sample
from models.evaluation.engines import load_engine
from models.evaluation.evaluate import read_samples
from models.evaluation.html_report import html_report
from models.evaluation.options import open_data
from models.evaluation.report import COVERAGE_ACCURACY, Figures, Outcome, Report, percent
from models.evaluation.report_gallery import Galleries
from service.engine import Engine, Provider
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
@click.option(
    "--html",
    "html_out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the report for people to look at there: one HTML file, with charts and pictures of what went wrong.",
)
@click.option("--whole", is_flag=True, help="Read whole photographs: leave the regions that DATA give out of account.")
@click.option(
    "--second-look/--no-second-look",
    default=True,
    show_default=True,
    help="Whether what stands crooked is looked at twice, as in the service.",
)
@click.option(
    "--search/--no-search",
    default=True,
    show_default=True,
    help="Whether photographs that are not surely read are searched part by part, as in the service.",
)
@click.option("--provider", type=click.Choice(get_args(Provider)), default="auto", show_default=True)
@click.option("--batch-size", type=click.IntRange(min=1), default=DEFAULT_MAX_BATCH_SIZE, show_default=True)
def evaluate(
    model: Path,
    data: tuple[Path, ...],
    json_out: Path | None,
    errors_out: Path | None,
    html_out: Path | None,
    whole: bool,
    second_look: bool,
    search: bool,
    provider: Provider,
    batch_size: int,
) -> None:
    """Read every number in DATA with MODEL, through the service's own code, and say how much was right.

    MODEL is an artifact (.onnx) or weights (.safetensors). Each DATA is a directory with labels.jsonl, or shards.
    """
    opened = open_data(data)
    total = sum(part.count for part in opened)
    samples: Iterable[Sample] = chain.from_iterable(part.samples for part in opened)
    if whole:
        samples = (replace(sample, region=None) for sample in samples)
    engine = load_engine(model, provider)
    reader = Reader(engine, batch_size, second_look=second_look, search=search)
    galleries = Galleries() if html_out else None
    with progress_bar() as bar:
        outcomes, misread = _read(reader, bar.track(samples, total, description="images"), galleries)
    report = Report.of(outcomes)
    # Printed first: files that cannot be written must not cost the user the figures.
    Console().print(_table(report))
    boxes = report.overall.boxes
    if boxes and boxes.overlap is not None:
        click.echo(f"overlap of two boxes (intersection ÷ union), mean: {percent(boxes.overlap)}")
    for outcome in report.errors:
        if outcome.error:
            click.echo(f"not readable: {outcome.collection} {outcome.source}: {outcome.error}", err=True)
    described = {"file": model.name, **_described(engine)}
    asked = {
        "data": [str(path) for path in data],
        "whole_photographs": whole,
        "second_look": second_look,
        "search": search,
    }
    if json_out:
        json_out.write_text(json.dumps({"model": described, **asked, **report.to_json()}, indent=1) + "\n")
    if errors_out and misread:
        contact_sheet(misread).save(errors_out, "PNG")
    elif errors_out:
        click.echo(f"nothing was misread: {errors_out} is not written", err=True)
    if html_out and galleries:
        about = {name.replace("_", " "): str(value) for name, value in described.items()}
        about |= {"date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", "data": ", ".join(map(str, data))}
        about |= {"regions": "left out of account" if whole else "as the data give them"}
        html_out.write_text(html_report(about, report, galleries, reader), encoding="utf-8")


def _described(engine: Engine) -> dict[str, str | float]:
    metadata = engine.metadata
    return {
        "sha256": engine.sha256,
        "provider": engine.provider,
        "name": metadata.name,
        "version": metadata.version,
        "reader": metadata.reader,
        "parameters": metadata.parameters,
        "temperature": metadata.temperature,
        "threshold": metadata.threshold,
    }


def _read(reader: Reader, samples: Iterable[Sample], galleries: Galleries | None) -> tuple[list[Outcome], list[Sample]]:
    """All outcomes, and the first samples that were misread; photographs of no use to these or the galleries go."""
    outcomes: list[Outcome] = []
    misread: list[Sample] = []
    for sample, outcome in read_samples(reader, samples):
        outcomes.append(outcome)
        if galleries:
            galleries.offer(sample, outcome)
        if outcome.read is not None and not outcome.correct and len(misread) < MOST_ERRORS_SHOWN:
            misread.append(replace(sample, label=f"{sample.label or '(none)'}: {outcome.read or '(none)'}"))
    return outcomes, misread


def _table(report: Report) -> Table:
    """A row for each collection, and below it one for each length of its numbers."""
    table = Table(
        box=box.SIMPLE_HEAD,
        caption=f"right: whole numbers; coverage: the share that can be answered with {COVERAGE_ACCURACY:.0%} right",
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
    return [str(figures.n), *map(percent, shares)]
