"""Numerals without a font: bent bars, brushed strokes and seven segments, as polylines in a unit box."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Points = list[tuple[float, float]]


def _arc(cx: float, cy: float, rx: float, ry: float, start: float, stop: float) -> Points:
    """Points of an ellipse's arc; angles in degrees, clockwise from the right as y points down."""
    angles = np.radians(np.linspace(start, stop, 15))
    return [(float(cx + rx * np.cos(a)), float(cy + ry * np.sin(a))) for a in angles]


# Several ways of writing each digit; each is a list of polylines, x and y from 0 to 1, y downwards.
_SHAPES: dict[str, list[list[Points]]] = {
    "0": [
        [_arc(0.5, 0.5, 0.5, 0.5, 0, 360)],
        [[(0.5, 0), (1, 0.2), (1, 0.8), (0.5, 1), (0, 0.8), (0, 0.2), (0.5, 0)]],
        [_arc(0.5, 0.5, 0.46, 0.5, -70, 285)],
    ],
    "1": [
        [[(0.5, 0), (0.5, 1)]],
        [[(0.1, 0.35), (0.6, 0), (0.6, 1)]],
        [[(0, 0.55), (0.75, 0), (0.75, 1)]],
        [[(0.15, 0.2), (0.5, 0), (0.5, 1)], [(0.1, 1), (0.9, 1)]],
        [[(0, 0.45), (0.3, 0.3), (0.65, 0), (0.65, 1)]],
        [[(0.62, 0), (0.38, 1)]],
        [[(0, 0.42), (0.85, 0), (0.6, 1)]],
        [[(0.1, 0.6), (0.7, 0), (0.78, 0.5), (0.7, 1)]],
    ],
    "2": [
        [[*_arc(0.5, 0.28, 0.48, 0.28, 195, 395), (0, 1), (1, 1)]],
        [[*_arc(0.5, 0.25, 0.45, 0.25, 180, 360), (0.85, 0.5), (0.2, 0.8), (0, 1), (1, 1)]],
        [[*_arc(0.5, 0.27, 0.44, 0.27, 200, 385), (0.3, 0.78), (0, 0.98), (0.3, 0.88), (0.65, 1), (1, 0.92)]],
    ],
    "3": [
        [[*_arc(0.45, 0.25, 0.45, 0.25, 200, 450), *_arc(0.45, 0.74, 0.52, 0.26, 270, 510)]],
        [[(0.02, 0), (0.95, 0), (0.4, 0.4), *_arc(0.45, 0.7, 0.52, 0.3, 290, 510)]],
        [[(0.05, 0.08), (0.6, 0), (0.9, 0.2), (0.35, 0.46), (0.95, 0.62), (0.85, 0.9), (0.4, 1), (0, 0.95)]],
    ],
    "4": [
        [[(0.7, 1), (0.7, 0), (0, 0.68), (1, 0.68)]],
        [[(0.15, 0), (0.05, 0.55), (0.95, 0.55)], [(0.75, 0.2), (0.75, 1)]],
        [[(0.55, 0), (0, 0.62), (1, 0.62)], [(0.7, 0.35), (0.7, 1)]],
        [[(0.08, 0.05), (0.05, 0.42), (0.3, 0.55), (0.85, 0.5)], [(0.9, 0), (0.82, 1)]],
        [[(0.35, 0), (0, 0.66), (1, 0.6)], [(0.8, 0.3), (0.62, 1)]],
    ],
    "5": [
        [[(0.9, 0), (0.15, 0), (0.08, 0.45), *_arc(0.45, 0.68, 0.52, 0.32, 235, 500)]],
        [[(0.95, 0), (0.1, 0), (0.1, 0.42), (0.6, 0.4), (0.95, 0.6), (0.9, 0.9), (0.5, 1), (0.02, 0.92)]],
        [[(0.22, 0.05), (0.1, 0.45), *_arc(0.42, 0.69, 0.5, 0.31, 240, 500)], [(0.22, 0.03), (1, 0)]],
    ],
    "6": [
        [[(0.75, 0), (0.3, 0.3), *_arc(0.5, 0.68, 0.48, 0.32, 200, 560)]],
        [[*_arc(0.55, 0.35, 0.5, 0.35, 310, 190), *_arc(0.5, 0.69, 0.48, 0.31, 180, 540)]],
        [[(0.55, 0), (0.15, 0.4), (0.02, 0.72), (0.35, 1), (0.85, 0.92), (0.95, 0.68), (0.6, 0.5), (0.08, 0.68)]],
    ],
    "7": [
        [[(0, 0), (1, 0), (0.35, 1)]],
        [[(0, 0.02), (0.95, 0), (0.6, 0.45), (0.45, 1)], [(0.25, 0.5), (0.85, 0.5)]],
        [[(0, 0.15), (0, 0), (1, 0), (0.4, 0.6), (0.35, 1)]],
        [[(0, 0.06), (0.5, 0.03), (1, 0), (0.55, 0.5), (0.2, 1)], [(0.25, 0.55), (0.9, 0.45)]],
    ],
    "8": [
        [_arc(0.5, 0.25, 0.42, 0.25, 90, 450), _arc(0.5, 0.74, 0.5, 0.26, 270, 630)],
        [[(0.85, 0.12), (0.45, 0), (0.12, 0.2), (0.5, 0.46), (0.95, 0.75), (0.5, 1), (0.05, 0.77), (0.5, 0.46),
          (0.88, 0.22), (0.8, 0.08)]],
    ],
    "9": [
        [[*_arc(0.5, 0.32, 0.48, 0.32, 20, 380), (0.7, 0.7), (0.25, 1)]],
        [[*_arc(0.5, 0.31, 0.48, 0.31, 0, 360), *_arc(0.48, 0.65, 0.5, 0.35, 0, 130)]],
        [[*_arc(0.46, 0.29, 0.44, 0.29, 0, 360)], [(0.92, 0.05), (0.88, 1)]],
        [[*_arc(0.46, 0.29, 0.44, 0.29, -20, 340), (0.7, 1)]],
    ],
}  # fmt: skip
_FLAGLESS, _BARRED = (0, 5), (1, 3)
_SEGMENTS: dict[str, Points] = {
    "a": [(0, 0), (1, 0)],
    "b": [(1, 0), (1, 0.5)],
    "c": [(1, 0.5), (1, 1)],
    "d": [(0, 1), (1, 1)],
    "e": [(0, 0.5), (0, 1)],
    "f": [(0, 0), (0, 0.5)],
    "g": [(0, 0.5), (1, 0.5)],
}
_LIT = {
    "0": "abcdef", "1": "bc", "2": "abged", "3": "abgcd", "4": "fgbc",
    "5": "afgcd", "6": "afgedc", "7": "abc", "8": "abcdefg", "9": "abcdfg",
}  # fmt: skip


