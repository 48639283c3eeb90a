"""The real process: `housenumber serve` on a free port, and how it ends."""

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from serving import plain, problem_of, wait_until
from tiny_reader import write_artifact


class Process:
    """`housenumber serve` with its log in a file."""

    def __init__(self, log: Path, *flags: str) -> None:
        self.log = log
        with log.open("wb") as stderr:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "housenumber", "serve", "--port", "0", *flags], stderr=stderr
            )

    @property
    def port(self) -> int:
        """Waits for the log to name it."""
        pattern = re.compile(r"running on http://127\.0\.0\.1:(\d+)")
        wait_until(lambda: pattern.search(self.log.read_text()) is not None, 30)
        match = pattern.search(self.log.read_text())
        assert match
        return int(match[1])


@contextmanager
def process(log: Path, *flags: str) -> Iterator[Process]:
    started = Process(log, *flags)
    try:
        yield started
    finally:
        started.popen.kill()
        started.popen.wait()


def ready(client: httpx.Client) -> None:
    wait_until(lambda: client.get("/readyz").status_code == 200, 30)


def test_a_request_in_flight_is_answered_when_the_process_is_told_to_stop(artifact: Path, tmp_path: Path) -> None:
    image = plain("42")
    with process(tmp_path / "log", "--model", str(artifact), "--provider", "cpu") as server:
        with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", trust_env=False) as client:
            ready(client)
            assert client.post("/predict", content=image).json()["predictions"][0]["number"] == "42"
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as caller:
            answer = caller.makefile("rb")
            head = f"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: {len(image)}\r\nExpect: 100-continue\r\n\r\n"
            caller.sendall(head.encode())
            # The service asks for the body: the request is inside.
            assert b" 100 " in answer.readline()
            assert answer.readline() == b"\r\n"
            server.popen.send_signal(signal.SIGTERM)
            wait_until(lambda: "Shutting down" in server.log.read_text())
            caller.sendall(image)
            assert b" 200 " in answer.readline()
            assert b'"number":"42"' in answer.read()
        assert server.popen.wait(20) == 0
        assert "Traceback" not in server.log.read_text()


def test_before_it_stops_listening_it_answers_draining(artifact: Path, tmp_path: Path) -> None:
    flags = ("--model", str(artifact), "--provider", "cpu", "--drain-delay-s", "600")
    with process(tmp_path / "log", *flags) as server:
        with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", trust_env=False) as client:
            ready(client)
            server.popen.send_signal(signal.SIGTERM)
            wait_until(lambda: client.get("/readyz").status_code == 503)
            assert problem_of(client.get("/readyz")) == (503, "draining")
            assert problem_of(client.post("/predict", content=plain("1"))) == (503, "draining")
            assert client.get("/livez").status_code == 200
        server.popen.send_signal(signal.SIGTERM)  # the second one skips the rest of the delay
        assert server.popen.wait(20) == 0


def test_a_model_that_cannot_be_loaded_ends_the_process_with_its_own_code(tmp_path: Path) -> None:
    stranger = write_artifact(tmp_path / "stranger.onnx", properties={})
    with process(tmp_path / "log", "--model", str(stranger), "--provider", "cpu") as server:
        assert server.popen.wait(30) == 5
        lines = [line for line in server.log.read_text().splitlines() if "CRITICAL" in line]
        assert len(lines) == 1
        assert "stranger.onnx: not an artifact of this project" in lines[0]
        assert "Traceback" not in server.log.read_text()


def test_a_port_that_is_taken_ends_the_process_with_its_own_code(artifact: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with process(tmp_path / "log", "--model", str(artifact), "--provider", "cpu", "--port", port) as server:
            assert server.popen.wait(30) == 3
            assert "Traceback" not in server.log.read_text()
