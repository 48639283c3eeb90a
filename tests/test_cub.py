"""CUB-200-2011: the official folder, and what is wrong with one that is not."""

import re
from pathlib import Path

import numpy as np
import pytest
from cub_files import SIZE, SPECIES, write_cub

from models.data.cub import CubError, load_cub
from models.experiments.bird_tasks import CUB_SIDE, Photographs
from models.experiments.experiment import ExperimentError
from service.geometry import Region


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_cub(tmp_path / "CUB_200_2011")


def test_everything_that_the_files_say(folder: Path) -> None:
    cub = load_cub(folder)
    assert cub.species == list(SPECIES)
    assert [bird.species for bird in cub.birds] == [0, 1, 2, 0, 1, 2]
    assert [bird.training for bird in cub.birds] == [True, True, False, True, True, False]
    fourth = cub.birds[3]
    assert fourth.image == folder / "images" / SPECIES[0] / "Bird_0004.jpg"
    assert fourth.box == Region(10, 5, 24, 30)
    assert fourth.parts == {"beak": (4, 8), "belly": (4.5, 12)}


def test_numbers_need_be_neither_in_order_nor_without_gaps(folder: Path) -> None:
    for name in ("images", "train_test_split", "image_class_labels", "bounding_boxes", "parts/part_locs"):
        path = folder / f"{name}.txt"
        kept = [line for line in path.read_text().splitlines() if not line.startswith("2 ")]
        path.write_text("\n".join(reversed(kept)) + "\n\n")
    assert [bird.image.stem for bird in load_cub(folder).birds] == [f"Bird_000{number}" for number in (6, 5, 4, 3, 1)]


def test_a_photograph_is_a_square_with_its_parts(folder: Path) -> None:
    birds = load_cub(folder).birds
    image, species, parts = Photographs(birds)[3]
    assert (tuple(image.shape), int(species)) == ((3, CUB_SIDE, CUB_SIDE), 0)
    expected = np.array([[4, 8], [4.5, 12]]) / SIZE * 2 - 1
    np.testing.assert_allclose(parts.numpy(), expected, atol=1e-6)


def test_a_part_that_cannot_be_seen_is_nowhere(folder: Path) -> None:
    path = folder / "parts" / "part_locs.txt"
    path.write_text(path.read_text().replace("1 2 1.0 2.0 1", "1 2 1.0 2.0 0"))
    _, _, parts = Photographs(load_cub(folder).birds)[0]
    assert parts[0].isnan().all()
    assert not parts[1].isnan().any()


def test_a_photograph_that_does_not_decode_is_named(folder: Path) -> None:
    birds = load_cub(folder).birds
    birds[0].image.write_bytes(b"nothing")
    with pytest.raises(ExperimentError, match=re.escape(str(birds[0].image))):
        Photographs(birds)[0]


FILES = (
    *("images", "train_test_split", "image_class_labels", "bounding_boxes", "classes", "parts/parts"),
    "parts/part_locs",
)


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_needed(folder: Path, name: str) -> None:
    (folder / f"{name}.txt").unlink()
    with pytest.raises(CubError, match=re.escape(f"it has no {name}.txt")):
        load_cub(folder)


@pytest.mark.parametrize("name", FILES)
def test_an_empty_file_is_named(folder: Path, name: str) -> None:
    (folder / f"{name}.txt").write_text("\n")
    with pytest.raises(CubError, match=re.escape(f"{name}.txt is empty")):
        load_cub(folder)


@pytest.mark.parametrize("name", FILES)
def test_bytes_that_are_no_text_are_named(folder: Path, name: str) -> None:
    (folder / f"{name}.txt").write_bytes(b"1 \xff\xfe\n")
    with pytest.raises(CubError, match=re.escape(f"{name}.txt is not a text file")):
        load_cub(folder)


@pytest.mark.parametrize("name", ["train_test_split", "image_class_labels", "bounding_boxes"])
def test_an_image_that_a_file_leaves_out_is_named(folder: Path, name: str) -> None:
    path = folder / f"{name}.txt"
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if not line.startswith("5 ")))
    with pytest.raises(CubError, match=rf"{name}\.txt does not tell of image 5"):
        load_cub(folder)


@pytest.mark.parametrize("name", ["train_test_split", "image_class_labels", "bounding_boxes"])
def test_an_image_that_is_not_listed_is_named(folder: Path, name: str) -> None:
    path = folder / f"{name}.txt"
    line = path.read_text().splitlines()[0].removeprefix("1")
    path.write_text(path.read_text() + f"99{line}\n")
    with pytest.raises(CubError, match=rf"images\.txt does not tell of image 99, which is in {name}\.txt"):
        load_cub(folder)


@pytest.mark.parametrize(
    ("name", "line", "wrong", "complaint"),
    [
        ("images", "1 ", "one ", r"images\.txt, line 1: .*invalid literal"),
        ("images", "2 002.Laysan_Albatross/Bird_0002.jpg", "2", r"images\.txt, line 2: .*no name"),
        ("images", "2 ", "1 ", r"images\.txt, line 2: 1 was there before"),
        ("images", "Bird_0003", "Bird_9999", r"image 3: there is no file .*Bird_9999\.jpg"),
        ("train_test_split", "3 0", "3 2", r"train_test_split\.txt, line 3: .*neither 0 nor 1"),
        ("image_class_labels", "3 3", "3 7", r"classes\.txt does not tell of class 7, that of image 3"),
        ("image_class_labels", "3 3", "3 three", r"image_class_labels\.txt, line 3"),
        ("bounding_boxes", "10.0 5.0 21.0 30.0", "10.0 5.0 21.0", r"bounding_boxes\.txt, line 1: .*not enough values"),
        ("bounding_boxes", "21.0", "0.0", r"bounding_boxes\.txt, line 1: .*without an area"),
        ("bounding_boxes", "21.0", "nan", r"bounding_boxes\.txt, line 1: .*nan is not finite"),
        ("parts/part_locs", "1 2 1.0 2.0 1", "1 2 1.0 2.0", r"part_locs\.txt, line 2: .*not image, part"),
        ("parts/part_locs", "1 2 1.0 2.0 1", "1 2 1.0 inf 1", r"part_locs\.txt, line 2: .*inf is not finite"),
        ("parts/part_locs", "1 2 1.0 2.0 1", "1 16 1.0 2.0 1", r"part_locs\.txt, line 2: parts\.txt .* part 16"),
        ("parts/part_locs", "1 2 1.0 2.0 1", "77 2 1.0 2.0 1", r"part_locs\.txt, line 2: images\.txt .* image 77"),
    ],
)
def test_a_line_that_is_not_right_is_named(folder: Path, name: str, line: str, wrong: str, complaint: str) -> None:
    path = folder / f"{name}.txt"
    text = path.read_text()
    assert line in text
    path.write_text(text.replace(line, wrong, 1))
    with pytest.raises(CubError, match=complaint):
        load_cub(folder)
