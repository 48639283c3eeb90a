"""A checksum file beside an artifact, and artifacts that are not what it says."""

import hashlib
import subprocess
from pathlib import Path

import pytest

from service.artifact import ArtifactError
from service.checksum import line_for, read_checked
from service.engine import OnnxEngine
from service.settings import DEFAULT_MODEL

SHA256 = hashlib.sha256(b"model").hexdigest()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "reader.onnx"
    path.write_bytes(b"model")
    return path


def test_without_a_checksum_a_file_is_what_it_is(model: Path) -> None:
    assert read_checked(model) == (b"model", SHA256)


@pytest.mark.parametrize("name", ["reader.onnx.sha256", "SHA256SUMS"])
@pytest.mark.parametrize(
    "line", ["{}", "{}  reader.onnx", "{} *reader.onnx", "{}  ./reader.onnx\n", "\n{}  other.onnx\n{}  reader.onnx\r\n"]
)
def test_a_checksum_beside_the_file_must_match(model: Path, name: str, line: str) -> None:
    sums = model.with_name(name)
    for digest in (SHA256, SHA256.upper()):
        sums.write_text(line.replace("{}", "0" * 64, line.count("{}") - 1).format(digest), newline="")
        assert read_checked(model) == (b"model", SHA256)
    sums.write_text(line.replace("{}", SHA256, line.count("{}") - 1).format("f" * 64), newline="")
    with pytest.raises(ArtifactError, match=f"its SHA-256 is {SHA256}, {name} says {'f' * 64}; copy both once more"):
        read_checked(model)


@pytest.mark.parametrize("content", [b"", b"abc", f"{SHA256}  other.onnx".encode(), b"\xff\xfe", SHA256[:-1].encode()])
def test_a_checksum_that_says_nothing_is_refused(model: Path, content: bytes) -> None:
    model.with_name("SHA256SUMS").write_bytes(content)
    with pytest.raises(ArtifactError, match="SHA256SUMS: "):
        read_checked(model)


def test_it_is_written_as_sha256sum_reads_it(model: Path) -> None:
    model.with_name("sums").write_text(line_for(model.name, SHA256))
    subprocess.run(["sha256sum", "--check", "--strict", "sums"], cwd=model.parent, check=True, capture_output=True)


def test_an_artifact_in_which_a_bit_was_lost_is_not_loaded(tmp_path: Path) -> None:
    """It would load: a weight of another value is a weight."""
    content = bytearray(DEFAULT_MODEL.read_bytes())
    content[len(content) // 2] ^= 1
    copied = tmp_path / DEFAULT_MODEL.name
    copied.write_bytes(content)
    OnnxEngine(copied, "cpu", intra_op_threads=1)
    sums = DEFAULT_MODEL.with_name(DEFAULT_MODEL.name + ".sha256")
    copied.with_name(sums.name).write_bytes(sums.read_bytes())
    with pytest.raises(ArtifactError, match="copy both once more"):
        OnnxEngine(copied, "cpu", intra_op_threads=1)
