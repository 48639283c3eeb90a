"""The local engine: processes of this machine call the scoring core.

Each worker is a process with a reader of its own, whose session has one thread, and does all that there is to do from a
batch's files to its rows. Threads of one process would take turns with whatever Python does between the decoder and the
session: two of them reach seven tenths of what two processes do. Only what is not on this machine is read here, many
files at a time, while the batches before it are scored. A fixed number of batches is in flight, so memory does not
depend on how many images there are.

A worker is known by its pipe alone: there is no lock that it could take with it, and when either process is gone, the
other one reads the end of the pipe. A single worker needs no process: there is no second CPU to be had.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Protocol

import pyarrow as pa

from service import logs
from service.artifact import ArtifactError
from service.engine import ProviderError
from service.scoring.reading import ContentReader
from service.scoring.records import Record
from service.scoring.run import EngineError
from service.scoring.transfers import StorageError

logger = logging.getLogger(__name__)

# Not "fork": threads and sessions do not survive it.
_processes = multiprocessing.get_context("spawn")

# Batches that are being read, or have been and wait for a worker: one for each of them, and so many more.
_AHEAD = 2


class Scores(Protocol):
    """What a batch is given to, by one thread at a time."""

    def score(self, records: Sequence[Record]) -> pa.RecordBatch: ...


class WorkerDiedError(EngineError):
    """A worker's process has ended; one line that says how."""


class LocalEngine:
    """Scores as many batches at a time as there are `scorers`. At most `in_flight` should be submitted and not yet
    done."""

    def __init__(self, scorers: Sequence[Scores]) -> None:
        self.in_flight = 2 * len(scorers) + _AHEAD
        self._idle: SimpleQueue[Scores] = SimpleQueue()
        for scorer in scorers:
            self._idle.put(scorer)
        self._threads = ThreadPoolExecutor(self.in_flight, "score")
        self._contents = ContentReader()

    def submit(self, records: Sequence[Record]) -> Future[pa.RecordBatch]:
        """The rows of the records, in order, some time later; or ArtifactError, EngineError, ProviderError,
        StorageError."""
        return self._threads.submit(self._work, records)

    def close(self) -> None:
        """Drops what has not begun and waits for the rest."""
        self._threads.shutdown(cancel_futures=True)
        self._contents.close()

    def _work(self, records: Sequence[Record]) -> pa.RecordBatch:
        read = self._contents.read(records)
        scorer = self._idle.get()
        try:
            return scorer.score(read)
        finally:
            self._idle.put(scorer)


class Worker:
    """A process that makes a scorer and scores with it, for one thread at a time.

    When it dies (a decoder that crashes, the kernel that is out of memory), a new one takes its batch, once. It ends
    when this process does, however that comes. Ctrl-C is no business of its own.
    """

    def __init__(self, make: Callable[[], Scores]) -> None:
        self._make = make
        self._start()

    def wait_until_ready(self) -> None:
        """Raises ArtifactError, EngineError, ProviderError."""
        self._receive()

    def score(self, records: Sequence[Record]) -> pa.RecordBatch:
        """The rows; raises EngineError and StorageError, and where a new process cannot begin as `wait_until_ready`."""
        try:
            return self._ask(records)
        except WorkerDiedError as error:
            logger.warning("%s; its batch is given to a new one", error)
        self.close()
        self._start()
        self.wait_until_ready()
        try:
            return self._ask(records)
        except WorkerDiedError as error:
            raise EngineError(
                f"{error}, like the one before it, with the {len(records)} images from {records[0].source} on;"
                " fewer --workers or a smaller --batch-size need less memory"
            ) from error

    def close(self) -> None:
        """Lets it end, and waits for it."""
        self._pipe.close()
        self._process.join()

    def _start(self) -> None:
        self._pipe, theirs = _processes.Pipe()
        self._process = _processes.Process(target=_serve, args=(theirs, self._make), daemon=True)
        with _interrupts_held_back():
            self._process.start()
        # Only the worker's own end is left: with the process it is gone.
        theirs.close()

    def _ask(self, records: Sequence[Record]) -> pa.RecordBatch:
        try:
            self._pipe.send(records)
        except OSError:
            raise self._death() from None
        return self._receive()

    def _receive(self) -> pa.RecordBatch | None:
        try:
            answer = self._pipe.recv()
        except (EOFError, OSError):
            raise self._death() from None
        if isinstance(answer, Exception):
            raise answer
        return None if answer is None else pa.ipc.open_stream(answer).read_next_batch()

    def _death(self) -> WorkerDiedError:
        self._process.join()
        code = self._process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return WorkerDiedError(f"a worker {how}")


def _serve(pipe: Connection, make: Callable[[], Scores]) -> None:
    """The worker's process. First it sends None, or why it cannot begin; then, for each batch, rows or a StorageError.
    Any other exception ends it, with a traceback on stderr."""
    logs.configure("warning", "auto")
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # nobody is there any more
        try:
            scorer = make()
        except (ArtifactError, ProviderError) as error:
            pipe.send(error)
            return
        pipe.send(None)
        while True:
            records = pipe.recv()
            try:
                pipe.send(_as_stream(scorer.score(records)))
            except StorageError as error:
                pipe.send(error)


def _as_stream(batch: pa.RecordBatch) -> bytes:
    """In Arrow's own format, in a tenth of the time that pickling takes."""
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, batch.schema) as writer:
        writer.write_batch(batch)
    rows: bytes = stream.getvalue().to_pybytes()
    return rows


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """A process that is started in here never sees SIGINT, which a terminal sends to all processes of a command."""
    if sys.platform == "win32":
        yield
        return
    # A helper of multiprocessing, which lets SIGINT through again when it is started.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def local_engine(make: Callable[[], Scores], workers: int) -> Iterator[LocalEngine]:
    """An engine of so many workers, all of which are ready. `make` can be pickled.

    Raises ArtifactError, EngineError, ProviderError.
    """
    with ExitStack() as stack:
        if workers == 1:
            scorers: Sequence[Scores] = [make()]
        else:
            started = [stack.enter_context(closing(Worker(make))) for _ in range(workers)]
            for worker in started:
                worker.wait_until_ready()
            scorers = started
        yield stack.enter_context(closing(LocalEngine(scorers)))
