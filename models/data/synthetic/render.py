"""Puts the stages together: one seed and one index make one sample, always the same."""

from __future__ import annotations

import math
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np

from models.data.sample import Sample
from models.data.synthetic import camera, lighting
from models.data.synthetic.fonts import Face, installed_faces
from models.data.synthetic.lettering import set_digits
from models.data.synthetic.statistics import draw, draw_number, load_statistics
from models.data.synthetic.surface import Site, build_surface
from service.geometry import Region

COLLECTION = "synthetic"
NO_NUMBER_SHARE = 0.02
# Share of tilted numbers whose digits stay upright on a sloping line.
STEPPED_SHARE = 0.2
# Share of numbers whose tilt is drawn evenly: steep ones are rare in the statistics and hard to read.
EVEN_TILT_SHARE = 0.06
SMALLEST, LARGEST = 10.0, 100.0


@dataclass(frozen=True)
class Rendering:
    """A sample and the tight box of its digits in the image (of where they would be, when there is none)."""

    sample: Sample
    box: Region


def render(index: int, seed: int, faces: Sequence[Face] | None = None) -> Sample:
    """The sample of that index; faces: what to set numbers in, the installed ones when None."""
    return render_with_box(index, seed, faces).sample


def render_with_box(index: int, seed: int, faces: Sequence[Face] | None = None) -> Rendering:
    """As `render`, with the tight box of the digits."""
    rng = np.random.default_rng([seed, index])
    faces = installed_faces() if faces is None else faces
    number = draw_number(rng)
    empty = rng.random() < NO_NUMBER_SHARE
    native = float(np.clip(draw(load_statistics().height, rng), SMALLEST, LARGEST))
    working = float(np.clip(native * 1.15, 28, LARGEST))
    tilt = float(np.clip(draw(load_statistics().tilt, rng), -45, 45))
    if rng.random() < EVEN_TILT_SHARE:
        tilt = float(rng.uniform(-40, 40))
    stepped = rng.random() < STEPPED_SHARE
    letters = set_digits(number, round(working), faces, rng, tilt if stepped else 0.0)

    # The canvas: the number in its middle, with room for any framing around it.
    high, wide = letters.mask.shape
    margins = camera.draw_margins(wide, high, wide / len(number), rng)
    beyond = rng.uniform(0, 0.35, 4) * working
    room = (0.4 + 0.5 * min(abs(tilt) / 20, 1)) * working
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
    palette = lighting.draw_palette(rng)
    canvas = build_surface(site, palette, letters.face, rng)
    if not empty:
        canvas = lighting.apply_digits(canvas, mask, working, palette, rng)
    canvas = np.asarray(np.clip(lighting.shine_on(canvas, working, rng), 0, 255), np.float32)

    # The view: the region around the digits' true box, and some surroundings beyond it.
    scale = native / working
    turn = rng.normal(0, 2) if stepped else tilt
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
    zoom = 1.0
    if rng.random() < 0.3:
        image = camera.recompress(image, rng)
        zoom = float(np.clip(rng.uniform(24, 48) / native, 0.5, 3.0))
        way = cv2.INTER_AREA if zoom < 1 else cv2.INTER_CUBIC
        image = np.asarray(cv2.resize(image, (round(width * zoom), round(height * zoom)), interpolation=way), np.uint8)
    zoom_x, zoom_y = image.shape[1] / width, image.shape[0] / height

    def placed(x0: float, y0: float, x1: float, y1: float) -> Region:
        return Region((x0 - origin_x) * zoom_x, (y0 - origin_y) * zoom_y, (x1 - x0) * zoom_x, (y1 - y0) * zoom_y)

    sample = Sample(
        image=camera.encode(image, rng),
        label="" if empty else number,
        region=placed(region_left, region_top, region_right, region_bottom),
        source=f"{seed}/{index}",
        collection=COLLECTION,
        number_box=None if empty else placed(*box),
    )
    return Rendering(sample, placed(*box))


def generate(
    seed: int, start: int, count: int, processes: int, faces: Sequence[Face] | None = None
) -> Iterator[Sample]:
    """Samples start to start + count - 1 of a seed, in order, rendered by so many processes."""
    faces = tuple(installed_faces() if faces is None else faces)
    job = partial(render, seed=seed, faces=faces)
    indices = range(start, start + count)
    if processes <= 1:
        yield from map(job, indices)
        return
    # "spawn": a fork of a process that runs threads (torch's, ours) may hang.
    with multiprocessing.get_context("spawn").Pool(processes, initializer=_start_worker) as pool:
        yield from pool.imap(job, indices, chunksize=32)


def _start_worker() -> None:
    cv2.setNumThreads(1)
    # Ctrl-C reaches all processes; the parent ends this one, which would only print a stack trace.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
