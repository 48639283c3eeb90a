"""From the bytes of a photograph to what a reader is shown: upright RGB pixels of one region.

Training and evaluation go through the same `Photo` and the same `view`, so a reader sees in service
what it saw in training. Colours: transparent pixels lie on white, as on a page; 16-bit samples keep their upper
eight bits; colour profiles are not applied, since digits are read by shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile

from service.errors import BadRegion
from service.formats import FORMATS, open_image, refusing_bad_images
from service.geometry import Region

__all__ = ["FORMATS", "Photo", "View", "view"]

# How far a region may reach outside its image before it is an error: callers round.
_REGION_TOLERANCE_PX = 1.0

# A JPEG can be decoded at 1/2, 1/4 or 1/8 for a fraction of the time. With at least this many pixels left for
# each pixel of the view, the view is the same: it is the average of several of them either way.
_SPARE_RESOLUTION = 2

_TO_UPRIGHT = {  # by EXIF orientation; 1 is upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = {5, 6, 7, 8}
# Orientations in which the left (top) edge of the upright image is the right or bottom edge of the stored one.
_LEFT_IS_FAR = {2, 3, 6, 7}
_TOP_IS_FAR = {3, 4, 7, 8}


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """What a reader is shown of one region.

    `pixels` is uint8 [h, w, 3] RGB, resized to the reader's input; `region` says which part of the photograph
    it is, in the pixels of the full-resolution upright image. `photo` gives the photograph, or raises a ServiceError;
    it is None where the view came without one.
    """

    pixels: NDArray[np.uint8]
    region: Region
    photo: Callable[[], Photo] | None = None


@dataclass(frozen=True, slots=True)
class Photo:
    """An encoded image whose header has been read: immutable, so threads may share it.

    `width` and `height` are those of the upright image (EXIF orientation applied), in pixels. Pixels
    are decoded anew by each call of `views` or `rgb`, and never kept.
    """

    data: bytes = field(repr=False, hash=False)  # megabytes, which would have to be read for it
    format: str
    width: int
    height: int
    orientation: int

    @classmethod
    def open(cls, data: bytes, *, max_pixels: int) -> Self:
        """Read the header of an encoded image in one of FORMATS; of several frames the first counts.

        Raises TooLarge for more than `max_pixels` pixels, UnsupportedMediaType for a known format that is not
        served, BadImage for anything else.
        """
        image = open_image(data, max_pixels)
        width, height = image.size
        if isinstance(image, TiffImageFile):  # of a sideways TIFF, Pillow has swapped the size already
            width, height = image.tag_v2[IMAGEWIDTH], image.tag_v2[IMAGELENGTH]
        orientation = _orientation(image, data)
        if orientation in _SIDEWAYS:
            width, height = height, width
        return cls(data, image.format or "", width, height, orientation)

    @property
    def whole(self) -> Region:
        """The region that is the whole photograph."""
        return Region.whole(self.width, self.height)

    def region(self, x: float, y: float, width: float, height: float) -> Region:
        """A region of this photograph, in the pixels of the upright image; raises BadRegion."""
        return self.check_region(Region(x, y, width, height))

    def check_region(self, region: Region) -> Region:
        """The region, clipped to the image.

        Raises BadRegion when it is empty, not finite, or reaches outside the image by more than a pixel.
        """
        numbers = region.x, region.y, region.width, region.height
        size = f"the image is {self.width} x {self.height} pixels"
        if not all(map(isfinite, numbers)):
            raise BadRegion(f"the region {_spell(region)} is not finite; {size}")
        clipped = region.clipped(self.width, self.height)
        if not (region.width > 0 and region.height > 0 and clipped.width > 0 and clipped.height > 0):
            raise BadRegion(f"the region {_spell(region)} has nothing of the image in it; {size}")
        outside = max(-region.x, -region.y, region.right - self.width, region.bottom - self.height)
        if outside > _REGION_TOLERANCE_PX:
            raise BadRegion(f"the region {_spell(region)} reaches outside the image; {size}")
        return clipped

    def views(self, regions: Sequence[Region], size: tuple[int, int]) -> list[View]:
        """Decode once and show each region at `size` = (height, width) pixels, the reader's input.

        A JPEG is decoded at a reduced scale where that leaves every region at least twice the resolution of its
        view. Raises BadRegion for a region that is not part of the image, and BadImage for bytes that do not
        decode.
        """
        regions = [self.check_region(region) for region in regions]
        raster = self._raster(self._decoding_step(regions, size))
        return [View(raster.view(region, size), region, lambda: self) for region in regions]

    def raster(self, max_pixels: int) -> Raster:
        """The whole photograph, reduced where it has more than so many pixels; raises BadImage."""
        pixels = self.width * self.height
        steps = (step for step in (8, 4, 2) if self.format == "JPEG" and pixels >= max_pixels * step**2)
        raster = self._raster(next(steps, 1))
        shrink = (max_pixels / (raster.rgb.width * raster.rgb.height)) ** 0.5
        return raster.reduced(shrink) if shrink < 1 else raster

    def rgb(self) -> Image.Image:
        """The whole upright photograph at full resolution, in mode RGB; raises BadImage."""
        return self._decode(1)

    def _decoding_step(self, regions: Sequence[Region], size: tuple[int, int]) -> int:
        """How many pixels (along each axis) may become one when the photograph is decoded."""
        if self.format != "JPEG" or not regions:
            return 1
        height, width = size
        spare = min(min(region.width / width, region.height / height) for region in regions)
        return next((step for step in (8, 4, 2) if spare >= _SPARE_RESOLUTION * step), 1)

    def _raster(self, step: int) -> Raster:
        rgb = self._decode(step)
        # The last row and column of a reduced image may stand for fewer pixels than the others; what lies
        # on their far side is not part of the photograph.
        left = rgb.width - self.width / step if self.orientation in _LEFT_IS_FAR else 0.0
        top = rgb.height - self.height / step if self.orientation in _TOP_IS_FAR else 0.0
        return Raster(rgb, (1 / step, 1 / step), (left, top))

    def _decode(self, step: int) -> Image.Image:
        image = open_image(self.data, self.width * self.height)
        with refusing_bad_images(self.format):
            if step > 1:
                image.draft(None, (image.width // step, image.height // step))
            image.load()
            upright = _to_rgb(image)
            if self.format != "TIFF" and self.orientation in _TO_UPRIGHT:  # Pillow turns a TIFF itself
                upright = upright.transpose(_TO_UPRIGHT[self.orientation])
        return upright


@dataclass(frozen=True, slots=True, eq=False)
class Raster:
    """A photograph that has been decoded: `rgb` is upright, has `scale` (x, y) of its pixels for each of the
    photograph's, and begins with the photograph's left and top edge at `origin` (x, y), in its own pixels."""

    rgb: Image.Image
    scale: tuple[float, float]
    origin: tuple[float, float]

    def view(self, region: Region, size: tuple[int, int]) -> NDArray[np.uint8]:
        """The region, in the pixels of the full-resolution photograph, at `size` = (height, width)."""
        scaled, (left, top) = region.scaled(*self.scale), self.origin
        return view(self.rgb, Region(scaled.x + left, scaled.y + top, scaled.width, scaled.height), size)

    def reduced(self, shrink: float) -> Raster:
        """With about so many times its width and height."""
        width, height = (max(1, round(side * shrink)) for side in self.rgb.size)
        x, y = width / self.rgb.width, height / self.rgb.height
        return Raster(
            self.rgb.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0),
            (self.scale[0] * x, self.scale[1] * y),
            (self.origin[0] * x, self.origin[1] * y),
        )


def view(rgb: NDArray[np.uint8] | Image.Image, region: Region, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The one resize between a photograph and a reader, in service and in training.

    `rgb` is uint8 [H, W, 3] or an RGB image; `region` is in its pixels, of any fraction, and is clipped to it;
    `size` is (height, width). Bilinear, with the kernel widened where the view is smaller (anti-aliased).
    Returns uint8 [height, width, 3]. Raises ValueError when the region is empty.
    """
    image = rgb if isinstance(rgb, Image.Image) else Image.fromarray(rgb)
    height, width = size
    inside = region.clipped(image.width, image.height)
    if not (inside.width > 0 and inside.height > 0):
        raise ValueError(f"{region} has nothing of an image of {image.width} x {image.height} pixels in it")
    # Adding up left and width again may end a rounding error outside, which Pillow refuses.
    box = inside.x, inside.y, min(inside.right, image.width), min(inside.bottom, image.height)
    return np.array(image.resize((width, height), Image.Resampling.BILINEAR, box=box))


