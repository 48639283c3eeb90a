"""The metrics of a served instance: what they count, the table that documents them, and the queries that use them."""

import base64
import json
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from balancer import balancing
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from promql import Query, parse
from serving import Held, encode, plain, serving, wait_until

from service.app import create_app
from service.engine import OnnxEngine
from service.errors import ServiceError
from service.open_inference.routes import INFER_PATHS
from service.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
ALERTS: dict[str, Any] = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy/grafana/housenumber.json").read_text())

# What Prometheus adds to every series of a target, and what it makes itself.
TARGET_LABELS = {"job", "instance"}
OWN_METRICS = {"up"}

KEY = {"X-API-Key": "red"}


@dataclass
class Exposed:
    """The families and samples of an exposition: name -> type, and name -> label -> values."""

    types: dict[str, str] = field(default_factory=dict)
    labels: dict[str, dict[str, set[str]]] = field(default_factory=dict)
    values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = field(default_factory=dict)

    @classmethod
    def of(cls, client: httpx.Client) -> "Exposed":
        exposed = cls()
        for family in text_string_to_metric_families(client.get("/metrics").text):
            # The parser takes a counter's suffix off its name.
            name = f"{family.name}_total" if family.type == "counter" else family.name
            exposed.types[name] = family.type
            for sample in family.samples:
                values = exposed.labels.setdefault(sample.name, {})
                for label, value in sample.labels.items():
                    values.setdefault(label, set()).add(value)
                exposed.values[(sample.name, tuple(sorted(sample.labels.items())))] = sample.value
        return exposed

    def value(self, name: str, /, **labels: str) -> float:
        return self.values.get((name, tuple(sorted(labels.items()))), 0)

    def labels_of_family(self, name: str) -> set[str]:
        samples = [name, f"{name}_bucket"]
        return {label for sample in samples for label in self.labels.get(sample, {})} - {"le"}


@pytest.fixture(scope="module")
def exposed(engine: OnnxEngine) -> Iterator[Exposed]:
    """What a service tells after one of everything: answers, errors, a full queue, callers that leave or give up."""
    held = Held(engine)
    limits = {"max_batch_size": 1, "max_queue_images": 2, "max_images": 2}
    left = 'housenumber_requests_total{code="client_closed_request",route="/predict",status="499"}'
    with serving(held, api_keys="alice:red", **limits) as client, ThreadPoolExecutor(3) as callers:
        client.headers.update(KEY)
        try:
            running = callers.submit(client.post, "/predict", content=plain("1"))
            assert held.inside.wait(10)
            late = client.post("/predict", content=plain("2"), headers={"X-Request-Timeout-Ms": "100"})
            assert late.status_code == 504
            image = plain("2")
            with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=10) as caller:
                head = f"POST /predict HTTP/1.1\r\nHost: a\r\nX-API-Key: red\r\nContent-Length: {len(image)}\r\n\r\n"
                caller.sendall(head.encode() + image)
                wait_until(lambda: "housenumber_queue_images 1.0" in client.get("/metrics").text)
            wait_until(lambda: left in client.get("/metrics").text)
            waiting = callers.submit(client.post, "/predict", files=[("image", ("a.png", image))] * 2)
            wait_until(lambda: "housenumber_queue_images 2.0" in client.get("/metrics").text)
            assert client.post("/predict", content=plain("3")).status_code == 503
        finally:
            held.go_on.set()
        assert running.result().status_code == waiting.result().status_code == 200
        client.post("/predict", content=encode(Image.new("RGB", (16, 12), (24, 252, 252))))  # between 0 and 1
        client.post("/predict", content=plain(""))
        assert client.post("/predict", content=b"junk").status_code == 422
        files = [("image", ("a.png", data)) for data in (plain("1"), b"junk")]
        assert client.post("/predict", files=files).status_code == 200
        image_input = {
            "name": "image",
            "shape": [1],
            "datatype": "BYTES",
            "data": [base64.b64encode(plain("7")).decode()],
            "parameters": {"content_type": "base64"},
        }
        assert client.post("/v2/models/tiny/infer", json={"inputs": [image_input]}).status_code == 200
        assert client.get("/nothing").status_code == 404
        yield Exposed.of(client)


