"""`/openapi.json`, for those who make clients from it."""

from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from serving import never_loaded

from service.app import create_app
from service.settings import Settings


@pytest.fixture(scope="module")
def openapi() -> dict[str, Any]:
    return create_app(Settings(), never_loaded).openapi()


def schemas(node: object) -> Iterator[dict[str, Any]]:
    """Everything that may be a schema."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, list):
        for below in node:
            yield from schemas(below)


def test_a_default_is_what_its_own_schema_allows(openapi: dict[str, Any]) -> None:
    with_default = [schema for schema in schemas(openapi) if "default" in schema and "responses" not in schema]
    with_default = [schema for schema in with_default if not isinstance(schema["default"], dict) or "type" in schema]
    assert with_default
    for schema in with_default:
        Draft202012Validator({**schema, "components": openapi["components"]}).validate(schema["default"])


def test_whoever_reads_an_answer_is_told_what_is_in_it(openapi: dict[str, Any]) -> None:
    for name in ("Prediction", "DigitOut", "BoxOut", "Timing"):
        schema = openapi["components"]["schemas"][name]
        untold = {field for field, of_field in schema["properties"].items() if "description" not in of_field}
        assert untold <= {"image", "digit"}


def test_both_forms_of_an_inference_are_published(openapi: dict[str, Any]) -> None:
    answer = openapi["paths"]["/v2/models/{name}/infer"]["post"]["responses"]["200"]
    assert set(answer["content"]) == {"application/json", "application/octet-stream"}
    assert set(answer["headers"]) == {"Inference-Header-Content-Length"}


def test_headers_that_a_client_acts_on_are_published(openapi: dict[str, Any]) -> None:
    answers = openapi["paths"]["/predict"]["post"]["responses"]
    assert all("X-Request-ID" in answer["headers"] for answer in answers.values())
    assert {status for status, answer in answers.items() if "Retry-After" in answer["headers"]} == {"429", "503"}
