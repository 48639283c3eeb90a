"""Batch scoring from and to an object store, and what happens when that fails in the middle."""

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import parse_qsl
from zlib import crc32

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs
from s3_server import Faults, moto, proxy
from scoring import folder_of, numbers, process, rows, score, tar_of
from serving import plain, wait_until

from service.scoring import lock, storage, transfers
from service.scoring.storage import Place
from service.scoring.transfers import StorageError

IMAGES = 60
MIB = 2**20


@pytest.fixture(scope="module")
def faults() -> Faults:
    return Faults()


@pytest.fixture(scope="module")
def endpoint(faults: Faults) -> Iterator[str]:
    """The options of a URL that lead to the server, through the proxy."""
    with moto() as server, proxy(server, faults) as port, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        options = f"?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
        made, _ = fs.FileSystem.from_uri(f"s3://pail/{options}&allow_bucket_creation=true")
        made.create_dir("pail")
        yield options


@pytest.fixture(scope="module")
def bucket(endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Images, a tar and a manifest in the bucket; gives `s3://pail`, of which URLs are made by `url`."""
    root = tmp_path_factory.mktemp("bucket")
    folder_of(root / "in", IMAGES)
    tar_of(root / "shard.tar", [(f"{index}.png", plain(str(index))) for index in range(IMAGES)])
    lines = "".join(f"in/{path.relative_to(root / 'in')}\n" for path in sorted((root / "in").rglob("*.png")))
    (root / "manifest.csv").write_text(f"path\n{lines}s3://pail/in/missing.png\n")
    for path in root.rglob("*"):
        if path.is_file():
            Place.parse(f"s3://pail/{path.relative_to(root)}{endpoint}").write(path.read_bytes())
    return endpoint


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, faults: Faults) -> Iterator[None]:
    monkeypatch.setattr(transfers, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(transfers, "ATTEMPTS", 1)  # pyarrow itself tries for six seconds before an attempt fails
    yield
    faults.plan = lambda method, path, before: None
    faults.seen.clear()
    faults.done.clear()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """What a URL leads to gives up after three tries within a second, where pyarrow's own way takes six seconds."""
    filesystem = storage._filesystem
    options = dict(parse_qsl(endpoint.removeprefix("?")))
    quick = fs.S3FileSystem(**options, retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=3))

    def given_up_early(base: str) -> tuple[fs.FileSystem, str]:
        found, root = filesystem(base)
        return (quick if isinstance(found, fs.S3FileSystem) else found), root

    monkeypatch.setattr(storage, "_filesystem", given_up_early)


def url(bucket: str, key: str) -> str:
    return f"s3://pail/{key}{bucket}"


EXPECTED = sorted(str(index) for index in range(IMAGES))


def test_folders_patterns_manifests_and_shards_of_a_bucket(artifact: Path, bucket: str) -> None:
    outs = []
    for index, source in enumerate(("in", "in/**/*.png", "manifest.csv", "shard.tar")):
        outs.append(url(bucket, f"out/kinds{index}"))
        result = score(artifact, url(bucket, source), "--output", outs[-1], "--part-size", 25)
        assert result.exit_code == 0, result.output
    folder, pattern, manifest, shard = map(numbers, outs)
    assert sorted(filter(None, folder.values())) == EXPECTED
    assert folder == pattern
    assert manifest == {**folder, "s3://pail/in/missing.png": None}
    assert shard == {f"s3://pail/shard.tar/{index}.png": str(index) for index in range(IMAGES)}
    (missing,) = (row for row in rows(outs[2]) if row["error_code"])
    assert missing["error_code"] == "bad_request"
    assert "cannot be read" in missing["error_detail"]
    assert "secret" not in str(rows(outs[0]))
    assert "endpoint" not in str(rows(outs[0]))


def test_a_large_part_is_a_multipart_upload(artifact: Path, bucket: str, faults: Faults, tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(plain("1"))
    rng = random.Random(1)
    table = pa.table({"path": ["1.png"] * 24, "noise": [rng.randbytes(MIB) for _ in range(24)]})
    pq.write_table(table, tmp_path / "m.parquet", row_group_size=4)
    out = url(bucket, "out/large")
    faults.plan = lambda method, path, before: "500" if "partNumber=2" in path and before < 1 else None
    result = score(artifact, tmp_path / "m.parquet", "--output", out)
    assert result.exit_code == 0, result.output
    assert {path.partition("partNumber=")[2][0] for _, path in faults.seen if "partNumber=" in path} >= {"1", "2", "3"}
    assert faults.done == ["500"]
    assert [row["noise"] for row in rows(out)] == table.column("noise").to_pylist()


@pytest.mark.parametrize("fault", ["reset", "500", "slow"])
def test_what_fails_once_is_tried_again(artifact: Path, bucket: str, faults: Faults, fault: str) -> None:
    """Reads of images, of a tar, of the list; writes of parts, and their renaming."""
    slow = fault == "slow"
    slowed = {("GET", "/pail/in/0000.png"), ("PUT", "/pail/out/slow/part-00000.parquet")}

    def plan(method: str, path: str, before: int) -> str | None:
        if slow:  # each costs seconds
            return "slow" if before == 0 and (method, path) in slowed else None
        return fault if before < 2 and crc32(f"{method} {path}".encode()) % 8 == 0 else None

    faults.plan = plan  # type: ignore[assignment]
    out = url(bucket, f"out/{fault}")
    result = score(artifact, url(bucket, "in"), url(bucket, "shard.tar"), "--output", out, "--part-size", 30)
    assert result.exit_code == 0, result.output
    assert faults.done
    found = numbers(out)
    assert sorted(filter(None, found.values())) == sorted(EXPECTED * 2)
    assert len(found) == 2 * IMAGES


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("fault", "method", "key"),
    [
        ("reset", "GET", "/in/b/0007.png"),
        ("500", "GET", "shard.tar"),
        ("reset", "PUT", "part-00001.parquet"),
        ("503", "GET", "list-type"),
    ],
)
def test_what_fails_for_good_stops_the_job_and_is_told(
    artifact: Path, bucket: str, faults: Faults, method: str, key: str, fault: str
) -> None:
    faults.plan = lambda asked, path, before: fault if asked == method and key in path else None  # type: ignore[assignment,return-value]
    out = url(bucket, f"out/broken-{fault}-{key.replace('/', '-')}")
    command = (url(bucket, "in"), url(bucket, "shard.tar"), "--output", out, "--part-size", 50)
    result = score(artifact, *command)
    assert result.exit_code == 1
    assert "attempts" in result.stderr
    assert "Traceback" not in result.output
    faults.plan = lambda asked, path, before: None
    assert (Place.parse(out) / "_SUCCESS").entry() is None
    assert score(artifact, *command).exit_code == 0
    assert sorted(filter(None, numbers(out).values())) == sorted(EXPECTED * 2)


