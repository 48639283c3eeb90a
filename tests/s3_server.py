"""A real S3-speaking server on loopback (moto's, from PyPI: it needs no account and no Java, and speaks multipart
uploads), and a proxy before it that fails as networks and object stores do."""

from __future__ import annotations

import http.client
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

Fault = Literal["reset", "500", "503", "slow", "403"]
# Says, for a method, a path with its query and how many such requests there were before, what is to go wrong.
Plan = Callable[[str, str, int], Fault | None]

# In a process of its own, which ends when its standard input does, whatever happens to this one.
_MOTO = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@dataclass
class Faults:
    """What the proxy is to do, and what it has done."""

    plan: Plan = field(default=lambda method, path, before: None)
    seen: list[tuple[str, str]] = field(default_factory=list)
    done: list[Fault] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self, method: str, path: str) -> Fault | None:
        with self.lock:
            before = self.seen.count((method, path))
            self.seen.append((method, path))
            fault = self.plan(method, path, before)
            if fault:
                self.done.append(fault)
            return fault


@contextmanager
def moto() -> Iterator[int]:
    """The port of an S3 server with nothing in it."""
    server = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _MOTO],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout
        yield int(server.stdout.readline())
    finally:
        server.kill()
        server.communicate()


@contextmanager
def proxy(target: int, faults: Faults) -> Iterator[int]:
    """The port of a proxy before the server at the port `target`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # or each answer waits 40 ms for the acknowledgement of its headers

        def handle_any(self) -> None:
            body = self.body()
            fault = faults.next(self.command, self.path)
            if fault in ("500", "503", "403"):
                assert fault
                self.answer(int(fault), {}, b"<Error><Code>InternalError</Code></Error>" if fault == "500" else b"")
                return
            if fault == "slow":
                time.sleep(5)  # longer than a client waits for a byte
            upstream = http.client.HTTPConnection("127.0.0.1", target, timeout=30)
            try:
                ours = ("transfer-encoding", "content-length", "expect", "connection")
                headers = {name: value for name, value in self.headers.items() if name.lower() not in ours}
                upstream.request(self.command, self.path, body, headers)
                response = upstream.getresponse()
                data = response.read()
            finally:
                upstream.close()
            self.answer(response.status, dict(response.getheaders()), data, cut=fault == "reset")

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any  # noqa: N815 - http.server's names

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            whole = b""
            while size := int(self.rfile.readline(), 16):
                whole += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return whole

        def answer(self, status: int, headers: dict[str, str], data: bytes, cut: bool = False) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "transfer-encoding", "connection", "server", "date"):
                    self.send_header(name, value)
            length = headers.get("Content-Length", str(len(data))) if self.command == "HEAD" else str(len(data))
            self.send_header("Content-Length", length)
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if cut else data)
            if cut:
                self.wfile.flush()
                # Closed with unsent data thrown away, as when a machine dies: the other side gets a reset.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True

        def finish(self) -> None:
            if self.connection.fileno() >= 0:
                super().finish()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that has gone is no news
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
