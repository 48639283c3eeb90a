"""Images that hold no number a reader may give: nothing, things that are no digits, and numbers too long for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from models.data.sample import MAX_DIGITS, Sample
from models.data.synthetic import camera, fonts, lighting
from models.data.synthetic.camera import Photograph
from models.data.synthetic.closeup import photograph_closeup
from models.data.synthetic.fonts import Face
from models.data.synthetic.lettering import Lettering, set_digits
from models.data.synthetic.palette import draw_palette, muted
from models.data.synthetic.scene import photograph_house, photograph_scene
from models.data.synthetic.walls import draw_wall
from models.data.synthetic.words import draw_word_face, draw_words, text_mask
from service.geometry import Region

COLLECTION = "no-number"
LONGEST = 10
# Single letters that nobody takes for a digit, upright or upside down.
_LETTERS = "EFHKMNRVWXekmwx"
Image = NDArray[np.float32]


def _size(rng: np.random.Generator) -> tuple[int, int]:
    """Width and height of a picture, mostly wider than high."""
    height = float(np.exp(rng.uniform(np.log(24), np.log(160))))
    return max(24, round(height * rng.uniform(0.7, 2.2))), round(height)


def _taken(picture: Image, unit: float, rng: np.random.Generator) -> Photograph:
    lit = np.clip(lighting.shine_on(picture, unit, rng), 0, 255)
    image = camera.expose(np.asarray(lit, np.float32), unit, rng)
    return Photograph(image, Region.whole(image.shape[1], image.shape[0]), None)


def _surface(rng: np.random.Generator) -> tuple[Image, float]:
    """A wall or two of them that meet, and the height of the digits it would suit."""
    width, height = _size(rng)
    unit = height * rng.uniform(0.15, 0.9)
    wall = draw_wall(width, height, unit, rng)
    if rng.random() < 0.3:
        reach = round(rng.uniform(0.2, 0.8) * height)
        wall[:reach] = draw_wall(width, reach, unit, rng)
    return wall.astype(np.float32), unit


def _texture(faces: Sequence[Face], rng: np.random.Generator) -> Photograph:
    picture, unit = _surface(rng)
    return _taken(picture, unit, rng)


def _letters(faces: Sequence[Face], rng: np.random.Generator) -> Photograph:
    """A word, or a letter alone, as large as a number would be."""
    face = draw_word_face(faces, rng)
    text = draw_words(rng, 2) if rng.random() < 0.75 else _LETTERS[int(rng.integers(len(_LETTERS)))]
    native = float(rng.uniform(14, 60) if len(text) < 10 else rng.uniform(14, 30))
    working = max(native, 28.0)
    mask = text_mask(text, working, face)
    if mask is None or mask.max() < 128:
        return _texture(faces, rng)
    letters = Lettering(np.asarray(mask / 255, np.float32), working, face)
    return photograph_closeup(letters, len(text), native, rng.normal(0, 7), draw_palette(rng), rng)


def _house(faces: Sequence[Face], rng: np.random.Generator) -> Photograph:
    return photograph_house(faces, rng)


def _noise(faces: Sequence[Face], rng: np.random.Generator) -> Photograph:
    """Random pixels of some grain, salt and pepper, colours that run into each other."""
    width, height = _size(rng)
    kind = int(rng.integers(4))
    if kind == 0:
        picture = rng.uniform(0, 255, (height, width, 3))
    elif kind == 1:
        grain = int(rng.integers(2, 9))
        coarse = rng.uniform(0, 255, (-(-height // grain), -(-width // grain), int(rng.choice([1, 3]))))
        coarse = np.ascontiguousarray(np.broadcast_to(coarse, (*coarse.shape[:2], 3)))
        picture = np.asarray(cv2.resize(coarse, (width, height)), np.float64)
    elif kind == 2:
        picture = np.full((height, width, 3), rng.uniform(40, 215))
        draws = rng.random((height, width))
        share = rng.uniform(0.01, 0.2)
        picture[draws < share] = 0
        picture[draws > 1 - share] = 255
    else:
        corners = rng.uniform(0, 255, (2, 2, 3))
        picture = np.asarray(cv2.resize(corners, (width, height)), np.float64)
    image = np.clip(picture, 0, 255).astype(np.uint8)
    return Photograph(image, Region.whole(width, height), None)


def _blank(faces: Sequence[Face], rng: np.random.Generator) -> Photograph:
    """One colour, as the sensor sees it."""
    width, height = _size(rng)
    image = np.empty((height, width, 3), np.float32)
    image[:] = rng.uniform(0, 255, 3) if rng.random() < 0.5 else rng.uniform(0, 255)
    if rng.random() < 0.7:
        image += rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(0.5, 8))
    return Photograph(np.clip(image, 0, 255).astype(np.uint8), Region.whole(width, height), None)


def _stroke(faces: Sequence[Face], rng: np.random.Generator) -> Photograph:
    """One thing that is no digit: a line, a shallow arc, a blob, a frame, a screw. An upright bar would be a 1."""
    picture, unit = _surface(rng)
    height, width = picture.shape[:2]
    colour = muted(rng).tolist()
    mark = np.ascontiguousarray(np.clip(picture, 0, 255).astype(np.uint8))
    size = min(width, height)
    thick = max(1, round(size * rng.uniform(0.03, 0.14)))
    x, y = round(width * rng.uniform(0.35, 0.65)), round(height * rng.uniform(0.35, 0.65))
    kind = int(rng.integers(5))
    if kind == 0:
        # From level up to 50 degrees, either way.
        angle, reach = np.radians(rng.uniform(-50, 50)), rng.uniform(0.25, 0.9) * size
        dx, dy = round(np.cos(angle) * reach), round(np.sin(angle) * reach)
        cv2.line(mark, (x - dx, y - dy), (x + dx, y + dy), colour, thick, cv2.LINE_AA)
    elif kind == 1:
        axes = (round(size * rng.uniform(0.3, 0.7)), round(size * rng.uniform(0.3, 0.7)))
        turn, start = rng.uniform(-20, 20), float(rng.choice([20, 200]))
        cv2.ellipse(mark, (x, y), axes, turn, start, start + rng.uniform(60, 140), colour, thick, cv2.LINE_AA)
    elif kind == 2:
        angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        radii = size * rng.uniform(0.1, 0.35) * rng.uniform(0.7, 1.3, 24)
        points = np.stack([x + radii * np.cos(angles) * rng.uniform(0.8, 1.6), y + radii * np.sin(angles)], axis=1)
        cv2.fillPoly(mark, [np.round(points).astype(np.int32)], colour, cv2.LINE_AA)
    elif kind == 3:
        inset = round(size * rng.uniform(0.05, 0.2))
        cv2.rectangle(mark, (inset, inset), (width - inset, height - inset), colour, thick, cv2.LINE_AA)
    else:
        radius = max(2, round(size * rng.uniform(0.05, 0.2)))
        angle = rng.uniform(0, np.pi)
        dx, dy = round(np.cos(angle) * radius * 0.7), round(np.sin(angle) * radius * 0.7)
        cv2.circle(mark, (x, y), radius, colour, -1, cv2.LINE_AA)
        slot = [channel * 0.4 for channel in colour]
        cv2.line(mark, (x - dx, y - dy), (x + dx, y + dy), slot, max(1, radius // 4), cv2.LINE_AA)
    return _taken(mark.astype(np.float32), unit, rng)


def photograph_long_number(faces: Sequence[Face], rng: np.random.Generator) -> Photograph:
    """A number of more digits than a reader has slots, easy to see and whole in its region."""
    count = int(rng.integers(MAX_DIGITS + 1, LONGEST + 1))
    number = str(rng.integers(1, 10)) + "".join(str(rng.integers(10)) for _ in range(count - 1))
    if rng.random() < 0.25:
        return photograph_scene(number, faces, rng)
    palette = draw_palette(rng)
    while abs(float((palette.ink - palette.ground).mean())) < 50:
        palette = draw_palette(rng)
    native = float(rng.uniform(16, 40))
    letters = set_digits(number, round(max(1.15 * native, 28)), faces, rng)
    return photograph_closeup(letters, count, native, rng.normal(0, 4), palette, rng, whole=True)


_KINDS: dict[str, Callable[[Sequence[Face], np.random.Generator], Photograph]] = {
    "texture": _texture,
    "letters": _letters,
    "house": _house,
    "noise": _noise,
    "blank": _blank,
    "stroke": _stroke,
    "long": photograph_long_number,
}
KINDS = tuple(_KINDS)


def photograph_without_number(kind: str, faces: Sequence[Face], rng: np.random.Generator) -> Photograph:
    """A picture of one of KINDS. Raises KeyError for another."""
    return _KINDS[kind](faces, rng)


def render_without_number(
    index: int, seed: int, faces: Sequence[Face] | None = None, kind: str | None = None
) -> Sample:
    """The sample of that index, its label "", its collection "no-number-<kind>".

    faces: the installed ones when None; kind: one of KINDS, by turns when None. Raises KeyError for another kind.
    """
    rng = np.random.default_rng([seed, index])
    faces = fonts.installed_faces() if faces is None else faces
    kind = KINDS[index % len(KINDS)] if kind is None else kind
    taken = photograph_without_number(kind, faces, rng)
    return Sample(camera.encode(taken.image, rng), "", taken.region, f"{seed}/{index}", f"{COLLECTION}-{kind}")