def test_what_may_not_be_read_is_a_row_with_an_error(artifact: Path, bucket: str, faults: Faults) -> None:
    faults.plan = lambda method, path, before: "403" if path.endswith("/in/b/0001.png") else None
    out = url(bucket, "out/forbidden")
    assert score(artifact, url(bucket, "in"), "--output", out).exit_code == 0
    assert [row["source"] for row in rows(out) if row["error_code"]] == ["s3://pail/in/b/0001.png"]


@pytest.mark.usefixtures("impatient")
def test_a_read_is_never_short(bucket: str, faults: Faults) -> None:
    """Neither whole files nor pieces, however the transfer ends."""
    place = Place.parse(url(bucket, "shard.tar"))
    whole = place.read()
    faults.plan = lambda method, path, before: "reset" if method == "GET" and before % 2 == 0 else None
    assert place.read() == whole
    with place.open() as file:
        file.seek(1000)
        assert file.read(2000) == whole[1000:3000]
        assert file.read() == whole[3000:]
    faults.plan = lambda method, path, before: "reset" if method == "GET" else None
    with pytest.raises(StorageError, match=r"s3://pail/shard\.tar: .*attempts"):
        place.read()


@pytest.mark.usefixtures("impatient")
def test_a_write_that_fails_leaves_what_was_there(bucket: str, faults: Faults) -> None:
    place = Place.parse(url(bucket, "out/replaced.txt"))
    place.write(b"before")
    faults.plan = lambda method, path, before: "500" if method in ("PUT", "POST") and "replaced" in path else None
    with pytest.raises(StorageError):
        place.write(b"after")
    with suppress(KeyboardInterrupt), place.replacing() as file:
        file.write(b"half")
        raise KeyboardInterrupt
    faults.plan = lambda method, path, before: None
    assert place.read() == b"before"


def test_a_killed_job_goes_on_at_once(artifact: Path, bucket: str, tmp_path: Path) -> None:
    out = url(bucket, "out/killed")
    command = (url(bucket, "in"), url(bucket, "shard.tar"), "--output", out, "--part-size", 5)
    rng = random.Random(3)
    for kill in range(2):
        with process(artifact, *command, env=dict(os.environ)) as job:
            place = Place.parse(out)
            wait_until(lambda: sum(e.place.name.startswith("part-") for e in place.entries()) > 2 * kill, 60)  # noqa: B023
            time.sleep(rng.uniform(0, 0.1))
            job.kill()
            assert job.wait() == -signal.SIGKILL
    assert score(artifact, *command).exit_code == 0
    assert sorted(filter(None, numbers(out).values())) == sorted(EXPECTED * 2)


def test_two_jobs_on_one_machine(artifact: Path, bucket: str) -> None:
    out = url(bucket, "out/two")
    command = (url(bucket, "in"), "--output", out)
    with process(artifact, *command, env=dict(os.environ)) as job:
        wait_until(lambda: (Place.parse(out) / "_lock").entry() is not None, 60)
        job.send_signal(signal.SIGSTOP)
        second = score(artifact, *command)
        assert second.exit_code == 2
        assert "is writing this output" in second.stderr


def test_a_lease_of_another_machine(artifact: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as it beats the output is taken; one that has stopped is taken over."""
    monkeypatch.setattr(lock, "BEAT_S", 0.1)
    out = url(bucket, "out/lease")
    place = Place.parse(out) / "_lock"
    other = b'{"host": "elsewhere", "pid": 1, "beat": 0}'
    place.write(other)
    assert score(artifact, url(bucket, "in"), "--output", out).exit_code == 0
    assert place.entry() is None

    place.write(other)
    monkeypatch.setattr("time.sleep", lambda seconds: place.write(other.replace(b"0", b"1")))
    result = score(artifact, url(bucket, "in"), "--output", out)
    assert result.exit_code == 2
    assert "elsewhere" in result.stderr


def test_an_attempt_that_fails_is_followed_by_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after the client itself has given up; what is final is not tried again."""
    monkeypatch.setattr(transfers, "ATTEMPTS", 3)
    errors = iter([OSError("AWS Error NETWORK_CONNECTION"), OSError("(HTTP status 503)")])

    def action() -> str:
        for error in errors:
            raise error
        return "done"

    assert transfers.retried(action, "s3://pail/a") == "done"
    for final in (FileNotFoundError("a"), OSError("AWS Error ACCESS_DENIED"), OSError("(HTTP status 403)")):
        errors = iter([final])
        with pytest.raises(type(final)) as caught:
            transfers.retried(action, "s3://pail/a")
        assert caught.value is final
