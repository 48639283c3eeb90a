"""What the number stands on: wall textures, plates with their edges, frames and screws, and neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from models.data.synthetic.fonts import GLYPH_HEIGHT, Face, glyph
from models.data.synthetic.lighting import Palette

Image = NDArray[np.float32]
TILE = 384
TILES_PER_KIND = 6
TEXTURES = ("plain", "plain", "render", "stucco", "brick", "siding", "wood", "tiles", "metal", "stone", "foliage")


@dataclass(frozen=True)
class Site:
    """Where the number stands on the canvas, in canvas pixels: size of the canvas, box of the ink
    (left, top, right, bottom), the digits' height, and the part that the crop will show."""

    width: int
    height: int
    box: tuple[float, float, float, float]
    digit_height: float
    shown: tuple[float, float, float, float]


@lru_cache(maxsize=len(set(TEXTURES)) * TILES_PER_KIND)
def _tile(kind: str, variant: int) -> Image:
    """A grey texture of zero mean and unit spread, [TILE, TILE]; the same on every machine and in every process."""
    rng = np.random.default_rng([variant, *kind.encode()])

    def noise(sx: float, sy: float) -> Image:
        field = cv2.GaussianBlur(rng.standard_normal((TILE, TILE), dtype=np.float32), (0, 0), sx, sigmaY=sy)
        return np.asarray(field / max(float(field.std()), 1e-6), np.float32)

    y, x = np.mgrid[0:TILE, 0:TILE].astype(np.float32)
    if kind == "plain":
        tile = noise(40, 40) + 0.15 * noise(0.7, 0.7)
    elif kind == "render":
        tile = noise(1.2, 1.2) + 0.5 * noise(12, 12)
    elif kind == "stucco":
        bumps = noise(3, 3)
        tile = cv2.Sobel(bumps, cv2.CV_32F, 1, 1, ksize=3) + 0.6 * bumps
    elif kind == "brick":
        course = float(rng.uniform(18, 42))
        row = np.floor(y / course)
        column = np.floor(x / (course * 2.6) + 0.5 * (row % 2))
        joint = (y % course < course * 0.14) | ((x + course * 1.3 * (row % 2)) % (course * 2.6) < course * 0.14)
        shade = rng.standard_normal((64, 64)).astype(np.float32)[row.astype(int) % 64, column.astype(int) % 64]
        tile = np.where(joint, float(rng.choice([-2.0, 2.2])), 0.6 * shade + 0.4 * noise(1.5, 1.5))
    elif kind == "siding":
        pitch = float(rng.uniform(20, 60))
        across = x if rng.random() < 0.4 else y
        tile = 1.5 * (across % pitch) / pitch - 3 * (across % pitch < 3) + 0.3 * noise(8, 1)
    elif kind == "wood":
        grain = noise(30, 1.2) + 0.6 * noise(60, 3)
        tile = grain if rng.random() < 0.7 else grain.T
    elif kind == "tiles":
        pitch = float(rng.uniform(30, 90))
        tile = np.where((x % pitch < 3) | (y % pitch < 3), float(rng.choice([-2.5, 2.5])), 0.4 * noise(10, 10))
    elif kind == "metal":
        tile = noise(25, 0.6) + noise(50, 50)
    elif kind == "stone":
        tile = noise(6, 5) + 0.7 * noise(2, 2) + 0.5 * noise(20, 20)
    else:
        tile = noise(4, 4) * np.abs(noise(9, 9)) + noise(1.5, 1.5)
    tile = np.asarray(tile, np.float32)
    return np.asarray((tile - tile.mean()) / max(float(tile.std()), 1e-6), np.float32)


def texture(width: int, height: int, scale: float, rng: np.random.Generator) -> Image:
    """A random piece of a random texture, [height, width]; scale: canvas pixels per texture pixel."""
    tile = _tile(TEXTURES[int(rng.integers(len(TEXTURES)))], int(rng.integers(TILES_PER_KIND)))
    matrix = np.array([[1 / scale, 0, rng.uniform(0, TILE)], [0, 1 / scale, rng.uniform(0, TILE)]], np.float64)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    piece = cv2.warpAffine(tile, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT)
    return np.asarray(piece, np.float32)


