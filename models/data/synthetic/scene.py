"""A whole scene: the number anywhere in a photograph of a wall with all that is around it, or no number at all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from models.data.synthetic import camera, lighting
from models.data.synthetic.camera import Photograph
from models.data.synthetic.fonts import Face
from models.data.synthetic.lettering import Lettering, set_digits
from models.data.synthetic.palette import Palette, draw_palette, muted
from models.data.synthetic.signs import Box, Canvas, Sign, build_sign, write
from models.data.synthetic.statistics import draw, load_statistics
from models.data.synthetic.surroundings import door, furnish
from models.data.synthetic.walls import draw_wall, wall_colour
from models.data.synthetic.words import draw_word_face, draw_words
from service.geometry import Region

Matrix = NDArray[np.float64]
# Width : height, and how often.
_ASPECTS = ((3 / 4, 0.38), (4 / 3, 0.27), (1.0, 0.2), (16 / 9, 0.15))
LONG_SIDE = (160.0, 320.0)
# The number's share of the photograph's width.
SMALLEST_SHARE, LARGEST_SHARE = 0.1, 0.5
# A digit's height, in pixels, once the whole photograph has been resized to VIEW x VIEW.
VIEW = 128
USUAL_DIGIT, SMALLEST_DIGIT = 10.5, 7.6
SMALL_DIGITS_SHARE = 0.08
# In every other scene no digit is higher than a height from this range: short numbers take little of the width then.
TALLEST_DIGIT = (13.0, 40.0)
# Blur is drawn as for digits of this height where they are higher, in pixels.
SHARP_DIGIT = 20.0


def photograph_scene(number: str, faces: Sequence[Face], rng: np.random.Generator) -> Photograph:
    """The number, which takes 0.1 to 0.5 of the width (a narrow 1 may take less, a long number in small digits
    more), whole, with the surroundings it may have. The region is the whole photograph."""
    share = math.exp(rng.uniform(math.log(0.15), math.log(0.4)))
    if rng.random() < 0.2:
        share = math.exp(rng.uniform(math.log(SMALLEST_SHARE), math.log(LARGEST_SHARE)))
    width, height = _draw_size(rng)
    expected = share * width / (0.58 * len(number))
    letters = set_digits(number, round(float(np.clip(1.15 * expected, 20, 96))), faces, rng)
    smallest = SMALLEST_DIGIT if rng.random() < SMALL_DIGITS_SHARE else USUAL_DIGIT
    if LARGEST_SHARE * width / height * VIEW * letters.digit_height < 1.3 * smallest * letters.mask.shape[1]:
        # Too long for a photograph so narrow.
        width, height = max(width, height), min(width, height)
    tilt = float(np.clip(draw(load_statistics().tilt, rng), -35, 35)) if rng.random() < 0.35 else rng.normal(0, 2)
    view, hang = _compose(letters, width, height, share, smallest, tilt, rng)
    pose = view @ hang
    box = camera.ink_box(letters.mask, pose)
    digit = _digit_height(letters, pose)

    palette = _draw_palette(rng)
    style = str(rng.choice(["bare", "sign", "product"], p=[0.27, 0.6, 0.13]))
    if style == "bare" and rng.random() < 0.6:
        palette = _on_wall(palette, rng)
    corners = np.array([(box[x], box[y]) for x in (0, 2) for y in (1, 3)])
    inside = camera.transform(corners, np.asarray(np.linalg.inv(view), np.float64))
    first, last = inside.min(axis=0), inside.max(axis=0)
    kept = (first[0], first[1], last[0], last[1])
    face = draw_word_face(faces, rng)
    sign = None if style == "bare" else build_sign(letters, palette, face, rng)
    canvas = _surroundings(width, height, kept, digit, style, palette, face, rng)
    picture = camera.photograph(canvas.astype(np.float32), view, width, height, 1.0)
    if sign is not None:
        picture = _hang(picture, sign, pose, digit, rng)
    picture = _apply_digits(picture, letters.mask, pose, box, digit, palette, rng)
    image = _finish(picture, digit, rng)
    return Photograph(image, Region.whole(width, height), Region(box[0], box[1], box[2] - box[0], box[3] - box[1]))


def photograph_house(faces: Sequence[Face], rng: np.random.Generator) -> Photograph:
    """Walls, doors, windows and words without any number."""
    width, height = _draw_size(rng)
    unit = rng.uniform(0.06, 0.2) * height
    face = draw_word_face(faces, rng)
    canvas = draw_wall(width, height, unit, rng)
    furnish(canvas, None, unit, face, rng)
    view = _look(width, height, rng.normal(0, 3), rng)
    picture = camera.photograph(canvas.astype(np.float32), view, width, height, 1.0)
    return Photograph(_finish(picture, unit, rng), Region.whole(width, height), None)


def _draw_size(rng: np.random.Generator) -> tuple[int, int]:
    aspect = _ASPECTS[int(rng.choice(len(_ASPECTS), p=[share for _, share in _ASPECTS]))][0]
    long = math.exp(rng.uniform(*np.log(LONG_SIDE)))
    return round(long * min(aspect, 1)), round(long / max(aspect, 1))


def _look(width: int, height: int, turn: float, rng: np.random.Generator) -> Matrix:
    """A homography from a wall of width x height pixels to a picture of the same size, middle to middle."""
    pose = camera.draw_pose(width, height, 1.0, turn, rng)
    return np.array([[1, 0, width / 2], [0, 1, height / 2], [0, 0, 1.0]]) @ pose


def _draw_palette(rng: np.random.Generator) -> Palette:
    """As for close views, but seldom so faint: small digits have little else to be seen by."""
    palette = draw_palette(rng)
    for _ in range(2):
        if abs(float((palette.ink - palette.ground).mean())) < 50:
            palette = draw_palette(rng)
    return palette


def _on_wall(palette: Palette, rng: np.random.Generator) -> Palette:
    """The palette with a wall's own colour behind the digits, if they can be seen on it."""
    ground = wall_colour(rng)
    return replace(palette, ground=ground) if abs(float((palette.ink - ground).mean())) >= 50 else palette


