"""A start that fails: one line that says why, and an exit code of its own. With the real process."""

import os
import subprocess
import sys
from pathlib import Path

from service_process import python_finds
from tiny_reader import metadata, write_artifact


def start(tmp_path: Path, model: Path, *flags: str) -> tuple[int, list[str]]:
    """Exit code, and the lines of the log from CRITICAL on, of a service that two onnxruntimes are installed for."""
    for name in ("onnxruntime", "onnxruntime_gpu"):
        folder = tmp_path / f"{name}-1.31.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.31.0\n")
    command = [sys.executable, "-m", "housenumber", "serve", "--port", "0", "--log-format", "text"]
    ended = subprocess.run(
        [*command, "--model", str(model), *flags],
        env={**os.environ, **python_finds(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Traceback" not in ended.stderr
    return ended.returncode, [line for line in ended.stderr.splitlines() if "CRITICAL" in line]


def test_two_onnxruntimes_side_by_side_cannot_run_cuda(artifact: Path, tmp_path: Path) -> None:
    code, (line,) = start(tmp_path, artifact, "--provider", "cuda")
    assert code == 6
    assert "onnxruntime and onnxruntime-gpu are both installed, which breaks CUDA; the fix: `pip uninstall" in line


def test_an_artifact_of_another_format_is_refused(tmp_path: Path) -> None:
    newer = write_artifact(tmp_path / "newer.onnx", metadata(format_version=9).to_metadata_map())
    code, (line,) = start(tmp_path, newer, "--provider", "cpu")
    assert code == 5
    assert "newer.onnx: " in line
    assert "format version 9; this program understands version 1" in line
