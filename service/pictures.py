"""One image as it came in, whichever way, and the views that are to be read of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from service.errors import BadImage, BadRequest, Internal, ServiceError, UnsupportedMediaType
from service.formats import looks_costly
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
    def asked(self) -> tuple[Rectangle | None, ...]:
        """The regions to be read; None is the whole image."""
        return self.regions or (None,)

    @property
    def items(self) -> int:
        """How many predictions it asks for."""
        return len(self.asked)

    @property
    def is_costly(self) -> bool:
        """Whether decoding it would hold up a batch."""
        return isinstance(self.content, bytes) and looks_costly(self.content)


@dataclass(frozen=True, slots=True)
class Item:
    """One prediction to be made: the view to read, or why there is none."""

    id: str
    image: ImageInfo
    region: Rectangle | None
    view: View | ServiceError

    def prediction(self, answer: Reading | ServiceError, *, boxes: bool) -> Prediction:
        return Prediction.of(answer, id=self.id, image=self.image, region=self.region, boxes=boxes)


class Preparation:
    """A picture that is decoded once, in the thread that first needs something of it."""

    def __init__(self, picture: Picture, prepare: Callable[[Picture], list[Item]]) -> None:
        self.picture = picture
        self._prepare = prepare
        self._lock = Lock()
        self._items: list[Item] | None = None

    @classmethod
    def of_view(cls, index: int, pixels: NDArray[np.uint8]) -> Preparation:
        """Of an image that is a view already, uint8 [h, w, 3]: there is nothing to decode."""
        height, width = pixels.shape[:2]
        image = ImageInfo(index=index, width=width, height=height)
        item = Item(str(index), image, None, View(pixels, Region.whole(width, height)))
        return cls(Picture(b"", index, item.id), lambda _picture: [item])

    def items(self) -> list[Item]:
        """What it asks for, decoded by now."""
        with self._lock:
            if self._items is None:
                self._items = self._prepare(self.picture)
            return self._items

    def outcome(self) -> list[Item]:
        """The same, decoded or not: that no thread has come to it is then what is wrong with its items."""
        if self._items is None:
            return _items(self.picture, None, [Internal("the image was not prepared")] * self.picture.items)
        return self._items

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """The view of one of its items, uint8 [h, w, 3]; raises why there is none, a ServiceError."""
        view = self.items()[index].view
        if isinstance(view, ServiceError):
            raise view
        return view.pixels


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
        if not all(map(isfinite, (x, y, width, height))):
            raise ValueError
    except ValueError:
        raise BadRequest(f"region: {text[:80]!r} is not four finite numbers `x,y,width,height`") from None
    return x, y, width, height


def prepare(picture: Picture, size: tuple[int, int], max_pixels: int) -> list[Item]:
    """Decodes a picture and cuts out the views of `size` (height, width) that it asks for, one item each.

    Raises nothing: what is wrong with the picture, or with one of its regions, stands in its items.
    """
    photo: Photo | None = None
    views: list[View | ServiceError]
    try:
        photo = _open(picture, max_pixels)
        views = _views(photo, picture.asked, size)
    except ServiceError as error:
        views = [error] * picture.items
    except Exception:
        logger.exception("an image could not be prepared")
        views = [Internal("the image could not be prepared")] * picture.items
    return _items(picture, photo, views)


def _items(picture: Picture, photo: Photo | None, views: Sequence[View | ServiceError]) -> list[Item]:
    image = ImageInfo(index=picture.index, width=photo.width if photo else None, height=photo.height if photo else None)
    return [Item(picture.id, image, region, view) for region, view in zip(picture.asked, views, strict=True)]


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
