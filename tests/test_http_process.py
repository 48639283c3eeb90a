"""The real process: `housenumber serve` on a free port, and how it ends."""

import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import httpx
import pytest
from service_process import PATIENCE_S, ServiceProcess, service_process
from serving import plain, problem_of, wait_until
from tiny_reader import write_artifact

IMAGE = plain("42")


@pytest.fixture
def flags(artifact: Path) -> tuple[str, ...]:
    return "--model", str(artifact), "--provider", "cpu"


@contextmanager
def connected(server: ServiceProcess) -> Iterator[tuple[socket.socket, BinaryIO]]:
    url = httpx.URL(server.url)
    with (
        socket.create_connection((url.host, url.port or 0), timeout=PATIENCE_S) as caller,
        caller.makefile("rb") as answer,
    ):
        yield caller, answer


@contextmanager
def inside(server: ServiceProcess) -> Iterator[tuple[socket.socket, BinaryIO]]:
    """A request that the service has accepted, and whose body it waits for."""
    with connected(server) as (caller, answer):
        head = f"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: {len(IMAGE)}\r\nExpect: 100-continue\r\n\r\n"
        caller.sendall(head.encode())
        assert b" 100 " in answer.readline()
        assert answer.readline() == b"\r\n"
        yield caller, answer


def check_last(answer: BinaryIO) -> None:
    """The answer, and that the connection ends with it."""
    assert b" 200 " in answer.readline()
    head, _, body = answer.read().partition(b"\r\n\r\n")
    assert head.lower().count(b"connection: close") == 1
    assert b'"number":"42"' in body


