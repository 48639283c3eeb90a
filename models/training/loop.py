"""The training loop: from a recipe and samples to finished weights, resumable at any moment."""

import logging
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from models.checkpoint import save_reader
from models.data.sample import Sample
from models.readers import ReaderSpec, build_reader, negative_log_likelihood
from models.training.collapse import signs_of_collapse
from models.training.dataset import Steps, Views, collate
from models.training.journal import Journal, draw_curves
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


def train(
    recipe: Recipe,
    training: Sequence[Sample],
    held_out: Sequence[Sample],
    folder: Path,
    *,
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
        workers: processes that decode and augment.
        report: called after every step.

    Returns:
        The path of the finished weights: the average of the weights, if the recipe asks for one.

    Raises:
        TrainingError: the folder holds a run of another recipe, or the loss is no longer a number.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.run.seed)
    reader = build_reader(recipe.spec).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = build_optimiser(reader, recipe.optimiser)
    average = averaged(reader, recipe.run.average_decay)
    start = _resume(folder / STATE, recipe, reader, optimiser, average, device)
    journal = Journal(folder, start)
    views, targets = _held_out_tensors(held_out, recipe)

    accuracy: float | None = None
    steps = recipe.schedule.steps
    for step, (images, wanted) in enumerate(_batches(training, recipe, start, workers), start):
        loss = _step(reader, optimiser, recipe, step, images.to(device), wanted.to(device))
        average.update_parameters(reader)
        done = step + 1
        if done % recipe.run.log_every == 0 or done == steps:
            value = float(loss)
            if not value < float("inf"):
                raise TrainingError(f"the loss is {value} at step {done}: lower the learning rate or clip the gradient")
            factor = learning_rate_factor(step, recipe.schedule)
            journal.scalars(done, train_loss=value, train_learning_rate=recipe.optimiser.learning_rate * factor)
        if done % recipe.run.validate_every == 0 or done == steps:
            result = validate(average.module, views, targets, device)
            accuracy = result.accuracy
            journal.scalars(done, validation_loss=result.loss, validation_accuracy=accuracy)
            journal.image(done, "boxes", picture_of_boxes(average.module, views, device))
            for fault in signs_of_collapse(result.boxes):
                log.warning("step %d: %s", done, fault)
        if done % recipe.run.checkpoint_every == 0 or done == steps:
            _save_state(folder / STATE, recipe, done, reader, optimiser, average)
        report(Progress(done, float(loss), accuracy))
    journal.close()
    draw_curves(folder)
    spec = ReaderSpec(
        recipe.reader.name,
        recipe.reader.input_height,
        recipe.reader.input_width,
        {"recipe": recipe.model_dump(mode="json"), "recipe_sha256": recipe.digest, "samples": len(training)},
    )
    save_reader(folder / WEIGHTS, average.module, spec)
    return folder / WEIGHTS


def _step(
    reader: nn.Module, optimiser: torch.optim.Optimizer, recipe: Recipe, step: int, images: Tensor, targets: Tensor
) -> Tensor:
    """One step on uint8 `[N, H, W, 3]` and int64 `[N, 5]`; the loss, detached."""
    # Dropout draws from the step's own seed: nothing random has to be carried over a resume.
    torch.manual_seed(recipe.run.seed << 32 | step)
    reader.train()
    set_learning_rate(optimiser, learning_rate_factor(step, recipe.schedule))
    pixels = images.permute(0, 3, 1, 2).float() / 255
    with torch.autocast(images.device.type, torch.bfloat16, enabled=recipe.run.precision == "bf16"):
        logits = reader(pixels).logits
    loss = negative_log_likelihood(logits, targets)
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    if recipe.optimiser.clip_norm:
        nn.utils.clip_grad_norm_(reader.parameters(), recipe.optimiser.clip_norm)
    optimiser.step()
    return loss.detach()


def _batches(training: Sequence[Sample], recipe: Recipe, start: int, workers: int) -> DataLoader[Any]:
    """Batches of the steps from `start` on, made by `workers` processes."""
    size = (recipe.reader.input_height, recipe.reader.input_width)
    views = Views(training, size, recipe.augment, recipe.run.seed)
    schedule = recipe.schedule
    order = Steps(len(training), schedule.batch_size, recipe.run.seed, start, schedule.steps)
    return DataLoader(views, batch_sampler=order, collate_fn=collate, num_workers=workers)


def _held_out_tensors(held_out: Sequence[Sample], recipe: Recipe) -> tuple[Tensor, Tensor]:
    """The held-out samples as they are served: no augmentation."""
    size = (recipe.reader.input_height, recipe.reader.input_width)
    views = Views(held_out, size, AugmentTable(), recipe.run.seed)
    return collate([views[0, index] for index in range(len(views))])


def _save_state(
    path: Path,
    recipe: Recipe,
    step: int,
    reader: nn.Module,
    optimiser: torch.optim.Optimizer,
    average: nn.Module,
) -> None:
    """Everything that a resume needs, whole or not at all."""
    unfinished = path.with_suffix(".tmp")
    torch.save(
        {
            "recipe_sha256": recipe.digest,
            "step": step,
            "reader": reader.state_dict(),
            "optimiser": optimiser.state_dict(),
            "average": average.state_dict(),
        },
        unfinished,
    )
    unfinished.replace(path)


def _resume(
    path: Path,
    recipe: Recipe,
    reader: nn.Module,
    optimiser: torch.optim.Optimizer,
    average: nn.Module,
    device: torch.device,
) -> int:
    """Load the state if there is one; the number of steps already done."""
    if not path.exists():
        return 0
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise TrainingError(f"{path} cannot be read ({error}); remove it to start again") from error
    if state["recipe_sha256"] != recipe.digest:
        raise TrainingError(f"{path.parent} holds a run of another recipe; choose another folder or remove it")
    reader.load_state_dict(state["reader"])
    optimiser.load_state_dict(state["optimiser"])
    average.load_state_dict(state["average"])
    step: int = state["step"]
    log.info("going on from step %d", step)
    return step
