"""OpenTelemetry traces: what spans say, whose trace they belong to, how they are sent, and that off is off."""

import asyncio
import base64
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from service_process import service_process
from serving import Sabotaged, listening, plain, wait_until

from housenumber.cli import main
from service import tracing
from service.app import create_app
from service.engine import Engine, OnnxEngine
from service.settings import Settings

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
STAGES = ["queue", "decode", "inference"]


class Traces:
    """A traced service: its client, and the spans that have ended."""

    def __init__(self, client: httpx.Client, exporter: InMemorySpanExporter) -> None:
        self.client = client
        self._exporter = exporter

    def of_last_request(self) -> tuple[ReadableSpan, list[ReadableSpan]]:
        """The server span, which ends last and after the answer was sent, and those below it; then forgets them."""
        wait_until(lambda: any(span.kind is SpanKind.SERVER for span in self._exporter.get_finished_spans()))
        *below, server = self._exporter.get_finished_spans()
        self._exporter.clear()
        return server, below

    def none(self) -> bool:
        return not self._exporter.get_finished_spans()


@contextmanager
def traced(engine: Engine, **settings: Any) -> Iterator[Traces]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app = create_app(Settings(**settings), lambda _: engine)
    app.add_middleware(tracing.Traced, provider=provider)
    with listening(app) as client:
        wait_until(lambda: client.get("/readyz").status_code == 200)
        yield Traces(client, exporter)


@pytest.fixture(scope="module")
def traces(engine: OnnxEngine) -> Iterator[Traces]:
    with traced(engine) as traces:
        yield traces


def identity(span: ReadableSpan) -> tuple[str, str]:
    assert span.context is not None
    return f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}"


def parent(span: ReadableSpan) -> str | None:
    return f"{span.parent.span_id:016x}" if span.parent else None


# -- spans -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [False, True])
def test_the_stages_lie_one_after_the_other_in_a_span_of_the_callers_trace(engine: OnnxEngine, ahead: bool) -> None:
    with traced(engine, decode_threads=engine.parallel_batches + ahead) as traces:
        _check_the_stages(traces, ["decode", "queue", "inference"] if ahead else STAGES)


def _check_the_stages(traces: Traces, stages: list[str]) -> None:
    assert traces.client.post("/predict", content=plain("42"), headers=SAMPLED).status_code == 200
    server, below = traces.of_last_request()
    assert (server.name, server.kind) == ("POST /predict", SpanKind.SERVER)
    assert identity(server)[0] == TRACE
    assert parent(server) == CALLER
    assert [span.name for span in below] == stages
    for span in below:
        assert identity(span)[0] == TRACE
        assert parent(span) == identity(server)[1]
    moments = [server.start_time, *(moment for span in below for moment in (span.start_time, span.end_time))]
    moments.append(server.end_time)
    assert moments == sorted(moments, key=lambda moment: moment or 0)
    first, second, inference = below
    assert first.end_time == second.start_time
    assert second.end_time == inference.start_time


def test_the_spans_are_as_long_as_the_answer_says(traces: Traces) -> None:
    timing = traces.client.post("/predict", content=plain("42")).json()["timing_ms"]
    _, below = traces.of_last_request()
    assert [span.name for span in below] == STAGES
    for span in below:
        assert ((span.end_time or 0) - (span.start_time or 0)) / 1e6 == pytest.approx(timing[span.name], abs=0.0011)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"traceparent": ""},
        {"traceparent": "00-zz-1-01"},
        {"traceparent": f"00-{'0' * 32}-{CALLER}-01"},
        {"traceparent": f"00-{TRACE}-{CALLER}-01" * 9},
        {"tracestate": "a=b", "baggage": "=,;,"},
    ],
)
def test_without_a_usable_traceparent_a_trace_begins_here(traces: Traces, headers: dict[str, str]) -> None:
    assert traces.client.post("/predict", content=plain("42"), headers=headers).status_code == 200
    server, below = traces.of_last_request()
    assert parent(server) is None
    assert len(below) == len(STAGES)
    assert int(identity(server)[0], 16) != 0


def test_what_the_caller_does_not_sample_is_not_sent(traces: Traces) -> None:
    headers = {"traceparent": f"00-{TRACE}-{CALLER}-00"}
    assert traces.client.post("/predict", content=plain("42"), headers=headers).status_code == 200
    assert traces.client.post("/predict", content=plain("43")).status_code == 200
    server, _ = traces.of_last_request()
    assert identity(server)[0] != TRACE
    assert traces.none()


def test_a_span_says_what_the_log_says_and_no_more(engine: OnnxEngine) -> None:
    with traced(engine, api_keys="alice:verysecretkey") as traces:
        headers = {"X-API-Key": "verysecretkey", "X-Request-ID": "abc-1"}
        files = [("image", ("secret.png", plain("837")))] * 2
        assert traces.client.post("/predict?region=0,0,9,9", files=files, headers=headers).status_code == 200
        server, below = traces.of_last_request()
    assert dict(server.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": "/predict",
        "http.response.status_code": 200,
        "housenumber.request_id": "abc-1",
        "housenumber.code": "ok",
        "housenumber.images": 2,
        "housenumber.key": "alice",
    }
    assert not server.events
    assert [dict(span.attributes or {}) for span in below] == [{}, {}, {}]


