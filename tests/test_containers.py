"""The Dockerfile, docker-compose.yml and what Prometheus and Grafana are given, checked without a container engine.

Every file that is copied or mounted is there, every setting is one, what must be longer is longer; and the very
commands run, with the environment a container would have.
"""

import json
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from balancer import CONFIGURATION, PATIENCE_S, free_port
from containers import (
    COMPOSE,
    PACKAGES,
    ROOT,
    arguments_of,
    image,
    image_command,
    image_environment,
    image_health_check,
    in_environment,
    replica_environment,
    seconds,
    stages,
    tool,
)
from serving import wait_until
from tiny_reader import write_version

from service.settings import ENV_PREFIX, Settings

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TARGETS = ("cpu", "gpu")
DOCUMENTATION = (ROOT / "docs/deployment.md").read_text()
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
READERS = ("reader", "reader-gpu")
PROMETHEUS: dict[str, Any] = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())


def settings_of(environment: dict[str, str]) -> Settings:
    """What a process with this environment would take for its settings; raises for a variable that is none."""
    ours = {name: value for name, value in environment.items() if name.startswith(ENV_PREFIX)}
    return Settings.model_validate({name.removeprefix(ENV_PREFIX).lower(): value for name, value in ours.items()})


def haproxy(setting: str) -> str:
    """The value of a setting of the balancer."""
    (value,) = re.findall(rf"^\s+{setting} (\S+)", CONFIGURATION.read_text(), re.MULTILINE)
    return str(value)


# -- the image -------------------------------------------------------------------------------------------------------


def test_the_last_target_is_the_one_without_a_gpu() -> None:
    assert list(stages())[-1] == "cpu"
    for parent, _ in stages().values():
        assert parent in stages() or re.fullmatch(r"python:3\.\d+-slim-\w+", parent)


@pytest.mark.parametrize("stage", stages())
def test_what_a_stage_copies_is_there(stage: str) -> None:
    let_in = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for name, arguments in stages()[stage][1]:
        if name != "COPY":
            continue
        if arguments.startswith("--from="):
            assert arguments.split()[0].removeprefix("--from=") in list(stages())[: list(stages()).index(stage)]
            continue
        for source in arguments.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert source == "." or source.split("/")[0] in let_in, source
    # What `pip install .` wants to see.
    assert {PROJECT["readme"], "housenumber", "service", "export", "models"} <= set(let_in)
    assert all((ROOT / path).exists() for path in let_in)


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_is_made_of_one_onnxruntime_and_of_no_torch(target: str) -> None:
    (install,) = [args.split()[0].removeprefix("--from=") for args in arguments_of(target, "COPY") if "--from" in args]
    commands = [command for line in arguments_of(install, "RUN") for command in line.split(" && ")]
    installs = [command for command in commands if re.match(r"pip .*\binstall\b", command)]
    *dependencies, itself = installs
    assert itself.endswith("install --no-deps .")
    assert all("-c constraints.txt" in command for command in dependencies)
    runtimes = re.findall(r"onnxruntime\S*", " ".join(installs))
    assert len(runtimes) == 1

    (list_wishes,) = [command for command in commands if command.startswith("python -c")]
    printed = subprocess.run(
        ["sh", "-c", list_wishes.split(" > ")[0]], cwd=ROOT, env=in_environment(), capture_output=True, check=True
    )
    wishes = printed.stdout.decode().splitlines()
    wanted = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["tracing"]
    assert set(wishes) == {wish for wish in wanted if not wish.startswith("onnxruntime")}
    assert not any("torch" in wish for wish in wishes)

    if target == "gpu":
        assert "-c constraints-cuda.txt" in installs[1]
        (cuda,) = PROJECT["optional-dependencies"]["cuda"]
        assert runtimes[0].strip('"') == re.split("[<>=]", cuda)[0]
    else:
        assert runtimes[0] in {re.split("[<>=]", wish)[0] for wish in PROJECT["dependencies"]}


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_as_an_ordinary_user_and_holds_no_tools(target: str) -> None:
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", arguments_of(target, "USER")[-1])
    assert arguments_of(target, "STOPSIGNAL") == ["SIGTERM"]
    assert not re.search(r"apt|pip|gcc|curl", " ".join(arguments_of(target, "RUN")))
    # A secret in an image can be read by everybody who has it.
    assert not re.search(r"key|password|token", " ".join(image_environment(target)), re.IGNORECASE)


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_serves_the_model_that_comes_with_it(target: str) -> None:
    settings = settings_of(image_environment(target))
    assert settings.host == "0.0.0.0"
    assert arguments_of(target, "EXPOSE") == [str(settings.port)]
    assert settings.provider == {"cpu": "cpu", "gpu": "cuda"}[target]
    copies = dict(
        arguments.split() for name, arguments in image(target) if name == "COPY" and "--from" not in arguments
    )
    assert {target: source for source, target in copies.items()} == {str(settings.model_repository): "models/artifacts"}
    assert list((ROOT / "models/artifacts").glob("*/*/model.onnx"))


