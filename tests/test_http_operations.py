"""What is not `/predict`: health, metrics, documentation, the page."""

import logging
import queue
import re
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving import listening, plain, problem_of, serving, wait_until

from service.app import create_app
from service.artifact import ArtifactError
from service.engine import OnnxEngine
from service.settings import Settings


def samples(client: httpx.Client) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def test_metrics_count_requests_images_batches_and_seconds(engine: OnnxEngine) -> None:
    with serving(engine, max_batch_size=2) as client:
        before = samples(client)
        files = [("image", ("a.png", data)) for data in (plain("1"), plain("2"), b"junk")]
        assert client.post("/predict", files=files).status_code == 200
        assert client.post("/predict", content=b"junk").status_code == 422
        assert client.get("/nothing").status_code == 404

        def counted(name: str, **labels: str) -> float:
            key = name, tuple(sorted(labels.items()))
            return after.get(key, 0) - before.get(key, 0)

        after = samples(client)
        assert counted("housenumber_requests_total", route="/predict", status="200", code="ok") == 1
        assert counted("housenumber_requests_total", route="/predict", status="422", code="bad_image") == 1
        assert counted("housenumber_requests_total", route="other", status="404", code="not_found") == 1
        assert counted("housenumber_images_total", code="ok") == 2
        assert counted("housenumber_images_total", code="bad_image") == 1
        assert counted("housenumber_batch_size_sum") == 2
        for stage in ("decode", "queue", "inference", "total"):
            assert counted("housenumber_predict_seconds_count", stage=stage) == 1
        assert after[("housenumber_queue_images", ())] == 0


def test_two_apps_in_one_process_count_apart(client: httpx.Client, engine: OnnxEngine) -> None:
    with serving(engine) as other:
        other.post("/predict", content=plain("1"))
        assert 'route="/predict"' in other.get("/metrics").text
    assert 'route="/predict"' not in client.get("/metrics").text


def test_a_model_that_cannot_be_loaded_is_told_to_the_process() -> None:
    told: queue.SimpleQueue[Exception] = queue.SimpleQueue()
    error = ArtifactError("tiny.onnx: not an artifact")

    def load(_: Path) -> OnnxEngine:
        raise error

    with listening(create_app(Settings(), load, told.put)) as client:
        assert told.get(timeout=10) is error
        assert problem_of(client.get("/readyz")) == (503, "not_ready")
        assert problem_of(client.post("/predict", content=plain("1"))) == (503, "not_ready")
        assert client.get("/livez").status_code == 200


def test_ready_is_one_line_that_names_the_model(caplog: pytest.LogCaptureFixture, engine: OnnxEngine) -> None:
    caplog.set_level(logging.INFO, "service")
    with serving(engine):
        wait_until(lambda: any("ready" in record.getMessage() for record in caplog.records))
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("service")]
    assert line == f"ready: tiny 7 ({engine.sha256[:12]}) on CPUExecutionProvider"


@pytest.mark.parametrize(
    "path",
    ["/", "/livez", "/readyz", "/metrics", "/docs", "/openapi.json", "/v2", "/v2/health/ready", "/v2/models/tiny"],
)
def test_who_asks_for_the_head_alone_gets_that_of_the_answer(client: httpx.Client, path: str) -> None:
    head, whole = client.head(path), client.get(path)
    assert head.status_code == whole.status_code == 200
    assert head.content == b""
    assert head.headers["content-type"] == whole.headers["content-type"]
    if path != "/metrics":  # which has counted one more
        assert head.headers["content-length"] == whole.headers["content-length"]


def test_the_head_of_an_error_is_that_too(client: httpx.Client) -> None:
    assert client.head("/nothing").status_code == 404
    response = client.head("/predict")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")


def test_the_documentation_names_the_bodies_and_the_problems(client: httpx.Client) -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    # A closed network has no CDN: what the page loads, the service has.
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(loaded) >= 2
    for link in loaded:
        assert client.get(link).status_code == 200, link
    assert client.get("/redoc").status_code == 404
    schema = client.get("/openapi.json").json()
    predict = schema["paths"]["/predict"]["post"]
    content = predict["requestBody"]["content"]
    assert {"image/jpeg", "image/png", "application/octet-stream", "multipart/form-data"} <= set(content)
    assert content["application/json"]["schema"]["$ref"] == "#/components/schemas/PredictRequest"
    assert {parameter["name"].lower() for parameter in predict["parameters"]} == {
        "region",
        "min_confidence",
        "boxes",
        "x-request-timeout-ms",
        "x-request-id",
    }
    assert set(predict["responses"]) == {*("200", "400", "401", "408", "413", "415", "422", "429", "500", "503", "504")}
    for status in set(predict["responses"]) - {"200"}:
        assert set(predict["responses"][status]["content"]) == {"application/problem+json"}
    ours = {path for path in schema["paths"] if not path.startswith("/v2")}
    assert ours == {"/predict", "/livez", "/readyz", "/metrics"}
    references = set(re.findall(r'"#/components/schemas/(\w+)"', client.get("/openapi.json").text))
    assert references <= set(schema["components"]["schemas"])
    assert {"PredictRequest", "ImageIn", "Problem", "PredictResponse"} <= references
    assert set(schema["components"]["securitySchemes"]) == {"HTTPBearer", "APIKeyHeader"}


def test_the_page_needs_nothing_from_elsewhere(client: httpx.Client) -> None:
    response = client.get("/")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    assert "<canvas" in response.text
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//|url\(|@import|import\s*\(""", response.text)
