"""Images, engines and apps for the tests of the service."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn
from fastapi import FastAPI
from numpy.typing import NDArray
from PIL import Image
from tiny_reader import colour_of

from service.app import create_app
from service.artifact import ArtifactMetadata
from service.engine import Engine, Outputs
from service.server import configuration
from service.settings import Settings

JPEG = {"Content-Type": "image/jpeg"}


def encode(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:  # noqa: A002
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def plain(number: str, size: tuple[int, int] = (16, 12), format: str = "PNG") -> bytes:  # noqa: A002
    """An encoded image of (width, height) that the tiny reader reads as `number`."""
    return encode(Image.new("RGB", size, colour_of(number)), format)


class Sabotaged:
    """An engine to which something happens before each batch: `before` may wait, or raise."""

    def __init__(self, engine: Engine, before: Callable[[NDArray[np.uint8]], None]) -> None:
        self.metadata: ArtifactMetadata = engine.metadata
        self.sha256 = engine.sha256
        self.provider = engine.provider
        self.parallel_batches = 1
        self._engine = engine
        self._before = before

    def infer(self, images: NDArray[np.uint8]) -> Outputs:
        self._before(images)
        return self._engine.infer(images)


class Held(Sabotaged):
    """An engine that keeps the first images it is given until `go_on` is set, and has set `inside` by then.

    `computed` is the red of every image it was given. Black images, which a service warms up with, pass.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine, self._hold)
        self.inside = threading.Event()
        self.go_on = threading.Event()
        self.computed: list[int] = []

    def _hold(self, images: NDArray[np.uint8]) -> None:
        if not images.any():
            return
        self.computed.extend(int(image[0, 0, 0]) for image in images)
        self.inside.set()
        self.go_on.wait()


@contextmanager
def listening(app: FastAPI, **options: Any) -> Iterator[httpx.Client]:
    """A client of an app behind a real server on a free port of this machine; `options` are uvicorn's."""
    server = uvicorn.Server(configuration(app, port=0, timeout_graceful_shutdown=5, **options))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def serving(engine: Engine, **settings: Any) -> Iterator[httpx.Client]:
    """A client of a service that is ready."""
    with listening(create_app(Settings(**settings), lambda _: engine)) as client:
        wait_until(lambda: client.get("/readyz").status_code == 200)
        yield client


@contextmanager
def connected(client: httpx.Client) -> Iterator[socket.socket]:
    """A caller who writes its requests itself."""
    with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=20) as caller:
        yield caller


def until_closed(caller: socket.socket) -> bytes:
    """All that comes before the service closes the connection."""
    received = b""
    while chunk := caller.recv(65536):
        received += chunk
    return received


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.005)


def problem_of(response: httpx.Response) -> tuple[int, str]:
    """Status and code of an error, after a check that it is the problem that the contract promises."""
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert set(problem) == {"type", "title", "status", "detail", "code", "request_id"}
    assert problem["status"] == response.status_code
    assert problem["request_id"] == response.headers["x-request-id"]
    assert problem["title"]
    assert problem["detail"]
    assert "Traceback" not in response.text
    return response.status_code, problem["code"]


def never_loaded(_path: Path) -> Engine:
    """For an app of which only the schema is asked for."""
    raise AssertionError("only its schema is asked for")
