"""The alerts of deploy/prometheus/alerts.yml, by Prometheus itself: what fires each, and what all but does."""

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from containers import ROOT, tool

FILE = ROOT / "deploy/prometheus/alerts.yml"
RULES = [rule for group in yaml.safe_load(FILE.read_text())["groups"] for rule in group["rules"]]

A = 'instance="a",job="housenumber"'
B = 'instance="b",job="housenumber"'
REQUESTS = f'housenumber_requests_total{{{A},route="%s",status="%d",code="%s"}}'
SECONDS = f'housenumber_predict_seconds_bucket{{{A},stage="%s",le="%s"}}'
READINGS = f'housenumber_readings_total{{{A},outcome="%s"}}'

# More than all else: where they counted, no share would be large.
PROBES = {
    REQUESTS % ("/readyz", 200, "ok"): "0+900x60",
    REQUESTS % ("/v2/health/ready", 200, "ok"): "0+900x60",
    REQUESTS % ("/metrics", 200, "ok"): "0+900x60",
}


@dataclass(frozen=True)
class Case:
    """Two worlds, each a value every `step` minutes for every series, as promtool reads them: `0+6x60` grows by 6.

    In the first the alert fires from minute `since` on, with these labels, besides its own, and this summary.
    """

    fires: dict[str, str]
    does_not: dict[str, str]
    labels: dict[str, str]
    summary: str
    since: int
    step: int = 1


