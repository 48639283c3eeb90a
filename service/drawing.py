"""Readings painted onto the photograph they were read from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from service.geometry import Region
    from service.reader import Reading

# One per transformer, in turn: Okabe and Ito's palette, told apart by colour-blind eyes too.
BOX_COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
_REGION_COLOUR = "#bbbbbb"
_TEXT_COLOUR, _OUTLINE_COLOUR = "white", "black"
_MARGIN_COLOUR = "#404040"

# Small images are enlarged until their longer side is about this long, and the picture is never
# smaller than a label: what is missing is added as a margin to the right and below.
_LEGIBLE_PX = 480
_SMALLEST_PX = (240, 48)
_FONT_SHARE = 0.08  # of the shorter side
_FONT_PX = range(18, 121)


def draw(rgb: Image.Image, readings: Sequence[Reading], regions: Sequence[Region | None]) -> Image.Image:
    """Paint each reading's number, confidence and boxes onto a copy of the upright photograph.

    `regions` are the readings' own, in the photograph's pixels, like the corners of their boxes; None is the
    whole photograph. A box has the colour of its transformer, and a dot at the corner that the target's
    top-left corner comes from, which shows rotation. A number that was not accepted has a question mark.
    A small photograph is enlarged by a whole factor; what it shows stays at the top left.
    """
    factor = max(1, round(_LEGIBLE_PX / max(rgb.size)))
    enlarged = rgb.resize((rgb.width * factor, rgb.height * factor), Image.Resampling.BICUBIC)
    size = max(enlarged.width, _SMALLEST_PX[0]), max(enlarged.height, _SMALLEST_PX[1])
    picture = Image.new("RGB", size, _MARGIN_COLOUR)
    picture.paste(enlarged)

    pen = ImageDraw.Draw(picture)
    line = max(2, round(min(size) / 150))
    for reading, region in zip(readings, regions, strict=True):
        if region is not None:
            _outline(pen, _rectangle(region, factor), _REGION_COLOUR, line)
        for box in reading.boxes:
            colour = BOX_COLOURS[box.transformer % len(BOX_COLOURS)]
            corners = [(x * factor, y * factor) for x, y in box.corners]
            _outline(pen, corners, colour, line)
            pen.circle(corners[0], 3 * line, fill=colour, outline=_OUTLINE_COLOUR)
    # Labels last, so that no box crosses them out.
    for reading, region in zip(readings, regions, strict=True):
        _label(pen, reading, (0.0, 0.0) if region is None else (region.x * factor, region.y * factor), size)
    return picture


def _rectangle(region: Region, factor: int) -> list[tuple[float, float]]:
    left, top, right, bottom = region.x, region.y, region.right, region.bottom
    return [(x * factor, y * factor) for x, y in ((left, top), (right, top), (right, bottom), (left, bottom))]


def _outline(pen: ImageDraw.ImageDraw, corners: list[tuple[float, float]], colour: str, line: int) -> None:
    """A closed line with a dark rim, so that it is seen on any ground."""
    closed = [*corners, corners[0], corners[1]]  # once more along the first side: the last joint is round too
    pen.line(closed, fill=_OUTLINE_COLOUR, width=line + 2, joint="curve")
    pen.line(closed, fill=colour, width=line, joint="curve")


def _label(pen: ImageDraw.ImageDraw, reading: Reading, corner: tuple[float, float], size: tuple[int, int]) -> None:
    """The number and its confidence above the region's top-left corner, or as near as the picture allows."""
    number = reading.number or "no number"
    text = f"{number}{'' if reading.accepted else ' ?'}  {reading.confidence:.1%}"
    pixels = min(max(round(min(size) * _FONT_SHARE), _FONT_PX.start), _FONT_PX.stop - 1)
    left, top, right, bottom = _extent(pen, text, pixels)
    if right - left > size[0]:
        pixels = max(1, int(pixels * size[0] / (right - left)))
        left, top, right, bottom = _extent(pen, text, pixels)
    x = max(0.0, min(corner[0], size[0] - (right - left)))
    y = max(0.0, min(corner[1] - (bottom - top), size[1] - (bottom - top)))
    pen.text(
        (x - left, y - top),
        text,
        fill=_TEXT_COLOUR,
        font=ImageFont.load_default(pixels),
        stroke_width=_stroke(pixels),
        stroke_fill=_OUTLINE_COLOUR,
    )


def _extent(pen: ImageDraw.ImageDraw, text: str, pixels: int) -> tuple[float, float, float, float]:
    return pen.textbbox((0, 0), text, font=ImageFont.load_default(pixels), stroke_width=_stroke(pixels))


def _stroke(pixels: int) -> int:
    return max(1, pixels // 10)