def build_surface(site: Site, palette: Palette, face: Face, rng: np.random.Generator) -> Image:
    """The canvas without the number, float32 [height, width, 3], 0 to 255."""
    strength = float(rng.choice([1.0, 3.0, 8.0, 18.0], p=[0.35, 0.3, 0.23, 0.12]))
    on_plate = palette.plated
    wall_colour = palette.wall if on_plate else palette.ground
    scale = site.digit_height / rng.uniform(15, 60)
    tone = texture(site.width, site.height, scale, rng) * (strength * (2.0 if on_plate else 1.0))
    canvas = wall_colour[None, None, :] + tone[:, :, None]
    if on_plate:
        _plate(canvas, site, palette, rng)
    if rng.random() < 0.30:
        _words(canvas, site, palette, face, rng)
    if rng.random() < 0.28:
        _cut_neighbours(canvas, site, palette, face, rng)
    if rng.random() < 0.2:
        _bars(canvas, site, palette, rng)
    return np.clip(canvas, 0, 255).astype(np.float32, copy=False)


def _blend(canvas: Image, mask: NDArray[np.uint8], colour: Image, opacity: float = 1.0) -> None:
    """Paints a colour onto the canvas through a mask of 0 to 255, in place."""
    x, y, w, h = cv2.boundingRect(mask)
    share = (mask[y : y + h, x : x + w].astype(np.float32) * np.float32(opacity / 255))[:, :, None]
    window = canvas[y : y + h, x : x + w]
    window += share * (colour[None, None, :] - window)


def _outline(kind: str, left: float, top: float, right: float, bottom: float, radius: float) -> NDArray[np.int32]:
    """A closed polygon, in sixteenths of a pixel: rectangle, rounded rectangle, cut corners or ellipse."""
    cx, cy, rx, ry = (left + right) / 2, (top + bottom) / 2, (right - left) / 2, (bottom - top) / 2
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    if kind == "oval":
        points = np.stack([cx + 1.18 * rx * np.cos(angles), cy + 1.3 * ry * np.sin(angles)], axis=1)
    elif kind == "cut":
        r = min(radius * 1.5, rx, ry)
        across, down = (left + r, right - r), (top + r, bottom - r)
        points = np.array(
            [
                *((across[0], top), (across[1], top), (right, down[0]), (right, down[1])),
                *((across[1], bottom), (across[0], bottom), (left, down[1]), (left, down[0])),
            ]
        )
    else:
        r = min(radius if kind == "rounded" else 0.0, rx, ry)
        centre = np.stack([np.sign(np.cos(angles)) * (rx - r), np.sign(np.sin(angles)) * (ry - r)], axis=1)
        points = np.array([cx, cy]) + centre + r * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.asarray(np.round(points * 16), np.int32)


