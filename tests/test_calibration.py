"""Calibration: temperature and threshold are what their definitions say, and get into the artifact."""

import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from exporting import lively_checkpoint
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from serving import encode
from tiny_reader import metadata

from export.artifact import Label
from housenumber.cli import main
from models.checkpoint import load_reader, weights_sha256
from models.data.sample import Sample
from models.data.shards import write_shards
from models.evaluation.calibrate import Answers, Calibration, Objective, calibrate, read_calibration
from models.evaluation.calibration import (
    BINS,
    CalibrationError,
    expected_calibration_error,
    fit_temperature,
    fit_temperature_to_readings,
    fit_threshold,
    log_loss,
    negative_log_likelihood,
    reliability,
)
from models.evaluation.checkpoint_engine import CheckpointEngine
from models.evaluation.evaluate import read_samples
from models.served import ServedReader
from service.artifact import METADATA_KEY
from service.decoding import decode, pack
from service.imaging import Photo
from service.reader import Reader

DIGEST = "ab" * 32


def calibrated(count: int, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Logits [count, 5, 11] and targets that are drawn from their own softmax: right as often as they say."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2.5, (count, 5, 11))
    # The largest of logits plus Gumbel noise is a draw from the softmax.
    return logits, (logits + rng.gumbel(size=logits.shape)).argmax(-1)


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float32]:
    probabilities: NDArray[np.float32] = torch.from_numpy(logits).softmax(-1).float().numpy()
    return probabilities


