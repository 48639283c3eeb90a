"""Searching, with a reader that can only read what is large enough, and with the one that ships."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Container
from itertools import groupby, pairwise

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from serving import Sabotaged, encode, serving
from tiny_reader import metadata as tiny_metadata

from service.decoding import decode
from service.engine import OnnxEngine, Outputs
from service.errors import Internal, ServiceError
from service.geometry import Region
from service.imaging import Photo, View
from service.reader import Reader, Reading
from service.scoring.core import Answers, Scorer
from service.scoring.records import Position, Record
from service.search import CLOSER_LOOKS, GRIDS, PLACES, Search
from service.settings import DEFAULT_MODEL

SIDE = 64
WIDTH, HEIGHT = 512, 384
DIGIT = (24, 30)
"""Width and height, in pixels of the photograph: 3 x 5 in a view of the whole of it."""
MARGIN = 16
INK = {"1": (255, 0, 0), "2": (0, 255, 0), "3": (0, 0, 255)}
GROUND = (128, 128, 128)


class BlockReader:
    """Reads red, green and blue blocks side by side as 1, 2 and 3: surely, where each is at least 8 pixels wide.

    Blocks that the view's border cuts it does not know. Its box is the upright rectangle around the others. Without
    blocks it surely says that there is nothing where the view is white, and doubts it elsewhere.
    """

    sha256 = "blocks"
    provider = "test"
    parallel_batches = 1
    metadata = tiny_metadata(input_height=SIDE, input_width=SIDE, transformers=1)

    def __init__(self) -> None:
        self.shown = 0

    def infer(self, images: NDArray[np.uint8]) -> Outputs:
        self.shown += len(images)
        answers = [self._answer(image.astype(int)) for image in images]
        return Outputs(*(np.stack(part).astype(np.float32) for part in zip(*answers, strict=True)))

    def _answer(self, image: NDArray[np.int_]) -> tuple[NDArray[np.float64], ...]:
        probabilities = np.full((5, 11), 1e-4)
        probabilities[:, 10] = 0.999
        inked = np.ptp(image, axis=2) > 60
        blocks = [] if inked[[0, -1]].any() else _blocks(np.where(inked[..., None], image, 0))
        if not blocks:
            probabilities[0, 10] = 0.99 if image.mean() > 250 else 0.5
            return probabilities, np.eye(2, 3)[None], np.array([[(-1, -1), (1, -1), (1, 1), (-1, 1)]])
        sure = 0.999 if min(end - start for _, start, end in blocks) >= 8 else 0.55
        for slot, (channel, _, _) in enumerate(blocks):
            probabilities[slot, [1 + channel, 10]] = sure, 1 - sure
        rows = np.flatnonzero(inked.any(axis=1))
        left, right, top, bottom = blocks[0][1], blocks[-1][2], rows[0], rows[-1] + 1
        corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)]) / (SIDE / 2) - 1
        theta = [
            [(right - left) / SIDE, 0, (left + right) / SIDE - 1],
            [0, (bottom - top) / SIDE, (top + bottom) / SIDE - 1],
        ]
        return probabilities, np.array([theta]), corners[None]


def _blocks(inked: NDArray[np.int_]) -> list[tuple[int, int, int]]:
    """Channel, first column and the one after the last, of up to five blocks, in an image that is black elsewhere."""
    sums = inked.sum(axis=0)
    channels = [int(column.argmax()) if column.any() else None for column in sums]
    runs = [(channel, [n for n, _ in run]) for channel, run in groupby(enumerate(channels), key=lambda item: item[1])]
    blocks = [(channel, run[0], run[-1] + 1) for channel, run in runs if channel is not None and len(run) > 1]
    return [block for block in blocks if block[1] > 0 and block[2] < SIDE][:5]


def picture(number: str, x: int, y: int, ground: tuple[int, int, int] = GROUND) -> Image.Image:
    """The number with its top-left corner at (x, y)."""
    image = Image.new("RGB", (WIDTH, HEIGHT), ground)
    for n, digit in enumerate(number):
        left = x + n * DIGIT[0]
        image.paste(INK[digit], (left, y, left + DIGIT[0], y + DIGIT[1]))
    return image


def view_of(image: Image.Image, region: Region | None = None) -> View:
    photo = Photo.open(encode(image), max_pixels=10**7)
    (view,) = photo.views([region or photo.whole], (SIDE, SIDE))
    return view


def read(image: Image.Image, region: Region | None = None) -> Reading:
    (reading,) = Reader(BlockReader()).read([view_of(image, region)])
    return reading


NUMBERS = st.text("123", min_size=1, max_size=3).filter(lambda number: all(a != b for a, b in pairwise(number)))


@st.composite
def standing(draw: st.DrawFn) -> tuple[str, int, int]:
    """A number and where in the photograph it stands."""
    number = draw(NUMBERS)
    x = draw(st.integers(MARGIN, WIDTH - len(number) * DIGIT[0] - MARGIN))
    return number, x, draw(st.integers(MARGIN, HEIGHT - DIGIT[1] - MARGIN))


@given(standing=standing())
def test_what_is_accepted_stands_in_the_box(standing: tuple[str, int, int]) -> None:
    number, x, y = standing
    reading = read(picture(number, x, y))
    if not reading.accepted:
        return
    assert reading.number in number
    first = number.index(reading.number)
    left, right = x + first * DIGIT[0], x + (first + len(reading.number)) * DIGIT[0]
    if number.count(reading.number) == 1:
        expected = np.array([(left, y), (right, y), (right, y + DIGIT[1]), (left, y + DIGIT[1])])
        np.testing.assert_allclose(reading.boxes[0].corners, expected, atol=4)
    # theta takes the target's corners to the box, in the normalised coordinates of what was asked for.
    by_theta = np.array([(-1, -1, 1), (1, -1, 1), (1, 1, 1), (-1, 1, 1)]) @ np.array(reading.boxes[0].theta).T
    np.testing.assert_allclose((by_theta + 1) / 2 * (WIDTH, HEIGHT), reading.boxes[0].corners, atol=0.01)


@pytest.mark.parametrize("number", ["1", "12", "213"])
def test_numbers_are_found_and_seldom_a_piece_of_one(number: str) -> None:
    """Wherever the borders of the parts cut them."""
    rng = np.random.default_rng(3)
    xs = rng.integers(MARGIN, WIDTH - len(number) * DIGIT[0] - MARGIN, 60)
    ys = rng.integers(MARGIN, HEIGHT - DIGIT[1] - MARGIN, 60)
    readings = [read(picture(number, x, y)) for x, y in zip(xs.tolist(), ys.tolist(), strict=True)]
    accepted = [reading.number for reading in readings if reading.accepted]
    assert len(accepted) >= 59
    assert accepted.count(number) >= 0.96 * len(accepted)


def test_a_search_stays_in_the_region_that_was_asked_for() -> None:
    image = picture("12", 300, 60)
    image.paste(picture("3", 60, 60).crop((0, 0, 200, 200)), (0, 0))
    left, right = Region(0, 0, 250, 384), Region(250, 0, 262, 384)
    assert (read(image, left).number, read(image, right).number) == ("3", "12")
    search = Search(right, BlockReader.metadata)
    assert len(search.regions) == GRIDS[0][0] ** 2
    for part in search.regions:
        assert part.inside(right).width == pytest.approx(part.width)
        assert part.inside(right).height == pytest.approx(part.height)
    for corner in ((250, 0), (512, 0), (512, 384), (250, 384)):
        assert any(
            abs(corner[0] - x) < 1e-9 and abs(corner[1] - y) < 1e-9
            for part in search.regions
            for x in (part.x, part.right)
            for y in (part.y, part.bottom)
        )


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (picture("12", 100, 100).resize((SIDE, 200)), "it is no wider than the view"),
        (picture("12", 100, 100).crop((90, 90, 160, 140)), "it is surely read"),
        (Image.new("RGB", (WIDTH, HEIGHT), "white"), "there is surely none"),
    ],
)
def test_there_is_no_search_where_it_is_not_worth_it(image: Image.Image, why: str) -> None:
    engine = BlockReader()
    Reader(engine).read([view_of(image)])
    assert engine.shown == 1, why


@pytest.mark.parametrize(("confidence", "shown"), [(0.79, 1 + 4 + 9), (0.81, 1)])
def test_that_there_is_no_number_is_believed_from_four_fifths_on(confidence: float, shown: int) -> None:
    class Doubter(BlockReader):
        def infer(self, images: NDArray[np.uint8]) -> Outputs:
            outputs = super().infer(images)
            outputs.probabilities[:, 0, 10] = confidence
            return outputs

    engine = Doubter()
    Reader(engine).read([view_of(Image.new("RGB", (WIDTH, HEIGHT), GROUND))])
    assert engine.shown == shown


def test_a_photograph_without_a_number_stays_one() -> None:
    engine = BlockReader()
    (reading,) = Reader(engine).read([view_of(Image.new("RGB", (WIDTH, HEIGHT), GROUND))])
    assert (reading.number, reading.accepted) == ("", False)
    assert reading.confidence == pytest.approx(0.5, abs=0.01)
    assert engine.shown == 1 + sum(along**2 for along, _ in GRIDS)  # nothing in the parts is looked into


def test_what_comes_without_a_photograph_is_not_searched() -> None:
    engine = BlockReader()
    shown = view_of(picture("12", 100, 100))
    Reader(engine).read([View(shown.pixels, shown.region)])
    assert engine.shown == 1


def test_batches_stay_within_the_largest() -> None:
    class Strict(BlockReader):
        def infer(self, images: NDArray[np.uint8]) -> Outputs:
            assert len(images) <= 4
            return super().infer(images)

    (reading,) = Reader(Strict(), 4).read([view_of(picture("12", 300, 200))])
    assert reading.number == "12"


def search_with(failing: Container[int]) -> tuple[int, Outputs | None]:
    """How many looks a search takes of which these fail, by their number, and what it finds."""
    photo = Photo.open(encode(picture("12", 300, 200)), max_pixels=10**7)
    search, engine, count = Search(photo.whole, BlockReader.metadata), BlockReader(), 0
    while search.regions:
        looks: list[Outputs | ServiceError] = []
        for view in photo.views(search.regions, (SIDE, SIDE)):
            looks.append(Internal("it fails") if count in failing else engine.infer(view.pixels[None]))
            count += 1
        search.saw(looks)
    return count, search.found


MOST_LOOKS = sum(along**2 + CLOSER_LOOKS * PLACES for along, _ in GRIDS)


@given(failing=st.sets(st.integers(0, MOST_LOOKS)))
def test_looks_that_fail_are_passed_over(failing: set[int]) -> None:
    count, found = search_with(failing)
    assert count <= MOST_LOOKS
    if found is not None:
        assert decode(found.probabilities)[0].number in "12"


def test_a_search_finds_nothing_where_no_look_succeeds_or_no_closer_one() -> None:
    parts = [along**2 for along, _ in GRIDS]
    assert search_with(range(MOST_LOOKS)) == (sum(parts), None)
    closer = set(range(parts[0], MOST_LOOKS))
    assert search_with(closer)[1] is None
    assert search_with(())[1] is not None


def searches(client: httpx.Client) -> dict[str, float]:
    """How many came out how, where there were any."""
    lines = client.get("/metrics").text.splitlines()
    counted = [line.split() for line in lines if line.startswith("housenumber_searches_total{")]
    assert [name.split('"')[1] for name, _ in counted] == ["found", "nothing", "given_up"]
    return {name.split('"')[1]: float(count) for name, count in counted if float(count)}


def test_the_service_searches_unless_it_is_told_not_to() -> None:
    image = encode(picture("12", 300, 200))
    with serving(BlockReader()) as client:
        answer = client.post("/predict", content=image).raise_for_status().json()
        (prediction,) = answer["predictions"]
        assert (prediction["number"], prediction["accepted"], prediction["region"]) == ("12", True, None)
        assert prediction["image"] == {"index": 0, "width": WIDTH, "height": HEIGHT}
        np.testing.assert_allclose(prediction["boxes"][0]["corners"][0], (300, 200), atol=3)
        timing = answer["timing_ms"]
        assert timing["decode"] + timing["queue"] + timing["inference"] <= timing["total"] + 0.01
        nothing = client.post("/predict", content=encode(Image.new("RGB", (WIDTH, HEIGHT), GROUND)))
        assert nothing.json()["predictions"][0]["number"] == ""
        assert searches(client) == {"found": 1, "nothing": 1}
    with serving(BlockReader(), search=False) as client:
        (prediction,) = client.post("/predict", content=image).raise_for_status().json()["predictions"]
        assert not prediction["accepted"]
        assert searches(client) == {}


def test_the_time_of_every_look_is_told() -> None:
    """Whether it finds something or is given up: here where there is no room for the second grid."""
    seconds, batches = 0.03, []

    def wait(images: NDArray[np.uint8]) -> None:
        if images.any():
            batches.append(len(images))
            time.sleep(seconds)

    image, nothing = encode(picture("12", 300, 200)), encode(Image.new("RGB", (WIDTH, HEIGHT), GROUND))
    with serving(Sabotaged(BlockReader(), wait), max_queue_images=16, max_images=1) as client:
        for body, looks in ((image, [1, 4, 1]), (nothing, [1, 4])):
            batches.clear()
            timing = client.post("/predict", content=body).raise_for_status().json()["timing_ms"]
            assert batches == looks
            assert timing["inference"] >= 1000 * seconds * len(batches)
            assert timing["decode"] + timing["queue"] + timing["inference"] <= timing["total"] + 0.01
        assert searches(client) == {"found": 1, "given_up": 1}


def test_there_is_no_search_without_time_for_one() -> None:
    """Nor anything that is begun and given up."""
    engine = BlockReader()
    with serving(engine) as client:
        engine.shown = 0
        headers = {"X-Request-Timeout-Ms": "45"}
        for _ in range(5):
            response = client.post("/predict", content=encode(picture("12", 300, 200)), headers=headers)
            assert response.status_code in (200, 504)  # of which the second is this machine's doing
        assert engine.shown <= 5
        assert 'reason="cancelled"' not in client.get("/metrics").text


def test_of_several_images_each_is_searched_for_its_own() -> None:
    pictures = [picture("12", 300, 200), picture("31", 20, 300), picture("2", 8, 8).crop((0, 0, 40, 46))]
    with serving(BlockReader()) as client:
        files = [("image", encode(one)) for one in pictures]
        answer = client.post("/predict", files=files).raise_for_status().json()
        assert [prediction["number"] for prediction in answer["predictions"]] == ["12", "31", "2"]
        body = {
            "images": [
                {
                    "data": base64.b64encode(encode(pictures[0])).decode(),
                    "regions": [[0, 0, 250, 384], [200, 100, 312, 284]],
                }
            ]
        }
        answer = client.post("/predict", json=body).raise_for_status().json()
        assert [prediction["number"] for prediction in answer["predictions"]] == ["", "12"]


def test_the_inference_protocol_searches_pictures_and_has_boxes_of_the_whole() -> None:
    with serving(BlockReader()) as client:
        inputs = [
            {
                "name": "image",
                "shape": [1],
                "datatype": "BYTES",
                "data": [base64.b64encode(encode(picture("12", 300, 200))).decode()],
                "parameters": {"content_type": "base64"},
            }
        ]
        answer = client.post("/v2/models/tiny/infer", json={"inputs": inputs}).raise_for_status().json()
        outputs = {output["name"]: output["data"] for output in answer["outputs"]}
        assert (outputs["number"], outputs["accepted"]) == (["12"], [True])
        corner = (np.array(outputs["boxes"][:2]) + 1) / 2 * (WIDTH, HEIGHT)
        np.testing.assert_allclose(corner, (300, 200), atol=3)
        assert searches(client) == {"found": 1}


def test_a_search_takes_no_more_than_half_of_the_queue() -> None:
    image = encode(picture("12", 300, 200))
    for places, outcome in ((7, "given_up"), (8, "found")):
        with serving(BlockReader(), max_queue_images=places, max_images=1) as client:
            (prediction,) = client.post("/predict", content=image).raise_for_status().json()["predictions"]
            assert prediction["accepted"] == (outcome == "found")
            assert searches(client) == {outcome: 1}
            assert "housenumber_rejected_images_total{" not in client.get("/metrics").text


def test_a_search_that_takes_too_long_leaves_the_first_answer() -> None:
    go_on, once = threading.Event(), iter([True])

    def wait(images: NDArray[np.uint8]) -> None:
        if images.any() and not next(once, False):
            go_on.wait(20)

    with serving(Sabotaged(BlockReader(), wait)) as client:
        try:
            headers = {"X-Request-Timeout-Ms": "1000"}
            response = client.post("/predict", content=encode(picture("12", 300, 200)), headers=headers)
        finally:
            go_on.set()
        (prediction,) = response.raise_for_status().json()["predictions"]
        assert not prediction["accepted"]
        assert searches(client) == {"given_up": 1}


def test_a_search_in_which_the_engine_fails_leaves_the_first_answer() -> None:
    once = iter([True])

    def fail(images: NDArray[np.uint8]) -> None:
        if images.any() and not next(once, False):
            raise RuntimeError("it broke")

    with serving(Sabotaged(BlockReader(), fail)) as client:
        (prediction,) = client.post("/predict", content=encode(picture("12", 300, 200))).json()["predictions"]
        assert (prediction["accepted"], prediction["error"]) == (False, None)


@pytest.mark.parametrize("search", [True, False])
def test_a_scoring_job_reads_what_the_service_reads(search: bool) -> None:
    image = encode(picture("12", 300, 200))
    reader = Reader(BlockReader(), search=search)
    scorer = Scorer(reader, Answers(None, True, 10**7, True, search=search), {})
    (row,) = scorer.score([Record("a", "a", image, Position(0), 0)]).to_pylist()
    with serving(BlockReader(), search=search) as client:
        (prediction,) = client.post("/predict", content=image).raise_for_status().json()["predictions"]
    assert (row["number"], row["confidence"], row["accepted"]) == (
        prediction["number"],
        prediction["confidence"],
        prediction["accepted"],
    )
    assert row["accepted"] == search


def test_the_shipped_reader_finds_a_small_number_on_a_wall() -> None:
    """Drawn with Pillow's own font, 26 pixels high in a picture of 900 x 700."""
    rng = np.random.default_rng(0)
    wall = rng.normal((150, 120, 100), 6, (700, 900, 3)).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(wall)
    ImageDraw.Draw(image).rectangle((610, 430, 700, 490), "white")
    ImageDraw.Draw(image).text((625, 440), "47", "black", ImageFont.load_default(36))
    engine = OnnxEngine(DEFAULT_MODEL, "cpu", intra_op_threads=1)
    photo = Photo.open(encode(image), max_pixels=10**7)
    views = photo.views([photo.whole], engine.metadata.input_size)
    (once,) = Reader(engine, search=False).read(views)
    (found,) = Reader(engine).read(views)
    assert not once.accepted
    assert (found.number, found.accepted) == ("47", True)
    xs, ys = np.array(found.boxes[0].corners).T
    assert 560 < xs.min() < 640
    assert 660 < xs.max() < 740
    assert 400 < ys.min() < 455
    assert 465 < ys.max() < 520
