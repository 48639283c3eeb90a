"""`housenumber serve` as a process of its own, with its log in a file."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
from serving import wait_until

# A machine that is busy with other things may need this long for what takes a second.
PATIENCE_S = 300.0

_URL = re.compile(r"running on (http://127\.0\.0\.1:\d+)")
_WARM = re.compile(r"worker (\d+) \(process (\d+)\) is warm")


def python_finds(folder: Path) -> dict[str, str]:
    """The variable with which a process finds what is in this folder before all else; a `sitecustomize.py` there runs
    at its start."""
    return {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}


class ServiceProcess:
    def __init__(self, log: Path, *flags: str, env: Mapping[str, str] = {}) -> None:
        self._log = log
        command = [sys.executable, "-m", "housenumber", "serve", "--port", "0", "--log-format", "text", *flags]
        with log.open("wb") as stderr:
            # A session of its own, as a terminal or a service manager would give it.
            self.popen = subprocess.Popen(command, stderr=stderr, env={**os.environ, **env}, start_new_session=True)

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def url(self) -> str:
        """Waits for the log to name it."""
        wait_until(lambda: _URL.search(self.log) is not None, PATIENCE_S)
        match = _URL.search(self.log)
        assert match
        return match[1]

    def client(self) -> httpx.Client:
        """A client that keeps one connection."""
        limits = httpx.Limits(max_connections=1)
        return httpx.Client(base_url=self.url, timeout=PATIENCE_S, limits=limits, trust_env=False)

    def wait_until_ready(self) -> None:
        with self.client() as client:
            wait_until(lambda: client.get("/readyz").status_code == 200, PATIENCE_S)

    def started(self, place: int) -> list[int]:
        """The processes that were workers in this place, the latest last, as far as they got warm."""
        return [int(process) for where, process in _WARM.findall(self.log) if int(where) == place]

    def ends(self) -> int:
        """Waits for the end; the exit code."""
        return self.popen.wait(PATIENCE_S)


@contextmanager
def service_process(log: Path, *flags: str, env: Mapping[str, str] = {}) -> Iterator[ServiceProcess]:
    process = ServiceProcess(log, *flags, env=env)
    try:
        yield process
    finally:
        with suppress(subprocess.TimeoutExpired):  # twice: at once, but in order
            for _ in range(2):
                process.popen.terminate()
            process.popen.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(process.popen.pid, signal.SIGKILL)
        process.popen.wait()