class StrokeHand:
    """One way of drawing numerals, fixed for a whole number: the shape of each digit and the tool.

    tool: "wire" (an even line), "flat" (a flat brush, wide across its edge and thin along it), "round" (a soft
    brush that gives way to pressure and runs dry at the end) or "segments" (a display of seven).
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.tool = str(rng.choice(["wire", "flat", "round", "segments"], p=[0.33, 0.25, 0.32, 0.1]))
        self._variant = {digit: int(rng.integers(len(shapes))) for digit, shapes in _SHAPES.items()}
        if self._variant["1"] not in _FLAGLESS and rng.random() < 0.5:
            # Who gives the 1 a flag bars the 7.
            self._variant["7"] = int(rng.choice(_BARRED))
        self._shake = 0.0 if self.tool == "segments" or rng.random() < 0.4 else rng.uniform(0.01, 0.04)
        self._aspect = rng.uniform(0.4, 0.75)
        # Thicker lines would fill the eyes of narrow digits.
        self._thickness = rng.uniform(0.07, min(0.2, 0.34 * self._aspect))
        if self.tool == "flat":
            self._thickness *= 1.3
        self._flag = rng.uniform(0.45, 0.95)
        self._edge = rng.uniform(-0.2, 1.2)
        self._thin = rng.uniform(0.2, 0.6)
        self._dry = rng.uniform(0.3, 0.9)
        self._slant = rng.normal(0.12, 0.12) if self.tool in ("flat", "round") else 0.0

    def mask(self, digit: str, height: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        """The digit's ink, uint8 [height, w]."""
        segments = self.tool == "segments"
        shapes = [_SEGMENTS[s] for s in _LIT[digit]] if segments else _SHAPES[digit][self._variant[digit]]
        thick = max(1.0, self._thickness * height)
        width = self._aspect * height * (self._flag if digit == "1" and not segments else 1.0)
        scale = np.array([max(width - thick, 2.0), height - thick])
        lean = int(abs(self._slant) * height)
        mask = np.zeros((height, int(width + thick) + 2 + 2 * lean), np.uint8)
        for shape in shapes:
            points = np.array(shape) + rng.normal(0, self._shake, (len(shape), 2)).cumsum(axis=0) * 0.4
            if segments:
                # Lit bars stand a little apart.
                points = points.mean(axis=0) + (points - points.mean(axis=0)) * 0.84
            pixels = np.clip(points, (-0.1, 0.0), (1.1, 1.0)) * scale + thick / 2
            pixels[:, 0] += lean + self._slant * (height / 2 - pixels[:, 1])
            if self.tool in ("wire", "segments"):
                _line(mask, pixels, thick)
            else:
                self._brush(mask, pixels, thick, rng)
        columns = np.flatnonzero(mask.max(axis=0))
        return mask[:, columns[0] : columns[-1] + 1]

    def _brush(
        self, mask: NDArray[np.uint8], pixels: NDArray[np.float64], thick: float, rng: np.random.Generator
    ) -> None:
        """A stroke whose width follows its direction (flat) or the hand's pressure (round), its corners rounded."""
        steps = np.linalg.norm(np.diff(pixels, axis=0), axis=1).cumsum()
        along = np.linspace(0, steps[-1], max(4, int(steps[-1] / max(0.3 * thick, 2.0))))
        path = np.stack([np.interp(along, np.r_[0, steps], pixels[:, axis]) for axis in (0, 1)], axis=1)
        for _ in range(3):
            path[1:-1] = 0.5 * path[1:-1] + 0.25 * (path[:-2] + path[2:])
        pieces = np.diff(path, axis=0)
        if self.tool == "flat":
            turned = np.arctan2(pieces[:, 1], pieces[:, 0]) - self._edge
            widths = self._thin + (1 - self._thin) * np.abs(np.sin(turned))
        else:
            progress = np.linspace(0, 1, len(pieces))
            wave = 0.2 * np.sin(progress * rng.uniform(2, 7) + rng.uniform(0, 6.3))
            widths = np.clip(1 + wave - (1 - self._dry) * progress**2, 0.3, 1.0)
        for start, stop, width in zip(path[:-1], path[1:], widths, strict=True):
            _line(mask, np.stack([start, stop]), float(width) * thick)


def _line(mask: NDArray[np.uint8], pixels: NDArray[np.float64], thick: float) -> None:
    """Sub-pixel positions: four fractional bits."""
    points = [np.round(pixels * 16).astype(np.int32)]
    cv2.polylines(mask, points, False, 255, max(1, round(thick)), cv2.LINE_AA, 4)
