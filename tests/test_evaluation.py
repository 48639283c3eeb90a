"""Evaluation: every sample counts, and the figures are what their definitions say."""

import io
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_reader import THRESHOLD, colour_of, write_artifact

from housenumber.cli import main
from models.checkpoint import load_reader, save_reader
from models.data.sample import Sample
from models.data.shards import write_shards
from models.evaluation.checkpoint_engine import CheckpointEngine
from models.evaluation.engines import RecordingEngine
from models.evaluation.evaluate import evaluate_reader, read_samples
from models.evaluation.report import Outcome, Report, coverage, digit_accuracy
from models.readers import ReaderSpec, build_reader
from models.served import ServedReader
from service.engine import OnnxEngine
from service.geometry import Region
from service.reader import Reader


def png(*numbers: str) -> bytes:
    """A photograph with a field of 10 x 10 pixels for each number, in the colour that reads as it."""
    image = Image.new("RGB", (10 * len(numbers), 10))
    for place, number in enumerate(numbers):
        image.paste(colour_of(number), (10 * place, 0, 10 * place + 10, 10))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def sample(shown: str, label: str, collection: str = "c", source: str = "s") -> Sample:
    return Sample(png(shown), label, None, source, collection)


def outcome(
    label: str,
    read: str | None,
    confidence: float = 0.5,
    collection: str = "c",
    *,
    accepted: bool = False,
    height: float | None = None,
) -> Outcome:
    error = None if read is not None else "bad_image: no"
    return Outcome(collection, "s", label, read, confidence, error, accepted, height)


UNREADABLE = Sample(png("1")[:-30], "31", None, "truncated.png", "c")


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_every_sample_has_its_outcome_in_order(engine: OnnxEngine, batch_size: int) -> None:
    samples = [sample("12", "12"), UNREADABLE, sample("7", "8"), sample("", "5"), sample("123", "123")]
    read = list(read_samples(Reader(engine, batch_size), samples))
    assert [of for of, _ in read] == samples
    assert [result.read for _, result in read] == ["12", None, "7", "", "123"]
    assert [result.correct for _, result in read] == [True, False, False, False, True]
    assert [result.label for _, result in read] == ["12", "31", "8", "5", "123"]


def test_samples_are_taken_a_batch_at_a_time(engine: OnnxEngine) -> None:
    taken: list[int] = []

    def watched() -> Iterator[Sample]:
        for index in range(6):
            taken.append(index)
            yield sample("1", "1")

    results = read_samples(Reader(engine, 2), watched())
    next(results)
    assert taken == [0, 1]


def test_the_region_is_what_is_read_and_without_one_the_whole(engine: OnnxEngine) -> None:
    photograph = png("12", "89")
    samples = [
        Sample(photograph, "12", Region(0, 0, 10, 10), "left", "c"),
        Sample(photograph, "89", Region(10, 0, 10, 10), "right", "c"),
    ]
    assert evaluate_reader(Reader(engine), samples).overall.total.correct == 2
    assert evaluate_reader(Reader(engine), [sample("89", "89")]).overall.total.correct == 1


def test_what_cannot_be_read_is_wrong_and_listed(engine: OnnxEngine) -> None:
    outside = Sample(png("1"), "1", Region(50, 50, 5, 5), "outside.png", "c")
    report = evaluate_reader(Reader(engine), [sample("1", "1"), UNREADABLE, outside])
    assert (report.overall.total.n, report.overall.total.correct, report.overall.total.unreadable) == (3, 1, 2)
    listed = {error.source: error.error or "" for error in report.errors}
    assert listed["truncated.png"].startswith("bad_image: ")
    assert listed["outside.png"].startswith("bad_region: ")


def test_so_is_what_the_reader_fails_on(tmp_path: Path) -> None:
    """Nor has it, as NaN would, the confidence that there is no number."""
    broken = OnnxEngine(write_artifact(tmp_path / "broken.onnx", zero=math.nan), "cpu")
    recording = RecordingEngine(broken)
    report = evaluate_reader(Reader(recording), [sample("1", "1"), sample("", "")])
    assert (report.overall.total.correct, report.overall.total.unreadable) == (0, 2)
    assert {error.error for error in report.errors} == {"internal: the reader failed on this image"}
    assert len(recording.take()) == 0