def test_what_was_accepted_is_answered_when_the_process_is_told_to_stop(flags: tuple[str, ...], tmp_path: Path) -> None:
    with service_process(tmp_path / "log", *flags) as server:
        server.wait_until_ready()
        with (
            inside(server) as (caller, answer),
            connected(server) as (half, half_answer),
            connected(server) as (second, second_answer),
            connected(server) as (idle, _),
        ):
            for used in (second, idle):
                used.sendall(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
                answered = b""
                while not answered.endswith(b"ok\n"):
                    answered += used.recv(1000)
            for begun in (half, second):
                begun.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\n")
            server.popen.send_signal(signal.SIGTERM)
            wait_until(lambda: "no longer listening" in server.log, PATIENCE_S)
            with pytest.raises(ConnectionRefusedError), connected(server):
                pass
            assert idle.recv(1000) == b""
            for begun, begun_answer in ((half, half_answer), (second, second_answer)):
                begun.sendall(f"Content-Length: {len(IMAGE)}\r\n\r\n".encode() + IMAGE)
                check_last(begun_answer)
            caller.sendall(IMAGE)
            check_last(answer)
        assert server.ends() == 0
        assert "Traceback" not in server.log


def test_while_it_says_that_it_drains_it_serves(flags: tuple[str, ...], tmp_path: Path) -> None:
    with service_process(tmp_path / "log", *flags, "--drain-delay-s", "600") as server:
        server.wait_until_ready()
        with server.client() as client:
            assert "connection" not in client.get("/livez").headers
            server.popen.send_signal(signal.SIGTERM)
            wait_until(lambda: client.get("/readyz").status_code == 503, PATIENCE_S)
            assert problem_of(client.get("/readyz")) == (503, "draining")
            assert client.get("/v2/health/ready").status_code == 503
            answer = client.post("/predict", content=IMAGE)
            assert answer.json()["predictions"][0]["number"] == "42"
            assert answer.headers["connection"] == "close"
            assert client.get("/livez").status_code == 200
        server.popen.send_signal(signal.SIGINT)  # the second one skips the rest of the delay
        assert server.ends() == 0


def test_what_was_inside_when_it_began_to_drain_is_its_connections_last_too(
    flags: tuple[str, ...], tmp_path: Path
) -> None:
    with service_process(tmp_path / "log", *flags, "--drain-delay-s", "600") as server:
        server.wait_until_ready()
        with inside(server) as (caller, answer):
            server.popen.send_signal(signal.SIGTERM)
            wait_until(lambda: "draining: listening" in server.log, PATIENCE_S)
            caller.sendall(IMAGE)
            check_last(answer)
        server.popen.send_signal(signal.SIGINT)
        assert server.ends() == 0


def test_after_the_delay_it_ends_by_itself(flags: tuple[str, ...], tmp_path: Path) -> None:
    """Under callers that never pause: every connection that was accepted gets its answer."""
    with service_process(tmp_path / "log", *flags, "--drain-delay-s", "1") as server:
        server.wait_until_ready()
        callers = [Caller(server.url) for _ in range(4)]
        try:
            wait_until(lambda: all(caller.answers > 10 for caller in callers), PATIENCE_S)
            server.popen.send_signal(signal.SIGTERM)
            assert server.ends() == 0
        finally:
            for caller in callers:
                caller.stop()
        log = server.log
        for caller in callers:
            assert caller.wrong == []
            assert f"request_id={caller.failed} " not in log  # never accepted
        assert len(re.findall("POST /predict.* status=200", log)) == sum(caller.answers for caller in callers)


class Caller:
    """Asks without a pause until the service is gone. `answers` counts what came, `failed` is the last request's id."""

    def __init__(self, url: str) -> None:
        self.answers = 0
        self.wrong: list[str] = []
        self.failed = ""
        self._stopped = False
        self._thread = threading.Thread(target=self._ask, args=(url,))
        self._thread.start()

    def stop(self) -> None:
        self._stopped = True
        self._thread.join()

    def _ask(self, url: str) -> None:
        with httpx.Client(base_url=url, timeout=PATIENCE_S, trust_env=False) as client:
            while not self._stopped:
                request_id = f"{id(self):x}-{self.answers}"
                try:
                    answer = client.post("/predict", content=IMAGE, headers={"X-Request-ID": request_id})
                except httpx.TransportError:
                    self.failed = request_id
                    return
                if answer.status_code != 200 or answer.json()["predictions"][0]["number"] != "42":
                    self.wrong.append(answer.text)
                self.answers += 1


def test_what_is_not_answered_in_time_is_cut_off(flags: tuple[str, ...], tmp_path: Path) -> None:
    with service_process(tmp_path / "log", *flags, "--drain-timeout-s", "0.5") as server:
        server.wait_until_ready()
        with inside(server) as (_, answer):
            server.popen.send_signal(signal.SIGTERM)
            assert server.ends() == 7
            assert answer.read() == b""
        assert "stopped with 1 requests unanswered" in server.log


def test_a_second_signal_waits_for_nobody(flags: tuple[str, ...], tmp_path: Path) -> None:
    with service_process(tmp_path / "log", *flags) as server:
        server.wait_until_ready()
        with inside(server):
            server.popen.send_signal(signal.SIGTERM)
            wait_until(lambda: "no longer listening" in server.log, PATIENCE_S)
            server.popen.send_signal(signal.SIGTERM)
            assert server.ends() == 7


def test_a_model_that_cannot_be_loaded_ends_the_process_with_its_own_code(tmp_path: Path) -> None:
    stranger = write_artifact(tmp_path / "stranger.onnx", properties={})
    with service_process(tmp_path / "log", "--model", str(stranger), "--provider", "cpu") as server:
        assert server.ends() == 5
        (line,) = [line for line in server.log.splitlines() if "CRITICAL" in line]
        assert "stranger.onnx: not an artifact of this project" in line
        assert "Traceback" not in server.log


def test_a_variable_that_has_others_share_their_metrics_is_not_for_this_one(artifact: Path, tmp_path: Path) -> None:
    env = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "missing")}
    with service_process(tmp_path / "log", "--model", str(artifact), "--provider", "cpu", env=env) as server:
        server.wait_until_ready()
        with server.client() as client:
            assert "\nhousenumber_model_info{" in client.get("/metrics").text


def test_a_port_that_is_taken_ends_the_process_with_its_own_code(flags: tuple[str, ...], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with service_process(tmp_path / "log", *flags, "--port", port) as server:
            assert server.ends() == 3
            (line,) = [line for line in server.log.splitlines() if "CRITICAL" in line]
            assert f"cannot listen on 127.0.0.1, port {port}: Address already in use" in line
            assert "Traceback" not in server.log
