"""An engine that gives no answers any more, in the real process: that ends, and a supervisor starts another one."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from service_process import PATIENCE_S, service_process
from serving import plain, wait_until

IMAGE = plain("42")
# Python runs it at its start. Warming is of black images; from the first other one on, the engine of that process is
# lost, unless another process has lost one before.
SABOTAGE = """
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
STALLS = {
    "hangs": "time.sleep(3600)",
    "fails": "raise RuntimeError('CUDA failure 700')",
    "is slow": "[time.sleep(0.01) for _ in range(50)]",  # which a pause makes later, unlike one long sleep
}


def sabotaged(folder: Path, stall: str) -> dict[str, str]:
    (folder / "sitecustomize.py").write_text(SABOTAGE.format(mark=str(folder / "lost"), then=STALLS[stall]))
    return {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}


def flags(artifact: Path) -> tuple[str, ...]:
    short = ("--request-timeout-ms", "1000", "--stall-timeout-s", "2")
    return "--provider", "cpu", "--model", str(artifact), *short


@pytest.mark.parametrize("stall", ["hangs", "fails"])
def test_a_process_whose_engine_is_lost_ends_with_its_own_code(stall: str, artifact: Path, tmp_path: Path) -> None:
    env = sabotaged(tmp_path, stall)
    with service_process(tmp_path / "log", *flags(artifact), env=env) as server:
        server.wait_until_ready()
        with server.client() as client:
            code = {"hangs": "deadline_exceeded", "fails": "internal"}[stall]
            while "CRITICAL" not in server.log:
                try:
                    answer = client.post("/predict", content=IMAGE)
                except Exception:  # the process is gone
                    break
                assert answer.json()["code"] == code
            assert server.ends() == 9
        (line,) = [line for line in server.log.splitlines() if "CRITICAL" in line]
        assert "the engine has given no answer for" in line


def test_a_process_that_was_frozen_within_a_batch_lives_on(artifact: Path, tmp_path: Path) -> None:
    """The batch is then older than it may be, and has not had the time."""
    env = sabotaged(tmp_path, "is slow")
    with service_process(tmp_path / "log", *flags(artifact), env=env) as server:
        server.wait_until_ready()
        with server.client() as client, ThreadPoolExecutor(1) as threads:
            asked = threads.submit(client.post, "/predict", content=IMAGE)
            wait_until((tmp_path / "lost").exists, PATIENCE_S)
            os.kill(server.popen.pid, signal.SIGSTOP)
            time.sleep(3)
            os.kill(server.popen.pid, signal.SIGCONT)
            assert asked.result().status_code in (200, 504)
            assert client.post("/predict", content=IMAGE).status_code in (200, 504)
        assert server.popen.poll() is None
        assert "CRITICAL" not in server.log


def test_a_worker_whose_engine_is_lost_is_replaced(artifact: Path, tmp_path: Path) -> None:
    env = sabotaged(tmp_path, "hangs")
    with service_process(tmp_path / "log", *flags(artifact), "--workers", "2", env=env) as server:
        server.wait_until_ready()
        with server.client() as client:
            assert client.post("/predict", content=IMAGE).status_code == 504
        wait_until(lambda: len(server.started(0) + server.started(1)) == 3, PATIENCE_S)
        assert "ended by exit code 9; another one takes its place in 0 s" in server.log
        with server.client() as client:
            assert client.post("/predict", content=IMAGE).status_code == 200
