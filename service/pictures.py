"""One image as it came in, whichever way, and the views that are to be read of it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from service.errors import BadImage, BadRequest, Internal, ServiceError, UnsupportedMediaType
from service.geometry import Region
from service.imaging import Photo, View
from service.reader import Reading
from service.schemas import ImageInfo, Prediction, Rectangle

logger = logging.getLogger(__name__)

# Types that say nothing about the bytes; the last is what `curl --data-binary` sends unless told otherwise.
_UNTYPED = {"", "application/octet-stream", "application/x-www-form-urlencoded"}


@dataclass(frozen=True, slots=True)
class Picture:
    """An image of a request: its encoded bytes, or why there are none; no `regions` means the whole image.

    `media_type` is what the sender called it. The bytes decide what it is; the type only decides what to call
    the mistake when they are no image.
    """

    content: bytes | ServiceError
    index: int
    id: str
    regions: tuple[Rectangle, ...] = ()
    media_type: str = ""

    @property
    def items(self) -> int:
        """How many predictions it asks for."""
        return max(1, len(self.regions))


@dataclass(frozen=True, slots=True)
class Item:
    """One prediction to be made: the view to read, or why there is none."""

    id: str
    image: ImageInfo
    region: Rectangle | None
    view: View | ServiceError

    def prediction(self, answer: Reading | ServiceError, *, boxes: bool) -> Prediction:
        return Prediction.of(answer, id=self.id, image=self.image, region=self.region, boxes=boxes)


def views_of(items: Iterable[Item]) -> list[View]:
    """What is to be read for these items, in order."""
    return [item.view for item in items if isinstance(item.view, View)]


def answers_of(items: Sequence[Item], readings: Iterable[Reading | ServiceError]) -> list[Reading | ServiceError]:
    """One per item: the next of the `readings` of `views_of(items)`, or why there is no view."""
    in_order = iter(readings)
    return [next(in_order) if isinstance(item.view, View) else item.view for item in items]


def parse_region(text: str) -> Rectangle:
    """A region as the query and the command line write it, `x,y,width,height`; raises BadRequest."""
    try:
        x, y, width, height = (float(number) for number in text.split(","))
    except ValueError:
        raise BadRequest(f"region: {text[:80]!r} is not four numbers `x,y,width,height`") from None
    return x, y, width, height


def prepare(picture: Picture, size: tuple[int, int], max_pixels: int) -> list[Item]:
    """Decodes a picture and cuts out the views of `size` (height, width) that it asks for, one item each.

    Raises nothing: what is wrong with the picture, or with one of its regions, stands in its items.
    """
    asked: tuple[Rectangle | None, ...] = picture.regions or (None,)
    photo: Photo | None = None
    views: list[View | ServiceError]
    try:
        photo = _open(picture, max_pixels)
        views = _views(photo, asked, size)
    except ServiceError as error:
        views = [error] * len(asked)
    except Exception:
        logger.exception("an image could not be prepared")
        views = [Internal("the image could not be prepared")] * len(asked)
    image = ImageInfo(index=picture.index, width=photo.width if photo else None, height=photo.height if photo else None)
    return [Item(picture.id, image, region, view) for region, view in zip(asked, views, strict=True)]


def _open(picture: Picture, max_pixels: int) -> Photo:
    if isinstance(picture.content, ServiceError):
        raise picture.content
    try:
        return Photo.open(picture.content, max_pixels=max_pixels)
    except BadImage as error:
        if picture.media_type in _UNTYPED or picture.media_type.startswith("image/"):
            raise
        raise UnsupportedMediaType(f"{picture.media_type} is not served: {error.detail}") from error


def _views(photo: Photo, asked: tuple[Rectangle | None, ...], size: tuple[int, int]) -> list[View | ServiceError]:
    regions = [_region(photo, rectangle) for rectangle in asked]
    views = iter(photo.views([region for region in regions if isinstance(region, Region)], size))
    return [next(views) if isinstance(region, Region) else region for region in regions]


def _region(photo: Photo, rectangle: Rectangle | None) -> Region | ServiceError:
    try:
        return photo.whole if rectangle is None else photo.region(*rectangle)
    except ServiceError as error:
        return error
