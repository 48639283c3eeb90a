"""deploy/kubernetes: every object by the schema that Kubernetes publishes, and what one object promises another."""

import copy
import json
import re
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from containers import ROOT, arguments_of, image_environment, tool
from promql import parse

from service.app import create_app
from service.settings import ENV_PREFIX, Settings

DIRECTORY = ROOT / "deploy/kubernetes"
DOCUMENTATION = ROOT / "docs/deployment.md"
# The oldest version that has everything here, and one that clusters run today.
VERSIONS = ("1.25", "1.34")
PODS = {"app.kubernetes.io/name": "housenumber"}

Object = dict[str, Any]


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def built(directory: Path) -> dict[str, Object]:
    """kind -> object, as `kubectl kustomize` puts them together."""
    plan = load(directory / "kustomization.yaml")
    objects: dict[str, Object] = {}
    for resource in plan["resources"]:
        path = directory / resource
        found = built(path) if path.is_dir() else {"": load(path)}
        objects |= {item["kind"]: copy.deepcopy(item) for item in found.values()}
    for patch in plan.get("patches", []):
        target = objects[patch["target"]["kind"]]
        assert target["metadata"]["name"] == patch["target"]["name"]
        for operation in load(directory / patch["path"]):
            apply(operation, target)
    for change in plan.get("images", []):
        for container in objects["Deployment"]["spec"]["template"]["spec"]["containers"]:
            name, tag = name_and_tag(container["image"])
            if name == change["name"]:  # Kustomize too is silent where no container has this name
                container["image"] = f"{change.get('newName', name)}:{change.get('newTag', tag)}"
    return objects


def name_and_tag(image: str) -> tuple[str, str]:
    """A colon before a slash is that of a registry's port."""
    match = re.fullmatch(r"(.+?)(?::([^:/]+))?", image)
    assert match
    return match[1], match[2] or ""


def apply(operation: Object, target: Any) -> None:
    """One operation of a JSON patch (RFC 6902): `add` of what is not there, or `replace` of a member that is."""
    *parents, last = operation["path"].removeprefix("/").split("/")
    for key in parents:
        target = target[int(key)] if isinstance(target, list) else target[key]
    assert operation["op"] == ("replace" if last in target else "add")
    if last == "-":
        target.append(operation["value"])
    else:
        target[last] = operation["value"]


FOLDERS = ("base", "cpu", "gpu")
VARIANTS = {variant: built(DIRECTORY / variant) for variant in ("cpu", "gpu")}


def pod(variant: str) -> Object:
    spec: Object = VARIANTS[variant]["Deployment"]["spec"]["template"]["spec"]
    return spec


def container(variant: str) -> Object:
    (only,) = pod(variant)["containers"]
    found: Object = only
    return found


def quantity(text: str) -> Fraction:
    """Of Kubernetes: 2, 100m, 64Mi, 3Gi."""
    units = {"": Fraction(1), "m": Fraction(1, 1000), "Mi": Fraction(2**20), "Gi": Fraction(2**30)}
    match = re.fullmatch(r"(\d+)([a-zA-Z]*)", text)
    assert match
    return int(match[1]) * units[match[2]]


