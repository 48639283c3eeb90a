"""Recipes: everything that decides what a training run gives, in one TOML file."""

import hashlib
import tomllib
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.readers import ReaderSpec, build_reader
from models.transformer import SpatialTransformer
from service.validation import first_mistake

RECIPES = Path(__file__).resolve().parent.parent / "recipes"

Share = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


class RecipeError(Exception):
    """A recipe that cannot be used; the message says why, in one line."""


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ReaderTable(_Table):
    """`[reader]`: which network, for which input in pixels."""

    name: str
    input_height: int = Field(gt=0)
    input_width: int = Field(gt=0)


class DataTable(_Table):
    """`[data]`: what is trained on.

    `synthetic_count` images are made where no shards are given; 0 means that shards must be given. The last
    `validation` samples are held out.
    """

    synthetic_count: int = Field(0, ge=0)
    synthetic_seed: Seed = 0
    validation: int = Field(2000, gt=0)


class AugmentTable(_Table):
    """`[augment]`: what is done to each view, anew in every epoch. All off by default."""

    reframe: Share = 0.0
    """Share of the views, of those whose number's box is known, whose edges are drawn in towards the number."""
    region_scale: Annotated[float, Field(ge=1)] = 1.0
    """Each side of the region is scaled by a factor between 1 / this and this."""
    region_shift: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """The region is moved by up to this share of its size; further, and it could leave the image."""
    turned: Share = 0.0
    """Share of the views that are turned about their middle."""
    turn: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Such a view is turned by up to so many degrees, either way, and shows the whole of the turned region."""
    invert: Share = 0.0
    """Share of the views whose intensities are turned round: dark digits become bright ones."""
    contrast: Share = 0.0
    """Intensities are multiplied by 1 +- this, and moved by +- half of this."""
    noise: NonNegative = 0.0
    """Largest standard deviation of Gaussian noise, in grey levels of 0..255."""
    blur: NonNegative = 0.0
    """Largest standard deviation of Gaussian blur, in pixels of the view."""


class LossTable(_Table):
    """`[loss]`: what is added to the negative log-likelihood of the number."""

    location: NonNegative = 0.0
    """Weight of the distance between the last transformer's box and the number's, where that is known."""
    location_only: int = Field(0, ge=0)
    """For so many first steps only the transformer learns, at the full rate, and nothing is read."""


class OptimiserTable(_Table):
    """`[optimiser]`."""

    name: Literal["adamw", "sgd"]
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(0.0, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of SGD; the first beta of AdamW."""
    localisation_factor: float = Field(0.1, gt=0)
    """The transformers' learning rate is this times the network's (STN paper, appendix A.2)."""
    clip_norm: float = Field(0.0, ge=0)
    """The gradient is scaled down to this norm; 0 leaves it."""


class ScheduleTable(_Table):
    """`[schedule]`: how long, and how the learning rate falls."""

    name: Literal["cosine", "step"]
    steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    decay_steps: int = Field(0, ge=0)
    """For `cosine`: the step at which the rate would be 0, for a run that ends before; 0: the last one."""
    warmup_steps: int = Field(0, ge=0)
    restarts: tuple[Annotated[int, Field(gt=0)], ...] = ()
    """The steps, rising, at which the schedule begins anew."""
    step_every: int = Field(0, ge=0)
    """For `step`: the learning rate is divided by 10 every this many steps; 0: never."""


class RunTable(_Table):
    """`[run]`: precision, averaging, and how often what is written."""

    seed: Seed = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    average_decay: float = Field(0.0, ge=0, lt=1)
    """Exponential moving average of the weights; 0 keeps the last weights."""
    log_every: int = Field(50, gt=0)
    validate_every: int = Field(500, gt=0)
    checkpoint_every: int = Field(250, gt=0)


class Recipe(_Table):
    """One training run. `digest` names it: a run is only resumed with the recipe that it was started with."""

    reader: ReaderTable
    data: DataTable
    augment: AugmentTable = AugmentTable()
    loss: LossTable = LossTable()
    optimiser: OptimiserTable
    schedule: ScheduleTable
    run: RunTable = RunTable()

    @property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of all values, defaults included."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    @property
    def spec(self) -> ReaderSpec:
        """The reader to build."""
        return ReaderSpec(self.reader.name, self.reader.input_height, self.reader.input_width)


def load_recipe(name: str, steps: int | None = None) -> Recipe:
    """Read a recipe by its name in `models/recipes` or by the path of a TOML file.

    Args:
        name: such as "compact" or "my/recipe.toml".
        steps: replaces the recipe's own number of steps.

    Raises:
        RecipeError: no such recipe, no TOML, a value that is missing, unknown or out of range, or a reader that
            does not exist or cannot take the input.
    """
    path = Path(name) if name.endswith(".toml") else RECIPES / f"{name}.toml"
    if not path.is_file():
        shipped = ", ".join(sorted(recipe.stem for recipe in RECIPES.glob("*.toml")))
        raise RecipeError(f"there is no recipe {name!r}: give the path of a .toml file or one of {shipped}")
    try:
        recipe = Recipe.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        # Without storage: only whether there is such a reader. Data are made before it is needed.
        with torch.device("meta"):
            reader = build_reader(recipe.spec)
    except ValidationError as error:
        raise RecipeError(f"{path}: {first_mistake(error.errors())}") from error
    except ValueError as error:  # not TOML, not UTF-8, no such reader
        raise RecipeError(f"{path}: {error}") from error
    if recipe.loss.location and not any(isinstance(module, SpatialTransformer) for module in reader.modules()):
        raise RecipeError(f"{path}: loss.location: {recipe.reader.name} has no transformer that could look anywhere")
    if recipe.loss.location_only and not (recipe.loss.location and hasattr(reader, "locate")):
        raise RecipeError(f"{path}: loss.location_only: that takes loss.location, and a compact reader")
    if steps is None:
        return recipe
    return recipe.model_copy(update={"schedule": recipe.schedule.model_copy(update={"steps": steps})})
