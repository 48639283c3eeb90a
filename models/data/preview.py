"""A contact sheet: many samples at a glance, each the region its reader is shown, with its label."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from models.data.sample import Sample
from service.errors import ServiceError

_CAPTION = 13


def contact_sheet(samples: Sequence[Sample], columns: int = 12, cell: int = 96) -> Image.Image:
    """The samples' regions, in their own proportions, in cells of cell x cell pixels, row by row, each under its label.

    A photograph that does not decode, or without anything in its region, leaves an empty cell that says so. Raises
    ValueError when there is no sample.
    """
    if not samples:
        raise ValueError("no samples to show")
    rows = math.ceil(len(samples) / columns)
    sheet = Image.new("RGB", (columns * cell, rows * (cell + _CAPTION)), (96, 96, 96))
    pen = ImageDraw.Draw(sheet)
    for position, sample in enumerate(samples):
        x, y = (position % columns) * cell, (position // columns) * (cell + _CAPTION)
        caption = sample.label or "(none)"
        try:
            sheet.paste(_shown(sample, cell), (x, y + _CAPTION))
        except ServiceError as error:
            caption = f"{caption} {error.code}"
        pen.text((x + 2, y), caption, fill=(255, 255, 0))
    return sheet


def _shown(sample: Sample, cell: int) -> Image.Image:
    photo, region = sample.open()
    region = photo.check_region(region)
    scale = min(cell / region.width, cell / region.height)
    size = (max(1, round(region.width * scale)), max(1, round(region.height * scale)))
    box = (region.x, region.y, region.right, region.bottom)
    return photo.rgb().resize(size, Image.Resampling.BILINEAR, box=box)
