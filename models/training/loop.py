"""The training loop: from a recipe and samples to finished weights, resumable at any moment."""

import logging
import math
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from models.checkpoint import CheckpointError, load_reader, save_reader, weights_sha256
from models.data.sample import Sample
from models.files import replacing
from models.readers import ReaderSpec, build_reader, negative_log_likelihood
from models.training.collapse import signs_of_collapse
from models.training.dataset import DataError, Steps, Views, collate, fingerprint
from models.training.journal import Journal, draw_curves
from models.training.location import location_loss
from models.training.optimiser import averaged, build_optimiser, learning_rate_factor, set_learning_rate
from models.training.recipe import AugmentTable, Recipe
from models.training.validation import picture_of_boxes, validate

STATE = "state.pt"
WEIGHTS = "weights.safetensors"

log = logging.getLogger(__name__)


class TrainingError(Exception):
    """A run that cannot start or go on; the message says why, in one line."""


@dataclass(frozen=True)
class Progress:
    """What a progress bar needs after each step."""

    step: int
    loss: float
    accuracy: float | None


@dataclass(frozen=True)
class Run:
    """What a run is (its recipe, the fingerprint of its data, the weights it began with), and all that changes."""

    recipe: Recipe
    data_sha256: str
    initial_sha256: str | None
    reader: nn.Module
    optimiser: torch.optim.Optimizer
    average: nn.Module

    def save(self, path: Path, step: int) -> None:
        """Write everything that a resume after `step` steps needs, whole or not at all."""
        state = {
            "recipe_sha256": self.recipe.digest,
            "data_sha256": self.data_sha256,
            "initial_sha256": self.initial_sha256,
            "step": step,
            "reader": self.reader.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average.state_dict(),
        }
        with replacing(path) as unfinished:
            torch.save(state, unfinished)

    def resume(self, path: Path) -> int:
        """Load the state at `path` if there is one; the number of steps already done.

        Raises:
            TrainingError: it cannot be read, or is that of another recipe, of other data or of other first weights.
        """
        if not path.exists():
            return 0
        try:
            # To the CPU: loading a state puts each tensor where it belongs.
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
            raise TrainingError(f"{path} cannot be read ({error}); remove it to start again") from error
        if state.get("recipe_sha256") != self.recipe.digest:
            raise TrainingError(f"{path.parent} holds a run of another recipe; choose another folder or remove it")
        if state.get("data_sha256") != self.data_sha256:
            raise TrainingError(f"{path.parent} holds a run on other data; choose another folder or remove it")
        if state.get("initial_sha256") != self.initial_sha256:
            raise TrainingError(f"{path.parent} holds a run that began elsewhere; choose another folder or remove it")
        self.reader.load_state_dict(state["reader"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.average.load_state_dict(state["average"])
        step: int = state["step"]
        log.info("going on from step %d", step)
        return step


def train(
    recipe: Recipe,
    training: Sequence[Sample],
    held_out: Sequence[Sample],
    folder: Path,
    *,
    initial: Path | None = None,
    workers: int = 1,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Path:
    """Train, going on from `folder/state.pt` where there is one.

    The result does not depend on whether, or when, the run was killed and started again: data, augmentation
    and dropout are drawn from (seed, step), and everything else is in the state.

    Args:
        recipe: what to do.
        training: samples to learn from.
        held_out: samples to validate on.
        folder: gets the state, the finished weights (`weights.safetensors`), metrics, curves and TensorBoard events.
        initial: finished weights of the same reader to begin with; random ones when None.
        workers: processes that decode and augment.
        report: called after every step.

    Returns:
        The path of the finished weights: the average of the weights, if the recipe asks for one.

    Raises:
        TrainingError: the folder holds another run, `initial` is of another reader, or the loss is no longer a number.
        DataError: a sample that cannot be trained on.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.run.seed)
    reader = _first_reader(recipe, initial).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = build_optimiser(reader, recipe.optimiser)
    average = averaged(reader, recipe.run.average_decay)
    initial_sha256 = None if initial is None else weights_sha256(initial)
    run = Run(recipe, fingerprint(training), initial_sha256, reader, optimiser, average)
    start = run.resume(folder / STATE)
    views, targets = _held_out_tensors(held_out, recipe)

    accuracy: float | None = None
    steps = recipe.schedule.steps
    with closing(Journal(folder, start)) as journal:
        for step, batch in enumerate(_batches(training, recipe, start, workers), start):
            loss, location = _step(reader, optimiser, recipe, step, *(part.to(device) for part in batch))
            average.update_parameters(reader)
            done = step + 1
            if not math.isfinite(loss + location):
                raise TrainingError(f"the loss is {loss} at step {done}: lower the learning rate or clip the gradient")
            if done % recipe.run.log_every == 0 or done == steps:
                factor = learning_rate_factor(step, recipe.schedule)
                journal.scalars(
                    done,
                    train_loss=loss,
                    train_location=location,
                    train_learning_rate=recipe.optimiser.learning_rate * factor,
                )
            if done % recipe.run.validate_every == 0 or done == steps:
                result = validate(average.module, views, targets, device)
                accuracy = result.accuracy
                journal.scalars(done, validation_loss=result.loss, validation_accuracy=accuracy)
                journal.image(done, "boxes", picture_of_boxes(average.module, views, device))
                for fault in signs_of_collapse(result.boxes):
                    log.warning("step %d: %s", done, fault)
            if done % recipe.run.checkpoint_every == 0 or done == steps:
                journal.flush()
                run.save(folder / STATE, done)
            report(Progress(done, loss, accuracy))
    draw_curves(folder)
    spec = ReaderSpec(
        recipe.reader.name,
        recipe.reader.input_height,
        recipe.reader.input_width,
        {
            "recipe": recipe.model_dump(mode="json"),
            "recipe_sha256": recipe.digest,
            "samples": len(training),
            "data_sha256": run.data_sha256,
            **({} if initial_sha256 is None else {"initial_sha256": initial_sha256}),
        },
    )
    save_reader(folder / WEIGHTS, average.module, spec)
    return folder / WEIGHTS


def _first_reader(recipe: Recipe, initial: Path | None) -> nn.Module:
    if initial is None:
        return build_reader(recipe.spec)
    try:
        reader, spec = load_reader(initial)
    except CheckpointError as error:
        raise TrainingError(str(error)) from error
    if replace(spec, training={}) != recipe.spec:
        what = f"{spec.reader} for {spec.input_width}x{spec.input_height} pixels"
        raise TrainingError(f"{initial} holds a {what}, which is not what the recipe trains")
    return reader


def _step(
    reader: nn.Module,
    optimiser: torch.optim.Optimizer,
    recipe: Recipe,
    step: int,
    images: Tensor,
    targets: Tensor,
    windows: Tensor,
) -> tuple[float, float]:
    """One step on a batch as `collate` makes it: the negative log-likelihood and, if asked for, the location loss."""
    # Dropout draws from the step's own seed: nothing random has to be carried over a resume.
    torch.manual_seed(recipe.run.seed << 32 | step)
    reader.train()
    reading = step >= recipe.loss.location_only
    rate = recipe.optimiser.learning_rate * learning_rate_factor(step, recipe.schedule)
    set_learning_rate(optimiser, rate, shared=reading)
    pixels = images.permute(0, 3, 1, 2).float() / 255
    likelihood = location = torch.zeros((), device=images.device)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=recipe.run.precision == "bf16"):
        output = reader(pixels) if reading else None
        theta = output.theta if output else reader.locate(pixels)  # type: ignore[operator]
    if output:
        likelihood = negative_log_likelihood(output.logits, targets)
    if recipe.loss.location:
        location = location_loss(theta, windows)
    optimiser.zero_grad()
    torch.autograd.backward(likelihood + recipe.loss.location * location)
    if recipe.optimiser.clip_norm:
        nn.utils.clip_grad_norm_(reader.parameters(), recipe.optimiser.clip_norm)
    optimiser.step()
    return float(likelihood.detach()), float(location.detach())


def _batches(training: Sequence[Sample], recipe: Recipe, start: int, workers: int) -> Iterator[tuple[Tensor, ...]]:
    """Batches of the steps from `start` on (see `collate`), made by `workers` processes."""
    size = (recipe.reader.input_height, recipe.reader.input_width)
    views = Views(training, size, recipe.augment, recipe.run.seed)
    schedule = recipe.schedule
    order = Steps(len(training), schedule.batch_size, recipe.run.seed, start, schedule.steps)
    try:
        yield from DataLoader(views, batch_sampler=order, collate_fn=collate, num_workers=workers)
    except DataError as error:
        # From a worker the message comes at the end of a stack trace.
        raise DataError(str(error).rpartition(f"{DataError.__name__}: ")[2].strip()) from error


def _held_out_tensors(held_out: Sequence[Sample], recipe: Recipe) -> tuple[Tensor, Tensor]:
    """The held-out samples as they are served: no augmentation."""
    size = (recipe.reader.input_height, recipe.reader.input_width)
    views = Views(held_out, size, AugmentTable(), recipe.run.seed)
    pixels, targets, _ = collate([views[0, index] for index in range(len(views))])
    return pixels, targets
