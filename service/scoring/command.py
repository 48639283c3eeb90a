"""`housenumber score`: the command line of batch scoring."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from threading import Event
from types import FrameType
from typing import get_args

import click
from rich.console import Console

from service import logs
from service.commands import read_settings
from service.cpus import usable_cpus
from service.engine import Provider
from service.exit_codes import EXIT_MODEL
from service.schemas import ModelInfo
from service.scoring.core import Answers, Loader, make_scorer
from service.scoring.dry_run import dry_run
from service.scoring.inputs import InputError, parse_input
from service.scoring.job import Ask, Job, JobError, finish_job, open_job
from service.scoring.local import local_engine
from service.scoring.lock import locked
from service.scoring.progress import observer
from service.scoring.records import Columns
from service.scoring.run import Engine, EngineError, ErrorRateError, Scoring
from service.scoring.transfers import StorageError
from service.settings import Settings

logger = logging.getLogger(__name__)

EXIT_STOPPED, EXIT_REFUSED = 1, 2

_MOST_REQUESTS = 64


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
    "--engine",
    type=click.Choice(["local", "ray", "http"]),
    default="local",
    show_default=True,
    help="Who reads: this machine, a Ray cluster, or the service at --url.",
)
@click.option("--address", envvar="RAY_ADDRESS", help="Of a Ray cluster. [default: one of this machine, for this job]")
@click.option("--url", envvar="HOUSENUMBER_URL", help="Of a service, or of the load balancer before it.")
@click.option(
    "--api-key",
    envvar="HOUSENUMBER_API_KEY",
    help="For the service. Better in the variable HOUSENUMBER_API_KEY: what stands on a command line, all can read.",
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
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Batches computed at once, at most. [default: local: the usable CPUs; ray: what the cluster has; http:"
    " 64, as many as the service bears]",
)
@click.option(
    "--cpus-per-worker",
    type=click.IntRange(min=1),
    help="Of a Ray cluster, for decoding: a worker is an actor with a session. [default: 1; with cuda: 4, and a GPU]",
)
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
    address: str | None,
    url: str | None,
    api_key: str | None,
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
    cpus_per_worker: int | None,
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
    ask = Ask(
        inputs=inputs,
        columns=Columns(path_column, bytes_column, id_column, regions_column),
        answers=Answers(min_confidence, boxes, settings.max_pixels, settings.second_look, settings.search),
        sample=sample,
        limit=limit,
        part_size=part_size,
    )
    if engine == "http" and (model or provider):
        raise click.UsageError("--model and --provider: with --engine http, both are the service's")
    try:
        match engine:
            case "http":
                scoring = _by_service(url, api_key, settings, ask.answers, workers)
            case "ray":
                scoring = _by_cluster(address, settings, ask.answers, batch_size, workers, cpus_per_worker)
            case _:
                scoring = _by_this_machine(settings, ask.answers, batch_size, workers)
        if dry:
            click.echo(dry_run(ask, scoring, batch_size))
            return
        target = parse_input(out)
        with locked(target), _stoppable() as stop:
            job = open_job(target, ask, scoring.model)
            with observer(console) as observe:
                parts = scoring.score(
                    job, batch_size=batch_size, max_error_rate=max_error_rate, stop=stop.event, observe=observe
                )
            if parts is None:
                click.echo("Stopped after a whole part; the same command goes on from there.", err=True)
                ctx.exit(128 + stop.signal)
            summary = finish_job(job, parts)
            logger.info("done", extra={"fields": summary})
    except (InputError, JobError) as error:
        raise click.UsageError(str(error)) from error
    except (EngineError, ErrorRateError, StorageError, OSError) as error:
        click.echo(f"Error: {error}\nWhat is written stays, and the same command goes on from there.", err=True)
        ctx.exit(EXIT_STOPPED)


def _by_this_machine(settings: Settings, answers: Answers, batch_size: int, workers: int | None) -> Scoring:
    loader = _loader(settings, batch_size)
    # Here only to see that it works, and what it is.
    reader = loader.load(answers)
    loader = loader.pinned(reader)

    def engine(job: Job) -> AbstractContextManager[Engine]:
        return local_engine(partial(make_scorer, loader, answers, job.passed), workers or usable_cpus())

    return Scoring(ModelInfo.of(reader), engine)


def _by_cluster(
    address: str | None,
    settings: Settings,
    answers: Answers,
    batch_size: int,
    workers: int | None,
    cpus_per_worker: int | None,
) -> Scoring:
    # Imported here: an extra.
    from service.scoring.ray_engine import Pool, RayScoring

    on_gpus = settings.provider == "cuda"
    # The driver's machine may have no GPU, and need have none; a dry run is on it.
    here = _by_this_machine(settings.model_copy(update={"provider": "cpu"}), answers, batch_size, None)
    loader = replace(_loader(settings, batch_size), provider="cuda" if on_gpus else "cpu", sha256=here.model.sha256)
    pool = Pool(workers, cpus_per_worker or (4 if on_gpus else 1), int(on_gpus))
    return RayScoring(here.model, here.engine, loader, pool, address)


def _loader(settings: Settings, batch_size: int) -> Loader:
    return Loader(
        settings.model,
        settings.provider,
        settings.intra_op_threads,
        settings.spinning,
        settings.gpu_memory_mib,
        batch_size,
    )


def _by_service(
    url: str | None, api_key: str | None, settings: Settings, answers: Answers, workers: int | None
) -> Scoring:
    # Imported here: only this engine needs an HTTP client.
    from service.scoring.http_engine import Limits, Service, http_engine

    if not url:
        raise click.UsageError("--engine http needs --url or HOUSENUMBER_URL: where the service is")
    # The variables of the service itself, for where its limits are not the defaults.
    limits = Limits(settings.max_body_bytes, settings.max_images)
    service = Service(url, api_key, answers, limits, workers or _MOST_REQUESTS)
    click.get_current_context().call_on_close(service.client.close)
    model = service.model()
    return Scoring(model, lambda job: http_engine(service, model, job))


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
