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
    "0": [[_arc(0.5, 0.5, 0.5, 0.5, 0, 360)], [[(0.5, 0), (1, 0.2), (1, 0.8), (0.5, 1), (0, 0.8), (0, 0.2), (0.5, 0)]]],
    "1": [
        [[(0.5, 0), (0.5, 1)]],
        [[(0.1, 0.35), (0.6, 0), (0.6, 1)]],
        [[(0, 0.55), (0.75, 0), (0.75, 1)]],
        [[(0.15, 0.2), (0.5, 0), (0.5, 1)], [(0.1, 1), (0.9, 1)]],
        [[(0, 0.45), (0.3, 0.3), (0.65, 0), (0.65, 1)]],
    ],
    "2": [
        [[*_arc(0.5, 0.28, 0.48, 0.28, 195, 395), (0, 1), (1, 1)]],
        [[*_arc(0.5, 0.25, 0.45, 0.25, 180, 360), (0.85, 0.5), (0.2, 0.8), (0, 1), (1, 1)]],
    ],
    "3": [
        [[*_arc(0.45, 0.25, 0.45, 0.25, 200, 450), *_arc(0.45, 0.74, 0.52, 0.26, 270, 510)]],
        [[(0.02, 0), (0.95, 0), (0.4, 0.4), *_arc(0.45, 0.7, 0.52, 0.3, 290, 510)]],
    ],
    "4": [
        [[(0.7, 1), (0.7, 0), (0, 0.68), (1, 0.68)]],
        [[(0.15, 0), (0.05, 0.55), (0.95, 0.55)], [(0.75, 0.2), (0.75, 1)]],
        [[(0.55, 0), (0, 0.62), (1, 0.62)], [(0.7, 0.35), (0.7, 1)]],
    ],
    "5": [
        [[(0.9, 0), (0.15, 0), (0.08, 0.45), *_arc(0.45, 0.68, 0.52, 0.32, 235, 500)]],
        [[(0.95, 0), (0.1, 0), (0.1, 0.42), (0.6, 0.4), (0.95, 0.6), (0.9, 0.9), (0.5, 1), (0.02, 0.92)]],
    ],
    "6": [
        [[(0.75, 0), (0.3, 0.3), *_arc(0.5, 0.68, 0.48, 0.32, 200, 560)]],
        [[*_arc(0.55, 0.35, 0.5, 0.35, 310, 190), *_arc(0.5, 0.69, 0.48, 0.31, 180, 540)]],
    ],
    "7": [
        [[(0, 0), (1, 0), (0.35, 1)]],
        [[(0, 0.02), (0.95, 0), (0.6, 0.45), (0.45, 1)], [(0.25, 0.5), (0.85, 0.5)]],
        [[(0, 0.15), (0, 0), (1, 0), (0.4, 0.6), (0.35, 1)]],
    ],
    "8": [[_arc(0.5, 0.25, 0.42, 0.25, 90, 450), _arc(0.5, 0.74, 0.5, 0.26, 270, 630)]],
    "9": [
        [[*_arc(0.5, 0.32, 0.48, 0.32, 20, 380), (0.7, 0.7), (0.25, 1)]],
        [[*_arc(0.5, 0.31, 0.48, 0.31, 0, 360), *_arc(0.48, 0.65, 0.5, 0.35, 0, 130)]],
    ],
}
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
    """One way of drawing numerals: which shape for each digit, how thick, how shaky; fixed for a whole number."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._segments = rng.random() < 0.15
        self._variant = {digit: int(rng.integers(len(shapes))) for digit, shapes in _SHAPES.items()}
        self._thickness = rng.uniform(0.07, 0.2)
        self._shake = 0.0 if self._segments or rng.random() < 0.4 else rng.uniform(0.01, 0.04)
        self._aspect = rng.uniform(0.4, 0.75)

    def mask(self, digit: str, height: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        """The digit's ink, uint8 [height, w]."""
        shapes = [_SEGMENTS[s] for s in _LIT[digit]] if self._segments else _SHAPES[digit][self._variant[digit]]
        thick = max(1.0, self._thickness * height)
        width = self._aspect * height * (0.45 if digit == "1" and len(shapes) == 1 and not self._segments else 1.0)
        scale = np.array([max(width - thick, 2.0), height - thick])
        mask = np.zeros((height, int(width + thick) + 2), np.uint8)
        for shape in shapes:
            points = np.array(shape) + rng.normal(0, self._shake, (len(shape), 2)).cumsum(axis=0) * 0.4
            pixels = np.clip(points, -0.1, 1.1) * scale + thick / 2
            # Sub-pixel positions: four fractional bits.
            cv2.polylines(mask, [np.round(pixels * 16).astype(np.int32)], False, 255, round(thick), cv2.LINE_AA, 4)
        columns = np.flatnonzero(mask.max(axis=0))
        return mask[:, columns[0] : columns[-1] + 1]
