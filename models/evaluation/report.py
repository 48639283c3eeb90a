"""What was read, against what should have been: the figures of an evaluation.

Definitions. A sample is *right* when its reading is its label. Where there is no number, the label and the right
reading are "". *Accuracy* is the share that is right, with its 95 % interval (Wilson 1927). *Digit accuracy*
compares slot by slot, label and reading both packed to the left, over the slots where either of them has a digit: a
digit too few or too many is a wrong digit, and slots that are rightly blank count for nothing, or short numbers would
flatter. *ECE* is the expected calibration error of a whole reading's confidence (Guo et al. 2017), over all
readings, those of "" too.

Of the samples that *have a number* alone: *coverage* (Goodfellow et al. 2013) is the largest share that can be answered
when the least confident readings are refused until 98 % of the rest are right; equally confident readings are
answered or refused together, and a reading without digits is always refused. *Accepted* are the readings that the
service would accept: those with digits and a confidence of at least the artifact's own threshold; *accepted right*
are the right ones among them. *Digit height* is the height of the number's true box, in pixels of the photograph.

Of the samples *without* a number alone: *false numbers* is the share whose reading is accepted all the same.

A photograph that could not be read at all is wrong in all of these, and has no confidence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from models.evaluation.box_coverage import BoxCoverage
from models.evaluation.confidence import Bin, expected_calibration_error, reliability
from models.evaluation.statistics import coverage_curve, slot_confusion, wilson_interval

COVERAGE_ACCURACY = 0.98

_HEIGHT_EDGES = (12, 20, 32, 64)
DIGIT_HEIGHTS = ("below 12 px", "12 to 20 px", "20 to 32 px", "32 to 64 px", "64 px and more")
"""What the digit heights are grouped into; an edge belongs to the group above it."""
UNKNOWN_HEIGHT = "unknown"

_Key = TypeVar("_Key", int, str)


@dataclass(frozen=True)
class Outcome:
    """What became of one sample: numbers only, so that there can be very many.

    read: None, with an `error`, where the photograph could not be read.
    accepted: whether the service would accept the reading.
    digit_height: of the number's true box, in pixels of the upright image; None where it is not known.
    view_shares: for each transformer, the share of the view that its box covers.
    number_share: the share of the number's true box in what the reader reads from: the last transformer's box, or all
        boxes together where the transformers stand side by side; None where a box is missing.
    overlap: intersection over union of two of the boxes, the mean over all pairs; None with fewer than two.
    """

    collection: str
    source: str
    label: str
    read: str | None
    confidence: float
    error: str | None = None
    accepted: bool = False
    digit_height: float | None = None
    view_shares: tuple[float, ...] = ()
    number_share: float | None = None
    overlap: float | None = None

    @property
    def correct(self) -> bool:
        return self.read == self.label

    @property
    def height_group(self) -> str:
        """One of DIGIT_HEIGHTS, or UNKNOWN_HEIGHT."""
        if self.digit_height is None:
            return UNKNOWN_HEIGHT
        return DIGIT_HEIGHTS[sum(self.digit_height >= edge for edge in _HEIGHT_EDGES)]


@dataclass(frozen=True)
class Figures:
    """The figures of a set of `n` outcomes, n >= 1, as defined above.

    `numbers`, `correct`, `unreadable`, `accepted` and `accepted_right` are counts, `numbers` of the samples with a
    number; the others are shares in [0, 1]: `coverage` is None where no sample has a number, `false_numbers` where
    all have one, `ece` where none could be read.
    """

    n: int
    correct: int
    unreadable: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    digit_accuracy: float
    mean_confidence: float
    ece: float | None
    numbers: int
    coverage: float | None
    accepted: int
    accepted_right: int
    false_numbers: float | None

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> Figures:
        n, correct = len(outcomes), sum(outcome.correct for outcome in outcomes)
        unreadable = sum(outcome.read is None for outcome in outcomes)
        with_number = [outcome for outcome in outcomes if outcome.label]
        accepted = [outcome for outcome in with_number if outcome.accepted]
        without = [outcome for outcome in outcomes if not outcome.label]
        return cls(
            n=n,
            correct=correct,
            unreadable=unreadable,
            accuracy=correct / n,
            accuracy_interval=wilson_interval(correct, n),
            digit_accuracy=digit_accuracy(outcomes),
            mean_confidence=sum(outcome.confidence for outcome in outcomes) / n,
            ece=None if unreadable == n else expected_calibration_error(calibration(outcomes)),
            numbers=len(with_number),
            coverage=coverage(with_number) if with_number else None,
            accepted=len(accepted),
            accepted_right=sum(outcome.correct for outcome in accepted),
            false_numbers=sum(outcome.accepted for outcome in without) / len(without) if without else None,
        )


@dataclass(frozen=True)
class Breakdown:
    """A set of outcomes as a whole, by the length of the label (shortest first) and by digit height (lowest first).

    `boxes` is None where no transformer looked at anything.
    """

    total: Figures
    by_length: dict[int, Figures]
    by_digit_height: dict[str, Figures]
    boxes: BoxCoverage | None

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> Breakdown:
        by_length = _grouped(outcomes, lambda outcome: len(outcome.label))
        by_height = _grouped([o for o in outcomes if o.label], lambda outcome: outcome.height_group)
        looked = [outcome.view_shares for outcome in outcomes if outcome.view_shares]
        contained = [outcome.number_share for outcome in outcomes if outcome.number_share is not None]
        overlaps = [outcome.overlap for outcome in outcomes if outcome.overlap is not None]
        return cls(
            Figures.of(outcomes),
            {length: Figures.of(by_length[length]) for length in sorted(by_length)},
            {g: Figures.of(by_height[g]) for g in (*DIGIT_HEIGHTS, UNKNOWN_HEIGHT) if g in by_height},
            BoxCoverage.of(looked, contained, overlaps) if looked else None,
        )

    def to_json(self) -> dict[str, Any]:
        """The figures of the whole, with by_length, by_digit_height and box_coverage among them."""
        return {
            **asdict(self.total),
            "by_length": {str(length): asdict(figures) for length, figures in self.by_length.items()},
            "by_digit_height": {group: asdict(figures) for group, figures in self.by_digit_height.items()},
            "box_coverage": None if self.boxes is None else asdict(self.boxes),
        }


@dataclass(frozen=True)
class Report:
    """An evaluation: of everything together, by collection in the order met, and what was read wrong.

    `confusion` is what `slot_confusion` gives, `curve` what `curve` gives, `calibration` what `calibration` gives.
    """

    overall: Breakdown
    collections: dict[str, Breakdown]
    errors: list[Outcome]
    confusion: NDArray[np.int64]
    curve: list[tuple[float, float]]
    calibration: list[Bin | None]

    @classmethod
    def of(cls, outcomes: Iterable[Outcome]) -> Report:
        """Raises ValueError when there are no outcomes."""
        everything = list(outcomes)
        if not everything:
            raise ValueError("there is nothing to evaluate: the data hold no samples")
        by_collection = _grouped(everything, lambda outcome: outcome.collection)
        return cls(
            overall=Breakdown.of(everything),
            collections={name: Breakdown.of(members) for name, members in by_collection.items()},
            errors=[outcome for outcome in everything if not outcome.correct],
            confusion=slot_confusion((outcome.label, outcome.read or "") for outcome in everything),
            curve=curve(everything),
            calibration=calibration(everything),
        )

    def to_json(self) -> dict[str, Any]:
        """JSON values: overall, collections (each as `Breakdown.to_json`), confusion, and errors."""
        return {
            "coverage_accuracy": COVERAGE_ACCURACY,
            "overall": self.overall.to_json(),
            "collections": {name: part.to_json() for name, part in self.collections.items()},
            "confusion": self.confusion.tolist(),
            "errors": [asdict(outcome) for outcome in self.errors],
        }


def digit_accuracy(outcomes: Iterable[Outcome]) -> float:
    """Share of right slots among those where the label or the reading has a digit; 1 where none has."""
    right = slots = 0
    for outcome in outcomes:
        read = outcome.read or ""
        slots += max(len(outcome.label), len(read))
        right += sum(a == b for a, b in zip(outcome.label, read, strict=False))
    return right / slots if slots else 1.0


def curve(outcomes: Iterable[Outcome]) -> list[tuple[float, float]]:
    """`coverage_curve` of the outcomes that have a number."""
    with_number = [outcome for outcome in outcomes if outcome.label]
    return coverage_curve([(o.confidence, o.correct) for o in with_number if o.read], len(with_number))


def coverage(outcomes: Iterable[Outcome], accuracy: float = COVERAGE_ACCURACY) -> float:
    """The largest share of the `outcomes` with a number that one threshold answers with at least `accuracy` right."""
    return max((share for share, right in curve(outcomes) if right >= accuracy), default=0.0)


def calibration(outcomes: Iterable[Outcome]) -> list[Bin | None]:
    """`reliability` of the outcomes that could be read, each with the same weight."""
    read = [outcome for outcome in outcomes if outcome.read is not None]
    confidence, correct = np.array([o.confidence for o in read]), np.array([o.correct for o in read], bool)
    return reliability(confidence, correct, np.ones(len(read)))


def percent(share: float | None) -> str:
    """One decimal; a dash for what is not defined."""
    return "-" if share is None else f"{share:.1%}"


def _grouped(outcomes: Iterable[Outcome], key: Callable[[Outcome], _Key]) -> dict[_Key, list[Outcome]]:
    groups: dict[_Key, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(key(outcome), []).append(outcome)
    return groups
