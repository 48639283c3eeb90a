"""Export: what is written, that it is the same every time, and what is not written."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from exporting import FAULTS, TRAINING, broken, lively_checkpoint, shorten_parity

from export import parity
from export.artifact import Label, build_artifact
from export.commands import export_command
from models.checkpoint import load_reader, weights_sha256
from models.served import ServedReader
from service.checksum import read_checked
from service.engine import OnnxEngine

FIGURES = {"collections": {"plates": {"whole": 0.91}}}
OPTIONS = ("--name", "doors", "--model-version", "3", "--threshold", "0.7", "--temperature", "1.25")
LABEL = Label("doors", "3", 0.7, 1.25, FIGURES)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lively_checkpoint(tmp_path_factory.mktemp("weights") / "compact.safetensors", "compact")


@pytest.fixture(scope="module")
def evaluation(checkpoint: Path) -> Path:
    path = checkpoint.with_name("figures.json")
    path.write_text(json.dumps(FIGURES), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def artifact(checkpoint: Path) -> bytes:
    """Built in this process."""
    return build_artifact(checkpoint, LABEL)


@pytest.fixture(scope="module")
def elsewhere(
    checkpoint: Path, evaluation: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, "subprocess.CompletedProcess[str]"]:
    """The file the command writes in another process, in another folder."""
    folder = tmp_path_factory.mktemp("elsewhere")
    arguments = [checkpoint, "--output", "new/reader.onnx", *OPTIONS, "--evaluation", evaluation]
    program = "from export.commands import export_command; export_command()"
    ran = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], cwd=folder, capture_output=True, text=True, check=False
    )
    return folder / "new" / "reader.onnx", ran


def test_two_processes_write_the_same_bytes(
    artifact: bytes, elsewhere: tuple[Path, "subprocess.CompletedProcess[str]"]
) -> None:
    path, _ = elsewhere
    assert path.read_bytes() == artifact
    assert sorted(path.parent.iterdir()) == [path, path.with_name("reader.onnx.sha256")]


def test_the_user_sees_one_line(elsewhere: tuple[Path, "subprocess.CompletedProcess[str]"]) -> None:
    _, ran = elsewhere
    assert ran.returncode == 0
    assert ran.stderr.strip() == ""
    assert ran.stdout.count("\n") == 1
    assert ran.stdout.startswith("new/reader.onnx: ")
    assert "7 checks passed" in ran.stdout


def test_nothing_names_the_machine_or_the_source(artifact: bytes, checkpoint: Path) -> None:
    model = onnx.load_model_from_string(artifact)
    graph = model.graph
    parts = (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer)
    assert not any(part.metadata_props or part.doc_string for part in parts)
    assert [entry.key for entry in model.metadata_props] == ["housenumber"]
    for trace in (b".py", b"stack_trace", str(Path(__file__).parent.parent).encode(), str(checkpoint.parent).encode()):
        assert trace not in artifact


def test_the_service_reads_what_it_must_know(artifact: bytes, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "reader.onnx").write_bytes(artifact)
    metadata = OnnxEngine(tmp_path / "reader.onnx", "cpu").metadata
    assert (metadata.name, metadata.version, metadata.threshold, metadata.temperature) == ("doors", "3", 0.7, 1.25)
    assert (metadata.reader, metadata.input_size, metadata.transformers) == ("compact", (64, 64), 1)
    assert (metadata.training, metadata.evaluation) == (TRAINING, FIGURES)
    assert metadata.weights_sha256 == weights_sha256(checkpoint)
    assert metadata.versions["torch"] == torch.__version__.split("+")[0]
    assert metadata.versions["opset"] == "18"


def test_the_service_answers_as_the_checkpoint_does(artifact: bytes, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "reader.onnx").write_bytes(artifact)
    images = np.random.default_rng(5).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    outputs = OnnxEngine(tmp_path / "reader.onnx", "cpu").infer(images)
    reader, _ = load_reader(checkpoint)
    with torch.inference_mode():
        probabilities, theta, boxes = ServedReader(reader, LABEL.temperature)(torch.from_numpy(images))
    np.testing.assert_allclose(outputs.probabilities, probabilities.numpy(), atol=1e-4)
    np.testing.assert_allclose(outputs.theta, theta.numpy(), atol=1e-4)
    np.testing.assert_allclose(outputs.boxes, boxes.numpy(), atol=1e-4)
    np.testing.assert_allclose(outputs.probabilities.sum(axis=-1), 1, atol=1e-5)


def test_compact_is_small(artifact: bytes, checkpoint: Path) -> None:
    """What the repository carries: weights and artifact together."""
    assert len(artifact) + checkpoint.stat().st_size <= 16e6


def test_the_temperature_is_in_the_graph(artifact: bytes, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "reader.onnx").write_bytes(artifact)
    images = parity.probe_images(3, 64, 64)
    reader, _ = load_reader(checkpoint)
    with torch.inference_mode():
        logits = reader(torch.from_numpy(images).permute(0, 3, 1, 2) / 255).logits.double()
    expected = torch.exp(logits / 1.25) / torch.exp(logits / 1.25).sum(dim=-1, keepdim=True)
    outputs = OnnxEngine(tmp_path / "reader.onnx", "cpu").infer(images)
    np.testing.assert_allclose(outputs.probabilities, expected.numpy(), atol=1e-4)


class TestRefusals:
    """The command in this process, with an artifact that is built already."""

    @pytest.fixture(autouse=True)
    def short_parity(self, monkeypatch: pytest.MonkeyPatch) -> None:
        shorten_parity(monkeypatch)

    def run(self, *arguments: str | Path) -> tuple[int, str]:
        result = CliRunner().invoke(export_command, [str(argument) for argument in arguments], env={"COLUMNS": "400"})
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result.exit_code, result.output

    @pytest.mark.parametrize("name", FAULTS)
    def test_what_fails_verification_is_not_written(
        self, name: str, artifact: bytes, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fault, check, says = FAULTS[name]
        monkeypatch.setattr("export.commands.build_artifact", lambda *_: broken(artifact, fault))
        earlier = tmp_path / "reader.onnx"
        earlier.write_bytes(b"what was there")
        code, output = self.run(checkpoint, "--output", earlier)
        assert code == 1
        failed = next(line for line in output.splitlines() if line.split()[1:2] == [check])
        assert "FAIL" in failed
        assert says in failed
        assert "not written" in output
        assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"what was there"]

    def test_what_passes_is(
        self, artifact: bytes, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("export.commands.build_artifact", lambda *_: artifact)
        earlier = tmp_path / "reader.onnx"
        earlier.write_bytes(b"what was there")
        assert self.run(checkpoint, "--output", earlier)[0] == 0
        assert {path.name for path in tmp_path.iterdir()} == {"reader.onnx", "reader.onnx.sha256"}
        assert read_checked(earlier) == (artifact, hashlib.sha256(artifact).hexdigest())

    def test_not_a_checkpoint(self, tmp_path: Path) -> None:
        (tmp_path / "a.safetensors").write_bytes(b"not weights")
        code, output = self.run(tmp_path / "a.safetensors", "--output", tmp_path / "reader.onnx")
        assert code == 1
        assert output.startswith("Error: ")
        assert output.count("\n") == 1

    @pytest.mark.parametrize("content", ["{", "[1, 2]", "\x00", '{"whole": NaN}'])
    def test_figures_that_are_none(self, content: str, checkpoint: Path, tmp_path: Path) -> None:
        (tmp_path / "figures.json").write_text(content, encoding="utf-8")
        code, output = self.run(
            checkpoint, "--output", tmp_path / "reader.onnx", "--evaluation", tmp_path / "figures.json"
        )
        assert code == 2
        assert "figures.json is not" in output

    @pytest.mark.parametrize("measured", [{"temperature": 1.5}, {"temperature": 1.0, "threshold": 0.25}])
    def test_figures_measured_with_another_confidence(
        self, measured: dict[str, float], checkpoint: Path, tmp_path: Path
    ) -> None:
        """They would stand in a file whose readings they are not of."""
        (tmp_path / "figures.json").write_text(json.dumps({"model": measured}), encoding="utf-8")
        code, output = self.run(
            checkpoint, "--output", tmp_path / "reader.onnx", "--evaluation", tmp_path / "figures.json"
        )
        assert code == 2
        assert "was measured at" in output
        assert not (tmp_path / "reader.onnx").exists()

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("--threshold", "1.5"),
            ("--threshold", "nan"),
            ("--temperature", "0"),
            ("--temperature", "nan"),
            ("--temperature", "inf"),
            ("--temperature", "warm"),
            ("--name", ""),
        ],
    )
    def test_options_that_make_no_sense(self, option: str, value: str, checkpoint: Path, tmp_path: Path) -> None:
        code, output = self.run(checkpoint, "--output", tmp_path / "reader.onnx", option, value)
        assert code == 2
        assert option in output

    def test_a_checkpoint_is_not_replaced_by_its_artifact(self, checkpoint: Path) -> None:
        before = checkpoint.read_bytes()
        code, output = self.run(checkpoint, "--output", checkpoint)
        assert code == 2
        assert "does not end in .onnx" in output
        assert checkpoint.read_bytes() == before

    def test_a_place_that_cannot_be_written(
        self, artifact: bytes, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("export.commands.build_artifact", lambda *_: artifact)
        (tmp_path / "file").write_bytes(b"")
        code, output = self.run(checkpoint, "--output", tmp_path / "file" / "reader.onnx")
        assert code == 1
        assert "cannot be written" in output