def _plate(canvas: Image, site: Site, palette: Palette, rng: np.random.Generator) -> None:
    """A plate under the number, often with a shadow, a border line, a band and screws."""
    h = site.digit_height
    left, top, right, bottom = site.box
    side, rise = h * rng.uniform(0.08, 1.0), h * rng.uniform(0.08, 0.8)
    shift = rng.normal(0, 0.08, 2) * (side, rise)
    edges = (left - side + shift[0], top - rise + shift[1], right + side + shift[0], bottom + rise + shift[1])
    kind = str(rng.choice(["rectangle", "rounded", "oval", "cut"], p=[0.5, 0.28, 0.14, 0.08]))
    radius = h * rng.uniform(0.05, 0.4)
    size = canvas.shape[:2]
    mask = np.zeros(size, np.uint8)
    cv2.fillPoly(mask, [_outline(kind, *edges, radius)], 255, cv2.LINE_AA, 4)
    if rng.random() < 0.5:
        offset = h * rng.uniform(0.02, 0.12)
        matrix = np.array([[1, 0, offset * rng.uniform(-1, 1)], [0, 1, offset]], np.float64)
        shadow = cv2.GaussianBlur(cv2.warpAffine(mask, matrix, size[::-1]), (0, 0), offset / 2 + 0.5)
        _blend(canvas, np.asarray(shadow, np.uint8), np.zeros(3, np.float32), rng.uniform(0.2, 0.6))
    grain = texture(size[1], size[0], h / 40, rng) * float(rng.choice([0.0, 1.5, 5.0]))
    share = (mask.astype(np.float32) / 255)[:, :, None]
    canvas += share * (palette.ground[None, None, :] + grain[:, :, None] - canvas)
    if rng.random() < 0.45:
        inset = rng.uniform(0.0, 0.75) * min(side, rise)
        line = np.zeros(size, np.uint8)
        inner = (edges[0] + inset, edges[1] + inset, edges[2] - inset, edges[3] - inset)
        thick = max(1, round(h * rng.uniform(0.02, 0.12)))
        cv2.polylines(line, [_outline(kind, *inner, radius)], True, 255, thick, cv2.LINE_AA, 4)
        _blend(canvas, line, palette.ink if rng.random() < 0.7 else palette.wall, rng.uniform(0.5, 1))
    if rng.random() < 0.12:
        band = np.zeros(size, np.uint8)
        band[int(max(edges[3] - rise * rng.uniform(0.2, 0.8), bottom + 0.06 * h)) :] = 255
        _blend(canvas, np.minimum(band, mask), rng.uniform(0, 255, 3).astype(np.float32))
    if rng.random() < 0.25:
        dots = np.zeros(size, np.uint8)
        middle = (top + bottom) / 2
        levels = (top - rise * 0.6, bottom + rise * 0.6) if rng.random() < 0.4 else (middle,)
        radius = round(h * rng.uniform(0.03, 0.07) * 16)
        for x in (left - side * 0.6, right + side * 0.6):
            for y in levels:
                cv2.circle(dots, (round(x * 16), round(y * 16)), radius, 255, -1, cv2.LINE_AA, 4)
        tone = palette.ink if rng.random() < 0.5 else palette.ground * rng.uniform(0.3, 1.4)
        _blend(canvas, dots, np.asarray(tone, np.float32), 0.9)


def _stamp(canvas: Image, mask: NDArray[np.uint8], x: float, y: float, colour: Image, opacity: float) -> None:
    """Paints a mask with its top-left corner at (x, y), as far as it lies on the canvas."""
    matrix = np.array([[1, 0, x], [0, 1, y]], np.float64)
    _blend(canvas, np.asarray(cv2.warpAffine(mask, matrix, canvas.shape[1::-1]), np.uint8), colour, opacity)


def _character(face: Face, character: str, height: float) -> NDArray[np.uint8] | None:
    """A character in the size of digits of that height; None where the face has none."""
    try:
        ink = glyph(face, character).mask
    except (OSError, ValueError):
        return None
    scale = height / GLYPH_HEIGHT
    size = (max(1, round(ink.shape[1] * scale)), max(1, round(ink.shape[0] * scale)))
    return np.asarray(cv2.resize(ink, size, interpolation=cv2.INTER_AREA), np.uint8)


_LETTERS = "ABCDEFGHIKLMNOPRSTUVWXYabcdefghiklmnoprstuvwy"


