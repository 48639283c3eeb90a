"""`housenumber score`: the command line of batch scoring."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from types import FrameType
from typing import get_args

import click
from rich.console import Console

from service import logs
from service.commands import read_settings
from service.cpus import usable_cpus
from service.engine import OnnxEngine, Provider
from service.exit_codes import EXIT_MODEL
from service.reader import Reader
from service.schemas import ModelInfo
from service.scoring.core import Answers, Scorer
from service.scoring.dry_run import dry_run
from service.scoring.inputs import InputError, parse_input
from service.scoring.job import Ask, JobError, finish_job, open_job
from service.scoring.local import local_engine
from service.scoring.lock import locked
from service.scoring.progress import observer
from service.scoring.records import Columns
from service.scoring.run import ErrorRateError, run
from service.scoring.transfers import StorageError

logger = logging.getLogger(__name__)

EXIT_STOPPED, EXIT_REFUSED = 1, 2


@click.command(
    short_help="Read many images into a Parquet dataset.",
    epilog=f"Exit codes: 0 everything is read; {EXIT_STOPPED} stopped (too many errors, or a storage fails), and the"
    f" same command goes on; {EXIT_REFUSED} wrong usage, an input that cannot be read, or an output that belongs to"
    f" another job; {EXIT_MODEL} the model cannot be loaded or the provider cannot run it; 130, 143 interrupted by"
    " Ctrl-C or SIGTERM after the part in hand, and the same command goes on.",
)
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@click.option("--output", "out", required=True, metavar="OUT", help="Folder or URL of the dataset: new, or begun.")
@click.option(
    "--engine", type=click.Choice(["local"]), default="local", show_default=True, help="Who reads: this machine."
)
@click.option("--model", help="Artifact to read with, an .onnx file. [default: the one that comes along]")
@click.option("--provider", type=click.Choice(get_args(Provider)), help="What runs the model. [default: auto]")
@click.option(
    "--min-confidence", type=click.FloatRange(0, 1), help="Accept from this confidence on. [default: the model's]"
)
@click.option("--boxes/--no-boxes", default=True, show_default=True, help="Whether to write what was looked at.")
@click.option("--limit", type=click.IntRange(min=1), help="Read this many images and no more.")
@click.option(
    "--sample",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="Read this share of the images; which ones, their ids decide.",
)
@click.option(
    "--max-error-rate",
    type=click.FloatRange(0, 1),
    default=0.05,
    show_default=True,
    help="Stop when a larger share of the rows has an error.",
)
@click.option("--part-size", type=click.IntRange(min=1), default=10_000, show_default=True, help="Images per file.")
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="Images the model is given at once."
)
@click.option("--workers", type=click.IntRange(min=1), help="Batches computed at once. [default: the usable CPUs]")
@click.option("--path-column", default="path", show_default=True, help="A manifest's column of paths or URLs.")
@click.option("--bytes-column", default="bytes", show_default=True, help="A manifest's column of encoded images.")
@click.option("--id-column", default="id", show_default=True, help="A manifest's column of ids.")
@click.option("--regions-column", default="regions", show_default=True, help="A manifest's column of regions.")
@click.option("--dry-run", "dry", is_flag=True, help="Say what would be read, how much and how long; write nothing.")
@click.pass_context
def score(
    ctx: click.Context,
    inputs: tuple[str, ...],
    out: str,
    engine: str,
    model: str | None,
    provider: str | None,
    min_confidence: float | None,
    boxes: bool,
    limit: int | None,
    sample: float,
    max_error_rate: float,
    part_size: int,
    batch_size: int,
    workers: int | None,
    path_column: str,
    bytes_column: str,
    id_column: str,
    regions_column: str,
    dry: bool,
) -> None:
    """Read many images into a Parquet dataset, whatever is killed on the way.

    INPUT is a folder, a pattern, a manifest (.csv, .jsonl, .parquet), a tar shard or an image: a path, or a URL such as
    s3://bucket/folder. The same command goes on where it was stopped.
    """
    console = Console(stderr=True)
    logs.configure("warning" if console.is_terminal else "info", "auto")
    settings = read_settings(model=model, provider=provider)
    workers = workers or usable_cpus()
    ask = Ask(
        inputs=inputs,
        columns=Columns(path_column, bytes_column, id_column, regions_column),
        answers=Answers(min_confidence, boxes, settings.max_pixels),
        sample=sample,
        limit=limit,
        part_size=part_size,
    )
    reader = Reader(
        OnnxEngine(
            settings.model,
            settings.provider,
            # Each worker has a CPU to itself.
            intra_op_threads=settings.intra_op_threads or 1,
            spinning=settings.spinning,
            gpu_memory_mib=settings.gpu_memory_mib,
        ),
        batch_size,
    )
    try:
        if dry:
            click.echo(dry_run(ask, reader, workers))
            return
        target = parse_input(out)
        with locked(target), _stoppable() as stop:
            job = open_job(target, ask, ModelInfo.of(reader))
            scorer = Scorer(reader, ask.answers, job.passed)
            with local_engine(scorer.score, workers) as local, observer(console) as observe:
                parts = run(
                    job,
                    local,
                    batch_size=batch_size,
                    max_error_rate=max_error_rate,
                    stop=stop.event,
                    observe=observe,
                )
            if parts is None:
                click.echo("Stopped after a whole part; the same command goes on from there.", err=True)
                ctx.exit(128 + stop.signal)
            summary = finish_job(job, parts)
            logger.info("done", extra={"fields": summary})
    except (InputError, JobError) as error:
        raise click.UsageError(str(error)) from error
    except (ErrorRateError, StorageError, OSError) as error:
        click.echo(f"Error: {error}\nWhat is written stays, and the same command goes on from there.", err=True)
        ctx.exit(EXIT_STOPPED)


class _Stop:
    """What a signal to stop has set: `event`, and its number."""

    def __init__(self) -> None:
        self.event = Event()
        self.signal = 0

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.event.is_set():
            # Whatever is in hand is not there until it is whole, so nothing has to be cleaned up.
            Console(stderr=True).show_cursor()
            os._exit(128 + number)
        self.signal = number
        self.event.set()
        click.echo("Stopping after the part in hand; once more stops at once.", err=True)


@contextmanager
def _stoppable() -> Iterator[_Stop]:
    """SIGINT and SIGTERM ask the job to stop; the second one stops the process."""
    stop = _Stop()
    before = {number: signal.signal(number, stop.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