def _digit_height(letters: Lettering, pose: Matrix) -> float:
    """A digit's height in the picture, in pixels, in the middle of the number."""
    high, wide = letters.mask.shape
    middle = np.array([[wide / 2, (high - letters.digit_height) / 2], [wide / 2, (high + letters.digit_height) / 2]])
    top, bottom = camera.transform(middle, pose)
    return float(np.hypot(*(bottom - top)))


def _compose(
    letters: Lettering, width: int, height: int, share: float, smallest: float, tilt: float, rng: np.random.Generator
) -> tuple[Matrix, Matrix]:
    """Two homographies: `view` from the wall to the picture, `hang` from the letters' mask to the wall, such that the
    number has its size and lies whole in the picture."""
    high, wide = letters.mask.shape
    view = _look(width, height, rng.normal(0, 2), rng)
    angle = np.radians(tilt)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    centre = np.array([[1, 0, -wide / 2], [0, 1, -high / 2], [0, 0, 1.0]])
    where = rng.uniform(0, 1, 2)
    tallest = math.exp(rng.uniform(*np.log(TALLEST_DIGIT))) if rng.random() < 0.5 else VIEW
    margin = 0.03 * min(width, height)
    place = np.eye(3)
    place[:2, 2] = width / 2, height / 2
    scale = 0.5
    # Perspective makes the same number larger in one place than in another, hence the rounds.
    for _ in range(4):
        hang = place @ np.diag([scale, scale, 1]) @ turn @ centre
        left, top, right, bottom = camera.ink_box(letters.mask, view @ hang)
        digit = _digit_height(letters, view @ hang)
        wanted = share * width / (right - left)
        wanted = min(wanted, max(tallest * height / VIEW / digit, SMALLEST_SHARE * width / (right - left)))
        wanted = min(max(wanted, smallest * height / VIEW / digit), LARGEST_SHARE * width / (right - left))
        wanted = max(wanted, SMALLEST_DIGIT * height / VIEW / digit)
        factor = min(wanted, 0.85 * height / (bottom - top), 0.92 * width / (right - left))
        scale *= factor
        size = factor * np.array([right - left, bottom - top])
        place[:2, 2] = margin + size / 2 + where * (np.array([width, height]) - 2 * margin - size)
    hang = place @ np.diag([scale, scale, 1]) @ turn @ centre
    left, top, right, bottom = camera.ink_box(letters.mask, view @ hang)
    x, y = margin + where * (np.array([width, height]) - 2 * margin - (right - left, bottom - top))
    return np.array([[1, 0, x - left], [0, 1, y - top], [0, 0, 1.0]]) @ view, hang


