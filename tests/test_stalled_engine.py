"""An engine that gives no answers any more, in the real process: that ends, and a supervisor starts another one."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from service_process import PATIENCE_S, python_finds, service_process
from serving import plain, wait_until

IMAGE = plain("42")
# As a `sitecustomize.py`. Warming is of black images; from the first other one on, the engine of that process is
# lost, unless another process has lost one before.
LOST = """
import pathlib, time
from service.engine import OnnxEngine

lost, run = pathlib.Path({mark!r}), OnnxEngine.infer
mine = []

def infer(self, images):
    if images.any() and not lost.exists():
        lost.touch()
        mine.append(True)
    if mine:
        {then}
    return run(self, images)

OnnxEngine.infer = infer
"""
NEVER_WARM = """
import time
from service.engine import OnnxEngine
OnnxEngine.infer = lambda self, images: time.sleep(3600)
"""
HANGS = "time.sleep(3600)"
FAILS = "raise RuntimeError('CUDA failure 700')"
SLOW = "[time.sleep(0.01) for _ in range(100)]"  # which a pause makes later, unlike one long sleep


def sabotage(folder: Path, code: str) -> dict[str, str]:
    (folder / "sitecustomize.py").write_text(code)
    return python_finds(folder)


def losing(folder: Path, then: str) -> dict[str, str]:
    return sabotage(folder, LOST.format(mark=str(folder / "lost"), then=then))


def flags(artifact: Path, *more: str) -> tuple[str, ...]:
    return "--provider", "cpu", "--model", str(artifact), "--stall-timeout-s", "3", *more


def test_a_process_whose_engine_fails_says_so_and_ends_with_its_own_code(artifact: Path, tmp_path: Path) -> None:
    env = losing(tmp_path, FAILS)
    with service_process(tmp_path / "log", *flags(artifact, "--drain-delay-s", "1"), env=env) as server:
        server.wait_until_ready()
        with server.client() as client:
            assert client.post("/predict", content=IMAGE).json()["code"] == "internal"
            told = set()
            while server.popen.poll() is None:
                try:
                    told.add(client.get("/readyz").text)
                except httpx.HTTPError:  # the process is gone
                    break
            assert any("the engine fails on every image" in text for text in told)
            assert any("the service is stopping" in text for text in told)
        assert server.ends() == 9
        (line,) = [line for line in server.log.splitlines() if "CRITICAL" in line]
        assert "the engine has given no answer for 3 s" in line


def test_a_process_whose_engine_hangs_answers_and_ends_with_its_own_code(artifact: Path, tmp_path: Path) -> None:
    env = losing(tmp_path, HANGS)
    more = ("--request-timeout-ms", "5000", "--drain-timeout-s", "3")
    with service_process(tmp_path / "log", *flags(artifact, *more), env=env) as server:
        server.wait_until_ready()
        with server.client() as client:
            assert client.post("/predict", content=IMAGE).json()["code"] == "deadline_exceeded"
        assert server.ends() == 9
        (line,) = [line for line in server.log.splitlines() if "CRITICAL" in line]
        assert "the engine has given no answer for 3 s" in line


@pytest.mark.parametrize("then", [FAILS, HANGS])
def test_a_worker_whose_engine_is_lost_is_replaced(then: str, artifact: Path, tmp_path: Path) -> None:
    env = losing(tmp_path, then)
    more = ("--workers", "2", "--drain-timeout-s", "3")
    with service_process(tmp_path / "log", *flags(artifact, *more), env=env) as server:
        server.wait_until_ready()
        with server.client() as client:
            lost = client.post("/predict", content=IMAGE, headers={"X-Request-Timeout-Ms": "5000"})
            assert lost.status_code in (500, 504)
        wait_until(lambda: len(server.started(0) + server.started(1)) == 3, PATIENCE_S)
        assert "ended by exit code 9; another one takes its place in 0 s" in server.log
        with server.client() as client:
            assert client.post("/predict", content=IMAGE).status_code == 200


def test_a_process_whose_engine_hangs_at_the_start_ends_with_its_own_code(artifact: Path, tmp_path: Path) -> None:
    env = sabotage(tmp_path, NEVER_WARM)
    with service_process(tmp_path / "log", *flags(artifact, "--load-timeout-s", "2"), env=env) as server:
        assert server.ends() == 9
        (line,) = [line for line in server.log.splitlines() if "CRITICAL" in line]
        assert "the model is not loaded and warm after 2 s" in line


def test_an_engine_that_hangs_at_the_start_does_not_hold_up_who_stops_it(artifact: Path, tmp_path: Path) -> None:
    with service_process(tmp_path / "log", *flags(artifact), env=sabotage(tmp_path, NEVER_WARM)) as server:
        wait_until(lambda: "running on the CPU" in server.log, PATIENCE_S)
        server.popen.send_signal(signal.SIGTERM)
        assert server.ends() == 0


def test_workers_that_do_not_become_warm_are_given_up(artifact: Path, tmp_path: Path) -> None:
    more = ("--workers", "2", "--load-timeout-s", "2")
    with service_process(tmp_path / "log", *flags(artifact, *more), env=sabotage(tmp_path, NEVER_WARM)) as server:
        assert server.ends() == 8
        assert "has not become warm for 2 s: it is killed" in server.log
        (line,) = [line for line in server.log.splitlines() if "CRITICAL" in line]
        assert "no worker can be started; the last one ended by SIGKILL" in line


def test_a_process_that_was_frozen_within_a_batch_lives_on(artifact: Path, tmp_path: Path) -> None:
    """The batch is then older than it may be, and has not had the time."""
    with service_process(tmp_path / "log", *flags(artifact), env=losing(tmp_path, SLOW)) as server:
        server.wait_until_ready()
        with server.client() as client, ThreadPoolExecutor(1) as threads:
            asked = threads.submit(client.post, "/predict", content=IMAGE)
            wait_until((tmp_path / "lost").exists, PATIENCE_S)
            os.kill(server.popen.pid, signal.SIGSTOP)
            assert not asked.done()
            time.sleep(5)
            os.kill(server.popen.pid, signal.SIGCONT)
            assert asked.result().status_code == 200
            assert client.post("/predict", content=IMAGE).status_code == 200
        assert server.popen.poll() is None
        assert "CRITICAL" not in server.log
