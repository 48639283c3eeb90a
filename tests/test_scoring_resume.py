"""A scoring job that is killed, interrupted, or called again: nothing twice, nothing lost, nothing mixed."""

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from scoring import folder_of, numbers, process, rows, score, summary, tar_of
from serving import plain, wait_until
from tiny_reader import metadata, write_artifact

KILLS = 20


def parts(out: Path) -> dict[str, int]:
    """The parts that are there, with what changes when one is written anew."""
    return {path.name: path.stat().st_ino for path in out.glob("part-*.parquet")}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A folder, a tar and a manifest: 6,000 images."""
    root = tmp_path_factory.mktemp("inputs")
    folder = folder_of(root / "in", 200)
    images = sorted(folder.rglob("*.png"))
    shard = tar_of(root / "shard.tar", [(f"{index}.png", plain(str(index % 1000))) for index in range(800)])
    manifest = root / "manifest.csv"
    lines = [f"{index},{images[index % len(images)]},{index % 7}" for index in range(5000)]
    manifest.write_text("id,path,weekday\n" + "\n".join(lines) + "\n")
    return [folder, shard, manifest]


@pytest.fixture(scope="module")
def undisturbed(artifact: Path, inputs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("undisturbed")
    assert score(artifact, *inputs, "--output", out).exit_code == 0
    found = rows(out)
    assert len({row["id"] for row in found}) == len(found) == 6000
    return found


def test_a_job_killed_twenty_times_writes_what_an_undisturbed_one_does(
    artifact: Path, inputs: list[Path], undisturbed: list[dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    rng = random.Random(7)
    kept: dict[str, int] = {}
    command = (*inputs, "--output", out, "--part-size", 25)
    for kill in range(KILLS):
        # The first ones before there is any part; later ones around the writing of one.
        further = 0 if kill < 4 else rng.randint(1, 3)
        # Mostly all in one process; of those that have workers each takes seconds to begin.
        with process(artifact, *command, "--workers", 2 if kill % 4 == 3 else 1) as job:
            before = len(kept)
            wait_until(lambda: out.exists() and len(parts(out)) >= before + further, 60)  # noqa: B023
            time.sleep(rng.uniform(0.0, 0.3 if kill < 4 else 0.02))
            job.kill()
            assert job.wait() == -signal.SIGKILL, "it had come to its end before it was killed"
        now = parts(out)
        assert {name: now[name] for name in kept} == kept, "a part that was there has been written again"
        kept = now
    assert kept
    assert score(artifact, *command).exit_code == 0
    assert {name: parts(out)[name] for name in kept} == kept
    assert rows(out) == undisturbed
    assert summary(out)["images"] == 6000
    assert summary(out)["parts"] == 240


def test_a_part_that_is_missing_in_the_middle_is_written_again(artifact: Path, tmp_path: Path) -> None:
    source, out = folder_of(tmp_path / "in", 50), tmp_path / "out"
    command = (source, "--output", out, "--part-size", 7, "--limit", 45)
    assert score(artifact, *command).exit_code == 0
    before = rows(out)
    assert len(before) == 45
    for index in (2, 6):
        (out / f"part-0000{index}.parquet").unlink()
    (out / "part-00003.parquet").write_bytes(b"not Parquet")
    assert score(artifact, *command).exit_code == 0
    assert rows(out) == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_job_after_the_part_in_hand(
    artifact: Path, inputs: list[Path], undisturbed: list[dict[str, Any]], tmp_path: Path, number: int, code: int
) -> None:
    out = tmp_path / "out"
    command = (*inputs, "--output", out, "--part-size", 100)
    with process(artifact, *command) as job:
        wait_until(lambda: bool(parts(out)), 60)
        job.send_signal(number)
        _, log = job.communicate(timeout=60)
    assert job.returncode == code
    assert "the same command goes on" in log
    assert "Traceback" not in log
    kept = parts(out)
    assert 0 < len(kept) < 60
    assert sorted(kept) == [f"part-{index:05d}.parquet" for index in range(len(kept))]
    assert not list(out.glob("_tmp-*"))
    assert score(artifact, *command).exit_code == 0
    assert {name: parts(out)[name] for name in kept} == kept
    assert rows(out) == undisturbed


def test_a_second_signal_ends_it_at_once(artifact: Path, inputs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with process(artifact, *inputs, "--output", out) as job:
        wait_until((out / "_JOB.json").exists, 60)
        job.send_signal(signal.SIGINT)
        assert job.stderr
        while "once more stops at once" not in job.stderr.readline():
            assert job.poll() is None
        job.send_signal(signal.SIGINT)
        assert job.wait(60) == 130
    assert not parts(out)


def test_two_jobs_do_not_write_the_same_output(artifact: Path, inputs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = (*inputs, "--output", out)
    with process(artifact, *command) as job:
        wait_until((out / "_JOB.json").exists, 60)
        job.send_signal(signal.SIGSTOP)  # it is there, and does nothing
        second = score(artifact, *command)
        assert second.exit_code == 2
        assert "another process is writing it" in second.stderr
    assert score(artifact, *command).exit_code == 0
    assert len(rows(out)) == 6000


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--min-confidence", 0.5], "min_confidence"),
        (["--no-boxes"], "boxes"),
        (["--limit", 3], "limit"),
        (["--sample", 0.5], "sample"),
        (["--part-size", 3], "part_size"),
        (["--id-column", "name"], "id"),
    ],
)
def test_other_options_in_the_same_output_are_refused(
    artifact: Path, tmp_path: Path, flags: list[object], word: str
) -> None:
    source, out = folder_of(tmp_path / "in", 4), tmp_path / "out"
    assert score(artifact, source, "--output", out).exit_code == 0
    before = rows(out)
    result = score(artifact, source, "--output", out, *flags)
    assert result.exit_code == 2
    assert "another job" in result.stderr
    assert word in result.stderr
    assert rows(out) == before


def test_another_setting_that_changes_the_rows_is_refused(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = folder_of(tmp_path / "in", 4), tmp_path / "out"
    assert score(artifact, source, "--output", out).exit_code == 0
    monkeypatch.setenv("HOUSENUMBER_SECOND_LOOK", "false")
    result = score(artifact, source, "--output", out)
    assert result.exit_code == 2
    assert "second_look was true and is false now" in result.stderr


@pytest.mark.parametrize("setting", ["second_look", "search"])
def test_a_job_begun_before_there_was_such_a_thing_goes_on_without_it(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    source, out = folder_of(tmp_path / "in", 4), tmp_path / "out"
    variable = f"HOUSENUMBER_{setting.upper()}"
    monkeypatch.setenv(variable, "false")
    assert score(artifact, source, "--output", out).exit_code == 0
    job = json.loads((out / "_JOB.json").read_text())
    del job["identity"]["answers"][setting]
    (out / "_JOB.json").write_text(json.dumps(job))
    assert score(artifact, source, "--output", out).exit_code == 0
    monkeypatch.delenv(variable)
    result = score(artifact, source, "--output", out)
    assert result.exit_code == 2
    assert f"{setting} was false and is true now ({variable})" in result.stderr


def test_what_does_not_change_the_rows_may_change(artifact: Path, tmp_path: Path) -> None:
    source, out = folder_of(tmp_path / "in", 4), tmp_path / "out"
    assert score(artifact, source, "--output", out).exit_code == 0
    flags = ("--workers", 1, "--batch-size", 2, "--max-error-rate", 0.5)
    assert score(artifact, source, "--output", out, *flags).exit_code == 0


def test_another_model_or_input_in_the_same_output_is_refused(artifact: Path, tmp_path: Path) -> None:
    source, out = folder_of(tmp_path / "in", 4), tmp_path / "out"
    assert score(artifact, source, "--output", out).exit_code == 0
    newer = write_artifact(tmp_path / "newer.onnx", metadata(version="8").to_metadata_map())
    result = score(newer, source, "--output", out)
    assert result.exit_code == 2
    assert '"7"' in result.stderr or "sha256" in result.stderr
    result = score(artifact, source / "b", "--output", out)
    assert result.exit_code == 2
    assert "inputs" in result.stderr


def test_the_list_of_files_is_made_once(artifact: Path, tmp_path: Path) -> None:
    """Files that come later are not part of a job; those that have gone are rows that say so."""
    source, out = folder_of(tmp_path / "in", 30), tmp_path / "out"
    assert score(artifact, source, "--output", out, "--part-size", 10).exit_code == 0
    before = numbers(out)
    (source / "0000a.png").write_bytes(plain("99"))
    assert score(artifact, source, "--output", out, "--part-size", 10).exit_code == 0
    assert numbers(out) == before
    gone = next(iter(before))
    Path(gone).unlink()
    for path in out.glob("part-*.parquet"):
        path.unlink()
    assert score(artifact, source, "--output", out, "--part-size", 10).exit_code == 0
    assert numbers(out) == {**before, gone: None}


def test_a_manifest_that_has_changed_is_refused(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(plain("1"))
    manifest, out = tmp_path / "m.csv", tmp_path / "out"
    manifest.write_text("path\n1.png\n1.png\n")
    assert score(artifact, manifest, "--output", out).exit_code == 0
    manifest.write_text("path\n1.png\n1.png\n1.png\n")
    result = score(artifact, manifest, "--output", out)
    assert result.exit_code == 2
    assert "has changed since this job began" in result.stderr


def test_an_output_with_other_things_in_it_is_refused(artifact: Path, tmp_path: Path) -> None:
    source, out = folder_of(tmp_path / "in", 1), tmp_path / "out"
    out.mkdir()
    (out / "thesis.doc").write_bytes(b"")
    result = score(artifact, source, "--output", out)
    assert result.exit_code == 2
    assert "thesis.doc" in result.stderr
    assert {path.name for path in out.iterdir()} <= {"thesis.doc", "_lock"}


def test_what_a_killed_job_left_behind_is_removed(artifact: Path, tmp_path: Path) -> None:
    source, out = folder_of(tmp_path / "in", 1), tmp_path / "out"
    out.mkdir()
    (out / "_tmp-12345678-part-00000.parquet").write_bytes(b"half")
    (out / "_listing.parquet").write_bytes(b"of a job that never began")
    assert score(artifact, source, "--output", out).exit_code == 0
    assert len(rows(out)) == 1  # `rows` looks for temporary files


def test_off_a_terminal_the_log_is_json_lines(artifact: Path, inputs: list[Path], tmp_path: Path) -> None:
    with process(artifact, inputs[0], "--output", tmp_path / "out") as job:
        _, log = job.communicate(timeout=60)
    lines = [json.loads(line) for line in log.splitlines()]
    assert lines[-1]["message"] == "done"
    assert lines[-1]["images"] == 200
    assert lines[-1]["accepted_share"] == 1.0
