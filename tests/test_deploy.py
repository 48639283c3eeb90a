"""What installs and builds the project: pins and the Makefile. Containers are in test_containers.py."""

import re
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_every_dependency_is_pinned() -> None:
    pinned = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            pinned[re.sub(r"[-_.]+", "-", name).lower()] = version
    wanted = [
        *PROJECT["dependencies"],
        *PROJECT["optional-dependencies"]["tracing"],
        *PROJECT["optional-dependencies"]["train"],
        *PROJECT["optional-dependencies"]["dev"],
    ]
    names = {re.sub(r"[-_.]+", "-", re.split(r"[\[<>=;! ]", wish)[0]).lower() for wish in wanted} - {
        "housenumber",
        "onnxruntime",
    }
    assert names <= set(pinned)
    assert all(pinned.values())


def test_make_serves_or_tests_as_it_is_told() -> None:
    commands = {"serve": "housenumber serve", "test": "python -m pytest"}
    for target in commands:
        shown = subprocess.run(
            ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        assert [name for name, command in commands.items() if command in shown] == [target]
