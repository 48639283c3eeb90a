"""CUB-200-2011 in miniature: a folder in the official format."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

PARTS = (
    *("back", "beak", "belly", "breast", "crown", "forehead", "left eye", "left leg", "left wing", "nape"),
    *("right eye", "right leg", "right wing", "tail", "throat"),
)
SPECIES = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross")
SIZE = (60, 40)
"""(width, height) of every photograph."""


def write_cub(folder: Path, count: int = 6) -> Path:
    """`count` photographs, of all species by turns, every third to test; in each, the parts that its number says.

    In photograph i the beak can be seen at (i, 2 i) and the belly at (i + 0.5, 3 i); of the others nothing is known.
    """
    (folder / "parts").mkdir(parents=True)
    lines: dict[str, list[str]] = {name: [] for name in ("images", "train_test_split", "image_class_labels", "boxes")}
    places = []
    for number in range(1, count + 1):
        species = (number - 1) % len(SPECIES)
        name = f"{SPECIES[species]}/Bird_{number:04d}.jpg"
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (SIZE[1], SIZE[0], 3), np.uint8)
        encoded = io.BytesIO()
        Image.fromarray(pixels).save(encoded, "JPEG")
        path.write_bytes(encoded.getvalue())
        lines["images"].append(f"{number} {name}")
        lines["train_test_split"].append(f"{number} {int(number % 3 > 0)}")
        lines["image_class_labels"].append(f"{number} {species + 1}")
        lines["boxes"].append(f"{number} 10.0 5.0 {20.0 + number} 30.0")
        for part, title in enumerate(PARTS, start=1):
            x, y = {"beak": (number, 2 * number), "belly": (number + 0.5, 3 * number)}.get(title, (0, 0))
            places.append(f"{number} {part} {x:.1f} {y:.1f} {int(title in ('beak', 'belly'))}")
    lines["bounding_boxes"] = lines.pop("boxes")
    lines["classes"] = [f"{number} {name}" for number, name in enumerate(SPECIES, start=1)]
    lines["parts/parts"] = [f"{number} {name}" for number, name in enumerate(PARTS, start=1)]
    lines["parts/part_locs"] = places
    for name, rows in lines.items():
        (folder / f"{name}.txt").write_text("\n".join(rows) + "\n")
    return folder
