"""The artifact, the engine and the reader, on a real session."""

import hashlib
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from serving import Sabotaged
from tiny_reader import BOXES, SIZE, THETA, THRESHOLD, colour_of, metadata, write_artifact

from service.artifact import METADATA_KEY, ArtifactError, parse_metadata
from service.engine import OnnxEngine, Outputs
from service.errors import Internal
from service.geometry import Region
from service.imaging import View
from service.reader import Reader, Reading


def pixels(number: str) -> NDArray[np.uint8]:
    return np.full((SIZE, SIZE, 3), colour_of(number), np.uint8)


def view(number: str, region: Region | None = None) -> View:
    return View(pixels(number), region or Region.whole(SIZE, SIZE))


def test_metadata_comes_back_as_written() -> None:
    written = metadata(training={"epochs": 8, "note": "für später"}, evaluation={"plates": 0.9}, slots=5)
    assert parse_metadata(written.to_metadata_map()) == written
    assert written.to_metadata_map() == metadata(**json.loads(written.model_dump_json())).to_metadata_map()


@pytest.mark.parametrize(
    ("change", "mention"),
    [
        ({"format_version": 2}, "format version 2; this program understands version 1"),
        ({"format_version": None}, "format version None"),
        ({"threshold": 1.5}, "threshold"),
        ({"temperature": 0}, "temperature"),
        ({"alphabet": "0120"}, "twice"),
        ({"input_height": 0}, "input_height"),
        ({"weights_sha256": "abc"}, "weights_sha256"),
        ({"surprise": 1}, "surprise"),
        ({"name": ""}, "name"),
    ],
)
def test_metadata_of_another_kind_is_refused_in_one_line(change: dict[str, object], mention: str) -> None:
    fields = {**metadata().model_dump(mode="json"), **change}
    with pytest.raises(ArtifactError) as raised:
        parse_metadata({METADATA_KEY: json.dumps(fields)})
    assert mention in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("properties", [{}, {"other": "{}"}, {METADATA_KEY: "{"}, {METADATA_KEY: "[]"}])
def test_a_file_without_our_metadata_is_refused(tmp_path: Path, properties: dict[str, str]) -> None:
    path = write_artifact(tmp_path / "stranger.onnx", properties)
    with pytest.raises(ArtifactError, match=r"stranger\.onnx"):
        OnnxEngine(path, "cpu")


@pytest.mark.parametrize("change", [{"input_height": 16}, {"transformers": 3}, {"slots": 4}, {"alphabet": "01"}])
def test_a_graph_that_is_not_what_its_metadata_says_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    path = write_artifact(tmp_path / "liar.onnx", metadata(**change).to_metadata_map())
    with pytest.raises(ArtifactError, match="promises"):
        OnnxEngine(path, "cpu")


def test_bytes_that_are_no_model_and_missing_files_are_refused_in_one_line(tmp_path: Path) -> None:
    junk = tmp_path / "junk.onnx"
    for content in (b"", b"junk" * 100):
        junk.write_bytes(content)
        with pytest.raises(ArtifactError, match=r"junk\.onnx") as raised:
            OnnxEngine(junk, "cpu")
        assert "\n" not in str(raised.value)
    with pytest.raises(ArtifactError, match="No such file"):
        OnnxEngine(tmp_path / "nothing.onnx", "cpu")


def test_the_digest_is_that_of_the_file(artifact: Path, engine: OnnxEngine) -> None:
    assert engine.sha256 == hashlib.sha256(artifact.read_bytes()).hexdigest()
    assert engine.provider == "CPUExecutionProvider"
    assert engine.metadata == metadata()


def test_readings_are_those_of_the_pixels(engine: OnnxEngine) -> None:
    numbers = ["0", "19", "053", "", "999"]
    readings = Reader(engine).read([view(number) for number in numbers])
    assert [reading.number for reading in readings] == numbers
    assert [reading.accepted for reading in readings] == [True, True, True, False, True]
    for reading in readings:
        assert "".join(digit.digit for digit in reading.digits) == reading.number
        assert 0.99 < reading.confidence <= 1.0


def test_a_batch_is_cut_into_pieces_and_put_together_again(engine: OnnxEngine) -> None:
    sizes: list[int] = []
    counting = Sabotaged(engine, lambda images: sizes.append(len(images)))
    numbers = [str(number) for number in range(11)]
    readings = Reader(counting, max_batch_size=4).read([view(number) for number in numbers])
    assert [reading.number for reading in readings] == numbers
    assert sizes == [4, 4, 3]
    assert Reader(engine).read([]) == []


def test_an_image_on_which_the_engine_fails_costs_no_other_its_reading(engine: OnnxEngine) -> None:
    def fail(images: NDArray[np.uint8]) -> None:
        if (images == colour_of("4")).all(axis=(1, 2, 3)).any():
            raise RuntimeError("a secret")

    reader = Reader(Sabotaged(engine, fail), max_batch_size=4)
    readings = reader.read_each([view(number) for number in "3456789"])
    assert [reading.number if isinstance(reading, Reading) else reading.code for reading in readings] == [
        *("3", "internal", "5", "6", "7", "8", "9")
    ]
    with pytest.raises(Internal) as raised:
        reader.read([view("3"), view("4")])
    assert "secret" not in raised.value.detail