def _surroundings(
    width: int, height: int, kept: Box, digit: float, style: str, palette: Palette, face: Face, rng: np.random.Generator
) -> Canvas:
    """The wall with all that stands on it; around the number the palette's ground where it has no sign."""
    if style == "product":
        shade = np.full(3, rng.uniform(200, 255), np.float32) + rng.normal(0, 3, 3).astype(np.float32)
        ramp = np.linspace(0, rng.uniform(-25, 10), height)[:, None, None]
        canvas = np.asarray(np.clip(np.broadcast_to(shade + ramp, (height, width, 3)), 0, 255), np.uint8)
        if rng.random() < 0.3:
            room = height - kept[3] - 1.2 * digit
            if room > 0.2 * digit:
                ink = np.full(3, 90, np.float32)
                size, y = 0.2 * digit + 2, height - 0.5 * room
                write(canvas, draw_words(rng), size, 0.1 * width, y, 0.8 * width, ink, face)
        return canvas
    air = rng.uniform(0.35, 1.2) * digit
    keep = (kept[0] - air, kept[1] - air, kept[2] + air, kept[3] + air)
    bare = style == "bare"
    canvas = draw_wall(width, height, digit, rng, palette.ground if bare else None)
    furnish(canvas, keep, digit, face, rng)
    if rng.random() < 0.15:
        reach = rng.uniform(0.5, 3, 4) * digit
        leaf = (keep[0] - reach[0], keep[1] - reach[1], keep[2] + reach[2], keep[3] + 2 * reach[3])
        colour = palette.ground if bare else muted(rng)
        door(canvas, leaf, digit, colour, rng)
        if bare:
            # No panel's edge may run through the digits.
            left, top, right, bottom = (max(0, round(edge)) for edge in keep)
            canvas[top:bottom, left:right] = np.clip(colour, 0, 255)
    elif bare and rng.random() < 0.2:
        size = digit * rng.uniform(0.25, 0.5)
        write(canvas, draw_words(rng, 2), size, kept[0], kept[3] + 0.2 * digit, width - kept[0], palette.ink, face)
    return canvas


def _hang(
    picture: NDArray[np.float32], sign: Sign, pose: Matrix, digit: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """The picture with the sign on the wall, and mostly its shadow."""
    height, width = picture.shape[:2]
    # The warp maps pixel centres, the pose pixel edges.
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    offset = np.array([[1, 0, -sign.left], [0, 1, -sign.top], [0, 0, 1.0]])
    matrix = np.linalg.inv(half) @ pose @ offset @ half
    cover = cv2.warpPerspective(sign.cover, matrix, (width, height))
    rgb = cv2.warpPerspective(sign.rgb, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
    if rng.random() < 0.6:
        away = digit * rng.uniform(0.03, 0.2)
        shift = np.array([[1, 0, away * rng.uniform(-1, 1)], [0, 1, away]], np.float64)
        shadow = cv2.GaussianBlur(cv2.warpAffine(cover, shift, (width, height)), (0, 0), 0.5 + 0.6 * away)
        picture = picture * (1 - shadow.astype(np.float32) * np.float32(rng.uniform(0.2, 0.65) / 255))[:, :, None]
    share = (cover.astype(np.float32) / 255)[:, :, None]
    return np.asarray(picture + share * (rgb - picture), np.float32)


def _apply_digits(
    picture: NDArray[np.float32],
    mask: NDArray[np.float32],
    pose: Matrix,
    box: Box,
    digit: float,
    palette: Palette,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """The picture with the digits on it; their finish is worked out on a window around them only."""
    height, width = picture.shape[:2]
    air = 0.7 * digit + 3
    left, top = max(0, math.floor(box[0] - air)), max(0, math.floor(box[1] - air))
    right, bottom = min(width, math.ceil(box[2] + air)), min(height, math.ceil(box[3] + air))
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    matrix = np.linalg.inv(half) @ np.array([[1, 0, -left], [0, 1, -top], [0, 0, 1.0]]) @ pose @ half
    seen = np.asarray(cv2.warpPerspective(mask, matrix, (right - left, bottom - top)), np.float32)
    window = picture[top:bottom, left:right]
    finished = lighting.apply_digits(window, seen, digit, palette, rng)
    # Finishes that change the ground fade out towards the window's edge.
    reach = np.zeros(seen.shape, np.float32)
    edge = max(1, round(0.3 * air))
    reach[edge:-edge, edge:-edge] = 1
    reach = np.maximum(cv2.blur(reach, (2 * edge + 1, 2 * edge + 1)), seen)
    picture[top:bottom, left:right] = window + reach[:, :, None] * (finished - window)
    return picture


def _finish(picture: NDArray[np.float32], digit: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Light and the camera; the light changes over the whole scene, blur is measured against the digits."""
    lit = np.clip(lighting.shine_on(picture, max(picture.shape[:2]) / 3, rng), 0, 255)
    # Photographs of whole scenes are sharper than their largest digits would allow.
    image = camera.expose(np.asarray(lit, np.float32), min(digit, SHARP_DIGIT), rng)
    return camera.recompress(image, rng) if rng.random() < 0.2 else image
