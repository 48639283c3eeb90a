"""OpenTelemetry traces, an extra: this module is imported only where the setting `tracing` is on.

One server span per request, and below it `queue`, `decode` and `inference` of what was answered, with the times that
the predictor measured. OpenTelemetry's own variables (`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_SERVICE_NAME`,
`OTEL_TRACES_SAMPLER`, `OTEL_PROPAGATORS`, ...) say where spans go, under which name, which are kept and whose traces
go on. Spans say what the log says, with the names of OpenTelemetry's conventions where there are some: nothing of an
image, no number that was read, no path, no address and no key.
"""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from http import HTTPStatus
from importlib.metadata import version
from time import perf_counter, time_ns
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.propagate import extract
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE
from opentelemetry.semconv.attributes.http_attributes import (
    HTTP_REQUEST_METHOD,
    HTTP_RESPONSE_STATUS_CODE,
    HTTP_ROUTE,
)
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, format_trace_id, set_span_in_context
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.problems import PROBES
from service.statistics import Stages

_FLUSH_S = 5.0


def tracer_provider() -> TracerProvider:
    """Sends spans in the background, over OTLP/HTTP. To be made in the process that serves: it starts a thread."""
    own = Resource({SERVICE_NAME: "housenumber", SERVICE_VERSION: version("housenumber")})
    # `create` would call the service unknown where the environment gives it no name.
    resource = Resource.create().merge(own).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


async def flush(provider: TracerProvider) -> None:
    """Sends what has not been sent yet, and gives up after some seconds: a collector that is gone stops nobody."""
    # Not a thread of the event loop's own: that one would be waited for.
    sending = threading.Thread(target=provider.shutdown, daemon=True)
    sending.start()
    await asyncio.to_thread(sending.join, _FLUSH_S)


class Traced:
    """ASGI middleware around `RequestContext`: a span for every request but probes, in the caller's trace where it sent
    one. What `Shedding` refuses does not get here.

    Leaves the trace's id in the request's state as `trace_id`, for the log, and takes from there what the routes left.
    """

    def __init__(self, app: ASGIApp, provider: TracerProvider) -> None:
        self._app = app
        self._tracer = provider.get_tracer(__name__)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PROBES:
            await self._app(scope, receive, send)
            return
        clock = _Clock(perf_counter(), time_ns())
        method, status = scope["method"], 0

        async def send_and_see(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        sent = extract(Headers(scope=scope))
        span = self._tracer.start_span(
            method, sent, SpanKind.SERVER, {HTTP_REQUEST_METHOD: method}, start_time=clock.unix_ns
        )
        state = scope.setdefault("state", {})
        state["trace_id"] = format_trace_id(span.get_span_context().trace_id)
        try:
            await self._app(scope, receive, send_and_see)
        finally:
            if span.is_recording():
                _describe(span, scope, status)
            if "stages" in state:
                _add_stages(self._tracer, span, state["stages"], clock)
            span.end(clock.at(perf_counter()))


@dataclass(frozen=True, slots=True)
class _Clock:
    """One moment on two clocks, so that all times of a request are measured with `perf_counter`."""

    counter: float
    unix_ns: int

    def at(self, counter: float) -> int:
        """A time of `perf_counter` as nanoseconds since 1970."""
        return self.unix_ns + round((counter - self.counter) * 1e9)


def _describe(span: Span, scope: Scope, status: int) -> None:
    state: dict[str, Any] = scope["state"]
    code = state.get("problem_code", "ok")
    route = getattr(scope.get("route"), "path", None)
    attributes = {
        "housenumber.request_id": state.get("request_id"),
        "housenumber.code": code,
        "housenumber.images": state.get("images"),
        "housenumber.key": state.get("key"),
        HTTP_ROUTE: route,
        HTTP_RESPONSE_STATUS_CODE: status or None,  # none: the caller left
    }
    span.set_attributes({name: value for name, value in attributes.items() if value is not None})
    if route is not None:
        span.update_name(f"{scope['method']} {route}")
    # By the conventions a refusal (4xx) is the caller's error, not this span's.
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        span.set_attribute(ERROR_TYPE, code)
        span.set_status(StatusCode.ERROR)


def _add_stages(tracer: Tracer, parent: Span, stages: Stages, clock: _Clock) -> None:
    """The stages follow each other: each begins where the one before it ended."""
    context = set_span_in_context(parent)
    begins = stages.began
    decode, queue = ("decode", stages.decode_s), ("queue", stages.queue_s)
    before = (decode, queue) if stages.decoded_ahead else (queue, decode)
    for name, seconds in (*before, ("inference", stages.inference_s)):
        ends = begins + seconds
        tracer.start_span(name, context, start_time=clock.at(begins)).end(clock.at(ends))
        begins = ends