@pytest.mark.parametrize(
    ("label", "read", "expected"),
    [
        ("123", "123", 1),
        ("123", "124", 2 / 3),
        ("123", "23", 0),  # packed to the left, 2 stands for 1 and 3 for 2
        ("123", "12", 2 / 3),  # a digit too few
        ("12", "123", 2 / 3),  # a digit too many
        ("1", "", 0),
        ("12345", None, 0),
        ("", "", 1),
        ("", "7", 0),
    ],
)
def test_digit_accuracy_compares_slots_where_either_has_a_digit(label: str, read: str | None, expected: float) -> None:
    assert digit_accuracy([outcome(label, read)]) == pytest.approx(expected)


def test_digit_accuracy_weighs_every_slot_alike() -> None:
    assert digit_accuracy([outcome("12345", "12345"), outcome("1", "2")]) == pytest.approx(5 / 6)


# Few values, so that confidences are often equal.
some_outcomes = st.builds(
    outcome,
    label=st.sampled_from(["1", "23"]),
    read=st.sampled_from(["1", "1", "23", "23", "", None]),
    confidence=st.sampled_from([0.1, 0.2, 0.5, 0.9, 1.0]),
)


@given(outcomes=st.lists(some_outcomes, min_size=1, max_size=30), accuracy=st.sampled_from([0.5, 0.75, 0.98, 1.0]))
def test_coverage_is_the_best_of_all_thresholds(outcomes: list[Outcome], accuracy: float) -> None:
    best = 0.0
    for threshold in [o.confidence for o in outcomes]:
        answered = [o for o in outcomes if o.read and o.confidence >= threshold]
        if answered and np.mean([o.read == o.label for o in answered]) >= accuracy:
            best = max(best, len(answered) / len(outcomes))
    assert coverage(outcomes, accuracy) == pytest.approx(best)


@pytest.mark.parametrize(("wrong", "expected"), [(0, 1.0), (2, 1.0), (3, 98 / 100)])
def test_coverage_at_98_percent_of_a_hundred(wrong: int, expected: float) -> None:
    """98 of 100 are just enough, 97 of 99 just too few; the wrong ones are among the least confident."""
    outcomes = [outcome("1", "1", 1 - n / 1000) for n in range(97)]
    outcomes += [outcome("1", "2", 0.3 - n / 10) for n in range(wrong)]
    outcomes += [outcome("1", "1", 0.05)] * (3 - wrong)
    assert len(outcomes) == 100
    assert coverage(outcomes) == pytest.approx(expected)


def test_report_breaks_down_by_collection_and_length() -> None:
    report = Report.of(
        [
            outcome("1", "1", 0.9, "b"),
            outcome("23", "24", 0.5, "a"),
            outcome("45", "45", 0.7, "b"),
            outcome("6", None, 0.0, "b"),
        ]
    )
    assert list(report.collections) == ["b", "a"]
    of_b = report.collections["b"]
    total = of_b.total
    assert (total.n, total.correct, total.unreadable) == (3, 2, 1)
    shares = total.accuracy, total.digit_accuracy, total.mean_confidence, total.coverage
    assert shares == pytest.approx((2 / 3, 3 / 4, 1.6 / 3, 2 / 3))
    assert {length: (part.n, part.correct) for length, part in of_b.by_length.items()} == {1: (2, 1), 2: (1, 1)}
    assert {length: part.n for length, part in report.overall.by_length.items()} == {1: 2, 2: 2}
    assert [error.label for error in report.errors] == ["23", "6"]
    with pytest.raises(ValueError, match="nothing to evaluate"):
        Report.of([])


