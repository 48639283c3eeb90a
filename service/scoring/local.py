"""The local engine: the threads of one process call the scoring core.

A fixed number of batches is in flight. A batch's bytes are read first, many at a time where they are not on this
machine; then it takes one of as many slots as there are CPUs, in which it is decoded, read by a session of one thread,
and made rows of. So one batch is read while another is decoded and a third is in the session, no two threads want the
same CPU, and memory does not depend on how many images there are. Pillow, ONNX Runtime and pyarrow let go of the
interpreter's lock while they work.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import pyarrow as pa

from service.scoring.records import Record
from service.scoring.storage import Place

Score = Callable[[Sequence[Record]], pa.RecordBatch]

# A file of an object store takes tens of milliseconds, whatever its size.
_REMOTE_READERS = 32
# Batches that are being read, or have been and wait for a slot.
_AHEAD = 2


class LocalEngine:
    """Scores batches, `workers` of them at a time. At most `in_flight` should be submitted and not yet done."""

    def __init__(self, score: Score, workers: int) -> None:
        self.in_flight = workers + _AHEAD
        self._score = score
        self._slots = threading.Semaphore(workers)
        self._threads = ThreadPoolExecutor(self.in_flight, "score")
        self._readers = ThreadPoolExecutor(_REMOTE_READERS, "read")

    def submit(self, records: Sequence[Record]) -> Future[pa.RecordBatch]:
        """The rows of the records, in order, some time later; or StorageError."""
        return self._threads.submit(self._work, records)

    def close(self) -> None:
        """Drops what has not begun and waits for the rest."""
        self._threads.shutdown(cancel_futures=True)
        self._readers.shutdown(cancel_futures=True)

    def _work(self, records: Sequence[Record]) -> pa.RecordBatch:
        if any(isinstance(record.content, Place) and not record.content.is_local for record in records):
            read = list(self._readers.map(_with_content, records))
        else:
            read = list(map(_with_content, records))
        with self._slots:
            return self._score(read)


def _with_content(record: Record) -> Record:
    return replace(record, content=record.read())


@contextmanager
def local_engine(score: Score, workers: int) -> Iterator[LocalEngine]:
    engine = LocalEngine(score, workers)
    try:
        yield engine
    finally:
        engine.close()
