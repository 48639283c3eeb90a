"""What every reader answers, how it is scored, and what it is made of."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.transformer import ParallelTransformers, SpatialTransformer

SLOTS = 5
"""Softmaxes of a reader: one for each digit of a number of at most five."""
CLASSES = 11
"""The ten digits and, last, the blank."""
BLANK = CLASSES - 1

_NO_TERM = -100
"""A target that is left out of the loss."""


@dataclass(frozen=True)
class ReaderOutput:
    """A reader's answer for a batch.

    Attributes:
        logits: `[N, 5, 11]`, one row for each slot; class 10 is the blank. In training, `[N, 6, 11]` of a reader that
            tells the length of the number apart (see `negative_log_likelihood`).
        theta: `[N, K, 2, 3]`, target -> source of the K transformers, normalised, in the order of the network.
        outlines: `[N, K, 4 * S, 2]`, where they looked in the input (see `models.boxes.input_outlines`). None where
            they are affine and in a row: theta says it then.
    """

    logits: Tensor
    theta: Tensor
    outlines: Tensor | None = None


def no_theta(images: Tensor) -> Tensor:
    """The theta of a reader without transformers, for its input `[N, 3, H, W]`: `[N, 0, 2, 3]`."""
    # Sliced, not made: `new_zeros` would ask for the batch size, which exports to shape operators.
    return images[:, :0, :2, :3]


def parameter_count(network: nn.Module) -> int:
    """How many numbers of a network are trained."""
    return sum(parameter.numel() for parameter in network.parameters())


def transformer_count(network: nn.Module) -> int:
    """How many transformers look for each input: the K of its theta."""
    transformers = [part for part in network.modules() if isinstance(part, SpatialTransformer)]
    return sum(part.count if isinstance(part, ParallelTransformers) else 1 for part in transformers)


def negative_log_likelihood(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over the batch of -log P(whole number).

    With one row for each slot the five are independent, so their terms add up (STN paper, section 4.2). With a row
    before them that is for the length, P = P(length) * prod P(digit) over the digits that there are (Goodfellow et al.
    2013, section 3).

    Args:
        logits: `[N, 5, 11]`, or `[N, 6, 11]` with the lengths 0 to 5 first; what cannot be has -inf.
        targets: int64 `[N, 5]`, the digits packed to the left, then blanks.
    """
    if logits.shape[1] > SLOTS:
        blank = targets == BLANK
        lengths = (~blank).sum(dim=1, keepdim=True)
        targets = torch.cat((lengths, targets.masked_fill(blank, _NO_TERM)), dim=1)
    summed = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum", ignore_index=_NO_TERM)
    return summed / len(logits)
