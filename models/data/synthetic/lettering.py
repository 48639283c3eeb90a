"""From a number to a mask of its digits: face or stroke, stretch, weight, spacing, steps and slant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from models.data.synthetic.fonts import GLYPH_HEIGHT, Face, glyph
from models.data.synthetic.statistics import draw, load_statistics
from models.data.synthetic.strokes import StrokeHand

STROKED_SHARE = 0.13
# Numbers of enamel plates: narrow heavy digits that nearly touch, most of them in faces with hairlines.
CONDENSED_SHARE = 0.08
STENCILLED_SHARE = 0.02
# Parts of names of faces with hairlines and heavy stems.
_DIDONE = ("didot", "bodoni", "oldstandard", "museum", "baskerv", "berenis", "century", "elstob", "tribun")


@dataclass(frozen=True)
class Lettering:
    """The digits of one number, drawn upright.

    mask: float32 [h, w] from 0 to 1, cropped to the ink of all digits.
    digit_height: the nominal height of one digit, in pixels of the mask.
    face: what neighbouring words are set in.
    """

    mask: NDArray[np.float32]
    digit_height: float
    face: Face


def set_digits(
    number: str, height: int, faces: Sequence[Face], rng: np.random.Generator, tilt: float = 0.0
) -> Lettering:
    """Sets a number in digits about `height` pixels high, their centres along a slope of `tilt` degrees.

    The digits stay upright: a tilt here is a row of steps, as on many gate posts; the camera turns whole
    numbers. Raises ValueError for an empty number.
    """
    if not number:
        raise ValueError("there is no digit to set")
    face = faces[int(rng.integers(len(faces)))]
    hand = StrokeHand(rng) if rng.random() < STROKED_SHARE else None
    condensed = hand is None and rng.random() < CONDENSED_SHARE
    if condensed and rng.random() < 0.6:
        hairlined = _hairlined(tuple(faces)) or (face,)
        face = hairlined[int(rng.integers(len(hairlined)))]
    stencilled = rng.random() < STENCILLED_SHARE
    masks, tops = [], []
    for digit in number:
        if hand is not None:
            mask, top = hand.mask(digit, GLYPH_HEIGHT, rng), 0
        else:
            ink = glyph(face, digit)
            mask, top = ink.mask, ink.top
        masks.append(_bridged(mask) if stencilled and digit not in "17" else mask)
        tops.append(top)
    # Thicker strokes would fill the eyes of digits that are all ink.
    heavy = float(np.mean([mask.mean() for mask in masks])) > 0.5 * 255
    if condensed and not heavy:
        stem = int(rng.integers(2, 9))
        masks = [_stemmed(mask, stem) for mask in masks]
    stretch = _stretch(number, masks, rng) * (rng.uniform(0.65, 0.9) if condensed else 1.0)
    scale = height / GLYPH_HEIGHT
    weight = float(rng.normal(0, 0.03)) if rng.random() < 0.5 else 0.0
    if heavy or condensed:
        weight = min(weight, 0.0)
    gap = rng.uniform(0.0, 0.08) if condensed else _gap(rng)
    uneven = rng.uniform(0, 0.06) if rng.random() < 0.4 else 0.0
    slope = float(np.tan(np.radians(tilt)))
    pen = 0.0
    placed: list[tuple[NDArray[np.uint8], float, float]] = []
    for mask, top in zip(masks, tops, strict=True):
        size = (max(2, round(mask.shape[1] * scale * stretch)), max(3, round(mask.shape[0] * scale)))
        small = cv2.resize(mask, size, interpolation=cv2.INTER_AREA).astype(np.float32)
        # Hairlines thinner than a pixel would fade away.
        scaled = np.asarray(small * (255 / max(float(small.max()), 1.0)), np.uint8)
        if uneven > 0.03 and rng.random() < 0.5:
            scaled = _turn(scaled, float(rng.normal(0, 4)))
        down = top * scale + float(rng.normal(0, uneven)) * height + slope * (pen + scaled.shape[1] / 2)
        placed.append((scaled, pen, down))
        pen += scaled.shape[1] + max(gap + float(rng.normal(0, uneven)), 0.02) * height
    return Lettering(_finish(_compose(placed), height, weight, rng), float(height), face)


@lru_cache(maxsize=4)
def _hairlined(faces: tuple[Face, ...]) -> tuple[Face, ...]:
    return tuple(face for face in faces if any(part in face.name.lower() for part in _DIDONE))


def _stretch(number: str, masks: Sequence[NDArray[np.uint8]], rng: np.random.Generator) -> float:
    """A factor for the digits' widths that brings their aspect towards one drawn from the statistics."""
    wide = [mask.shape[1] / mask.shape[0] for mask, digit in zip(masks, number, strict=True) if digit != "1"]
    natural = float(np.mean(wide)) if wide else 0.5
    # The statistics' boxes have some air at the sides and the ones among them.
    wanted = draw(load_statistics().aspect, rng) * 1.05
    return float(np.clip((wanted / natural) ** rng.uniform(0.3, 1.0), 0.6, 1.5))