def test_what_stops_the_program_stops_a_reader(engine: OnnxEngine) -> None:
    def interrupt(_images: NDArray[np.uint8]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Reader(Sabotaged(engine, interrupt)).read_each([view("1")])


@pytest.mark.parametrize(("largest", "sizes"), [(1, [1]), (4, [1, 2, 4]), (6, [1, 2, 4, 6])])
def test_warming_meets_the_sizes_that_will_come(engine: OnnxEngine, largest: int, sizes: list[int]) -> None:
    met: list[int] = []
    Reader(Sabotaged(engine, lambda images: met.append(len(images))), largest).warm()
    assert met == sizes


@pytest.mark.parametrize(("largest", "ran"), [(16, [1, 2, 4, 4, 8, 8, 8, 8, 16]), (6, [1, 2, 4, 4, 6, 6]), (1, [1])])
def test_on_cuda_only_the_warmed_sizes_are_run(engine: OnnxEngine, largest: int, ran: list[int]) -> None:
    met: list[int] = []
    on_cuda = Sabotaged(engine, lambda images: met.append(len(images)))
    on_cuda.provider = "CUDAExecutionProvider"
    reader = Reader(on_cuda, largest)
    reader.warm()
    warmed = set(met)
    met.clear()
    for count in range(1, len(ran) + 1):
        images = np.stack([pixels(str(number)) for number in range(count)])
        outputs, expected = reader.infer(images), engine.infer(images)
        for field in ("probabilities", "theta", "boxes"):
            np.testing.assert_array_equal(getattr(outputs, field), getattr(expected, field))
    assert met == ran
    assert set(met) <= warmed


def test_on_the_cpu_a_batch_is_run_as_it_is(engine: OnnxEngine) -> None:
    met: list[int] = []
    reader = Reader(Sabotaged(engine, lambda images: met.append(len(images))), 8)
    for count in range(1, 9):
        reader.infer(np.stack([pixels(str(number)) for number in range(count)]))
    assert met == list(range(1, 9))


def test_the_threshold_is_the_artifacts_unless_another_is_given(engine: OnnxEngine) -> None:
    unsure = View(np.full((SIZE, SIZE, 3), (12 + 36, 252, 252), np.uint8), Region.whole(SIZE, SIZE))
    reader = Reader(engine)
    (reading,) = reader.read([unsure])
    assert 0.3 < reading.confidence < THRESHOLD
    assert not reading.accepted
    assert reader.read([unsure], min_confidence=reading.confidence)[0].accepted
    assert not reader.read([view("1")], min_confidence=1.1)[0].accepted


def test_boxes_are_in_the_pixels_of_the_region(engine: OnnxEngine) -> None:
    region = Region(100.0, 40.0, 60.0, 20.0)
    (reading,) = Reader(engine).read([view("1", region)])
    assert [box.transformer for box in reading.boxes] == [0, 1]
    for box, corners, theta in zip(reading.boxes, BOXES, THETA, strict=True):
        for (x, y), (u, v) in zip(box.corners, corners, strict=True):
            assert x == pytest.approx(130 + 30 * u, abs=1e-4)
            assert y == pytest.approx(50 + 10 * v, abs=1e-4)
        np.testing.assert_array_equal(np.array(box.theta, np.float32), theta)
    assert Reader(engine).read([view("1")], boxes=False)[0].boxes == ()


def test_compose_wants_the_outputs_for_one_image(engine: OnnxEngine) -> None:
    outputs = engine.infer(np.stack([pixels("1"), pixels("2")]))
    with pytest.raises(ValueError, match="unpack"):
        Reader(engine).compose(outputs, Region.whole(SIZE, SIZE))


def test_outputs_are_cut_and_joined_without_loss(engine: OnnxEngine) -> None:
    outputs = engine.infer(np.stack([pixels(str(number)) for number in range(5)]))
    joined = Outputs.joined([outputs[start:stop] for start, stop in pairwise((0, 1, 3, 5))])
    for field in ("probabilities", "theta", "boxes"):
        np.testing.assert_array_equal(getattr(joined, field), getattr(outputs, field))


def test_outputs_say_which_images_they_are_finite_for(engine: OnnxEngine) -> None:
    outputs = engine.infer(np.stack([pixels(str(number)) for number in range(4)]))
    assert outputs.finite().tolist() == [True] * 4
    outputs.probabilities[0, 0, 0], outputs.theta[1, 0, 0, 0], outputs.boxes[3, 1, 3, 1] = np.nan, np.inf, -np.inf
    assert outputs.finite().tolist() == [False, False, True, False]
    nothing = np.zeros((2, 0, 2, 3), np.float32)
    without = Outputs(outputs.probabilities[1:3], nothing, nothing)
    assert without.finite().tolist() == [True, True]
    with pytest.raises(ValueError, match="4, 4, 3"):
        Outputs(outputs.probabilities, outputs.theta, outputs.boxes[1:]).finite()


def test_the_tiny_reader_is_a_valid_model(artifact: Path) -> None:
    onnx.checker.check_model(onnx.load(str(artifact)), full_check=True)
