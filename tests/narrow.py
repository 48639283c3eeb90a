"""The papers' networks with a few units in each layer: of the same form, and cheap to train, export and run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from families import FAMILIES

from models.readers import READERS, maxout, paper
from models.readers.paper import PaperReader, connected_localisation
from models.transformer import Sampling

COMBINED = "combined"
"""The name of the reader that `registered` makes known."""


@contextmanager
def narrow_networks() -> Iterator[None]:
    """Whatever of the papers' readers is built meanwhile is narrow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paper, "CONVOLUTIONS", tuple((8, pooled) for _, pooled in paper.CONVOLUTIONS))
        patch.setattr(paper, "FULLY_CONNECTED", (24, 24))
        patch.setattr(maxout, "UNITS", (8,) * len(maxout.UNITS))
        patch.setattr(maxout, "LOCAL_UNITS", 8)
        patch.setattr(maxout, "FULLY_CONNECTED", (24, 24))
        yield


@contextmanager
def registered(family: str, sampling: Sampling) -> Iterator[None]:
    """`COMBINED` is a narrow reader with two such transformers in a row, and a pooling between them."""

    def build(height: int, width: int) -> PaperReader:
        return PaperReader(height, 2, connected_localisation, FAMILIES[family].transformation, sampling)

    with narrow_networks(), pytest.MonkeyPatch.context() as patch:
        patch.setitem(READERS, COMBINED, build)
        yield
