"""Batch scoring for its tests: small inputs, the command in this process or in its own, and what it wrote."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from click.testing import CliRunner, Result
from serving import plain

from housenumber.cli import main
from service.scoring.storage import Place


def score(artifact: Path, *arguments: object) -> Result:
    """`housenumber score` with the tiny reader; unless `--workers` says otherwise, all of it in this process."""
    return command("--model", artifact, "--provider", "cpu", "--workers", 1, *arguments)


def command(*arguments: object) -> Result:
    """`housenumber score` in this process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        return CliRunner().invoke(main, ["score", *map(str, arguments)])
    finally:
        # The command logs to a stream that is gone now.
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.captureWarnings(False)


def rows(out: Path | str) -> list[dict[str, Any]]:
    """The rows of a dataset, part after part, after a check that it says it is whole."""
    place = Place.parse(str(out))
    names = [entry.place for entry in place.entries()]
    assert place / "_SUCCESS" in names
    assert not [name for name in names if name.name.startswith("_tmp-")]
    parts = [name for name in names if name.name.startswith("part-")]
    assert parts
    return [row for part in parts for row in pq.read_table(pa.BufferReader(part.read())).to_pylist()]


def summary(out: Path | str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Place.parse(str(out)) / "_summary.json").read())
    return found


def numbers(out: Path | str) -> dict[str, str | None]:
    """What was read, by id, after a check that no id is there twice."""
    found = [(row["id"], row["number"]) for row in rows(out)]
    assert len(dict(found)) == len(found)
    return dict(found)


def folder_of(root: Path, count: int) -> Path:
    """A folder of `count` images, the i-th of which reads as i, in it and in folders of it."""
    for index in range(count):
        path = root / ("ab"[index % 2] * (index % 3)) / f"{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(plain(str(index)))
    return root


def tar_of(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@contextmanager
def process(
    artifact: Path, *arguments: object, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """`housenumber score` with the tiny reader, in a process of its own."""
    with running("--model", artifact, "--provider", "cpu", *arguments, env=env) as started:
        yield started


@contextmanager
def running(*arguments: object, env: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """`housenumber score` in a process of its own, with its log in a pipe; it is gone at the end. It leads a group, as
    what a terminal starts does."""
    command = [sys.executable, "-m", "housenumber", "score", *map(str, arguments)]
    started = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env, start_new_session=True)
    try:
        yield started
    finally:
        started.kill()
        started.communicate()
