"""A job: what is asked, of whom, of which model; kept in the output, so that nothing else is ever mixed into it."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from service.schemas import ModelInfo
from service.scoring.core import Answers
from service.scoring.inputs import Survey, parse_input, read_listing, write_listing
from service.scoring.parts import Counts, Part, finished_parts
from service.scoring.records import Columns
from service.scoring.schema import SCHEMA_VERSION, joined_columns, output_schema
from service.scoring.sources import passed_columns
from service.scoring.storage import TEMPORARY_PREFIX, Place

logger = logging.getLogger(__name__)

# A leading underscore hides a file from whoever reads the folder as a dataset (pandas, Spark).
JOB, LISTING, SUCCESS, SUMMARY, LOCK = "_JOB.json", "_listing.parquet", "_SUCCESS", "_summary.json", "_lock"
_OURS = (JOB, LISTING, SUCCESS, SUMMARY, LOCK)
_SETTINGS = ("second_look", "search")  # of what a job is, this is no flag of the command


class JobError(Exception):
    """The output belongs to something else, or to somebody else; one line that says to what."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Everything about a job, but the model, that decides what its rows are and how they are cut into parts.

    `inputs` as they are written, `sample` a share, `part_size` in images, `limit` None for all images.
    """

    inputs: tuple[str, ...]
    columns: Columns
    answers: Answers
    sample: float
    limit: int | None
    part_size: int


@dataclass(frozen=True, slots=True)
class Job:
    """A job that has an output. `id` names what it is; `passed` are the columns that are passed through."""

    out: Place
    ask: Ask
    id: str
    model: Mapping[str, str]
    survey: Survey
    passed: Mapping[str, pa.DataType]
    schema: pa.Schema

    @property
    def listing(self) -> Place:
        return self.out / LISTING

    def finished_parts(self) -> dict[int, Part]:
        """The parts that are done; raises JobError for those of another job."""
        parts = finished_parts(self.out)
        if strangers := [part.name for part in parts.values() if part.job != self.id]:
            raise JobError(f"{self.out}: {strangers[0]} is of another job; give another --output")
        return parts


def open_job(out: Place, ask: Ask, model: ModelInfo) -> Job:
    """Begins a job in an empty output, or takes up the one that is there.

    Raises JobError where it is another one, InputError, OSError, StorageError.
    """
    identity = _identity(ask, model)
    names = {entry.place.name: entry.place for entry in out.entries()}
    remove_leftovers(out)
    if JOB in names:
        stored = json.loads((out / JOB).read())
        for later in _SETTINGS:  # begun before there were any
            stored["identity"]["answers"].setdefault(later, False)
        _check_same(out, stored["identity"], identity)
        logger.info("going on with the job of %s", stored["begun"], extra={"fields": {"job": stored["id"]}})
    else:
        if strange := [name for name in names if not name.startswith((TEMPORARY_PREFIX, *_OURS))]:
            raise JobError(f"{out}: it is not empty ({strange[0]}) and holds no job; give another --output")
        stored = _begin(out, ask, identity)
    passed = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(stored["passed_schema"])))
    types = dict(zip(passed.names, passed.types, strict=True))
    return Job(out, ask, stored["id"], identity["model"], Survey(**stored["survey"]), types, output_schema(types))


def remove_leftovers(out: Place) -> None:
    """Deletes the files that were being written by processes which have been killed."""
    for entry in out.entries():
        if entry.place.name.startswith(TEMPORARY_PREFIX):
            entry.place.delete()


def finish_job(job: Job, parts: Sequence[Part]) -> dict[str, Any]:
    """Writes the summary, which it also gives, and last of all the mark that everything is there."""
    counts, seconds = Counts(), sum(part.seconds for part in parts)
    for part in parts:
        counts.add(part.counts)
    summary = {
        "schema_version": SCHEMA_VERSION,
        "job": job.id,
        "model": job.model,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "images": counts.images,
        "rows": counts.rows,
        "accepted": counts.accepted,
        "accepted_share": round(counts.accepted / max(counts.rows, 1), 6),
        "errors": counts.errors,
        "error_share": round(counts.failed / max(counts.rows, 1), 6),
        "parts": len(parts),
        "seconds": round(seconds, 3),
        "images_per_s": round(counts.images / seconds, 1) if seconds else None,
        "files": job.survey.files,
        "bytes": job.survey.size,
        "passed_over": job.survey.passed_over,
    }
    (job.out / SUMMARY).write(json.dumps(summary, indent=1).encode() + b"\n")
    (job.out / SUCCESS).write(b"")
    return summary


def _begin(out: Place, ask: Ask, identity: Mapping[str, Any]) -> dict[str, Any]:
    survey = write_listing(out / LISTING, ask.inputs)
    passed = pa.schema(list(_passed(out, ask, survey).items()))
    output_schema(dict(zip(passed.names, passed.types, strict=True)))  # raises, before there is a job
    stored = {
        "id": hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16],
        "begun": datetime.now(UTC).isoformat(timespec="seconds"),
        "identity": identity,
        "survey": asdict(survey),
        "passed_columns": {field.name: str(field.type) for field in passed},
        "passed_schema": base64.b64encode(passed.serialize()).decode(),
    }
    (out / JOB).write(json.dumps(stored, indent=1).encode() + b"\n")
    return stored


def _identity(ask: Ask, model: ModelInfo) -> dict[str, Any]:
    """What must be the same for a job to go on, as JSON gives it back."""
    # Absolute: what is read must not depend on the folder that the command is called in.
    inputs = [str(parse_input(text)) for text in ask.inputs]
    identity = {
        "schema_version": SCHEMA_VERSION,
        **asdict(ask),
        "inputs": inputs,
        "model": model.identity,
    }
    return dict(json.loads(json.dumps(identity)))


def _check_same(out: Place, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for name in {**before, **now}:
        was, is_now = before.get(name), now.get(name)
        if isinstance(was, dict) and isinstance(is_now, dict):
            _check_same(out, was, is_now)
        elif was != is_now:
            setting = f" (HOUSENUMBER_{name.upper()})" if name in _SETTINGS else ""
            raise JobError(
                f"{out}: it holds another job: {name} was {json.dumps(was)} and is {json.dumps(is_now)} now{setting};"
                " give another --output, or the same command as before"
            )


def _passed(out: Place, ask: Ask, survey: Survey) -> dict[str, pa.DataType]:
    """The columns that are passed through: those of every manifest, and of the first tar for all."""
    if set(survey.files) <= {"image"}:
        return {}
    seen: set[str] = set()
    files = []
    for file in read_listing(out / LISTING, ask.inputs):
        if file.kind != "image" and not (file.kind == "tar" and "tar" in seen):
            files.append(file)
        seen.add(file.kind)
    return joined_columns(passed_columns(file, ask.columns) for file in files)
