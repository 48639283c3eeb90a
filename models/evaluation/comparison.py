"""One reader against another on the same samples: is the candidate as good as the one it is to replace?

Two readers that are equally good differ on single photographs, and among seven collections one is always a little
worse. So a loss counts only when it is more than chance: by McNemar's exact test on the samples of which just one of
the two is right (McNemar 1947; Dietterich 1998 on its use for classifiers). The candidate is worse when

- in a collection of at least `LEAST_SAMPLES` it has lost more than the tolerance, and p < `SIGNIFICANCE`; or
- over all samples together it has fewer right, and p < `SIGNIFICANCE`, whatever the tolerance.

What the readers accept is counted, and has no part in this.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from models.evaluation.confidence import Acceptance
from models.evaluation.report import COVERAGE_ACCURACY, Outcome, coverage

LEAST_SAMPLES = 20
SIGNIFICANCE = 0.05

Pair = tuple[Outcome, Outcome]
"""What candidate and shipped reader made of the same sample."""


@dataclass(frozen=True)
class Side:
    """One of the two: how many it has right, its coverage, and what its own threshold does.

    Coverage is that of `models.evaluation.report`; None where no sample has a number.
    """

    right: int
    coverage: float | None
    acceptance: Acceptance

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> Side:
        numbered = [outcome for outcome in outcomes if outcome.label]
        return cls(
            right=sum(outcome.correct for outcome in outcomes),
            coverage=coverage(numbered) if numbered else None,
            acceptance=Acceptance.of(
                accepted=np.array([outcome.accepted for outcome in outcomes]),
                correct=np.array([outcome.correct for outcome in outcomes]),
                numbered=np.array([outcome.label != "" for outcome in outcomes]),
                weights=np.ones(len(outcomes)),
            ),
        )


@dataclass(frozen=True)
class Duel:
    """The two readers on `n` samples, n >= 1, and how often just one of them is right."""

    n: int
    candidate: Side
    shipped: Side
    only_candidate: int
    only_shipped: int
    p: float

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> Duel:
        only_candidate = sum(first.correct and not second.correct for first, second in pairs)
        only_shipped = sum(second.correct and not first.correct for first, second in pairs)
        return cls(
            n=len(pairs),
            candidate=Side.of([first for first, _ in pairs]),
            shipped=Side.of([second for _, second in pairs]),
            only_candidate=only_candidate,
            only_shipped=only_shipped,
            p=mcnemar(only_candidate, only_shipped),
        )

    @property
    def loss(self) -> float:
        """The share of samples by which the candidate has fewer right; negative when it has more."""
        return (self.shipped.right - self.candidate.right) / self.n

    def is_worse_by(self, tolerance: float) -> bool:
        """Whether the candidate has lost more than that share, and not by chance."""
        return self.loss > tolerance and self.p < SIGNIFICANCE


@dataclass(frozen=True)
class Comparison:
    """All samples, each collection in the order met, and how much the candidate may lose."""

    tolerance: float
    overall: Duel
    collections: dict[str, Duel]

    @classmethod
    def of(cls, pairs: Iterable[Pair], tolerance: float) -> Comparison:
        """Raises ValueError when there are no pairs."""
        everything = list(pairs)
        if not everything:
            raise ValueError("there is nothing to compare: the data hold no samples")
        by_collection: dict[str, list[Pair]] = {}
        for pair in everything:
            by_collection.setdefault(pair[0].collection, []).append(pair)
        return cls(tolerance, Duel.of(everything), {name: Duel.of(part) for name, part in by_collection.items()})

    @property
    def worse(self) -> list[str]:
        """Where the candidate is worse: names of collections, and "all" last."""
        names = [
            name
            for name, duel in self.collections.items()
            if duel.n >= LEAST_SAMPLES and duel.is_worse_by(self.tolerance)
        ]
        return [*names, "all"] if self.overall.is_worse_by(0.0) else names

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "tolerance": self.tolerance,
            "significance": SIGNIFICANCE,
            "least_samples": LEAST_SAMPLES,
            "coverage_accuracy": COVERAGE_ACCURACY,
            "overall": asdict(self.overall),
            "collections": {name: asdict(duel) for name, duel in self.collections.items()},
            "worse": self.worse,
        }


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p of the exact test: how likely a split at least as uneven is when both sides are equally likely."""
    n, fewer = only_first + only_second, min(only_first, only_second)
    at_least_as_uneven = 2 * sum(math.comb(n, k) for k in range(fewer + 1))
    return min(1.0, at_least_as_uneven / (1 << n))
