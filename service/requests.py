"""The three ways in: a raw image, multipart, JSON. All of them become pictures."""

from __future__ import annotations

import asyncio
import base64
import binascii
import string
from collections.abc import AsyncIterator, Sequence
from functools import partial

from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request

from service.decode_pool import DecodePool
from service.errors import BadRequest, RequestTimeout, ServiceError, TooLarge, UnsupportedMediaType
from service.multipart import image_parts, media_type
from service.pictures import Picture
from service.schemas import ImageIn, PredictRequest, Rectangle
from service.validation import first_mistake

# Parsed, a value takes a hundred times the memory of its text, and each that is wrong an error besides: 20 MiB of
# `1,1,1` would be gigabytes. So the commas, of which there is one between any two, are counted first. An image has
# three fields, a region of four numbers, a `data:` URI, and an `id` that might be nothing but commas.
_MOST_COMMAS_PER_IMAGE = 300
_WHITESPACE = string.whitespace.encode()


async def read_pictures(
    request: Request,
    regions: Sequence[Rectangle],
    *,
    max_body_bytes: int,
    body_timeout_s: float,
    max_images: int,
    pool: DecodePool,
) -> list[Picture]:
    """The pictures of a request, at least one; `regions`, from the query, apply to each image of a raw or
    multipart body.

    Raises BadRequest for a body that cannot be understood, UnsupportedMediaType for one that is compressed,
    RequestTimeout for one of which nothing more comes for
    `body_timeout_s` seconds, and TooLarge for more than `max_body_bytes` bytes, counted as they come in, or
    `max_images` images, each region counting as one.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        raise UnsupportedMediaType(f"Content-Encoding {encoding[:80]!r} is not served here; send the body as it is")
    content_type = request.headers.get("content-type", "")
    chunks = _limited(request, max_body_bytes, body_timeout_s)
    match media_type(content_type):
        case "application/json":
            if regions:
                raise BadRequest("region: in a JSON request, regions stand in the body, in images[].regions")
            (pictures,) = await pool.map(partial(_from_json, max_images=max_images), [await _joined(chunks)])
        case "multipart/form-data":
            parts = await image_parts(content_type, chunks, max_images)
            pictures = [
                Picture(bytes(part.data), index, str(index), tuple(regions), part.media_type)
                for index, part in enumerate(parts)
            ]
        case declared:
            body = await _joined(chunks)
            if body[:1] == b"{" and not declared.startswith("image/"):
                raise UnsupportedMediaType("the body looks like JSON; send it with `Content-Type: application/json`")
            pictures = [Picture(body, 0, "0", tuple(regions), declared)] if body else []
    if not pictures:
        raise BadRequest("the request has no image")
    asked = sum(picture.items for picture in pictures)
    if asked > max_images:
        raise TooLarge(f"{asked} images in one request (each region counts as one); the limit is {max_images}")
    return pictures


async def read_body(request: Request, *, max_body_bytes: int, body_timeout_s: float) -> bytes:
    """The body as it was sent; raises RequestTimeout and TooLarge as `read_pictures` does."""
    return await _joined(_limited(request, max_body_bytes, body_timeout_s))


async def _limited(request: Request, max_body_bytes: int, body_timeout_s: float) -> AsyncIterator[bytes]:
    """The body's chunks; TooLarge as soon as there are too many bytes, at once where the length is declared."""
    too_large = TooLarge(f"the body has more than {max_body_bytes} bytes")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_body_bytes:
        raise too_large
    count, more = 0, True
    while more:
        try:
            async with asyncio.timeout(body_timeout_s):
                message = await request.receive()
        except TimeoutError:
            raise RequestTimeout(f"nothing more of the body came for {body_timeout_s:g} s") from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk, more = message.get("body", b""), message.get("more_body", False)
        count += len(chunk)
        if count > max_body_bytes:
            raise too_large
        yield chunk


async def _joined(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


def _from_json(body: bytes, max_images: int) -> list[Picture]:
    if body.count(b",") > max_images * _MOST_COMMAS_PER_IMAGE:
        raise TooLarge(f"far more values than {max_images} images can have")
    try:
        request = PredictRequest.model_validate_json(body)
    except ValidationError as error:
        raise BadRequest(first_mistake(error.errors(include_url=False, include_input=False))) from None
    if len(request.images) > max_images:
        raise TooLarge(f"more than {max_images} images in one request")
    return [_picture(index, image) for index, image in enumerate(request.images)]


def _picture(index: int, image: ImageIn) -> Picture:
    content, declared = from_base64(image.data)
    identifier = str(index) if image.id is None else image.id
    return Picture(content, index, identifier, tuple(image.regions or ()), declared)


def from_base64(data: str) -> tuple[bytes | ServiceError, str]:
    """The bytes, or why there are none, and the declared type of base64 text or a `data:` URI."""
    declared = ""
    if data[:5].lower() == "data:":
        head, comma, data = data[5:].partition(",")
        if not comma or not head.lower().endswith(";base64"):
            return BadRequest("data: the data: URI is not in base64"), ""
        declared = media_type(head)
    try:
        # Line breaks, which many encoders add, mean nothing; any other stray character is a mistake.
        return base64.b64decode(data.encode("ascii").translate(None, _WHITESPACE), validate=True), declared
    except (binascii.Error, ValueError) as error:
        return BadRequest(f"data: not base64: {error}"), declared
