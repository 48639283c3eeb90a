"""Whole scenes and images without a number: sizes and boxes as promised, kinds that hold what their names say."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from housenumber.cli import main
from models.data.sample import Sample
from models.data.shards import read_shards
from models.data.synthetic import scene, words
from models.data.synthetic.camera import Photograph
from models.data.synthetic.fonts import BUILT_IN, GLYPH_HEIGHT, glyph
from models.data.synthetic.lettering import Lettering, set_digits
from models.data.synthetic.negatives import KINDS, photograph_long_number, render_without_number
from models.data.synthetic.render import generate_without_number, generator_digest
from models.data.synthetic.statistics import draw_number
from service.geometry import Region

FACES = (BUILT_IN,)
PACKAGE = Path(scene.__file__).parent


@pytest.fixture(scope="module")
def scenes() -> list[tuple[str, Photograph]]:
    found = []
    for index in range(80):
        rng = np.random.default_rng([5, index])
        number = draw_number(rng)
        found.append((number, scene.photograph_scene(number, FACES, rng)))
    return found


@pytest.fixture(scope="module")
def without_number() -> list[Sample]:
    """Six of every kind."""
    return list(generate_without_number(4, 3, 6 * len(KINDS), 1, FACES))


def _inside(box: Region, outer: Region) -> bool:
    return outer.x <= box.x and outer.y <= box.y and box.right <= outer.right and box.bottom <= outer.bottom


def test_scenes_are_whole_photographs(scenes: list[tuple[str, Photograph]]) -> None:
    for _, taken in scenes:
        height, width = taken.image.shape[:2]
        assert taken.region == Region.whole(width, height)
        assert 158 <= max(width, height) <= 322
        ratio = max(width, height) / min(width, height)
        assert min(abs(ratio - known) for known in (1, 4 / 3, 16 / 9)) < 0.03


def test_the_number_is_whole_anywhere_in_its_scene(scenes: list[tuple[str, Photograph]]) -> None:
    across, down, shares = [], [], []
    for number, taken in scenes:
        box = taken.number_box
        assert box is not None
        assert _inside(box.enlarged(0.02), taken.region)
        across.append((box.x + box.right) / 2 / taken.region.width)
        down.append((box.y + box.bottom) / 2 / taken.region.height)
        share = box.width / taken.region.width
        # A 1 is narrow; digits are not made unreadable to keep a long number small.
        assert share >= 0.09 or set(number) == {"1"}
        assert share <= 0.56 or len(number) >= 4
        shares.append(share)
    for centres in (across, down):
        assert min(centres) < 0.25
        assert max(centres) > 0.75
    assert np.mean([0.14 <= share <= 0.42 for share in shares]) > 0.75


def test_digits_of_scenes_can_be_read_at_128_pixels(scenes: list[tuple[str, Photograph]]) -> None:
    """A number's box is a little higher than its digits where they stand on a slope."""
    heights = np.array(
        [taken.number_box.height / taken.region.height * 128 for _, taken in scenes if taken.number_box is not None]
    )
    assert heights.min() >= 7
    assert (heights >= 10).mean() >= 0.92


def test_the_ink_of_a_scene_is_in_its_box(monkeypatch: pytest.MonkeyPatch) -> None:
    """White digits on black, without camera and surroundings: what is bright is the number, and fills its box."""
    monkeypatch.setattr(scene, "_surroundings", lambda width, height, *_: np.zeros((height, width, 3), np.uint8))
    monkeypatch.setattr(scene, "_hang", lambda picture, *_: picture)
    monkeypatch.setattr(scene, "_finish", lambda picture, *_: np.clip(picture, 0, 255).astype(np.uint8))
    white = "models.data.synthetic.scene.lighting.apply_digits"
    monkeypatch.setattr(white, lambda canvas, mask, *_: np.repeat(mask[:, :, None] * 255, 3, axis=2))
    for index in range(15):
        taken = scene.photograph_scene(str(100 + 53 * index), FACES, np.random.default_rng(index))
        ink = taken.image[:, :, 0] > 90
        rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
        box = taken.number_box
        assert box is not None
        seen = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        np.testing.assert_allclose(seen, [box.x, box.y, box.right, box.bottom], atol=1.6)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_without_a_number(kind: str, without_number: list[Sample]) -> None:
    samples = [sample for sample in without_number if sample.collection == f"no-number-{kind}"]
    index = int(samples[0].source.removeprefix("4/"))
    assert render_without_number(index, 4, FACES, kind) == samples[0]
    assert len({sample.image for sample in samples}) == 6
    for sample in samples:
        assert (sample.label, sample.number_box) == ("", None)
        with Image.open(io.BytesIO(sample.image)) as image:
            width, height = image.size
        assert sample.region is not None
        assert _inside(sample.region.enlarged(-1e-6), Region.whole(width, height))
        assert sample.region.width >= 8


