"""A real Ray cluster on this machine: each node is a raylet with processes of its own, and can be killed by itself."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

_MARK = "HOUSENUMBER_TEST_CLUSTER"
_OBJECT_STORE_BYTES = 100 * 2**20


class Cluster:
    """A head without CPUs, where drivers are, and `nodes` with one CPU each."""

    def __init__(self, nodes: int) -> None:
        # Imported here: it takes seconds.
        from ray.cluster_utils import Cluster as RayCluster

        self._cluster = RayCluster(shutdown_at_exit=True)
        common: dict[str, Any] = {"object_store_memory": _OBJECT_STORE_BYTES, "wait": False}
        self._cluster.add_node(num_cpus=0, include_dashboard=False, **common)
        self.nodes = [self._cluster.add_node(num_cpus=1, **common) for _ in range(nodes)]
        self.address: str = self._cluster.address
        self._cluster.wait_for_nodes(300)

    def actors(self, node: Any) -> list[int]:
        """The processes on a node that hold a session."""
        return [pid for pid in _processes() if _parent(pid) == _raylet(node) and b"PartWriter" in _read(pid, "cmdline")]

    def kill(self, node: Any) -> None:
        """As when a machine loses its power."""
        self.nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)

    def close(self) -> None:
        self._cluster.shutdown()  # type: ignore[no-untyped-call]


@contextmanager
def ray_cluster(nodes: int) -> Iterator[Cluster]:
    """No process of it is left at the end, whatever happened."""
    # Short: there are sockets in it, whose paths may have 107 characters.
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    mark = secrets.token_hex(8)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(_MARK, mark)
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Workers are 15 by default, and get nothing beside whatever else this machine does.
        patch.setenv("RAY_worker_niceness", "0")
        try:
            cluster = Cluster(nodes)
            try:
                yield cluster
            finally:
                cluster.close()
        finally:
            for pid in _processes():
                if pid != os.getpid() and f"{_MARK}={mark}".encode() in _read(pid, "environ").split(b"\0"):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            for number, handler in handlers.items():  # Ray takes them
                signal.signal(number, handler)
            shutil.rmtree(folder, ignore_errors=True)


def _processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]


def _read(pid: int, name: str) -> bytes:
    """A file of a process; nothing where it has gone, or is another user's."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/{name}").read_bytes()
    return b""


def _parent(pid: int) -> int:
    status = _read(pid, "stat")
    return int(status.rpartition(b")")[2].split()[1]) if status else 0


def _raylet(node: Any) -> int:
    from ray._private.ray_constants import PROCESS_TYPE_RAYLET

    ((process,),) = [[info.process for info in node.all_processes[PROCESS_TYPE_RAYLET]]]
    pid: int = process.pid
    return pid
