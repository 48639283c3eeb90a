"""The routes under `/v2/repository`: which versions there are, and which one is served. For admin keys alone."""

# No `from __future__ import annotations`: FastAPI could not resolve the local names in the routes' annotations.

import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from fastapi import APIRouter, Depends, HTTPException, Request
from pydantic import BaseModel, ValidationError

from service.access import Access
from service.artifact import ArtifactError
from service.engine import ProviderError
from service.errors import BadRequest, Internal
from service.lifecycle import Lifecycle
from service.open_inference import PREFIX
from service.open_inference.schemas import ErrorResponse, IndexRequest, LoadRequest, RepositoryVersion
from service.repository import NoSuchModelError
from service.requests import read_body
from service.settings import Settings
from service.source import Choice
from service.validation import first_mistake

logger = logging.getLogger(__name__)

# A model's configuration takes some thousand bytes.
_MOST_BYTES = 2**20

Body = TypeVar("Body", bound=BaseModel)


def repository_router(
    settings: Settings,
    lifecycle: Lifecycle,
    access: Access,
    spread: Callable[[Choice], Awaitable[None]] | None,
) -> APIRouter:
    """Triton's model repository extension. After a load, `spread` has the other processes load the same; where one of
    them cannot, all go back."""
    router = APIRouter(
        prefix=f"{PREFIX}/repository",
        tags=["Open Inference Protocol"],
        dependencies=[Depends(access.guard_admin)],
        responses={"default": {"model": ErrorResponse, "description": "What went wrong"}},
    )

    async def body_of(request: Request, kind: type[Body]) -> Body:
        most = min(_MOST_BYTES, settings.max_body_bytes)
        body = await read_body(request, max_body_bytes=most, body_timeout_s=settings.body_timeout_s)
        try:
            return kind.model_validate_json(body or b"{}")
        except ValidationError as error:
            raise BadRequest(first_mistake(error.errors(include_url=False, include_input=False))) from None

    async def listed() -> list[RepositoryVersion]:
        return [
            RepositoryVersion(
                name=version.name,
                version=version.version,
                state="READY" if version.ready else "UNAVAILABLE",
                reason=version.reason,
            )
            for version in await lifecycle.index()
        ]

    async def go_back(choice: Choice, spread: Callable[[Choice], Awaitable[None]]) -> None:
        try:
            await spread(await lifecycle.load(choice))
        except Exception:
            logger.exception("not all processes have gone back to %s %s", choice.name, choice.version)

    @router.post("/index", summary="The versions there are", openapi_extra=_body(IndexRequest))
    async def index(request: Request) -> list[RepositoryVersion]:
        only_ready = (await body_of(request, IndexRequest)).ready
        try:
            return [version for version in await listed() if version.state == "READY" or not only_ready]
        except ArtifactError as error:
            raise Internal(str(error)) from error

    @router.post(
        "/models/{name}/load", summary="Serve the newest or a specific version", openapi_extra=_body(LoadRequest)
    )
    async def load(request: Request, name: str) -> RepositoryVersion:
        parameters = (await body_of(request, LoadRequest)).parameters
        before = lifecycle.choice
        try:
            version = parameters.config.version
            choice = await lifecycle.load(Choice(name, version, newest=version is None))
        except NoSuchModelError as error:
            raise HTTPException(404, str(error)) from error
        except (ArtifactError, ProviderError) as error:
            raise BadRequest(str(error)) from error
        except TimeoutError as error:
            raise Internal(str(error)) from error
        if spread is not None:
            try:
                await spread(choice)
            except Exception as error:
                if before is not None and lifecycle.choice == choice:  # nobody has chosen another one since
                    await go_back(before, spread)
                raise Internal(str(error)) from error
        return RepositoryVersion(name=choice.name, version=choice.version, state="READY", reason="")

    @router.post(
        "/models/{name}/unload", summary="Refused: one model must serve", status_code=400, response_model=ErrorResponse
    )
    async def unload(name: str) -> None:
        raise BadRequest(f"{name[:80]} is not unloaded: one model must serve; load another version of it instead")

    return router


def _body(kind: type[BaseModel]) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{kind.__name__}"}
    return {"requestBody": {"required": False, "content": {"application/json": {"schema": schema}}}}
