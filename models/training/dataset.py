"""From shards to training batches: the service's own decoding and resizing, plus augmentation.

Everything random is drawn from (seed, epoch, index), never from a state that goes along: a run that is resumed at a
step sees exactly what it would have seen there.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from models.data.sample import Sample
from models.data.warp import rotation, warped
from models.readers import SLOTS
from models.training.location import wanted_window
from models.training.recipe import AugmentTable
from service.decoding import pack
from service.errors import ServiceError
from service.geometry import Region
from service.imaging import view


class DataError(Exception):
    """Samples that cannot be trained on; the message says which and why, in one line."""


Row = tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.float32]]
"""A view uint8 `[H, W, 3]`, its target int64 `[5]`, and its window float32 `[2, 3]` (see `wanted_window`)."""


class Views(Dataset[Row]):
    """Samples as rows, addressed by (epoch, index)."""

    def __init__(self, samples: Sequence[Sample], size: tuple[int, int], augment: AugmentTable, seed: int) -> None:
        """
        Args:
            samples: held in memory, encoded.
            size: (height, width) of a view in pixels.
            augment: what is done to each view; `AugmentTable()` does nothing.
            seed: of the augmentation.

        Raises:
            DataError: a label that the five slots cannot hold. Later, on access: a photograph that does not decode.
        """
        self.samples = samples
        self.targets = [_target(sample) for sample in samples]
        self.size = size
        self.augment = augment
        self.seed = seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> Row:
        epoch, index = key
        rng = np.random.default_rng((self.seed, epoch, index))
        sample = self.samples[index]
        try:
            photo, region = sample.open()
            # Annotated boxes may reach beyond the photograph.
            box = None if sample.number_box is None else sample.number_box.clipped(photo.width, photo.height)
            region = framed(region, box, self.augment, rng)
            region = region.clipped(photo.width, photo.height)
            turn = 0.0
            if self.augment.turned and rng.random() < self.augment.turned:
                turn = math.radians(rng.uniform(-self.augment.turn, self.augment.turn))
                pixels, region = turned(np.array(photo.rgb()), region, turn)
                shown = view(pixels, Region.whole(pixels.shape[1], pixels.shape[0]), self.size)
            else:
                shown = photo.views([region], self.size)[0].pixels
        except ServiceError as error:
            raise DataError(f"{sample.collection}, {sample.source}: {error}") from error
        target = np.array(self.targets[index], dtype=np.int64)
        return repainted(shown, self.augment, rng), target, wanted_window(box, region, turn)


def _target(sample: Sample) -> list[int]:
    try:
        return pack(sample.label, SLOTS)
    except ValueError as error:
        raise DataError(f"{sample.collection}, {sample.source}: {error}") from error


def framed(region: Region, number_box: Region | None, augment: AugmentTable, rng: np.random.Generator) -> Region:
    """The region with its edges drawn in towards the number, resized about its centre and moved, all at random.

    In the same pixels; it may leave the image.
    """
    if number_box is not None and rng.random() < augment.reframe:
        keep = rng.uniform(0, 1, 4)
        left = number_box.x + min(region.x - number_box.x, 0) * keep[0]
        top = number_box.y + min(region.y - number_box.y, 0) * keep[1]
        right = number_box.right + max(region.right - number_box.right, 0) * keep[2]
        bottom = number_box.bottom + max(region.bottom - number_box.bottom, 0) * keep[3]
        region = Region(left, top, right - left, bottom - top)
    limit = np.log(augment.region_scale)
    size = np.array([region.width, region.height]) * np.exp(rng.uniform(-limit, limit, 2))
    corner = region.centre - size / 2 + rng.uniform(-1, 1, 2) * augment.region_shift * size
    return Region(*(float(value) for value in (*corner, *size)))


def turned(pixels: NDArray[np.uint8], region: Region, turn: float) -> tuple[NDArray[np.uint8], Region]:
    """What a view of a region shows, which is turned about its centre by `turn` radians anticlockwise.

    Args:
        pixels: RGB `[H, W, 3]`.
        region: in these pixels.
        turn: of the pixels, not of the view.

    Returns:
        RGB, uint8, just large enough to hold the turned region; beyond the photograph its edge is repeated. And the
        rectangle that it fills, around the same centre in the same pixels, which may leave the image.
    """
    linear = rotation(turn)
    size = np.abs(linear) @ np.array([region.width, region.height])
    width, height = size.tolist()
    x, y = region.centre
    shown = warped(pixels, region.centre, linear, size)
    return shown, Region(x - width / 2, y - height / 2, width, height)


def repainted(view: NDArray[np.uint8], augment: AugmentTable, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The view with other intensities, blur and noise; uint8 `[H, W, 3]` in and out."""
    pixels: NDArray[np.floating[Any]] = view.astype(np.float32)
    if rng.random() < augment.invert:
        pixels = 255 - pixels
    if augment.contrast:
        gain = 1 + rng.uniform(-augment.contrast, augment.contrast)
        shift = rng.uniform(-0.5, 0.5) * augment.contrast * 255
        pixels = (pixels - 127.5) * gain + 127.5 + shift
    if augment.blur and (sigma := rng.uniform(-augment.blur, augment.blur)) > 0.2:
        pixels = np.asarray(cv2.GaussianBlur(pixels, (0, 0), sigma), dtype=np.float32)
    if augment.noise and (deviation := rng.uniform(-augment.noise, augment.noise)) > 0:
        pixels = pixels + rng.normal(0, deviation, pixels.shape).astype(np.float32)
    painted: NDArray[np.uint8] = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    return painted


class Steps(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) for the steps `start` to `steps` of a run.

    Each epoch is a permutation of its own, drawn from (seed, epoch); batches run on across the end of an epoch.
    """

    def __init__(self, count: int, batch_size: int, seed: int, start: int, steps: int) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.start, self.steps = start, steps

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for step in range(self.start, self.steps):
            batch = []
            for position in range(step * self.batch_size, (step + 1) * self.batch_size):
                if position // self.count != epoch:
                    epoch = position // self.count
                    order = np.random.default_rng((self.seed, epoch)).permutation(self.count)
                batch.append((epoch, int(order[position % self.count])))
            yield batch


def collate(rows: Sequence[Row]) -> tuple[Tensor, Tensor, Tensor]:
    """uint8 `[N, H, W, 3]`, int64 `[N, 5]` and float32 `[N, 2, 3]`."""
    views, targets, windows = (torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True))
    return views, targets, windows


def hold_out(samples: Iterable[Sample], count: int) -> tuple[list[Sample], list[Sample]]:
    """All samples but the last `count`, and the last `count`, which are for validation.

    Raises:
        DataError: nothing would be left to train on.
    """
    everything = list(samples)
    if len(everything) <= count:
        raise DataError(f"{len(everything)} samples are too few to hold out {count} for validation")
    return everything[:-count], everything[-count:]


def fingerprint(samples: Sequence[Sample]) -> str:
    """Hexadecimal SHA-256 of images, labels, regions and boxes, in their order."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(repr((len(sample.image), sample.label, sample.region, sample.number_box)).encode())
        digest.update(sample.image)
    return digest.hexdigest()
