"""`housenumber data ...`: make, prepare and look at the data that readers are trained and judged on."""

from __future__ import annotations

import gzip
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import click
from rich.progress import TaskID

from models.data import svhn as svhn_format
from models.data.collections import CollectionError, count_samples, load_collection
from models.data.digit_struct import SvhnError
from models.data.preview import contact_sheet
from models.data.progress import progress_bar
from models.data.sample import Sample
from models.data.shards import ShardError, write_shards
from models.data.synthetic.fonts import FONT_PACKAGES, advice_on_few_faces, digest, installed_faces
from models.data.synthetic.render import generate, generate_without_number
from models.data.synthetic.statistics import STATISTICS_PATH, write_statistics
from service.cpus import usable_cpus

OUT_DIRECTORY = click.Path(file_okay=False, path_type=Path)
SEED = click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Which series of images.")
PROCESSES = click.option(
    "--processes",
    type=click.IntRange(min=1),
    default=usable_cpus,
    show_default="CPUs this process may use",
    help="How many processes draw.",
)


@contextmanager
def _users_mistakes() -> Iterator[None]:
    """What the user gave is wrong: one line and exit code 2."""
    try:
        yield
    except (CollectionError, ShardError, SvhnError) as error:
        raise click.UsageError(str(error)) from error


@click.group()
def data() -> None:
    """Make, prepare and look at collections of house numbers."""


@data.command()
@click.option("--count", type=click.IntRange(min=1), required=True, help="How many images.")
@click.option("--start", type=click.IntRange(min=0), default=0, show_default=True, help="Index of the first image.")
@SEED
@PROCESSES
@click.option("--out", type=OUT_DIRECTORY, required=True, help="Directory for the shards; new or empty.")
@click.option(
    "--without-number",
    is_flag=True,
    help="Only images in which there is no number to read, equal shares of every kind, each kind its own collection.",
)
def synthesize(count: int, start: int, seed: int, processes: int, out: Path, without_number: bool) -> None:
    """Draw synthetic house numbers. The same seed and index give the same image, however many processes draw."""
    drawn = generate_without_number if without_number else generate
    if advice := advice_on_few_faces():
        click.echo(advice, err=True)
    started = time.perf_counter()
    with _users_mistakes(), progress_bar() as bar:
        write_shards(bar.track(drawn(seed, start, count, processes), count, description="images"), out)
    rate = count / (time.perf_counter() - started)
    click.echo(f"{count} images in {out}: {rate:.0f} per second, {rate / processes:.0f} per second and process")


@data.command()
def fonts() -> None:
    """Say which faces synthetic numbers are set in, and how to install those the shipped reader learned from."""
    faces = installed_faces()
    click.echo(f"{len(faces)} faces with digits, digest {digest(faces)}")
    click.echo("On Debian 12, as root, this installs all that the shipped reader learned from:")
    click.echo(f"apt-get install --no-install-recommends {' '.join(FONT_PACKAGES)}")


@data.command()
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.argument("out", type=OUT_DIRECTORY)
@click.option("--split", type=click.Choice(svhn_format.SPLITS), required=True, help="Which part of SVHN SOURCE is.")
def svhn(source: Path, out: Path, split: str) -> None:
    """Prepare SVHN format 1: SOURCE is train.tar.gz, test.tar.gz, extra.tar.gz, or what was unpacked from one.

    Killed, it goes on where it stopped. OUT/report.json accounts for every photograph.
    """
    with _users_mistakes(), progress_bar() as bar:
        report = svhn_format.prepare(source, out, split, _showing(bar.add_task, bar.update))
    kept = sum(report.lengths.values())
    click.echo(
        f"{report.entries} photographs: {kept} in {out}, {len(report.too_long)} with more than five digits,"
        f" {len(report.skipped)} corrupt or missing; {svhn_format.REPORT} there lists what was left out"
    )


@data.command()
@click.argument("collection", type=click.Path(exists=True, path_type=Path), required=False)
@click.option("--count", type=click.IntRange(min=1), default=120, show_default=True, help="At most how many images.")
@SEED
@PROCESSES
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The PNG to write.")
def preview(collection: Path | None, count: int, seed: int, processes: int, out: Path) -> None:
    """Write a contact sheet of COLLECTION (shards, or a directory with labels.jsonl), or of synthetic images."""
    with _users_mistakes(), progress_bar() as bar:
        samples: Iterator[Sample]
        if collection is None:
            samples = generate(seed, 0, count, processes)
        elif count := min(count, count_samples(collection)):
            samples = islice(load_collection(collection), count)
        else:
            raise click.UsageError(f"{collection} holds no samples")
        contact_sheet(list(bar.track(samples, count, description="images"))).save(out, "PNG")


@data.command()
@click.argument("labels", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def statistics(labels: Path) -> None:
    """Derive the statistics that synthetic numbers follow from LABELS, and rewrite statistics.json.

    LABELS is a gzipped JSON object: file name -> {"label": [...], "left": [...], "top": [...], "width": [...],
    "height": [...]}, one value for each digit, as in SVHN.
    """
    with _users_mistakes():
        try:
            figures = write_statistics(labels, STATISTICS_PATH)
        except (AttributeError, EOFError, KeyError, TypeError, ValueError, gzip.BadGzipFile, zlib.error) as error:
            raise click.UsageError(f"{labels} is not such a file: {error!r}") from error
    click.echo(f"{figures.numbers} numbers, and {figures.longer} of more than five digits that were left out")


def _showing(add_task: Callable[..., TaskID], update: Callable[..., Any]) -> svhn_format.Progress:
    tasks: dict[str, TaskID] = {}

    def show(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            tasks[stage] = add_task(stage, total=total)
        update(tasks[stage], completed=done, total=total)

    return show
