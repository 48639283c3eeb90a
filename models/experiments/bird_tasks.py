"""What `parts` learns from: drawn birds, or the photographs of CUB-200-2011."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from models.data.cub import Bird, CubError, load_cub
from models.data.sample import open_photo
from models.experiments.birds import CLASSES, SIDE, draw_bird
from models.experiments.experiment import ExperimentError, Settings
from models.training.recipe import OptimiserTable, ScheduleTable
from service.cpus import usable_cpus
from service.errors import ServiceError

DRAWN_STEPS = (1_200, 30_000)
"""By default and with `--full`."""
DRAWN_BATCH_SIZE = 64
DRAWN_WINDOW = 1 / 3
"""Side of a window as a share of the image's: little more than a part, so that a part half outside tells which way to
go. In a window of a half, parts lie as a whole or not at all, and no window finds them in this budget."""
MOST_IMAGES = 12_000
"""Drawn to learn from."""
TEST_IMAGES = 2_000

CUB_SIDE = 448
CUB_WINDOW = 0.5
"""As in the paper."""
CUB_STEPS = (20, 30_000)
"""At a second and more for each without a GPU, the default does no more than show that it runs."""
CUB_BATCH_SIZE = 32
CUB_WIDTHS = (32, 64, 128, 256, 512)
CUB_PARTS = (
    ("beak", "crown", "forehead", "left eye", "right eye", "nape", "throat"),
    ("back", "belly", "breast", "left wing", "right wing"),
)
"""What is taken for the head and for the body."""


@dataclass(frozen=True)
class Task:
    """What is learned, and with what.

    Attributes:
        side: of an image, in pixels.
        channels: of an image.
        classes: how many.
        window: side of a window as a share of the image's.
        widths: of a stream's convolutions, by the number of transformers.
        first_stride: of the first convolution.
        optimiser: how the weights are moved.
        schedule: how long, and at which learning rate.
        mirrored: whether half of the images are shown mirrored in training.
        workers: processes that load images.
        training: what is learned from: images uint8 `[C, side, side]`, their class, and the middles of head and body,
            `[2, 2]`, normalised (x, y), NaN where they cannot be seen.
        test: the same, not learned from.
    """

    side: int
    channels: int
    classes: int
    window: float
    widths: Mapping[int, tuple[int, ...]]
    first_stride: int
    optimiser: OptimiserTable
    schedule: ScheduleTable
    mirrored: bool
    workers: int
    training: Dataset[Any]
    test: Dataset[Any]


def drawn_birds(settings: Settings) -> Task:
    """The synthetic task: as many images as the steps can use."""
    steps = settings.budget(*DRAWN_STEPS)
    training, test = (
        _drawn(2 * settings.seed + part, min(most, steps * DRAWN_BATCH_SIZE), settings)
        for part, most in enumerate((MOST_IMAGES, TEST_IMAGES))
    )
    return Task(
        side=SIDE,
        channels=1,
        classes=CLASSES,
        window=DRAWN_WINDOW,
        # The stream of none is as much wider as the others' localisation network costs: each network multiplies about
        # 10 million times.
        widths={0: (32, 56, 112, 112), 1: (16, 32, 64, 64), 2: (12, 22, 44, 44), 4: (8, 16, 32, 32)},
        first_stride=1,
        optimiser=OptimiserTable(name="adamw", learning_rate=3e-3, weight_decay=1e-2, localisation_factor=0.2),
        schedule=_schedule(steps, DRAWN_BATCH_SIZE),
        mirrored=False,
        workers=0,
        training=training,
        test=test,
    )


def _drawn(seed: int, count: int, settings: Settings) -> TensorDataset:
    images, labels, parts = zip(*(draw_bird(seed, index) for index in settings.track(count, "birds")), strict=True)
    return TensorDataset(
        torch.from_numpy(np.stack(images)).unsqueeze(1), torch.tensor(labels), torch.from_numpy(np.stack(parts))
    )


def _schedule(steps: int, batch_size: int) -> ScheduleTable:
    return ScheduleTable(name="cosine", steps=steps, batch_size=batch_size, warmup_steps=steps // 20)


def photographed_birds(folder: Path, settings: Settings) -> Task:
    """CUB-200-2011 at the paper's sizes: 448 pixels, windows of 224.

    Raises ExperimentError for a folder that is not CUB-200-2011, or holds nothing to train on or to test.
    """
    try:
        cub = load_cub(folder)
    except CubError as error:
        raise ExperimentError(str(error)) from error
    training, test = ([bird for bird in cub.birds if bird.training is wanted] for wanted in (True, False))
    if not (training and test):
        raise ExperimentError(
            f"{folder / 'train_test_split.txt'}: no photographs {'to test' if training else 'to train on'}"
        )
    return Task(
        side=CUB_SIDE,
        channels=3,
        classes=len(cub.species),
        window=CUB_WINDOW,
        widths=dict.fromkeys((0, 1, 2, 4), CUB_WIDTHS),
        first_stride=2,
        optimiser=OptimiserTable(name="adamw", learning_rate=1e-3, weight_decay=5e-2, localisation_factor=0.1),
        schedule=_schedule(settings.budget(*CUB_STEPS), CUB_BATCH_SIZE),
        mirrored=True,
        workers=usable_cpus(),
        training=Photographs(training),
        test=Photographs(test),
    )


class Photographs(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Photographs as `Task` wants them, each squeezed to a square as a whole.

    Head and body are where the mean of their parts is that can be seen.
    """

    def __init__(self, birds: Sequence[Bird]) -> None:
        self.birds = birds

    def __len__(self) -> int:
        return len(self.birds)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        bird = self.birds[index]
        try:
            photo = open_photo(bird.image.read_bytes())
            view = photo.views([photo.whole], (CUB_SIDE, CUB_SIDE))[0].pixels
        except ServiceError as error:
            raise ExperimentError(f"{bird.image}: {error}") from error
        seen = ([bird.parts[name] for name in names if name in bird.parts] for names in CUB_PARTS)
        middles = np.array([np.mean(places or [(math.nan, math.nan)], axis=0) for places in seen])
        parts = torch.from_numpy(middles * 2 / (photo.width, photo.height) - 1).float()
        return torch.from_numpy(view).permute(2, 0, 1), torch.tensor(bird.species), parts
