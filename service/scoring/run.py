"""From a job and an engine to the dataset: which records belong to which part, and what is done when.

An engine has `submit`, which gives a future of the rows of some records, and says how many calls may be in flight.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from threading import Event
from time import monotonic
from typing import Protocol

import pyarrow as pa

from service.schemas import ModelInfo
from service.scoring.job import Job
from service.scoring.parts import Counts, Part, write_part
from service.scoring.records import Position, Record
from service.scoring.sources import records

logger = logging.getLogger(__name__)

# Is told how far the job is: what is in the parts and in the one in hand, and the share of the whole.
Observer = Callable[[Counts, float], None]

# A share of fewer rows than these says little.
_ROWS_TO_JUDGE = 1000


class Engine(Protocol):
    """Who calls the scoring core."""

    @property
    def in_flight(self) -> int: ...
    def submit(self, records: Sequence[Record]) -> Future[pa.RecordBatch]: ...


class EngineError(Exception):
    """An engine that cannot go on; one line that says why."""


class ErrorRateError(Exception):
    """More rows have an error than is allowed; one line with the counts."""


@dataclass(frozen=True, slots=True)
class Step:
    """A batch of records of the part `index`, which begins at `first`; no records: the part ends here."""

    index: int
    first: Position
    records: Sequence[Record] = ()


def run(
    job: Job, engine: Engine, *, batch_size: int, max_error_rate: float, stop: Event, observe: Observer
) -> list[Part] | None:
    """Does what is not done yet; gives all parts in order, or None where `stop` was set first: then the part in hand is
    written, and no other has begun.

    Raises EngineError, ErrorRateError, InputError, OSError, StorageError. The parts that are written stay, whatever it
    raises.
    """
    runner = _Runner(job, max_error_rate, observe)
    # One part is written while the next is scored; the end of the block waits for the last.
    with ThreadPoolExecutor(1, "write") as writer:
        in_flight: deque[tuple[Step, Future[pa.RecordBatch] | None]] = deque()
        for step in steps(job, dict(runner.parts), batch_size, stop):
            in_flight.append((step, engine.submit(step.records) if step.records else None))
            while len(in_flight) >= engine.in_flight:
                runner.take(*in_flight.popleft(), writer)
        while in_flight:
            runner.take(*in_flight.popleft(), writer)
        runner.wait_for_writing()
    if stop.is_set():
        return None
    return runner.end()


@dataclass(frozen=True)
class Scoring:
    """What a job is scored with: the `model` that reads, and an `engine` for a job, as long as it is needed."""

    model: ModelInfo
    engine: Callable[[Job], AbstractContextManager[Engine]]

    def score(
        self, job: Job, *, batch_size: int, max_error_rate: float, stop: Event, observe: Observer
    ) -> list[Part] | None:
        """As `run` does."""
        with self.engine(job) as engine:
            return run(job, engine, batch_size=batch_size, max_error_rate=max_error_rate, stop=stop, observe=observe)


def sampled(job: Job, start: Position) -> Iterator[Record]:
    """The records of a job from a position on."""
    stream = records(job.listing, job.ask.inputs, job.ask.columns, start)
    return (record for record in stream if job.ask.sample >= 1 or record.drawn(job.ask.sample))


def steps(job: Job, done: Mapping[int, Part], batch_size: int, stop: Event) -> Iterator[Step]:
    """The batches of all parts that are not done, until the records end or, after a whole part, `stop` is set."""
    index, images, position = 0, 0, Position(0)
    stream: Iterator[Record] | None = None
    while not stop.is_set():
        if part := done.get(index):
            index, images, position, stream = index + 1, images + part.counts.images, part.next, None
            continue
        stream = stream or sampled(job, position)
        room = job.ask.part_size if job.ask.limit is None else min(job.ask.part_size, job.ask.limit - images)
        taken = 0
        while batch := list(islice(stream, min(batch_size, room - taken))):
            yield Step(index, position, batch)
            taken += len(batch)
            position = batch[-1].next
        # Without any image there is still one part, so that the dataset has its columns.
        if taken or index == 0:
            yield Step(index, position)
        if taken < room or room == 0:
            return
        index, images = index + 1, images + taken


def in_order(engine: Engine, batches: Iterable[Sequence[Record]]) -> Iterator[tuple[Sequence[Record], pa.RecordBatch]]:
    """Batches with their rows, as they come; no more of them are taken and not yet done than may be in flight."""
    in_flight: deque[tuple[Sequence[Record], Future[pa.RecordBatch]]] = deque()
    for batch in batches:
        in_flight.append((batch, engine.submit(batch)))
        while len(in_flight) >= engine.in_flight:
            records, rows = in_flight.popleft()
            yield records, rows.result()
    for records, rows in in_flight:
        yield records, rows.result()


def batched(stream: Iterator[Record], size: int) -> Iterator[list[Record]]:
    """Batches of `size` records, the last of what is left."""
    return iter(lambda: list(islice(stream, size)), [])


def judge(counts: Counts, max_error_rate: float, *, at_the_end: bool = False) -> None:
    """Raises ErrorRateError when too many rows have an error; before the end, of enough rows to judge by."""
    rows, failed = counts.rows, counts.failed
    if (at_the_end or rows >= _ROWS_TO_JUDGE) and failed > max_error_rate * rows:
        reasons = ", ".join(f"{code} {count:,}" for code, count in counts.errors.items())
        raise ErrorRateError(
            f"{failed:,} of {rows:,} rows have an error ({failed / rows:.1%}; {reasons}), more than"
            f" --max-error-rate {max_error_rate:g}"
        )


class _Runner:
    """Takes the rows in order, and turns them into parts."""

    def __init__(self, job: Job, max_error_rate: float, observe: Observer) -> None:
        self.parts = job.finished_parts()
        self._job = job
        self._max_error_rate = max_error_rate
        self._observe = observe
        self._all = Counts()
        for part in self.parts.values():
            self._all.add(part.counts)
        self._in_hand: Part | None = None
        self._batches: list[pa.RecordBatch] = []
        self._writing: Future[None] | None = None
        self._since = monotonic()

    def take(self, step: Step, rows: Future[pa.RecordBatch] | None, writer: Executor) -> None:
        """The next rows, or the end of a part."""
        if self._in_hand is None:
            self._in_hand = Part(self._job.id, step.index, step.first, step.first, 0)
        part = self._in_hand
        if rows is None:
            self._finish(part, writer)
            return
        batch = rows.result()
        self._all.add(part.cover(step.records, batch))
        self._batches.append(batch)
        judge(self._all, self._max_error_rate)
        self._observe(self._all, self._share(part.consumed))

    def end(self) -> list[Part]:
        """All parts, in order."""
        judge(self._all, self._max_error_rate, at_the_end=True)
        return [self.parts[index] for index in sorted(self.parts)]

    def wait_for_writing(self) -> None:
        """Until the last part that was finished is there; raises what its writing did."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def _finish(self, part: Part, writer: Executor) -> None:
        self.wait_for_writing()
        now = monotonic()
        part.seconds, self._since = now - self._since, now
        self._writing = writer.submit(write_part, self._job.out, part, self._job.schema, self._batches)
        self.parts[part.index] = part
        self._in_hand, self._batches = None, []

    def _share(self, consumed: int) -> float:
        of_bytes = consumed / max(self._job.survey.size, 1)
        limit = self._job.ask.limit
        return of_bytes if limit is None else max(of_bytes, self._all.images / limit)