def test_what_is_counted_is_what_happened(exposed: Exposed) -> None:
    def requests(route: str, status: int, code: str) -> float:
        return exposed.value("housenumber_requests_total", route=route, status=str(status), code=code)

    assert requests("/predict", 200, "ok") == 5
    assert requests("/predict", 422, "bad_image") == 1
    assert requests("/predict", 499, "client_closed_request") == 1
    assert requests("/predict", 503, "overloaded") == 1
    assert requests("/predict", 504, "deadline_exceeded") == 1
    assert requests("/v2/models/{name}/infer", 200, "ok") == 1
    assert requests("other", 404, "not_found") == 1
    assert exposed.value("housenumber_images_total", code="ok") == 7
    assert exposed.value("housenumber_images_total", code="bad_image") == 1
    # Those that were dropped or no images too, but not the one that was refused before its body was read.
    assert exposed.value("housenumber_key_images_total", key="alice") == 11
    assert exposed.value("housenumber_dropped_images_total", stage="queue", reason="cancelled") >= 1
    assert exposed.value("housenumber_rejected_images_total", stage="queue") == 1
    assert exposed.value("housenumber_readings_total", outcome="doubtful") == 1
    assert exposed.value("housenumber_readings_total", outcome="no_number") == 1
    assert exposed.value("housenumber_readings_total", outcome="accepted") == 5
    assert exposed.value("housenumber_confidence_count") == 6
    for stage in ("decode", "queue", "inference", "total"):
        assert exposed.value("housenumber_predict_seconds_count", stage=stage) == 6
    assert exposed.value("housenumber_requests_in_flight") == 0
    assert exposed.value("housenumber_queue_images") == exposed.value("housenumber_decode_jobs") == 0


def test_the_model_and_the_process_are_told(exposed: Exposed, engine: OnnxEngine) -> None:
    model = {"name": "tiny", "version": "7", "sha256": engine.sha256, "provider": engine.provider}
    assert exposed.value("housenumber_model_info", **model) == 1
    assert exposed.value("process_resident_memory_bytes") > 2**20


def test_in_flight_is_what_is_being_answered_without_the_probes(engine: OnnxEngine) -> None:
    held = Held(engine)
    with serving(held) as client, ThreadPoolExecutor(1) as callers:
        try:
            running = callers.submit(client.post, "/predict", content=plain("1"))
            assert held.inside.wait(10)
            assert Exposed.of(client).value("housenumber_requests_in_flight") == 1
        finally:
            held.go_on.set()
        assert running.result().status_code == 200
        wait_until(lambda: Exposed.of(client).value("housenumber_requests_in_flight") == 0)


def test_the_table_documents_what_is_exposed(exposed: Exposed) -> None:
    section = (ROOT / "docs/operations.md").read_text().split("\n## Metrics\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) \|", section, re.MULTILINE)
    documented = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert documented == {name: (kind, exposed.labels_of_family(name)) for name, kind in exposed.types.items()}


# -- queries ---------------------------------------------------------------------------------------------------------

RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]


@pytest.fixture(scope="module")
def exposed_by_all(exposed: Exposed, tmp_path_factory: pytest.TempPathFactory) -> Exposed:
    """By the service and by the balancer."""
    with balancing(tmp_path_factory.mktemp("balancer"), [], 8000) as balancer:
        return Exposed(labels=exposed.labels | Exposed.of(balancer.inside).labels)


def codes(cls: type[ServiceError] = ServiceError) -> set[str]:
    return {code for sub in cls.__subclasses__() for code in codes(sub)} or {cls.code}


