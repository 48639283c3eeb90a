"""The process around the app: signals, draining, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from types import FrameType

import uvicorn

from service.app import create_app
from service.engine import OnnxEngine
from service.protocol import BoundedHead
from service.settings import Settings

logger = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """Uvicorn, except that the first signal to stop is a request to drain, and that an end asked for is no failure.

    On SIGTERM or SIGINT the app answers `draining` for `drain_delay_s`; then uvicorn stops listening and answers
    what is in flight. A second signal skips the delay; a third, SIGINT, everything. On SIGHUP the API keys are read
    again.
    """

    def __init__(self, settings: Settings) -> None:
        self.model_failed = False
        self._settings = settings
        logger.info("batching: %s", settings.batching)
        app = create_app(settings, self._load, self._on_failure)
        self._lifecycle = app.state.lifecycle
        self._access = app.state.access
        self._asked_to_stop = False
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            timeout_graceful_shutdown=settings.shutdown_timeout_s,
            http=BoundedHead,
            log_config=None,
            access_log=False,  # the app logs requests itself, with their ids and stages
            server_header=False,
        )
        super().__init__(config)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        if hasattr(signal, "SIGHUP"):  # not on Windows
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._access.reload)
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Uvicorn's own method would also raise the signal again at the end, and the exit code would not be 0.
        if self.should_exit:
            self.force_exit = sig == signal.SIGINT
        elif self._asked_to_stop or self._settings.drain_delay_s == 0:
            self._stop()
        else:
            logger.info("draining for %g s", self._settings.drain_delay_s)
            loop = asyncio.get_running_loop()
            loop.call_soon_threadsafe(loop.call_later, self._settings.drain_delay_s, self._stop)
        self._asked_to_stop = True
        self._lifecycle.drain()

    def _stop(self) -> None:
        self.should_exit = True

    def _load(self) -> OnnxEngine:
        return OnnxEngine(
            self._settings.model,
            self._settings.provider,
            intra_op_threads=self._settings.intra_op_threads,
            spinning=self._settings.spinning,
            gpu_memory_mib=self._settings.gpu_memory_mib,
        )

    def _on_failure(self) -> None:
        self.model_failed = True
        self._stop()
