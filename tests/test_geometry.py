"""Regions and corners against plain arithmetic on single points and single pixels."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.geometry import Region, corners_in_pixels

coordinates = st.floats(-1000, 1000)
lengths = st.floats(0.5, 1000)
regions = st.builds(Region, coordinates, coordinates, lengths, lengths)


def test_the_whole_image() -> None:
    assert Region.whole(640, 480) == Region(0.0, 0.0, 640.0, 480.0)


def test_edges() -> None:
    region = Region(2, 3, 10, 20)
    assert (region.right, region.bottom) == (12, 23)


@given(regions, st.floats(0.01, 8), st.floats(0.01, 8))
def test_scaled_moves_both_corners_with_the_image(region: Region, sx: float, sy: float) -> None:
    scaled = region.scaled(sx, sy)
    assert (scaled.x, scaled.y) == pytest.approx((region.x * sx, region.y * sy))
    assert (scaled.right, scaled.bottom) == pytest.approx((region.right * sx, region.bottom * sy), abs=1e-9)


def test_enlarged_by_30_percent() -> None:
    enlarged = Region(100, 50, 40, 20).enlarged(0.3)
    assert (enlarged.x, enlarged.y, enlarged.width, enlarged.height) == pytest.approx((94, 47, 52, 26))


@given(regions, st.floats(0, 2))
def test_enlarged_keeps_the_centre(region: Region, share: float) -> None:
    enlarged = region.enlarged(share)
    assert enlarged.x + enlarged.width / 2 == pytest.approx(region.x + region.width / 2, abs=1e-6)
    assert enlarged.y + enlarged.height / 2 == pytest.approx(region.y + region.height / 2, abs=1e-6)
    assert enlarged.width == pytest.approx(region.width * (1 + share))
    assert enlarged.height == pytest.approx(region.height * (1 + share))


@given(*[st.integers(-12, 12)] * 2, *[st.integers(0, 15)] * 2, *[st.integers(1, 9)] * 2)
def test_clipped_covers_the_pixels_that_region_and_image_share(
    x: int, y: int, width: int, height: int, image_width: int, image_height: int
) -> None:
    clipped = Region(x, y, width, height).clipped(image_width, image_height)
    covered = {
        (i, j)
        for i in range(math.floor(clipped.x), math.ceil(clipped.right))
        for j in range(math.floor(clipped.y), math.ceil(clipped.bottom))
        if clipped.width > 0 and clipped.height > 0
    }
    shared = {
        (i, j) for i in range(image_width) for j in range(image_height) if x <= i < x + width and y <= j < y + height
    }
    assert covered == shared
    assert 0 <= clipped.x <= clipped.right <= image_width
    assert 0 <= clipped.y <= clipped.bottom <= image_height


@given(regions, st.floats(1, 1000), st.floats(1, 1000))
def test_clipping_twice_is_clipping_once(region: Region, width: float, height: float) -> None:
    once = region.clipped(width, height)
    twice = once.clipped(width, height)
    assert (twice.x, twice.y) == (once.x, once.y)
    assert (twice.width, twice.height) == pytest.approx((once.width, once.height), abs=1e-9)


def test_corners_of_the_square_are_corners_of_the_region() -> None:
    square = [(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]
    assert corners_in_pixels(square, Region(10, 20, 30, 40)) == ((10, 20), (40, 20), (40, 60), (10, 60))


@given(regions, st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3)), max_size=6))
def test_each_corner_by_the_formula(region: Region, corners: list[tuple[float, float]]) -> None:
    for (u, v), (x, y) in zip(corners, corners_in_pixels(corners, region), strict=True):
        assert x == pytest.approx(region.x + region.width / 2 + u * region.width / 2, abs=1e-9)
        assert y == pytest.approx(region.y + region.height / 2 + v * region.height / 2, abs=1e-9)


def test_normalised_pixel_centres_are_pixel_centres() -> None:
    # With align_corners=False the i-th of n pixels has its centre at (2 i + 1) / n - 1.
    n = 7
    centres = [((2 * i + 1) / n - 1, 0.0) for i in range(n)]
    for i, corner in enumerate(corners_in_pixels(centres, Region.whole(n, 1))):
        assert corner == pytest.approx((i + 0.5, 0.5))
