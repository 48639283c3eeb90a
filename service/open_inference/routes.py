"""The routes under `/v2`: the Open Inference Protocol over the same batcher, limits and keys as `/predict`."""

# No `from __future__ import annotations`: FastAPI could not resolve the local names in the routes' annotations.

from collections.abc import AsyncIterator, Callable
from functools import partial
from time import perf_counter
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, HTTPException, Request, Response

from service.access import Access
from service.deadline import Deadline
from service.disconnect import while_connected
from service.errors import ServiceError
from service.lifecycle import Lifecycle
from service.metrics import Metrics
from service.open_inference import PREFIX
from service.open_inference.calls import read_call, write_answer
from service.open_inference.compression import accepted_encoding, compressed
from service.open_inference.descriptions import model_config, model_metadata, model_stats, server_metadata
from service.open_inference.schemas import (
    ErrorResponse,
    InferRequest,
    InferResponse,
    ModelMetadata,
    ModelReady,
    ServerLive,
    ServerMetadata,
    ServerReady,
    StatsResponse,
)
from service.predictor import Predictor
from service.requests import read_body
from service.schemas import Timing
from service.settings import Settings

_MODEL, _VERSION, _INFER = "/models/{name}", "/models/{name}/versions/{version}", "/infer"
INFER_PATHS = (f"{PREFIX}{_MODEL}{_INFER}", f"{PREFIX}{_VERSION}{_INFER}")
"""Where images are read."""

JSON_LENGTH = "Inference-Header-Content-Length"

FindModel = Callable[..., AsyncIterator[Predictor]]

_FAILURE: dict[int | str, dict[str, Any]] = {"default": {"model": ErrorResponse, "description": "What went wrong"}}
_BINARY: dict[str, Any] = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_INFERRED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "JSON, or where tensors are asked for in binary JSON and then those tensors.",
        "headers": {
            JSON_LENGTH: {"description": "Bytes of JSON, where tensors follow.", "schema": {"type": "integer"}}
        },
        "content": _BINARY,
    }
}
_INFER_EXTRA: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": f"JSON alone, or JSON of {JSON_LENGTH} bytes and then the inputs' tensors in binary.",
        "content": {
            "application/json": {"schema": {"$ref": f"#/components/schemas/{InferRequest.__name__}"}},
            **_BINARY,
        },
    }
}


def protocol_router(settings: Settings, lifecycle: Lifecycle, access: Access, metrics: Metrics) -> APIRouter:
    """The protocol's routes. Health is for everybody; all else needs a key where there are keys."""
    router = APIRouter(prefix=PREFIX, tags=["Open Inference Protocol"])
    with_key = [Depends(access.guard)]

    async def served(name: str) -> AsyncIterator[Predictor]:
        with _served(lifecycle, name, None).in_use() as predictor:
            yield predictor

    async def versioned(name: str, version: str) -> AsyncIterator[Predictor]:
        with _served(lifecycle, name, version).in_use() as predictor:
            yield predictor

    @router.get("/", include_in_schema=False, dependencies=with_key)
    @router.get("", summary="The service", dependencies=with_key, responses=_FAILURE)
    async def server() -> ServerMetadata:
        try:
            provider = lifecycle.admit().model.provider
        except ServiceError:
            provider = None
        return server_metadata(provider, with_repository=access.has_admins)

    @router.get("/health/live", summary="The process answers")
    async def live() -> ServerLive:
        return ServerLive(live=True)

    @router.get("/health/ready", summary="The model is ready", responses=_FAILURE)
    async def ready() -> ServerReady:
        lifecycle.check_ready()
        return ServerReady(live=True, ready=True)

    @router.get("/models/stats", summary="Counters of all models", dependencies=with_key, responses=_FAILURE)
    async def stats() -> StatsResponse:
        return StatsResponse(model_stats=[model_stats(lifecycle.admit())])

    for path, find in ((_MODEL, served), (_VERSION, versioned)):
        _add_model(router, path, find, settings, lifecycle, with_key)
        _add_infer(router, f"{path}{_INFER}", find, settings, lifecycle, access, metrics)
    return router


