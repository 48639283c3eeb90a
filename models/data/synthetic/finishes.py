"""How digits stand on their surface: paint, relief, metal with shadow and rim light, outlines, glow, tiles."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from models.data.synthetic.palette import Image, Palette, muted


def direction(rng: np.random.Generator) -> tuple[float, float]:
    """A unit vector of any direction."""
    angle = rng.uniform(0, 2 * np.pi)
    return float(np.cos(angle)), float(np.sin(angle))


def _shifted(mask: Image, dx: float, dy: float, sigma: float = 0.0) -> Image:
    moved = cv2.warpAffine(mask, np.array([[1, 0, dx], [0, 1, dy]], np.float64), mask.shape[1::-1])
    return np.asarray(cv2.GaussianBlur(moved, (0, 0), sigma) if sigma > 0.3 else moved, np.float32)


def _mix(canvas: Image, mask: Image, colour: Image | float) -> Image:
    """The canvas with a colour, [3] or [h, w, 3], laid over it through a mask from 0 to 1."""
    return np.asarray(canvas + cv2.merge([mask] * 3) * (colour - canvas), np.float32)


def _paint(canvas: Image, mask: Image, h: float, palette: Palette, rng: np.random.Generator) -> Image:
    return _mix(canvas, mask, palette.ink)


def _worn(canvas: Image, mask: Image, h: float, palette: Palette, rng: np.random.Generator) -> Image:
    """Paint that has flaked off in places."""
    noise = rng.standard_normal(mask.shape, dtype=np.float32)
    spots = np.asarray(cv2.GaussianBlur(noise, (0, 0), max(0.6, 0.05 * h)), np.float32)
    spots = spots / max(float(spots.std()), 1e-6)
    left = np.clip((spots + rng.uniform(0.7, 1.8)) * 2, rng.uniform(0, 0.4), 1)
    return _mix(canvas, np.asarray(mask * left, np.float32), palette.ink)


def _shadowed(canvas: Image, mask: Image, h: float, palette: Palette, rng: np.random.Generator) -> Image:
    """Digits that stand off the wall and throw a shadow."""
    dx, dy = direction(rng)
    reach = h * rng.uniform(0.03, 0.14)
    shadow = _shifted(mask, dx * reach, abs(dy) * reach, h * rng.uniform(0.005, 0.06))
    return _mix(canvas * (1 - rng.uniform(0.3, 0.75) * shadow[:, :, None]), mask, palette.ink)


def _solid(canvas: Image, mask: Image, h: float, palette: Palette, rng: np.random.Generator) -> Image:
    """Letters of some depth, whose flanks show on one side."""
    dx, dy = direction(rng)
    depth = h * rng.uniform(0.03, 0.12)
    flank = mask
    for step in np.linspace(0.34, 1, 3):
        flank = np.maximum(flank, _shifted(mask, dx * depth * step, dy * depth * step))
    canvas = _mix(canvas, flank, palette.ink * np.float32(rng.uniform(0.3, 0.7)))
    return _mix(canvas, mask, palette.ink)


def _slope_light(mask: Image, h: float, rng: np.random.Generator) -> Image:
    """Light and shade on the flanks of digits raised from the surface (or sunk into it), about -1 to 1."""
    soft = np.asarray(cv2.GaussianBlur(mask, (0, 0), h * rng.uniform(0.015, 0.04) + 0.3), np.float32)
    dx, dy = direction(rng)
    shade = dx * cv2.Sobel(soft, cv2.CV_32F, 1, 0) + dy * cv2.Sobel(soft, cv2.CV_32F, 0, 1)
    return np.asarray(shade / max(float(np.abs(shade).max()), 1e-6), np.float32)


def _relief(canvas: Image, mask: Image, h: float, palette: Palette, rng: np.random.Generator) -> Image:
    """Digits of the ground's own material, told by light and shade alone, or by little more."""
    slope = _slope_light(mask, h, rng)
    shade = slope * rng.uniform(35, 110)
    if rng.random() < 0.3:
        # Polished: the flank that faces the light flashes.
        shade = shade + np.clip(slope, 0, 1) ** 3 * rng.uniform(40, 140)
    fill = float(rng.choice([0.0, rng.uniform(0.05, 0.35)]))
    return _mix(canvas, mask * np.float32(fill), palette.ink) + shade[:, :, None]


def _rim_lit(canvas: Image, mask: Image, h: float, palette: Palette, rng: np.random.Generator) -> Image:
    """Metal numerals: a bright line along the edges that face the light, a dark one along the others, a shadow."""
    dx, dy = direction(rng)
    reach = max(1.0, h * rng.uniform(0.02, 0.06))
    bright = np.clip(mask - _shifted(mask, dx * reach, dy * reach), 0, 1)
    dark = np.clip(mask - _shifted(mask, -dx * reach, -dy * reach), 0, 1)
    shadow = _shifted(mask, 1.5 * dx * reach, 1.5 * abs(dy) * reach, h * 0.02)
    metal = palette.ink if rng.random() < 0.6 else 0.6 * palette.ground + 0.4 * palette.ink
    canvas = _mix(canvas * (1 - rng.uniform(0.2, 0.7) * shadow[:, :, None]), mask, metal)
    canvas = _mix(canvas, np.asarray(dark * rng.uniform(0.3, 0.8), np.float32), metal * np.float32(0.3))
    return _mix(canvas, np.asarray(bright * rng.uniform(0.5, 1), np.float32), 250.0)


