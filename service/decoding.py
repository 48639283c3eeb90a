"""From the probabilities of the slots to a number and its confidence: the one decoding rule.

A reader answers with S slots, each a softmax over the alphabet and *blank* (the last class). The
slots are independent, so the probability of a sequence is the product of its slots' probabilities.

A number has no gaps: a sequence stands for a number only when its digits form one unbroken run,
with nothing but blanks before and after (all blank: no number is seen). The reading is the most probable
such sequence, its digits packed to the left, and its confidence is the probability of that sequence, blanks
included. "blank 2 6 0 blank" reads 260; "1, blank 51 % or 2 49 %, 3" reads 123, since "1 blank 3" is
not a number. Ties go to the shorter number, then to the run that starts further left.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Digit:
    """One digit of a number with the probability its slot gave it."""

    digit: str
    confidence: float


@dataclass(frozen=True, slots=True)
class Decoded:
    """A number ("" where none is seen), the probability of the whole of it, and its digits."""

    number: str
    confidence: float
    digits: tuple[Digit, ...]


def decode(probabilities: NDArray[np.floating[Any]], alphabet: str = "0123456789") -> list[Decoded]:
    """Decode a batch of probabilities [N, S, len(alphabet) + 1], finite numbers all of them, to N numbers.

    Raises ValueError when the shape does not fit the alphabet.
    """
    if probabilities.ndim != 3 or probabilities.shape[2] != len(alphabet) + 1:
        raise ValueError(f"expected [N, S, {len(alphabet) + 1}] probabilities, got {probabilities.shape}")
    return [_decoded(slots, alphabet) for slots in probabilities.tolist()]


def pack(number: str, slots: int, alphabet: str = "0123456789") -> list[int]:
    """The class of each slot for a label, digits packed to the left, then blanks: a training target.

    Raises ValueError when the number has more digits than slots or a character outside the alphabet.
    """
    if len(number) > slots:
        raise ValueError(f"{number!r} does not fit {slots} slots")
    if strange := set(number) - set(alphabet):
        raise ValueError(f"{number!r} has characters outside the alphabet {alphabet!r}: {sorted(strange)}")
    return [alphabet.index(digit) for digit in number] + [len(alphabet)] * (slots - len(number))


@lru_cache
def _runs(slots: int) -> list[slice]:
    """Which slots hold digits, for each way to place one run; the empty run comes first."""
    spans = [(0, 0), *((start, start + n) for n in range(1, slots + 1) for start in range(slots - n + 1))]
    return [slice(*span) for span in spans]


def _decoded(slots: list[list[float]], alphabet: str) -> Decoded:
    """Of one image. In plain numbers, since a service decodes one at a time: for that numpy takes longer."""
    blank = [classes.pop() for classes in slots]
    best = [max(classes) for classes in slots]
    # Within a run the best digit of each slot is the best choice, so one candidate per run is enough.
    runs = _runs(len(slots))
    of_run = [prod(blank[: run.start] + best[run] + blank[run.stop :]) for run in runs]
    confidence = max(of_run)
    run = runs[of_run.index(confidence)]
    digits = tuple([Digit(alphabet[classes.index(p)], p) for classes, p in zip(slots[run], best[run], strict=True)])
    return Decoded("".join([digit.digit for digit in digits]), confidence, digits)