def _words(canvas: Image, site: Site, palette: Palette, face: Face, rng: np.random.Generator) -> None:
    """A line of small letters above or below the number, or a small suffix beside it: never to be read."""
    h = site.digit_height
    left, top, right, bottom = site.box
    beside = rng.random() < 0.2
    if beside:
        size, pen = h * rng.uniform(0.3, 0.55), right + h * rng.uniform(0.12, 0.3)
        line = bottom - size * rng.uniform(1, 1.6)
    else:
        size, pen = h * rng.uniform(0.15, 0.5), left - h * rng.uniform(-0.3, 1.0)
        away = h * rng.uniform(0.1, 0.35)
        line = bottom + away if rng.random() < 0.7 else top - size - away
    text = "".join(rng.choice(list(_LETTERS), int(rng.integers(1, 3 if beside else 12))))
    text = text.upper() if rng.random() < 0.6 else text
    for letter in text:
        ink = _character(face, letter, size)
        if ink is not None and pen < canvas.shape[1]:
            _stamp(canvas, ink, pen, line + size - ink.shape[0], palette.ink, 0.9)
            pen += ink.shape[1] + size * 0.12
        if rng.random() < 0.12:
            pen += size * 0.5


def _cut_neighbours(canvas: Image, site: Site, palette: Palette, face: Face, rng: np.random.Generator) -> None:
    """Digits, letters or plates that the edge of the crop cuts: at most a third of a digit stays to be seen."""
    h = site.digit_height
    left, top, right, bottom = site.box
    shown_left, shown_top, shown_right, shown_bottom = site.shown
    where = rng.choice(["left", "right", "above", "below"], p=[0.32, 0.32, 0.12, 0.24])
    character = str(rng.choice(list("023456789ABHMNR")))
    size = h * rng.uniform(0.8, 1.1) if where in ("left", "right") else h * rng.uniform(0.6, 1.2)
    ink = _character(face, character, size)
    if ink is None:
        return
    height, width = ink.shape
    # A narrow 1 would be read at any share; what stands as close as the number's own digits might be one.
    seen, apart = rng.uniform(0.05, 0.35), h * rng.uniform(0.25, 0.4)
    if where == "left":
        x, y = min(shown_left - width * (1 - seen), left - width - apart), bottom - height
    elif where == "right":
        x, y = max(shown_right - width * seen, right + apart), bottom - height
    elif where == "above":
        x, y = rng.uniform(left - width, right), min(shown_top - height * (1 - seen), top - height - 0.1 * h)
    else:
        x, y = rng.uniform(left - width, right), max(shown_bottom - height * seen, bottom + 0.1 * h)
    colour = palette.ink if rng.random() < 0.75 else np.asarray(rng.uniform(0, 255, 3), np.float32)
    _stamp(canvas, ink, float(x), float(y), colour, rng.uniform(0.6, 1))
    if where in ("above", "below"):
        for step in (-1, 1):
            other = _character(face, str(rng.integers(10)), size)
            if other is not None:
                _stamp(canvas, other, float(x + step * 0.75 * size), float(y), colour, 0.9)


def _bars(canvas: Image, site: Site, palette: Palette, rng: np.random.Generator) -> None:
    """Door frames, posts, pipes and shadows at the sides that look like a 1 when cut."""
    h = site.digit_height
    left, top, right, bottom = site.box
    for edge in rng.choice(["left", "right", "above", "below"], int(rng.integers(1, 3)), replace=False):
        away, thick = h * rng.uniform(0.08, 0.6), h * rng.uniform(0.05, 0.5)
        mask = np.zeros(canvas.shape[:2], np.uint8)
        soft = 0.5 + h * rng.uniform(0, 0.04)
        if edge == "left":
            mask[:, int(max(left - away - thick, 0)) : int(max(left - away, 0))] = 255
        elif edge == "right":
            mask[:, int(right + away) : int(right + away + thick)] = 255
        elif edge == "above":
            mask[int(max(top - away - thick, 0)) : int(max(top - away, 0))] = 255
        else:
            mask[int(bottom + away) : int(bottom + away + thick)] = 255
        colour = palette.ink if rng.random() < 0.4 else np.asarray(rng.uniform(0, 255, 3), np.float32)
        _blend(canvas, np.asarray(cv2.GaussianBlur(mask, (0, 0), soft), np.uint8), colour, rng.uniform(0.4, 1))
