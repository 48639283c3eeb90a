"""deploy/kubernetes/score: objects by the schemas that Kubernetes publishes, commands by the command itself."""

import copy
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
import yaml
from containers import ROOT, arguments_of, image_environment, stages
from test_kubernetes import VERSIONS, Object, quantity

from service.scoring.command import EXIT_REFUSED, EXIT_STOPPED, score
from service.settings import Settings

DIRECTORY = ROOT / "deploy/kubernetes/score"
OBJECTS: dict[str, Object] = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(DIRECTORY.iterdir())}
_MIB_OF_A_WORKER = 256


def templates(name: str) -> list[Object]:
    """The pods that an object makes."""
    spec = OBJECTS[name]["spec"]
    match OBJECTS[name]["kind"]:
        case "Job":
            return [spec["template"]]
        case "CronJob":
            return [spec["jobTemplate"]["spec"]["template"]]
        case _:
            cluster = spec["rayClusterSpec"]
            return [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]


PODS = [(name, template["spec"]) for name in OBJECTS for template in templates(name)]


def container(pod: Object) -> Object:
    (only,) = pod["containers"]
    found: Object = only
    return found


def arguments(name: str) -> list[str]:
    """What the command is given."""
    if name == "rayjob":
        words = shlex.split(OBJECTS[name]["spec"]["entrypoint"])
    else:
        (template,) = templates(name)
        words = container(template["spec"])["command"] + container(template["spec"]).get("args", [])
        if words[0] == "sh":
            words = shlex.split(words[-1].partition("exec ")[2].replace("$day", "2026-11-22"))
    assert words[:2] == ["housenumber", "score"]
    return words[2:]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["job", "cronjob"])
def test_every_object_is_valid(name: str, version: str) -> None:
    kubernetes_validate.validate(OBJECTS[name], version, strict=True)
    wrong = copy.deepcopy(OBJECTS[name])
    wrong["spec"]["backofLimit"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_pods_of_the_cluster_are_valid(version: str) -> None:
    """The schema of a RayJob is its operator's; that of its pods is Kubernetes'."""
    for template in templates("rayjob"):
        whole = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template}
        kubernetes_validate.validate(whole, version, strict=True)


def test_the_cluster_is_as_its_operator_wants_it() -> None:
    job = OBJECTS["rayjob"]
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert set(job["spec"]) == {
        "entrypoint",
        "backoffLimit",
        "shutdownAfterJobFinishes",
        "ttlSecondsAfterFinished",
        "rayClusterSpec",
    }
    cluster = job["spec"]["rayClusterSpec"]
    assert f"ray=={cluster['rayVersion']}\n" in (ROOT / "constraints.txt").read_text()
    # Its parameters are flags of `ray start`, all of them text.
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    for group in cluster["workerGroupSpecs"]:
        assert 1 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


@pytest.mark.parametrize("name", OBJECTS)
def test_a_command_is_one_that_there_is(name: str) -> None:
    with score.make_context("score", arguments(name)) as context:
        chosen: dict[str, Any] = context.params
    assert chosen["engine"] == ("ray" if name == "rayjob" else "local")
    # A pod's own disk is gone with it, and another machine's is not to be seen.
    assert all(url.startswith("s3://") for url in (*chosen["inputs"], chosen["out"]))
    if name == "rayjob":
        # In a Ray job this variable says where the cluster is.
        (address,) = [option for option in score.params if option.name == "address"]
        assert isinstance(address, click.Option)
        assert address.envvar == "RAY_ADDRESS"


@pytest.mark.parametrize(("name", "pod"), PODS)
def test_a_pod_may_do_what_it_has_to_and_no_more(name: str, pod: Object) -> None:
    target = container(pod)["image"].split(":")[1]
    user, group = arguments_of(target, "USER")[-1].split(":")
    security = pod["securityContext"]
    assert (security["runAsNonRoot"], security["runAsUser"], security["runAsGroup"]) == (True, int(user), int(group))
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(pod)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["enableServiceLinks"] is False
    # The head asks Kubernetes for more workers; nobody else has anything to ask it.
    assert pod.get("automountServiceAccountToken", True) is (container(pod)["name"] == "head")
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container(pod)["volumeMounts"]} == volumes