def answers(count: int, seed: int = 0, sharpness: float = 2.0, name: str = "data") -> Answers:
    """Numbers of five digits, more and less certain, drawn from a softmax; the reader is `sharpness` times as sure."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1, (count, 5, 11))
    logits[..., 0] += rng.uniform(0, 12, (count, 1))
    logits = rng.permuted(logits, axis=-1)
    logits[..., 10] = -30  # never blank
    labels = ["".join(map(str, slots)) for slots in (logits + rng.gumbel(size=logits.shape)).argmax(-1)]
    return Answers(name, softmax(logits * sharpness), tuple(labels), tuple(f"{seed}/{index}" for index in range(count)))


class TestTemperature:
    @pytest.mark.parametrize("factor", [0.5, 1.0, 2.0, 4.0])
    def test_it_undoes_what_calibrated_logits_were_multiplied_by(self, factor: float) -> None:
        logits, targets = calibrated(3000)
        assert fit_temperature(factor * logits, targets, np.ones(3000)) == pytest.approx(factor, rel=0.05)

    def test_no_other_temperature_is_likelier(self) -> None:
        logits, targets = calibrated(200, seed=1)
        weights = np.random.default_rng(2).uniform(0.1, 3, 200)
        fitted = fit_temperature(3 * logits, targets, weights)
        least = negative_log_likelihood(3 * logits, targets, weights, fitted)
        for factor in (0.3, 0.9, 0.99, 1.01, 1.1, 3):
            assert negative_log_likelihood(3 * logits, targets, weights, factor * fitted) > least

    def test_the_likelihood_is_that_of_pytorch(self) -> None:
        logits, targets = calibrated(50)
        losses = torch.nn.functional.cross_entropy(
            torch.from_numpy(logits / 1.7).reshape(-1, 11), torch.from_numpy(targets).reshape(-1), reduction="none"
        )
        of_samples = losses.reshape(50, 5).sum(1).numpy()
        weights = np.arange(1.0, 51)
        expected = np.average(of_samples, weights=weights)
        assert negative_log_likelihood(logits, targets, weights, 1.7) == pytest.approx(expected)

    @pytest.mark.parametrize("factor", [0.5, 2.0])
    def test_readings_give_the_same_where_slots_are_wrong_independently(self, factor: float) -> None:
        data = answers(1000, sharpness=factor)
        temperature = calibrate([data], DIGEST, 0.9, "readings").temperature
        assert temperature == pytest.approx(factor, rel=0.2)

    def test_readings_whose_slots_are_wrong_together_need_less(self) -> None:
        data = answers(1000, sharpness=1.0)
        rng = np.random.default_rng(0)
        # Of each twelfth photograph, all slots were read off somewhere else.
        labels = tuple(
            "".join(map(str, rng.integers(0, 10, 5))) if rng.random() < 1 / 12 else label for label in data.labels
        )
        slots, readings = (
            calibrate([replace(data, labels=labels)], DIGEST, 0.9, objective).after for objective in get_args(Objective)
        )
        assert readings.log_loss < slots.log_loss
        assert readings.ece < slots.ece
        assert readings.nll > slots.nll

    def test_log_loss_by_hand(self) -> None:
        confidence, correct = np.array([0.9, 0.2, 0.0]), np.array([True, False, False])
        expected = -(3 * np.log(0.9) + np.log(0.8) + np.log(1.0)) / 5
        assert log_loss(confidence, correct, np.array([3.0, 1, 1])) == pytest.approx(expected, abs=1e-6)

    def test_data_that_determine_none_are_refused(self) -> None:
        logits, _ = calibrated(20)
        for targets in (logits.argmax(-1), logits.argmin(-1)):
            with pytest.raises(CalibrationError, match="more data"):
                fit_temperature(logits, targets, np.ones(20))
        with pytest.raises(CalibrationError, match="more data"):
            fit_temperature_to_readings(lambda t: np.full(9, 0.9 ** (1 / t)), np.ones(9, bool), np.ones(9))
        with pytest.raises(CalibrationError, match="0 samples"):
            fit_temperature(np.empty((0, 5, 11)), np.empty((0, 5), int), np.empty(0))


samples = st.lists(
    # confidence in tenths (so that there are ties), answered, right, weight
    st.tuples(st.integers(0, 10), st.booleans(), st.booleans(), st.integers(1, 3)),
    min_size=1,
    max_size=14,
)
accuracies = st.sampled_from([0.5, 0.75, 0.9, 1.0])
Drawn = list[tuple[int, bool, bool, int]]


def threshold(drawn: Drawn, accuracy: float) -> float | None:
    confidence, answered, right, weights = (np.array(column) for column in zip(*drawn, strict=True))
    return fit_threshold(confidence / 10, answered, right & answered, weights.astype(float), accuracy)


def accepted(drawn: Drawn, threshold: float) -> Drawn:
    return [row for row in drawn if row[1] and row[0] / 10 >= threshold]


def is_good(rows: Drawn, accuracy: float) -> bool:
    return sum(row[3] * row[2] for row in rows) >= accuracy * sum(row[3] for row in rows)


class TestThreshold:
    @given(drawn=samples, accuracy=accuracies)
    def test_it_accepts_the_most_that_is_accurate_enough(self, drawn: Drawn, accuracy: float) -> None:
        choices = [accepted(drawn, tenths / 10) for tenths in range(11)]
        good = [rows for rows in choices if rows and is_good(rows, accuracy)]
        found = threshold(drawn, accuracy)
        if found is None:
            assert not good
        else:
            assert accepted(drawn, found) == max(good, key=len)

    @given(drawn=samples, low=accuracies, high=accuracies)
    def test_more_accuracy_never_takes_less_confidence(self, drawn: Drawn, low: float, high: float) -> None:
        low, high = sorted((low, high))
        of_low, of_high = threshold(drawn, low), threshold(drawn, high)
        if of_high is not None:
            assert of_low is not None
            assert of_low <= of_high

    def test_it_lies_between_the_last_accepted_and_the_first_refused(self) -> None:
        assert threshold([(9, True, True, 1), (5, True, False, 1)], 1.0) == pytest.approx(0.7)
        assert threshold([(9, True, True, 1), (5, True, True, 1)], 1.0) == pytest.approx(0.5)

    def test_readings_without_a_digit_are_never_accepted(self) -> None:
        assert threshold([(9, False, True, 1)], 0.5) is None


class TestCalibrationError:
    def test_of_bins_by_hand(self) -> None:
        confidence = np.array([0.0, 0.01, 0.5, 0.52, 1.0, 0.95])
        correct = np.array([False, True, True, False, True, True])
        weights = np.array([1.0, 1, 2, 2, 3, 3])
        bins = reliability(confidence, correct, weights)
        assert [index for index, part in enumerate(bins) if part] == [0, 7, 14]
        first, middle, last = (part for part in bins if part)
        assert (first.share, first.confidence, first.accuracy) == pytest.approx((2 / 12, 0.005, 0.5))
        assert (middle.share, middle.confidence, middle.accuracy) == pytest.approx((4 / 12, 0.51, 0.5))
        assert (last.share, last.confidence, last.accuracy) == pytest.approx((6 / 12, 0.975, 1.0))
        expected = (2 * 0.495 + 4 * 0.01 + 6 * 0.025) / 12
        assert expected_calibration_error(bins) == pytest.approx(expected)

    @given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40))
    def test_bins_hold_every_sample_once(self, drawn: list[tuple[float, bool]]) -> None:
        confidence, correct = (np.array(column) for column in zip(*drawn, strict=True))
        bins = reliability(confidence.astype(float), correct, np.ones(len(drawn)))
        assert len(bins) == BINS
        assert sum(part.share for part in bins if part) == pytest.approx(1)
        assert sum(part.share * part.accuracy for part in bins if part) == pytest.approx(correct.mean())
        assert 0 <= expected_calibration_error(bins) <= 1


class TestCalibrate:
    def test_a_reader_that_is_too_sure_becomes_honest(self) -> None:
        calibration = calibrate([answers(800, sharpness=4)], DIGEST, 0.98)
        assert calibration.temperature > 2
        assert calibration.after.nll < 0.7 * calibration.before.nll
        assert calibration.after.ece < 0.7 * calibration.before.ece
        assert calibration.acceptance.accuracy is not None
        assert calibration.acceptance.accuracy >= 0.98
        assert calibration.held_out is not None
        assert calibration.held_out.fit.nll < 0.7 * calibration.before.nll
        assert calibration.held_out.temperatures == pytest.approx([calibration.temperature] * 2, rel=0.2)

    def test_each_collection_of_data_counts_the_same(self) -> None:
        few, many = answers(200, 1, 1.0, "few"), answers(200, 2, 4.0, "many")
        repeated = Answers("many", np.tile(many.probabilities, (7, 1, 1)), many.labels * 7, many.sources * 7)
        once, often = (calibrate([few, other], DIGEST, 0.95) for other in (many, repeated))
        assert often.temperature == pytest.approx(once.temperature)
        assert often.threshold == pytest.approx(once.threshold)
        assert often.acceptance.model_dump() == pytest.approx(once.acceptance.model_dump())
        assert (often.after.nll, often.after.ece) == pytest.approx((once.after.nll, once.after.ece))
        assert [part.samples for part in often.data] == [200, 1400]

    def test_false_numbers_and_longer_numbers_are_wrong_when_accepted(self) -> None:
        numbers = [answers(100, seed) for seed in range(5)]
        for label in ("", "123456"):
            # Seen as a number, if not with certainty, and there is none or a longer one.
            probabilities = softmax(np.tile(9 * np.eye(11)[pack("12345", 5)], (30, 1, 1)))
            false = Answers("false", probabilities, (label,) * 30, tuple(map(str, range(30))))
            refused = calibrate([*numbers, false], DIGEST, 0.98).data[-1]
            assert (refused.right, refused.acceptance.accuracy) == (0, None)
            accepted = calibrate([*numbers, false], DIGEST, 0.3).data[-1].acceptance
            assert accepted.accuracy == 0
            assert (accepted.coverage, accepted.false_numbers) == ((None, 1) if label == "" else (1, None))

    def test_photographs_that_cannot_be_read_are_counted(self) -> None:
        calibration = calibrate([replace(answers(200), unreadable=3)], DIGEST, 0.9)
        assert [(part.samples, part.unreadable) for part in calibration.data] == [(203, 3)]
        nothing = Answers("broken", np.empty((0, 5, 11), np.float32), (), (), 2)
        with pytest.raises(CalibrationError, match="broken"):
            calibrate([answers(200), nothing], DIGEST, 0.9)

    def test_a_photograph_and_what_was_cut_out_of_it_are_held_out_together(self) -> None:
        whole = answers(200)
        cut = replace(whole, sources=tuple(f"elsewhere/{source.split('/')[1]}.png" for source in whole.sources))
        assert calibrate([cut], DIGEST, 0.9).held_out == calibrate([whole], DIGEST, 0.9).held_out

    def test_a_half_that_determines_nothing_is_said(self) -> None:
        data = answers(200)
        assert calibrate([replace(data, sources=("same",) * 200)], DIGEST, 0.9).held_out is None

    def test_the_file_holds_it_all(self, tmp_path: Path) -> None:
        calibration = calibrate([answers(200)], DIGEST, 0.9)
        path = tmp_path / "calibration.json"
        path.write_text(calibration.model_dump_json())
        assert read_calibration(path) == calibration
        for content in ("{", "[]", "{}", json.dumps({**calibration.model_dump(), "temperature": 0})):
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
    rng = np.random.default_rng(0)
    noise = [
        Sample(encode(Image.fromarray(rng.integers(0, 256, (2, 3, 3), np.uint8))), "", None, str(index), "noise")
        for index in range(150)
    ]
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
    for figure in ("before", "after", "noise", str(len(data))):
        assert figure in result.stdout
    return out


class TestCommands:
    def test_calibrate_writes_what_it_found(self, calibration: Path, checkpoint: Path, data: list[Sample]) -> None:
        found = read_calibration(calibration)
        assert found.weights_sha256 == weights_sha256(checkpoint)
        assert found.accuracy == 0.9
        assert [(part.name, part.samples) for part in found.data] == [("noise", len(data))]
        assert found.after.nll < found.before.nll

    def test_its_figures_are_those_of_the_served_reader_at_its_temperature(
        self, calibration: Path, checkpoint: Path, data: list[Sample]
    ) -> None:
        fitted = read_calibration(calibration)
        served = ServedReader(load_reader(checkpoint)[0], fitted.temperature)
        photos = [Photo.open(sample.image, max_pixels=100) for sample in data]
        views = [photo.views([photo.whole], (64, 64))[0].pixels for photo in photos]
        with torch.no_grad():
            readings = decode(served(torch.from_numpy(np.stack(views)))[0].numpy())
        right = [
            reading.number == sample.label
            for reading, sample in zip(readings, data, strict=True)
            if reading.confidence >= fitted.threshold
        ]
        assert sum(right) >= 0.9 * len(right) > 0
        assert fitted.acceptance.coverage == pytest.approx(len(right) / len(data))
        assert fitted.acceptance.accuracy == pytest.approx(sum(right) / len(right))

    def test_export_stores_it(
        self,
        calibration: Path,
        checkpoint: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """That export puts what a label says into graph and metadata is what tests/test_export.py is about."""
        labels: list[Label] = []

        def build(_: Path, label: Label) -> bytes:
            labels.append(label)
            return b"artifact"

        monkeypatch.setattr("export.commands.build_artifact", build)
        monkeypatch.setattr("export.commands.verify", lambda *_: [])
        output = tmp_path / "reader.onnx"
        (tmp_path / "figures.json").write_text('{"overall": 1}')
        arguments = ("--output", output, "--evaluation", tmp_path / "figures.json", "--calibration", calibration)
        result = call("export", checkpoint, *arguments)
        assert result.exit_code == 0, result.output
        fitted = read_calibration(calibration)
        (label,) = labels
        assert (label.temperature, label.threshold) == (fitted.temperature, fitted.threshold)
        assert label.evaluation["overall"] == 1
        stored = json.loads(metadata(evaluation=label.evaluation).to_metadata_map()[METADATA_KEY])
        assert Calibration.model_validate(stored["evaluation"]["calibration"]) == fitted

    @pytest.mark.parametrize("option", ["--threshold", "--temperature"])
    def test_export_takes_one_or_the_other(
        self, option: str, calibration: Path, checkpoint: Path, tmp_path: Path
    ) -> None:
        output = tmp_path / "reader.onnx"
        result = call("export", checkpoint, "--output", output, "--calibration", calibration, option, 1)
        assert result.exit_code == 2
        assert "one or the other" in result.stderr
        assert not output.exists()

    def test_export_refuses_the_calibration_of_other_weights(
        self, calibration: Path, checkpoint: Path, tmp_path: Path
    ) -> None:
        other = lively_checkpoint(tmp_path / "other.safetensors", "cnn")
        output = tmp_path / "reader.onnx"
        result = call("export", other, "--output", output, "--calibration", calibration)
        assert result.exit_code == 2
        assert "was fitted to weights" in result.stderr
        assert not output.exists()

    def test_export_refuses_what_is_no_calibration(self, checkpoint: Path, tmp_path: Path) -> None:
        (tmp_path / "calibration.json").write_text('{"temperature": 1}')
        result = call(
            "export", checkpoint, "--output", tmp_path / "a.onnx", "--calibration", tmp_path / "calibration.json"
        )
        assert result.exit_code == 2
        assert "is not a calibration" in result.stderr

    def test_mistakes_are_one_line(self, artifact: Path, checkpoint: Path, data: list[Sample], tmp_path: Path) -> None:
        write_shards([replace(sample, label="90210") for sample in data], tmp_path / "wrong")
        (tmp_path / "empty").mkdir()
        for weights, where, code, reason in (
            (artifact, tmp_path / "wrong", 2, ".safetensors"),
            (checkpoint, tmp_path / "missing", 2, "does not exist"),
            (checkpoint, tmp_path / "empty", 2, "no shards"),
            (checkpoint, tmp_path / "wrong", 1, "at no confidence"),
        ):
            result = call("calibrate", weights, where, "--out", tmp_path / "calibration.json", "--provider", "cpu")
            assert result.exit_code == code, result.output
            assert reason in result.stderr
            assert "Traceback" not in result.stderr
        assert not (tmp_path / "calibration.json").exists()
