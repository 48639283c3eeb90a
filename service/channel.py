"""What the supervisor gives a worker, and what they say to each other, over a pipe that both read in their event loops.

| from the supervisor | | from a worker | |
|---|---|---|---|
| `whole` | all workers are warm for the first time | `serving` | the choice that it serves from now on |
| `reload` | as SIGHUP | `failed` | why its first model cannot be served |
| `drain`, `stop` | as a first and a second SIGTERM | `spread` | asks for a choice to be loaded by all |
| `load` | asks for a choice to be loaded | | |

What is asked is answered with `reply`, in the order asked: None, or in one line what went wrong.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable, MutableSequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from service.source import Choice

NOT_LISTENING = 2**31 - 1

_REPLY = "reply"
_GONE = "the other process is gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Post:
    """What a worker is given: its place among the others, the sockets of all, and its end of the pipe.

    `connections` and `beats` are memory that all share: how many each has open, NOT_LISTENING for one that takes none,
    and a number of each that changes as long as its event loop turns. In `folder` all keep their metrics. A
    `replacement` takes no connection before it is warm; `choice` is what the others serve, None for what the settings
    say.
    """

    place: int
    listeners: list[socket.socket]
    connection: Connection
    connections: MutableSequence[int]
    beats: MutableSequence[int]
    folder: Path
    replacement: bool
    choice: Choice | None


class Channel:
    """One end of the pipe.

    From `open` on, in the event loop, `on_message` gets a word and what it is about, and `on_end` is called when the
    other end is gone.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._asked: deque[asyncio.Future[str | None]] = deque()

    def open(self, on_message: Callable[[str, Any], None], on_end: Callable[[], None] = lambda: None) -> None:
        self._on_message = on_message
        self._on_end = on_end
        asyncio.get_running_loop().add_reader(self._connection.fileno(), self._read)

    def send(self, word: str, about: object = None) -> None:
        """To an end that is gone nothing is sent; that it is gone is learned by reading."""
        with suppress(OSError):
            self._connection.send((word, about))

    def reply(self, failure: str | None) -> None:
        self.send(_REPLY, failure)

    async def ask(self, word: str, about: object) -> str | None:
        """Sends, and gives back the reply; raises ConnectionError when the other end is gone before."""
        if self._connection.closed:
            raise ConnectionError(_GONE)
        reply: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._asked.append(reply)
        self.send(word, about)
        return await reply

    def close(self) -> None:
        """Reads what is left, and closes this end."""
        while not self._connection.closed and self._connection.poll():
            self._read()
        self._end()

    def _read(self) -> None:
        try:
            word, about = self._connection.recv()
        except (EOFError, OSError):
            self._end()
            self._on_end()
            return
        if word != _REPLY:
            self._on_message(word, about)
        elif not (asked := self._asked.popleft()).done():  # its asker may have left
            asked.set_result(about)

    def _end(self) -> None:
        if not self._connection.closed:
            asyncio.get_running_loop().remove_reader(self._connection.fileno())
            self._connection.close()
        for asked in self._asked:
            if not asked.done():
                asked.set_exception(ConnectionError(_GONE))
        self._asked.clear()
