"""What a measurement found: figures by round, and the table and JSON that they end in."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


class Figures:
    """What was measured under each name, round by round."""

    def __init__(self) -> None:
        self.rounds: dict[str, list[float]] = defaultdict(list)

    def note(self, name: str, value: float) -> None:
        self.rounds[name].append(value)

    def median(self, name: str) -> float:
        return statistics.median(self.rounds[name])

    def ratio(self, name: str, reference: str) -> float:
        """The median of the rounds' ratios."""
        pairs = zip(self.rounds[name], self.rounds[reference], strict=True)
        return statistics.median(value / other for value, other in pairs)


@dataclass(frozen=True)
class Row:
    """One line of the table. `least` and `most` are targets; a figure without one is reported, no more."""

    name: str
    value: float
    unit: str = ""
    least: float | None = None
    most: float | None = None

    @property
    def verdict(self) -> str:
        if self.least is None and self.most is None:
            return ""
        high_enough = self.least is None or self.value >= self.least
        low_enough = self.most is None or self.value <= self.most
        return "met" if high_enough and low_enough else "MISSED"

    @property
    def target(self) -> str:
        return " ".join(
            f"{sign} {limit:g}" for sign, limit in ((">=", self.least), ("<=", self.most)) if limit is not None
        )


def show(rows: list[Row], json_out: Path | None, **told: Any) -> None:
    """Prints the table; writes `told`, the rows and their verdicts to `json_out`, if there is one."""
    table = Table("figure", "value", "unit", "target", "")
    for row in rows:
        table.add_row(row.name, f"{row.value:.4g}", row.unit, row.target, row.verdict)
    Console().print(table)
    if json_out:
        listed = [{**asdict(row), "verdict": row.verdict} for row in rows]
        json_out.write_text(json.dumps({**told, "rows": listed}, indent=1) + "\n")
