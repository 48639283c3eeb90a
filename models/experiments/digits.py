"""MNIST's digits from its idx files, split the same way every time."""

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.experiments.experiment import ExperimentError

SIDE = 28
"""Of a digit's image in pixels. The digit itself fills the middle 20 x 20."""
TRAINING_SHARE = 0.8
"""Of the images, where only the official test files are there."""
SPLIT_SEED = 0

_IMAGES_MAGIC, _LABELS_MAGIC = 2051, 2049


@dataclass(frozen=True)
class Digits:
    """Images uint8 `[N, 28, 28]` and what they show, int64 `[N]`."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Float `[M, 1, 28, 28]` in [0, 1], and labels `[M]`."""
        return self.images[index].unsqueeze(1).float() / 255, self.labels[index]


@dataclass(frozen=True)
class Split:
    """What is learned from, what is not, and a line that says how they were told apart."""

    training: Digits
    test: Digits
    told: str


def load_digits(folder: Path | None) -> Split:
    """The official split where all four files are there; with the test files alone, a split of those.

    Args:
        folder: holds `t10k-images-idx3-ubyte` and `t10k-labels-idx1-ubyte`, and perhaps `train-images-idx3-ubyte` and
            `train-labels-idx1-ubyte`, each as it is or as `.gz`.

    Raises:
        ExperimentError: a file is missing or is no idx file of digits.
    """
    if folder is None:
        raise ExperimentError(
            "this experiment needs MNIST: give --data, the folder with t10k-images-idx3-ubyte and"
            " t10k-labels-idx1-ubyte (and train-... for the official split), as they are or as .gz"
        )
    test = _load(folder, "t10k")
    if _find(folder, "train-images-idx3-ubyte"):
        training = _load(folder, "train")
        return Split(
            training, test, f"MNIST's own split: {len(training):,} digits to learn from, {len(test):,} tested."
        )
    order = torch.from_numpy(np.random.default_rng(SPLIT_SEED).permutation(len(test)))
    count = round(TRAINING_SHARE * len(test))
    told = (
        f"Of MNIST's {len(test):,} test digits {count:,} to learn from (the first of"
        f" numpy.random.default_rng({SPLIT_SEED}).permutation), the other {len(test) - count:,} tested; the paper"
        " learns from 60,000."
    )
    parts = [Digits(test.images[index], test.labels[index]) for index in (order[:count], order[count:])]
    return Split(parts[0], parts[1], told)


def _load(folder: Path, part: str) -> Digits:
    images = _array(folder, f"{part}-images-idx3-ubyte", _IMAGES_MAGIC)
    labels = _array(folder, f"{part}-labels-idx1-ubyte", _LABELS_MAGIC)
    if images.shape != (len(labels), SIDE, SIDE) or labels.max(initial=0) > 9:
        raise ExperimentError(f"{folder}: {part}-images and {part}-labels are not as many digits of {SIDE} x {SIDE}")
    return Digits(torch.from_numpy(images), torch.from_numpy(labels).long())


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _array(folder: Path, name: str, magic: int) -> NDArray[np.uint8]:
    """An idx file: magic number and sizes as big-endian int32, then the values."""
    path = _find(folder, name)
    if path is None:
        raise ExperimentError(
            f"{folder} holds neither {name} nor {name}.gz: download MNIST's files and give their folder"
        )
    content = path.read_bytes()
    try:
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise ExperimentError(f"{path} does not unpack: {error}") from error
    dimensions = magic % 256
    header = np.frombuffer(content[: 4 * (1 + dimensions)], ">i4") if len(content) >= 4 * (1 + dimensions) else [0]
    values = np.frombuffer(content, np.uint8, offset=min(len(content), 4 * (1 + dimensions)))
    if header[0] != magic or np.prod(header[1:]) != len(values):
        raise ExperimentError(f"{path} is not an idx file, or breaks off")
    return values.reshape(header[1:]).copy()
