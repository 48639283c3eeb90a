"""Scorers for worker processes, to which something happens. Imports little: every worker does it again."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from service.engine import OnnxEngine, Outputs
from service.reader import Reader
from service.scoring.core import Answers, Scorer
from service.scoring.records import Record
from service.scoring.transfers import StorageError


class _Engine(OnnxEngine):
    """Kills its process when it is shown a plain image of this red, until there are so many files in `graves`."""

    def __init__(self, artifact: Path, red: int, graves: Path, deaths: int) -> None:
        super().__init__(artifact, "cpu", intra_op_threads=1)
        self._red = red
        self._graves = graves
        self._deaths = deaths

    def infer(self, images: NDArray[np.uint8]) -> Outputs:
        if (images[:, 0, 0, 0] == self._red).any() and len(list(self._graves.iterdir())) < self._deaths:
            (self._graves / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().infer(images)


def mortal(artifact: Path, red: int, graves: Path, deaths: int) -> Scorer:
    return Scorer(Reader(_Engine(artifact, red, graves, deaths)), Answers(None, True, 10**6, True, search=True), {})


class CutOff:
    """Reaches no storage; says which process it is."""

    def score(self, records: Sequence[Record]) -> pa.RecordBatch:
        raise StorageError(f"no answer to {os.getpid()}")


class Imports:
    """Answers with the packages that its process has loaded."""

    def score(self, records: Sequence[Record]) -> pa.RecordBatch:
        return pa.record_batch({"name": sorted({name.partition(".")[0] for name in sys.modules})})