def check(query: Query, exposed: Exposed) -> None:
    """Every metric, label and label value of the query is one that is shown."""
    assert query.selectors
    known = set(TARGET_LABELS)
    for metric, matchers in query.selectors:
        if metric in OWN_METRICS:
            assert set(matchers) <= TARGET_LABELS
            continue
        assert metric in exposed.labels, metric
        labels = exposed.labels[metric]
        known |= set(labels)
        for label, (operator, value) in matchers.items():
            assert label in set(labels) | TARGET_LABELS, (metric, label)
            if operator in ("=", "!=") and label not in TARGET_LABELS:
                assert value in labels[label] | (codes() if label == "code" else set()), (metric, label, value)
    assert query.grouping <= known


@pytest.mark.parametrize("rule", RULES, ids=[rule["alert"] for rule in RULES])
def test_alerts_ask_for_what_is_exposed(rule: dict[str, Any], exposed_by_all: Exposed) -> None:
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    query = parse(rule["expr"])
    check(query, exposed_by_all)
    assert set(rule["labels"]) == {"severity"}
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert set(rule["annotations"]) == {"summary", "description"}
    assert re.fullmatch(r"\d+[mh]", rule.get("for", "1m"))
    # A label that the text names must be one that the query leaves.
    for label in re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]):
        assert label in query.grouping | TARGET_LABELS


def test_a_share_is_one_of_the_requests_to_read() -> None:
    """Not of the probes and scrapes, which are most of what an idle reader is asked."""
    chosen = [
        matchers["route"]
        for rule in RULES
        for metric, matchers in parse(rule["expr"]).selectors
        if metric == "housenumber_requests_total" and "code" not in matchers
    ]
    assert chosen
    paths = create_app(Settings(), lambda _: pytest.fail("nothing is loaded")).openapi()["paths"]
    for operator, pattern in chosen:
        assert operator == "=~"
        assert {path for path in paths if re.fullmatch(pattern, path)} == {"/predict", *INFER_PATHS}


def test_alerts_have_names_of_their_own() -> None:
    names = [rule["alert"] for rule in RULES]
    assert len(set(names)) == len(names)
    assert all(name.startswith("Housenumber") for name in names)


@pytest.mark.parametrize("panel", PANELS, ids=[panel["title"] for panel in PANELS])
def test_panels_ask_for_what_is_exposed(panel: dict[str, Any], exposed: Exposed) -> None:
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for target in panel["targets"]:
        query = parse(target["expr"])
        check(query, exposed)
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= query.grouping | TARGET_LABELS
        for _, matchers in query.selectors:
            assert matchers["instance"] == ("=~", "$instance")


def test_the_dashboard_is_one(exposed: Exposed) -> None:
    assert DASHBOARD["uid"] == DASHBOARD["title"] == "housenumber"
    assert len({panel["id"] for panel in PANELS}) == len({panel["title"] for panel in PANELS}) == len(PANELS)
    taken = {
        (x, y)
        for place in (panel["gridPos"] for panel in PANELS)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    }
    assert len(taken) == sum(panel["gridPos"]["w"] * panel["gridPos"]["h"] for panel in PANELS)  # none over another
    assert max(x for x, _ in taken) < 24
    datasource, instance = DASHBOARD["templating"]["list"]
    assert (datasource["name"], instance["name"]) == ("datasource", "instance")
    check(Query([(instance["query"]["query"].split("(")[1].split(",")[0], {})]), exposed)


def test_every_metric_of_the_service_is_on_the_dashboard(exposed: Exposed) -> None:
    asked = " ".join(target["expr"] for panel in PANELS for target in panel["targets"])
    assert [name for name in exposed.types if name.startswith("housenumber_") and name not in asked] == []


@pytest.mark.parametrize("broken", ["sum(rate(a[5m])", "rate a", "a{b='c'}", "a ~ b"])
def test_a_query_that_is_none_is_noticed(broken: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse(broken)
