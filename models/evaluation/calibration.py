"""The calibration of a reader on held-out data, and the file it is kept in.

Data come as paths, and each path counts the same, whatever its size: a synthetic hold-out has as many images as one
cares to draw, real ones have hundreds, and one that is ten times larger would decide alone.

Samples are judged as served: whole numbers, by the service's decoding. One without a number (label "") is wrong when
any digit is read, and so is one whose number is longer than the reader has slots for. Photographs that cannot be read
have no confidence: they count as wrong in `Part.right`, as in `models.evaluation.report`, and nowhere else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path, PurePath
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.evaluation.confidence import (
    Acceptance,
    Bin,
    CalibrationError,
    Flags,
    Floats,
    expected_calibration_error,
    fit_temperature,
    fit_threshold,
    log_loss,
    reliability,
)
from service.decoding import decode
from service.validation import first_mistake

Share = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Finite = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Answers:
    """What an uncalibrated reader answered for the samples of one path of data that could be read.

    probabilities: [N, 5, 11], at temperature 1; labels, sources: of the same N samples; unreadable: how many more
    there were.
    """

    name: str
    probabilities: NDArray[np.float32]
    labels: tuple[str, ...]
    sources: tuple[str, ...]
    unreadable: int = 0


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Fit(_Stored):
    """How well confidence meets truth, as `models.evaluation.confidence` defines it."""

    log_loss: Finite
    ece: Share
    reliability: list[Bin | None]


class Part(_Stored):
    """One path of data: how many samples it gave, how many of them could not be read, the share right of them all, and
    what the threshold does to those that could be read."""

    name: str
    samples: int
    unreadable: int
    right: Share
    acceptance: Acceptance


class HeldOut(_Stored):
    """Each half of the data measured with what the other half gave."""

    temperatures: list[float]
    thresholds: list[float]
    fit: Fit
    acceptance: Acceptance


class Calibration(_Stored):
    """Temperature and threshold for the reader of `weights_sha256`, and the figures they were chosen by.

    `accuracy` is what was asked of the accepted. `held_out` is None when a half of the data alone does not determine a
    calibration.
    """

    weights_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    temperature: float = Field(gt=0.0, allow_inf_nan=False)
    threshold: Share
    accuracy: Share
    before: Fit
    after: Fit
    acceptance: Acceptance
    held_out: HeldOut | None
    data: list[Part]


def read_calibration(path: Path) -> Calibration:
    """The calibration in `path`. Raises CalibrationError when it holds none."""
    try:
        return Calibration.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise CalibrationError(f"{path} is not a calibration: {first_mistake(error.errors())}") from error


def calibrate(data: Sequence[Answers], weights_sha256: str, accuracy: float) -> Calibration:
    """Fits temperature, then threshold, on all of `data`. Raises CalibrationError when they do not determine them."""
    pool = _Pool.of(data)
    everything = np.ones(len(pool.weights), np.bool_)
    temperature, threshold = _fit(pool, accuracy)
    after = pool.confidence(temperature)
    accepted = pool.answered & (after >= threshold)
    return Calibration(
        weights_sha256=weights_sha256,
        temperature=temperature,
        threshold=threshold,
        accuracy=accuracy,
        before=pool.measure(np.ones_like(after)),
        after=pool.measure(np.full_like(after, temperature)),
        acceptance=pool.acceptance(accepted, everything),
        held_out=_held_out(pool, accuracy),
        data=[
            Part(
                name=answers.name,
                samples=len(answers.labels) + answers.unreadable,
                unreadable=answers.unreadable,
                right=int(pool.correct[pool.part == index].sum()) / (len(answers.labels) + answers.unreadable),
                acceptance=pool.acceptance(accepted, pool.part == index),
            )
            for index, answers in enumerate(data)
        ],
    )


@dataclass(frozen=True)
class _Pool:
    """The samples of all paths together: logits [N, 5, 11], the rest [N]."""

    logits: Floats
    numbered: Flags
    answered: Flags
    correct: Flags
    weights: Floats
    part: NDArray[np.intp]
    first_half: Flags

    @classmethod
    def of(cls, data: Sequence[Answers]) -> _Pool:
        if empty := [answers.name for answers in data if not answers.labels]:
            raise CalibrationError(f"{', '.join(empty)}: no photograph could be read")
        labels = [label for answers in data for label in answers.labels]
        probabilities = np.concatenate([answers.probabilities for answers in data])
        numbers = [reading.number for reading in decode(probabilities)]
        sizes = [len(answers.labels) for answers in data]
        return cls(
            # The logits but for a constant per slot. What the softmax rounded to nothing becomes the smallest number.
            logits=np.log(np.maximum(probabilities, np.finfo(np.float32).tiny).astype(np.float64)),
            numbered=np.array([label != "" for label in labels]),
            answered=np.array([number != "" for number in numbers]),
            correct=np.array([number == label for number, label in zip(numbers, labels, strict=True)]),
            weights=np.repeat([1 / (len(data) * size) for size in sizes], sizes),
            part=np.repeat(np.arange(len(data)), sizes),
            first_half=np.array([_in_first_half(source) for answers in data for source in answers.sources]),
        )

    def confidence(self, temperature: float | Floats) -> Floats:
        """Of the readings, when the logits are divided by `temperature` (of all, or of each sample)."""
        scaled = self.logits / np.reshape(temperature, (-1, 1, 1))
        powers = np.exp(scaled - scaled.max(-1, keepdims=True))
        return np.array([reading.confidence for reading in decode(powers / powers.sum(-1, keepdims=True))])

    def measure(self, temperatures: Floats) -> Fit:
        """The figures of all samples, each at its own temperature."""
        confidence = self.confidence(temperatures)
        bins = reliability(confidence, self.correct, self.weights)
        return Fit(
            log_loss=log_loss(confidence, self.correct, self.weights),
            ece=expected_calibration_error(bins),
            reliability=bins,
        )

    def part_of(self, among: Flags) -> _Pool:
        """The samples `among` all."""
        return _Pool(*(getattr(self, field.name)[among] for field in fields(self)))

    def acceptance(self, accepted: Flags, among: Flags) -> Acceptance:
        """What becomes of the samples `among` all when those `accepted` are."""
        return Acceptance.of(accepted[among], self.correct[among], self.numbered[among], self.weights[among])


def _fit(pool: _Pool, accuracy: float) -> tuple[float, float]:
    """Temperature and threshold."""
    temperature = fit_temperature(pool.confidence, pool.correct, pool.weights)
    threshold = fit_threshold(pool.confidence(temperature), pool.answered, pool.correct, pool.weights, accuracy)
    if threshold is None:
        raise CalibrationError(f"at no confidence {accuracy:.1%} of the accepted readings are right")
    return temperature, threshold


def _held_out(pool: _Pool, accuracy: float) -> HeldOut | None:
    halves = (pool.first_half, ~pool.first_half)
    if not all(half.any() for half in halves):
        return None
    try:
        fits = [_fit(pool.part_of(half), accuracy) for half in halves]
    except CalibrationError:
        return None
    # Each half gets what the other one gave.
    (first_temperature, first_threshold), (second_temperature, second_threshold) = fits
    temperatures = np.where(pool.first_half, second_temperature, first_temperature)
    thresholds = np.where(pool.first_half, second_threshold, first_threshold)
    accepted = pool.answered & (pool.confidence(temperatures) >= thresholds)
    return HeldOut(
        temperatures=[first_temperature, second_temperature],
        thresholds=[first_threshold, second_threshold],
        fit=pool.measure(temperatures),
        acceptance=pool.acceptance(accepted, np.ones(len(accepted), np.bool_)),
    )


def _in_first_half(source: str) -> bool:
    """By the file's stem, its name without directory and suffix: samples of equal stems stay together."""
    return hashlib.sha256(PurePath(source).stem.encode()).digest()[0] < 128