def _bevelled(canvas: Image, mask: Image, h: float, palette: Palette, rng: np.random.Generator) -> Image:
    """Coloured digits with bright and dark flanks, as cast metal has them."""
    shade = _slope_light(mask, h, rng) * rng.uniform(30, 90)
    return _shadowed(canvas, mask, h, palette, rng) + (shade * mask)[:, :, None]


def _graded(canvas: Image, mask: Image, h: float, palette: Palette, rng: np.random.Generator) -> Image:
    """A gradient over the digits: polished metal reflecting a bright and a dark side."""
    dx, dy = direction(rng)
    y, x = np.mgrid[0 : mask.shape[0], 0 : mask.shape[1]].astype(np.float32)
    wave = np.sin((x * dx + y * dy) / (h * rng.uniform(0.3, 1.5)) + rng.uniform(0, 6.3))
    fill = palette.ink + (wave * rng.uniform(15, 60))[:, :, None]
    return _mix(canvas, mask, np.asarray(fill, np.float32))


def _outlined(canvas: Image, mask: Image, h: float, palette: Palette, rng: np.random.Generator) -> Image:
    """Digits with a rim; the inside in the ground's colour, or the rim in a third one."""
    width = max(1, round(h * rng.uniform(0.02, 0.06)))
    grown = np.asarray(cv2.dilate(mask, np.ones((2 * width + 1, 2 * width + 1), np.uint8)), np.float32)
    if rng.random() < 0.4:
        return _mix(canvas, np.clip(grown - mask, 0, 1), palette.ink)
    rim = palette.ground * rng.uniform(0.3, 1.5) if rng.random() < 0.5 else muted(rng)
    return _mix(_mix(canvas, grown, np.asarray(rim, np.float32)), mask, palette.ink)


def _backlit(canvas: Image, mask: Image, h: float, palette: Palette, rng: np.random.Generator) -> Image:
    """Dark digits in front of their own light, or digits that shine."""
    halo = np.asarray(cv2.GaussianBlur(mask, (0, 0), h * rng.uniform(0.05, 0.15)), np.float32)
    glow = np.array([255, rng.uniform(200, 255), rng.uniform(140, 250)], np.float32)
    if rng.random() < 0.5:
        return _mix(canvas * 0.5 + halo[:, :, None] * glow, mask, palette.ink * np.float32(0.2))
    return _mix(canvas * 0.6 + 0.7 * halo[:, :, None] * glow, mask, glow)


FINISHES: tuple[tuple[float, Callable[[Image, Image, float, Palette, np.random.Generator], Image]], ...] = (
    (0.46, _paint),
    (0.05, _worn),
    (0.13, _shadowed),
    (0.07, _solid),
    (0.07, _relief),
    (0.06, _bevelled),
    (0.05, _rim_lit),
    (0.05, _graded),
    (0.05, _outlined),
    (0.02, _backlit),
)


def tiled(canvas: Image, mask: Image, h: float, palette: Palette, rng: np.random.Generator) -> Image:
    """A tile or panel under each digit that stands free of the next, with seams between them; the canvas copied."""
    inked = np.r_[False, (mask > 0.35).any(axis=0), False].astype(np.int8)
    starts, stops = np.flatnonzero(np.diff(inked) == 1), np.flatnonzero(np.diff(inked) == -1)
    apart = starts[1:] - stops[:-1] > 0.05 * h
    starts, stops = starts[np.r_[True, apart]], stops[np.r_[apart, True]]
    pad, rise, seam = h * rng.uniform(0.06, 0.35), h * rng.uniform(0.05, 0.4), h * rng.uniform(0.0, 0.05)
    shade = palette.ground * np.float32(rng.choice([rng.uniform(0.3, 0.8), 1.0]))
    canvas = canvas.copy()
    for position, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        left = (stops[position - 1] + start + seam) / 2 if position else start - pad
        right = (stop + starts[position + 1] - seam) / 2 if position + 1 < len(starts) else stop + pad
        rows = np.flatnonzero((mask[:, start:stop] > 0.35).any(axis=1))
        lift = rng.normal(0, 0.03) * h
        corner = (max(0, round(left)), max(0, round(rows[0] - rise + lift)))
        opposite = (round(right), round(rows[-1] + rise + lift))
        tone = palette.ground + np.float32(rng.normal(0, 5))
        cv2.rectangle(canvas, corner, opposite, tone.tolist(), -1)
        cv2.rectangle(canvas, corner, opposite, (shade * np.float32(0.8)).tolist(), max(1, round(0.02 * h)))
    return canvas
