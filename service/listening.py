"""Where connections come in: the listening sockets, and how a process takes connections from them."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable, Sequence

logger = logging.getLogger(__name__)

_BACKLOG = 2048
_OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_RECOVERY_S = 1.0
# The finest that the event loop's timers are.
_HEAD_START_S = 0.001


def listen(host: str, port: int) -> list[socket.socket]:
    """One listening socket for each address of `host` ("": every address of the machine). Raises OSError."""
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    listeners: list[socket.socket] = []
    try:
        for family, address in dict.fromkeys((info[0], info[4]) for info in found):
            listeners.append(socket.create_server(address, family=family, backlog=_BACKLOG))
    except OSError:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if listener.family == socket.AF_INET6 else f"http://{host}:{port}"


class Acceptor:
    """Takes connections from listening sockets that other processes may share, one per turn of the event loop.

    An event loop that takes all that wait would have all of a burst, and whichever process wakes first, mostly the
    same one, everything that comes bit by bit. So a process that is `ahead` of another gives the others a head start
    of a millisecond, and takes what they leave: one that is frozen or busy keeps nobody waiting.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        protocol: Callable[[], asyncio.Protocol],
        ahead: Callable[[], bool] = lambda: False,
    ) -> None:
        self._listeners = listeners
        self._protocol = protocol
        self._ahead = ahead
        self._loop = asyncio.get_running_loop()
        self._open = False
        self._connecting: set[asyncio.Task[object]] = set()

    @property
    def connecting(self) -> int:
        """Connections that were taken and have no protocol yet."""
        return len(self._connecting)

    def start(self) -> None:
        """Begins to take connections."""
        self._open = True
        for listener in self._listeners:
            listener.setblocking(False)
            self._resume(listener)

    async def close(self) -> None:
        """Takes what has come in so far, and then nothing more: what waits in a socket that is closed is lost."""
        for listener in self._listeners:
            if self._open:
                self._loop.remove_reader(listener)
                while self._accept(listener):
                    pass
            listener.close()
        self._open = False
        if self._connecting:
            await asyncio.wait(self._connecting)

    def _resume(self, listener: socket.socket) -> None:
        if self._open:
            self._loop.add_reader(listener, self._on_waiting, listener)

    def _pause(self, listener: socket.socket, seconds: float, then: Callable[[socket.socket], object]) -> None:
        self._loop.remove_reader(listener)
        self._loop.call_later(seconds, then, listener)

    def _on_waiting(self, listener: socket.socket) -> None:
        if self._ahead():
            self._pause(listener, _HEAD_START_S, self._after_head_start)
        else:
            self._accept(listener)

    def _after_head_start(self, listener: socket.socket) -> None:
        if self._open:
            self._resume(listener)
            self._accept(listener)

    def _accept(self, listener: socket.socket) -> bool:
        """Takes a connection; False where none is left, or this one is gone again."""
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return False
        except OSError as error:
            if error.errno not in _OUT_OF_RESOURCES:
                raise
            logger.error("no connections are taken for %g s: %s", _RECOVERY_S, error)
            self._pause(listener, _RECOVERY_S, self._resume)
            return False
        connection.setblocking(False)
        task = self._loop.create_task(self._connect(connection))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)
        return True

    async def _connect(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._protocol, connection)
        except OSError as error:
            logger.info("a connection was lost before it began: %s", error)
