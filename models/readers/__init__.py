"""The readers: networks that read a whole house number from one view.

Every reader takes float `[N, 3, H, W]` in [0, 1] and answers with a `ReaderOutput`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from models.readers import compact, maxout, paper, parallel, shared
from models.readers.base import (
    CLASSES,
    SLOTS,
    ReaderOutput,
    negative_log_likelihood,
    parameter_count,
    transformer_count,
)

__all__ = [
    "CLASSES",
    "READERS",
    "SIDE_BY_SIDE",
    "SLOTS",
    "ReaderOutput",
    "ReaderSpec",
    "build_reader",
    "negative_log_likelihood",
    "parameter_count",
    "transformer_count",
]

READERS: dict[str, Callable[[int, int], nn.Module]] = {
    "compact": compact.compact,
    "compact_points": compact.compact_points,
    "compact_cnn": compact.compact_cnn,
    "cnn": paper.cnn,
    "st_cnn_single": paper.st_cnn_single,
    "st_cnn_multi": paper.st_cnn_multi,
    "maxout_cnn": maxout.maxout_cnn,
    "maxout_cnn_slots": maxout.maxout_cnn_slots,
    "shared": shared.shared,
    "parallel": parallel.parallel,
}
"""Name -> constructor from (input height, input width) in pixels."""

SIDE_BY_SIDE = frozenset({"parallel"})
"""Those whose transformers stand side by side: they read from all their boxes. The others read from the last one."""


@dataclass(frozen=True)
class ReaderSpec:
    """All that is needed to build a reader again, beside its weights.

    Attributes:
        reader: a name in `READERS`.
        input_height: rows of the view the reader is shown, in pixels.
        input_width: columns of that view.
        training: what is worth knowing about how the weights were made (recipe, seed, steps, data); JSON values.
    """

    reader: str
    input_height: int
    input_width: int
    training: dict[str, Any] = field(default_factory=dict)


def build_reader(spec: ReaderSpec) -> nn.Module:
    """The network of `spec`, freshly initialised.

    Raises:
        ValueError: no reader has that name, or it cannot take that input size.
    """
    if spec.reader not in READERS:
        raise ValueError(f"no reader is called {spec.reader!r}; there are {', '.join(READERS)}")
    return READERS[spec.reader](spec.input_height, spec.input_width)
