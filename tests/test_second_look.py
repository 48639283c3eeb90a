"""Looking twice, with a reader that sees a bar and tells how crooked it lies, and with the one that ships."""

from __future__ import annotations

import math

import cv2
import httpx
import numpy as np
import pytest
from containers import ROOT
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from serving import encode, serving
from tiny_reader import metadata as tiny_metadata

from models.experiments.distorted_numbers import distort
from service.decoding import decode
from service.engine import CUDA, OnnxEngine, Outputs
from service.geometry import Region
from service.imaging import Photo, View, view
from service.reader import Reader
from service.second_look import look_twice
from service.settings import DEFAULT_MODEL

HEIGHT, WIDTH = 96, 144
HALF = (24.0, 8.0)
"""Half width and height of the bar, in pixels."""
LEVEL = math.radians(14)
ALPHABET = "0123456789"


def slope_of(grey: NDArray[np.uint8]) -> float:
    """Of the bar in an image [H, W], in radians, clockwise as one sees it."""
    rows, columns = np.nonzero(grey > 127)
    x, y = np.linalg.eigh(np.cov(np.stack([columns, rows])))[1][:, 1]
    return math.atan2(y * math.copysign(1, x), abs(x))


class BarReader:
    """Reads a white bar: 2, surely, where it lies nearly level, and where not rather 1 than 2.

    It sees four fifths of the bar's slope, as a reader does that was shown less crooked numbers; black it reads as 0.
    """

    sha256 = "bar"
    provider = "test"
    parallel_batches = 1
    metadata = tiny_metadata(input_height=HEIGHT, input_width=WIDTH, transformers=1)

    def __init__(self) -> None:
        self.shown: list[NDArray[np.uint8]] = []

    def infer(self, images: NDArray[np.uint8]) -> Outputs:
        self.shown.append(images)
        answers = [self._answer(image) for image in images]
        return Outputs(*(np.stack(part).astype(np.float32) for part in zip(*answers, strict=True)))

    def _answer(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.float64], ...]:
        rows, columns = np.nonzero(image[:, :, 0] > 127)
        probabilities = np.full((5, 11), 1e-6)
        probabilities[1:, 10] = 1
        if not len(rows):
            probabilities[0, 0] = 1
            return probabilities, np.eye(2, 3)[None], np.array([[(-1, -1), (1, -1), (1, 1), (-1, 1)]])
        middle = np.stack([columns, rows]).mean(axis=1) + 0.5
        slope = slope_of(image[:, :, 0])
        seen = 0.8 * slope
        linear = np.array([[math.cos(seen), -math.sin(seen)], [math.sin(seen), math.cos(seen)]]) * HALF
        scale = 2 / np.array(image.shape[1::-1])
        theta = np.column_stack([linear * scale[:, None], middle * scale - 1])
        probabilities[0, 1:3] = (1e-6, math.cos(slope)) if abs(slope) < LEVEL else (0.6, 0.4)
        box = np.array([(-1, -1, 1), (1, -1, 1), (1, 1, 1), (-1, 1, 1)]) @ theta.T
        return probabilities, theta[None], box[None]


def bar(degrees: float, middle: tuple[float, float] = (WIDTH / 2, HEIGHT / 2), scale: int = 1) -> NDArray[np.uint8]:
    """A picture of the bar, turned clockwise as one sees it; a larger one is `scale` times as wide and high."""
    x, y = middle
    corners = cv2.boxPoints(((x - 0.5, y - 0.5), (2 * HALF[0], 2 * HALF[1]), degrees))
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    cv2.fillConvexPoly(image, np.rint(corners * 16).astype(np.int32), (255, 255, 255), cv2.LINE_AA, 4)
    return image.repeat(scale, axis=0).repeat(scale, axis=1)


def numbers(outputs: Outputs) -> list[str]:
    return [read.number for read in decode(outputs.probabilities, ALPHABET)]


def assert_same(outputs: Outputs, expected: Outputs) -> None:
    for field in ("probabilities", "theta", "boxes"):
        np.testing.assert_array_equal(getattr(outputs, field), getattr(expected, field))


@given(degrees=st.floats(-50, 50))
def test_a_second_look_sees_the_number_level_and_tells_where_it_stands(degrees: float) -> None:
    x, y = middle = (WIDTH / 2 + 6, HEIGHT / 2 - 4)
    reader = BarReader()
    outputs, twice = look_twice(reader.infer, bar(degrees, (x, y))[None], ALPHABET)
    if twice:
        shown = reader.shown[1][0, :, :, 0]
        assert math.degrees(slope_of(shown)) == pytest.approx(degrees / 5, abs=1.5)
    # Had it looked once, it would have read 1 wherever the bar slopes.
    assert numbers(outputs) == ["2"]
    pixels = (outputs.boxes[0, 0] + 1) / 2 * (WIDTH, HEIGHT)
    np.testing.assert_allclose(pixels.mean(axis=0), middle, atol=0.6)
    edges = pixels[[1, 2]] - pixels[[0, 1]]
    np.testing.assert_allclose(np.hypot(*edges.T), 2 * np.array(HALF), atol=0.1)
    # A fifth is left of what was not turned, or of the fifth that was left of what was.
    left = abs(degrees) / (25 if abs(degrees) > 14 else 5)
    assert math.degrees(math.atan2(edges[0, 1], edges[0, 0])) == pytest.approx(degrees, abs=left + 1.5)
    corners = np.array([(-1, -1, 1), (1, -1, 1), (1, 1, 1), (-1, 1, 1)]) @ outputs.theta[0, 0].T
    np.testing.assert_allclose(outputs.boxes[0, 0], corners, atol=1e-5)


