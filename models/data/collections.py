"""Collections of labelled photographs, whatever they are stored as, as one stream of samples.

Two forms are known: shards (`models.data.shards`), and a directory with `labels.jsonl`, one JSON object for each
photograph:

    file              path of the photograph, relative to the directory
    label             the number as a string of digits; "" where there is none
    collection        what its results are reported under
    framing           "tight" or "crop": the photograph shows the number and little else, and is read as a whole;
                      anything else: it is read in a region, if a box is given
    number_box_xyxy   optional: left, top, right, bottom of roughly where the number is
    digit_boxes       optional: left, top, width, height of each digit
    doubtful          optional: true marks a label that the eye contradicts; the row is left out

Boxes are in pixels of the upright photograph; a region is the box enlarged as `number_region` does. Only the digits'
own boxes are taken for the number's true box.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError

from models.data.sample import Sample, number_region, open_photo, tight_box
from models.data.shards import count_rows, read_shards
from service.errors import ServiceError
from service.geometry import Region
from service.validation import first_mistake

LABELS = "labels.jsonl"
FRAMED = ("tight", "crop")

Box = tuple[float, float, float, float]


class CollectionError(Exception):
    """A path that holds no collection, or labels that cannot be used; one line for the user."""


class _Row(BaseModel):
    file: str
    label: Annotated[str, Field(pattern=r"^[0-9]*$")]
    collection: str
    framing: str = "crop"
    number_box_xyxy: Box | None = None
    digit_boxes: Annotated[list[Box], Field(min_length=1)] | None = None
    doubtful: bool = False


def load_collection(path: Path) -> Iterator[Sample]:
    """The samples at `path`: a directory with `labels.jsonl`, or a file or directory of shards.

    Raises CollectionError or ShardError, before the first sample, when there is no collection, a line of the labels
    is not valid, or a photograph they name is missing. Photographs that do not decode are passed on as they are.
    """
    if not path.exists():
        raise CollectionError(f"{path} does not exist")
    if (path / LABELS).is_file():
        return (_sample(path, row) for row in _rows(path))
    return read_shards(path)


def count_samples(path: Path) -> int:
    """How many samples `load_collection` gives; no photograph is read. Raises what it raises."""
    if not path.exists():
        raise CollectionError(f"{path} does not exist")
    return len(_rows(path)) if (path / LABELS).is_file() else count_rows(path)


def _rows(directory: Path) -> list[_Row]:
    rows = []
    for number, line in enumerate((directory / LABELS).read_text(encoding="utf-8").splitlines(), start=1):
        where = f"{directory / LABELS}, line {number}"
        try:
            row = _Row.model_validate_json(line)
        except ValidationError as error:
            raise CollectionError(f"{where}: {first_mistake(error.errors())}") from error
        if not (directory / row.file).is_file():
            raise CollectionError(f"{where}: there is no file {row.file}")
        if not row.doubtful:
            rows.append(row)
    return rows


def _sample(directory: Path, row: _Row) -> Sample:
    image = (directory / row.file).read_bytes()
    number_box = None if row.digit_boxes is None else tight_box(row.digit_boxes)
    rough = number_box
    if row.number_box_xyxy is not None:
        left, top, right, bottom = row.number_box_xyxy
        rough = Region(left, top, right - left, bottom - top)
    region = None if rough is None or row.framing in FRAMED else _region(rough, image)
    return Sample(image, row.label, region, row.file, row.collection, number_box)


def _region(rough: Region, image: bytes) -> Region | None:
    try:
        photo = open_photo(image)
    except ServiceError:
        return None  # whoever decodes the photograph meets the same error, and reports it
    return number_region(rough, photo.width, photo.height)
