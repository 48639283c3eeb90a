"""How far a job is: a bar on a terminal, lines in the log elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from service.scoring.parts import Counts

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True, slots=True)
class Speed:
    """Of this run: images per second, and the seconds left, None where nothing can be said yet."""

    images_per_s: float
    left_s: float | None


class Meter:
    """Speed, from the first observation on: what was done in an earlier run counts for nothing."""

    def __init__(self) -> None:
        self._first: tuple[float, int, float] | None = None

    def speed(self, images: int, share: float) -> Speed:
        now = monotonic()
        if self._first is None:
            self._first = now, images, share
        began, images_then, share_then = self._first
        elapsed, progress = now - began, share - share_then
        rate = (images - images_then) / elapsed if elapsed > 0 else 0.0
        return Speed(rate, elapsed * (1 - share) / progress if progress > 0 else None)


@contextmanager
def observer(console: Console) -> Iterator[Callable[[Counts, float], None]]:
    """What a run tells how far it is."""
    if console.is_terminal:
        with _bar(console) as observe:
            yield observe
    else:
        yield _log_lines()


def _log_lines() -> Callable[[Counts, float], None]:
    meter, last = Meter(), monotonic()

    def observe(done: Counts, share: float) -> None:
        nonlocal last
        speed = meter.speed(done.images, share)
        if monotonic() - last >= _SECONDS_BETWEEN_LINES:
            last = monotonic()
            left = None if speed.left_s is None else round(speed.left_s)
            fields = {
                "images": done.images,
                "errors": done.failed,
                "share": round(share, 4),
                "images_per_s": round(speed.images_per_s, 1),
                "left_s": left,
            }
            logger.info("scoring", extra={"fields": fields})

    return observe


@contextmanager
def _bar(console: Console) -> Iterator[Callable[[Counts, float], None]]:
    meter = Meter()
    columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=1.0)

        def observe(done: Counts, share: float) -> None:
            speed = meter.speed(done.images, share)
            left = "" if speed.left_s is None else f", {duration(speed.left_s)} left"
            text = f"{done.images:,} images, {speed.images_per_s:,.0f}/s, {done.failed:,} errors{left}"
            bar.update(task, completed=share, description=text)

        yield observe


def duration(seconds: float) -> str:
    """Seconds as a person says them: 40 s, 12 min, 3 h 20 min, 2 d 4 h."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"
