"""What stands beside a number and is not of it: words, remains of digits and letters, posts, frames and wall strips.

All of it keeps clear of the number's box, and what could be read as a digit is cut by the edge of the crop.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from models.data.synthetic.fonts import Face
from models.data.synthetic.palette import Palette
from models.data.synthetic.textures import Image, blend, texture
from models.data.synthetic.words import draw_words, text_mask

# No more than these shares of a cut character's width (or height) are ever drawn, wherever the crop falls later.
DIGIT_SEEN_AT_MOST, LETTER_SEEN_AT_MOST = 0.4, 0.55


@dataclass(frozen=True)
class Site:
    """Where the number stands on the canvas, in canvas pixels: size of the canvas, box of the ink
    (left, top, right, bottom), the digits' height, and the part that the crop will show."""

    width: int
    height: int
    box: tuple[float, float, float, float]
    digit_height: float
    shown: tuple[float, float, float, float]


def _stamp(canvas: Image, mask: NDArray[np.uint8], x: float, y: float, colour: Image, opacity: float) -> None:
    """Paints a mask with its top-left corner at (x, y), as far as it lies on the canvas."""
    matrix = np.array([[1, 0, x], [0, 1, y]], np.float64)
    blend(canvas, np.asarray(cv2.warpAffine(mask, matrix, canvas.shape[1::-1]), np.uint8), colour, opacity)


def words(canvas: Image, site: Site, palette: Palette, face: Face, rng: np.random.Generator) -> None:
    """A line of small letters above or below the number, or a small suffix beside it: never to be read."""
    h = site.digit_height
    left, top, right, bottom = site.box
    way = str(rng.choice(["beside", "below", "above"], p=[0.2, 0.56, 0.24]))
    if way == "beside":
        ink = text_mask(
            "".join(rng.choice(list("ABCDEFabcdefh"), int(rng.integers(1, 3)))), h * rng.uniform(0.3, 0.5), face
        )
    else:
        ink = text_mask(draw_words(rng), h * rng.uniform(0.15, 0.5), face)
    if ink is None:
        return
    x, away = left - h * rng.uniform(-0.3, 1.0), h * rng.uniform(0.08, 0.35)
    if way == "beside":
        x, y = right + h * rng.uniform(0.12, 0.3), bottom - ink.shape[0] * rng.uniform(1, 1.6)
    else:
        y = bottom + away if way == "below" else top - ink.shape[0] - away
    _stamp(canvas, ink, float(x), float(y), palette.ink, 0.9)


def cut_neighbours(canvas: Image, site: Site, palette: Palette, face: Face, rng: np.random.Generator) -> None:
    """Remains of a digit or a letter at the edge of the crop, and no more than these remains.

    The rest is left out: a crop that turns with the number, or takes in more, must not show a whole digit.
    """
    h = site.digit_height
    left, top, right, bottom = site.box
    shown_left, shown_top, shown_right, shown_bottom = site.shown
    rooms = {"left": left - shown_left, "right": shown_right - right, "above": top - shown_top}
    rooms["below"] = shown_bottom - bottom
    open_sides = [side for side, room in rooms.items() if room > 0.1 * h]
    if not open_sides:
        return
    weights = np.array([1.0 if side in ("left", "right") else 0.5 for side in open_sides])
    where = str(rng.choice(open_sides, p=weights / weights.sum()))
    digit = rng.random() < 0.5
    # Narrow ones (1, I, l) would be read at any share.
    character = str(rng.choice(list("023456789" if digit else "ABCDEGHKMNORSUVWXZabdeghkmnpu")))
    ink = text_mask(character, h * rng.uniform(0.8, 1.15), face)
    if ink is None:
        return
    across = where in ("left", "right")
    most = (DIGIT_SEEN_AT_MOST if digit else LETTER_SEEN_AT_MOST) * ink.shape[1 if across else 0]
    seen = int(min(rooms[where] * rng.uniform(0.3, 0.75), most * rng.uniform(0.4, 1.0)))
    if seen < 1:
        return
    drop = float(rng.normal(0, 0.04)) * h
    if where == "left":
        ink, x, y = ink[:, -seen:], shown_left, bottom - ink.shape[0] + drop
    elif where == "right":
        ink, x, y = ink[:, :seen], shown_right - seen, bottom - ink.shape[0] + drop
    elif where == "above":
        ink, x, y = ink[-seen:], rng.uniform(left - ink.shape[1], right), shown_top
    else:
        ink, x, y = ink[:seen], rng.uniform(left - ink.shape[1], right), shown_bottom - seen
    colour = palette.ink if rng.random() < 0.75 else np.asarray(rng.uniform(0, 255, 3), np.float32)
    _stamp(canvas, ink, float(x), float(y), colour, rng.uniform(0.6, 1))


