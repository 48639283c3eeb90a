"""What was read, against what should have been: the figures of an evaluation.

Definitions. *Accuracy* is the share of whole numbers that are right. *Digit accuracy* compares slot by slot, label
and reading both packed to the left, over the slots where either of them has a digit: a digit too few or too many
is a wrong digit, and slots that are rightly blank count for nothing, or short numbers would flatter. *Coverage*
(Goodfellow et al. 2013) is the largest share that can be answered when the least confident readings are refused
until 98 % of the rest are right; equally confident readings are answered or refused together, and a reading
without digits is always refused. A photograph that could not be read at all is wrong in all of these.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

COVERAGE_ACCURACY = 0.98


@dataclass(frozen=True)
class Outcome:
    """What became of one sample. `read` is None, with an `error`, where the photograph could not be read."""

    collection: str
    source: str
    label: str
    read: str | None
    confidence: float
    error: str | None = None

    @property
    def correct(self) -> bool:
        return self.read == self.label


@dataclass(frozen=True)
class Figures:
    """The figures of a set of `n` outcomes, n >= 1. Shares are in [0, 1]; `unreadable` counts the errors."""

    n: int
    correct: int
    unreadable: int
    accuracy: float
    digit_accuracy: float
    mean_confidence: float
    coverage: float

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> Figures:
        n, correct = len(outcomes), sum(outcome.correct for outcome in outcomes)
        return cls(
            n=n,
            correct=correct,
            unreadable=sum(outcome.read is None for outcome in outcomes),
            accuracy=correct / n,
            digit_accuracy=digit_accuracy(outcomes),
            mean_confidence=sum(outcome.confidence for outcome in outcomes) / n,
            coverage=coverage(outcomes),
        )


@dataclass(frozen=True)
class Breakdown:
    """The figures of a set of outcomes as a whole, and by the length of the label, shortest first."""

    total: Figures
    by_length: dict[int, Figures]

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> Breakdown:
        def length(outcome: Outcome) -> int:
            return len(outcome.label)

        groups = groupby(sorted(outcomes, key=length), key=length)
        return cls(Figures.of(outcomes), {digits: Figures.of(list(group)) for digits, group in groups})


@dataclass(frozen=True)
class Report:
    """An evaluation: of everything together, by collection in the order met, and what was read wrong."""

    overall: Breakdown
    collections: dict[str, Breakdown]
    errors: list[Outcome]

    @classmethod
    def of(cls, outcomes: Iterable[Outcome]) -> Report:
        """Raises ValueError when there are no outcomes."""
        everything = list(outcomes)
        if not everything:
            raise ValueError("there is nothing to evaluate: the data hold no samples")
        by_collection: dict[str, list[Outcome]] = {}
        for outcome in everything:
            by_collection.setdefault(outcome.collection, []).append(outcome)
        return cls(
            Breakdown.of(everything),
            {name: Breakdown.of(members) for name, members in by_collection.items()},
            [outcome for outcome in everything if not outcome.correct],
        )

    def to_json(self) -> dict[str, Any]:
        """JSON values: overall, collections (each with by_length) and errors."""
        return {
            "coverage_accuracy": COVERAGE_ACCURACY,
            "overall": _breakdown_json(self.overall),
            "collections": {name: _breakdown_json(part) for name, part in self.collections.items()},
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


def coverage(outcomes: Sequence[Outcome], accuracy: float = COVERAGE_ACCURACY) -> float:
    """The largest share of `outcomes` that one confidence threshold answers with at least `accuracy` right."""
    answered = correct = covered = 0
    candidates = sorted((o for o in outcomes if o.read), key=lambda o: o.confidence, reverse=True)
    for _, tied in groupby(candidates, key=lambda o: o.confidence):
        for outcome in tied:
            answered += 1
            correct += outcome.correct
        if correct / answered >= accuracy:
            covered = answered
    return covered / len(outcomes)


def _breakdown_json(breakdown: Breakdown) -> dict[str, Any]:
    by_length = {str(length): asdict(figures) for length, figures in breakdown.by_length.items()}
    return {**asdict(breakdown.total), "by_length": by_length}
