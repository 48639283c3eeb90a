"""What every reader answers, and how it is scored."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

SLOTS = 5
"""Softmaxes of a reader: one for each digit of a number of at most five."""
CLASSES = 11
"""The ten digits and, last, the blank."""


@dataclass(frozen=True)
class ReaderOutput:
    """A reader's answer for a batch.

    Attributes:
        logits: `[N, 5, 11]`, one row for each slot; class 10 is the blank.
        theta: `[N, K, 2, 3]`, target -> source of the K transformers, normalised, in the order of the network.
    """

    logits: Tensor
    theta: Tensor


def negative_log_likelihood(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over the batch of -log P(whole number): the five slots are independent, so their terms add up.

    STN paper, section 4.2, after Goodfellow et al. (2013), section 3.

    Args:
        logits: `[N, 5, 11]`.
        targets: int64 `[N, 5]`, the digits packed to the left, then blanks.
    """
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum") / len(logits)
