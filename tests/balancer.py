"""HAProxy with the configuration that ships, and a name server that tells it where the readers are.

A replica has an address of its own in 127.0.0.0/8, and all have the same port, as containers do.
"""

from __future__ import annotations

import csv
import io
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from containers import ROOT, tool
from serving import wait_until

CONFIGURATION = ROOT / "deploy/haproxy/haproxy.cfg"
NAME = "reader.test"

# HAProxy takes the time in which it gets no CPU for a jump of the clock: on a very busy machine its seconds are long.
PATIENCE_S = 300.0


def free_port(address: str) -> int:
    with socket.create_server((address, 0)) as server:
        port: int = server.getsockname()[1]
        return port


class NameServer:
    """DNS on a port of this machine: every name has the addresses in `addresses`, which may be changed."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self.addresses = list(addresses)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.address = "{}:{}".format(*self._socket.getsockname())
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            query, asker = self._socket.recvfrom(4096)
            if not query:
                return
            end = query.index(b"\0", 12) + 5  # of the question: a name, its type and its class
            is_ipv4 = query[end - 4 : end - 2] == b"\0\1"
            addresses = [socket.inet_aton(address) for address in self.addresses if is_ipv4]
            # An answer with authority, to one question; each record names the question's name by its place, 12.
            head = query[:2] + struct.pack(">5H", 0x8400, 1, len(addresses), 0, 0)
            records = [struct.pack(">3HLH", 0xC00C, 1, 1, 0, 4) + address for address in addresses]
            self._socket.sendto(head + query[12:end] + b"".join(records), asker)


@dataclass(frozen=True)
class Balancer:
    """A running HAProxy: `url` for callers, `inside` for its operators, `names` says where the readers are."""

    url: str
    inside: httpx.Client
    names: NameServer
    log: Path

    def ready(self) -> int:
        """How many readers get requests because their last check was good."""
        table = self.inside.get("/stats;csv").text.removeprefix("# ")
        rows = [row for row in csv.DictReader(io.StringIO(table)) if row["pxname"] == "readers"]
        # "* " before the status: another check is under way.
        return sum(row["status"] == "UP" and row["check_status"].removeprefix("* ") == "L7OK" for row in rows)

    def wait_for(self, ready: int) -> None:
        wait_until(lambda: self.ready() == ready, PATIENCE_S)


@contextmanager
def balancing(directory: Path, addresses: Sequence[str], port: int, **variables: str) -> Iterator[Balancer]:
    """HAProxy in front of the readers on `port` of `addresses`; `variables` are those of its configuration."""
    haproxy = tool("haproxy")
    log = directory / "haproxy.log"
    names = NameServer(addresses)
    try:
        # It inherits its sockets: no port is free for a moment, and callers may connect at once.
        with (
            socket.create_server(("127.0.0.1", 0)) as outside,
            socket.create_server(("127.0.0.1", 0)) as inside,
            log.open("wb") as output,
        ):
            url, url_inside = (f"http://127.0.0.1:{listener.getsockname()[1]}" for listener in (outside, inside))
            process = subprocess.Popen(
                [haproxy, "-db", "-f", str(CONFIGURATION)],
                env={
                    **os.environ,
                    "LISTEN": f"fd@{outside.fileno()}",
                    "INSIDE": f"fd@{inside.fileno()}",
                    "NAMESERVER": names.address,
                    "READERS": f"{NAME}:{port}",
                    **variables,
                },
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(outside.fileno(), inside.fileno()),
            )
        try:
            with httpx.Client(base_url=url_inside, trust_env=False, timeout=PATIENCE_S) as client:
                yield Balancer(url, client, names, log)
        finally:
            process.kill()
            process.wait()
    finally:
        names.close()
