"""The shipped reader on real photographs, through the whole chain.

The floors are a little under the figures in docs/results.md.

The photographs may not be in the repository. HOUSENUMBER_REAL_COLLECTIONS names the directory with their labels.jsonl;
where it is set, a missing directory fails.
"""

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from housenumber.cli import main
from service.settings import DEFAULT_MODEL

VARIABLE = "HOUSENUMBER_REAL_COLLECTIONS"

FLOORS = {
    "svhn-strips": 0.84,
    "svhn-originals": 0.71,
    "svhn-crops": 0.76,
    "plates": 0.95,
    "plates-photos": 0.95,
    "signs": 0.98,
    "signs-photos": 0.98,
}
"""Whole numbers right, doubtful labels excepted, nothing else left out."""

SIZES = {
    "svhn-strips": 226,
    "svhn-originals": 7,
    "svhn-crops": 21,
    "plates": 39,
    "plates-photos": 39,
    "signs": 64,
    "signs-photos": 31,
}


WHOLE_FLOORS = {"plates-photos": 0.87, "signs-photos": 0.96}
"""The same for photographs that are read without the region that is known."""


def accuracies(folder: Path, *flags: str) -> dict[str, float]:
    report = folder / "report.json"
    arguments = ["evaluate", str(DEFAULT_MODEL), os.environ[VARIABLE], "--json", str(report), "--provider", "cpu"]
    result = CliRunner().invoke(main, [*arguments, *flags])
    assert result.exit_code == 0, result.output
    collections = json.loads(report.read_text())["collections"]
    assert {name: figures["n"] for name, figures in collections.items()} == SIZES
    return {name: figures["accuracy"] for name, figures in collections.items()}


@pytest.mark.skipif(VARIABLE not in os.environ, reason=f"{VARIABLE} names no directory")
def test_the_shipped_reader_reads_real_photographs(tmp_path: Path) -> None:
    right = accuracies(tmp_path)
    assert not {name: right[name] for name in FLOORS if right[name] < FLOORS[name]}


@pytest.mark.skipif(VARIABLE not in os.environ, reason=f"{VARIABLE} names no directory")
def test_it_finds_the_numbers_in_whole_photographs_by_searching(tmp_path: Path) -> None:
    searched, once = accuracies(tmp_path, "--whole"), accuracies(tmp_path, "--whole", "--no-search")
    assert not {name: searched[name] for name in WHOLE_FLOORS if searched[name] < WHOLE_FLOORS[name]}
    assert all(once[name] < searched[name] for name in WHOLE_FLOORS)
