"""What a job would read, how much, and how long: from the list of files and a timed beginning; nothing is kept."""

from __future__ import annotations

import tempfile
from itertools import chain, islice
from time import perf_counter

from service.scoring.inputs import Survey
from service.scoring.job import Ask, Job, open_job
from service.scoring.parts import Counts
from service.scoring.progress import duration
from service.scoring.records import Position, Record
from service.scoring.run import Scoring, batched, in_order, sampled
from service.scoring.storage import Place

# Enough to time, few enough to wait for.
_ROUNDS = 8
_NAMES = {
    "image": "image",
    "tar": "tar shard",
    "csv": "CSV manifest",
    "jsonl": "JSON lines manifest",
    "parquet": "Parquet manifest",
}


def dry_run(ask: Ask, scoring: Scoring, batch_size: int) -> str:
    """Lines for a person; raises as `open_job` and the engine do."""
    with tempfile.TemporaryDirectory() as folder:
        job = open_job(Place.parse(folder), ask, scoring.model)
        lines = [_what(job.survey)]
        seconds, counts, last = _score(job, scoring, batch_size)
    if last is None:
        return "\n".join([*lines, "there is no image to read"])
    total = _images(job, counts.images, last)
    rate = counts.images / seconds
    lines.append(f"about {total:,} images to be read, {-(-total // ask.part_size):,} files to be written")
    lines.append(f"{rate:,.0f} images/s here, measured on the first {counts.images:,}: {duration(total / rate)}")
    if counts.failed:
        reasons = ", ".join(f"{code} {count:,}" for code, count in counts.errors.items())
        lines.append(f"{counts.failed:,} of {counts.rows:,} rows of these have an error: {reasons}")
    return "\n".join(lines)


def _score(job: Job, scoring: Scoring, batch_size: int) -> tuple[float, Counts, Record | None]:
    """Scores the first images: the seconds it took, what came of it, and the last of them."""
    counts = Counts()
    with scoring.engine(job) as engine:
        wanted = _ROUNDS * engine.in_flight * batch_size
        batches = batched(islice(sampled(job, Position(0)), min(wanted, job.ask.limit or wanted)), batch_size)
        last: Record | None = None
        if first := next(batches, None):
            engine.submit(first).result()  # what takes its time only once is not to be timed
            batches = chain((first,), batches)
        started = perf_counter()
        for batch, rows in in_order(engine, batches):
            counts.add(Counts.of(len(batch), rows))
            last = batch[-1]
        return perf_counter() - started, counts, last


def _images(job: Job, scored: int, last: Record) -> int:
    """How many images the job has: exact where the files say so, else by the share of the bytes that gave the first."""
    exact = job.survey.files.get("image", 0)
    if set(job.survey.files) == {"image"} and job.ask.sample == 1:
        total = exact
    else:
        total = max(scored, round(scored * job.survey.size / max(last.consumed, 1)))
    return total if job.ask.limit is None else min(total, job.ask.limit)


def _what(survey: Survey) -> str:
    files = [f"{count:,} {_NAMES[kind]}{'' if count == 1 else 's'}" for kind, count in survey.files.items()]
    passed_over = f"; {survey.passed_over:,} other files are passed over" if survey.passed_over else ""
    return f"{', '.join(files) or 'no file'}: {_size(survey.size)}{passed_over}"


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}" if unit != "bytes" else f"{count:.0f} bytes"
        count /= 1024
    return f"{count:,.1f} TiB"
