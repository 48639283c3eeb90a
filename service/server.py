"""The process around the app: signals, draining, and how it ends."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Never, cast

import uvicorn
from fastapi import FastAPI

from service.app import PREDICT_PATH, create_app
from service.engine import OnnxEngine
from service.exit_codes import EXIT_STALLED, EXIT_UNANSWERED, code_of_failure
from service.lifecycle import LOAD_ERRORS, State
from service.listening import Acceptor
from service.open_inference.routes import INFER_PATHS
from service.protocol import StrictHttp
from service.settings import Settings
from service.shedding import Shedding
from service.source import Choice

logger = logging.getLogger(__name__)

# For requests that were on their way when the process stopped listening.
_ON_THE_WAY_S = 0.25
_POLL_S = 0.05
# How long a thread that comes back to Python (with decoded pixels, from a batch) waits for the event loop, or that for
# it, before it is asked to stand aside; 5 ms by default, longer than most of what either does.
_SWITCH_INTERVAL_S = 0.0005


def configuration(app: FastAPI, **options: Any) -> uvicorn.Config:
    """How uvicorn serves the app; `options` are further ones of its own."""
    return uvicorn.Config(
        Shedding(app, app.state.lifecycle, app.state.metrics, (PREDICT_PATH, *INFER_PATHS)),
        http=StrictHttp,
        ws="none",  # there are none
        # Uvicorn alone would believe what any process of this machine says of its address.
        proxy_headers="FORWARDED_ALLOW_IPS" in os.environ,
        log_config=None,
        access_log=False,  # the app logs requests itself, with their ids and stages
        server_header=False,
        **options,
    )


class Server(uvicorn.Server):
    """Uvicorn, except that the first signal to stop is a request to drain, and that an end asked for is no failure.

    On SIGTERM or SIGINT the service says that it is not ready, but answers for `drain_delay_s` as before, each answer
    with `Connection: close`. Then it stops listening, answers what it has accepted, and ends with `exit_code` 0. What
    is not answered within `drain_timeout_s`, or at a second signal, is cut off, and the exit code is another one. On
    SIGHUP the API keys and the model are read again. When the engine has stalled the process ends in the same way, with
    an exit code of its own.
    """

    def __init__(self, settings: Settings, spread: Callable[[Choice], Awaitable[None]] | None = None) -> None:
        self.exit_code = 0
        self._settings = settings
        self._asked_to_stop = False
        app = create_app(settings, self._load, self._on_failure, spread)
        self._lifecycle = app.state.lifecycle
        self._lifecycle.on_stall = self._on_stall
        self._access = app.state.access
        self._metrics = app.state.metrics
        super().__init__(configuration(app))

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if hasattr(signal, "SIGHUP"):  # not on Windows
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.reload)
        with super().capture_signals():
            yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._acceptor = Acceptor(sockets or [], self._protocol, self._is_ahead)
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        gc.freeze()  # modules and the app live on; to look through them for garbage would take the event loop 50 ms
        await super().startup(sockets=[])  # listens to nothing itself
        self._begin_to_accept()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._acceptor.close()
        logger.info("no longer listening; %d requests are being answered", len(self.server_state.tasks))
        if self.server_state.connections:
            await asyncio.sleep(_ON_THE_WAY_S)
        for connection in list(self.server_state.connections):
            connection.shutdown()  # at once if it is idle, or else after its answer
        try:
            async with asyncio.timeout(self._settings.drain_timeout_s):
                while self.server_state.connections or self.server_state.tasks:
                    await asyncio.sleep(_POLL_S)
                await self.lifespan.shutdown()
        except TimeoutError:
            self.stop_now()
        if self._lifecycle.is_loading:
            self.stop_now()  # ONNX Runtime would abort a process that ends while it makes a session

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Uvicorn's own method would also raise the signal again at the end, and the exit code would not be 0.
        loop = asyncio.get_running_loop()
        if self._asked_to_stop:
            # A moment later: a request whose answer has just been sent is no unanswered one.
            loop.call_soon_threadsafe(loop.call_later, _POLL_S, self.stop_now)
        else:
            loop.call_soon_threadsafe(self.drain)
        self._asked_to_stop = True

    def drain(self) -> None:
        """Ends the process as soon as what it accepts in the next `drain_delay_s` is answered."""
        logger.info("draining: listening for another %g s", self._settings.drain_delay_s)
        self._lifecycle.drain()
        # A connection that is closed in order, after an answer, costs its caller nothing.
        close = (b"connection", b"close")
        self.config.encoded_headers.append(close)
        self.server_state.default_headers = [*self.server_state.default_headers, close]
        for connection in cast(set[StrictHttp], self.server_state.connections):
            connection.make_last()  # requests that have begun have their headers already
        asyncio.get_running_loop().call_later(self._settings.drain_delay_s, self._stop)

    def stop_now(self) -> Never:
        """Ends the process without waiting for anybody."""
        unanswered = max(len(self.server_state.tasks), len(self.server_state.connections) if self.should_exit else 0)
        if unanswered:
            logger.error("stopped with %d requests unanswered", unanswered)
        logging.shutdown()
        os._exit(self.exit_code or (EXIT_UNANSWERED if unanswered else 0))

    def reload(self) -> None:
        """Reads the API keys and the model again."""
        self._access.reload()
        self._lifecycle.reload()

    def _stop(self) -> None:
        self.should_exit = True

    def _begin_to_accept(self) -> None:
        self._acceptor.start()

    def _is_ahead(self) -> bool:
        """Whether another process has fewer connections; there is none."""
        return False

    def _protocol(self) -> asyncio.Protocol:
        return StrictHttp(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    def _load(self, path: Path) -> OnnxEngine:
        return OnnxEngine(
            path,
            self._settings.provider,
            intra_op_threads=self._settings.intra_op_threads,
            workers=self._settings.workers,
            spinning=self._settings.spinning,
            gpu_memory_mib=self._settings.gpu_memory_mib,
        )

    def _on_stall(self) -> None:
        self.exit_code = EXIT_STALLED
        self.drain()

    def _on_failure(self, error: Exception) -> None:
        self.exit_code = code_of_failure(error)
        if isinstance(error, LOAD_ERRORS):
            self._tell(f"{State.FAILED.value}: {error}")
        else:
            logger.critical(State.FAILED.value, exc_info=error)
        self._stop()

    def _tell(self, failure: str) -> None:
        """Says in one line why there is no service."""
        logger.critical("%s", failure)
