"""What stands on and around a wall in a whole scene: doors, windows, lamps, notices, figures, leaves."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from models.data.synthetic.fonts import Face
from models.data.synthetic.palette import muted
from models.data.synthetic.signs import Box, Canvas, small_print, write
from models.data.synthetic.walls import Colour, draw_wall
from models.data.synthetic.words import draw_words


def _rectangle(canvas: Canvas, box: Box, colour: Colour, thick: int = -1) -> None:
    left, top, right, bottom = (round(edge) for edge in box)
    cv2.rectangle(canvas, (left, top), (right, bottom), np.clip(colour, 0, 255).tolist(), thick)


def _inset(box: Box, share: float) -> Box:
    across, down = share * (box[2] - box[0]), share * (box[3] - box[1])
    return box[0] + across, box[1] + down, box[2] - across, box[3] - down


def _pane(canvas: Canvas, box: Box, rng: np.random.Generator) -> None:
    """Glass: dark, or reflecting the sky."""
    left, top, right, bottom = (max(0, round(edge)) for edge in box)
    window = canvas[top:bottom, left:right]
    if not window.size:
        return
    first, last = (muted(rng) * np.float32(rng.uniform(0.15, 0.9)) for _ in range(2))
    if rng.random() < 0.3:
        first = np.array([150, 185, 215], np.float32) * np.float32(rng.uniform(0.6, 1.15))
    ramp = np.linspace(0, 1, window.shape[0], dtype=np.float32)[:, None, None]
    window[:] = np.clip(first + ramp * (last - first), 0, 255)


def _window(canvas: Canvas, box: Box, unit: float, face: Face, rng: np.random.Generator) -> None:
    frame = muted(rng) if rng.random() < 0.3 else np.full(3, rng.uniform(180, 250), np.float32)
    _rectangle(canvas, box, frame)
    border = max(1.0, unit * 0.15)
    columns, rows = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    wide, high = (box[2] - box[0] - border) / columns, (box[3] - box[1] - border) / rows
    for column in range(columns):
        for row in range(rows):
            x, y = box[0] + border + column * wide, box[1] + border + row * high
            _pane(canvas, (x, y, x + wide - border, y + high - border), rng)
    if rng.random() < 0.5:
        _rectangle(canvas, (box[0] - border, box[3], box[2] + border, box[3] + 2 * border), frame * np.float32(0.85))


def door(canvas: Canvas, box: Box, unit: float, colour: Colour, rng: np.random.Generator) -> None:
    """A door with its frame, panels, perhaps a pane, a handle and a letter slot."""
    frame = muted(rng) if rng.random() < 0.5 else np.full(3, rng.uniform(170, 250), np.float32)
    border = max(1.0, unit * rng.uniform(0.15, 0.5))
    _rectangle(canvas, (box[0] - border, box[1] - border, box[2] + border, box[3] + border), frame)
    _rectangle(canvas, box, colour)
    columns, rows = int(rng.integers(1, 3)), int(rng.integers(2, 4))
    wide, high = (box[2] - box[0]) / columns, (box[3] - box[1]) / rows
    for row in range(rows):
        for column in range(columns):
            x, y = box[0] + column * wide, box[1] + row * high
            panel = _inset((x, y, x + wide, y + high), 0.14)
            if row == 0 and rng.random() < 0.35:
                _pane(canvas, panel, rng)
            else:
                _rectangle(canvas, panel, colour * np.float32(rng.uniform(0.6, 1.3)), max(1, round(unit * 0.08)))
    metal = np.array([200, 180, 120], np.float32) if rng.random() < 0.5 else np.full(3, 190, np.float32)
    handle = (round(box[2] - wide * columns * 0.1), round((box[1] + box[3]) / 2))
    cv2.circle(canvas, handle, max(1, round(unit * 0.15)), metal.tolist(), -1, cv2.LINE_AA)
    middle, level = (box[0] + box[2]) / 2, box[1] + 0.55 * (box[3] - box[1])
    _rectangle(canvas, (middle - 0.6 * unit, level, middle + 0.6 * unit, level + 0.25 * unit), metal)


def _door(canvas: Canvas, box: Box, unit: float, face: Face, rng: np.random.Generator) -> None:
    door(canvas, box, unit, muted(rng), rng)


def _notice(canvas: Canvas, box: Box, unit: float, face: Face, rng: np.random.Generator) -> None:
    """A sheet or sign with small print, its heading in real letters."""
    paper = np.full(3, rng.uniform(150, 250), np.float32) if rng.random() < 0.6 else muted(rng)
    ink = np.full(3, 30 if paper.mean() > 120 else 230, np.float32)
    _rectangle(canvas, box, paper)
    left, top, right, bottom = _inset(box, 0.1)
    head = min(unit * rng.uniform(0.25, 0.7), (bottom - top) * 0.4)
    write(canvas, draw_words(rng), head, left, top, right - left, ink, face)
    small_print(canvas, (left, top + head * 1.6, right, bottom), ink, rng)


def _band(canvas: Canvas, box: Box, unit: float, face: Face, rng: np.random.Generator) -> None:
    """A strip of one colour with words along it."""
    high = unit * rng.uniform(0.5, 1.3)
    colour = muted(rng) if rng.random() < 0.4 else rng.uniform(0, 230, 3).astype(np.float32)
    ink = np.full(3, 30 if colour.mean() > 120 else 235, np.float32)
    _rectangle(canvas, (box[0], box[1], box[2], box[1] + high), colour)
    write(canvas, draw_words(rng), high * 0.55, box[0] + 0.3 * high, box[1] + 0.22 * high, box[2] - box[0], ink, face)


def _fitting(canvas: Canvas, box: Box, unit: float, face: Face, rng: np.random.Generator) -> None:
    """A letter box, a bell, a lamp, an intercom."""
    x, y, size = box[0], box[1], unit * rng.uniform(0.6, 1.8)
    body = (x, y, x + size * rng.uniform(0.6, 1.5), y + size)
    colour = muted(rng) * np.float32(rng.uniform(0.3, 1.0))
    _rectangle(canvas, (body[0] + 2, body[1] + 2, body[2] + 2, body[3] + 2), np.full(3, 40, np.float32))
    _rectangle(canvas, body, colour)
    light = np.clip(colour * 1.6 + 40, 0, 255).tolist()
    kind = int(rng.integers(3))
    middle = (round((body[0] + body[2]) / 2), round((body[1] + body[3]) / 2))
    if kind == 0:
        _rectangle(canvas, (*_inset(body, 0.2)[:3], body[1] + size * 0.35), colour * np.float32(0.4))
    elif kind == 1:
        cv2.circle(canvas, middle, max(1, round(size * 0.16)), light, -1, cv2.LINE_AA)
    else:
        cv2.circle(canvas, middle, max(1, round(size * 0.3)), (255, 240, 200), -1, cv2.LINE_AA)


def _figures(canvas: Canvas, box: Box, unit: float, face: Face, rng: np.random.Generator) -> None:
    """Silhouettes of people walking, as on murals and posters."""
    tones = np.stack([rng.uniform(10, 60, 3), muted(rng), np.array([225, 160, 165])])
    high = unit * rng.uniform(2, 4.5)
    for row in range(int(rng.integers(1, 4))):
        x, y = box[0] + unit * rng.uniform(0, 1), box[1] + row * high * 1.2
        while x < box[2] and y + high < box[3] + unit:
            tone = np.clip(tones[int(rng.integers(3))], 0, 255).tolist()
            w = high * 0.13
            cv2.circle(canvas, (round(x), round(y + w)), max(1, round(w * 0.8)), tone, -1, cv2.LINE_AA)
            stride = high * rng.uniform(0.05, 0.2)
            hip = y + high * 0.55
            body = [(x - w, y + 2 * w), (x + w, y + 2 * w), (x + w * 0.8, hip), (x - w * 0.8, hip)]
            cv2.fillPoly(canvas, [np.round(body).astype(np.int32)], tone, cv2.LINE_AA)
            for foot in (x - stride, x + stride):
                ends = [(round(x), round(hip)), (round(foot), round(y + high))]
                cv2.line(canvas, ends[0], ends[1], tone, max(1, round(w * 0.8)), cv2.LINE_AA)
            x += high * rng.uniform(0.4, 0.9)


def _leaves(canvas: Canvas, box: Box, unit: float, face: Face, rng: np.random.Generator) -> None:
    """A bush or climber: many leaves in several greens."""
    green = np.array([rng.uniform(40, 110), rng.uniform(80, 150), rng.uniform(25, 70)])
    size = unit * rng.uniform(0.12, 0.4)
    middle, spread = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), ((box[2] - box[0]) / 4, (box[3] - box[1]) / 4)
    for _ in range(int(rng.integers(40, 110))):
        # Nothing of it leaves the box, where the number may be.
        x = float(np.clip(rng.normal(middle[0], spread[0]), box[0] + size, box[2] - size))
        y = float(np.clip(rng.normal(middle[1], spread[1]), box[1] + size, box[3] - size))
        axes = (max(1, round(size)), max(1, round(size * 0.5)))
        tone = np.clip(green * rng.uniform(0.35, 1.5), 0, 255).tolist()
        cv2.ellipse(canvas, (round(x), round(y)), axes, int(rng.integers(180)), 0, 360, tone, -1)


def _pipe(canvas: Canvas, box: Box, unit: float, face: Face, rng: np.random.Generator) -> None:
    colour = muted(rng)
    thick = unit * rng.uniform(0.2, 0.6)
    height = float(canvas.shape[0])
    _rectangle(canvas, (box[0], 0, box[0] + thick, height), colour)
    _rectangle(canvas, (box[0] + thick * 0.6, 0, box[0] + thick, height), colour * np.float32(0.6))


_FURNITURE: tuple[tuple[float, Callable[[Canvas, Box, float, Face, np.random.Generator], None]], ...] = (
    (0.17, _window),
    (0.14, _door),
    (0.17, _notice),
    (0.09, _band),
    (0.14, _fitting),
    (0.08, _figures),
    (0.14, _leaves),
    (0.07, _pipe),
)


def furnish(canvas: Canvas, keep: Box | None, unit: float, face: Face, rng: np.random.Generator) -> None:
    """Puts things of a house on a wall, in place, none of them over `keep` (left, top, right, bottom)."""
    height, width = canvas.shape[:2]
    if rng.random() < 0.45:
        for side in rng.choice(4, int(rng.integers(1, 3)), replace=False):
            _edge(canvas, int(side), keep, unit, rng)
    shares = np.array([share for share, _ in _FURNITURE])
    for _ in range(int(rng.integers(0, 5) if keep else rng.integers(2, 7))):
        piece = _FURNITURE[int(rng.choice(len(_FURNITURE), p=shares / shares.sum()))][1]
        for _attempt in range(4):
            w, h = rng.uniform(0.12, 0.6) * width, rng.uniform(0.15, 0.8) * height
            x, y = rng.uniform(-0.3 * w, width - 0.5 * w), rng.uniform(-0.3 * h, height - 0.5 * h)
            if piece is _pipe:
                w, y, h = unit * 0.6, 0.0, float(height)
            elif piece is _fitting:
                w, h = 2.7 * unit, 2.0 * unit
            elif piece is _band:
                h = 1.3 * unit
            if keep is None or x + w < keep[0] or x > keep[2] or y + h < keep[1] or y > keep[3]:
                piece(canvas, (x, y, x + w, y + h), unit, face, rng)
                break


def _edge(canvas: Canvas, side: int, keep: Box | None, unit: float, rng: np.random.Generator) -> None:
    """Another surface along one side of the picture (0 left, 1 top, 2 right, 3 bottom): sky, paving, the next wall."""
    height, width = canvas.shape[:2]
    reach = (width, height)[side % 2] * rng.uniform(0.06, 0.4)
    if keep is not None:
        room = (keep[0], keep[1], width - keep[2], height - keep[3])[side]
        reach = min(reach, room)
    if reach < 2:
        return
    size = round(reach)
    window = (canvas[:, :size], canvas[:size], canvas[:, width - size :], canvas[height - size :])[side]
    if rng.random() < 0.4:
        _pane(window, (0, 0, window.shape[1], window.shape[0]), rng)
    else:
        window[:] = draw_wall(window.shape[1], window.shape[0], unit, rng)
    if rng.random() < 0.5:
        seam = size if side < 2 else (width, height)[side % 2] - size
        line = (canvas[:, seam - 1 : seam + 1], canvas[seam - 1 : seam + 1])[side % 2]
        line[:] = np.clip(muted(rng) * 0.7, 0, 255)
