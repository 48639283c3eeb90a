"""Colours and contrast, how the digits stand on their surface (paint, relief, shadow, glow), and the light."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)

# Typical pairs of ground and ink as (ground, ink) in RGB, with the shares in which they are drawn.
_PAIRS: tuple[tuple[float, tuple[int, int, int], tuple[int, int, int]], ...] = (
    (0.16, (35, 55, 125), (225, 230, 240)),  # enamel: blue with white digits
    (0.14, (225, 225, 225), (35, 40, 75)),  # white with dark blue or black digits
    (0.10, (25, 25, 30), (225, 225, 220)),  # black or slate with white digits
    (0.08, (150, 145, 135), (40, 40, 45)),  # render with dark digits
    (0.05, (165, 140, 105), (60, 40, 25)),  # sand with brown
    (0.05, (135, 75, 60), (35, 30, 30)),  # brick with black
    (0.05, (130, 70, 55), (225, 215, 200)),  # brick with white
    (0.04, (75, 50, 40), (190, 160, 95)),  # wood with brass
    (0.04, (205, 190, 150), (90, 75, 50)),  # stone with bronze
    (0.03, (25, 95, 65), (225, 225, 215)),  # green with white
    (0.03, (125, 30, 35), (225, 210, 180)),  # red with cream
    (0.03, (170, 175, 180), (75, 80, 90)),  # brushed steel
    (0.20, (0, 0, 0), (0, 0, 0)),  # any two colours, see draw_palette
)


@dataclass(frozen=True)
class Palette:
    """Colours as float32 [3] in RGB, 0 to 255.

    ground: right behind the digits; ink: the digits; wall: around a plate; plated: whether there is a plate.
    """

    ground: Image
    ink: Image
    wall: Image
    plated: bool


def draw_palette(rng: np.random.Generator) -> Palette:
    """Ground, ink and wall; both polarities; the contrast from hardly visible to full."""
    shares = np.array([share for share, _, _ in _PAIRS])
    choice = int(rng.choice(len(_PAIRS), p=shares / shares.sum()))
    ground, ink = (np.array(colour, np.float32) for colour in _PAIRS[choice][1:])
    if choice == len(_PAIRS) - 1:
        ground, ink = (_muted(rng) for _ in range(2))
        if abs(float((ground - ink) @ _LUMA)) < 40:
            ink = np.full(3, 235 if float(ground @ _LUMA) < 120 else 25, np.float32)
    elif rng.random() < 0.12:
        ground, ink = ink, ground
    ground = ground + rng.normal(0, 14, 3).astype(np.float32) + np.float32(rng.normal(0, 14))
    ink = ink + rng.normal(0, 14, 3).astype(np.float32) + np.float32(rng.normal(0, 14))
    # Weathering, haze and exposure bring the two together; 16 levels of luma are left at the least.
    fade = float(rng.choice([1.0, rng.uniform(0.45, 1.0), rng.uniform(0.12, 0.45)], p=[0.45, 0.33, 0.22]))
    difference = (ink - ground) * fade
    luma = float(difference @ _LUMA)
    if abs(luma) < 16:
        difference = difference + np.float32(np.copysign(16 - abs(luma), luma))
    return Palette(
        ground=np.clip(ground, 3, 252).astype(np.float32),
        ink=np.clip(ground + difference, 0, 255).astype(np.float32),
        wall=_muted(rng),
        plated=bool(rng.random() < 0.6),
    )


def _muted(rng: np.random.Generator) -> Image:
    """A colour as walls have it: any brightness, little saturation, warmer rather than colder."""
    grey = rng.uniform(20, 235)
    tint = rng.normal(0, 1, 3) * rng.choice([5.0, 12.0, 32.0], p=[0.55, 0.35, 0.1]) + np.array([5.0, 0.0, -6.0])
    return np.asarray(np.clip(grey + tint, 5, 250), np.float32)


def _shifted(mask: Image, dx: float, dy: float, sigma: float = 0.0) -> Image:
    moved = cv2.warpAffine(mask, np.array([[1, 0, dx], [0, 1, dy]], np.float64), mask.shape[1::-1])
    return np.asarray(cv2.GaussianBlur(moved, (0, 0), sigma) if sigma > 0.3 else moved, np.float32)


def _mix(canvas: Image, mask: Image, colour: Image | float) -> Image:
    """The canvas with a colour, [3] or [h, w, 3], laid over it through a mask from 0 to 1."""
    return np.asarray(canvas + cv2.merge([mask] * 3) * (colour - canvas), np.float32)


def _direction(rng: np.random.Generator) -> tuple[float, float]:
    angle = rng.uniform(0, 2 * np.pi)
    return float(np.cos(angle)), float(np.sin(angle))


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
    dx, dy = _direction(rng)
    reach = h * rng.uniform(0.03, 0.14)
    shadow = _shifted(mask, dx * reach, abs(dy) * reach, h * rng.uniform(0.005, 0.06))
    return _mix(canvas * (1 - rng.uniform(0.3, 0.75) * shadow[:, :, None]), mask, palette.ink)


def _solid(canvas: Image, mask: Image, h: float, palette: Palette, rng: np.random.Generator) -> Image:
    """Letters of some depth, whose flanks show on one side."""
    dx, dy = _direction(rng)
    depth = h * rng.uniform(0.03, 0.12)
    flank = mask
    for step in np.linspace(0.34, 1, 3):
        flank = np.maximum(flank, _shifted(mask, dx * depth * step, dy * depth * step))
    canvas = _mix(canvas, flank, palette.ink * np.float32(rng.uniform(0.3, 0.7)))
    return _mix(canvas, mask, palette.ink)


def _slope_light(mask: Image, h: float, rng: np.random.Generator) -> Image:
    """Light and shade on the flanks of digits raised from the surface (or sunk into it), about -1 to 1."""
    soft = np.asarray(cv2.GaussianBlur(mask, (0, 0), h * rng.uniform(0.015, 0.04) + 0.3), np.float32)
    dx, dy = _direction(rng)
    shade = dx * cv2.Sobel(soft, cv2.CV_32F, 1, 0) + dy * cv2.Sobel(soft, cv2.CV_32F, 0, 1)
    return np.asarray(shade / max(float(np.abs(shade).max()), 1e-6), np.float32)


def _relief(canvas: Image, mask: Image, h: float, palette: Palette, rng: np.random.Generator) -> Image:
    """Digits of the ground's own material, told by light and shade alone, or by little more."""
    shade = _slope_light(mask, h, rng) * rng.uniform(35, 110)
    fill = float(rng.choice([0.0, rng.uniform(0.05, 0.35)]))
    return _mix(canvas, mask * np.float32(fill), palette.ink) + shade[:, :, None]