def side_strips(canvas: Image, site: Site, palette: Palette, rng: np.random.Generator) -> None:
    """What the sides of a tight crop show: the wall past the plate's end, a post, a frame's line, a shadow.

    A bar that stands free in the crop is thin or runs past the digits above and below, as a 1 does not.
    """
    h = site.digit_height
    left, top, right, bottom = site.box
    shown_left, shown_top, shown_right, shown_bottom = site.shown
    low = top - shown_top > 0.25 * h and shown_bottom - bottom > 0.25 * h
    both = rng.random() < 0.45
    first = str(rng.choice(["left", "right"]))
    colour = _strip_colour(palette, rng)
    for side in ("left", "right") if both else (first,):
        room = left - shown_left if side == "left" else shown_right - right
        if room < 0.08 * h:
            continue
        away = max(min(room, 1.2 * h) * rng.uniform(0.3, 0.9), 0.05 * h)
        kind = str(rng.choice(["wall", "line", "bar"], p=[0.6, 0.22, 0.18]))
        thick = max(1.0, h * rng.uniform(0.015, 0.06))
        if kind == "bar":
            thick = h * rng.uniform(0.08, 0.4) if low else room - away + h
        inner = left - away if side == "left" else right + away
        outer = 9.0 * canvas.shape[1] if kind == "wall" else thick
        lean = rng.normal(0, 0.025) * h if rng.random() < 0.5 else 0.0
        ends = [-1.0, canvas.shape[0] + 1.0]
        if kind != "line" and rng.random() < 0.25:
            # Cut short: a plate's corner, a box on the wall, the end of a post.
            ends[int(rng.integers(2))] = rng.uniform(top, bottom)
        sign = -1 if side == "left" else 1
        corners = [(inner - lean, ends[0]), (inner + lean, ends[1])]
        corners += [(x + sign * outer, y) for x, y in reversed(corners)]
        mask = np.zeros(canvas.shape[:2], np.uint8)
        cv2.fillPoly(mask, [np.round(np.clip(corners, -2000, 2000) * np.float64(16)).astype(np.int32)], 255, 8, 4)
        soft = away * rng.uniform(0, 0.25)
        if soft > 0.4:
            mask = np.asarray(cv2.GaussianBlur(mask, (0, 0), soft), np.uint8)
        if kind != "wall" and rng.random() < 0.5:
            colour = palette.ink
        blend(canvas, mask, colour, rng.uniform(0.6, 1))
        if kind == "wall" and rng.random() < 0.5:
            grain = texture(canvas.shape[1], canvas.shape[0], h / rng.uniform(10, 50), rng) * rng.uniform(3, 25)
            canvas += (mask.astype(np.float32) / 255 * grain)[:, :, None]
        if rng.random() < 0.4:
            colour = _strip_colour(palette, rng)


def _strip_colour(palette: Palette, rng: np.random.Generator) -> Image:
    """The wall, the ink's colour, deep shade or bright sunlight."""
    way = rng.random()
    if way < 0.35:
        return palette.wall
    if way < 0.5:
        return palette.ink
    tint = rng.normal(0, 8, 3)
    return np.asarray(np.clip((rng.uniform(5, 60) if way < 0.75 else rng.uniform(180, 255)) + tint, 0, 255), np.float32)


def level_bars(canvas: Image, site: Site, palette: Palette, rng: np.random.Generator) -> None:
    """A ledge, a band, a joint or a shadow above or below the number."""
    h = site.digit_height
    _, top, _, bottom = site.box
    away, thick = h * rng.uniform(0.08, 0.6), h * rng.uniform(0.05, 0.5)
    mask = np.zeros(canvas.shape[:2], np.uint8)
    if rng.random() < 0.5:
        mask[int(max(top - away - thick, 0)) : int(max(top - away, 0))] = 255
    else:
        mask[int(bottom + away) : int(bottom + away + thick)] = 255
    colour = palette.ink if rng.random() < 0.4 else np.asarray(rng.uniform(0, 255, 3), np.float32)
    soft = cv2.GaussianBlur(mask, (0, 0), 0.5 + h * rng.uniform(0, 0.03))
    blend(canvas, np.asarray(soft, np.uint8), colour, rng.uniform(0.4, 1))
