"""The artifact, the engine and the reader, on a real session."""

import hashlib
import json
import logging
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from serving import Sabotaged
from tiny_reader import BOXES, SIZE, THETA, THRESHOLD, colour_of, metadata, write_artifact

from service.artifact import METADATA_KEY, ArtifactError, parse_metadata
from service.engine import OnnxEngine, Outputs, ProviderError
from service.geometry import Region
from service.imaging import View
from service.reader import Reader


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


def test_the_session_is_sized_for_this_process_and_does_not_spin(artifact: Path) -> None:
    options = OnnxEngine(artifact, "cpu", intra_op_threads=3)._session.get_session_options()
    assert options.intra_op_num_threads == 3
    assert options.inter_op_num_threads == 1
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


NO_CUDA = [
    ("service.engine._installed", {"onnxruntime", "onnxruntime-gpu"}, "both installed"),
    ("service.engine.ort.get_available_providers", ["CPUExecutionProvider"], "onnxruntime-gpu"),
]


@pytest.mark.parametrize(("name", "answer", "mention"), NO_CUDA)
def test_cuda_is_refused_where_it_cannot_be_and_auto_says_so_once(
    artifact: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    name: str,
    answer: object,
    mention: str,
) -> None:
    monkeypatch.setattr(name, lambda: answer)
    with pytest.raises(ProviderError, match=mention):
        OnnxEngine(artifact, "cuda")
    caplog.set_level(logging.DEBUG)
    assert OnnxEngine(artifact, "auto").provider == "CPUExecutionProvider"
    (record,) = caplog.records
    assert record.getMessage().startswith("running on the CPU: ")
    assert mention in record.getMessage()
    caplog.clear()
    OnnxEngine(artifact, "cpu")
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_without_a_driver_auto_takes_the_cpu_without_a_word_of_the_runtimes_own(
    artifact: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def no_driver(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr("service.engine._installed", lambda: {"onnxruntime-gpu"})
    monkeypatch.setattr("service.engine.ort.get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr("service.engine.ctypes.CDLL", no_driver)
    with pytest.raises(ProviderError, match="NVIDIA driver"):
        OnnxEngine(artifact, "cuda")
    assert OnnxEngine(artifact, "auto").provider == "CPUExecutionProvider"
    assert [record.getMessage() for record in caplog.records] == [
        "running on the CPU: no NVIDIA driver was found (libcuda.so.1)"
    ]
    assert capfd.readouterr() == ("", "")


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


@pytest.mark.parametrize(("largest", "sizes"), [(1, [1]), (4, [1, 2, 4]), (6, [1, 2, 4, 6])])
def test_warming_meets_the_sizes_that_will_come(engine: OnnxEngine, largest: int, sizes: list[int]) -> None:
    met: list[int] = []
    Reader(Sabotaged(engine, lambda images: met.append(len(images))), largest).warm()
    assert met == sizes


def test_on_cuda_only_powers_of_two_are_run(engine: OnnxEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    padded = object.__new__(OnnxEngine)
    padded.provider = "CUDAExecutionProvider"

    class Session:
        def run(self, names: list[str], feed: dict[str, NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
            ran.append(len(feed["images"]))
            result: list[NDArray[np.float32]] = engine._session.run(names, feed)
            return result

    padded._session = Session()
    for count in range(1, 10):
        images = np.stack([pixels(str(number)) for number in range(count)])
        outputs, expected = padded.infer(images), engine.infer(images)
        np.testing.assert_array_equal(outputs.probabilities, expected.probabilities)
        assert len(outputs.theta) == len(outputs.boxes) == count
    assert ran == [1, 2, 4, 4, 8, 8, 8, 8, 16]


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


def test_compose_wants_one_region_per_image(engine: OnnxEngine) -> None:
    outputs = engine.infer(pixels("1")[None])
    with pytest.raises(ValueError, match="zip"):
        Reader(engine).compose(outputs, [])


def test_outputs_are_cut_and_joined_without_loss(engine: OnnxEngine) -> None:
    outputs = engine.infer(np.stack([pixels(str(number)) for number in range(5)]))
    joined = Outputs.joined([outputs.part(start, stop) for start, stop in pairwise((0, 1, 3, 5))])
    for field in ("probabilities", "theta", "boxes"):
        np.testing.assert_array_equal(getattr(joined, field), getattr(outputs, field))


def test_the_tiny_reader_is_a_valid_model(artifact: Path) -> None:
    onnx.checker.check_model(onnx.load(str(artifact)), full_check=True)
