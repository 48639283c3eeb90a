"""What the documentation shows: its commands with their answers, and the rows of its tables."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
_ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "COLUMNS": "100",
}


def shown(text: str) -> list[tuple[str, str]]:
    """(command, output) of every `$ command` in the console blocks of a page."""
    found = []
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            found.append((command, output.strip()))
    return found


def only(text: str, pattern: str) -> tuple[str, str]:
    (entry,) = [entry for entry in shown(text) if re.search(pattern, entry[0])]
    return entry


def sh(command: str) -> str:
    result = subprocess.run(command, shell=True, cwd=ROOT, env=_ENVIRONMENT, capture_output=True, text=True, check=True)
    return result.stdout.strip()


def section(text: str, title: str) -> str:
    """What stands under a heading of the second level."""
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    """The cells of every table row, without those that separate the heads from them."""
    lines = [line.strip()[1:-1].split("|") for line in text.splitlines() if re.match(r"\| *[^-| ]", line)]
    return [[cell.strip() for cell in cells] for cells in lines]


def check_answer(text: str, client: httpx.Client) -> None:
    """The one call of `/predict` that a page shows gives the answer shown, but for rounding, time and provider."""
    command, output = only(text, "^curl")
    assert "localhost:8000" in command
    answer = json.loads(sh(command.replace("http://localhost:8000", str(client.base_url).rstrip("/"))))
    expected = json.loads(output)
    assert answer["timing_ms"].keys() == expected["timing_ms"].keys()
    assert answer["model"].pop("provider") in {"CPUExecutionProvider", "CUDAExecutionProvider"}
    assert expected["model"].pop("provider") == "CPUExecutionProvider"
    assert answer["model"] == expected["model"]
    for found, promised in zip(answer["predictions"], expected["predictions"], strict=True):
        for of_found, of_promised in zip(found.pop("boxes"), promised.pop("boxes"), strict=True):
            np.testing.assert_allclose(of_found["corners"], of_promised["corners"], atol=0.05)
            np.testing.assert_allclose(of_found["theta"], of_promised["theta"], atol=1e-3)
        for digit, as_promised in zip(found.pop("digits"), promised.pop("digits"), strict=True):
            assert digit["digit"] == as_promised["digit"]
            assert digit["confidence"] == pytest.approx(as_promised["confidence"], abs=1e-3)
        assert found.pop("confidence") == pytest.approx(promised.pop("confidence"), abs=1e-3)
        assert found == promised
