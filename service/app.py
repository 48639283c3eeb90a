"""The HTTP service: the routes, and what joins them to the rest."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from time import perf_counter
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from starlette.routing import request_response

from service.access import Access
from service.deadline import Deadline
from service.disconnect import while_connected
from service.engine import Engine
from service.head_requests import HeadAsGet
from service.lifecycle import Lifecycle
from service.metrics import CONTENT_TYPE, Metrics
from service.open_inference.repository import repository_router
from service.open_inference.routes import protocol_router
from service.openapi import PREDICT, REQUEST_ID, problems, use_schema
from service.parameters import Parameters
from service.pictures import parse_region
from service.problems import RequestContext, handle_errors
from service.requests import read_pictures
from service.schemas import PredictResponse, Timing
from service.settings import Settings
from service.source import Choice

PREDICT_PATH = "/predict"


def create_app(
    settings: Settings,
    load: Callable[[Path], Engine],
    on_failure: Callable[[Exception], None] = lambda _error: None,
    spread: Callable[[Choice], Awaitable[None]] | None = None,
) -> FastAPI:
    """The app; `load` makes the engine of a file, for the first time in the background once the app has started.

    `app.state.lifecycle`, `app.state.access` and `app.state.metrics` are its parts; `on_failure` is called when the
    first engine cannot be made. `spread` has the other processes of the service load what a request had this one
    load: it is given what their `Lifecycle.load` is to be given, and raises where one of them could not. Raises
    KeysError.
    """
    metrics = Metrics()
    access = Access(settings, metrics)
    lifecycle = Lifecycle(load, settings, metrics, on_failure)
    metrics.watch_decoding(lambda: lifecycle.pool.jobs)
    metrics.watch_queue(lambda: lifecycle.waiting)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[dict[str, Metrics]]:
        lifecycle.start()
        yield {"metrics": metrics}  # for service/protocol.py
        await lifecycle.close()
        if settings.tracing:
            await flush(spans)

    # Its documentation page comes from the package, not from a CDN that a closed network does not reach.
    app = FastAPIOffline(
        title="housenumber",
        version=version("housenumber"),
        description="Reads house numbers from photographs with a spatial transformer network.",
        redoc_url=None,
        redirect_slashes=False,  # it would send callers to whatever host and scheme their request names
        lifespan=lifespan,
        # Its own spans, metrics and logs would say more than service/tracing.py allows: paths, addresses, messages.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.state.lifecycle = lifecycle
    app.state.access = access
    app.state.metrics = metrics
    app.add_middleware(RequestContext, metrics=metrics)
    if settings.tracing:
        # An extra, imported only where it is on.
        from service.tracing import Traced, flush, tracer_provider

        spans = tracer_provider()
        app.add_middleware(Traced, provider=spans)  # around the one before
    app.add_middleware(HeadAsGet)
    handle_errors(app)
    use_schema(app)
    _add_predict(app, settings, lifecycle, access, metrics)
    app.include_router(protocol_router(settings, lifecycle, access, metrics))
    app.include_router(repository_router(settings, lifecycle, access, spread))
    _add_operations(app, lifecycle, metrics)
    return app


class _Plain(APIRoute):
    """A route whose function takes the request and gives the response: nothing of the framework's stands between, but
    `/openapi.json` has it."""

    def __init__(self, path: str, endpoint: Callable[[Request], Awaitable[Response]], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        self.app = request_response(endpoint)


def _add_predict(app: FastAPI, settings: Settings, lifecycle: Lifecycle, access: Access, metrics: Metrics) -> None:
    async def predict(request: Request) -> Response:
        started = perf_counter()
        access.authorise(request)
        asked = Parameters.of(request)
        with lifecycle.admit().in_use() as predictor:
            deadline = Deadline(settings.request_timeout_ms, asked.timeout_ms)
            regions = [parse_region(text) for text in asked.region]
            async with deadline:
                pictures = await read_pictures(
                    request,
                    regions,
                    max_body_bytes=settings.max_body_bytes,
                    body_timeout_s=settings.body_timeout_s,
                    max_images=settings.max_images,
                    pool=lifecycle.pool,
                )
                access.charge(request, sum(picture.items for picture in pictures))
                predicted = await while_connected(
                    request,
                    predictor.predict(
                        pictures, min_confidence=asked.min_confidence, boxes=asked.boxes, deadline=deadline.at
                    ),
                )
        request.state.stages = predicted.stages
        request.state.timing = timing = Timing.of(predicted.stages, perf_counter() - started)
        metrics.observe_timing(timing)
        for prediction in predicted.predictions:
            metrics.observe_image(prediction.error.code if prediction.error else "ok")
        answer = PredictResponse(model=predictor.model, predictions=predicted.predictions, timing_ms=timing)
        return Response(answer.model_dump_json(), media_type="application/json")

    app.router.add_api_route(
        PREDICT_PATH,
        predict,
        methods=["POST"],
        summary="Read the house numbers of one or more images",
        response_model=PredictResponse,
        responses={200: {"headers": REQUEST_ID}, **problems(400, 401, 408, 413, 415, 422, 429, 500, 503, 504)},
        openapi_extra=PREDICT,
        route_class_override=_Plain,
    )


def _add_operations(app: FastAPI, lifecycle: Lifecycle, metrics: Metrics) -> None:
    page = files("service").joinpath("static/index.html").read_text(encoding="utf-8")

    @app.get("/livez", summary="The process answers", response_class=PlainTextResponse)
    async def livez() -> str:
        return "ok\n"

    @app.get(
        "/readyz",
        summary="The model is loaded and warmed, and the process is not stopping",
        response_class=PlainTextResponse,
        responses=problems(503),
    )
    async def readyz() -> str:
        lifecycle.check_ready()
        return "ok\n"

    @app.get("/metrics", summary="Counters for Prometheus", response_class=PlainTextResponse)
    async def prometheus() -> Response:
        return Response(metrics.exposition(), media_type=CONTENT_TYPE)

    @app.get("/", include_in_schema=False, response_class=HTMLResponse)
    async def index() -> str:
        return page
