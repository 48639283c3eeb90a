"""The calibration of a reader on held-out collections, and the file it is kept in.

Each collection of data counts the same, whatever its size: a synthetic hold-out has as many images as one cares to
draw, real ones have hundreds, and one that is ten times larger would decide alone.

Samples are judged as served: whole numbers, by the service's decoding. One without a number (label "") is wrong when
any digit is read, and so is one whose number is longer than the reader has slots for; the latter has no target, and no
part in the likelihood. Photographs that cannot be read have no confidence and are only counted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path, PurePath
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.data.sample import MAX_DIGITS
from models.evaluation.calibration import (
    Bin,
    CalibrationError,
    Flags,
    Floats,
    expected_calibration_error,
    fit_temperature,
    fit_temperature_to_readings,
    fit_threshold,
    log_loss,
    log_softmax,
    negative_log_likelihood,
    reliability,
)
from service.decoding import decode, pack

Share = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Finite = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Objective = Literal["slots", "readings"]
"""What the temperature makes likeliest: the true digits of all slots, or that readings are as right as they claim."""


@dataclass(frozen=True)
class Answers:
    """What an uncalibrated reader answered for the samples of one collection of data that could be read.

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
    """How well confidence meets truth, as `models.evaluation.calibration` defines it."""

    nll: Finite
    log_loss: Finite
    ece: Share
    reliability: list[Bin | None]


class Acceptance(_Stored):
    """What a threshold does: the share of right among the accepted, and the shares accepted of samples with a number
    (coverage) and without one; None where there are no such samples."""

    accuracy: Share | None
    coverage: Share | None
    false_numbers: Share | None


class Part(_Stored):
    """One collection of data: how many samples it gave, how many of them unreadable, and what the threshold does."""

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

    `objective` is what the temperature was fitted to, `accuracy` what was asked of the accepted. `held_out` is None
    when a half of the data alone does not determine a calibration.
    """

    weights_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    temperature: float = Field(gt=0.0, allow_inf_nan=False)
    threshold: Share
    objective: Objective
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
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CalibrationError(f"{path} is not a calibration: {where}: {first['msg']}") from error


def calibrate(
    data: Sequence[Answers], weights_sha256: str, accuracy: float, objective: Objective = "slots"
) -> Calibration:
    """Fits temperature, then threshold, on all of `data`. Raises CalibrationError when they do not determine them."""
    pool = _Pool.of(data)
    everything = np.ones(len(pool.weights), np.bool_)
    temperature, threshold = _fit(pool, accuracy, objective)
    after = pool.confidence(temperature)
    accepted = pool.answered & (after >= threshold)
    return Calibration(
        weights_sha256=weights_sha256,
        temperature=temperature,
        threshold=threshold,
        objective=objective,
        accuracy=accuracy,
        before=pool.measure(np.ones_like(after)),
        after=pool.measure(np.full_like(after, temperature)),
        acceptance=pool.acceptance(accepted, everything),
        held_out=_held_out(pool, accuracy, objective),
        data=[
            Part(
                name=answers.name,
                samples=len(answers.labels) + answers.unreadable,
                unreadable=answers.unreadable,
                right=float(pool.correct[pool.part == index].mean()),
                acceptance=pool.acceptance(accepted, pool.part == index),
            )
            for index, answers in enumerate(data)
        ],
    )


@dataclass(frozen=True)
class _Pool:
    """All collections together. Logits are [N, 5, 11], targets [N, 5] and meant only where `fitting`, the rest [N]."""

    logits: Floats
    targets: NDArray[np.intp]
    fitting: Flags
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
        fitting = np.array([len(label) <= MAX_DIGITS for label in labels])
        return cls(
            # What a softmax rounds to nothing is taken for the smallest number instead.
            logits=np.log(np.maximum(probabilities, np.finfo(np.float32).tiny).astype(np.float64)),
            targets=np.array([pack(label[:MAX_DIGITS], MAX_DIGITS) for label in labels], np.intp),
            fitting=fitting,
            numbered=np.array([label != "" for label in labels]),
            answered=np.array([number != "" for number in numbers]),
            correct=np.array([number == label for number, label in zip(numbers, labels, strict=True)]),
            weights=np.repeat([1 / (len(data) * size) for size in sizes], sizes),
            part=np.repeat(np.arange(len(data)), sizes),
            first_half=np.array([_in_first_half(source) for answers in data for source in answers.sources]),
        )

    def confidence(self, temperature: float | Floats) -> Floats:
        """Of the readings, when the logits are divided by `temperature` (of all, or of each sample)."""
        probabilities = np.exp(log_softmax(self.logits / np.reshape(temperature, (-1, 1, 1))))
        return np.array([reading.confidence for reading in decode(probabilities)])

    def measure(self, temperatures: Floats) -> Fit:
        """The figures of all samples, each at its own temperature."""
        confidence = self.confidence(temperatures)
        bins = reliability(confidence, self.correct, self.weights)
        scaled = self.logits / temperatures[:, None, None]
        nll = negative_log_likelihood(scaled[self.fitting], self.targets[self.fitting], self.weights[self.fitting])
        return Fit(
            nll=nll,
            log_loss=log_loss(confidence, self.correct, self.weights),
            ece=expected_calibration_error(bins),
            reliability=bins,
        )

    def part_of(self, among: Flags) -> _Pool:
        """The samples `among` all."""
        return _Pool(*(getattr(self, field.name)[among] for field in fields(self)))

    def acceptance(self, accepted: Flags, among: Flags) -> Acceptance:
        """What becomes of the samples `among` all when those `accepted` are."""

        def share(part: Flags, whole: Flags) -> float | None:
            total = float(self.weights[whole].sum())
            return float(self.weights[part & whole].sum()) / total if total else None

        return Acceptance(
            accuracy=share(self.correct, among & accepted),
            coverage=share(accepted, among & self.numbered),
            false_numbers=share(accepted, among & ~self.numbered),
        )


def _fit(pool: _Pool, accuracy: float, objective: Objective) -> tuple[float, float]:
    """Temperature and threshold."""
    if objective == "slots":
        fitting = pool.fitting
        temperature = fit_temperature(pool.logits[fitting], pool.targets[fitting], pool.weights[fitting])
    else:
        temperature = fit_temperature_to_readings(pool.confidence, pool.correct, pool.weights)
    threshold = fit_threshold(pool.confidence(temperature), pool.answered, pool.correct, pool.weights, accuracy)
    if threshold is None:
        raise CalibrationError(f"at no confidence {accuracy:.1%} of the accepted readings are right")
    return temperature, threshold


def _held_out(pool: _Pool, accuracy: float, objective: Objective) -> HeldOut | None:
    halves = (pool.first_half, ~pool.first_half)
    if not all(half.any() for half in halves):
        return None
    try:
        fits = [_fit(pool.part_of(half), accuracy, objective) for half in halves]
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
    """By the name without directory and suffix: a photograph and what was cut out of it stay together."""
    return hashlib.sha256(PurePath(source).stem.encode()).digest()[0] < 128
