"""CUB-200-2011 (Wah et al. 2011): photographs of 200 species of birds, 5,994 to train on and 5,794 to test.

The folder `CUB_200_2011`, as it is unpacked from the official archive; one line for each thing, its fields
separated by spaces, images, classes and parts numbered from 1:

    images.txt               image, its path in images/
    train_test_split.txt     image, 1 for training or 0 for test
    image_class_labels.txt   image, class
    bounding_boxes.txt       image, left, top, width, height
    classes.txt              class, name
    parts/parts.txt          part, name (which may hold spaces)
    parts/part_locs.txt      image, part, x, y, 1 where it can be seen or 0

Boxes and parts are in pixels of the photograph, (x, y), from its top-left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from service.geometry import Region

_Value = TypeVar("_Value")


class CubError(Exception):
    """A folder that is not CUB-200-2011, or whose files contradict each other; one line for the user."""


@dataclass(frozen=True)
class Bird:
    """One photograph.

    image: its file.
    species: index into `Cub.species`.
    training: whether it is one to train on, by the official split.
    box: the bird's, in pixels; it may reach beyond the photograph.
    parts: (x, y) of those that can be seen, in pixels, by name.
    """

    image: Path
    species: int
    training: bool
    box: Region
    parts: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Cub:
    """The species' names, in the order of the file, and all birds."""

    species: list[str]
    birds: list[Bird]


def load_cub(folder: Path) -> Cub:
    """What the text files say. No photograph is opened, but all are there.

    Raises CubError for a file that is missing, a line that is not as above, one thing said twice or not at all, and
    numbers that nothing is known by.
    """
    images = _table(folder, "images.txt", _name)
    training = _table(folder, "train_test_split.txt", _flag)
    labels = _table(folder, "image_class_labels.txt", int)
    boxes = _table(folder, "bounding_boxes.txt", _box)
    species = _table(folder, "classes.txt", _name)
    part_names = _table(folder, "parts/parts.txt", _name)
    places = _places(folder, "parts/part_locs.txt", images, part_names)
    columns: dict[str, Set[int]] = {
        "train_test_split.txt": training.keys(),
        "image_class_labels.txt": labels.keys(),
        "bounding_boxes.txt": boxes.keys(),
    }
    for file, column in columns.items():
        if odd := images.keys() ^ column:
            number = min(odd)
            known, lacking = ("images.txt", file) if number in images else (file, "images.txt")
            raise CubError(f"{folder / lacking} does not tell of image {number}, which is in {known}")
    index = {number: place for place, number in enumerate(species)}
    birds = []
    for number, name in images.items():
        image = folder / "images" / name
        if labels[number] not in index:
            raise CubError(f"{folder / 'classes.txt'} does not tell of class {labels[number]}, that of image {number}")
        if not image.is_file():
            raise CubError(f"{folder / 'images.txt'}: image {number}: there is no file {image}")
        birds.append(Bird(image, index[labels[number]], training[number], boxes[number], places.get(number, {})))
    return Cub(list(species.values()), birds)


def _lines(folder: Path, file: str) -> list[tuple[str, str]]:
    """(where it stands, text) of the lines that are not blank, at least one."""
    path = folder / file
    if not path.is_file():
        raise CubError(f"{folder} is not the folder CUB_200_2011 of the official archive: it has no {file}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CubError(f"{path} is not a text file") from error
    lines = [(f"{path}, line {number}", line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise CubError(f"{path} is empty")
    return lines


def _table(folder: Path, file: str, value: Callable[[str], _Value]) -> dict[int, _Value]:
    """Number -> what `value` makes of the rest of its line."""
    table: dict[int, _Value] = {}
    for where, line in _lines(folder, file):
        number, _, rest = line.strip().partition(" ")
        try:
            key, found = int(number), value(rest)
        except ValueError as error:
            raise CubError(f"{where}: {line!r} is not what stands in this file ({error})") from error
        if key in table:
            raise CubError(f"{where}: {key} was there before")
        table[key] = found
    return table


def _places(
    folder: Path, file: str, images: Container[int], names: dict[int, str]
) -> dict[int, dict[str, tuple[float, float]]]:
    """Image -> the parts that can be seen in it, by name."""
    places: dict[int, dict[str, tuple[float, float]]] = {}
    for where, line in _lines(folder, file):
        try:
            image, part, x, y, seen = line.split()
            number, name, place, visible = int(image), names[int(part)], (_finite(x), _finite(y)), _flag(seen)
        except KeyError as error:
            raise CubError(f"{where}: parts.txt does not tell of part {error}") from error
        except ValueError as error:
            raise CubError(f"{where}: {line!r} is not image, part, x, y, 0 or 1 ({error})") from error
        if number not in images:
            raise CubError(f"{where}: images.txt does not tell of image {number}")
        if visible:
            places.setdefault(number, {})[name] = place
    return places


def _name(text: str) -> str:
    if not text.strip():
        raise ValueError("no name")
    return text.strip()


def _flag(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError("neither 0 nor 1")
    return text == "1"


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not finite")
    return number


def _box(text: str) -> Region:
    left, top, width, height = map(_finite, text.split())
    if width <= 0 or height <= 0:
        raise ValueError("a box without an area")
    return Region(left, top, width, height)