def test_a_request_of_the_protocol_has_its_stages_too(traces: Traces) -> None:
    data = {"data": [base64.b64encode(plain("7")).decode()], "parameters": {"content_type": "base64"}}
    body = {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", **data}]}
    assert traces.client.post("/v2/models/tiny/infer", json=body).status_code == 200
    server, below = traces.of_last_request()
    assert server.name == "POST /v2/models/{name}/infer"
    assert [span.name for span in below] == STAGES


def test_a_refusal_is_the_callers_error_and_a_fault_is_ours(engine: OnnxEngine) -> None:
    def broken(images: Any) -> None:
        if images.any():
            raise RuntimeError("the engine is on fire")

    with traced(Sabotaged(engine, broken)) as traces:
        assert traces.client.post("/predict", content=b"junk").status_code == 422
        refused, nothing = traces.of_last_request()
        assert traces.client.get("/a/path/with/secrets").status_code == 404
        lost, _ = traces.of_last_request()
        assert traces.client.post("/predict", content=plain("1")).status_code == 500
        failed, _ = traces.of_last_request()

    assert not nothing
    assert refused.status.status_code is StatusCode.UNSET
    assert refused.attributes
    assert refused.attributes["housenumber.code"] == "bad_image"
    assert "error.type" not in refused.attributes
    assert lost.name == "GET"
    assert "secrets" not in lost.to_json()
    assert failed.status.status_code is StatusCode.ERROR
    assert failed.attributes
    assert failed.attributes["error.type"] == "internal"
    assert "on fire" not in failed.to_json()


def test_probes_are_not_traced(traces: Traces) -> None:
    for path in ("/livez", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"):
        assert traces.client.get(path, headers=SAMPLED).status_code == 200
    assert traces.client.get("/v2").status_code == 200
    assert traces.of_last_request()[0].name == "GET /v2"
    assert traces.none()


def test_the_log_names_the_trace(traces: Traces, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "service.access_log"):
        traces.client.post("/predict", content=plain("42"), headers=SAMPLED)
        traces.of_last_request()
    (record,) = [record for record in caplog.records if record.name == "service.access_log"]
    assert vars(record)["fields"]["trace_id"] == TRACE


# -- sending ---------------------------------------------------------------------------------------------------------


@contextmanager
def collector() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """Where spans may be sent over OTLP/HTTP, and what came."""
    received: list[ExportTraceServiceRequest] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", received
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_process_sends_its_spans_before_it_ends(artifact: Path, tmp_path: Path, workers: str) -> None:
    flags = ("--model", str(artifact), "--provider", "cpu", "--log-format", "json", "--workers", workers)
    with collector() as (address, received):
        env = {
            "HOUSENUMBER_TRACING": "true",
            "OTEL_EXPORTER_OTLP_ENDPOINT": address,
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
            "OTEL_BSP_SCHEDULE_DELAY": "600000",  # until the end nothing is sent
            "FASTAPI_OTEL_AUTO_CONFIGURE": "true",  # of newer versions, with spans, metrics and logs of their own
        }
        with service_process(tmp_path / "log", *flags, env=env) as server:
            server.wait_until_ready()
            with server.client() as client:
                assert client.post("/predict", content=plain("42"), headers=SAMPLED).status_code == 200
            assert not received
            server.popen.terminate()
            assert server.ends() == 0
            (line,) = [json.loads(line) for line in server.log.splitlines() if '"/predict"' in line]

    (group,) = [group for request in received for group in request.resource_spans]
    resource = {item.key: item.value.string_value for item in group.resource.attributes}
    assert resource["service.name"] == "housenumber"
    assert resource["deployment.environment.name"] == "test"
    spans = {span.name: span for scope in group.scope_spans for span in scope.spans}
    assert list(spans) == [*STAGES, "POST /predict"]
    request = spans["POST /predict"]
    assert request.kind == trace_pb2.Span.SPAN_KIND_SERVER
    assert request.parent_span_id.hex() == CALLER
    assert all(spans[name].parent_span_id == request.span_id for name in STAGES)
    assert {span.trace_id.hex() for span in spans.values()} == {TRACE, line["trace_id"]}


def test_the_environment_may_name_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "doors")
    provider = tracing.tracer_provider()
    provider.shutdown()
    assert provider.resource.attributes["service.name"] == "doors"


def test_a_collector_that_never_answers_does_not_keep_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()

    class Waiting(SpanProcessor):
        def shutdown(self) -> None:
            answered.wait()

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(Waiting())
    monkeypatch.setattr(tracing, "_FLUSH_S", 0.05)
    try:
        asyncio.run(tracing.flush(provider))
        assert not answered.is_set()
    finally:
        answered.set()


# -- off -------------------------------------------------------------------------------------------------------------


def test_off_it_is_not_even_imported() -> None:
    # Newer versions of FastAPI import OpenTelemetry's interface themselves, but nothing that makes or sends spans.
    code = """
import sys
import service.server
from service.app import create_app
from service.settings import Settings
create_app(Settings(), lambda _: None)
ours = ("opentelemetry.sdk", "opentelemetry.exporter", "service.tracing")
print([name for name in sys.modules if name.startswith(ours)])
"""
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed.strip() == "[]"


def test_on_without_the_extra_is_wrong_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "service.tracing")
    result = CliRunner().invoke(main, ["serve", "--tracing", "true"])
    assert result.exit_code == 2
    said = " ".join(result.output.split())
    assert (
        f"--tracing or HOUSENUMBER_TRACING: {missing} is not installed; in a checkout, pip install -e '.[tracing]'"
        in said
    )
