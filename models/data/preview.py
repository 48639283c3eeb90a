"""A contact sheet: many samples at a glance, each as its reader sees it, with its label."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from models.data.sample import Sample

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
        with Image.open(io.BytesIO(sample.image)) as photograph:
            image = photograph.convert("RGB")
        region = sample.region
        box = (
            (0.0, 0.0, float(image.width), float(image.height))
            if region is None
            else (region.x, region.y, region.x + region.width, region.y + region.height)
        )
        scale = min(cell / (box[2] - box[0]), cell / (box[3] - box[1]))
        size = (max(1, round((box[2] - box[0]) * scale)), max(1, round((box[3] - box[1]) * scale)))
        sheet.paste(image.resize(size, Image.Resampling.BILINEAR, box=box), (x, y + _CAPTION))
        pen.text((x + 2, y), sample.label or "(none)", fill=(255, 255, 0))
    return sheet
