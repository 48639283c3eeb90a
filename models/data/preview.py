"""A contact sheet: many samples at a glance, each as its reader sees it, with its label."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from models.data.sample import MAX_PIXELS, Sample
from service.geometry import Region
from service.imaging import Photo

_CAPTION = 13


def contact_sheet(samples: Sequence[Sample], columns: int = 12, cell: int = 96) -> Image.Image:
    """The samples' regions, fitted into cells of cell x cell pixels, row by row, each under its label.

    Raises ValueError when there is no sample."""
    if not samples:
        raise ValueError("no samples to show")
    rows = math.ceil(len(samples) / columns)
    sheet = Image.new("RGB", (columns * cell, rows * (cell + _CAPTION)), (96, 96, 96))
    pen = ImageDraw.Draw(sheet)
    for position, sample in enumerate(samples):
        x, y = (position % columns) * cell, (position // columns) * (cell + _CAPTION)
        image = Photo.open(sample.image, max_pixels=MAX_PIXELS).rgb()
        region = sample.region or Region.whole(*image.size)
        scale = min(cell / region.width, cell / region.height)
        size = (max(1, round(region.width * scale)), max(1, round(region.height * scale)))
        box = (region.x, region.y, region.right, region.bottom)
        sheet.paste(image.resize(size, Image.Resampling.BILINEAR, box=box), (x, y + _CAPTION))
        pen.text((x + 2, y), sample.label or "(none)", fill=(255, 255, 0))
    return sheet
