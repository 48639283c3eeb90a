"""The command line of batch scoring: usage, what it needs, and how it says how far it is."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from scoring import folder_of, score

from service.scoring import progress
from service.scoring.parts import Counts
from service.scoring.progress import Meter, duration, observer


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--output"],
        ["--output", "out", "--engine", "cloud"],
        ["--output", "out", "--sample", "0"],
        ["--output", "out", "--limit", "0"],
        ["--output", "out", "--max-error-rate", "5"],
        ["--output", "nosuch://out"],
    ],
)
def test_wrong_usage_is_exit_code_2(artifact: Path, tmp_path: Path, flags: list[str]) -> None:
    result = score(artifact, folder_of(tmp_path, 1), *flags)
    assert result.exit_code == 2
    assert "Error: " in result.stderr
    assert "Traceback" not in result.output


def test_a_model_that_is_not_there_is_exit_code_5_and_writes_nothing(tmp_path: Path) -> None:
    result = score(tmp_path / "missing.onnx", folder_of(tmp_path / "in", 1), "--output", tmp_path / "out")
    assert result.exit_code == 5
    assert not (tmp_path / "out").exists()


def test_without_pyarrow_it_says_which_extra_to_install() -> None:
    code = """
import sys
sys.modules["pyarrow"] = None  # as if it were not installed
from housenumber.cli import main
main(["score", "in", "--output", "out"])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 4
    assert "pip install -e '.[score]'" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_scoring_loads_no_other_room_and_no_web_framework() -> None:
    code = """
import sys
import service.scoring.command
strangers = {"torch", "onnx", "models", "export", "fastapi", "starlette", "uvicorn", "fsspec", "pandas"}
print(sorted({name.partition(".")[0] for name in sys.modules} & strangers))
"""
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_serving_and_predicting_need_no_pyarrow() -> None:
    code = """
import sys
import service.app, service.commands
print("pyarrow" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that progress is measured by, in its only element."""
    now = [100.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    return now


def test_the_speed_is_that_of_this_run_alone(clock: list[float]) -> None:
    meter = Meter()
    assert meter.speed(5000, 0.5).left_s is None  # done by an earlier run
    clock[0] += 10
    speed = meter.speed(6000, 0.6)
    assert speed.images_per_s == pytest.approx(100)
    assert speed.left_s == pytest.approx(40)


def test_on_a_terminal_there_is_a_bar(clock: list[float]) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with observer(console) as observe:
        observe(Counts(1000, 1000), 0.1)
        clock[0] += 10
        observe(Counts(3000, 3000, errors={"bad_image": 7}), 0.3)
    assert isinstance(console.file, io.StringIO)
    assert "3,000 images, 200/s, 7 errors, 35 s left" in console.file.getvalue()


def test_elsewhere_there_is_a_line_every_ten_seconds(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"), observer(Console(file=io.StringIO())) as observe:
        for second in range(25):
            observe(Counts(100 * second, 100 * second, errors={"bad_image": second}), second / 100)
            clock[0] += 1
    lines = [record.__dict__["fields"] for record in caplog.records]
    assert [line["images"] for line in lines] == [1000, 2000]
    assert lines[1] == {"images": 2000, "errors": 20, "share": 0.2, "images_per_s": 100.0, "left_s": 80}


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (89, "89 s"), (600, "10 min"), (12_000, "3 h 20 min"), (187_200, "2 d 4 h")],
)
def test_durations_are_said_as_people_do(seconds: float, said: str) -> None:
    assert duration(seconds) == said
