"""Calibration: temperature and threshold are what their definitions say, and get into the artifact."""

import json
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from exporting import lively_checkpoint
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from serving import encode

from export.artifact import Label
from housenumber.cli import main
from models.checkpoint import load_reader, weights_sha256
from models.data.sample import Sample
from models.data.shards import write_shards
from models.evaluation.calibration import Answers, calibrate, read_calibration
from models.evaluation.checkpoint_engine import CheckpointEngine
from models.evaluation.confidence import (
    Acceptance,
    Bin,
    CalibrationError,
    expected_calibration_error,
    fit_temperature,
    fit_threshold,
    log_loss,
    reliability,
)
from models.evaluation.evaluate import read_samples
from models.served import ServedReader
from service.decoding import decode, pack
from service.imaging import Photo
from service.reader import Reader

DIGEST = "ab" * 32


@pytest.mark.parametrize("factor", [0.5, 1.0, 4.0])
def test_temperature_undoes_what_calibrated_logits_were_multiplied_by(factor: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(1, 2, 4000)
    correct = rng.random(4000) < 1 / (1 + np.exp(-logits))
    fitted = fit_temperature(lambda t: np.asarray(1 / (1 + np.exp(-factor * logits / t))), correct, np.ones(4000))
    assert fitted == pytest.approx(factor, rel=0.1)


# confidence in tenths (so that there are ties), answered, right, weight
rows = st.tuples(st.integers(0, 10), st.booleans(), st.booleans(), st.integers(1, 3))
Drawn = list[tuple[int, bool, bool, int]]


def threshold(drawn: Drawn, accuracy: float) -> float | None:
    confidence, answered, right, weights = (np.array(column) for column in zip(*drawn, strict=True))
    return fit_threshold(confidence / 10, answered, right, weights.astype(float), accuracy)


@given(st.lists(rows, min_size=1, max_size=14), st.sampled_from([0.5, 0.75, 0.9, 1.0]))
def test_the_threshold_accepts_the_most_that_is_accurate_enough(drawn: Drawn, accuracy: float) -> None:
    choices = [[row for row in drawn if row[1] and row[0] >= tenths] for tenths in range(11)]
    good = [some for some in choices if some and sum((right - accuracy) * w for _, _, right, w in some) > -1e-9]
    found = threshold(drawn, accuracy)
    accepted = [row for row in drawn if found is not None and row[1] and row[0] / 10 >= found]
    assert accepted == max(good, key=len, default=[])


def test_the_threshold_lies_halfway_to_the_next_confidence_below_or_to_zero() -> None:
    assert threshold([(9, True, True, 1), (5, True, False, 1)], 1.0) == pytest.approx(0.7)
    assert threshold([(9, True, True, 1), (5, True, True, 1)], 1.0) == pytest.approx(0.25)


def test_calibration_error_and_log_loss_by_hand() -> None:
    confidence, correct = np.array([0.0, 0.01, 0.5, 0.55, 1.0]), np.array([False, True, True, False, True])
    weights = np.array([1.0, 1, 2, 2, 6])
    bins = reliability(confidence, correct, weights)
    assert [index for index, part in enumerate(bins) if part] == [0, 7, 8, 14]
    assert bins[0] == Bin(share=2 / 12, confidence=0.005, accuracy=0.5)
    assert expected_calibration_error(bins) == pytest.approx((2 * 0.495 + 2 * 0.5 + 2 * 0.55 + 6 * 0) / 12)
    expected = -(np.log(0.01) + 2 * np.log(0.5) + 2 * np.log(0.45)) / 12
    assert log_loss(confidence, correct, weights) == pytest.approx(expected, abs=1e-6)


def test_acceptance_by_hand() -> None:
    taken, correct, numbered = np.array([[1, 1, 0, 1, 0], [1, 0, 0, 0, 1], [1, 1, 1, 0, 0]], np.bool_)
    found = Acceptance.of(taken, correct, numbered, np.array([1.0, 1, 2, 3, 3]))
    assert found == Acceptance(accepted=2 / 4, accepted_right=1 / 5, false_numbers=3 / 6)


def answers(count: int, seed: int = 0, sharpness: float = 2.0, name: str = "data") -> Answers:
    """Numbers of five digits, more and less certain, drawn from a softmax; the reader is `sharpness` times as sure."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1, (count, 5, 11))
    logits[..., 0] += rng.uniform(0, 12, (count, 1))
    logits = rng.permuted(logits, axis=-1)
    logits[..., 10] = -30  # never blank
    # The largest of logits plus Gumbel noise is a draw from the softmax.
    labels = ["".join(map(str, slots)) for slots in (logits + rng.gumbel(size=logits.shape)).argmax(-1)]
    probabilities = torch.from_numpy(logits * sharpness).softmax(-1).float().numpy()
    return Answers(name, probabilities, tuple(labels), tuple(f"{seed}/{index}" for index in range(count)))


class TestCalibrate:
    def test_a_reader_that_is_too_sure_becomes_honest(self) -> None:
        found = calibrate([answers(300, sharpness=4)], DIGEST, 0.98)
        assert found.temperature == pytest.approx(4, rel=0.3)
        assert found.after.log_loss < 0.7 * found.before.log_loss
        assert found.after.ece < 0.7 * found.before.ece
        assert (found.acceptance.accepted_right or 0) >= 0.98
        assert found.held_out is not None
        assert found.held_out.fit.log_loss < 0.7 * found.before.log_loss

    def test_each_path_counts_the_same(self) -> None:
        few, many = answers(60, 1, 1.0, "few"), answers(60, 2, 4.0, "many")
        repeated = Answers("many", np.tile(many.probabilities, (3, 1, 1)), many.labels * 3, many.sources * 3)
        once, often = (calibrate([few, other], DIGEST, 0.9) for other in (many, repeated))
        assert (often.temperature, often.threshold) == pytest.approx((once.temperature, once.threshold))
        assert (often.after.ece, often.after.log_loss) == pytest.approx((once.after.ece, once.after.log_loss))

    @pytest.mark.parametrize("label", ["", "123456"])
    def test_false_numbers_and_longer_numbers_are_wrong_when_accepted(self, label: str) -> None:
        # Seen as a number of five digits, if not with certainty.
        probabilities = torch.tensor(9.0 * np.eye(11)[pack("12345", 5)]).softmax(-1).float().numpy()
        false = Answers("false", np.tile(probabilities, (30, 1, 1)), (label,) * 30, tuple(map(str, range(30))))
        refused = calibrate([answers(150), false], DIGEST, 0.98).data[-1]
        assert (refused.right, refused.acceptance.accepted_right) == (0, None)
        taken = calibrate([answers(150), false], DIGEST, 0.1).data[-1].acceptance
        assert taken == Acceptance(*((None, 0, 1) if label == "" else (1, 0, None)))

    def test_photographs_that_cannot_be_read_count_as_wrong(self) -> None:
        data = answers(120)
        (whole,), (broken,) = (calibrate([part], DIGEST, 0.9).data for part in (data, replace(data, unreadable=30)))
        assert (broken.samples, broken.unreadable) == (150, 30)
        assert broken.right == pytest.approx(whole.right * 120 / 150)

    def test_data_that_determine_nothing_are_refused(self) -> None:
        data = answers(120)
        read = tuple(reading.number for reading in decode(data.probabilities))
        for labels in (read, ("",) * 120):  # all right, all wrong
            with pytest.raises(CalibrationError, match="120 samples give no temperature"):
                calibrate([replace(data, labels=labels)], DIGEST, 0.9)
        nothing = Answers("broken", np.empty((0, 5, 11), np.float32), (), (), 2)
        with pytest.raises(CalibrationError, match="broken"):
            calibrate([data, nothing], DIGEST, 0.9)

    def test_equal_file_stems_are_held_out_together(self) -> None:
        data = answers(120)
        cut = replace(data, sources=tuple(f"elsewhere/{source.split('/')[1]}.png" for source in data.sources))
        assert calibrate([cut], DIGEST, 0.9).held_out == calibrate([data], DIGEST, 0.9).held_out is not None
        assert calibrate([replace(data, sources=("same",) * 120)], DIGEST, 0.9).held_out is None

    def test_the_file_holds_it_all(self, tmp_path: Path) -> None:
        found = calibrate([answers(120)], DIGEST, 0.9)
        path = tmp_path / "calibration.json"
        path.write_text(found.model_dump_json())
        assert read_calibration(path) == found
        for content in ("{", "{}", json.dumps({**found.model_dump(mode="json"), "temperature": 0})):
            path.write_text(content)
            with pytest.raises(CalibrationError, match="is not a calibration"):
                read_calibration(path)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lively_checkpoint(tmp_path_factory.mktemp("calibration") / "reader.safetensors", "compact")


@pytest.fixture(scope="module")
def data(checkpoint: Path) -> list[Sample]:
    """Noise, labelled with what the reader reads in it; but half of what it is less sure of is labelled otherwise."""
    pixels = np.random.default_rng(0).integers(0, 256, (120, 2, 3, 3), np.uint8)
    noise = [Sample(encode(Image.fromarray(image)), "", None, str(n), "noise") for n, image in enumerate(pixels)]
    read = [outcome for _, outcome in read_samples(Reader(CheckpointEngine(checkpoint, "cpu")), noise)]
    sure = float(np.median([outcome.confidence for outcome in read]))
    return [
        replace(sample, label=outcome.read if outcome.confidence >= sure or index % 2 else "90210")
        for index, (sample, outcome) in enumerate(zip(noise, read, strict=True))
        if outcome.read
    ]


@pytest.fixture(scope="module")
def calibration(checkpoint: Path, data: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("fitted")
    write_shards(data, directory / "noise")
    out = directory / "new" / "calibration.json"
    result = call("calibrate", checkpoint, directory / "noise", "--out", out, "--accuracy", 0.9, "--provider", "cpu")
    assert result.exit_code == 0, result.output
    assert all(figure in result.stdout for figure in ("before", "after", "held out", "noise", str(len(data))))
    return out


class TestCommands:
    def test_figures_are_the_served_readers(self, calibration: Path, checkpoint: Path, data: list[Sample]) -> None:
        fitted = read_calibration(calibration)
        assert (fitted.weights_sha256, fitted.accuracy) == (weights_sha256(checkpoint), 0.9)
        served = ServedReader(load_reader(checkpoint)[0], fitted.temperature)
        photos = [Photo.open(sample.image, max_pixels=100) for sample in data]
        views = [photo.views([photo.whole], (64, 64))[0].pixels for photo in photos]
        with torch.no_grad():
            readings = decode(served(torch.from_numpy(np.stack(views)))[0].numpy())
        pairs = zip(readings, data, strict=True)
        right = [reading.number == sample.label for reading, sample in pairs if reading.confidence >= fitted.threshold]
        assert fitted.acceptance.accepted == pytest.approx(len(right) / len(data))
        assert fitted.acceptance.accepted_right == pytest.approx(sum(right) / len(right))

    def test_export_stores_it(self, calibration: Path, checkpoint: Path, tmp_path: Path) -> None:
        """That export puts what a label says into graph and metadata is what tests/test_export.py is about."""
        (tmp_path / "figures.json").write_text('{"overall": 1}')
        arguments = ("--evaluation", tmp_path / "figures.json", "--calibration", calibration)
        with patch("export.commands.verify", return_value=[]), patch("export.commands.build_artifact") as build:
            build.return_value = b""
            result = call("export", checkpoint, "--output", tmp_path / "reader.onnx", *arguments)
        assert result.exit_code == 0, result.output
        fitted = read_calibration(calibration)
        evaluation = {"overall": 1, "calibration": json.loads(calibration.read_text())}
        label = Label(temperature=fitted.temperature, threshold=fitted.threshold, evaluation=evaluation)
        build.assert_called_once_with(checkpoint, label)

    def test_export_refuses_what_does_not_fit(self, calibration: Path, checkpoint: Path, tmp_path: Path) -> None:
        arguments = ("--output", tmp_path / "reader.onnx", "--calibration", calibration)
        other = lively_checkpoint(tmp_path / "other.safetensors", "cnn")
        assert "was fitted to weights" in call("export", other, *arguments).stderr
        for option in ("--threshold", "--temperature"):
            assert "one or the other" in call("export", checkpoint, *arguments, option, 1).stderr
        assert not (tmp_path / "reader.onnx").exists()

    def test_mistakes_are_one_line(self, artifact: Path, checkpoint: Path, data: list[Sample], tmp_path: Path) -> None:
        write_shards([replace(sample, label="90210") for sample in data[:20]], tmp_path / "wrong")
        (tmp_path / "empty").mkdir()
        for weights, where, accuracy, code, reason in (
            (artifact, "wrong", 0.9, 2, ".safetensors"),
            (checkpoint, "empty", 0.9, 2, "no shards"),
            (checkpoint, "wrong", "nan", 2, "nan is not a finite number"),
            (checkpoint, "wrong", 0.9, 1, "give no temperature"),
        ):
            options = ("--out", tmp_path / "calibration.json", "--accuracy", accuracy, "--provider", "cpu")
            result = call("calibrate", weights, tmp_path / where, *options)
            assert (result.exit_code, reason in result.stderr) == (code, True), result.output
        assert not (tmp_path / "calibration.json").exists()