CASES = {
    "HousenumberDown": Case(
        {f"up{{{A}}}": "0x60", f"up{{{B}}}": "1x60"},
        {f"up{{{A}}}": "1x60", 'up{instance="b",job="another"}': "0x60"},
        {"instance": "a", "job": "housenumber"},
        "a does not answer Prometheus",
        since=2,
    ),
    "HousenumberNoReader": Case(
        {f"up{{{A}}}": "1x4 stale", f"up{{{B}}}": "0x60", 'up{instance="c",job="another"}': "1x60"},
        {f"up{{{A}}}": "1x60", f"up{{{B}}}": "0x60"},
        {},
        "No reader answers Prometheus",
        since=7,
    ),
    "HousenumberBalancerDown": Case(
        {'up{instance="a",job="haproxy"}': "0x60"},
        {'up{instance="a",job="haproxy"}': "1x60", f"up{{{A}}}": "0x60"},
        {"instance": "a", "job": "haproxy"},
        "The balancer a does not answer Prometheus",
        since=1,
    ),
    "HousenumberBalancerWithoutReader": Case(
        {'haproxy_backend_active_servers{instance="a",job="haproxy",proxy="readers"}': "0x60"},
        {
            'haproxy_backend_active_servers{instance="a",job="haproxy",proxy="readers"}': "1x60",
            'haproxy_backend_active_servers{instance="a",job="haproxy",proxy="another"}': "0x60",
        },
        {"instance": "a", "job": "haproxy", "proxy": "readers"},
        "The balancer a has no reader that is ready",
        since=1,
    ),
    "HousenumberFaults": Case(
        {REQUESTS % ("/predict", 500, "internal"): "0+1x60"},
        {REQUESTS % ("/predict", 500, "internal"): "7x60", REQUESTS % ("/predict", 422, "bad_image"): "0+9x60"},
        {"instance": "a"},
        "a answers with faults of its own",
        since=6,
    ),
    "HousenumberOverloaded": Case(
        PROBES | {REQUESTS % ("/predict", 200, "ok"): "0+94x60", REQUESTS % ("/predict", 503, "overloaded"): "0+6x60"},
        {
            REQUESTS % ("/predict", 503, "overloaded"): "0+6x60",
            REQUESTS % ("/predict", 200, "ok"): "0+47x60",
            REQUESTS % ("/v2/models/{name}/infer", 200, "ok"): "0+40x60",
            REQUESTS % ("/v2/models/{name}/versions/{version}/infer", 200, "ok"): "0+40x60",
        },
        {"instance": "a"},
        "a turns away 6% of its requests",
        since=11,
    ),
    "HousenumberQueueWait": Case(
        {SECONDS % ("queue", "0.5"): "0+94x60", SECONDS % ("queue", "1"): "0+100x60"}
        | {SECONDS % ("queue", "+Inf"): "0+100x60"},
        {SECONDS % ("queue", "0.5"): "0+96x60", SECONDS % ("queue", "1"): "0+100x60"}
        | {SECONDS % ("queue", "+Inf"): "0+100x60"}
        | {SECONDS % ("total", "1"): "0x60", SECONDS % ("total", "+Inf"): "0+100x60"},
        {"instance": "a"},
        "Images wait 583.3ms for the model of a (p95)",
        since=11,
    ),
    "HousenumberSlow": Case(
        {SECONDS % ("total", "2"): "0+989x60", SECONDS % ("total", "5"): "0+1000x60"}
        | {SECONDS % ("total", "+Inf"): "0+1000x60"},
        {SECONDS % ("total", "2"): "0+991x60", SECONDS % ("total", "5"): "0+1000x60"}
        | {SECONDS % ("total", "+Inf"): "0+1000x60"},
        {"instance": "a"},
        "One answer of a in a hundred takes longer than 2.273s",
        since=11,
    ),
    "HousenumberDeadlines": Case(
        PROBES
        | {
            REQUESTS % ("/predict", 200, "ok"): "0+976x60",
            REQUESTS % ("/predict", 504, "deadline_exceeded"): "0+24x60",
        },
        {
            REQUESTS % ("/predict", 504, "deadline_exceeded"): "0+3x60",
            REQUESTS % ("/predict", 200, "ok"): "0+57x60",
            REQUESTS % ("/v2/models/{name}/infer", 200, "ok"): "0+50x60",
            REQUESTS % ("/v2/models/{name}/versions/{version}/infer", 200, "ok"): "0+50x60",
        },
        {"instance": "a"},
        "a misses the deadline of 2.4% of its requests",
        since=11,
    ),
    "HousenumberRestarts": Case(
        {f"process_start_time_seconds{{{A}}}": "1 2 3 4 5 5 5"},
        {
            f"process_start_time_seconds{{{A}}}": "1 2 3 4 4 4 4",
            'process_start_time_seconds{instance="b",job="another"}': "1 2 3 4 5 5 5",
        },
        {"instance": "a", "job": "housenumber"},
        "a was started 4 times in half an hour",
        since=4,
    ),
    "HousenumberWorkersEnd": Case(
        {f"housenumber_worker_restarts_total{{{A}}}": "0x26 4x60"},
        {f"housenumber_worker_restarts_total{{{A}}}": "0x26 3x60"},
        {"instance": "a", "job": "housenumber"},
        "a had to replace 4 of its workers in half an hour",
        since=27,
    ),
    "HousenumberMemory": Case(
        {f"process_resident_memory_bytes{{{A}}}": "2147483648x60"},
        {
            f"process_resident_memory_bytes{{{A}}}": "1900000000x60",
            'process_resident_memory_bytes{instance="b",job="another"}': "9e9x60",
        },
        {"instance": "a", "job": "housenumber"},
        "a holds 2GiB of memory",
        since=30,
    ),
    "HousenumberModelLoadFailed": Case(
        {f'housenumber_model_loads_total{{{A},outcome="failed"}}': "0x4 1x60"},
        {
            f'housenumber_model_loads_total{{{A},outcome="failed"}}': "1x60",
            f'housenumber_model_loads_total{{{A},outcome="served"}}': "1x4 2x60",
        },
        {"instance": "a", "job": "housenumber", "outcome": "failed"},
        "a found a model that it cannot serve",
        since=5,
    ),
    "HousenumberModelsDiffer": Case(
        {f'housenumber_model_info{{{A},sha256="1"}}': "1x90", f'housenumber_model_info{{{B},sha256="2"}}': "1x90"},
        {f'housenumber_model_info{{{A},sha256="1"}}': "1x90", f'housenumber_model_info{{{B},sha256="1"}}': "1x90"},
        {},
        "2 different artifacts answer",
        since=60,
    ),
    # A value every half an hour: of 100 on the first day 90, from then on 71 or 73. When a week has passed since the
    # first two values, there is something to compare.
    "HousenumberAcceptsLess": Case(
        {READINGS % "accepted": "0+90x48 4391+71x400", READINGS % "doubtful": "0+10x48 509+29x400"},
        {READINGS % "accepted": "0+90x48 4393+73x400", READINGS % "doubtful": "0+10x48 507+27x400"},
        {},
        "Only 71% of the readings are accepted, far less than a week ago",
        since=7 * 24 * 60 + 90,
        step=30,
    ),
}


def test_every_alert_is_tried() -> None:
    assert set(CASES) == {rule["alert"] for rule in RULES}


@pytest.mark.parametrize("rule", RULES, ids=[rule["alert"] for rule in RULES])
def test_an_alert_fires_when_it_should_and_not_otherwise(rule: dict[str, Any], tmp_path: Path) -> None:
    case = CASES[rule["alert"]]
    annotations = rule["annotations"] | {"summary": case.summary}
    fired = {"exp_labels": case.labels | rule["labels"], "exp_annotations": annotations}
    expected: list[tuple[dict[str, str], int, list[Any]]] = [
        (case.fires, case.since - case.step, []),
        (case.fires, case.since, [fired]),
        (case.does_not, case.since, []),
    ]
    step = f"{case.step}m"
    test = {
        "rule_files": [str(FILE)],
        "evaluation_interval": step,
        "tests": [
            {
                "interval": step,
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "alert_rule_test": [{"alertname": rule["alert"], "eval_time": f"{minute}m", "exp_alerts": alerts}],
            }
            for series, minute, alerts in expected
        ],
    }
    (tmp_path / "test.yml").write_text(yaml.safe_dump(test))
    tried = subprocess.run(
        [tool("promtool"), "test", "rules", "test.yml"], cwd=tmp_path, capture_output=True, text=True
    )
    assert tried.returncode == 0, tried.stdout + tried.stderr
