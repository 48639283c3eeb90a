"""What is painted, found again in the pixels: which colours appear where, and where nothing changes."""

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageColor

from service.drawing import BOX_COLOURS, draw
from service.geometry import Region
from service.reader import Box, Reading

IDENTITY = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
GROUND = (90, 60, 120)  # a colour that nothing is painted in


def box(transformer: int, *corners: tuple[float, float]) -> Box:
    return Box(transformer, corners, IDENTITY)


def reading(*boxes: Box, number: str = "260", confidence: float = 0.983, accepted: bool = True) -> Reading:
    return Reading(number, confidence, accepted, (), boxes)


def ground(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), GROUND)


def painted(picture: Image.Image, colour: str) -> NDArray[np.bool_]:
    """[H, W]: where the picture has exactly this colour."""
    wanted: NDArray[np.bool_] = (np.asarray(picture) == ImageColor.getrgb(colour)).all(-1)
    return wanted


def extent(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what is set."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def test_the_photograph_stays_as_it_is() -> None:
    photo = ground(600, 400)
    before = np.array(photo)
    picture = draw(photo, [reading(box(0, (100, 100), (300, 100), (300, 200), (100, 200)))], [None])
    assert np.array_equal(np.asarray(photo), before)
    assert picture.mode == "RGB"
    assert picture.size == photo.size
    assert not np.array_equal(np.asarray(picture), before)


def test_a_box_is_outlined_through_its_corners() -> None:
    corners = [(150, 120), (420, 160), (400, 330), (130, 290)]
    picture = draw(ground(600, 400), [reading(box(0, *corners))], [None])
    on = painted(picture, BOX_COLOURS[0])
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        for share in np.linspace(0.05, 0.95, 19):
            x, y = round(x0 + share * (x1 - x0)), round(y0 + share * (y1 - y0))
            assert on[y - 1 : y + 2, x - 1 : x + 2].any()
    assert not on[180:280, 190:360].any()  # the inside is free


@pytest.mark.parametrize("first", range(4))
def test_the_targets_top_left_corner_is_marked(first: int) -> None:
    square = [(200, 100), (400, 100), (400, 300), (200, 300)]
    picture = draw(ground(600, 400), [reading(box(0, *square[first:], *square[:first]))], [None])
    on = painted(picture, BOX_COLOURS[0])
    inked = [int(on[y - 8 : y + 9, x - 8 : x + 9].sum()) for x, y in square]
    assert inked[first] > 1.5 * max(inked[:first] + inked[first + 1 :])


def test_each_transformer_has_its_colour() -> None:
    boxes = [box(k, (50 + 60 * k, 150), (90 + 60 * k, 150), (90 + 60 * k, 250), (50 + 60 * k, 250)) for k in range(4)]
    picture = draw(ground(600, 400), [reading(*boxes)], [None])
    for k in range(4):
        left, _, right, _ = extent(painted(picture, BOX_COLOURS[k]))
        assert 40 + 60 * k <= left < right <= 100 + 60 * k
    assert not painted(picture, BOX_COLOURS[4]).any()
    assert len(set(BOX_COLOURS)) == len(BOX_COLOURS)


def test_more_transformers_than_colours() -> None:
    far = box(len(BOX_COLOURS) + 1, (100, 100), (200, 100), (200, 200), (100, 200))
    assert painted(draw(ground(600, 400), [reading(far)], [None]), BOX_COLOURS[1]).any()


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_the_label_is_white_in_black_on_any_ground(grey: int) -> None:
    picture = draw(Image.new("RGB", (600, 400), (grey, grey, grey)), [reading()], [None])
    label = np.asarray(picture)[:60, :300]
    assert (label == 255).all(-1).any()
    assert (label == 0).all(-1).any()
    assert (np.asarray(picture)[100:] == grey).all()


@pytest.mark.parametrize(
    "other",
    [
        reading(number="261"),
        reading(confidence=0.5),
        reading(accepted=False),
        reading(number="", confidence=0.9, accepted=False),
    ],
)
def test_the_label_tells_number_confidence_and_acceptance(other: Reading) -> None:
    one, another = (draw(ground(600, 400), [r], [None]) for r in (reading(), other))
    assert not np.array_equal(np.asarray(one), np.asarray(another))


def test_each_region_is_outlined_and_has_its_label_above() -> None:
    regions = [Region(60, 120, 150, 100), Region(350, 220, 150, 100)]
    picture = draw(ground(600, 400), [reading(), reading(number="7")], regions)
    for region in regions:
        x, y = int(region.x), int(region.y)
        assert painted(picture, "#bbbbbb")[y - 2 : y + 3, x + 50].any()
        assert painted(picture, "#bbbbbb")[y + 50, x - 2 : x + 3].any()
        assert painted(picture, "white")[y - 45 : y, x : x + 150].any()
    assert not painted(picture, "white")[230:, :300].any()


@pytest.mark.parametrize(
    "size", [(1, 1), (3, 2), (32, 32), (80, 32), (600, 4), (4, 600), (240, 48), (500, 375), (3000, 2000), (9000, 20)]
)  # fmt: skip
def test_the_label_is_legible_whole_and_inside_on_any_size(size: tuple[int, int]) -> None:
    picture = draw(ground(*size), [reading(number="28135", confidence=1.0, accepted=False)], [None])
    assert picture.width >= size[0]
    assert picture.height >= size[1]
    left, top, right, bottom = extent(painted(picture, "white"))
    assert bottom - top >= 10
    assert right - left > 4 * (bottom - top)
    assert left > 0
    assert top > 0
    assert right < picture.width - 1
    assert bottom < picture.height - 1


def test_a_label_at_the_far_edge_is_moved_inside() -> None:
    picture = draw(ground(600, 400), [reading()], [Region(590, 390, 10, 10)])
    in_the_middle = draw(ground(600, 400), [reading()], [Region(200, 200, 10, 10)])
    assert painted(picture, "white").sum() == painted(in_the_middle, "white").sum()


def test_a_small_photograph_is_enlarged_with_its_boxes() -> None:
    photo = ground(80, 40)
    picture = draw(photo, [reading(box(0, (20, 15), (60, 15), (60, 35), (20, 35)))], [None])
    factor = picture.width / 80
    assert factor == picture.height / 40 == 6
    left, top, right, bottom = extent(painted(picture, BOX_COLOURS[0]))
    assert np.abs(np.array([left, top, right, bottom]) - np.array([20, 15, 60, 35]) * factor).max() <= 9  # the dot


@pytest.mark.parametrize("far", [1e4, 1e9, 1e30])
def test_a_box_outside_the_image_or_of_no_size_leaves_the_label(far: float) -> None:
    outside = box(0, (-far, -far), (far, -far), (far, far), (-far, far))
    nothing = box(0, (5, 5), (5, 5), (5, 5), (5, 5))
    label = painted(draw(ground(600, 400), [reading()], [None]), "white")
    assert label.any()
    for looked_at in (outside, nothing):
        picture = draw(ground(600, 400), [reading(looked_at)], [None])
        assert picture.size == (600, 400)
        assert np.array_equal(painted(picture, "white"), label)


def test_no_readings_leave_a_copy() -> None:
    assert np.array_equal(np.asarray(draw(ground(600, 400), [], [])), np.asarray(ground(600, 400)))


def test_readings_and_regions_belong_together() -> None:
    with pytest.raises(ValueError, match="argument"):
        draw(ground(600, 400), [reading()], [])
