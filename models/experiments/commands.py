"""`housenumber experiment`."""

import importlib
import time
from collections.abc import Iterator
from pathlib import Path

import click

from models.data.progress import progress_bar
from models.experiments.experiment import Experiment, ExperimentError, Settings
from models.experiments.report import write_report

EXPERIMENTS = {
    "distorted-digits": "models.experiments.distorted_digits",
    "two-digits": "models.experiments.two_digits",
    "parts": "models.experiments.parts",
    "stacking": "models.experiments.stacking",
    "sampling": "models.experiments.sampling",
    "readers": "models.experiments.readers",
    "invariance": "models.experiments.invariance",
}
"""The module of each, which has it as `EXPERIMENT`; imported when it is run."""


@click.command()
@click.argument("name", type=click.Choice(list(EXPERIMENTS)))
@click.option("--full", is_flag=True, help="Follow the published schedule: days on a CPU.")
@click.option(
    "--all",
    "every",
    is_flag=True,
    help="For distorted-digits and two-digits: train for all cells of the table, at the default budget.",
)
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Runs, for mean and spread.")
@click.option(
    "--data",
    type=click.Path(exists=True, path_type=Path),
    help="What the experiment is made of: for the digits, the folder of MNIST's idx files; for parts, CUB-200-2011 in"
    " place of drawn birds; for readers, shards in place of synthetic numbers.",
)
@click.option(
    "--collections",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="For readers and invariance: photographs to read, shards or a directory with labels.jsonl; repeatable.",
)
@click.option(
    "--model",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="For invariance: the reader, an artifact or weights [the one that is shipped].",
)
@click.option(
    "--twin",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="For invariance: its twin without transformers [the one that comes along].",
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder [runs/experiments/NAME].")
@click.option("--steps", type=click.IntRange(min=1), help="Train each network for this many steps instead.")
def experiment(
    name: str,
    full: bool,
    every: bool,
    seeds: int,
    data: Path | None,
    collections: tuple[Path, ...],
    model: Path | None,
    twin: Path | None,
    out: Path | None,
    steps: int | None,
) -> None:
    """Run the experiment NAME: writes result.json, table.md and plots.

    For each seed the default budget ends within ten minutes on two CPU cores. docs/experiments.md says what it shows.
    """
    found = importlib.import_module(EXPERIMENTS[name]).EXPERIMENT
    assert isinstance(found, Experiment)
    special: dict[str, object] = {
        "all": every,
        "data": data,
        "collections": collections,
        "model": model,
        "twin": twin,
    }
    for option, value in special.items():
        if value and option not in found.options:
            raise click.UsageError(f"{name} takes no --{option}")
    folder = out or Path("runs") / "experiments" / name
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    results = []
    try:
        for seed in range(seeds):
            wanted = Settings(seed, folder, data, full, every, steps, collections, model, twin, _track)
            results.append(found.run(wanted))
    except ExperimentError as error:
        raise click.UsageError(str(error)) from error
    settings = {"full": full, "steps": steps, **{option: special[option] for option in found.options}}
    click.echo(write_report(name, found, settings, results, time.monotonic() - started, folder))


def _track(total: int, description: str) -> Iterator[int]:
    """With a bar of its own: without a terminal that is a line of the log as soon as it is done."""
    with progress_bar() as bar:
        yield from bar.track(range(total), total, description=description)