def _orientation(image: ImageFile.ImageFile, data: bytes) -> int:
    """The EXIF orientation (1 to 8); 1 where there is none or it cannot be read."""
    with refusing_bad_images(image.format or ""):
        if image.format == "PNG" and "exif" not in image.info and b"eXIf" in data:
            image.load()  # EXIF data may also come after the pixels
    try:
        # Not PngImageFile's own method: that one decodes every image that has no EXIF data.
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # corrupt EXIF data do not spoil an image
        return 1
    return orientation if orientation in _TO_UPRIGHT else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode that Pillow decodes to, as RGB: the module's docstring says how."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        return _stretched(np.asarray(image, dtype=np.float64)).convert("RGB")
    if image.has_transparency_data:
        with_alpha = image.convert("RGBA")
        on_white = Image.new("RGB", image.size, "white")
        on_white.paste(with_alpha, mask=with_alpha)
        return on_white
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy


def _stretched(values: NDArray[np.float64]) -> Image.Image:
    """Samples of 32 bits, integer or float, have no agreed white: their own range becomes black to white."""
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = values.min(), values.max()
    grey = (values - low) / (high - low) * 255 if high > low else np.zeros_like(values)
    return Image.fromarray(grey.round().astype(np.uint8))


def _spell(region: Region) -> str:
    return f"[{region.x:g}, {region.y:g}, {region.width:g}, {region.height:g}]"
