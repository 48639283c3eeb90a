"""Where the parts of a job begin that are not there yet: for those who write several at once."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from threading import Event

from service.scoring.job import Job
from service.scoring.parts import Part
from service.scoring.records import Position
from service.scoring.run import steps

# Their images are in them, where they come from tars.
_RECORDS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Span:
    """A part that is to be written, the `index`-th: `images` records from position (`file`, `offset`, `inner`) on."""

    index: int
    images: int
    file: int
    offset: int
    inner: int


def plan(job: Job, done: Mapping[int, Part], stop: Event) -> Iterator[Span]:
    """The parts that are not done. Manifests and tars are read through for it: where a part begins, their rows say."""
    if set(job.survey.files) == {"image"} and job.ask.sample >= 1:
        yield from _by_counting(job, done)
        return
    images, first = 0, Position(0)
    for step in steps(job, done, _RECORDS_AT_ONCE, stop):
        if step.records:
            first = first if images else step.first
            images += len(step.records)
        else:
            yield Span(step.index, images, *(first if images else step.first))
            images = 0


def _by_counting(job: Job, done: Mapping[int, Part]) -> Iterator[Span]:
    """The same where each file is an image and each is read."""
    total, size = min(job.survey.files["image"], job.ask.limit or sys.maxsize), job.ask.part_size
    for index, start in enumerate(range(0, total, size)):
        if index not in done:
            yield Span(index, min(size, total - start), *Position(start))
