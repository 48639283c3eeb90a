"""`digitStruct.mat`, the labels of SVHN format 1: a MATLAB 7.3 file, which is HDF5.

    /digitStruct/name   [N, 1] references, each to a uint16 [length, 1] array of character codes
    /digitStruct/bbox   [N, 1] references, each to a group with height, left, top, width, label

A field of such a group is a float64 [[value]] where the number has one digit, otherwise an [n, 1] array of
references to such scalars. Boxes span [left, left + width] x [top, top + height] in pixels from the image's
top-left edge. http://ufldl.stanford.edu/housenumbers/
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from h5py import h5d, h5r, h5s

FIELDS = (b"label", b"left", b"top", b"width", b"height")


class SvhnError(Exception):
    """A source that is not SVHN format 1, or a destination that cannot be used; one line for the user."""


class LabelError(Exception):
    """The labels of one photograph are unusable; says why."""


@dataclass(frozen=True)
class DigitBox:
    """One digit "0" to "9" and its box in pixels."""

    digit: str
    left: float
    top: float
    width: float
    height: float


class DigitStruct:
    """The labels of all photographs of a split; each photograph's are read when they are asked for.

    h5py's low-level calls are used throughout: `extra` has 202,353 photographs and some 2.7 million values,
    each an HDF5 object of its own, and `file[reference][()]` takes about three times as long.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file. Raises SvhnError when it is not one of SVHN's label files."""
        try:
            self._file = h5py.File(path)
        except OSError as error:
            raise SvhnError(f"{path} is not an HDF5 file (MATLAB 7.3): {error}") from error
        try:
            self._names, self._boxes = (self._file[f"digitStruct/{key}"][:, 0] for key in ("name", "bbox"))
        except (KeyError, OSError, ValueError) as error:
            self._file.close()
            raise SvhnError(f"{path} has no /digitStruct/name and /digitStruct/bbox: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """The file name of a photograph, such as "1.png". Raises LabelError when it cannot be read."""
        try:
            characters = h5r.dereference(self._names[index], self._file.id)
            codes = np.empty(characters.shape, np.uint16)
            characters.read(h5s.ALL, h5s.ALL, codes)
            return codes.tobytes().decode("utf-16-le")
        except (AttributeError, OSError, RuntimeError, TypeError, ValueError) as error:
            raise LabelError(f"unreadable name: {error}") from error

    def digits(self, index: int) -> list[DigitBox]:
        """The digits of a photograph from left to right, as the file orders them.

        Raises LabelError when the fields are missing, of different lengths, or not digits with a box.
        """
        try:
            group = h5r.dereference(self._boxes[index], self._file.id)
            columns = [self._values(h5d.open(group, field)) for field in FIELDS]
            rows = list(zip(*columns, strict=True))
        except (AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
            raise LabelError(f"unreadable labels: {error}") from error
        if not rows:
            raise LabelError("no digits")
        return [_digit_box(*row) for row in rows]

    def _values(self, field: Any) -> list[float]:
        if not field.dtype.hasobject:
            values = np.empty(field.shape, np.float64)
            field.read(h5s.ALL, h5s.ALL, values)
            return [float(value) for value in values.ravel()]
        references = np.empty(field.shape, h5py.ref_dtype)
        field.read(h5s.ALL, h5s.ALL, references)
        scalar = np.empty((1, 1), np.float64)
        values_read = []
        for reference in references.ravel():
            h5r.dereference(reference, self._file.id).read(h5s.ALL, h5s.ALL, scalar)
            values_read.append(float(scalar[0, 0]))
        return values_read


def _digit_box(label: float, left: float, top: float, width: float, height: float) -> DigitBox:
    if label not in range(1, 11):
        raise LabelError(f"label {label:g} is not one of 1 to 10")
    if not (np.isfinite([left, top, width, height]).all() and width > 0 and height > 0):
        raise LabelError(f"the box of a digit is {width:g} x {height:g} pixels at {left:g}, {top:g}")
    return DigitBox(str(int(label) % 10), left, top, width, height)