def test_the_commands_of_a_container_run(tmp_path: Path) -> None:
    write_version(tmp_path / "models", 1)
    port = free_port("0.0.0.0")
    environment = in_environment(
        **replica_environment()
        | {"HOUSENUMBER_PORT": str(port), "HOUSENUMBER_MODEL_REPOSITORY": str(tmp_path / "models")}
    )

    def healthy() -> bool:
        return subprocess.run(image_health_check("cpu"), env=environment, capture_output=True).returncode == 0

    assert not healthy()
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(image_command("cpu"), env=environment, cwd=tmp_path, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            wait_until(healthy, PATIENCE_S)
            assert client.get("/readyz").status_code == 200
            server.send_signal(getattr(signal, arguments_of("cpu", "STOPSIGNAL")[0]))
            wait_until(lambda: client.get("/readyz").status_code == 503)
            assert not healthy()
        assert server.wait(PATIENCE_S) == 0, (tmp_path / "log").read_text()
    finally:
        server.kill()
        server.wait()
    # The root may be read-only: nothing was written where it runs.
    assert {path.name for path in tmp_path.iterdir()} == {"models", "log"}


# -- docker-compose.yml ----------------------------------------------------------------------------------------------


def test_compose_follows_its_specification() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    checked = subprocess.run([*command, ROOT / "docker-compose.yml"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_locked_down(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "cap_add" not in service
    assert "privileged" not in service
    assert service["restart"] == "unless-stopped"
    published = [port for port in service.get("ports", []) if not port.startswith("127.0.0.1:")]
    assert bool(published) == (name == "balancer")
    for volume in service.get("volumes", []):
        source, _, target = volume.partition(":")
        if source.startswith("."):
            assert (ROOT / source).exists()
            assert target.endswith(":ro")
        else:
            assert source in COMPOSE["volumes"]


@pytest.mark.parametrize("name", [name for name in SERVICES if name not in READERS])
def test_an_image_of_others_is_pinned(name: str) -> None:
    image = SERVICES[name]["image"]
    assert re.fullmatch(r"[\w/]+:v?\d+\.\d+(\.\d+)?(-\w+)?", image)
    moving, exact = DOCUMENTATION.split("**Images of others.**")[1].split("exact versions")
    assert f"`{image}`" in (exact if re.search(r":v?\d+\.\d+\.\d+", image) else moving)


@pytest.mark.parametrize("name", READERS)
def test_a_reader_is_the_image(name: str) -> None:
    service = SERVICES[name]
    target = service["build"]["target"]
    assert target in TARGETS
    assert service["image"] == f"housenumber:{target}"
    assert not {"command", "entrypoint", "healthcheck", "user", "stop_signal"} & set(service)  # the image's own
    assert not set(service["environment"]) & set(image_environment(target))
    (volume,) = service["volumes"]
    models, mounted, _ = volume.split(":")
    settings = settings_of(replica_environment(name))
    assert Path(mounted) == settings.model_repository
    assert list((ROOT / models).glob("*/*/model.onnx"))
    assert service["expose"] == [str(settings.port)]
    assert COMPOSE["networks"]["inside"] == {"internal": True}
    assert list(service["networks"]) == ["inside"]
    # Threads follow the limit; memory must do for the largest images in all of them, 16 bytes a pixel at worst.
    limits = service["deploy"]["resources"]["limits"]
    assert int(limits["memory"].removesuffix("G")) * 2**30 > float(limits["cpus"]) * settings.max_pixels * 16


def test_the_variables_of_compose_are_documented() -> None:
    asked = re.findall(r"\$\{(\w+):-([^}]*)\}", (ROOT / "docker-compose.yml").read_text())
    rows = re.findall(r"^\| (`[A-Z_`, ]+`) \| (.*?) \|", DOCUMENTATION, re.MULTILINE)
    told = {name: defaults for names, defaults in rows for name in re.findall(r"\w+", names)}
    assert set(told) == {name for name, _ in asked} | {"COMPOSE_PROFILES"}  # which is Compose's own
    assert all(default in told[name] for name, default in asked)


def test_there_is_room_for_the_readers_that_are_documented() -> None:
    room = re.search(r"server-template reader 1-(\d+) ", CONFIGURATION.read_text())
    assert room
    assert f"readers on the CPU, at most {room[1]} |" in DOCUMENTATION
    # Of a new image as many are started beside the old ones.
    assert f"room for {room[1]}, so at most {int(room[1]) // 2} can be renewed" in DOCUMENTATION


def test_gpu_readers_have_the_readers_name_and_start_only_when_asked_to() -> None:
    gpu = SERVICES["reader-gpu"]
    assert gpu["profiles"] == ["gpu"]
    assert gpu["networks"]["inside"]["aliases"] == ["reader"]
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])


@pytest.mark.parametrize("name", READERS)
def test_each_waits_longer_than_what_it_waits_for(name: str) -> None:
    settings = settings_of(replica_environment(name))
    request = settings.request_timeout_ms / 1000
    grace = seconds(SERVICES[name]["stop_grace_period"])
    assert grace > settings.drain_delay_s + settings.drain_timeout_s
    assert settings.drain_timeout_s > request
    # Two checks of the balancer, the second of which may have to wait, fit in the delay.
    check = re.search(r"check inter (\w+) ", CONFIGURATION.read_text())
    assert check
    assert settings.drain_delay_s >= seconds(check[1]) + seconds(haproxy("timeout check"))
    assert seconds(haproxy("timeout server")) > request
    assert seconds(haproxy("timeout client")) > settings.body_timeout_s
    assert seconds(haproxy("hard-stop-after")) < seconds(SERVICES["balancer"]["stop_grace_period"])


def test_the_balancer_of_compose_finds_the_readers() -> None:
    balancer = SERVICES["balancer"]
    defaults = dict(re.findall(r'"\$\{(\w+)-([^}]*)\}"', CONFIGURATION.read_text()))
    settings = settings_of(replica_environment())
    assert defaults["READERS"] == f"reader:{settings.port}"
    assert f":{balancer['ports'][0].split(':')[1]}" == defaults["LISTEN"]
    given = {name: value for name, value in balancer["environment"].items() if not name.startswith("MALLOC_")}
    assert given == {name: defaults[name] for name in ("RETRY_BYTES", "MAX_CONNECTIONS")}
    # A buffer for every connection, and a second one for what is at three readers.
    buffers = int(defaults["MAX_CONNECTIONS"]) + 3 * int(haproxy("default-server check .* maxconn"))
    memory = balancer["deploy"]["resources"]["limits"]["memory"]
    assert int(memory.removesuffix("G")) * 2**30 > buffers * int(defaults["RETRY_BYTES"])
    assert "inside" in balancer["networks"]
    assert balancer["volumes"][0].startswith(f"./{CONFIGURATION.relative_to(ROOT)}:")


def test_the_health_check_of_the_balancer(tmp_path: Path) -> None:
    kind, *command = SERVICES["balancer"]["healthcheck"]["test"]
    assert kind == "CMD"
    port = re.search(r"/dev/tcp/127\.0\.0\.1/(\d+)", command[-1])
    assert port
    assert f'"${{INSIDE-:{port[1]}}}"' in CONFIGURATION.read_text()
    free = free_port("127.0.0.1")
    command[-1] = command[-1].replace(port[0], f"/dev/tcp/127.0.0.1/{free}")

    def healthy() -> bool:
        return subprocess.run(command, capture_output=True).returncode == 0

    assert not healthy()
    configuration = tmp_path / "haproxy.cfg"
    for monitor in ("monitor fail if FALSE", "monitor fail if TRUE"):
        configuration.write_text(
            f"defaults\n mode http\n timeout client 9s\nfrontend inside\n bind 127.0.0.1:{free}\n"
            f" monitor-uri /readyz\n {monitor}\n"
        )
        process = subprocess.Popen([tool("haproxy"), "-db", "-f", configuration], stderr=subprocess.DEVNULL)
        try:
            if monitor.endswith("FALSE"):
                wait_until(healthy, PATIENCE_S)
            else:
                with httpx.Client(transport=httpx.HTTPTransport(retries=20), trust_env=False) as client:
                    assert client.get(f"http://127.0.0.1:{free}/readyz", timeout=PATIENCE_S).status_code == 503
                assert not healthy()
        finally:
            process.kill()
            process.wait()


# -- Prometheus and Grafana ------------------------------------------------------------------------------------------


def test_prometheus_takes_its_configuration_and_the_alerts() -> None:
    checked = subprocess.run(
        [tool("promtool"), "check", "config", ROOT / "deploy/prometheus/prometheus.yml"], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr
    alerts = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())
    assert f"{sum(len(group['rules']) for group in alerts['groups'])} rules found" in checked.stdout


def test_prometheus_takes_an_alertmanager_where_the_comment_has_one(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "deploy/prometheus", tmp_path, dirs_exist_ok=True)
    configuration = tmp_path / "prometheus.yml"
    configuration.write_text(re.sub(r"^# (alerting:|  .*)$", r"\1", configuration.read_text(), flags=re.MULTILINE))
    assert set(yaml.safe_load(configuration.read_text())) - set(PROMETHEUS) == {"alerting"}
    checked = subprocess.run([tool("promtool"), "check", "config", configuration], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


def test_prometheus_asks_every_reader_itself() -> None:
    jobs = {job["job_name"]: job for job in PROMETHEUS["scrape_configs"]}
    port = settings_of(replica_environment()).port
    (lookup,) = jobs["housenumber"]["dns_sd_configs"]
    assert (lookup["names"], lookup["type"], lookup["port"]) == (["reader"], "A", port)
    named = set(re.findall(r'job="(\w+)"', (ROOT / "deploy/prometheus/alerts.yml").read_text()))
    assert named <= set(jobs)
    (balancer,) = jobs["haproxy"]["static_configs"]
    (address,) = balancer["targets"]
    name, _, inside = address.partition(":")
    assert name in SERVICES
    assert f'"${{INSIDE-:{inside}}}"' in CONFIGURATION.read_text()
    assert "./deploy/prometheus:/etc/prometheus:ro" in SERVICES["prometheus"]["volumes"]
    assert "inside" in SERVICES["prometheus"]["networks"]


def test_grafana_is_given_prometheus_and_the_dashboard() -> None:
    provisioning = ROOT / "deploy/grafana/provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    assert source["type"] == "prometheus"
    assert httpx.URL(source["url"]).host in SERVICES
    (provider,) = yaml.safe_load((provisioning / "dashboards/housenumber.yml").read_text())["providers"]
    mounted = dict(volume.split(":")[:2] for volume in SERVICES["grafana"]["volumes"])
    assert mounted["./deploy/grafana/provisioning"] == "/etc/grafana/provisioning"
    dashboard = Path(mounted["./deploy/grafana/housenumber.json"])
    assert dashboard.parent == Path(provider["options"]["path"])
    assert json.loads((ROOT / "deploy/grafana/housenumber.json").read_text())["uid"] == "housenumber"


# -- what has to be installed ----------------------------------------------------------------------------------------


def test_what_the_tests_need_is_installed_in_ci() -> None:
    installed = re.findall(r"apt-get install (.*)", (ROOT / ".ci/run").read_text())
    assert len(installed) == 1
    assert set(PACKAGES.values()) <= set(installed[0].split())
