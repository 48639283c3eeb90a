"""The local engine: several processes of this machine, any of which may die."""

import os
import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mortal import CutOff, Imports, mortal
from scoring import folder_of, process, rows, score
from serving import plain, wait_until
from tiny_reader import colour_of

from service.artifact import ArtifactError
from service.engine import OnnxEngine
from service.scoring.core import Answers, Loader, make_scorer
from service.scoring.local import LocalEngine, Worker, local_engine
from service.scoring.records import Position, Record
from service.scoring.run import EngineError
from service.scoring.transfers import StorageError

PATIENCE_S = 60
ANSWERS = Answers(min_confidence=None, boxes=True, max_pixels=10**6, second_look=True, search=True)


def record(number: str) -> Record:
    return Record(number, number, plain(number), Position(0), 0)


def read(engine: LocalEngine, batches: Sequence[Sequence[str]]) -> list[Any]:
    """What comes of each batch of numbers: the numbers again, or an exception."""
    futures = [engine.submit([record(number) for number in batch]) for batch in batches]
    return [future.exception() or future.result().column("number").to_pylist() for future in futures]


def workers_of(pid: int) -> list[int]:
    """The worker processes of a process, not the helper that multiprocessing has beside them."""
    children = [child for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def is_gone(pid: int) -> bool:
    """Whether it has ended; it may still wait for somebody to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 3,000 images."""
    root = tmp_path_factory.mktemp("inputs")
    images = sorted(folder_of(root / "in", 100).rglob("*.png"))
    lines = [f"{index},{images[index % len(images)]}\n" for index in range(3000)]
    (root / "manifest.csv").write_text("id,path\n" + "".join(lines))
    return root / "manifest.csv"


@pytest.fixture(scope="module")
def undisturbed(artifact: Path, inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("undisturbed")
    assert score(artifact, inputs, "--output", out).exit_code == 0
    found = rows(out)
    assert len({row["id"] for row in found}) == len(found) == 3000
    return found


def test_two_workers_write_the_rows_of_one(artifact: Path, tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 60)
    (source / "bad.png").write_bytes(b"junk")
    for workers in (1, 2):
        flags = ("--workers", workers, "--batch-size", 7, "--part-size", 20)
        assert score(artifact, source, "--output", tmp_path / str(workers), *flags).exit_code == 0
    assert rows(tmp_path / "2") == rows(tmp_path / "1")
    assert len(rows(tmp_path / "2")) == 61


# -- death -----------------------------------------------------------------------------------------------------------


def test_the_batch_of_a_worker_that_dies_is_given_to_a_new_one(
    artifact: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make = partial(mortal, artifact, colour_of("7")[0], tmp_path, 1)
    batches = [["1", "2"], ["3", "7"], *([str(index)] for index in range(10, 20))]
    with local_engine(make, 2) as engine:
        assert read(engine, batches) == batches
    assert len(list(tmp_path.iterdir())) == 1
    assert [line.message for line in caplog.records] == [
        "a worker was killed by SIGKILL; its batch is given to a new one"
    ]


def test_images_that_kill_worker_after_worker_are_an_error_that_names_them(artifact: Path, tmp_path: Path) -> None:
    make = partial(mortal, artifact, colour_of("7")[0], tmp_path, 2)
    with local_engine(make, 2) as engine:
        good, deadly, after = read(engine, [["1"], ["7", "8"], ["3"]])
        assert (good, after) == (["1"], ["3"])
        assert isinstance(deadly, EngineError)
        assert "killed by SIGKILL" in str(deadly)
        assert "the 2 images from 7 on" in str(deadly)
        assert read(engine, [["7"]]) == [["7"]], "the engine itself is as good as before"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_job_loses_nothing_when_a_worker_is_killed(
    artifact: Path, inputs: Path, undisturbed: list[dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with process(artifact, inputs, "--output", out, "--workers", 2, "--part-size", 100) as job:
        wait_until(lambda: bool(list(out.glob("part-*"))), PATIENCE_S)
        os.kill(workers_of(job.pid)[0], signal.SIGKILL)
        _, log = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == 0, log
    assert "its batch is given to a new one" in log
    assert rows(out) == undisturbed


def test_workers_end_with_the_job_that_is_killed(artifact: Path, inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with process(artifact, inputs, "--output", out, "--workers", 2, "--part-size", 100) as job:
        wait_until(lambda: bool(list(out.glob("part-*"))), PATIENCE_S)
        workers = workers_of(job.pid)
        assert len(workers) == 2
        job.kill()
        job.wait()
        wait_until(lambda: all(map(is_gone, workers)), PATIENCE_S)


def test_workers_end_while_they_begin_with_a_job_that_is_killed(artifact: Path, inputs: Path, tmp_path: Path) -> None:
    with process(artifact, inputs, "--output", tmp_path / "out", "--workers", 2) as job:
        wait_until(lambda: len(workers_of(job.pid)) == 2, PATIENCE_S)
        workers = workers_of(job.pid)
        job.kill()
        job.wait()
        wait_until(lambda: all(map(is_gone, workers)), PATIENCE_S)


@pytest.mark.parametrize("begun", [False, True])
def test_ctrl_c_reaches_every_process_and_ends_the_job_after_the_part_in_hand(
    artifact: Path, inputs: Path, undisturbed: list[dict[str, Any]], tmp_path: Path, begun: bool
) -> None:
    """A terminal sends it to all processes of the command, those that are still starting too."""
    out = tmp_path / "out"
    command = (inputs, "--output", out, "--part-size", 100)
    with process(artifact, *command, "--workers", 2) as job:
        if begun:
            wait_until(lambda: bool(list(out.glob("part-*"))), PATIENCE_S)
        else:
            wait_until(lambda: len(workers_of(job.pid)) == 2, PATIENCE_S)
        os.killpg(job.pid, signal.SIGINT)
        _, log = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == 130, log
    assert "Traceback" not in log
    assert "a worker" not in log
    assert len(list(out.glob("part-*"))) < 30
    assert score(artifact, *command).exit_code == 0
    assert rows(out) == undisturbed


# -- beginning and end -----------------------------------------------------------------------------------------------


def loader_of(artifact: Path, sha256: str | None = None) -> Loader:
    return Loader(artifact, "cpu", 1, "auto", 64, 32, sha256)


def test_an_artifact_that_is_not_there_or_has_been_replaced_is_an_error_at_once(artifact: Path, tmp_path: Path) -> None:
    for loader, words in (
        (loader_of(tmp_path / "missing.onnx"), "No such file"),
        (loader_of(artifact, sha256="0" * 64), "not the file any more"),
    ):
        make = partial(make_scorer, loader, ANSWERS, {})
        with pytest.raises(ArtifactError, match=words), local_engine(make, 2):
            pytest.fail("it has begun")


def test_a_loader_is_pinned_to_what_was_loaded(artifact: Path, engine: OnnxEngine) -> None:
    loader = Loader(artifact, "auto", 1, "auto", 64, 32)
    pinned = loader.pinned(loader.load(ANSWERS))
    assert (pinned.sha256, pinned.provider) == (engine.sha256, "cpu")
    assert pinned.load(ANSWERS).metadata == engine.metadata


def test_a_worker_that_dies_before_it_is_ready_is_an_error() -> None:
    with pytest.raises(EngineError, match="ended with exit code 3"), local_engine(partial(os._exit, 3), 2):
        pytest.fail("it has begun")


def test_a_storage_that_fails_is_told_and_the_worker_lives() -> None:
    with local_engine(CutOff, 2) as engine:
        answers = read(engine, [["1"]] * 8)
    assert {type(answer) for answer in answers} == {StorageError}
    assert len({str(answer) for answer in answers}) <= 2


def test_the_engine_ends_its_workers() -> None:
    with local_engine(CutOff, 2):
        workers = workers_of(os.getpid())
        assert len(workers) == 2
    assert all(map(is_gone, workers))


def test_a_single_worker_is_no_process_of_its_own(artifact: Path) -> None:
    with local_engine(partial(make_scorer, loader_of(artifact), ANSWERS, {}), 1) as engine:
        assert read(engine, [["1"], ["2"]]) == [["1"], ["2"]]
        assert not workers_of(os.getpid())


def test_workers_load_no_other_room() -> None:
    worker = Worker(Imports)
    try:
        worker.wait_until_ready()
        loaded = set(worker.score([]).column("name").to_pylist())
    finally:
        worker.close()
    assert "onnxruntime" in loaded
    assert not loaded & {"torch", "onnx", "models", "export", "fastapi", "starlette", "uvicorn", "fsspec", "pandas"}
