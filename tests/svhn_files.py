"""Writes SVHN format 1 exactly as the official files are: what a test of its reader needs."""

import io
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Number:
    """The labels of one photograph: for each digit label (10 is the digit 0), left, top, width, height."""

    digits: Sequence[tuple[float, float, float, float, float]]


FIELDS = ("label", "left", "top", "width", "height")


def write_digit_struct(path: Path, numbers: Mapping[str, Number]) -> None:
    """MATLAB 7.3: HDF5 behind a 512-byte text header; every value that is not a scalar field is a reference."""
    with h5py.File(path, "w", userblock_size=512, libver="earliest") as file:
        heap = file.create_group("#refs#")
        struct = file.create_group("digitStruct")
        struct.attrs["MATLAB_class"] = np.bytes_(b"struct")

        def reference(values: np.ndarray, matlab_class: bytes) -> h5py.Reference:
            dataset = heap.create_dataset(f"d{len(heap)}", data=values)
            dataset.attrs["MATLAB_class"] = np.bytes_(matlab_class)
            return dataset.ref

        names = np.empty((len(numbers), 1), h5py.ref_dtype)
        boxes = np.empty((len(numbers), 1), h5py.ref_dtype)
        for row, (name, number) in enumerate(numbers.items()):
            names[row, 0] = reference(np.array([[ord(c)] for c in name], np.uint16), b"char")
            group = heap.create_group(f"g{len(heap)}")
            group.attrs["MATLAB_class"] = np.bytes_(b"struct")
            for field, values in zip(FIELDS, zip(*number.digits, strict=True), strict=True):
                if len(values) == 1:
                    group.create_dataset(field, data=np.array([[values[0]]], np.float64))
                    continue
                column = np.empty((len(values), 1), h5py.ref_dtype)
                for digit, value in enumerate(values):
                    column[digit, 0] = reference(np.array([[value]], np.float64), b"double")
                group.create_dataset(field, data=column, dtype=h5py.ref_dtype)
            boxes[row, 0] = group.ref
        struct.create_dataset("name", data=names, dtype=h5py.ref_dtype)
        struct.create_dataset("bbox", data=boxes, dtype=h5py.ref_dtype)
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Mon Dec  5 21:09:26 2011 HDF5 schema 1.00 .")


def png(width: int, height: int, seed: int) -> bytes:
    """A photograph of noise: every seed has its own bytes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_directory(directory: Path, numbers: Mapping[str, Number], photographs: Mapping[str, bytes]) -> None:
    directory.mkdir(parents=True)
    write_digit_struct(directory / "digitStruct.mat", numbers)
    (directory / "see_bboxes.m").write_text("% the official archive has this script too\n")
    for name, data in photographs.items():
        (directory / name).write_bytes(data)


def write_archive(archive: Path, directory: Path, order: Sequence[str]) -> None:
    """`train.tar.gz` with its folder `train/`, members in the order given."""
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(directory, directory.name, recursive=False)
        for name in order:
            tar.add(directory / name, f"{directory.name}/{name}")
