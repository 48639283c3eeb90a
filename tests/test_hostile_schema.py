"""Whatever the published schema allows or forbids is sent, and what comes back is what the schema says."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import ignored_auth, negative_data_rejection, positive_data_acceptance
from serving import never_loaded, plain
from tiny_reader import metadata

from service.app import create_app
from service.settings import Settings

BYTES = st.sampled_from([plain("42"), plain("7", format="JPEG"), b"", b"\x89PNG\r\n\x1a\n"]) | st.binary(max_size=50)
for name in ("bmp", "gif", "jpeg", "png", "tiff", "webp"):
    schemathesis.openapi.media_type(f"image/{name}", BYTES)
schemathesis.openapi.media_type("application/octet-stream", BYTES)

NOT_CHECKED = [
    positive_data_acceptance,  # no schema says that bytes are an image, or that a tensor fills its shape
    not_a_server_error,  # 503 and 504 are the contract's; 500 is refused below
    ignored_auth,  # there are no keys here: tests/test_http_security.py has them
]


def published() -> dict[str, Any]:
    """The schema, with the names that nobody would guess: those of the model that is served."""
    openapi = create_app(Settings(), never_loaded).openapi()
    names = {"name": metadata().name, "version": metadata().version}
    for operation in (operation for path in openapi["paths"].values() for operation in path.values()):
        for parameter in operation.get("parameters", ()):
            if parameter["in"] == "path":
                parameter["schema"]["enum"] = [names[parameter["name"]], "99"]
    return openapi


schema = schemathesis.openapi.from_dict(published())


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        yield session


@schema.parametrize()
@settings(max_examples=25, derandomize=True, suppress_health_check=list(HealthCheck))
def test_every_answer_is_one_that_the_schema_declares(
    case: schemathesis.Case[Any], client: httpx.Client, session: requests.Session
) -> None:
    not_checked = list(NOT_CHECKED)
    if "x-schemathesis-unknown-property" in (case.headers or {}):
        not_checked.append(negative_data_rejection)  # HTTP lets anyone add headers; beside a number they are held wrong
    response = case.call_and_validate(
        base_url=str(client.base_url), session=session, excluded_checks=not_checked, timeout=20
    )
    assert response.status_code != 500