def _gap(rng: np.random.Generator) -> float:
    """Ink to ink, as a share of the height: annotated boxes touch where the ink is a little apart."""
    if rng.random() < 0.06:
        return float(rng.uniform(0.25, 0.7))
    return max(draw(load_statistics().gap, rng) * 0.7 + rng.uniform(0.06, 0.16), 0.02)


def _stemmed(mask: NDArray[np.uint8], stem: int) -> NDArray[np.uint8]:
    """A digit whose stems are heavier by so many pixels; its level hairlines stay as they are."""
    room = cv2.copyMakeBorder(mask, 0, 0, stem, stem, cv2.BORDER_CONSTANT, value=0)
    columns = np.asarray(cv2.dilate(room, np.ones((1, stem), np.uint8)), np.uint8)
    inked = np.flatnonzero(columns.max(axis=0))
    return columns[:, inked[0] : inked[-1] + 1]


def _bridged(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A digit as sprayed through a stencil: a bridge down its middle keeps the inner parts in place."""
    middle, half = mask.shape[1] // 2, max(2, mask.shape[1] // 18)
    cut = mask.copy()
    cut[:, middle - half : middle + half] = 0
    return cut


def _turn(mask: NDArray[np.uint8], degrees: float) -> NDArray[np.uint8]:
    """One digit hung crookedly, on a canvas that still holds it."""
    padded = cv2.copyMakeBorder(mask, 3, 3, 4, 4, cv2.BORDER_CONSTANT, value=0)
    h, w = padded.shape
    matrix = cv2.getRotationMatrix2D((w / 2, h / 2), degrees, 0.96)
    return cv2.warpAffine(padded, matrix, (w, h)).astype(np.uint8, copy=False)


def _compose(placed: Sequence[tuple[NDArray[np.uint8], float, float]]) -> NDArray[np.float32]:
    top = min(down for _, _, down in placed)
    width = max(round(x) + mask.shape[1] for mask, x, _ in placed)
    height = max(round(down - top) + mask.shape[0] for mask, _, down in placed)
    canvas = np.zeros((height, width), np.uint8)
    for mask, x, down in placed:
        row, column = round(down - top), round(x)
        window = canvas[row : row + mask.shape[0], column : column + mask.shape[1]]
        np.maximum(window, mask, out=window)
    return np.asarray(canvas / 255, np.float32)


def _finish(mask: NDArray[np.float32], height: int, weight: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Weight (thicker or thinner strokes, rounded corners) and slant, then the crop to the ink."""
    pad = max(3, height // 8)
    slant = rng.normal(0, 0.15) if rng.random() < 0.15 else 0.0
    lean = int(abs(slant) * mask.shape[0]) + pad
    mask = np.asarray(cv2.copyMakeBorder(mask, pad, pad, lean, lean, cv2.BORDER_CONSTANT, value=0), np.float32)
    if weight:
        radius = 0.05 * height
        soft = cv2.GaussianBlur(mask, (0, 0), radius)
        thicker = np.clip((soft - 0.5 + float(np.clip(weight * 8, -0.22, 0.35))) * 6 + 0.5, 0, 1)
        # Thin strokes must not vanish.
        mask = np.maximum(thicker, mask if weight > 0 else 0.6 * mask).astype(np.float32)
    if slant:
        shift = slant * mask.shape[0] / 2
        matrix = np.array([[1, -slant, shift], [0, 1, 0]], np.float64)
        mask = cv2.warpAffine(mask, matrix, (mask.shape[1], mask.shape[0])).astype(np.float32, copy=False)
    inked = mask > 0.35
    rows, columns = np.flatnonzero(inked.any(axis=1)), np.flatnonzero(inked.any(axis=0))
    if not rows.size:
        raise ValueError("the number has no ink")
    return np.ascontiguousarray(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
