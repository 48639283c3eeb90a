"""`multipart/form-data` with file parts named `image`, parsed as it streams in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.errors import BadRequest, TooLarge

PART_NAME = "image"


@dataclass(slots=True)
class Part:
    """A file part: its bytes and the media type it declares, "" where it declares none."""

    media_type: str = ""
    data: bytearray = field(default_factory=bytearray)


async def image_parts(content_type: str, chunks: AsyncIterator[bytes], max_parts: int) -> list[Part]:
    """The file parts named `image`, in order.

    Raises BadRequest for a body that is not well-formed, ends early or has other parts, TooLarge for more than
    `max_parts` of them; both as soon as that is seen.
    """
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise BadRequest("the Content-Type of the multipart body has no boundary")
    parts = _Parts(max_parts)
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_header_field": parts.on_header_field,
                "on_header_value": parts.on_header_value,
                "on_header_end": parts.on_header_end,
                "on_headers_finished": parts.on_headers_finished,
                "on_part_data": parts.on_part_data,
                "on_end": parts.on_end,
            },
        )
        async for chunk in chunks:
            parser.write(chunk)
    except FormParserError as error:
        raise BadRequest(f"the multipart body is not well-formed: {error}") from error
    if not parts.ended:
        raise BadRequest("the multipart body ends before its closing boundary")
    return parts.found


class _Parts:
    """What the parser calls while it reads."""

    def __init__(self, max_parts: int) -> None:
        self.found: list[Part] = []
        self.ended = False
        self._max_parts = max_parts
        self._name = b""
        self._value = b""
        self._headers: dict[bytes, bytes] = {}

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def on_headers_finished(self) -> None:
        headers, self._headers = self._headers, {}
        _, options = parse_options_header(headers.get(b"content-disposition"))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name != PART_NAME:
            raise BadRequest(f"the multipart body has a part named {name[:80]!r}; only {PART_NAME!r} is read")
        if b"filename" not in options:
            raise BadRequest(f"the part {PART_NAME!r} is no file: its Content-Disposition has no filename")
        if len(self.found) == self._max_parts:
            raise TooLarge(f"more than {self._max_parts} images in one request")
        self.found.append(Part(media_type(headers.get(b"content-type", b"").decode("latin-1"))))

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self.found[-1].data += data[start:end]

    def on_end(self) -> None:
        self.ended = True


def media_type(content_type: str) -> str:
    """The type of a Content-Type without its parameters, in lower case."""
    return content_type.split(";", 1)[0].strip().lower()
