"""A number seen from near: a crop around it, from the tight box to the whole plate."""

from __future__ import annotations

import math

import cv2
import numpy as np

from models.data.synthetic import camera, lighting
from models.data.synthetic.camera import Photograph
from models.data.synthetic.lettering import Lettering
from models.data.synthetic.palette import Palette
from models.data.synthetic.surface import Site, build_surface
from service.geometry import Region


def photograph_closeup(
    letters: Lettering,
    count: int,
    native: float,
    turn: float,
    palette: Palette,
    rng: np.random.Generator,
    whole: bool = False,
) -> Photograph:
    """A close view of `count` characters whose digits become `native` pixels high, turned by `turn` degrees.

    The region cuts at most a few hundredths off the outermost strokes, as annotated boxes do; never where `whole`.
    """
    # The canvas: the number in its middle, with room for any framing around it.
    working = letters.digit_height
    high, wide = letters.mask.shape
    margins = camera.draw_margins(wide, high, wide / count, rng)
    if whole:
        margins = margins.at_least(0.02 * high)
    beyond = rng.uniform(0, 0.35, 4) * working
    room = (0.4 + 0.5 * min(abs(turn) / 20, 1)) * working
    left, top, right, bottom = (
        math.ceil(room + max(margin, 0)) for margin in (margins.left, margins.top, margins.right, margins.bottom)
    )
    framed = cv2.copyMakeBorder(letters.mask, top, bottom, left, right, cv2.BORDER_CONSTANT, value=0)
    mask = np.asarray(framed, np.float32)
    site = Site(
        width=mask.shape[1],
        height=mask.shape[0],
        box=(left, top, left + wide, top + high),
        digit_height=working,
        shown=(left - margins.left, top - margins.top, left + wide + margins.right, top + high + margins.bottom),
    )
    canvas = build_surface(site, palette, letters.face, rng)
    canvas = lighting.apply_digits(canvas, mask, working, palette, rng)
    canvas = np.asarray(np.clip(lighting.shine_on(canvas, working, rng), 0, 255), np.float32)

    # The view: the region around the digits' true box, and some surroundings beyond it.
    scale = native / working
    pose = camera.draw_pose(site.width, site.height, scale, turn, rng)
    box = camera.ink_box(mask, pose)
    region_left, region_top = box[0] - margins.left * scale, box[1] - margins.top * scale
    region_right, region_bottom = box[2] + margins.right * scale, box[3] + margins.bottom * scale
    origin_x, origin_y = math.floor(region_left - beyond[0] * scale), math.floor(region_top - beyond[1] * scale)
    width = max(4, math.ceil(region_right + beyond[2] * scale) - origin_x)
    height = max(4, math.ceil(region_bottom + beyond[3] * scale) - origin_y)
    shift = np.array([[1, 0, -origin_x], [0, 1, -origin_y], [0, 0, 1.0]])
    image = camera.expose(camera.photograph(canvas, shift @ pose, width, height, scale), native, rng)

    # Stored again at another size, as cut-out strips are.
    if rng.random() < 0.3:
        image = camera.recompress(image, rng)
        zoom = float(np.clip(rng.uniform(24, 48) / native, 0.5, 3.0))
        way = cv2.INTER_AREA if zoom < 1 else cv2.INTER_CUBIC
        image = np.asarray(cv2.resize(image, (round(width * zoom), round(height * zoom)), interpolation=way), np.uint8)
    zoom_x, zoom_y = image.shape[1] / width, image.shape[0] / height

    def placed(x0: float, y0: float, x1: float, y1: float) -> Region:
        return Region((x0 - origin_x) * zoom_x, (y0 - origin_y) * zoom_y, (x1 - x0) * zoom_x, (y1 - y0) * zoom_y)

    return Photograph(image, placed(region_left, region_top, region_right, region_bottom), placed(*box))
