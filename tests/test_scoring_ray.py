"""Batch scoring on a Ray cluster of several nodes: the same rows, each of them once, whatever dies meanwhile."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from balancer import free_port
from ray_cluster import Cluster, ray_cluster
from scoring import folder_of, process, rows, score, summary, tar_of
from serving import plain, wait_until

from service.schemas import ModelInfo
from service.scoring.core import Answers
from service.scoring.job import Ask, open_job
from service.scoring.parts import finished_parts
from service.scoring.plan import plan
from service.scoring.records import Columns
from service.scoring.storage import Place

# A machine that is busy with other things may need this long for what takes a second.
PATIENCE_S = 300.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with ray_cluster(nodes=2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A folder, a tar and a manifest: 240 images that take a while to decode, and one that cannot be."""
    root = tmp_path_factory.mktemp("inputs")
    folder = folder_of(root / "in", 9)
    (folder / "junk.png").write_bytes(b"junk")
    images = [plain(str(number), (1200, 800)) for number in range(10)]
    for number, image in enumerate(images):
        (root / f"{number}.png").write_bytes(image)
    shard = tar_of(root / "shard.tar", [(f"{index}.png", images[index % 10]) for index in range(40)])
    manifest = root / "manifest.csv"
    manifest.write_text(
        "id,path,weekday\n" + "".join(f"{index},{index % 10}.png,{index % 7}\n" for index in range(191))
    )
    return [folder, shard, manifest]


@pytest.fixture(scope="module")
def expected(artifact: Path, inputs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the local engine makes of them."""
    out = tmp_path_factory.mktemp("expected")
    result = score(artifact, *inputs, "--output", out, "--workers", 1)
    assert result.exit_code == 0, result.output
    found = rows(out)
    assert len({row["id"] for row in found}) == len(found) == 241
    return found


def parts(out: Path) -> dict[str, int]:
    """The parts that are there, with what changes when one is written anew."""
    return {path.name: path.stat().st_ino for path in out.glob("part-*.parquet")}


def on(cluster: Cluster, inputs: list[Path], out: Path) -> list[object]:
    """Arguments of a job in 31 parts."""
    return [*inputs, "--output", out, "--part-size", 8, "--engine", "ray", "--address", cluster.address]


def test_a_signal_ends_the_job_after_the_parts_in_hand_and_it_goes_on(
    artifact: Path, cluster: Cluster, inputs: list[Path], expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with process(artifact, *on(cluster, inputs, out)) as job:
        wait_until(lambda: len(parts(out)) > 1, PATIENCE_S)
        job.send_signal(signal.SIGTERM)
        _, log = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == 143, log
    assert "the same command goes on" in log
    assert "Traceback" not in log
    kept = parts(out)
    assert 1 < len(kept) < 31
    assert not list(out.glob("_tmp-*"))
    # An engine is no part of what a job is.
    rest = score(artifact, *inputs, "--output", out, "--part-size", 8, "--workers", 1)
    assert rest.exit_code == 0, rest.output
    assert {name: parts(out)[name] for name in kept} == kept
    assert rows(out) == expected


def test_a_driver_that_is_killed_goes_on(
    artifact: Path, cluster: Cluster, inputs: list[Path], expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with process(artifact, *on(cluster, inputs, out)) as job:
        wait_until(lambda: len(parts(out)) > 1, PATIENCE_S)
        job.kill()
        assert job.wait() == -signal.SIGKILL, "it had come to its end before it was killed"
    with process(artifact, *on(cluster, inputs, out)) as job:
        _, log = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == 0, log
    assert rows(out) == expected
    assert summary(out)["images"] == 241


def test_a_worker_and_then_a_node_that_die_cost_no_row(artifact: Path, cluster: Cluster, tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / f"{number}.png").write_bytes(plain(str(number), (2000, 1500)))
    manifest, out = tmp_path / "manifest.csv", tmp_path / "out"
    manifest.write_text("id,path\n" + "".join(f"{index},{index % 10}.png\n" for index in range(240)))
    first, second = cluster.nodes
    with process(artifact, *on(cluster, [manifest], out)) as job:

        def wait_for(condition: Callable[[], bool]) -> None:
            wait_until(lambda: job.poll() is not None or condition(), PATIENCE_S)
            assert job.poll() is None, "it had come to its end before enough had died"

        wait_for(lambda: bool(cluster.actors(first) and cluster.actors(second) and parts(out)))
        os.kill(cluster.actors(first)[0], signal.SIGKILL)
        before = len(parts(out))
        wait_for(lambda: len(parts(out)) > before + 1)
        assert len(parts(out)) < 30
        cluster.kill(second)
        _, log = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == 0, log
    # Each once; and `rows` looks for what was left behind.
    assert [(row["id"], row["number"]) for row in rows(out)] == [(str(index), str(index % 10)) for index in range(240)]
    assert summary(out)["parts"] == 30


def test_without_an_address_a_cluster_of_this_machine_is_started(
    artifact: Path, inputs: list[Path], expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    flags = ("--output", tmp_path / "out", "--engine", "ray")
    with process(artifact, *inputs, *flags, env=environment) as job:
        _, log = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == 0, log
    assert rows(tmp_path / "out") == expected


def test_a_cluster_that_is_not_there_is_one_line(artifact: Path, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port('127.0.0.1')}"
    flags = ("--output", tmp_path / "out", "--engine", "ray", "--address", address)
    with process(artifact, folder_of(tmp_path / "in", 1), *flags) as job:
        _, log = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == 1, log
    assert f"Error: Ray at {address}: " in log
    assert "Traceback" not in log


def test_without_ray_it_says_which_extra_to_install() -> None:
    code = """
import sys
sys.modules["ray"] = None  # as if it were not installed
from housenumber.cli import main
main(["score", "in", "--output", "out", "--engine", "ray"])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 4
    assert "pip install -e '.[ray]'" in result.stderr


@pytest.mark.parametrize("of_files_alone", [True, False])
@pytest.mark.parametrize("flags", [[], ["--sample", "0.5"], ["--limit", "30"], ["--limit", "16"]])
def test_the_plan_has_the_parts_that_are_not_there(
    artifact: Path, inputs: list[Path], tmp_path: Path, of_files_alone: bool, flags: list[str]
) -> None:
    """Each as the other engines cut it."""
    out = tmp_path / "out"
    inputs = [folder_of(tmp_path / "in", 44)] if of_files_alone else inputs[:2]
    ask = Ask(
        tuple(map(str, inputs)),
        Columns(),
        Answers(None, False, 64_000_000, True, search=True),
        float(flags[1]) if "--sample" in flags else 1.0,
        int(flags[1]) if "--limit" in flags else None,
        8,
    )
    command_line = (*inputs, "--output", out, "--part-size", 8, "--no-boxes", "--max-error-rate", 1, *flags)
    assert score(artifact, *command_line).exit_code == 0
    written = finished_parts(Place.parse(str(out)))
    some = {index: part for index, part in written.items() if index % 3}
    model = summary(out)["model"]
    job = open_job(Place.parse(str(out)), ask, ModelInfo(**model, provider=""))
    for done in ({}, some, written):
        planned = {span.index: span for span in plan(job, done, Event())}
        assert planned.keys() == written.keys() - done.keys()
        for index, span in planned.items():
            assert (span.file, span.offset, span.inner) == written[index].first
            assert span.images == written[index].counts.images
