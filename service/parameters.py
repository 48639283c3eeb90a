"""What `POST /predict` is asked in query and headers.

Read here and not by the framework: its way with parameters and their dependencies was 780 of the 2,020 function calls
that the event loop made for a request.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request

from service.errors import BadRequest
from service.validation import first_mistake

_QUERY: dict[str, Any] = {"in": "query"}
_HEADER: dict[str, Any] = {"in": "header"}


class Parameters(BaseModel):
    """Names and limits as they are published; None where nothing was said."""

    model_config = ConfigDict(frozen=True)

    region: list[str] = Field(
        [],
        description="`x,y,width,height` in pixels of the upright image; once per region to read.",
        json_schema_extra=_QUERY,
    )
    min_confidence: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Accept from this confidence on; the artifact's threshold by default.",
        json_schema_extra=_QUERY,
    )
    boxes: bool = Field(True, description="`false` leaves the boxes out.", json_schema_extra=_QUERY)
    timeout_ms: int | None = Field(
        None,
        gt=0,
        alias="X-Request-Timeout-Ms",
        description="The caller's deadline, in milliseconds from now.",
        examples=[2000],
        json_schema_extra=_HEADER,
    )
    request_id: str | None = Field(
        None,
        alias="X-Request-ID",
        description="Comes back in the answer; made where there is none.",
        json_schema_extra=_HEADER,
    )

    @classmethod
    def of(cls, request: Request) -> Parameters:
        """Those of a request; raises BadRequest for a wrong value, and for a name in the query that means nothing."""
        query = request.query_params
        if unknown := sorted(query.keys() - _NAMES["query"]):
            raise BadRequest(f"{unknown[0][:80]}: no such parameter; there are {', '.join(sorted(_NAMES['query']))}")
        if repeated := next((name for name in query if name != "region" and len(query.getlist(name)) > 1), None):
            raise BadRequest(f"{repeated}: given more than once")
        given: dict[str, Any] = {**query, "region": query.getlist("region")} if query else {}
        given |= {name: request.headers[name] for name in _NAMES["header"] if name in request.headers}
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise BadRequest(first_mistake(error.errors(include_url=False, include_input=False))) from None


def published() -> list[dict[str, Any]]:
    """The parameters as OpenAPI has them."""
    parameters = []
    for name, schema in Parameters.model_json_schema().get("properties", {}).items():
        parameters.append(
            {"name": name, "in": schema.pop("in"), "description": schema.pop("description"), "schema": schema}
        )
    return parameters


_NAMES = {
    place: {parameter["name"] for parameter in published() if parameter["in"] == place} for place in ("query", "header")
}
