"""One of several processes that answer on the same port: the server, told what to do by its supervisor alone."""

from __future__ import annotations

import asyncio
import logging
import shutil
import socket
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from service.channel import NOT_LISTENING, Channel, Post
from service.server import Server
from service.settings import Settings
from service.source import Choice

logger = logging.getLogger(__name__)

_BEAT_S = 0.1
_TICKS_PER_REFRESH = 10  # of uvicorn's, which come every tenth of a second


class Worker(Server):
    """Signals that a terminal or a service manager sends to all are the supervisor's business: this process ignores
    them. When the supervisor is gone, it stops listening, answers what it has accepted, and ends."""

    def __init__(self, settings: Settings, post: Post) -> None:
        self._post = post
        self._channel = Channel(post.connection)
        self._tasks: set[asyncio.Task[object]] = set()
        if post.choice is not None:
            chosen = {"model_name": post.choice.name, "model_version": post.choice.version and int(post.choice.version)}
            settings = settings.model_copy(update=chosen)
        super().__init__(settings, self._spread)
        self._lifecycle.whole = post.replacement
        self._lifecycle.on_serving = self._on_serving
        self._is_warm = False

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._in_background(self._beat())
        await super().startup(sockets)
        # Only now: what is told to load another model waits for the first one, which has begun to be loaded.
        self._channel.open(self._on_message, self._on_orphaned)

    async def on_tick(self, counter: int) -> bool:
        if self._post.connections[self._post.place] != NOT_LISTENING:
            self._count_connections()
        if counter % _TICKS_PER_REFRESH == 0:
            self._metrics.refresh()
        return await super().on_tick(counter)

    async def _beat(self) -> None:
        """Until the event loop ends: also while it drains, when it does not tick."""
        while True:
            self._post.beats[self._post.place] += 1
            await asyncio.sleep(_BEAT_S)

    def _begin_to_accept(self) -> None:
        if not self._post.replacement:
            self._post.connections[self._post.place] = 0
            super()._begin_to_accept()

    def _on_serving(self) -> None:
        if not self._is_warm:
            self._is_warm = True
            if self._post.choice is not None and self._post.choice.newest:
                self._lifecycle.follow_newest()  # it was told a version only to begin with the same as the others
        self._channel.send("serving", self._lifecycle.choice)
        if self._post.connections[self._post.place] == NOT_LISTENING and not self.should_exit:
            self._post.connections[self._post.place] = 0
            super()._begin_to_accept()

    def _is_ahead(self) -> bool:
        return self._count_connections() > min(self._post.connections)

    def _count_connections(self) -> int:
        count = len(self.server_state.connections) + self._acceptor.connecting
        self._post.connections[self._post.place] = count
        return count

    def _on_message(self, word: str, about: Any) -> None:
        match word:
            case "whole":
                self._lifecycle.whole = True
            case "reload":
                self.reload()
            case "drain":
                self.drain()
            case "stop":
                self.stop_now()
            case "load":
                self._in_background(self._load_for_another(about))

    async def _load_for_another(self, choice: Choice) -> None:
        try:
            await self._lifecycle.load(choice)
        except Exception as error:
            self._channel.reply(" ".join(str(error).split()) or type(error).__name__)
        else:
            self._channel.reply(None)

    async def _spread(self, choice: Choice) -> None:
        """Has every other worker load the choice. Raises RuntimeError, with the first failure's line."""
        failure = await self._channel.ask("spread", choice)
        if failure is not None:
            raise RuntimeError(failure)

    def _on_orphaned(self) -> None:
        logger.error("the supervisor is gone; this worker stops")
        shutil.rmtree(self._post.folder, ignore_errors=True)  # which it would have removed; files in use live on
        self.drain()
        self._stop()

    def _tell(self, failure: str) -> None:
        self._channel.send("failed", failure)  # all find it at once, and one says it

    def _in_background(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
