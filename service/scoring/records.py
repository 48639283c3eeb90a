"""One image of a job: what it is called, where its bytes are, and what came with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from service.errors import BadRequest, ServiceError
from service.pictures import parse_region
from service.schemas import Rectangle
from service.scoring.storage import Place

_RECTANGLES = TypeAdapter(tuple[Rectangle, ...])


class Position(NamedTuple):
    """Where reading goes on: the index of a file in the list; in it the row or, in a tar, the byte; and how many images
    of the tar's group that begins there are done."""

    file: int
    offset: int = 0
    inner: int = 0


@dataclass(frozen=True, slots=True)
class Columns:
    """What the columns of a manifest, and the fields of a tar's JSON, are called."""

    path: str = "path"
    content: str = "bytes"
    id: str = "id"
    regions: str = "regions"

    @property
    def own(self) -> frozenset[str]:
        """Those that are not passed through."""
        return frozenset((self.path, self.content, self.id, self.regions))


@dataclass(frozen=True, slots=True)
class Record:
    """`content` is the encoded image, where it is to be read from, or why there is none.

    `passed` are the values that are passed through. `next` is the position after it, and `consumed` the bytes of the
    listed files up to there: the job's progress.
    """

    id: str
    source: str
    content: bytes | Place | ServiceError
    next: Position
    consumed: int
    regions: tuple[Rectangle, ...] = ()
    passed: Mapping[str, Any] | None = None

    @classmethod
    def described(
        cls,
        source: str,
        content: bytes | Place | ServiceError,
        fields: Mapping[str, Any],
        columns: Columns,
        next: Position,  # noqa: A002 - the field's name
        consumed: int,
    ) -> Record:
        """A record with the id, the regions and the further fields that came with it."""
        name = fields.get(columns.id)
        regions: tuple[Rectangle, ...] = ()
        try:
            regions = regions_of(fields.get(columns.regions))
        except BadRequest as error:
            content = error
        passed = {key: value for key, value in fields.items() if key not in columns.own}
        return cls(source if name in (None, "") else str(name), source, content, next, consumed, regions, passed)

    def read(self) -> bytes | ServiceError:
        """The bytes, or why there are none. Raises StorageError: that is no fault of the image."""
        if not isinstance(self.content, Place):
            return self.content
        try:
            return self.content.read()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else None
            return BadRequest(f"the file cannot be read: {reason or ' '.join(str(error).split())}")

    def drawn(self, share: float) -> bool:
        """Whether a sample of this share has it: decided by the id alone, the same in every run."""
        digest = hashlib.blake2b(self.id.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") < share * 2**64


def as_text(fields: Mapping[str, Any]) -> dict[str, str | None]:
    """Fields of JSON as they are passed through: strings as they are, null as null, anything else as JSON. Halves of
    surrogate pairs, which JSON can hold and no text can, become question marks."""
    texts = {
        key: value if value is None or isinstance(value, str) else json.dumps(value) for key, value in fields.items()
    }
    return {_sound(key): None if text is None else _sound(text) for key, text in texts.items()}


def _sound(text: str) -> str:
    return text.encode(errors="replace").decode()


def regions_of(value: Any) -> tuple[Rectangle, ...]:
    """The regions of a manifest's cell: lists of x, y, width, height, such lists as JSON, or `x,y,w,h;x,y,w,h`; nothing
    means the whole image. Raises BadRequest."""
    if value is None or value == "":
        return ()
    try:
        if isinstance(value, str):
            is_json = value.lstrip().startswith("[")
            value = json.loads(value) if is_json else tuple(map(parse_region, value.split(";")))
        return _RECTANGLES.validate_python(value)
    except (json.JSONDecodeError, ValidationError):
        raise BadRequest(f"regions: {str(value)[:80]!r} is not a list of [x, y, width, height]") from None
