"""The Dockerfile and the compose file as the tests read them, and the tools of a machine that check such files."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent

Instruction = tuple[str, str]

PACKAGES = {"haproxy": "haproxy", "promtool": "prometheus"}


def tool(name: str) -> str:
    """The path of a program that Debian has; a test that needs it fails where it is missing."""
    found = shutil.which(name, path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
    if found is None:
        pytest.fail(f"{name} is missing: apt-get install {PACKAGES[name]}", pytrace=False)
    return found


def in_environment(**variables: str) -> dict[str, str]:
    """Variables of a process that finds `python` and `housenumber` where a container has them: on its path."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", **variables}


# -- the Dockerfile --------------------------------------------------------------------------------------------------


def stages() -> dict[str, tuple[str, list[Instruction]]]:
    """name -> (what it is built from, its instructions), in the file's order; continued lines joined."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
    found: dict[str, tuple[str, list[Instruction]]] = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        name, arguments = line.split(maxsplit=1)
        if name == "FROM":
            parent, _, stage = arguments.partition(" AS ")
            found[stage] = (parent, instructions := [])
        else:
            instructions.append((name, arguments.strip()))
    return found


def image(target: str) -> list[Instruction]:
    """Every instruction that an image is made by, those of the stages under it first."""
    if target not in stages():
        return []
    parent, instructions = stages()[target]
    return image(parent) + instructions


def arguments_of(target: str, instruction: str) -> list[str]:
    return [arguments for name, arguments in image(target) if name == instruction]


def image_environment(target: str) -> dict[str, str]:
    pairs = [word.partition("=") for line in arguments_of(target, "ENV") for word in shlex.split(line)]
    return {name: value for name, _, value in pairs if name != "PATH"}


def image_command(target: str) -> list[str]:
    command: list[str] = json.loads(arguments_of(target, "CMD")[-1])
    return command


def image_health_check(target: str) -> list[str]:
    command: list[str] = json.loads(arguments_of(target, "HEALTHCHECK")[-1].split(" CMD ", 1)[1])
    return command


# -- docker-compose.yml ----------------------------------------------------------------------------------------------


def _compose() -> dict[str, Any]:
    """The compose file with the defaults of its variables."""
    text = (ROOT / "docker-compose.yml").read_text()
    composed: dict[str, Any] = yaml.safe_load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text))
    return composed


COMPOSE = _compose()


def replica_environment(service: str = "reader") -> dict[str, str]:
    """What a replica of the compose file finds in its environment."""
    definition = COMPOSE["services"][service]
    return {**image_environment(definition["build"]["target"]), **definition["environment"]}


def seconds(text: str) -> float:
    """HAProxy's, compose's and Docker's `500ms`, `30s`, `5m`, `1h`."""
    number, unit = re.fullmatch(r"([\d.]+)(ms|s|m|h)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[unit]
