"""What several commands share: reading DATA, and checking a number."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from models.data.collections import CollectionError, count_samples, load_collection
from models.data.sample import Sample
from models.data.shards import ShardError


@dataclass(frozen=True)
class Data:
    """One DATA path: its samples, and how many there are."""

    path: Path
    count: int
    samples: Iterator[Sample]


def open_data(paths: Sequence[Path]) -> list[Data]:
    """The samples of all `paths`. click.UsageError when there are none, or where `load_collection` raises."""
    try:
        data = [Data(path, count_samples(path), load_collection(path)) for path in paths]
    except (CollectionError, ShardError) as error:
        raise click.UsageError(str(error)) from error
    if not any(part.count for part in data):
        raise click.UsageError(f"{', '.join(map(str, paths))}: no samples")
    return data


def finite(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """Callback of an option that takes a number: click's FloatRange lets NaN through."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a finite number")
    return value
