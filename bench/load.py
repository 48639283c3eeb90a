"""A load generator that leaves the CPU to what it measures: it shares its cores with the service.

Each connection is an `asyncio.Protocol` on uvloop that writes a request made beforehand and looks in the answer for
nothing but status and length, some tens of microseconds of CPU per request; `Load.cpu_s` is what they were. `saturate`
keeps every connection busy, as callers do that wait for their answers; `offer` sends at a rate, as the world does,
whether there are answers or not. Call them in a process of their own.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import uvloop

_HEAD_END = b"\r\n\r\n"
_LENGTH = b"content-length:"
_TICK_S = 0.002
_STATUS_OK = 200


@dataclass(slots=True)
class Load:
    """What came back within the `seconds` that were measured: answers by status, and seconds until each 200.

    `broken` are connections that ended without an answer, `unsent` requests that found no free connection when they
    were due. `cpu_s` is the CPU time of this process meanwhile.
    """

    seconds: float = 0.0
    answers: Counter[int] = field(default_factory=Counter)
    waits: list[float] = field(default_factory=list)
    broken: int = 0
    unsent: int = 0
    cpu_s: float = 0.0

    @property
    def good(self) -> float:
        """Requests answered with 200, per second."""
        return self.answers[_STATUS_OK] / self.seconds

    def quantile(self, share: float) -> float:
        """Seconds within which this share of those answers came."""
        waits = sorted(self.waits)
        return waits[min(int(share * len(waits)), len(waits) - 1)] if waits else float("nan")


def saturate(port: int, requests: Sequence[bytes], *, connections: int, warm_s: float, seconds: float) -> Load:
    """As many requests as the service answers over that many connections, taken in turn from `requests`."""
    return uvloop.run(_Driver(port, requests).saturate(connections, warm_s, seconds))


def send(port: int, requests: Sequence[bytes], *, connections: int, count: int) -> Load:
    """So many requests, over that many connections."""
    return uvloop.run(_Driver(port, requests).send(connections, count))


def offer(
    port: int, requests: Sequence[bytes], *, rate: float, connections: int, warm_s: float, seconds: float
) -> Load:
    """`rate` requests per second over at most that many connections, each with one request at a time."""
    return uvloop.run(_Driver(port, requests).offer(rate, connections, warm_s, seconds))


def post(path: str, body: bytes, media_type: str) -> bytes:
    """A whole request."""
    head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: {media_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class _Driver:
    def __init__(self, port: int, requests: Sequence[bytes]) -> None:
        self._port = port
        self._requests = requests
        self._sent = 0
        self._measuring = False
        self.load = Load()

    async def saturate(self, connections: int, warm_s: float, seconds: float) -> Load:
        opened = [await self._connect(lambda connection: connection.send(self._next())) for _ in range(connections)]
        for connection in opened:
            connection.send(self._next())
        await self._measure(warm_s, seconds)
        return await self._close(opened)

    async def send(self, connections: int, count: int) -> Load:
        def on_free(connection: _Connection) -> None:
            if self._sent < count:
                connection.send(self._next())

        opened = [await self._connect(on_free) for _ in range(connections)]
        with self._measured():
            for connection in opened:
                on_free(connection)
            while any(connection.waiting for connection in opened):
                await asyncio.sleep(_TICK_S)
        return await self._close(opened)

    async def offer(self, rate: float, connections: int, warm_s: float, seconds: float) -> Load:
        free: list[_Connection] = []
        opened = [await self._connect(free.append) for _ in range(connections)]
        free += opened
        sending = asyncio.create_task(self._send_at(rate, free))
        await self._measure(warm_s, seconds)
        sending.cancel()
        return await self._close(opened)

    async def _send_at(self, rate: float, free: list[_Connection]) -> None:
        began, due = time.perf_counter(), 0
        while True:
            await asyncio.sleep(_TICK_S)
            ever = int((time.perf_counter() - began) * rate)
            for _ in range(ever - due):
                while free and not free[-1].is_open:
                    free.pop()  # it was idle for so long that the server closed it
                if free:
                    free.pop().send(self._next())
                elif self._measuring:
                    self.load.unsent += 1
            due = ever

    async def _connect(self, on_free: Callable[[_Connection], None]) -> _Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: _Connection(self._note, on_free), "127.0.0.1", self._port)
        return connection

    async def _measure(self, warm_s: float, seconds: float) -> None:
        await asyncio.sleep(warm_s)
        with self._measured():
            await asyncio.sleep(seconds)

    @contextmanager
    def _measured(self) -> Iterator[None]:
        self._measuring, began, busy = True, time.perf_counter(), time.process_time()
        yield
        self._measuring = False
        self.load.seconds, self.load.cpu_s = time.perf_counter() - began, time.process_time() - busy

    def _next(self) -> bytes:
        self._sent += 1
        return self._requests[self._sent % len(self._requests)]

    def _note(self, status: int | None, waited_s: float) -> None:
        if not self._measuring:
            return
        if status is None:
            self.load.broken += 1
            return
        self.load.answers[status] += 1
        if status == _STATUS_OK:
            self.load.waits.append(waited_s)

    async def _close(self, opened: Sequence[_Connection]) -> Load:
        await asyncio.gather(*(connection.close() for connection in opened))
        return self.load


class _Connection(asyncio.Protocol):
    """One request at a time; tells `note` how it ended (None: without an answer), and is then free."""

    def __init__(self, note: Callable[[int | None, float], None], on_free: Callable[[_Connection], None]) -> None:
        self._note = note
        self._on_free = on_free
        self._received = bytearray()
        self._began = 0.0
        self.waiting = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._lost = asyncio.get_running_loop().create_future()

    @property
    def is_open(self) -> bool:
        return not self._transport.is_closing()

    def send(self, request: bytes) -> None:
        if self.is_open:
            self.waiting, self._began = True, time.perf_counter()
            self._transport.write(request)
        else:
            self._note(None, 0.0)

    async def close(self) -> None:
        self.waiting = False
        self._transport.abort()
        await self._lost

    def data_received(self, data: bytes) -> None:
        self._received += data
        head = self._received.find(_HEAD_END)
        if head < 0:
            return
        length = int(self._received[:head].lower().partition(_LENGTH)[2].partition(b"\r")[0])
        if len(self._received) < head + len(_HEAD_END) + length:
            return
        status = int(self._received[9:12])  # after "HTTP/1.1 "
        self._received.clear()
        self.waiting = False
        self._note(status, time.perf_counter() - self._began)
        self._on_free(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost.set_result(None)
        if self.waiting:
            self.waiting = False
            self._note(None, 0.0)
