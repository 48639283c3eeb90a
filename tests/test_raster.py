"""Photographs that are decoded once for many views: no larger than they need be, and the views are the same."""

import pytest
from test_imaging import BIG, UPRIGHT, assert_same_but_for_edges, decoded_sizes, encode, exif, opened

from service.geometry import Region
from service.imaging import view

__all__ = ["decoded_sizes"]  # a fixture


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize(
    ("image_format", "most", "decoded"),
    [
        ("JPEG", 1_000_000, (1043, 779)),
        ("JPEG", 400_000, (1043, 779)),
        ("JPEG", 100_000, (522, 390)),
        ("JPEG", 45_000, (261, 195)),
        ("PNG", 1_000_000, None),
        ("PNG", 100_000, None),
    ],
)
def test_a_raster_has_so_many_pixels_and_shows_what_the_photograph_does(
    image_format: str,
    most: int,
    decoded: tuple[int, int] | None,
    orientation: int,
    decoded_sizes: list[tuple[int, int]],
) -> None:
    photo = opened(encode(BIG, image_format, quality=95, exif=exif(orientation)))
    full = photo.rgb()
    raster = photo.raster(most)
    assert decoded_sizes[1:] == ([decoded] if decoded else [])
    width, height = raster.rgb.size
    assert width * height == pytest.approx(min(most, photo.width * photo.height), rel=0.01)
    assert width / height == pytest.approx(photo.width / photo.height, rel=0.02)
    part = Region(0.1 * photo.width, 0.15 * photo.height, 0.85 * photo.width, 0.8 * photo.height)
    for region in (photo.whole, part):
        assert_same_but_for_edges(raster.view(region, (32, 40)), view(full, region, (32, 40)))