@pytest.mark.parametrize(("name", "pod"), PODS)
def test_resources_are_enough_for_the_largest_images(name: str, pod: Object) -> None:
    requests, limits = (container(pod)["resources"][kind] for kind in ("requests", "limits"))
    assert requests["cpu"] == limits["cpu"]  # workers follow the limit
    assert quantity(requests["memory"]) <= quantity(limits["memory"])
    if container(pod)["name"] != "head":
        # 16 bytes a pixel at worst, in every worker.
        of_a_worker = Settings().max_pixels * 16 + _MIB_OF_A_WORKER * 2**20
        assert quantity(limits["memory"]) > quantity(limits["cpu"]) * of_a_worker


@pytest.mark.parametrize("name", ["job", "cronjob"])
def test_what_no_other_try_would_change_is_not_tried_again(name: str) -> None:
    (template,) = templates(name)
    spec = OBJECTS[name]["spec"] if name == "job" else OBJECTS[name]["spec"]["jobTemplate"]["spec"]
    fail, ignore = spec["podFailurePolicy"]["rules"]
    assert fail["onExitCodes"]["containerName"] == container(template["spec"])["name"]
    refused = set(fail["onExitCodes"]["values"])
    assert EXIT_REFUSED in refused
    assert not refused & {EXIT_STOPPED, 128 + 15, 128 + 9}
    documented = re.findall(r"^\| ([\d, ]+) \| ", (ROOT / "docs/scoring.md").read_text(), re.MULTILINE)
    assert refused <= {int(code) for codes in documented for code in codes.split(",")}
    assert ignore["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert template["spec"]["restartPolicy"] == "Never"  # which such rules ask for


def test_the_nightly_job_is_the_job() -> None:
    """But for its command, so that what is true of the one is so of the other."""
    (once,), (nightly,) = templates("job"), templates("cronjob")
    different = {"command", "args", "env"}
    for spec in (once["spec"], nightly["spec"]):
        assert different & container(spec).keys()
    once, nightly = copy.deepcopy(once), copy.deepcopy(nightly)
    for template in (once, nightly):
        for name in different:
            container(template["spec"]).pop(name, None)
    assert once == nightly
    assert OBJECTS["cronjob"]["spec"]["concurrencyPolicy"] == "Forbid"


@pytest.mark.parametrize("name", ["housenumber-score-29923350", "a-night-by-hand"])
def test_every_try_of_a_night_reads_the_day_before_it_was_due(name: str, tmp_path: Path) -> None:
    """29,923,350 minutes after 1970 it is 2026-11-23, 02:30; and what has no such name reads nothing."""
    (template,) = templates("cronjob")
    pod = container(template["spec"])
    assert pod["env"] == [{"name": "JOB_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['job-name']"}}}]
    command = tmp_path / "housenumber"
    command.write_text('#!/bin/sh\necho "$@"\n')
    command.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "JOB_NAME": name}
    told = subprocess.run(pod["command"], env=environment, capture_output=True, text=True)
    if name == "a-night-by-hand":
        assert told.returncode != 0
        assert not told.stdout
    else:
        day = "2026-11-22"
        assert told.stdout.split() == [
            "score",
            f"s3://your-bucket/images/{day}/",
            "--output",
            f"s3://your-bucket/readings/{day}",
        ]


def test_the_image_of_batch_scoring_has_what_its_engines_need() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert stages()["install-score"][0] == "install-cpu"
    (install,) = [value for name, value in stages()["install-score"][1] if name == "RUN"]
    assert "extras['score'] + extras['ray']" in install
    assert install.count("-c constraints.txt") == 1
    # What the health checks of the pods ask, KubeRay's and ours, is Ray's dashboard: the extra `default`.
    ray = {wish.split(">")[0] for wish in project["optional-dependencies"]["ray"]}
    assert ray == {"housenumber[score]", "ray[data,default]"}
    environment = image_environment("score")
    assert environment["HOUSENUMBER_PROVIDER"] == "cpu"
    # A repository is the service's: with one, --model would be refused.
    assert "HOUSENUMBER_MODEL_REPOSITORY" not in environment
    assert {Path(pod["containers"][0]["image"]).name for _, pod in PODS} == {"housenumber:score"}
