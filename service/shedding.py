"""While the queue is full, requests are refused at the door: what a refusal costs is taken from what is being read."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from service.lifecycle import Lifecycle


class Shedding:
    """ASGI middleware: raises Overloaded for a POST to one of `paths`, before its key, parameters or body are looked
    at, while not even one more image may wait. `scope["route"]` then has the path, as the router would have set it."""

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle, paths: Sequence[str]) -> None:
        self._app = app
        self._lifecycle = lifecycle
        self._routes = [Route(path, app, methods=["POST"]) for path in paths]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._lifecycle.is_full:
            for route in self._routes:
                if route.matches(scope)[0] is Match.FULL:
                    scope["route"] = route
                    self._lifecycle.admit().check_room()
        await self._app(scope, receive, send)
