"""Batch scoring through the service: the same rows, whatever network, balancer and replicas do meanwhile."""

import base64
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from balancer import PATIENCE_S, balancing, free_port
from click.testing import Result
from PIL import Image
from s3_server import Fault, Faults, proxy
from scoring import command, folder_of, numbers, rows, running, score
from serving import Sabotaged, encode, plain, serving, wait_until
from test_model_swap import load, open_engine, swapping
from test_replicas import Replica
from tiny_reader import metadata, write_artifact, write_version

from service.engine import OnnxEngine
from service.scoring import http_client
from service.scoring.http_client import HttpClient, Window
from service.scoring.run import EngineError


def score_by(client: httpx.Client | str, *arguments: object) -> Result:
    """`housenumber score` through a service."""
    url = client if isinstance(client, str) else client.base_url
    return command("--engine", "http", "--url", url, *arguments)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses, and no proxy."""
    monkeypatch.setattr(http_client, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(http_client, "LONGEST_PAUSE_S", 0.2)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@contextmanager
def meanwhile(condition: Callable[[], bool], action: Callable[[], object]) -> Iterator[None]:
    """Does something as soon as the condition is met, while the block goes on; it has been done at the end."""

    def wait() -> None:
        wait_until(condition, PATIENCE_S)
        action()

    thread = threading.Thread(target=wait)
    thread.start()
    yield
    thread.join()


# -- the rows --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good images and bad ones, with regions and without, a column that is passed through and one that comes late."""
    root = tmp_path_factory.mktemp("manifest")
    noise = Image.fromarray(np.random.default_rng(5).integers(0, 256, (300, 200, 3), np.uint8))
    sideways = Image.Exif()
    sideways[0x0112] = 6
    photo = encode(noise, "JPEG", exif=sideways)
    (root / "plain.png").write_bytes(plain("407", (40, 30)))
    many = [[x, y, 3, 3] for x in range(10) for y in range(10)]
    lines: list[dict[str, Any]] = [
        {"id": "photo", "bytes": photo, "regions": [[0, 0, 100, 50], [10.5, 20.25, 100, 100], [290, 190, 50, 50]]},
        {"id": "only a bad region", "bytes": photo, "regions": [[0, 0, 0, 10]]},
        {"id": "more regions than a request may have", "bytes": photo, "regions": many},
        {"id": "no number", "bytes": photo, "regions": [["NaN", 0, 1, 1]]},
        {"id": "plain" * 100, "path": "plain.png", "street": "Elm"},
        {"id": "plain" * 100, "path": "plain.png", "street": "Ash"},
        {"id": "nothing", "bytes": encode(Image.new("RGB", (8, 8), (252, 252, 252)))},
        {"id": "junk", "bytes": b"junk"},
        {"id": "junk with regions", "bytes": b"junk", "regions": [[0, 0, 1, 1], [1, 1, 2, 2]]},
        {"id": "heic", "bytes": b"\0\0\0\x18ftypheic"},
        {"id": "large", "bytes": encode(Image.new("L", (9000, 8000)), "PNG")},
        {"id": "torn", "bytes": encode(noise, "PNG")[:5000]},
        {"id": "nowhere", "path": "nowhere.png"},
        {"id": "not base64", "bytes": "!"},
        *({"id": str(index), "path": "plain.png"} for index in range(100)),
        {"id": "late", "path": "plain.png", "surprise": "a column that nobody knew of"},
        {"path": "plain.png"},
    ]
    for line in lines:
        if isinstance(line.get("bytes"), bytes):
            line["bytes"] = base64.b64encode(line["bytes"]).decode()
    (root / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root / "manifest.jsonl"


def scored_here(artifact: Path, out: Path, *arguments: object) -> list[dict[str, Any]]:
    result = score(artifact, *arguments, "--output", out, "--workers", 1)
    assert result.exit_code == 0, result.output
    return rows(out)


@pytest.mark.parametrize(
    "flags",
    [
        ("--batch-size", 64),
        ("--batch-size", 1, "--part-size", 40),
        ("--batch-size", 7, "--no-boxes", "--min-confidence", 0.3),
    ],
)
def test_the_rows_are_those_of_a_reader_at_hand(
    artifact: Path, client: httpx.Client, manifest: Path, tmp_path: Path, flags: Sequence[object]
) -> None:
    common = (manifest, "--max-error-rate", 1, *flags)
    expected = scored_here(artifact, tmp_path / "here", *common)
    assert len({row["error_code"] for row in expected}) == 6
    assert {row["street"] for row in expected} == {"Elm", "Ash", None}
    result = score_by(client, *common, "--output", tmp_path / "there")
    assert result.exit_code == 0, result.output
    assert rows(tmp_path / "there") == expected


def test_small_limits_mean_more_requests(
    artifact: Path, engine: OnnxEngine, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether they are known here, by the variables of the service, or told by its refusals."""
    expected = scored_here(artifact, tmp_path / "here", manifest, "--max-error-rate", 1)
    with serving(engine, max_images=5, max_body_bytes=200_000) as client:
        for known in ("", "known"):
            if known:
                monkeypatch.setenv("HOUSENUMBER_MAX_IMAGES", "5")
                monkeypatch.setenv("HOUSENUMBER_MAX_BODY_BYTES", "200000")
            out = tmp_path / f"there{known}"
            result = score_by(client, manifest, "--output", out, "--max-error-rate", 1, "--batch-size", 9)
            assert result.exit_code == 0, result.output
            different = [(row, other) for row, other in zip(rows(out), expected, strict=True) if row != other]
            # More regions in one image than the service takes are only cut where the limit is known.
            assert {row["id"] for row, _ in different} <= set() if known else {"more regions than a request may have"}
            assert {row["error_code"] for row, _ in different} <= {"too_large"}


def test_an_image_that_fits_in_no_request_is_a_row_that_says_so(
    engine: OnnxEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = folder_of(tmp_path / "in", 4)
    (source / "big.png").write_bytes(plain("1", (200, 200), "BMP"))
    with serving(engine, max_body_bytes=100_000) as client:
        monkeypatch.setenv("HOUSENUMBER_MAX_BODY_BYTES", "100000")
        result = score_by(client, source, "--output", tmp_path / "out", "--max-error-rate", 0.5)
    assert result.exit_code == 0, result.output
    found = {Path(row["source"]).name: row["error_code"] for row in rows(tmp_path / "out")}
    assert {name for name, code in found.items() if code} == {"big.png"}
    assert found["big.png"] == "too_large"


def test_a_service_of_one_image_per_request_is_refused_before_any_row_is_lost(
    client: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOUSENUMBER_MAX_IMAGES", "1")
    result = score_by(client, folder_of(tmp_path / "in", 4), "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert "scoring takes two (max_images)" in result.output
    assert not (tmp_path / "out").exists()


def test_a_dry_run_goes_through_the_service(client: httpx.Client, tmp_path: Path) -> None:
    result = score_by(client, folder_of(tmp_path / "in", 30), "--output", tmp_path / "out", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "30 images" in result.stdout
    assert "images/s here" in result.stdout
    assert not (tmp_path / "out").exists()


# -- what goes wrong -------------------------------------------------------------------------------------------------


def test_refusals_and_lost_connections_cost_no_row(artifact: Path, client: httpx.Client, tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 120)
    expected = scored_here(artifact, tmp_path / "here", source)
    port = client.base_url.port
    assert port
    faults = Faults()
    order: Sequence[Fault | None] = ("reset", "503", None, "500", None, None, "reset", None, None, None)
    faults.plan = lambda method, path, before: order[before % len(order)]
    with proxy(port, faults) as before_it:
        url = f"http://127.0.0.1:{before_it}"
        result = score_by(url, source, "--output", tmp_path / "there", "--batch-size", 3, "--part-size", 50)
    assert result.exit_code == 0, result.output
    assert set(faults.done) == {"reset", "500", "503"}
    assert rows(tmp_path / "there") == expected


def test_a_service_with_more_to_do_than_it_can_is_asked_for_less(engine: OnnxEngine, tmp_path: Path) -> None:
    """It says 503 with Retry-After as soon as its queue is full."""
    source = folder_of(tmp_path / "in", 600)
    slow = Sabotaged(engine, lambda images: time.sleep(0.01))
    limits: dict[str, int] = {"max_images": 16, "max_queue_images": 32, "max_batch_size": 8}
    with serving(slow, **limits) as client:
        result = score_by(client, source, "--output", tmp_path / "out", "--batch-size", 10, "--workers", 32)
        assert result.exit_code == 0, result.output
        assert 'code="overloaded"' in client.get("/metrics").text
    assert {Path(name).stem: number for name, number in numbers(tmp_path / "out").items()} == {
        f"{index:04d}": str(index) for index in range(600)
    }


def test_a_replica_that_dies_costs_no_row(tmp_path: Path) -> None:
    models = write_version(tmp_path / "models", 1).parents[2]
    source = folder_of(tmp_path / "in", 300)
    addresses = ("127.0.0.2", "127.0.0.3")
    port = free_port("0.0.0.0")
    out = tmp_path / "out"
    with ExitStack() as stack:
        replicas = []
        for address in addresses:
            replicas.append(Replica(address, port, models, tmp_path / f"{address}.log"))
            stack.callback(replicas[-1].kill)
        # Nothing is sent again by the balancer: what is lost is lost to the caller.
        balancer = stack.enter_context(balancing(tmp_path, addresses, port, RETRY_BYTES="16384"))
        balancer.wait_for(2)
        with meanwhile(lambda: out.exists() and bool(list(out.glob("part-*"))), replicas[0].kill):
            result = score_by(balancer.url, source, "--output", out, "--batch-size", 3, "--part-size", 30)
        assert result.exit_code == 0, result.output
    assert {Path(name).stem: number for name, number in numbers(out).items()} == {
        f"{index:04d}": str(index) for index in range(300)
    }


def test_another_model_in_the_middle_stops_the_job(tmp_path: Path) -> None:
    """And no part has rows of it; when the first one is back, the same command goes on."""
    root, out = tmp_path / "models", tmp_path / "out"
    write_version(root, 1)
    source = folder_of(tmp_path / "in", 400)
    flags = ("--output", out, "--batch-size", 1, "--part-size", 10, "--workers", 1)

    def change() -> None:
        write_version(root, 2)
        assert load(client).status_code == 200

    with swapping(root, lambda path: Sabotaged(open_engine(path), lambda images: time.sleep(0.02))) as (client, _):
        with meanwhile(lambda: out.exists() and bool(list(out.glob("part-*"))), change):
            result = score_by(client, source, *flags)
        assert result.exit_code == 1, result.output
        assert "another model answers now: tiny 2 " in result.stderr
        assert "Traceback" not in result.output
        again = score_by(client, source, *flags)
        assert again.exit_code == 2
        assert "it holds another job" in again.stderr
        assert load(client, 1).status_code == 200
        assert score_by(client, source, *flags, "--workers", 8).exit_code == 0
    found = rows(out)
    assert len(found) == 400
    assert {row["model_version"] for row in found} == {"1"}


def test_a_job_that_is_killed_goes_on(client: httpx.Client, tmp_path: Path) -> None:
    source, out = folder_of(tmp_path / "in", 200), tmp_path / "out"
    flags = ("--output", out, "--batch-size", 1, "--part-size", 10, "--engine", "http", "--url", client.base_url)
    with running(source, *flags) as job:
        wait_until(lambda: len(list(out.glob("part-*"))) > 1, PATIENCE_S)
        job.kill()
        assert job.wait() == -signal.SIGKILL, "it had come to its end before it was killed"
    kept = {path: path.stat().st_ino for path in out.glob("part-*")}
    assert command(source, *flags).exit_code == 0
    assert {path: path.stat().st_ino for path in kept} == kept
    assert len(numbers(out)) == 200


# -- what is the end -------------------------------------------------------------------------------------------------


def error_of(result: Result) -> str:
    """The one line of an error that stopped the job, after those of the log."""
    assert result.exit_code == 1, result.output
    *log, line, last = result.stderr.splitlines()
    assert last == "What is written stays, and the same command goes on from there."
    assert all(entry.startswith("{") for entry in log)
    return line


def test_a_service_that_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "ATTEMPTS", 3)
    url = f"http://127.0.0.1:{free_port('127.0.0.1')}"
    error = error_of(score_by(url, folder_of(tmp_path / "in", 1), "--output", tmp_path / "out"))
    assert error.startswith(f"Error: {url}/predict: ConnectError: ")
    assert error.endswith("(after 3 attempts)")
    assert not (tmp_path / "out").exists()


def test_keys(engine: OnnxEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = folder_of(tmp_path / "in", 1)
    with serving(engine, api_keys="sesame") as client:
        assert "401 unauthorized" in error_of(score_by(client, source, "--output", tmp_path / "out"))
        result = score_by(client, source, "--output", tmp_path / "flag", "--api-key", "sesame")
        assert result.exit_code == 0, result.output
        monkeypatch.setenv("HOUSENUMBER_API_KEY", "sesame")
        assert score_by(client, source, "--output", tmp_path / "variable").exit_code == 0
    assert "sesame" not in "".join(path.read_text("latin-1") for path in tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        ([], "--url"),
        (["--url", "readers.example"], "not the URL of a service"),
        (["--url", "ftp://readers.example"], "not the URL of a service"),
        (["--url", "http://readers.example:x"], "readers.example"),
        (["--url", "http://readers.example", "--provider", "cpu"], "--provider"),
    ],
)
def test_wrong_usage(tmp_path: Path, flags: list[str], word: str) -> None:
    result = command(folder_of(tmp_path / "in", 1), "--output", tmp_path / "out", "--engine", "http", *flags)
    assert result.exit_code == 2
    assert word in result.stderr
    assert "Traceback" not in result.output


def test_without_httpx_it_says_which_extra_to_install() -> None:
    code = """
import sys
sys.modules["httpx"] = None  # as if it were not installed
from housenumber.cli import main
main(["score", "in", "--output", "out", "--engine", "http", "--url", "http://127.0.0.1"])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 4
    assert "pip install -e '.[score]'" in result.stderr


# -- how it asks -----------------------------------------------------------------------------------------------------


@contextmanager
def answering(*answers: tuple[int, dict[str, str], bytes]) -> Iterator[tuple[HttpClient, list[float]]]:
    """A client of a server with these answers (status, headers, content), one after the other, and the times at which
    it was asked."""
    asked: list[float] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            asked.append(time.monotonic())
            status, headers, content = answers[len(asked) - 1]
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    client = HttpClient(httpx.URL(f"http://127.0.0.1:{server.server_port}/predict"), {}, None, 8)
    try:
        yield client, asked
    finally:
        client.close()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("status", [429, 503])
def test_nothing_is_sent_again_before_the_service_said(status: int) -> None:
    with answering((status, {"Retry-After": "1"}, b""), (200, {}, b"good")) as (client, asked):
        assert client.post(json={}) == b"good"
    assert asked[1] - asked[0] >= 1


@pytest.mark.parametrize("said", ["", "soon", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_a_retry_after_without_a_time_to_come_is_as_none(said: str) -> None:
    with answering((503, {"Retry-After": said}, b""), (200, {}, b"good")) as (client, _):
        assert client.post(json={}) == b"good"


def test_what_will_not_pass_is_not_tried_again() -> None:
    problem = json.dumps({"code": "bad_request", "detail": "no"}).encode()
    with answering((400, {}, problem)) as (client, asked):
        with pytest.raises(EngineError, match="400 bad_request: no"):
            client.post(json={})
        assert len(asked) == 1


def test_an_answer_that_is_none_of_this_service_stops_the_job(tmp_path: Path) -> None:
    with answering((200, {}, b"<html>")) as (client, _):
        url = str(client.url).removesuffix("/predict")
        error = error_of(score_by(url, folder_of(tmp_path / "in", 1), "--output", tmp_path / "out"))
    assert "no service of this kind" in error


def test_who_gives_up_waits_for_no_other_attempt() -> None:
    with (
        answering((503, {"Retry-After": "3600"}, b"")) as (client, asked),
        meanwhile(lambda: bool(asked), client.give_up),
        pytest.raises(EngineError, match="503"),
    ):
        client.post(json={})


def test_the_window_grows_by_one_when_all_were_answered() -> None:
    window = Window(8)
    for size in (4, 5, 6, 7, 8, 8):
        assert window.size == size
        # One place is taken anew whenever one gets free, until as many as fit at once were answered.
        tickets = [window.enter() for _ in range(size)]
        for _ in range(size):
            window.leave(tickets.pop(0), answered=True)
            if window.size == size:
                tickets.append(window.enter())
        for ticket in tickets:
            window.leave(ticket, answered=True)


def test_the_window_does_not_grow_where_it_is_not_used() -> None:
    window = Window(8)
    for _ in range(100):
        window.leave(window.enter(), answered=True)
    assert window.size == 4


def test_the_window_is_halved_once_for_what_was_under_way_together() -> None:
    window = Window(64)
    tickets = [window.enter() for _ in range(4)]
    for ticket in tickets:
        window.leave(ticket, answered=False)
    assert window.size == 2
    window.leave(window.enter(), answered=False)
    window.leave(window.enter(), answered=False)
    assert window.size == 1


def test_whoever_finds_no_place_waits_for_one() -> None:
    window = Window(1)
    ticket = window.enter()
    entered = threading.Event()

    def enter() -> None:
        window.enter()
        entered.set()

    thread = threading.Thread(target=enter)
    thread.start()
    assert not entered.wait(0.05)
    window.leave(ticket, answered=True)
    assert entered.wait(10)
    thread.join()


def test_another_artifact_at_the_same_address_is_another_job(artifact: Path, tmp_path: Path) -> None:
    source, out = folder_of(tmp_path / "in", 2), tmp_path / "out"
    newer = write_artifact(tmp_path / "newer.onnx", metadata(version="8").to_metadata_map())
    with serving(OnnxEngine(artifact, "cpu", intra_op_threads=1)) as client:
        assert score_by(client, source, "--output", out).exit_code == 0
    with serving(OnnxEngine(newer, "cpu", intra_op_threads=1)) as client:
        result = score_by(client, source, "--output", out)
    assert result.exit_code == 2
    assert "version" in result.stderr or "sha256" in result.stderr
    # Another engine with the same model is the same job.
    assert score(artifact, source, "--output", out).exit_code == 0
