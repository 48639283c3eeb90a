"""What the shipped reader's confidence is worth: it falls with the picture, and stays low where there is no number.

Pictures are drawn here with Pillow's own font, in plain colours: nothing of the generator the reader learned from.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from service.engine import OnnxEngine
from service.imaging import Photo
from service.reader import Reader, Reading
from service.settings import DEFAULT_MODEL

Pixels = NDArray[np.uint8]
Generator = np.random.Generator

FONT_SIZE = 48
"""Digits are then 35 pixels high."""
PICTURES = 60


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader(OnnxEngine(DEFAULT_MODEL, "cpu", intra_op_threads=1))


def read(reader: Reader, pictures: Iterable[Pixels]) -> list[Reading]:
    """Each picture as a whole, the way the service reads a PNG."""
    views = []
    for pixels in pictures:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        photo = Photo.open(buffer.getvalue(), max_pixels=10**6)
        views += photo.views([photo.whole], reader.metadata.input_size)
    return reader.read(views, boxes=False)


def number_picture(number: str, rng: Generator) -> Pixels:
    """The number in one colour on another that differs by 80 grey levels at least, framed loosely."""
    font = ImageFont.load_default(FONT_SIZE)
    left, top, right, bottom = (int(edge) for edge in font.getbbox(number))
    margins = (rng.uniform(0.15, 0.4, 4) * (bottom - top)).astype(int)
    ground, ink = rng.integers(0, 256, (2, 3))
    while abs(ground.mean() - ink.mean()) < 80:
        ground, ink = rng.integers(0, 256, (2, 3))
    size = (right - left + margins[0] + margins[1], bottom - top + margins[2] + margins[3])
    picture = Image.new("RGB", size, tuple(ground.tolist()))
    ImageDraw.Draw(picture).text((margins[0] - left, margins[2] - top), number, tuple(ink.tolist()), font)
    return np.asarray(picture)


def draw_number(rng: Generator, digits: int) -> str:
    return str(rng.integers(10 ** (digits - 1), 10**digits))


@pytest.fixture(scope="module")
def readable(reader: Reader) -> list[Pixels]:
    """Pictures of numbers of one to five digits that the reader reads right."""
    rng = np.random.default_rng(5)
    numbers = [draw_number(rng, int(digits)) for digits in rng.integers(1, 6, PICTURES + 10)]
    pictures = [number_picture(number, rng) for number in numbers]
    readings = read(reader, pictures)
    right = [pictures[index] for index, number in enumerate(numbers) if readings[index].number == number]
    assert len(right) >= PICTURES
    return right[:PICTURES]


def pixels(values: NDArray[np.floating]) -> Pixels:
    """Grey [H, W] or RGB [H, W, 3] values, clipped and rounded to what a picture holds."""
    rgb = values if values.ndim == 3 else np.repeat(values[..., None], 3, axis=2)
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)


def blurred(picture: Pixels, sigma: float, rng: Generator) -> Pixels:
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma), np.uint8) if sigma else picture


def darkened(picture: Pixels, light: float, rng: Generator) -> Pixels:
    """Less light, and the noise of the camera, which does not get less."""
    return pixels(picture * light + rng.normal(0, 4, picture.shape))


def covered(picture: Pixels, share: float, rng: Generator) -> Pixels:
    """Leaves of any colour, which cover the share of the picture at most."""
    result = picture.copy()
    height, width = picture.shape[:2]
    long, short = 0.18 * height, 0.09 * height
    for _ in range(round(share * height * width / (np.pi * long * short))):
        centre = (int(rng.uniform(0, width)), int(rng.uniform(0, height)))
        colour = rng.integers(0, 256, 3).tolist()
        cv2.ellipse(result, centre, (int(long), int(short)), rng.uniform(0, 180), 0, 360, colour, -1)
    return result


Damage = Callable[[Pixels, float, Generator], Pixels]


@pytest.mark.parametrize(
    ("damage", "levels"),
    [(blurred, (0, 4, 5, 6)), (darkened, (1, 0.1, 0.06, 0.04)), (covered, (0, 0.1, 0.25, 0.45))],
)
def test_confidence_falls_with_what_can_be_seen(
    reader: Reader, readable: list[Pixels], damage: Damage, levels: Sequence[float]
) -> None:
    """On average; the last level still leaves most of the numbers to a human eye."""
    means = []
    for level in levels:
        rng = np.random.default_rng(1)
        readings = read(reader, [damage(picture, level, rng) for picture in readable])
        means.append(float(np.mean([reading.confidence for reading in readings])))
    assert means == sorted(set(means), reverse=True), means


def draw_size(rng: Generator) -> tuple[int, int]:
    """(height, width)"""
    height = int(rng.integers(24, 100))
    return height, int(height * rng.uniform(1, 2))


def one_colour(rng: Generator) -> Pixels:
    return pixels(np.ones((*draw_size(rng), 3)) * rng.integers(0, 256, 3))


def noise(rng: Generator) -> Pixels:
    return pixels(rng.normal(rng.uniform(40, 215), rng.uniform(2, 60), (*draw_size(rng), 3)))


def gradient(rng: Generator) -> Pixels:
    """From one colour to another, in any direction."""
    height, width = draw_size(rng)
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:height, 0:width]
    way = np.cos(angle) * x / width + np.sin(angle) * y / height
    first, second = rng.uniform(0, 255, (2, 3))
    return pixels(first + ((way - way.min()) / np.ptp(way))[..., None] * (second - first))


def stroke(rng: Generator) -> Pixels:
    """One stroke that is no 1: within 20 degrees of level."""
    height, width = draw_size(rng)
    result = np.empty((height, width, 3), np.uint8)
    result[:], colour = rng.integers(0, 256, (2, 3)).tolist()
    angle, half = rng.uniform(-np.pi / 9, np.pi / 9), rng.uniform(0.15, 0.4) * width
    x, y = rng.uniform(0.3, 0.7, 2) * (width, height)
    ends = [(int(x + way * np.cos(angle) * half), int(y + way * np.sin(angle) * half)) for way in (-1, 1)]
    cv2.line(result, ends[0], ends[1], colour, int(rng.integers(1, height // 8 + 1)), cv2.LINE_AA)
    return result


def blotches(rng: Generator) -> Pixels:
    """Noise without its small parts, as render or foliage out of focus."""
    soft = np.asarray(cv2.GaussianBlur(rng.normal(0, 1, draw_size(rng)), (0, 0), rng.uniform(1.5, 12)))
    return pixels(rng.uniform(60, 200) + rng.uniform(10, 50) * soft / soft.std())


def bricks(rng: Generator) -> Pixels:
    height, width = draw_size(rng)
    tall = int(rng.integers(6, 20))
    wide = int(tall * rng.uniform(1.8, 3))
    wall = np.tile(rng.uniform(100, 230, 3), (height, width, 1))
    brick = rng.uniform(60, 200, 3)
    for row, top in enumerate(range(0, height, tall)):
        for left in range(-wide * (row % 2) // 2, width, wide):
            wall[top : top + tall - 2, max(left, 0) : max(left + wide - 2, 0)] = brick + rng.normal(0, 8, 3)
    return pixels(wall + rng.normal(0, 4, wall.shape))


def boards(rng: Generator) -> Pixels:
    """Level stripes."""
    height, width = draw_size(rng)
    wave = np.sin(2 * np.pi * np.arange(height) / rng.uniform(3, 20) + rng.uniform(0, 6))
    return pixels(np.tile(rng.uniform(80, 180) + rng.uniform(10, 60) * wave[:, None], (1, width)))


NOTHING: tuple[Callable[[Generator], Pixels], ...] = (one_colour, noise, gradient, stroke, blotches, bricks, boards)


def enlarged(picture: Pixels, times: int) -> Pixels:
    height, width = picture.shape[:2]
    return np.asarray(cv2.resize(picture, (times * width, times * height), interpolation=cv2.INTER_CUBIC), np.uint8)


@pytest.mark.parametrize(("times", "share"), [(1, 0.01), (4, 0.02)])
def test_where_there_is_no_number_none_is_accepted(reader: Reader, times: int, share: float) -> None:
    """At most this share of false numbers. The large pictures are searched, which gives more chances to be wrong."""
    rng = np.random.default_rng(3)
    found = {}
    for kind in NOTHING:
        readings = read(reader, [enlarged(kind(rng), times) for _ in range(PICTURES)])
        found[kind.__name__] = sum(reading.accepted for reading in readings)
    assert sum(found.values()) <= share * PICTURES * len(NOTHING), found


@pytest.mark.parametrize("times", [1, 4])
def test_numbers_longer_than_the_reader_has_slots_are_not_accepted(reader: Reader, times: int) -> None:
    """At least 95 % of them, also where a search sees a part of the number alone."""
    rng = np.random.default_rng(4)
    longest = reader.metadata.slots
    numbers = [draw_number(rng, int(digits)) for digits in rng.integers(longest + 1, longest + 4, PICTURES)]
    readings = read(reader, [enlarged(number_picture(number, rng), times) for number in numbers])
    assert sum(reading.accepted for reading in readings) <= 0.05 * PICTURES