def test_samples_without_a_number_count_for_false_numbers_and_not_for_coverage() -> None:
    outcomes = [
        outcome("12", "12", 0.9, accepted=True),
        outcome("12", "13", 0.8, accepted=True),
        outcome("12", "12", 0.3),
        outcome("12", None, 0.0),
        outcome("", "", 0.7),
        outcome("", "1", 0.95, accepted=True),
        outcome("", "1", 0.2),
        outcome("", None, 0.0),
    ]
    figures = Report.of(outcomes).overall.total
    assert (figures.n, figures.numbers, figures.correct) == (8, 4, 3)
    assert (figures.accepted, figures.accepted_right, figures.false_numbers) == (2, 1, 1 / 4)
    assert figures.coverage == 1 / 4  # only the first: with the second, half of two would be right
    assert coverage(outcomes, 0.5) == 3 / 4
    assert Report.of(outcomes[:4]).overall.total.false_numbers is None
    of_none = Report.of(outcomes[4:]).overall.total
    assert (of_none.coverage, of_none.numbers, of_none.false_numbers) == (None, 0, 1 / 4)
    assert of_none.accuracy == 1 / 4


def test_calibration_error_is_of_what_could_be_read() -> None:
    """Two bins of ten, one of them all right at 0.5, the other nine right at 0.9."""
    outcomes = [outcome("1", "1", 0.9)] * 9 + [outcome("1", "2", 0.9)] + [outcome("", "", 0.5)] * 10
    assert Report.of([*outcomes, outcome("1", None, 0.0)]).overall.total.ece == pytest.approx(0.25)
    assert Report.of([outcome("1", None, 0.0)]).overall.total.ece is None


@pytest.mark.parametrize(
    ("height", "group"),
    [
        (None, "unknown"),
        (8, "below 12 px"),
        (12, "12 to 20 px"),
        (19.9, "12 to 20 px"),
        (20, "20 to 32 px"),
        (63, "32 to 64 px"),
        (64, "64 px and more"),
    ],
)
def test_digit_heights_are_grouped_and_samples_without_a_number_have_none(height: float | None, group: str) -> None:
    breakdown = Report.of([outcome("1", "1", height=height), outcome("", "", height=height)]).overall
    assert {name: figures.n for name, figures in breakdown.by_digit_height.items()} == {group: 1}


def evaluate(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments)])


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    samples = [
        sample("12", "12", "plates", "a.png"),
        sample("7", "8", "plates", "b.png"),
        UNREADABLE,
        sample("505", "505", "signs", "d.png"),
    ]
    write_shards(samples, tmp_path / "shards", shard_rows=3)
    return tmp_path / "shards"


def test_command_writes_table_json_and_contact_sheet(artifact: Path, collection: Path, tmp_path: Path) -> None:
    json_out, errors_out = tmp_path / "report.json", tmp_path / "errors.png"
    result = evaluate(artifact, collection, "--provider", "cpu", "--json", json_out, "--errors", errors_out)
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["plates", "2", "50.0%", "66.7%"] in [row[:4] for row in rows]
    assert ["2", "digits", "1", "100.0%", "100.0%"] in [row[:5] for row in rows]
    assert ["all", "4", "50.0%"] in [row[:3] for row in rows]
    assert "not readable: c truncated.png: bad_image" in result.stderr

    report = json.loads(json_out.read_text())
    assert report["model"]["provider"] == "CPUExecutionProvider"
    assert {name: part["accuracy"] for name, part in report["collections"].items()} == {
        "plates": 0.5,
        "c": 0.0,
        "signs": 1.0,
    }
    assert (report["model"]["reader"], report["model"]["threshold"]) == ("tiny", THRESHOLD)
    overall, plates = report["overall"], report["collections"]["plates"]
    assert overall["n"] == 4
    assert plates["by_length"]["2"]["correct"] == 1
    assert (plates["accepted"], plates["accepted_right"], plates["false_numbers"]) == (2, 1, None)
    assert plates["accuracy_interval"][0] < 0.5 < plates["accuracy_interval"][1]
    assert 0 <= overall["ece"] <= 1
    assert overall["by_digit_height"]["unknown"]["n"] == 4
    first, _ = overall["box_coverage"]["transformers"]
    assert first["mean"] == pytest.approx(0.375)
    assert overall["box_coverage"]["n"] == 3
    assert (
        f"overlap of two boxes (intersection ÷ union), mean: {overall['box_coverage']['overlap']:.1%}" in result.stdout
    )
    assert np.array(report["confusion"]).sum() == 4 * 5
    assert [(e["source"], e["label"], e["read"]) for e in report["errors"]] == [
        ("b.png", "8", "7"),
        ("truncated.png", "31", None),
    ]
    with Image.open(errors_out) as sheet:
        assert sheet.format == "PNG"


