"""Signs that a number is part of in a whole scene: plates with names, and panels with bands and small print."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from models.data.synthetic.fonts import Face
from models.data.synthetic.lettering import Lettering
from models.data.synthetic.palette import Palette
from models.data.synthetic.textures import texture
from models.data.synthetic.words import draw_words, text_mask

Canvas = NDArray[np.uint8]
Box = tuple[float, float, float, float]
# Colours of bands beside and below numbers: mustard, orange, blue, green, red, grey.
_BANDS = ((190, 140, 40), (215, 120, 40), (45, 90, 160), (60, 120, 70), (160, 45, 45), (120, 120, 125))


@dataclass(frozen=True)
class Sign:
    """rgb: uint8 [h, w, 3]; cover: uint8 [h, w], 255 where the sign hides the wall; left, top: where the
    top-left corner of the number's ink lies on it, in its pixels."""

    rgb: Canvas
    cover: NDArray[np.uint8]
    left: float
    top: float


def paint(canvas: Canvas, mask: NDArray[np.uint8], x: float, y: float, colour: NDArray[np.float32]) -> None:
    """Paints a mask of 0 to 255 in one colour with its top-left corner at (x, y), as far as it lies on the canvas."""
    column, row = round(x), round(y)
    left, top = max(column, 0), max(row, 0)
    right, bottom = min(column + mask.shape[1], canvas.shape[1]), min(row + mask.shape[0], canvas.shape[0])
    if left >= right or top >= bottom:
        return
    share = mask[top - row : bottom - row, left - column : right - column, None].astype(np.float32) / 255
    window = canvas[top:bottom, left:right]
    window[:] = window + share * (colour - window)


def write(
    canvas: Canvas, text: str, height: float, x: float, y: float, room: float, colour: NDArray[np.float32], face: Face
) -> None:
    """One line of text of capitals `height` high with its top at y, from x on, narrowed to `room` pixels."""
    line = text_mask(text, height, face)
    if line is None:
        return
    if line.shape[1] > room:
        line = np.asarray(cv2.resize(line, (max(1, int(room)), line.shape[0]), interpolation=cv2.INTER_AREA), np.uint8)
    paint(canvas, line, x, y, colour)


def small_print(canvas: Canvas, box: Box, colour: NDArray[np.float32], rng: np.random.Generator) -> None:
    """Lines of text too small to read, as grey dashes."""
    left, top, right, bottom = box
    pitch = max(2.0, (bottom - top) / rng.uniform(5, 14))
    y = top
    while y + pitch * 0.6 < bottom:
        x, stop = left, left + (right - left) * rng.uniform(0.4, 1.0)
        while x < stop and rng.random() < 0.93:
            width = min(pitch * rng.uniform(0.6, 3), stop - x)
            dash = np.full((max(1, round(pitch * 0.4)), max(1, round(width))), int(rng.integers(90, 200)), np.uint8)
            paint(canvas, dash, x, y, colour)
            x += width + pitch * 0.4
        y += pitch * (2 if rng.random() < 0.1 else 1)


def build_sign(letters: Lettering, palette: Palette, face: Face, rng: np.random.Generator) -> Sign:
    """A plate or a house sign around a number, in the pixels of its mask; face: what its words are set in."""
    height, width = letters.mask.shape
    build = _house_sign if rng.random() < 0.45 else _plate
    return build(width, height, letters.digit_height, palette, face, rng)


def _blank(width: float, height: float, colour: NDArray[np.float32]) -> tuple[Canvas, NDArray[np.uint8]]:
    shape = (max(2, int(np.ceil(height))), max(2, int(np.ceil(width))))
    rgb = np.empty((*shape, 3), np.uint8)
    rgb[:] = np.clip(colour, 0, 255)
    return rgb, np.zeros(shape, np.uint8)


