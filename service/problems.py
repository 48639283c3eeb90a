"""Errors as `application/problem+json`, and the middleware that gives every request its id, counts and logs it."""

from __future__ import annotations

import logging
import re
from contextlib import nullcontext
from http import HTTPStatus
from secrets import token_hex
from time import perf_counter
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import BadRequest, Internal, RequestTimeout, ServiceError, Unauthorized, Unavailable
from service.metrics import Metrics
from service.open_inference import PREFIX
from service.open_inference.schemas import ErrorResponse
from service.schemas import Problem
from service.validation import first_mistake

logger = logging.getLogger(__name__)
access_logger = logging.getLogger("service.access_log")

MEDIA_TYPE = "application/problem+json"

# Printable ASCII, so that an id can stand in a header and in a line of a log.
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_CLIENT_CLOSED_REQUEST = 499

# Asked every few seconds by machines: not work, and no news as long as the answer is the same.
PROBES = {"/livez", "/readyz", "/metrics", f"{PREFIX}/health/live", f"{PREFIX}/health/ready"}

NO_ROUTE = "other"
"""The route, in metrics and the log, of requests that have none, and of what is no request."""


def request_id_of(scope: Scope) -> str:
    """The caller's `X-Request-ID`, or one that is made; the same whenever it is asked for."""
    state = scope.setdefault("state", {})
    if "request_id" not in state:
        sent = Headers(scope=scope).get("x-request-id", "")
        state["request_id"] = sent if _REQUEST_ID.fullmatch(sent) else token_hex(16)
    request_id: str = state["request_id"]
    return request_id


def problem_of(error: ServiceError, request_id: str) -> Problem:
    return _as_problem(error.status, error.code, error.title, error.detail, request_id)


def handle_errors(app: FastAPI) -> None:
    """Has the app answer every error, its own and the framework's, with a problem, or as the protocol of `/v2` says."""
    app.add_exception_handler(ServiceError, _on_service_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_bad_parameter)


class RequestContext:
    """ASGI middleware: `X-Request-ID` echoed or made, faults turned into a 500, every request counted and logged that
    `service.shedding` lets in.

    What only a route knows of its request it leaves in `request.state`: `key` (the API key's name), `images`,
    `timing` and `stages`.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id, state = request_id_of(scope), scope["state"]
        is_probe = scope["path"] in PROBES
        started = perf_counter()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).append("X-Request-ID", request_id)
            await send(message)

        try:
            with nullcontext() if is_probe else self._metrics.request_in_flight():
                await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            refused = state.get("refused")
            status = refused.status if refused else _CLIENT_CLOSED_REQUEST
            state["problem_code"] = refused.code if refused else "client_closed_request"
        except Exception:
            logger.exception("request %s failed", request_id)
            if status:  # the answer has begun: all that is left is to break it off
                raise
            response = response_to(Request(scope), Internal("a fault of the service; its log says more"))
            await response(scope, receive, send_with_id)
        finally:
            seconds = perf_counter() - started
            note_request(self._metrics, scope, status, seconds, logging.DEBUG if is_probe else logging.INFO)


def note_request(metrics: Metrics, scope: Scope, status: int, seconds: float, level: int) -> None:
    """Counts a request that was answered, and gives it its line in the log."""
    state: dict[str, Any] = scope["state"]
    route = getattr(scope.get("route"), "path", NO_ROUTE)
    code = state.get("problem_code", "ok")
    metrics.observe_request(route, status, code)
    if access_logger.isEnabledFor(level):
        fields = _access_fields(route, status, code, seconds, state)
        access_logger.log(level, "%s %s", scope["method"], route, extra={"fields": fields})


def _access_fields(route: str, status: int, code: str, seconds: float, state: dict[str, Any]) -> dict[str, Any]:
    """What the log says of a request; `total_ms` is until its answer was sent."""
    stages = state["timing"].model_dump(exclude={"total"}) if "timing" in state else {}
    return {
        "request_id": state["request_id"],
        **({"trace_id": state["trace_id"]} if "trace_id" in state else {}),
        "route": route,
        "status": status,
        "code": code,
        "images": state.get("images"),
        "key": state.get("key"),
        **{f"{stage}_ms": milliseconds for stage, milliseconds in stages.items()},
        "total_ms": round(seconds * 1000, 3),
    }


async def _on_service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    return response_to(request, error)


async def _on_bad_parameter(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return response_to(request, BadRequest(first_mistake(error.errors())))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """The framework's own refusals: no such path, wrong method."""
    assert isinstance(error, HTTPException)
    phrase = HTTPStatus(error.status_code).phrase
    code = phrase.lower().replace(" ", "_")
    headers = dict(error.headers or {})
    detail = str(error.detail)
    if detail == phrase and error.status_code == HTTPStatus.NOT_FOUND:
        detail = _what_there_is(request)
    elif detail == phrase and "Allow" in headers:
        methods = headers["Allow"].split(", ")
        headers["Allow"] = ", ".join(sorted({*methods, "HEAD"} if "GET" in methods else methods))
        detail = f"{request.scope['path'][:80]} takes {headers['Allow']}, not {request.method}"
    return _problem(request, error.status_code, code, phrase, detail, headers)


def _what_there_is(request: Request) -> str:
    """Said of a path that is none."""
    path: str = request.scope["path"]
    near = {**request.scope, "path": path.rstrip("/")}
    if path.endswith("/") and any(route.matches(near)[0] is not Match.NONE for route in request.app.routes):
        return f"there is no {path[:80]}; {near['path'][:80]} is meant"
    return f"there is no {path[:80]}; /docs says what there is"


def response_to(request: Request, error: ServiceError) -> Response:
    """The answer that an error is; leaves its code in `request.state.problem_code`."""
    headers = {}
    if isinstance(error, Unavailable):
        headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, RequestTimeout):
        headers["Connection"] = "close"  # the rest of the body is not waited for
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    return _problem(request, error.status, error.code, error.title, error.detail, headers)


def _problem(request: Request, status: int, code: str, title: str, detail: str, headers: dict[str, str]) -> Response:
    request.state.problem_code = code
    if f"{request.scope['path']}/".startswith(f"{PREFIX}/"):
        return Response(ErrorResponse(error=detail).model_dump_json(), status, headers, "application/json")
    problem = _as_problem(status, code, title, detail, request.state.request_id)
    return Response(problem.model_dump_json(), status, headers, MEDIA_TYPE)


def _as_problem(status: int, code: str, title: str, detail: str, request_id: str) -> Problem:
    return Problem(
        type=f"urn:housenumber:problem:{code}",
        title=title,
        status=status,
        detail=detail,
        code=code,
        request_id=request_id,
    )
