"""What the generator promises of its pictures: neighbours are never part of the number, and there is something to read.

The built-in font is enough."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from models.data.synthetic import camera, finishes, neighbours, palette, surface
from models.data.synthetic.fonts import BUILT_IN, GLYPH_HEIGHT, glyph
from models.data.synthetic.lettering import set_digits
from models.data.synthetic.neighbours import Site
from models.data.synthetic.palette import LUMA, Palette
from models.data.synthetic.strokes import StrokeHand

BLACK, WHITE = np.zeros(3, np.float32), np.full(3, 255, np.float32)
INK_ON_GREY = Palette(ground=np.full(3, 128, np.float32), ink=BLACK, wall=WHITE, plated=False)


def _site(rng: np.random.Generator) -> Site:
    """A number of 120 x 60 pixels in the middle of 320 x 260, shown with anything from no room to 60 pixels of it."""
    left, top, right, bottom = rng.uniform(0, 60, 4) * rng.choice([0.3, 1.0])
    return Site(320, 260, (100, 100, 220, 160), 60.0, (100 - left, 100 - top, 220 + right, 160 + bottom))


def _changed(canvas: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(np.abs(canvas - 128).max(axis=2), np.float32)


def test_nothing_beside_the_number_reaches_into_its_box() -> None:
    for seed in range(80):
        rng = np.random.default_rng(seed)
        site = _site(rng)
        canvas = np.full((260, 320, 3), 128, np.float32)
        neighbours.words(canvas, site, INK_ON_GREY, BUILT_IN, rng)
        neighbours.cut_neighbours(canvas, site, INK_ON_GREY, BUILT_IN, rng)
        neighbours.side_strips(canvas, site, INK_ON_GREY, rng)
        neighbours.level_bars(canvas, site, INK_ON_GREY, rng)
        changed = _changed(canvas)
        assert changed.max() > 30
        inside = changed[100:160, 100:220]
        assert inside[4:-4, 4:-4].max() <= 3
        # Soft edges may tint the rim.
        assert inside.mean() < 0.3


def test_remains_of_a_neighbour_are_cut_by_the_edge_of_the_crop() -> None:
    """They touch the edge, lie inside the crop, and are no more than the promised share of the widest character."""
    letters = [glyph(BUILT_IN, character).mask.shape for character in "MWmOD08"]
    widest = max(width for _, width in letters) / GLYPH_HEIGHT * 60 * 1.15
    seen = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        site = _site(rng)
        canvas = np.full((260, 320, 3), 128, np.float32)
        neighbours.cut_neighbours(canvas, site, INK_ON_GREY, BUILT_IN, rng)
        rows, columns = np.nonzero(_changed(canvas) > 8)
        if not rows.size:
            continue
        seen += 1
        x0, y0, x1, y1 = site.shown
        beside = rows.max() >= 102 and rows.min() <= 158
        if beside:
            assert columns.max() + 1 - columns.min() <= neighbours.LETTER_SEEN_AT_MOST * widest + 2
            reach = columns.min() - x0 if columns.max() < 100 else x1 - columns.max() - 1
        else:
            assert rows.max() + 1 - rows.min() <= neighbours.LETTER_SEEN_AT_MOST * 1.5 * 60 * 1.15
            reach = rows.min() - y0 if rows.max() < 100 else y1 - rows.max() - 1
        # Round characters touch the edge with their outermost curve only.
        assert -2 <= reach <= 8
    assert seen > 50


def test_every_hand_draws_ten_digits_that_can_be_told_apart() -> None:
    tools = set()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        hand = StrokeHand(rng)
        tools.add(hand.tool)
        patterns = []
        for digit in "0123456789":
            ink = hand.mask(digit, 96, rng)
            assert ink.dtype == np.uint8
            assert ink.shape[0] == 96
            assert ink[:, 0].any()
            assert ink[:, -1].any()
            room = max(96 - ink.shape[1], 0)
            square = cv2.copyMakeBorder(ink, 0, 0, room // 2, room - room // 2, cv2.BORDER_CONSTANT, value=0)
            small = cv2.resize(square, (16, 24), interpolation=cv2.INTER_AREA).astype(np.float64).ravel()
            patterns.append(small - small.mean())
        alike = np.corrcoef(patterns) - np.eye(10)
        assert alike.max() < 0.95, (seed, hand.tool, np.unravel_index(alike.argmax(), alike.shape))
    assert tools == {"wire", "flat", "round", "segments"}


def test_brushes_vary_in_width_and_wires_do_not() -> None:
    """The circles inscribed along an even line are all of a size."""

    def spread(hand: StrokeHand) -> float:
        ink = hand.mask("0", 96, np.random.default_rng(0))
        depth = cv2.distanceTransform((np.pad(ink, 2) > 127).astype(np.uint8), cv2.DIST_L2, 5)
        ridge = depth[(depth >= cv2.dilate(depth, np.ones((5, 5)))) & (depth > 1)]
        return float(ridge.std() / ridge.mean())

    hands = [StrokeHand(np.random.default_rng(seed)) for seed in range(80)]
    spreads = {tool: np.mean([spread(hand) for hand in hands if hand.tool == tool]) for tool in ("wire", "flat")}
    assert spreads["flat"] > 1.5 * spreads["wire"]


def test_the_ink_stands_out_from_ground_and_texture() -> None:
    for seed in range(80):
        rng = np.random.default_rng(seed)
        drawn = palette.draw_palette(rng)
        contrast = abs(float((drawn.ink - drawn.ground) @ LUMA))
        assert contrast >= 0.75 * palette.LEAST_CONTRAST  # less where a colour meets black or white
        site = _site(rng)
        ground = surface.build_surface(site, drawn, BUILT_IN, rng)[104:156, 104:216] @ LUMA
        assert ground.std() <= 0.45 * contrast + 1


@pytest.mark.parametrize("height", [12, 40])
def test_a_faint_number_is_still_there_after_the_camera(height: int) -> None:
    """Of 80 exposures of a number 24 levels off its ground, nearly all still follow its shape."""
    letters = set_digits("25", height, (BUILT_IN,), np.random.default_rng(1))
    mask = np.pad(letters.mask, height // 3)
    canvas = np.repeat((130 + 24 * mask)[:, :, None], 3, axis=2).astype(np.float32)
    follows = []
    for seed in range(80):
        exposed = camera.expose(canvas, float(height), np.random.default_rng(seed)).mean(axis=2)
        follows.append(abs(np.corrcoef(exposed.ravel(), mask.ravel())[0, 1]))
    assert np.quantile(follows, 0.05) > 0.6


def test_tiles_hold_each_digit_and_leave_the_canvas_given_alone() -> None:
    mask = np.zeros((80, 160), np.float32)
    mask[20:60, 30:55] = mask[24:64, 75:100] = mask[20:60, 102:120] = 1
    bright = Palette(ground=np.full(3, 200, np.float32), ink=BLACK, wall=WHITE, plated=False)
    for seed in range(20):
        canvas = np.zeros((80, 160, 3), np.float32)
        tiled = finishes.tiled(canvas, mask, 40.0, bright, np.random.default_rng(seed))
        assert (tiled[mask > 0] > 150).all()
        assert not canvas.any()
        # Digits two pixels apart share a tile, those twenty apart do not: a seam, darker or bare, lies between.
        assert tiled[40, 57:74].min() < 170
        assert tiled[40, 100:102].min() > 150