def test_only_what_is_crooked_and_not_surely_read_is_shown_again() -> None:
    class Sure(BarReader):
        """Surely reads what lies in the left half, however it lies."""

        def infer(self, images: NDArray[np.uint8]) -> Outputs:
            outputs = super().infer(images)
            sure = np.array([image[:, : WIDTH // 2].sum() > image[:, WIDTH // 2 :].sum() for image in images])
            outputs.probabilities[sure, 0] = np.eye(11)[5]
            return outputs

    left, right = (WIDTH / 2 - 20, HEIGHT / 2), (WIDTH / 2 + 20, HEIGHT / 2)
    images = np.stack([bar(0, right), bar(30, right), bar(30, left), bar(8, right), bar(-30, right)])
    reader = Sure()
    once = reader.infer(images)
    reader.shown.clear()
    outputs, twice = look_twice(reader.infer, images, ALPHABET)
    assert [len(shown) for shown in reader.shown] == [5, 2]
    assert twice == 2
    assert numbers(once) == ["2", "1", "5", "2", "1"]
    assert numbers(outputs) == ["2", "2", "5", "2", "2"]
    others = np.array([True, False, True, True, False])
    assert_same(outputs[others], once[others])


LOOKS = st.lists(st.lists(st.floats(0, 1), min_size=55, max_size=55).filter(any), min_size=2, max_size=2)


@given(looks=LOOKS)
def test_the_answer_is_the_geometric_mean_of_both_looks(looks: list[list[float]]) -> None:
    both = np.array(looks).reshape(2, 5, 11) + 1e-6
    both = (both / both.sum(axis=-1, keepdims=True)).astype(np.float32)
    crooked = BarReader().infer(bar(30)[None])
    answers = iter(both)
    outputs, twice = look_twice(
        lambda _images: Outputs(next(answers)[None], crooked.theta, crooked.boxes), bar(30)[None], ALPHABET
    )
    if decode(both[:1], ALPHABET)[0].confidence >= 0.99:
        assert twice == 0
        return
    assert twice == 1
    expected = np.exp(np.log(both.astype(np.float64)).mean(axis=0))
    np.testing.assert_allclose(outputs.probabilities[0], expected / expected.sum(axis=-1, keepdims=True), atol=1e-6)


def test_two_looks_that_exclude_each_other_are_not_believed() -> None:
    crooked = BarReader().infer(bar(30)[None])
    first, second = np.zeros((1, 5, 11), np.float32), np.zeros((1, 5, 11), np.float32)
    first[:, 1:, 10] = second[:, 1:, 10] = 1
    first[0, 0, 3], first[0, 0, 10], second[0, 0, 8] = 0.98, 0.02, 1
    answers = iter((first, second))
    outputs, _ = look_twice(lambda _: Outputs(next(answers), crooked.theta, crooked.boxes), bar(30)[None], ALPHABET)
    np.testing.assert_allclose(outputs.probabilities.sum(axis=-1), 1, atol=1e-6)
    assert decode(outputs.probabilities, ALPHABET)[0].confidence < 0.6


@pytest.mark.parametrize("worse", [0.0, 0.1])
def test_the_boxes_are_those_of_the_first_look_unless_the_second_is_surer(worse: float) -> None:
    class Crooked(BarReader):
        """Tells a slope that is not there, of a bar that it is never sure of."""

        def infer(self, images: NDArray[np.uint8]) -> Outputs:
            outputs = super().infer(images)
            outputs.probabilities[:, 0] = np.eye(11)[5] * (0.6 - worse * (len(self.shown) - 1))
            return Outputs(outputs.probabilities, outputs.theta, np.roll(outputs.boxes, -1, axis=2))

    image = bar(0)[None]
    once = Crooked().infer(image)
    outputs, twice = look_twice(Crooked().infer, image, ALPHABET)
    assert twice == 1
    np.testing.assert_array_equal(outputs.theta, once.theta)
    np.testing.assert_array_equal(outputs.boxes, once.boxes)


@pytest.mark.parametrize("colour", [(0, 0, 0), (200, 30, 90)])
def test_beyond_the_edge_of_the_view_it_is_repeated(colour: tuple[int, int, int]) -> None:
    reader = BarReader()
    shown = np.full((1, HEIGHT, WIDTH, 3), colour, np.uint8)
    crooked = reader.infer(bar(35)[None])

    def infer(images: NDArray[np.uint8]) -> Outputs:
        np.testing.assert_array_equal(images, shown)
        return crooked

    assert look_twice(infer, shown, ALPHABET)[1] == 1


@pytest.mark.parametrize("transformers", [0, 2])
def test_without_transformers_or_with_several_there_is_one_look(transformers: int) -> None:
    reader = BarReader()

    def infer(images: NDArray[np.uint8]) -> Outputs:
        outputs = reader.infer(images)
        of_all = [np.repeat(of_one, transformers, axis=1) for of_one in (outputs.theta, outputs.boxes)]
        return Outputs(outputs.probabilities, *of_all)

    outputs, twice = look_twice(infer, bar(30)[None], ALPHABET)
    assert outputs.boxes.shape == (1, transformers, 4, 2)
    assert (twice, len(reader.shown)) == (0, 1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["probabilities", "theta", "boxes"])
def test_outputs_that_are_no_numbers_spoil_no_others(field: str, value: float) -> None:
    """Whether they come from the first look or the second."""
    for spoiled_look in (0, 1):
        reader = BarReader()

        def infer(images: NDArray[np.uint8], reader: BarReader = reader, spoiled_look: int = spoiled_look) -> Outputs:
            outputs = reader.infer(images)
            if len(reader.shown) - 1 == spoiled_look:
                getattr(outputs, field)[0] = value
            return outputs

        outputs, _ = look_twice(infer, np.stack([bar(30), bar(25)]), ALPHABET)
        assert numbers(outputs)[1] == "2"
        assert outputs.finite().tolist() == [spoiled_look == 1, True]


def test_a_reader_that_is_not_to_look_twice_does_not() -> None:
    engine = BarReader()
    shown = View(bar(30), Region.whole(WIDTH, HEIGHT))
    assert [reading.number for reading in Reader(engine, second_look=False).read([shown])] == ["1"]
    assert len(engine.shown) == 1
    assert [reading.number for reading in Reader(engine).read([shown])] == ["2"]


def test_on_cuda_a_second_look_too_runs_the_warmed_sizes_alone() -> None:
    engine = BarReader()
    engine.provider = CUDA
    reader = Reader(engine, 8)
    reader.warm()
    warmed = {len(shown) for shown in engine.shown}
    engine.shown.clear()
    images = np.stack([bar(30)] * 3 + [bar(0)] * 3)
    assert numbers(reader.infer(images)) == ["2"] * 6
    assert [len(shown) for shown in engine.shown] == [8, 4]
    assert {8, 4} <= warmed


def test_the_observer_hears_of_second_looks_and_can_stop_none() -> None:
    heard: list[int] = []

    def observe(images: int) -> None:
        heard.append(images)
        raise RuntimeError("the observer fails")

    reader = Reader(BarReader(), observe_second_looks=observe)
    assert numbers(reader.infer(np.stack([bar(30), bar(0), bar(-30)]))) == ["2", "2", "2"]
    assert numbers(reader.infer(bar(0)[None])) == ["2"]
    assert heard == [2]


def second_looks(client: httpx.Client) -> float:
    lines = client.get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith("housenumber_second_looks_total ")).split()[1])


def test_the_service_looks_twice_unless_it_is_told_not_to() -> None:
    picture = encode(Image.fromarray(bar(30, (WIDTH / 2 + 6, HEIGHT / 2 - 4), scale=2)))
    answers = {}
    for second_look in (True, False):
        with serving(BarReader(), second_look=second_look) as client:
            answers[second_look] = client.post("/predict", content=picture).raise_for_status().json()["predictions"][0]
            assert second_looks(client) == second_look
    assert (answers[True]["number"], answers[False]["number"]) == ("2", "1")
    assert answers[True]["confidence"] > answers[False]["confidence"]
    for answer, off_by in ((answers[True], 2), (answers[False], 7)):
        corners = np.array(answer["boxes"][0]["corners"])
        np.testing.assert_allclose(corners.mean(axis=0), (WIDTH + 12, HEIGHT - 8), atol=1.5)
        edge = corners[1] - corners[0]
        assert np.hypot(*edge) == pytest.approx(4 * HALF[0], abs=0.5)
        assert math.degrees(math.atan2(edge[1], edge[0])) == pytest.approx(30, abs=off_by)


def test_the_shipped_reader_reads_a_crooked_plate_with_a_second_look() -> None:
    """The photograph of the README: turned by 50 degrees one look misreads it."""
    engine = OnnxEngine(DEFAULT_MODEL, "cpu", intra_op_threads=1)
    photo = Photo.open((ROOT / "docs/images/example.jpg").read_bytes(), max_pixels=10**6)
    turned = distort(np.array(photo.rgb()), photo.whole, "rotation", -50)
    whole = Region.whole(turned.shape[1], turned.shape[0])
    shown = View(view(turned, whole, engine.metadata.input_size), whole)
    (once,) = Reader(engine, second_look=False).read([shown])
    (twice,) = Reader(engine).read([shown])
    assert once.number != twice.number == "925"
    assert twice.confidence > 1.5 * once.confidence