def test_figures_are_shown_even_where_files_cannot_be_written(artifact: Path, collection: Path, tmp_path: Path) -> None:
    for option in ("--json", "--errors", "--html"):
        result = evaluate(artifact, collection, "--provider", "cpu", option, tmp_path / "no" / "file")
        assert result.exit_code == 1
        assert "plates" in result.stdout
        assert result.stderr.splitlines()[-1].startswith("Error: ")
        assert "Traceback" not in result.stderr


def test_without_errors_there_is_no_contact_sheet(artifact: Path, tmp_path: Path) -> None:
    write_shards([sample("12", "12")], tmp_path / "shards")
    result = evaluate(artifact, tmp_path / "shards", "--provider", "cpu", "--errors", tmp_path / "errors.png")
    assert result.exit_code == 0
    assert "nothing was misread" in result.stderr
    assert not (tmp_path / "errors.png").exists()


def test_several_collections_are_evaluated_together(artifact: Path, collection: Path, tmp_path: Path) -> None:
    """Shards, and a directory with labels.jsonl."""
    (tmp_path / "labels.jsonl").write_text(json.dumps({"file": "1.png", "label": "5", "collection": "mine"}))
    (tmp_path / "1.png").write_bytes(png("5"))
    result = evaluate(artifact, collection, tmp_path, "--json", tmp_path / "report.json", "--provider", "cpu")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert {name: part["n"] for name, part in report["collections"].items()} == {
        "plates": 2,
        "c": 1,
        "signs": 1,
        "mine": 1,
    }


def test_mistakes_have_exit_code_2_and_one_line(artifact: Path, collection: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "no-rows").mkdir()
    (tmp_path / "no-rows" / "labels.jsonl").touch()
    (tmp_path / "model.txt").write_text("weights")
    for model, data, reason in (
        (tmp_path / "missing.onnx", collection, "does not exist"),
        (artifact, tmp_path / "missing", "does not exist"),
        (artifact, tmp_path / "empty", "no shards"),
        (artifact, tmp_path / "no-rows", "no samples"),
        (tmp_path / "model.txt", collection, "neither an artifact"),
    ):
        result = evaluate(model, data)
        assert result.exit_code == 2, result.output
        assert reason in result.stderr
        assert "Traceback" not in result.stderr


@pytest.mark.parametrize("suffix", [".onnx", ".safetensors"])
def test_models_that_cannot_be_loaded_are_the_models_fault(collection: Path, tmp_path: Path, suffix: str) -> None:
    model = tmp_path / f"model{suffix}"
    model.write_bytes(b"nothing of the kind")
    result = evaluate(model, collection, "--provider", "cpu")
    assert result.exit_code == 5
    assert str(model) in result.stderr
    assert "Traceback" not in result.stderr


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    spec = ReaderSpec("compact", 64, 64, {"recipe": "none"})
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    save_reader(path, build_reader(spec), spec)
    return path


def test_checkpoint_engine_answers_as_the_served_reader(checkpoint: Path) -> None:
    engine = CheckpointEngine(checkpoint, "cpu")
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    reader, _ = load_reader(checkpoint)
    with torch.no_grad():
        expected = ServedReader(reader)(torch.from_numpy(images))
    outputs = engine.infer(images)
    for ours, theirs in zip((outputs.probabilities, outputs.theta, outputs.boxes), expected, strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)
    metadata = engine.metadata
    assert (metadata.reader, metadata.input_size, metadata.training) == ("compact", (64, 64), {"recipe": "none"})
    assert metadata.transformers == outputs.theta.shape[1]
    assert metadata.parameters == sum(p.numel() for p in reader.parameters())
    assert metadata.weights_sha256 == engine.sha256


def test_command_evaluates_a_checkpoint(checkpoint: Path, collection: Path, tmp_path: Path) -> None:
    result = evaluate(checkpoint, collection, "--provider", "cpu", "--json", tmp_path / "report.json")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["model"]["provider"] == "PyTorch cpu"
    assert report["overall"]["n"] == 4
