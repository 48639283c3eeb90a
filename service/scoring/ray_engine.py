"""The Ray engine: the actors of a Ray Data pool call the scoring core, on as many machines as the cluster has.

Ray Data is given the parts that are not there yet (where each begins and how many images it has), and each actor, which
holds one session, reads, scores and writes one part after the other; so neither images nor rows pass through the driver
or the object store, and what a part is to the other engines it is here: whole or not there. Ray Data places the actors,
adds more where the cluster has room, and gives the part of one that has died, with its process or with its machine, to
another, which writes it, or finds that it is there.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from threading import Event, Thread
from time import monotonic
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from numpy.typing import NDArray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from service.cpus import usable_cpus
from service.scoring.core import Loader, make_scorer
from service.scoring.inputs import InputError
from service.scoring.job import Job, remove_leftovers
from service.scoring.local import LocalEngine
from service.scoring.parts import Counts, Part, read_manifest, write_part
from service.scoring.plan import Span, plan
from service.scoring.records import Position
from service.scoring.run import EngineError, Observer, Scoring, batched, in_order, judge, sampled
from service.scoring.transfers import StorageError

# A part under which so many actors have died is what they die of: by an image that no decoder survives, or for memory.
_TRIES_OF_A_PART = 5
_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_TO_ANSWER = 10.0
# Nothing but lines of text goes through it.
_OBJECT_STORE_BYTES = 128 * 2**20


@dataclass(frozen=True, slots=True)
class Pool:
    """The actors: how many at most (None: as many as the cluster has room for), and what each one has to itself."""

    most: int | None
    cpus: int
    gpus: int

    def room(self, parts: int) -> int:
        """How many actors to begin with for so many parts: what the cluster, as it is now, has room for."""
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        fit = resources.get("GPU", 0) // self.gpus if self.gpus else resources.get("CPU", 0) // self.cpus
        return max(1, min(int(fit), parts, self.most or parts))


@dataclass(frozen=True)
class RayScoring(Scoring):
    """Scores with the cluster at `address`, or with one of this machine that is started for the job.

    `loader` loads the artifact here; the actors are sent its bytes. The inherited engine is this machine's.
    """

    loader: Loader
    pool: Pool
    address: str | None

    def score(
        self, job: Job, *, batch_size: int, max_error_rate: float, stop: Event, observe: Observer
    ) -> list[Part] | None:
        parts, counts = job.finished_parts(), Counts()
        for part in parts.values():
            counts.add(part.counts)
        spans = list(plan(job, parts, stop))
        images = counts.images + sum(span.images for span in spans)
        with _connected(self.address), _foreman(stop) as foreman:
            for part in _parts(job, spans, self.loader, self.pool, batch_size, foreman):
                if (job.out / part.name).entry() is None:
                    raise EngineError(
                        f"{job.out / part.name}: it was written on another machine, and is not here; all machines of"
                        " the cluster have to reach --output by the same name"
                    )
                parts[part.index] = part
                counts.add(part.counts)
                judge(counts, max_error_rate)
                observe(counts, counts.images / max(images, 1))
        remove_leftovers(job.out)
        if stop.is_set():
            return None
        judge(counts, max_error_rate, at_the_end=True)
        return [parts[index] for index in sorted(parts)]


class PartWriter:
    """What an actor does: it holds a session, and writes the parts that it is given."""

    def __init__(self, job: Job, loader: Loader, artifact: bytes, batch_size: int, cpus: int, foreman: Any) -> None:
        self._job = job
        self._batch_size = batch_size
        self._foreman = foreman
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / loader.model.name
            path.write_bytes(artifact)
            scorer = make_scorer(replace(loader, model=path), job.ask.answers, job.passed)
        self._engine = LocalEngine([scorer] * cpus)

    def __call__(self, spans: dict[str, NDArray[np.int64]]) -> dict[str, list[str]]:
        """The manifest of one part, or why it cannot be written; neither where the job is to stop."""
        part, error = "", ""
        try:
            span = Span(**{name: int(value) for name, (value,) in spans.items()})
            if ray.get(self._foreman.may_begin.remote(span.index)):
                part = self._written(span).to_json()
        except (EngineError, InputError, OSError, StorageError) as reason:
            error = str(reason)
        return {"part": [part], "error": [error]}

    def _written(self, span: Span) -> Part:
        first = Position(span.file, span.offset, span.inner)
        part = Part(self._job.id, span.index, first, first, 0)
        with suppress(OSError):
            # Whoever was given it before may have died just after it was there.
            found = read_manifest(self._job.out / part.name)
            if found is not None and found.job == self._job.id:
                return found
        began = monotonic()
        batches: list[pa.RecordBatch] = []
        stream = islice(sampled(self._job, first), span.images)
        for records, rows in in_order(self._engine, batched(stream, self._batch_size)):
            part.cover(records, rows)
            batches.append(rows)
        part.seconds = monotonic() - began
        write_part(self._job.out, part, self._job.schema, batches)
        return part


class _Foreman:
    """Whom the actors ask before each part; itself one, beside the driver."""

    def __init__(self) -> None:
        self._stopping = False
        self._tries: Counter[int] = Counter()

    def stop(self) -> None:
        self._stopping = True

    def may_begin(self, index: int) -> bool:
        """Raises EngineError for a part that has been begun too often."""
        if self._stopping:
            return False
        self._tries[index] += 1
        if self._tries[index] > _TRIES_OF_A_PART:
            raise EngineError(f"part {index}: {_TRIES_OF_A_PART} actors have died under it; Ray's logs say of what")
        return True


def _parts(
    job: Job, spans: Sequence[Span], loader: Loader, pool: Pool, batch_size: int, foreman: Any
) -> Iterator[Part]:
    """The parts as they come to be, in any order. Raises EngineError."""
    if not spans:
        return
    answers = ray.data.from_items([asdict(span) for span in spans], override_num_blocks=len(spans)).map_batches(
        PartWriter,
        fn_constructor_kwargs={
            "job": job,
            "loader": loader,
            "artifact": loader.model.read_bytes(),
            "batch_size": batch_size,
            "cpus": pool.cpus,
            "foreman": foreman,
        },
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=pool.most, initial_size=pool.room(len(spans))),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
    )
    try:
        for row in answers.iter_rows():
            if row["error"]:
                raise EngineError(row["error"])
            if row["part"]:
                yield Part.from_json(row["part"])
    except RayError as error:
        raise EngineError(f"Ray: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """What is at the bottom of an error that Ray has wrapped, in one line."""
    while isinstance(error, RayError) and (cause := getattr(error, "cause", None) or error.__cause__):
        error = cause
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


@contextmanager
def _foreman(stop: Event) -> Iterator[Any]:
    """A foreman who lets nobody begin any more as soon as `stop` is set."""
    # Where the driver is, so that it dies of nothing that the job survives. "Soft" would let it be anywhere.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    foreman: Any = ray.remote(_Foreman).options(num_cpus=0, scheduling_strategy=here).remote()
    over = Event()

    def watch() -> None:
        while not over.wait(_SECONDS_BETWEEN_LOOKS):
            if stop.is_set():
                foreman.stop.remote()
                return

    thread = Thread(target=watch, name="stop", daemon=True)
    thread.start()
    try:
        yield foreman
    finally:
        over.set()
        thread.join()


def _call(address: str) -> None:
    """Raises OSError where nobody answers at HOST:PORT: there Ray would end this process, and not say where."""
    host, _, port = address.rpartition(":")
    if "://" not in address and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), _SECONDS_TO_ANSWER).close()


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """As a driver of the cluster. Raises EngineError where there is none."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if address is None:
            ray.init(
                "local",
                num_cpus=usable_cpus(),
                object_store_memory=_OBJECT_STORE_BYTES,
                include_dashboard=False,
                **quiet,
            )
        else:
            _call(address)
            ray.init(address, **quiet)
    except (OSError, RayError, RuntimeError, ValueError) as error:
        raise EngineError(f"Ray at {address or 'this machine'}: {' '.join(str(error).split())}") from error
    finally:
        for number, handler in handlers.items():  # Ray takes them, and a job is to end after the parts in hand
            signal.signal(number, handler)
    try:
        # It tells of each dataset and its failures, which are told here; its files in Ray's folder keep it all.
        for output in logging.getLogger("ray.data").handlers:
            if isinstance(output, logging.StreamHandler):
                output.setLevel(logging.CRITICAL)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        # What comes out of a task is one line: no room is to be kept for more.
        context.target_max_block_size = 2**20
        yield
    finally:
        ray.shutdown()
