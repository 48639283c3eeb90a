"""The Dockerfile, the compose file and the Makefile, checked without a container engine.

Every command they give exists and works, every file they copy is there, every setting they make is one.
"""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from click.testing import CliRunner
from serving import serving

from housenumber.cli import main
from service.engine import OnnxEngine
from service.settings import ENV_PREFIX, Settings

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) of the Dockerfile, continued lines joined."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


def arguments_of(instruction: str) -> list[str]:
    return [arguments for name, arguments in instructions() if name == instruction]


def ignored(path: str) -> bool:
    """Whether .dockerignore, which names what may go in, keeps a top-level path out."""
    return f"!{path}" not in (ROOT / ".dockerignore").read_text().splitlines()


def test_what_the_image_copies_is_there() -> None:
    copied = [source for arguments in arguments_of("COPY") for source in arguments.split()[:-1]]
    assert {"service", "models", "constraints.txt"} <= set(copied)
    for source in copied:
        assert (ROOT / source).exists(), source
        assert not ignored(source), source


def test_the_image_installs_an_extra_that_exists() -> None:
    (install,) = [run for run in arguments_of("RUN") if "pip install" in run]
    for extra, expected in (("", "."), ("cuda", ".[cuda]")):
        words = subprocess.run(
            ["sh", "-c", f'EXTRA={extra}; set -- {install}; for word; do echo "$word"; done'],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        assert words[-1] == expected
        assert words[:2] == ["pip", "install"]
        assert [words[i + 1] for i, word in enumerate(words) if word == "-c"] == [
            "constraints.txt",
            "constraints-cuda.txt",
        ]
    assert "cuda" in PROJECT["optional-dependencies"]


def test_the_image_serves_and_its_health_check_asks_the_server(engine: OnnxEngine) -> None:
    (command,) = arguments_of("CMD")
    name, *arguments = json.loads(command)
    assert name in PROJECT["scripts"]
    assert CliRunner().invoke(main, [*arguments, "--help"]).exit_code == 0

    check = json.loads(arguments_of("HEALTHCHECK")[0].split("CMD", 1)[1])
    assert check[:2] == ["python", "-c"]
    with serving(engine) as client:
        port = str(httpx.URL(client.base_url).port)
        healthy = subprocess.run([sys.executable, *check[1:]], env={"HOUSENUMBER_PORT": port}, capture_output=True)
    stopped = subprocess.run([sys.executable, *check[1:]], env={"HOUSENUMBER_PORT": port}, capture_output=True)
    assert (healthy.returncode, stopped.returncode != 0) == (0, True)


def test_the_image_does_not_run_as_root() -> None:
    assert arguments_of("USER")[-1] != "root"


@pytest.mark.parametrize("service", COMPOSE["services"])
def test_compose_services(service: str) -> None:
    definition = COMPOSE["services"][service]
    build = definition["build"]
    arguments = {} if isinstance(build, str) else build["args"]
    declared = {argument.partition("=")[0] for argument in arguments_of("ARG")}
    assert set(arguments) <= declared
    assert set(arguments.values()) <= set(PROJECT["optional-dependencies"])
    image = dict(word.split("=", 1) for line in arguments_of("ENV") for word in shlex.split(line))
    environment = {**image, **definition["environment"]}
    settings = {
        name.removeprefix(ENV_PREFIX).lower(): value
        for name, value in environment.items()
        if name.startswith(ENV_PREFIX)
    }
    checked = Settings.model_validate(settings)
    (port,) = definition["ports"]
    assert int(port.split(":")[1]) == checked.port
    assert checked.host == "0.0.0.0"
    # The engine must not kill what is still answering.
    grace = int(definition["stop_grace_period"].removesuffix("s"))
    assert grace > checked.drain_delay_s + checked.shutdown_timeout_s


def test_every_dependency_is_pinned() -> None:
    pinned = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            pinned[re.sub(r"[-_.]+", "-", name).lower()] = version
    wanted = [
        *PROJECT["dependencies"],
        *PROJECT["optional-dependencies"]["train"],
        *PROJECT["optional-dependencies"]["dev"],
    ]
    names = {re.sub(r"[-_.]+", "-", re.split(r"[\[<>=;! ]", wish)[0]).lower() for wish in wanted} - {
        "housenumber",
        "onnxruntime",
    }
    assert names <= set(pinned)
    assert all(pinned.values())


def test_make_names_its_two_commands() -> None:
    for target in ("serve", "test"):
        shown = subprocess.run(
            ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        assert "housenumber serve" in shown or "pytest" in shown