def _served(lifecycle: Lifecycle, name: str, version: str | None) -> Predictor:
    predictor = lifecycle.admit()
    model = predictor.model
    if name != model.name or version not in (None, model.version):
        asked = name if version is None else f"{name} version {version}"
        raise HTTPException(
            404,
            f"no model {asked[:80]}; there is {model.name} version {model.version}, and one version at a time;"
            f" {PREFIX}/repository/models/{model.name}/load loads another",
        )
    return predictor


def _add_model(
    router: APIRouter, path: str, find: FindModel, settings: Settings, lifecycle: Lifecycle, with_key: list[Any]
) -> None:
    options: dict[str, Any] = {"dependencies": with_key, "responses": _FAILURE}

    @router.get(path, summary="A model, its inputs and outputs", **options)
    async def metadata(predictor: Annotated[Predictor, Depends(find)]) -> ModelMetadata:
        return model_metadata(predictor)

    @router.get(f"{path}/ready", summary="A model is ready", responses=_FAILURE)
    async def ready(predictor: Annotated[Predictor, Depends(find)]) -> ModelReady:
        return ModelReady(name=predictor.model.name, ready=True)

    @router.get(f"{path}/config", summary="A model's configuration, as Triton writes it", **options)
    async def config(predictor: Annotated[Predictor, Depends(find)]) -> dict[str, Any]:
        return model_config(predictor, settings, pinned=lifecycle.pinned)

    @router.get(f"{path}/stats", summary="A model's counters", **options)
    async def stats(predictor: Annotated[Predictor, Depends(find)]) -> StatsResponse:
        return StatsResponse(model_stats=[model_stats(predictor)])


def _add_infer(
    router: APIRouter,
    path: str,
    find: FindModel,
    settings: Settings,
    lifecycle: Lifecycle,
    access: Access,
    metrics: Metrics,
) -> None:
    @router.post(
        path,
        summary="Read images, given and answered as tensors",
        response_model=InferResponse,
        dependencies=[Depends(access.guard)],
        responses={**_INFERRED, **_FAILURE},
        openapi_extra=_INFER_EXTRA,
    )
    async def infer(
        request: Request,
        predictor: Annotated[Predictor, Depends(find)],
        inference_header_content_length: Annotated[
            int | None, Header(ge=0, description="Bytes of JSON; by default the whole body.")
        ] = None,
        x_request_timeout_ms: Annotated[
            int | None, Header(gt=0, description="The caller's deadline, in milliseconds from now.")
        ] = None,
    ) -> Response:
        started = perf_counter()
        async with Deadline(settings.request_timeout_ms, x_request_timeout_ms) as deadline:
            body = await read_body(
                request, max_body_bytes=settings.max_body_bytes, body_timeout_s=settings.body_timeout_s
            )
            read = partial(
                read_call,
                encoding=request.headers.get("content-encoding", ""),
                json_bytes=inference_header_content_length,
                model=predictor.metadata,
                max_body_bytes=settings.max_body_bytes,
                max_images=settings.max_images,
            )
            (call,) = await lifecycle.pool.map(read, [body], deadline.at)
            access.charge(request, len(call.images))
            deadline.shorten(call.timeout_ms)
            inferred = await while_connected(request, predictor.infer(call.images, deadline=deadline.at))
        answer, json_bytes = write_answer(call, inferred, predictor.model)
        headers = {} if json_bytes is None else {JSON_LENGTH: str(json_bytes)}
        if encoding := accepted_encoding(request.headers.get("accept-encoding", "")):
            answer = compressed(answer, encoding)
            headers["Content-Encoding"] = encoding
        request.state.stages = inferred.stages
        request.state.timing = timing = Timing.of(inferred.stages, perf_counter() - started)
        metrics.observe_timing(timing)
        for _ in inferred.readings:
            metrics.observe_image("ok")
        media_type = "application/json" if json_bytes is None else "application/octet-stream"
        return Response(answer, headers=headers, media_type=media_type)
