"""Server processes to measure, what they take of the machine, and what the machine is. Linux only."""

from __future__ import annotations

import http.client
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from service.cpus import usable_cpus

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_START_TIMEOUT_S = 120
# A few of the ticks that CPU time is counted in; a server that waits uses less than one.
_IDLE_S = 0.05
_STOP_TIMEOUT_S = 60
_PACKAGES = {"housenumber", "onnxruntime", "onnxruntime-gpu", "fastapi", "starlette", "uvicorn", "uvloop", "pillow"}


class Server:
    """A server process, with its workers, that answers 200 at `/readyz`; its log is in `log`."""

    def __init__(self, popen: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.popen = popen
        self.port = port
        self.log = log

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body; raises OSError where nobody answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def wait_until_ready(self) -> None:
        end = time.monotonic() + _START_TIMEOUT_S
        while self.popen.poll() is None and time.monotonic() < end:
            try:
                if self.get("/readyz")[0] == 200:
                    return
            except (OSError, http.client.HTTPException):
                pass  # it does not listen yet
            time.sleep(0.01)
        raise RuntimeError(f"the server did not start:\n{self.log_tail}")

    def wait_until_idle(self) -> None:
        """Until the processes do nothing: what was left of the last measurement is done."""
        before = -1.0
        while (now := self.cpu_s) > before:
            before = now
            time.sleep(_IDLE_S)

    @property
    def log_tail(self) -> str:
        return self.log.read_text()[-2000:]

    @property
    def pids(self) -> list[int]:
        """Of the process and all below it."""
        return tree(self.popen.pid)

    @property
    def cpu_s(self) -> float:
        """CPU time so far, of all processes."""
        fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in self.pids]
        return sum(int(utime) + int(stime) for *_, utime, stime in (row[:13] for row in fields)) / _TICKS_PER_S

    @property
    def memory_bytes(self) -> int:
        """Resident memory of the largest process."""
        return max(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.pids) * _PAGE_BYTES


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for above in found:
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            for task in Path(f"/proc/{above}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


def proportional_bytes(pids: Iterable[int]) -> int:
    """Memory of processes together: what several share counts once."""
    kib = 0
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            kib += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kib * 1024


@contextmanager
def serving(command: Sequence[str], log: Path, variables: Mapping[str, str] | None = None) -> Iterator[Server]:
    """`python -m COMMAND --port N` until the end of the block, not necessarily ready yet; `variables` are added to its
    environment."""
    port = free_port()
    env = {**os.environ, **(variables or {})}
    with log.open("wb") as stderr:
        popen = subprocess.Popen([sys.executable, "-m", *command, "--port", str(port)], stderr=stderr, env=env)
    try:
        yield Server(popen, port, log)
    finally:
        popen.send_signal(signal.SIGTERM)
        try:
            popen.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            popen.kill()
            popen.wait()


def environment() -> dict[str, Any]:
    """When and on what something was measured."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{_processor()}, {usable_cpus()} of {os.cpu_count()} CPUs, {platform.platform()}",
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "versions": {"python": platform.python_version(), **_versions()},
    }


def _versions() -> dict[str, str]:
    found = {dist.metadata["Name"].lower().replace("_", "-"): dist.version for dist in distributions()}
    return {name: found[name] for name in sorted(_PACKAGES & found.keys())}


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port
