"""What an experiment is: a function from settings to figures, and the tables that these fill."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor


class ExperimentError(Exception):
    """An experiment that cannot run as it was asked to; the message says what to do, in one line."""


def _untold(total: int, description: str) -> Iterable[int]:
    return range(total)


@dataclass(frozen=True)
class Settings:
    """One run of an experiment.

    Attributes:
        seed: everything random follows from it: the same seed gives the same figures, on one kind of machine.
        out: folder that takes what the experiment writes itself; it exists.
        data: what `--data` gave; what it has to be is the experiment's to say.
        full: whether to follow the published schedule rather than the default budget, in every cell.
        every: whether the default budget too is for every cell of the tables, not for the few that answer the question.
        steps: trains every network for so many steps, whatever the budget says.
        collections: photographs of house numbers, beside what is learned from.
        model: a reader, artifact or weights.
        twin: what it is compared with, likewise.
        track: `range(total)` with a progress bar of that description.
    """

    seed: int
    out: Path
    data: Path | None = None
    full: bool = False
    every: bool = False
    steps: int | None = None
    collections: tuple[Path, ...] = ()
    model: Path | None = None
    twin: Path | None = None
    track: Callable[[int, str], Iterable[int]] = _untold

    def budget(self, default: int, full: int) -> int:
        """How many steps to train for, where an experiment's two schedules say so many."""
        return self.steps or (full if self.full else default)


Cells = dict[str, dict[str, float]]
"""Figures of one table: by row, then by column. What was not measured is missing."""


def ratios(cells: Mapping[str, Mapping[str, float]], row: str) -> Cells:
    """Every other row's figures by those of one, where these are not 0."""
    return {
        name: {column: value / cells[row][column] for column, value in figures.items() if cells[row].get(column)}
        for name, figures in cells.items()
        if name != row
    }


def correlation(points: Tensor, others: Tensor) -> float:
    """Pearson's r of points `[N, 2]` with others, the mean over x and y; 0 for points that never move."""
    moved = [those - those.mean(dim=0) for those in (points, others)]
    deviations = [those.square().mean(dim=0).sqrt().clamp(min=1e-6) for those in moved]
    return float(((moved[0] * moved[1]).mean(dim=0) / (deviations[0] * deviations[1])).mean())


@dataclass(frozen=True)
class Result:
    """What one seed gave.

    Attributes:
        figures: the cells of each table, by its key.
        details: what else is worth keeping in the JSON, such as the cost of the networks.
        plots: pictures by file name without ending; those of the first seed are kept.
        notes: lines under the tables: what it was measured on; those of the first seed are kept.
    """

    figures: dict[str, Cells]
    details: dict[str, Any] = field(default_factory=dict)
    plots: dict[str, Figure] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """How figures are shown. Rows and columns that nothing filled are left out.

    Attributes:
        key: of the figures in a `Result`.
        title: with the unit.
        columns: in order; a figure of any other column is a mistake.
        published: the paper's figures.
        decimals: of our figures.
    """

    key: str
    title: str
    columns: Sequence[str]
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    decimals: int = 1


@dataclass(frozen=True)
class Experiment:
    """What a module of this package offers as `EXPERIMENT`.

    Attributes:
        title: what is compared.
        run: one seed.
        tables: what the figures fill.
        notes: lines under the tables: what differs from the paper.
        curves: pictures of all seeds together, by file name without ending.
        options: those of the command line that not all experiments have, and this one has.
    """

    title: str
    run: Callable[[Settings], Result]
    tables: Sequence[Table]
    notes: Sequence[str] = ()
    curves: Callable[[Sequence[Result]], dict[str, Figure]] = lambda results: {}
    options: Sequence[str] = ("data",)


def best_device() -> torch.device:
    """CUDA where there is some."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and the standard deviation of a sample, which a single value does not have."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None