def test_kinds_without_a_number_take_turns(without_number: list[Sample]) -> None:
    collections = [sample.collection for sample in without_number]
    assert collections == 6 * collections[: len(KINDS)]
    assert set(collections) == {f"no-number-{kind}" for kind in KINDS}
    assert [sample.source for sample in without_number] == [f"4/{index}" for index in range(3, 3 + 6 * len(KINDS))]
    assert render_without_number(3, 4, FACES) == without_number[0]
    with pytest.raises(KeyError):
        render_without_number(0, 0, FACES, "numbers")


def test_the_command_writes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_number: list[Sample]) -> None:
    for module in ("synthetic.render", "synthetic.fonts"):
        monkeypatch.setattr(f"models.data.{module}.installed_faces", lambda: FACES)
    options = ["--without-number", "--start", "3", "--count", "7", "--seed", "4", "--processes", "1", "--out"]
    result = CliRunner().invoke(main, ["data", "synthesize", *options, str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert list(read_shards(tmp_path / "out")) == without_number[:7]


def test_long_numbers_are_shown_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """In close views and in scenes: six to ten digits, all in the region."""
    numbers: list[str] = []

    def noted(number: str, height: int, *rest: Any) -> Lettering:
        numbers.append(number)
        return set_digits(number, height, *rest)

    for module in ("scene", "negatives"):
        monkeypatch.setattr(f"models.data.synthetic.{module}.set_digits", noted)
    for index in range(24):
        taken = photograph_long_number(FACES, np.random.default_rng(index))
        assert taken.number_box is not None
        assert _inside(taken.number_box, taken.region)
        assert taken.number_box.height >= 6
    assert len(numbers) == 24
    assert {len(number) for number in numbers} == {6, 7, 8, 9, 10}
    assert all(number.isdigit() for number in numbers)


def test_words_are_words() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        drawn = words.draw_words(rng).split()
        assert 1 <= len(drawn) <= 3
        assert all(word.isalpha() and len(word) >= 3 for word in drawn)


def test_a_line_of_text_stands_on_one_baseline() -> None:
    """At the glyphs' own size, the line is its letters: as high as the highest, together as wide."""
    line = words.text_mask("HxH", GLYPH_HEIGHT, BUILT_IN)
    assert line is not None
    tall, small = glyph(BUILT_IN, "H").mask, glyph(BUILT_IN, "x").mask
    assert line.shape[0] == tall.shape[0]
    np.testing.assert_array_equal(line[:, : tall.shape[1]], tall)
    middle = line[:, tall.shape[1] : -tall.shape[1]]
    rows = np.flatnonzero(middle.max(axis=1) > 63)
    assert rows[-1] == line.shape[0] - 1
    assert len(rows) == small.shape[0]
    assert words.text_mask("", 20, BUILT_IN) is None


def test_the_generators_digest_is_that_of_its_files(tmp_path: Path) -> None:
    copy = tmp_path / "synthetic"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    digest = generator_digest(FACES)
    assert len(digest) == 12
    assert int(digest, 16) >= 0
    assert generator_digest(FACES, copy) == digest
    assert generator_digest([BUILT_IN, BUILT_IN]) != digest
    for name in ("scene.py", "statistics.json"):
        content = (copy / name).read_bytes()
        (copy / name).write_bytes(content + b"\n")
        assert generator_digest(FACES, copy) != digest
        (copy / name).write_bytes(content)
    (copy / "more.py").write_text("")
    assert generator_digest(FACES, copy) != digest
