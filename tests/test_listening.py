"""Taking connections: one per turn of the event loop, after a head start for others, and at the end all there are."""

import asyncio
import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import pytest

from service.listening import Acceptor, listen, url_of


class Greeter(asyncio.Protocol):
    """Says hello and goodbye, and counts."""

    greeted = 0

    def connection_made(self, transport: Any) -> None:
        Greeter.greeted += 1
        transport.write(b"hello")
        transport.close()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    Greeter.greeted = 0
    (listener,) = listen("127.0.0.1", 0)
    with listener:
        yield listener


@pytest.fixture
def callers(listener: socket.socket) -> Iterator[list[socket.socket]]:
    """Connections that wait to be taken."""
    with ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection(listener.getsockname(), 20)) for _ in range(8)]


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0)


def test_at_most_one_connection_is_taken_per_turn(listener: socket.socket, callers: list[socket.socket]) -> None:
    async def turn_by_turn() -> list[int]:
        acceptor = Acceptor([listener], Greeter)
        acceptor.start()
        taken = []
        while Greeter.greeted < len(callers):
            await asyncio.sleep(0)
            taken.append(Greeter.greeted + acceptor.connecting)
        await acceptor.close()
        return taken

    # A connection is counted twice while its protocol is being made, which takes a turn.
    taken = asyncio.run(asyncio.wait_for(turn_by_turn(), 20))
    assert all(later - earlier <= 2 for earlier, later in pairwise(taken))
    assert all(caller.recv(10) == b"hello" for caller in callers)


def test_one_that_is_ahead_leaves_connections_to_others(listener: socket.socket, callers: list[socket.socket]) -> None:
    async def with_another() -> int:
        greedy, modest = Acceptor([listener.dup()], Greeter, lambda: True), Acceptor([listener.dup()], Taking)
        greedy.start()
        modest.start()
        await until(lambda: Greeter.greeted + Taking.taken == len(callers))
        await asyncio.gather(greedy.close(), modest.close())
        return Taking.taken

    class Taking(asyncio.Protocol):
        taken = 0

        def connection_made(self, transport: Any) -> None:
            Taking.taken += 1
            transport.close()

    assert asyncio.run(with_another()) > len(callers) // 2


def test_what_the_others_leave_one_that_is_ahead_takes(listener: socket.socket, callers: list[socket.socket]) -> None:
    async def alone() -> None:
        acceptor = Acceptor([listener], Greeter, lambda: True)
        acceptor.start()
        await until(lambda: Greeter.greeted == len(callers))
        await acceptor.close()

    asyncio.run(alone())
    assert all(caller.recv(10) == b"hello" for caller in callers)


def test_what_waits_when_it_closes_is_taken(listener: socket.socket, callers: list[socket.socket]) -> None:
    async def close_at_once() -> None:
        acceptor = Acceptor([listener], Greeter)
        acceptor.start()
        await acceptor.close()

    address = listener.getsockname()
    asyncio.run(close_at_once())
    assert Greeter.greeted == len(callers)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, 20)


def test_one_that_never_began_takes_nothing(listener: socket.socket, callers: list[socket.socket]) -> None:
    async def close() -> None:
        await Acceptor([listener.dup()], Greeter).close()

    asyncio.run(close())
    assert Greeter.greeted == 0
    assert callers


def test_without_descriptors_it_waits(
    listener: socket.socket, callers: list[socket.socket], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    class Exhausted(socket.socket):
        failures = 2

        def accept(self) -> tuple[socket.socket, Any]:
            if self.failures:
                self.failures -= 1
                raise OSError(errno.EMFILE, "Too many open files")
            return super().accept()

    async def recover() -> None:
        acceptor = Acceptor([Exhausted(fileno=listener.detach())], Greeter)
        acceptor.start()
        await until(lambda: Greeter.greeted == len(callers))
        await acceptor.close()

    monkeypatch.setattr("service.listening._RECOVERY_S", 0.001)
    asyncio.run(recover())
    assert caplog.text.count("Too many open files") == 2


def test_a_name_listens_on_all_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = ["127.0.0.1", "127.0.0.2", "127.0.0.1"]
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in addresses]
    monkeypatch.setattr("service.listening.socket.getaddrinfo", lambda *_args, **_flags: found)
    with ExitStack() as stack:
        listeners = [stack.enter_context(listener) for listener in listen("two-addresses", 0)]
        assert [listener.getsockname()[0] for listener in listeners] == ["127.0.0.1", "127.0.0.2"]


def test_an_address_as_a_url() -> None:
    (listener,) = listen("127.0.0.1", 0)
    with listener:
        assert url_of(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("host", ["no-such-host.invalid", "192.0.2.1"])
def test_where_it_cannot_listen_is_an_error(host: str) -> None:
    with pytest.raises(OSError, match=r"."):
        listen(host, 0)
