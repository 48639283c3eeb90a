"""`housenumber calibrate`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import get_args

import click
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from models.data.progress import progress_bar
from models.data.sample import Sample
from models.evaluation.calibration import Answers, Calibration, calibrate
from models.evaluation.confidence import Acceptance, CalibrationError
from models.evaluation.engines import RecordingEngine, load_engine
from models.evaluation.evaluate import read_samples
from models.evaluation.options import finite, open_data
from models.evaluation.report import COVERAGE_ACCURACY, percent
from models.files import replacing
from service.engine import Provider
from service.reader import DEFAULT_MAX_BATCH_SIZE, Reader


def _weights(context: click.Context, parameter: click.Parameter, value: Path) -> Path:
    if value.suffix != ".safetensors":
        raise click.BadParameter(f"{value} does not end in .safetensors: an artifact's temperature is in its graph")
    return value


@click.command("calibrate")
@click.argument("weights", type=click.Path(exists=True, dir_okay=False, path_type=Path), callback=_weights)
@click.argument("data", type=click.Path(exists=True, path_type=Path), nargs=-1, required=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The JSON file to write.")
@click.option(
    "--accuracy",
    type=click.FloatRange(0, 1, min_open=True),
    default=COVERAGE_ACCURACY,
    show_default=True,
    callback=finite,
    help="Share of the accepted readings that are to be right.",
)
@click.option("--provider", type=click.Choice(get_args(Provider)), default="auto", show_default=True)
@click.option("--batch-size", type=click.IntRange(min=1), default=DEFAULT_MAX_BATCH_SIZE, show_default=True)
def calibrate_command(
    weights: Path,
    data: tuple[Path, ...],
    out: Path,
    accuracy: float,
    provider: Provider,
    batch_size: int,
) -> None:
    """Fit the temperature and the threshold of WEIGHTS (.safetensors) on DATA it was not trained on.

    Each DATA path is a directory with labels.jsonl, or shards, and counts the same, whatever its size. The temperature
    makes readings as likely to be right as they claim to be; the threshold is the smallest confidence from which
    --accuracy of the accepted readings are right. "Held out" in the table: each half of the data measured with what
    the other half gave.

    `housenumber export --calibration` takes the file.
    """
    opened = open_data(data)
    engine = RecordingEngine(load_engine(weights, provider))
    # What is fitted is the network's own confidence, in one answer for each image.
    reader = Reader(engine, batch_size, second_look=False, search=False)
    with progress_bar() as bar:
        answers = [
            _answers(part.path, reader, engine, bar.track(part.samples, part.count, description="images"))
            for part in opened
        ]
    try:
        calibration = calibrate(answers, engine.sha256, accuracy)
    except CalibrationError as error:
        raise click.ClickException(str(error)) from error
    Console().print(_fits(calibration))
    Console().print(_acceptances(calibration))
    if calibration.held_out is None:
        click.echo("held out: not determined by half of the data")
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as unfinished:
        unfinished.write_text(calibration.model_dump_json(indent=1) + "\n")


def _answers(path: Path, reader: Reader, engine: RecordingEngine, samples: Iterable[Sample]) -> Answers:
    outcomes = [outcome for _, outcome in read_samples(reader, samples)]
    read = [outcome for outcome in outcomes if outcome.read is not None]
    return Answers(
        name=path.resolve().name,
        probabilities=engine.take(),
        labels=tuple(outcome.label for outcome in read),
        sources=tuple(outcome.source for outcome in read),
        unreadable=len(outcomes) - len(read),
    )


def _fits(calibration: Calibration) -> Table:
    """Calibration error and log-loss, before and after."""
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("", "temperature", "calibration error", "log-loss"):
        table.add_column(heading, justify="right" if heading else "left")
    rows = [("before", "1", calibration.before), ("after", f"{calibration.temperature:.3f}", calibration.after)]
    if held_out := calibration.held_out:
        rows.append(("held out", ", ".join(f"{value:.3f}" for value in held_out.temperatures), held_out.fit))
    for name, temperature, fit in rows:
        table.add_row(name, temperature, f"{fit.ece:.2%}", f"{fit.log_loss:.4f}")
    return table


def _acceptances(calibration: Calibration) -> Table:
    """What the threshold does, by path and in all."""
    table = Table(
        box=box.SIMPLE_HEAD,
        caption="accepted: of the images with a number; accepted right: of all accepted, false numbers included;"
        " false numbers: accepted of the images without one",
    )
    table.add_column("")
    for heading in ("images", "right", "threshold", "accepted", "accepted right", "false numbers"):
        table.add_column(heading, justify="right")

    def row(name: str, images: str, right: str, threshold: str, acceptance: Acceptance) -> None:
        shares = (acceptance.accepted, acceptance.accepted_right, acceptance.false_numbers)
        table.add_row(name, images, right, threshold, *map(percent, shares))

    for part in calibration.data:
        row(part.name, str(part.samples), f"{part.right:.1%}", "", part.acceptance)
    parts = calibration.data
    right = float(np.mean([part.right for part in parts]))
    images = str(sum(part.samples for part in parts))
    row("all, each path the same", images, f"{right:.1%}", f"{calibration.threshold:.3f}", calibration.acceptance)
    if held_out := calibration.held_out:
        thresholds = ", ".join(f"{value:.3f}" for value in held_out.thresholds)
        row("all, held out", images, f"{right:.1%}", thresholds, held_out.acceptance)
    return table