def _bevelled(canvas: Image, mask: Image, h: float, palette: Palette, rng: np.random.Generator) -> Image:
    """Coloured digits with bright and dark flanks, as cast metal has them."""
    shade = _slope_light(mask, h, rng) * rng.uniform(30, 90)
    return _shadowed(canvas, mask, h, palette, rng) + (shade * mask)[:, :, None]


def _graded(canvas: Image, mask: Image, h: float, palette: Palette, rng: np.random.Generator) -> Image:
    """A gradient over the digits: polished metal reflecting a bright and a dark side."""
    dx, dy = _direction(rng)
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
    rim = palette.ground * rng.uniform(0.3, 1.5) if rng.random() < 0.5 else _muted(rng)
    return _mix(_mix(canvas, grown, np.asarray(rim, np.float32)), mask, palette.ink)


def _backlit(canvas: Image, mask: Image, h: float, palette: Palette, rng: np.random.Generator) -> Image:
    """Dark digits in front of their own light, or digits that shine."""
    halo = np.asarray(cv2.GaussianBlur(mask, (0, 0), h * rng.uniform(0.05, 0.15)), np.float32)
    glow = np.array([255, rng.uniform(200, 255), rng.uniform(140, 250)], np.float32)
    if rng.random() < 0.5:
        return _mix(canvas * 0.5 + halo[:, :, None] * glow, mask, palette.ink * np.float32(0.2))
    return _mix(canvas * 0.6 + 0.7 * halo[:, :, None] * glow, mask, glow)


_FINISHES: tuple[tuple[float, Callable[[Image, Image, float, Palette, np.random.Generator], Image]], ...] = (
    (0.48, _paint),
    (0.05, _worn),
    (0.13, _shadowed),
    (0.07, _solid),
    (0.07, _relief),
    (0.07, _bevelled),
    (0.06, _graded),
    (0.05, _outlined),
    (0.02, _backlit),
)


def apply_digits(canvas: Image, mask: Image, digit_height: float, palette: Palette, rng: np.random.Generator) -> Image:
    """The canvas with the digits on it: float32 [h, w, 3], mask [h, w] from 0 to 1. May leave 0 to 255."""
    shares = np.array([share for share, _ in _FINISHES])
    finish = _FINISHES[int(rng.choice(len(_FINISHES), p=shares / shares.sum()))][1]
    return finish(canvas, mask, digit_height, palette, rng)


def shine_on(canvas: Image, digit_height: float, rng: np.random.Generator) -> Image:
    """Uneven light over everything: a slope, a cast shadow, glare."""
    height, width = canvas.shape[:2]
    if rng.random() < 0.5:
        dx, dy = _direction(rng)
        y, x = np.mgrid[0:height, 0:width].astype(np.float32)
        ramp = ((x - width / 2) * dx + (y - height / 2) * dy) / digit_height
        canvas = canvas * np.clip(1 + rng.uniform(0, 0.25) * ramp, 0.3, 1.7)[:, :, None]
    if rng.random() < 0.15:
        middle = np.array([width, height]) * rng.uniform(0.2, 0.8, 2)
        normal = np.array(_direction(rng))
        along = np.array([-normal[1], normal[0]]) * 4 * max(width, height)
        corners = [middle - along, middle + along, middle + along + normal * 9999, middle - along + normal * 9999]
        shadow = np.zeros((height, width), np.float32)
        cv2.fillPoly(shadow, [np.round(corners).astype(np.int32)], 1.0)
        shadow = np.asarray(cv2.GaussianBlur(shadow, (0, 0), digit_height * rng.uniform(0.02, 0.2) + 0.5))
        canvas = canvas * (1 - rng.uniform(0.2, 0.6) * shadow)[:, :, None]
    if rng.random() < 0.1:
        spot = np.zeros((height, width), np.float32)
        centre = (int(rng.uniform(0.2, 0.8) * width), int(rng.uniform(0.2, 0.8) * height))
        axes = (max(1, int(digit_height * rng.uniform(0.1, 0.7))), max(1, int(digit_height * rng.uniform(0.05, 0.4))))
        cv2.ellipse(spot, centre, axes, rng.uniform(0, 180), 0, 360, 1.0, -1)
        spot = np.asarray(cv2.GaussianBlur(spot, (0, 0), digit_height * rng.uniform(0.1, 0.4)))
        canvas = canvas + (spot * rng.uniform(60, 200))[:, :, None]
    return np.asarray(canvas, np.float32)