def settings(variant: str, image: str | None = None) -> Settings:
    """Of a pod, whose image is the target `image`, or the one that the variant names."""
    target = image or name_and_tag(container(variant)["image"])[1]
    environment = image_environment(target) | {entry["name"]: entry["value"] for entry in container(variant)["env"]}
    ours = {name: value for name, value in environment.items() if name.startswith(ENV_PREFIX)}
    return Settings.model_validate({name.removeprefix(ENV_PREFIX).lower(): value for name, value in ours.items()})


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_object_is_valid(variant: str, version: str) -> None:
    assert set(VARIANTS[variant]) == {"Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"}
    for item in VARIANTS[variant].values():
        kubernetes_validate.validate(item, version, strict=True)
        json.dumps(item)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_validation_notices_what_is_not_valid(variant: str) -> None:
    wrong = copy.deepcopy(VARIANTS[variant]["Deployment"])
    wrong["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


def test_every_file_is_part_of_a_variant() -> None:
    plans = {folder: load(DIRECTORY / folder / "kustomization.yaml") for folder in FOLDERS}
    named = {
        (DIRECTORY / folder / path).resolve()
        for folder, plan in plans.items()
        for path in [*plan["resources"], *(patch["path"] for patch in plan.get("patches", []))]
    }
    there = {path for folder in FOLDERS for path in (DIRECTORY / folder).iterdir()}
    assert there - named == {DIRECTORY / folder / "kustomization.yaml" for folder in FOLDERS}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_has_its_own_image_in_another_registry(variant: str, tmp_path: Path) -> None:
    """After the edit that the documentation asks for."""
    name = "registry.example.com:5000/readers/housenumber"
    shutil.copytree(DIRECTORY, tmp_path, dirs_exist_ok=True)
    plan = tmp_path / variant / "kustomization.yaml"
    edited, changes = re.subn(r"newName: \S+", f"newName: {name}", plan.read_text())
    assert changes == 1
    plan.write_text(edited)
    (reader,) = built(tmp_path / variant)["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert reader["image"] == f"{name}:{variant}"


def test_the_base_names_no_image() -> None:
    """Kustomize passes over an `images:` whose name matches nothing: what the base renames, no variant finds again."""
    (reader,) = built(DIRECTORY / "base")["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert reader["image"] == "housenumber"


def test_an_image_for_the_cpu_does_not_read_in_place_of_a_gpu() -> None:
    assert settings("gpu", "cpu").provider == "cuda"


@pytest.mark.parametrize("variant", VARIANTS)
def test_names_and_labels_meet(variant: str) -> None:
    objects = VARIANTS[variant]
    deployment = objects["Deployment"]
    assert deployment["spec"]["template"]["metadata"]["labels"] == PODS
    assert deployment["spec"]["selector"]["matchLabels"] == PODS
    assert objects["Service"]["spec"]["selector"] == PODS
    assert objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == PODS
    for constraint in pod(variant)["topologySpreadConstraints"]:
        assert constraint["labelSelector"]["matchLabels"] == PODS
    scaled = objects["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert scaled == {key: deployment[key] for key in ("apiVersion", "kind")} | {"name": deployment["metadata"]["name"]}
    assert "replicas" not in deployment["spec"]  # the autoscaler's


@pytest.mark.parametrize("variant", VARIANTS)
def test_ports_and_probes_are_those_of_the_service(variant: str) -> None:
    (port,) = container(variant)["ports"]
    assert port["containerPort"] == settings(variant).port
    (published,) = VARIANTS[variant]["Service"]["spec"]["ports"]
    assert published["targetPort"] == port["name"]

    def never() -> Any:
        raise AssertionError

    paths = create_app(Settings(), lambda _: never()).openapi()["paths"]
    for probe, path in (("startupProbe", "/readyz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/livez")):
        assert container(variant)[probe]["httpGet"] == {"path": path, "port": port["name"]}
        assert "get" in paths[path]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_pod_may_do_what_the_reader_does_and_no_more(variant: str) -> None:
    user, group = arguments_of(name_and_tag(container(variant)["image"])[1], "USER")[-1].split(":")
    security = pod(variant)["securityContext"]
    assert (security["runAsNonRoot"], security["runAsUser"], security["runAsGroup"]) == (True, int(user), int(group))
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(variant)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod(variant)["automountServiceAccountToken"] is False
    # A Service's name becomes variables of every pod, and this one's would be settings.
    assert VARIANTS[variant]["Service"]["metadata"]["name"].upper() + "_" == ENV_PREFIX
    assert pod(variant)["enableServiceLinks"] is False


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_waits_longer_than_what_it_waits_for(variant: str) -> None:
    chosen = settings(variant)
    assert pod(variant)["terminationGracePeriodSeconds"] > chosen.drain_delay_s + chosen.drain_timeout_s
    assert chosen.drain_timeout_s > chosen.request_timeout_ms / 1000
    readiness = container(variant)["readinessProbe"]
    noticed = readiness["failureThreshold"] * (readiness["periodSeconds"] + readiness["timeoutSeconds"])
    assert chosen.drain_delay_s > noticed


@pytest.mark.parametrize("variant", VARIANTS)
def test_resources_are_enough_for_the_largest_images(variant: str) -> None:
    requests, limits = (container(variant)["resources"][kind] for kind in ("requests", "limits"))
    assert requests["cpu"] == limits["cpu"]  # threads follow the limit
    assert quantity(requests["memory"]) <= quantity(limits["memory"])
    # 16 bytes a pixel at worst, in every decoding thread.
    assert quantity(limits["memory"]) > quantity(limits["cpu"]) * settings(variant).max_pixels * 16
    assert (limits.get("nvidia.com/gpu") == "1") == (variant == "gpu") == (settings(variant).provider == "cuda")


@pytest.mark.parametrize("variant", VARIANTS)
def test_disruptions_leave_readers(variant: str) -> None:
    objects = VARIANTS[variant]
    scaling = objects["HorizontalPodAutoscaler"]["spec"]
    allowed = objects["PodDisruptionBudget"]["spec"]["maxUnavailable"]
    rolling = objects["Deployment"]["spec"]["strategy"]["rollingUpdate"]
    assert max(allowed, rolling["maxUnavailable"]) < scaling["minReplicas"] <= scaling["maxReplicas"]
    assert rolling["maxSurge"] + rolling["maxUnavailable"] > 0


# -- what the documentation has one write ----------------------------------------------------------------------------


def documented(head: str) -> str:
    """The file in docs/deployment.md that begins with `head`."""
    (text,) = re.findall(rf"^```yaml\n({head}\n.*?)^```$", DOCUMENTATION.read_text(), re.MULTILINE | re.DOTALL)
    return str(text)


def test_what_is_told_to_be_edited_and_applied_is_a_variant() -> None:
    text = DOCUMENTATION.read_text()
    for variant in VARIANTS:
        assert f"`deploy/kubernetes/{variant}/kustomization.yaml`" in text
    told = text + "".join((DIRECTORY / folder / "kustomization.yaml").read_text() for folder in FOLDERS)
    assert set(re.findall(r"kubectl apply -k deploy/kubernetes/(\w+)", told)) == set(VARIANTS)


def test_the_headless_service_finds_the_pods() -> None:
    service = yaml.safe_load(documented("apiVersion: v1"))
    for version in VERSIONS:
        kubernetes_validate.validate(service, version, strict=True)
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == PODS
    (port,) = service["spec"]["ports"]
    assert port["port"] == settings("cpu").port
    name = service["metadata"]["name"]
    assert f"`READERS={name}.NAMESPACE.svc.cluster.local:{port['port']}`" in DOCUMENTATION.read_text()


def test_prometheus_scrapes_the_pods_with_the_labels_that_the_adapter_asks_for() -> None:
    (job,) = yaml.safe_load(documented("scrape_configs:"))["scrape_configs"]
    assert job["job_name"] == "housenumber"
    keep, port, *targets = job["relabel_configs"]
    ((label, value),) = PODS.items()
    assert keep["source_labels"] == ["__meta_kubernetes_pod_label_" + re.sub(r"\W", "_", label)]
    assert (keep["regex"], port["regex"]) == (value, container("cpu")["ports"][0]["name"])
    assert {target["target_label"] for target in targets} == set(adapter_rule()["resources"]["overrides"])


# -- the autoscaler's metric -----------------------------------------------------------------------------------------


def adapter_rule() -> Object:
    (rule,) = load(DIRECTORY / "prometheus-adapter.yaml")["rules"]["custom"]
    found: Object = rule
    return found


def test_the_autoscaler_asks_for_what_the_adapter_has() -> None:
    (metric,) = VARIANTS["cpu"]["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == adapter_rule()["name"]["as"]
    assert set(adapter_rule()["resources"]["overrides"]) == {"namespace", "pod"}
    ((series, matchers),) = parse(adapter_rule()["seriesQuery"]).selectors
    assert (series, matchers["stage"]) == ("housenumber_predict_seconds_sum", ("=", "queue"))


def test_the_metric_is_the_mean_wait(tmp_path: Path) -> None:
    """By Prometheus itself: two pods, one of which answers ten requests a second that wait 0.2 s, the other none."""
    query = adapter_rule()["metricsQuery"].replace("<<.GroupBy>>", "pod").replace("<<.LabelMatchers>>", 'namespace="x"')
    (tmp_path / "rules.yml").write_text(
        yaml.safe_dump({"groups": [{"name": "adapter", "rules": [{"record": "wait", "expr": query}]}]})
    )
    series = "housenumber_predict_seconds_{}{{namespace='x',pod='{}',stage='{}'}}"
    inputs = {
        series.format("sum", "busy", "queue"): "0+30x20",  # per 15 s: 150 requests of 0.2 s
        series.format("count", "busy", "queue"): "0+150x20",
        series.format("sum", "busy", "total"): "0+900x20",
        series.format("count", "busy", "total"): "0+150x20",
        series.format("sum", "idle", "queue"): "7+0x20",
        series.format("count", "idle", "queue"): "90+0x20",
    }
    expected = {"busy": 0.2, "idle": 0}
    test = {
        "rule_files": ["rules.yml"],
        "tests": [
            {
                "interval": "15s",
                "input_series": [{"series": name, "values": values} for name, values in inputs.items()],
                "promql_expr_test": [
                    {
                        "expr": "wait",
                        "eval_time": "5m",
                        "exp_samples": [
                            {"labels": f'wait{{pod="{name}"}}', "value": value} for name, value in expected.items()
                        ],
                    }
                ],
            }
        ],
    }
    (tmp_path / "test.yml").write_text(yaml.safe_dump(test))
    checked = subprocess.run(
        [tool("promtool"), "test", "rules", "test.yml"], cwd=tmp_path, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
