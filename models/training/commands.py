"""`housenumber train`."""

import logging
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import click
from rich.console import Console
from rich.logging import RichHandler

from models.data.progress import progress_bar
from models.data.sample import Sample
from models.data.shards import ShardError, count_rows, is_complete, read_shards, write_shards
from models.data.synthetic.fonts import advice_on_few_faces, installed_faces
from models.data.synthetic.render import generate, generator_digest
from models.training import loop
from models.training.dataset import DataError, hold_out
from models.training.recipe import Recipe, RecipeError, load_recipe
from service.cpus import usable_cpus


@click.command()
@click.argument("recipe")
@click.option(
    "--data",
    "data",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="Shards to train on (`housenumber data ...` writes them); repeatable. A synthetic recipe makes its own.",
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder of the run [runs/RECIPE].")
@click.option(
    "--initial",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Finished weights of the same reader to begin with, instead of random ones.",
)
@click.option("--steps", type=click.IntRange(min=1), help="Train for this many steps instead of the recipe's.")
@click.option("--workers", type=click.IntRange(min=0), default=1, show_default=True, help="Data processes.")
def train(
    recipe: str, data: tuple[Path, ...], out: Path | None, initial: Path | None, steps: int | None, workers: int
) -> None:
    """Train a reader by RECIPE: a name in models/recipes or the path of a TOML file.

    Killed at any moment, the same command goes on from the last checkpoint and gives the same weights.
    """
    handler = RichHandler(console=Console(stderr=True))
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    try:
        plan = load_recipe(recipe, steps)
        folder = out or Path("runs") / Path(recipe).stem
        paths = data or (_synthetic_shards(plan),)
        training, held_out = hold_out(_loaded(paths), plan.data.validation)
        with progress_bar() as bar:
            task = bar.add_task("training", total=plan.schedule.steps)

            def report(progress: loop.Progress) -> None:
                doing = f"training, loss {progress.loss:.3f}"
                if progress.accuracy is not None:
                    doing += f", {progress.accuracy:.1%} of the held-out numbers read"
                bar.update(task, completed=progress.step, description=doing)

            weights = loop.train(plan, training, held_out, folder, initial=initial, workers=workers, report=report)
    except (RecipeError, ShardError, DataError) as error:
        raise click.UsageError(str(error)) from error
    except loop.TrainingError as error:
        raise click.ClickException(str(error)) from error
    click.echo(weights)


def _loaded(paths: Sequence[Path]) -> list[Sample]:
    """All samples of the shards. Raises ShardError for a path that holds no complete shards."""
    total = sum(count_rows(path) for path in paths)
    with progress_bar() as bar:
        samples = chain.from_iterable(read_shards(path) for path in paths)
        return list(bar.track(samples, total, description="loading"))


def _synthetic_shards(plan: Recipe) -> Path:
    """The recipe's synthetic samples, made once and kept in `data/`: anew when the generator or its fonts change."""
    wanted = plan.data
    if not wanted.synthetic_count:
        raise RecipeError("this recipe trains on shards: prepare them with `housenumber data svhn`, then give --data")
    digest = generator_digest(installed_faces())
    path = Path("data") / f"synthetic-{wanted.synthetic_seed}-{wanted.synthetic_count}-{digest}"
    if not is_complete(path):
        if advice := advice_on_few_faces():
            logging.warning(advice)
        samples = generate(wanted.synthetic_seed, 0, wanted.synthetic_count, usable_cpus())
        with progress_bar() as bar:
            write_shards(bar.track(samples, wanted.synthetic_count, description="images"), path)
    return path
