"""Modes, orientations and corners, from the bytes of an image to the answer."""

from math import cos, pi, sin
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from serving import encode
from tiny_reader import colour_of

# How a camera stores an upright picture for each EXIF orientation: what undoes it is what a viewer does.
STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: np.rot90(upright, 2).transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
}

# What the tiny reader's two transformers look at, written out by hand: u' = a u + b v + c, v' = d u + e v + f.
AFFINE = [
    (0.5, 0.1, -0.2, 0.0, 0.75, 0.1),
    (0.9 * cos(pi / 6), -0.9 * sin(pi / 6), 0.4, 0.9 * sin(pi / 6), 0.9 * cos(pi / 6), 0.3),
]


def expected_corners(x: float, y: float, width: float, height: float) -> list[list[tuple[float, float]]]:
    """Corners by another way: through the centre and half the sides of the region."""
    centre_x, centre_y = x + width / 2, y + height / 2
    return [
        [
            (centre_x + (a * u + b * v + c) * width / 2, centre_y + (d * u + e * v + f) * height / 2)
            for u, v in ((-1, -1), (1, -1), (1, 1), (-1, 1))
        ]
        for a, b, c, d, e, f in AFFINE
    ]


def quarters(width: int, height: int) -> NDArray[np.uint8]:
    """An upright image whose quarters read 11, 22, 33 and 44, in reading order."""
    image = np.empty((height, width, 3), np.uint8)
    for number, rows, columns in (
        ("11", slice(0, height // 2), slice(0, width // 2)),
        ("22", slice(0, height // 2), slice(width // 2, width)),
        ("33", slice(height // 2, height), slice(0, width // 2)),
        ("44", slice(height // 2, height), slice(width // 2, width)),
    ):
        image[rows, columns] = colour_of(number)
    return image


def post(client: httpx.Client, data: bytes, *regions: tuple[float, float, float, float]) -> list[dict[str, Any]]:
    query = "&".join("region=" + ",".join(map(str, region)) for region in regions)
    response = client.post(f"/predict?{query}", content=data)
    assert response.status_code == 200, response.text
    predictions: list[dict[str, Any]] = response.json()["predictions"]
    return predictions


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_regions_and_corners_are_those_of_the_upright_image(
    client: httpx.Client,
    orientation: int,
    format: str,  # noqa: A002
) -> None:
    width, height = 96, 64
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](quarters(width, height))))
    lossless = {"lossless": True} if format == "WEBP" else {}
    regions = [(4, 4, 40, 24), (52, 4, 40, 24), (4, 36, 40, 24), (52, 36, 40, 24)]
    predictions = post(client, encode(stored, format, exif=exif, **lossless), *regions)
    assert [prediction["number"] for prediction in predictions] == ["11", "22", "33", "44"]
    for prediction, region in zip(predictions, regions, strict=True):
        assert prediction["image"] == {"index": 0, "width": width, "height": height}
        corners = [box["corners"] for box in prediction["boxes"]]
        np.testing.assert_allclose(corners, expected_corners(*region), atol=1e-3)


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (741, 350), (1023, 77), (333, 1999)])
def test_corners_are_within_half_a_pixel_for_every_size(
    client: httpx.Client,
    size: tuple[int, int],
    orientation: int,
    format: str,  # noqa: A002
) -> None:
    width, height = size
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored_size = (height, width) if orientation == 6 else size
    data = encode(Image.new("RGB", stored_size, colour_of("7")), format, exif=exif)
    part = (width * 0.2, height * 0.1, width * 0.55, height * 0.7)
    whole, region = post(client, data)[0], post(client, data, part)[0]
    for prediction, asked in ((whole, (0, 0, width, height)), (region, part)):
        assert prediction["number"] == "7"
        corners = [box["corners"] for box in prediction["boxes"]]
        np.testing.assert_allclose(corners, expected_corners(*asked), atol=0.5)
        theta = [np.ravel(box["theta"]) for box in prediction["boxes"]]
        np.testing.assert_allclose(theta, AFFINE, atol=1e-6)


def test_a_large_jpeg_read_at_a_reduced_scale_gives_full_size_corners(client: httpx.Client) -> None:
    width, height = 1601, 1203
    data = encode(Image.fromarray(quarters(width, height)), "JPEG", quality=95)
    regions = [(10.5, 20.25, 700, 500), (850, 650, 701.5, 520)]
    predictions = post(client, data, *regions)
    assert [prediction["number"] for prediction in predictions] == ["11", "44"]
    for prediction, region in zip(predictions, regions, strict=True):
        corners = [box["corners"] for box in prediction["boxes"]]
        np.testing.assert_allclose(corners, expected_corners(*region), atol=0.5)


@pytest.mark.parametrize(
    ("mode", "format"),
    [("L", "PNG"), ("1", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("P", "GIF"), ("RGBA", "PNG"), ("RGBA", "WEBP"),
     ("I;16", "PNG"), ("CMYK", "TIFF"), ("CMYK", "JPEG"), ("L", "JPEG"), ("L", "BMP"), ("YCbCr", "TIFF")],
)  # fmt: skip
def test_every_mode_is_read(client: httpx.Client, mode: str, format: str) -> None:  # noqa: A002
    # Grey 12 is "000" and white is no digit: the two greys that every mode can say are black and white.
    for grey, number in ((0, "000"), (255, "")):
        if mode == "I;16":
            image = Image.fromarray(np.full((12, 16), grey * 257, np.uint16))
        else:
            image = Image.new("RGB", (16, 12), (grey, grey, grey)).convert(mode)
        (prediction,) = post(client, encode(image, format))
        assert (prediction["number"], prediction["error"]) == (number, None)


def test_of_an_animation_the_first_frame_is_read(client: httpx.Client) -> None:
    frames = [Image.new("RGB", (16, 12), colour_of(number)) for number in ("1", "2")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert post(client, data)[0]["number"] == "1"
