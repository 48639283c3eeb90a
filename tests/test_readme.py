"""What the README shows is what happens: its commands run, its answers are the answers."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from serving import serving

from service.engine import OnnxEngine
from service.settings import DEFAULT_MODEL

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "100"}


def shown() -> list[tuple[str, str]]:
    """(command, output) of every `$ command` in the README's console blocks."""
    found = []
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            found.append((command, output.strip()))
    return found


def only(pattern: str) -> tuple[str, str]:
    (entry,) = [entry for entry in shown() if re.search(pattern, entry[0])]
    return entry


def sh(command: str) -> str:
    result = subprocess.run(command, shell=True, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    return result.stdout.strip()


@pytest.fixture(scope="module")
def shipped() -> Iterator[httpx.Client]:
    """The shipped artifact, served."""
    with serving(OnnxEngine(DEFAULT_MODEL, "cpu")) as client:
        yield client


def test_the_two_commands() -> None:
    commands = [command for command, _ in shown()]
    assert "make serve" in commands
    assert "make test" in commands


def test_the_call_gives_the_answer_shown(shipped: httpx.Client) -> None:
    command, output = only("^curl")
    assert "localhost:8000" in command
    answer = json.loads(sh(command.replace("http://localhost:8000", str(shipped.base_url).rstrip("/"))))
    expected = json.loads(output)
    assert answer["timing_ms"].keys() == expected["timing_ms"].keys()
    assert answer["model"].pop("provider") in {"CPUExecutionProvider", "CUDAExecutionProvider"}
    assert expected["model"].pop("provider") == "CPUExecutionProvider"
    assert answer["model"] == expected["model"]
    (found,), (promised,) = answer["predictions"], expected["predictions"]
    for of_found, of_promised in zip(found.pop("boxes"), promised.pop("boxes"), strict=True):
        np.testing.assert_allclose(of_found["corners"], of_promised["corners"], atol=0.05)
        np.testing.assert_allclose(of_found["theta"], of_promised["theta"], atol=1e-3)
    for digit, as_promised in zip(found.pop("digits"), promised.pop("digits"), strict=True):
        assert digit["digit"] == as_promised["digit"]
        assert digit["confidence"] == pytest.approx(as_promised["confidence"], abs=1e-3)
    assert found.pop("confidence") == pytest.approx(promised.pop("confidence"), abs=1e-3)
    assert found == promised


def test_predict_prints_the_table_shown() -> None:
    command, output = only(r"^housenumber predict \S+$")
    assert sh(command) == output


def test_every_other_housenumber_command_exists() -> None:
    others = [command for command, _ in shown() if command.startswith("housenumber")]
    assert len(others) >= 5
    for command in others:
        words = command.split()
        # A command of a group has two words before its arguments.
        name = words[1:3] if words[1] == "data" else words[1:2]
        options = [word for word in words if word.startswith("--")]
        help_text = sh(" ".join(["housenumber", *name, "--help"]))
        assert all(re.search(rf"{option}\b", help_text) for option in options), command


def test_pictures_and_links_are_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", README):
        link = "".join(target)
        assert link.startswith("http") or (ROOT / link).exists(), link
