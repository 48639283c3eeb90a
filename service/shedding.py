"""While the queue is full, requests are refused at the door: what a refusal costs is taken from what is being read."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from time import perf_counter

from starlette.requests import Request
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import ServiceError
from service.lifecycle import Lifecycle
from service.metrics import Metrics
from service.problems import note_request, request_id_of, response_to

logger = logging.getLogger(__name__)

SUMMARY_S = 1.0


class Shedding:
    """Stands before the whole app. While not even one more image may wait, a POST to one of `paths` is answered with
    Overloaded here, before its key, parameters or body are looked at.

    It is counted like any other request, but has a line in the log at level `debug` alone: writing the lines would cost
    as much again as the answers. One line per SUMMARY_S seconds says how many requests were refused.
    """

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle, metrics: Metrics, paths: Sequence[str]) -> None:
        self._app = app
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._routes = [Route(path, app, methods=["POST"]) for path in paths]
        self._refused = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._lifecycle.is_full:
            for route in self._routes:
                if route.matches(scope)[0] is Match.FULL:
                    scope["route"] = route
                    await self._refuse(scope, receive, send)
                    return
        await self._app(scope, receive, send)
        if scope["type"] == "lifespan":  # the service has stopped
            self._summarise()

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        started, request_id = perf_counter(), request_id_of(scope)
        try:
            self._lifecycle.admit().check_room()
        except ServiceError as error:
            response = response_to(Request(scope), error)
            response.headers["X-Request-ID"] = request_id
            await response(scope, receive, send)
            note_request(self._metrics, scope, response.status_code, perf_counter() - started, logging.DEBUG)
            if not self._refused:
                asyncio.get_running_loop().call_later(SUMMARY_S, self._summarise)
            self._refused += 1

    def _summarise(self) -> None:
        if self._refused:
            logger.warning("the queue is full: %d refused within %g s", self._refused, SUMMARY_S)
        self._refused = 0
