"""The gate: readers pass it. That each kind of fault is named is tested with the export."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from exporting import FAULTS, broken, combined_artifact, lively_checkpoint, shorten_parity
from narrow import narrow_networks

from export import parity
from export.artifact import Label, build_artifact
from export.commands import verify_command
from export.operators import CUDA_OPERATORS
from export.verify import CHECKS, Check, verify
from models.checkpoint import load_reader
from models.served import ServedReader
from models.transformer import SpatialTransformer
from service.artifact import ArtifactMetadata, parse_metadata

READERS = {"compact": 1, "compact_points": 1, "compact_cnn": 0, "cnn": 0, "st_cnn_single": 1, "st_cnn_multi": 4}
"""Name -> transformers."""


class Exported(NamedTuple):
    artifact: bytes
    weights: Path


@pytest.fixture(scope="session")
def exports() -> Iterator[dict[str, Exported]]:
    """Each reader at 64 px. The folder goes with the session: the paper's readers weigh 150 MB each."""
    with TemporaryDirectory() as folder:
        weights = {name: lively_checkpoint(Path(folder, f"{name}.safetensors"), name) for name in READERS}
        yield {name: Exported(build_artifact(path, Label()), path) for name, path in weights.items()}


@pytest.fixture
def short_parity(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_parity(monkeypatch)


def metadata_of(artifact: bytes) -> ArtifactMetadata:
    model = onnx.load_model_from_string(artifact)
    return parse_metadata({entry.key: entry.value for entry in model.metadata_props})


@pytest.mark.parametrize("name", READERS)
def test_every_reader_passes_every_check(exports: dict[str, Exported], name: str) -> None:
    started: list[str] = []
    checks = verify(*exports[name], started.append)
    assert [check for check in checks if not check.passed] == []
    assert started == [check.name for check in checks] == list(CHECKS)
    assert metadata_of(exports[name].artifact).transformers == READERS[name]


def test_the_probe_would_notice(exports: dict[str, Exported]) -> None:
    """Parity proves something only if answers depend on the image and on theta."""
    images = torch.from_numpy(parity.probe_images(2, 64, 64))
    for name, exported in exports.items():
        served = ServedReader(load_reader(exported.weights)[0])
        transformers = {key: part for key, part in served.named_modules() if isinstance(part, SpatialTransformer)}
        assert len(transformers) == READERS[name]
        answers = []
        for theta in (parity.THETAS[case] for case in ("as trained", "identity", "rotated")):
            if theta is not None:
                parity.set_theta(onnx.ModelProto(), transformers, theta)
            with torch.inference_mode():
                answers.append(served(images)[0].numpy())
        between_images = np.abs(answers[0][0] - answers[0][1]).max()
        assert between_images > 100 * parity.TOLERANCES["probabilities"], name
        if transformers:
            between_thetas = min(np.abs(a - b).max() for a, b in itertools.pairwise(answers))
            assert between_thetas > 100 * parity.TOLERANCES["probabilities"], name


def test_the_probe_has_smooth_and_rough_images() -> None:
    images = parity.probe_images(32, 64, 64).astype(float)
    assert images.shape == (32, 64, 64, 3)
    roughness = np.abs(np.diff(images, axis=2)).mean(axis=(1, 2, 3))
    assert (roughness[0::2] < 12).all()
    assert (roughness[1::2] > 60).all()
    assert images.std(axis=(1, 2, 3)).min() > 20


def test_the_list_of_operators_is_what_is_used(exports: dict[str, Exported], tmp_path: Path) -> None:
    """Each of these graphs was taken whole by a strict session of ONNX Runtime's CUDA provider."""
    artifacts = [exported.artifact for exported in exports.values()]
    with narrow_networks():
        weights = lively_checkpoint(tmp_path / "maxout.safetensors", "maxout_cnn", 32)
        artifacts.append(build_artifact(weights, Label()))
    artifacts += [combined_artifact(family, "bilinear")[0] for family in ("rotation", "projective", "thin plate")]
    used = {node.op_type for artifact in artifacts for node in onnx.load_model_from_string(artifact).graph.node}
    assert used == CUDA_OPERATORS


@pytest.mark.parametrize("operator", ["AffineGrid", "Shape", "Size", "Expand", "ConstantOfShape", "NonZero", "Loop"])
def test_what_would_run_on_the_cpu_is_not_on_the_list(operator: str) -> None:
    assert operator not in CUDA_OPERATORS


@pytest.mark.usefixtures("short_parity")
def test_a_fault_of_one_kind_fails_one_check(exports: dict[str, Exported]) -> None:
    exported = exports["compact"]
    for name in ("operator of shapes", "unknown versions", "other weights", "changed weight", "corners swapped"):
        fault, check, _ = FAULTS[name]
        failed = failures(broken(exported.artifact, fault), exported.weights)
        assert [failure.name for failure in failed] == [check], name
        assert "\n" not in failed[0].detail


def failures(artifact: bytes, weights: Path) -> list[Check]:
    return [check for check in verify(artifact, weights) if not check.passed]


@pytest.mark.usefixtures("short_parity")
def test_weights_of_another_reader(exports: dict[str, Exported]) -> None:
    failed = {check.name for check in failures(exports["compact"].artifact, exports["cnn"].weights)}
    assert failed == {"weights", "parity"}


def test_a_checkpoint_that_is_none(exports: dict[str, Exported], tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"not weights")
    failed = failures(exports["compact"].artifact, tmp_path / "weights.safetensors")
    assert [check.name for check in failed] == ["weights", "parity"]
    assert all("\n" not in check.detail for check in failed)


@pytest.mark.parametrize("content", [b"", b"\x00\x01\x02", b"\x89PNG\r\n\x1a\n" * 9])
def test_a_file_that_is_no_graph(content: bytes, tmp_path: Path) -> None:
    failed = failures(content, tmp_path / "none.safetensors")
    assert failed[0].name == "graph"


class TestCommand:
    def run(self, *arguments: str | Path) -> tuple[int, str]:
        result = CliRunner().invoke(verify_command, [str(argument) for argument in arguments], env={"COLUMNS": "400"})
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result.exit_code, result.output

    @pytest.mark.usefixtures("short_parity")
    def test_takes_the_weights_beside_the_model(self, exports: dict[str, Exported], tmp_path: Path) -> None:
        (tmp_path / "reader.onnx").write_bytes(exports["compact"].artifact)
        (tmp_path / "reader.safetensors").write_bytes(exports["compact"].weights.read_bytes())
        code, output = self.run(tmp_path / "reader.onnx")
        assert code == 0
        assert output.count("│ pass ") == len(CHECKS)
        assert "FAIL" not in output

    def test_without_weights_parity_cannot_be_shown(self, exports: dict[str, Exported], tmp_path: Path) -> None:
        (tmp_path / "reader.onnx").write_bytes(exports["compact"].artifact)
        code, output = self.run(tmp_path / "reader.onnx")
        assert code == 1
        assert "parity cannot be shown" in output
        assert "--weights" in output

    @pytest.mark.usefixtures("short_parity")
    def test_a_failed_check_is_exit_code_one(self, exports: dict[str, Exported], tmp_path: Path) -> None:
        exported = exports["compact"]
        (tmp_path / "reader.onnx").write_bytes(broken(exported.artifact, FAULTS["nearest"][0]))
        code, output = self.run(tmp_path / "reader.onnx", "--weights", exported.weights)
        assert code == 1
        assert "FAIL" in output
        assert "nearest" in output

    def test_a_model_that_is_not_there(self, tmp_path: Path) -> None:
        code, output = self.run(tmp_path / "reader.onnx")
        assert code == 2
        assert "does not exist" in output
