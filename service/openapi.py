"""What the framework cannot see for itself and `/openapi.json` must say all the same: keys, parameters and the three
request bodies of `/predict`, which reads them itself, and the problems that the exception handlers answer with."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from service.imaging import FORMATS
from service.multipart import PART_NAME
from service.open_inference.schemas import IndexRequest, InferRequest, LoadRequest
from service.parameters import published
from service.problems import MEDIA_TYPE
from service.schemas import PredictRequest, Problem

_REFERENCE = "#/components/schemas/{model}"
_BINARY = {"type": "string", "format": "binary"}
_IMAGE_TYPES = [f"image/{name.lower()}" for name in sorted(FORMATS)]

REQUEST_ID = {"X-Request-ID": {"description": "That of the request, or made.", "schema": {"type": "string"}}}
_RETRY_AFTER = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}}

PREDICT: dict[str, Any] = {
    "parameters": published(),
    # As the framework has it for the routes that are guarded by a dependency.
    "security": [{"HTTPBearer": []}, {"APIKeyHeader": []}],
    "requestBody": {
        "required": True,
        "description": "One encoded image as the body, or several as multipart parts or in JSON.",
        "content": {
            **{media_type: {"schema": _BINARY} for media_type in (*_IMAGE_TYPES, "application/octet-stream")},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [PART_NAME],
                    "properties": {PART_NAME: {"type": "array", "items": _BINARY, "minItems": 1}},
                }
            },
            "application/json": {"schema": {"$ref": _REFERENCE.format(model=PredictRequest.__name__)}},
        },
    },
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that can fail with these statuses."""
    schema = {"$ref": _REFERENCE.format(model=Problem.__name__)}
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "headers": REQUEST_ID | (_RETRY_AFTER if status in (429, 503) else {}),
            "content": {MEDIA_TYPE: {"schema": schema}},
        }
        for status in statuses
    }


def use_schema(app: FastAPI) -> None:
    """Adds the schemas that the above refers to to the app's own."""
    own = app.openapi
    _, extra = models_json_schema(
        [
            *((model, "validation") for model in (PredictRequest, InferRequest, IndexRequest, LoadRequest)),
            (Problem, "serialization"),
        ],
        ref_template=_REFERENCE,
    )

    def openapi() -> dict[str, Any]:
        schema = own()
        schema.setdefault("components", {}).setdefault("schemas", {}).update(extra["$defs"])
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