def _shape(mask: NDArray[np.uint8], kind: str, inset: int, thick: int) -> None:
    """The outline of a plate that fills the mask less `inset` pixels; thick: -1 fills it."""
    h, w = mask.shape
    first, last = (inset, inset), (w - 1 - inset, h - 1 - inset)
    if kind == "oval":
        axes = (max(1, w // 2 - inset), max(1, h // 2 - inset))
        cv2.ellipse(mask, (w // 2, h // 2), axes, 0, 0, 360, 255, thick, cv2.LINE_AA)
    elif kind == "rounded" and thick < 0:
        radius = max(1, min(w, h) // 8)
        inner = (inset + radius, inset + radius, w - 1 - inset - radius, h - 1 - inset - radius)
        cv2.rectangle(mask, inner[:2], inner[2:], 255, -1)
        cv2.rectangle(mask, inner[:2], inner[2:], 255, 2 * radius, cv2.LINE_AA)
    else:
        cv2.rectangle(mask, first, last, 255, thick, cv2.LINE_AA)


def _plate(width: int, height: int, d: float, palette: Palette, face: Face, rng: np.random.Generator) -> Sign:
    kind = str(rng.choice(["rectangle", "rounded", "oval"], p=[0.55, 0.28, 0.17]))
    side, rise = d * rng.uniform(0.15, 1.3), d * rng.uniform(0.15, 0.9)
    name = d * rng.uniform(0.22, 0.5) if rng.random() < 0.45 else 0.0
    above = name > 0 and rng.random() < 0.2
    if kind == "oval":
        side, rise = side + 0.2 * width, rise + 0.25 * height
    gap = d * rng.uniform(0.15, 0.35) if name else 0.0
    left, top = side, rise + (name + gap if above else 0)
    rgb, cover = _blank(width + 2 * side, height + 2 * rise + name * 1.3 + gap, palette.ground)
    _shape(cover, kind, 1, -1)
    grain = texture(cover.shape[1], cover.shape[0], d / 40, rng) * float(rng.choice([0.0, 2.0, 6.0]))
    rgb[:] = np.clip(rgb + grain[:, :, None], 0, 255)
    if name:
        text = draw_words(rng, 2)
        room = width + side * 1.2 * (0.6 if kind == "oval" else 1)
        line = text_mask(text, name, face)
        wide = min(room, line.shape[1]) if line is not None else 0.0
        x = left + (width - wide) / 2
        write(rgb, text, name, x, rise if above else rise + height + gap, room, palette.ink, face)
    if rng.random() < 0.4:
        line = np.zeros_like(cover)
        _shape(line, kind, round(min(side, rise) * rng.uniform(0.05, 0.6)), max(1, round(d * rng.uniform(0.02, 0.1))))
        paint(rgb, line, 0, 0, palette.ink)
    if rng.random() < 0.4:
        tone = palette.ink if rng.random() < 0.4 else palette.ground * np.float32(rng.uniform(0.4, 1.5))
        radius = max(1, round(d * rng.uniform(0.04, 0.12)))
        for x in (side * 0.45, rgb.shape[1] - side * 0.45):
            cv2.circle(rgb, (round(x), rgb.shape[0] // 2), radius, np.clip(tone, 0, 255).tolist(), -1, cv2.LINE_AA)
    return Sign(rgb, cover, left, top)


def _house_sign(width: int, height: int, d: float, palette: Palette, face: Face, rng: np.random.Generator) -> Sign:
    """The number on a panel, mostly dark; below it a coloured band with words and a pale panel of small print."""
    near, far = d * rng.uniform(0.15, 0.7), d * rng.uniform(0.15, 1.4)
    rise, drop = d * rng.uniform(0.2, 0.7), d * rng.uniform(0.15, 0.6)
    panel_right, panel_bottom = near + width + far, rise + height + drop
    banded, printed = rng.random() < 0.75, rng.random() < 0.75
    band = d * rng.uniform(0.45, 0.95) if banded else 0.0
    band_right = panel_right + d * rng.uniform(0, 3.5) if banded else panel_right
    print_right = panel_right * rng.uniform(0.8, 1.5) if printed else 0.0
    print_height = d * rng.uniform(1.2, 5) if printed else 0.0
    gap = d * rng.uniform(0, 0.4)
    rgb, cover = _blank(max(band_right, print_right) + 1, panel_bottom + band + gap + print_height + 1, palette.ground)

    def put(box: Box, colour: NDArray[np.float32]) -> None:
        left, top, right, bottom = (round(edge) for edge in box)
        rgb[top:bottom, left:right] = np.clip(colour, 0, 255)
        cover[top:bottom, left:right] = 255

    put((0, 0, panel_right, panel_bottom), palette.ground)
    if banded:
        tone = _BANDS[int(rng.integers(len(_BANDS)))]
        colour = np.array(tone, np.float32) + rng.normal(0, 15, 3).astype(np.float32)
        start = d * rng.uniform(0, 0.5) if rng.random() < 0.4 else 0.0
        put((start, panel_bottom, band_right, panel_bottom + band), colour)
        letters = np.full(3, 240 if rng.random() < 0.75 else 30, np.float32)
        size, x = band * rng.uniform(0.4, 0.65), start + d * rng.uniform(0.1, 0.4)
        y = panel_bottom + (band - size) / 2
        write(rgb, draw_words(rng), size, x, y, max(2.0, band_right - x - 0.1 * d), letters, face)
    if printed:
        top = panel_bottom + band + gap
        pale = np.full(3, rng.uniform(120, 235), np.float32) + rng.normal(0, 10, 3).astype(np.float32)
        put((0, top, print_right, top + print_height), pale)
        ink = np.full(3, 245 if rng.random() < 0.4 else 60, np.float32)
        edge = 0.1 * print_right
        small_print(rgb, (edge, top + edge, print_right - edge, top + print_height - edge), ink, rng)
    return Sign(rgb, cover, near, rise)
