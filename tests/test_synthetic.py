"""The synthetic generator: repeatable, honest about its boxes, true to its statistics. The built-in font is enough."""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models.data.preview import contact_sheet
from models.data.sample import Sample
from models.data.synthetic import camera, fonts, lettering, statistics
from models.data.synthetic.camera import Photograph
from models.data.synthetic.closeup import photograph_closeup
from models.data.synthetic.fonts import BUILT_IN
from models.data.synthetic.negatives import KINDS
from models.data.synthetic.palette import draw_palette
from models.data.synthetic.render import NO_NUMBER_SHARE, SCENE_SHARE, generate, render
from service.geometry import Region

FACES = (BUILT_IN,)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [render(index, 7, FACES) for index in range(100)]


def _described(text: str) -> Photograph:
    return Photograph(np.frombuffer(text.encode(), np.uint8), Region.whole(9, 8), Region(1, 2, 3, 4))


@pytest.fixture(scope="module")
def mix() -> list[Sample]:
    """4,000 samples of seed 21 with a description for a picture, such as "scene 37", "closeup 5" or "blank ".

    A number's box is given for each of them, as there is one in pictures of numbers too long to be read."""
    module = "models.data.synthetic.render"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{module}.photograph_scene", lambda number, *_: _described(f"scene {number}"))
        patch.setattr(f"{module}._closeup", lambda number, *_: _described(f"closeup {number}"))
        patch.setattr(f"{module}.photograph_without_number", lambda kind, *_: _described(f"{kind} "))
        patch.setattr(f"{module}.camera.encode", lambda image, _: image.tobytes())
        return [render(index, 21, FACES) for index in range(4000)]


def _way(described: Sample) -> str:
    return described.image.decode().split(" ")[0]


def test_the_mix_holds_every_way_in_its_share(mix: list[Sample]) -> None:
    """Shares within four standard deviations; a label and a box where there is a number to read, and only there."""
    shares = {kind: NO_NUMBER_SHARE / len(KINDS) for kind in KINDS}
    shares |= {"scene": SCENE_SHARE, "closeup": 1 - SCENE_SHARE - NO_NUMBER_SHARE, "": NO_NUMBER_SHARE}
    counted = Counter(map(_way, mix))
    counted[""] = sum(sample.label == "" for sample in mix)
    assert set(counted) == set(shares)
    for way, share in shares.items():
        deviation = math.sqrt(len(mix) * share * (1 - share))
        assert abs(counted[way] - len(mix) * share) <= 4 * deviation, way
    for index, sample in enumerate(mix):
        way, number = sample.image.decode().split(" ")
        assert (number == "") == (way in KINDS)
        box = Region(1, 2, 3, 4) if number else None
        assert sample == Sample(sample.image, number, Region.whole(9, 8), f"21/{index}", "synthetic", box)


def test_same_seed_and_index_same_sample(mix: list[Sample]) -> None:
    """Of every way, whatever was rendered before."""
    first = {_way(sample): index for index, sample in reversed(list(enumerate(mix)))}
    indices = sorted(first.values())
    assert len(indices) == len(KINDS) + 2
    there = [render(index, 21, FACES) for index in indices]
    back = [render(index, 21, FACES) for index in reversed(indices)]
    assert back[::-1] == there
    assert [sample.label for sample in there] == [mix[index].label for index in indices]
    assert render(indices[0], 22, FACES).image != there[0].image


def test_processes_do_not_change_samples_or_their_order(samples: list[Sample]) -> None:
    """More samples than a process takes at a time."""
    assert list(generate(7, 30, 40, 2, FACES)) == samples[30:70]
    assert [sample.source for sample in samples] == [f"7/{index}" for index in range(100)]
    assert len({sample.image for sample in samples}) == 100


def test_labels_are_numbers_of_at_most_five_digits(samples: list[Sample]) -> None:
    for sample in samples:
        assert len(sample.label) <= 5
        assert set(sample.label) <= set("0123456789")
        assert (sample.number_box is None) == (sample.label == "")
    assert {len(sample.label) for sample in samples} == {0, 1, 2, 3, 4, 5}


def test_regions_lie_in_the_image_and_hold_the_digits(samples: list[Sample]) -> None:
    heights = []
    for sample in samples:
        with Image.open(io.BytesIO(sample.image)) as image:
            assert image.format in {"JPEG", "PNG"}
            width, height = image.size
        region, box = sample.region, sample.number_box
        assert region is not None
        assert -1e-6 <= region.x < region.x + region.width <= width + 1e-6
        assert -1e-6 <= region.y < region.y + region.height <= height + 1e-6
        if box is None:
            continue
        # A strip may be drawn a little too small, as annotated boxes are; nothing else may cut a digit.
        slack = 0.1 * box.height
        assert region.x <= box.x + slack
        assert region.y <= box.y + slack
        assert region.x + region.width >= box.x + box.width - slack
        assert region.y + region.height >= box.y + box.height - slack
        heights.append(box.height)
    # From digits that can just be read to those that fill a large photograph of their plate.
    assert 8 <= min(heights) < 25
    assert 70 < max(heights) <= 250


@pytest.mark.parametrize("turn", [-35.0, 0.0, 20.0])
def test_ink_box_is_that_of_the_warped_mask(turn: float) -> None:
    """Against the mask itself, warped at sixteen times the resolution."""
    rng = np.random.default_rng(3)
    letters = lettering.set_digits("47", 60, FACES, rng)
    mask = np.pad(letters.mask, 60).astype(np.float32)
    height, width = mask.shape
    pose = camera.draw_pose(width, height, 0.8, turn, rng)
    box = camera.ink_box(mask, pose)
    blown_up = np.diag([4.0, 4.0, 1.0]) @ np.array([[1, 0, 200], [0, 1, 200], [0, 0, 1.0]]) @ pose
    inked = np.repeat(np.repeat((mask > 0.35).astype(np.float32), 8, axis=0), 8, axis=1)
    warped = cv2.warpPerspective(inked, blown_up @ np.diag([1 / 8, 1 / 8, 1.0]), (1600, 1600))
    rows, columns = np.flatnonzero(warped.max(axis=1) > 0.5), np.flatnonzero(warped.max(axis=0) > 0.5)
    seen = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / 4 - 200
    np.testing.assert_allclose(box, seen, atol=0.6)


def test_photograph_puts_the_ink_where_the_box_says() -> None:
    """A bright square on black, at half its size: the picture's own outline agrees with `ink_box`."""
    mask = np.zeros((120, 160), np.float32)
    mask[40:80, 60:120] = 1
    pose = np.array([[0.5, 0, 10], [0, 0.5, 5], [0, 0, 1.0]])
    canvas = np.repeat(mask[:, :, None] * 255, 3, axis=2)
    picture = camera.photograph(canvas, pose, 100, 80, 0.5)[:, :, 0]
    y, x = np.mgrid[0:80, 0:100] + 0.5
    left, top, right, bottom = camera.ink_box(mask, pose)
    assert (left, top, right, bottom) == (40, 25, 70, 45)
    assert (picture * x).sum() / picture.sum() == pytest.approx((left + right) / 2, abs=0.05)
    assert (picture * y).sum() / picture.sum() == pytest.approx((top + bottom) / 2, abs=0.05)


def test_the_ink_of_a_close_view_is_in_its_box(monkeypatch: pytest.MonkeyPatch) -> None:
    """White digits on black, taken by a perfect camera: what is bright is the number, and fills its box."""
    module = "models.data.synthetic.closeup"
    monkeypatch.setattr(f"{module}.build_surface", lambda site, *_: np.zeros((site.height, site.width, 3)))
    monkeypatch.setattr(
        f"{module}.lighting.apply_digits", lambda canvas, mask, *_: np.repeat(mask[:, :, None] * 255, 3, axis=2)
    )
    monkeypatch.setattr(f"{module}.lighting.shine_on", lambda canvas, *_: canvas)
    monkeypatch.setattr(f"{module}.camera.expose", lambda image, *_: np.clip(image, 0, 255).astype(np.uint8))
    monkeypatch.setattr(f"{module}.camera.recompress", lambda image, _: image)
    for index in range(15):
        rng = np.random.default_rng(index)
        letters = lettering.set_digits(str(100 + 53 * index), 60, FACES, rng)
        taken = photograph_closeup(letters, 3, 45.0, 5.0 * index - 35, draw_palette(rng), rng)
        ink = taken.image[:, :, 0] > 90
        rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
        assert taken.number_box is not None
        # The tightest of frames cut a little off the outermost strokes.
        box = taken.number_box.clipped(ink.shape[1], ink.shape[0])
        seen = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        np.testing.assert_allclose(seen, [box.x, box.y, box.right, box.bottom], atol=1.6)


@settings(max_examples=25)
@given(
    number=st.text("0123456789", min_size=1, max_size=5),
    height=st.integers(16, 100),
    tilt=st.floats(-45, 45),
    seed=st.integers(0, 2**32),
)
def test_lettering_is_cropped_ink(number: str, height: int, tilt: float, seed: int) -> None:
    letters = lettering.set_digits(number, height, FACES, np.random.default_rng(seed), tilt)
    assert letters.mask.dtype == np.float32
    assert letters.mask.min() >= 0
    assert letters.mask.max() <= 1
    for edge in (letters.mask[0], letters.mask[-1], letters.mask[:, 0], letters.mask[:, -1]):
        assert edge.max() > 0.3
    assert letters.mask.shape[0] >= 0.8 * height


def test_lengths_and_digits_of_drawn_numbers() -> None:
    """Chi-square against the shares promised, at a bound passed by 99.99 % of fair draws."""
    rng = np.random.default_rng(1)
    numbers = [statistics.draw_number(rng) for _ in range(5000)]
    true = json.loads(statistics.STATISTICS_PATH.read_text(encoding="utf-8"))
    expected = (0.92 * np.array(true["lengths"]) + 0.08 / 5) * len(numbers)
    counted = np.bincount([len(number) for number in numbers], minlength=6)[1:]
    assert (((counted - expected) ** 2) / expected).sum() < 23.5  # four degrees of freedom
    for position in (1, 2):
        digits = [int(number[position]) for number in numbers if len(number) > position and len(number) < 5]
        expected = (0.6 * np.array(true["digits"][position]) + 0.4 / 10) * len(digits)
        counted = np.bincount(digits, minlength=10)
        assert (((counted - expected) ** 2) / expected).sum() < 33.7  # nine degrees of freedom
    # Ones lead most often in the streets, zeros hardly ever.
    leading = np.bincount([int(number[0]) for number in numbers], minlength=10)
    assert leading.argmax() == 1
    assert leading.argmin() == 0


def test_values_are_drawn_by_their_quantiles() -> None:
    """A piecewise even distribution: a tenth of the draws between neighbouring quantiles, the outermost 1 % cut off."""
    rng = np.random.default_rng(2)
    quantiles = [0.0, 1.0, 1.5, 4.0, 4.0, 5.0, 9.0, 10.0, 20.0, 21.0, 100.0]
    drawn = np.array([statistics.draw(quantiles, rng) for _ in range(20_000)])
    assert drawn.min() >= 0.1
    assert drawn.max() <= 21 + 0.9 * 79
    below = [(drawn <= value).mean() for value in (1.0, 1.5, 3.9999, 4.0, 5.0, 9.0, 10.0, 20.0, 21.0)]
    wanted = (np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]) - 0.01) / 0.98
    np.testing.assert_allclose(below, wanted, atol=0.015)


def test_statistics_of_known_photographs() -> None:
    """Two photographs worked out by hand, and one number of six digits that is only counted."""
    found = statistics.derive_statistics(
        {
            "a": {"label": [1, 10], "left": [0, 12], "top": [0, 12], "width": [10, 10], "height": [20, 20]},
            "b": {"label": [7], "left": [3], "top": [4], "width": [10], "height": [20]},
            "c": {key: [1] * 6 for key in ("label", "left", "top", "width", "height")},
        }
    )
    assert (found.numbers, found.longer) == (2, 1)
    assert found.lengths == [0.5, 0.5, 0, 0, 0]
    assert found.digits[0][1] == found.digits[0][7] == 0.5
    assert found.digits[1][0] == 1
    assert set(found.aspect) == {0.5}
    assert set(found.gap) == {0.1}
    assert set(found.tilt) == {45.0}
    assert set(found.height) == {20.0}


def test_statistics_need_a_number() -> None:
    with pytest.raises(ValueError, match="no number"):
        statistics.derive_statistics({})


def test_committed_statistics_are_whole() -> None:
    raw = json.loads(statistics.STATISTICS_PATH.read_text(encoding="utf-8"))
    assert raw["numbers"] + raw["longer"] == 30_000
    assert sum(raw["lengths"]) == pytest.approx(1, abs=1e-5)
    for key in ("aspect", "gap", "tilt", "height"):
        assert raw[key] == sorted(raw[key])
        assert len(raw[key]) == statistics.QUANTILES


def test_without_fonts_the_built_in_one_serves(tmp_path: Path) -> None:
    """Files that are no fonts, or fonts without digits, are passed over."""
    (tmp_path / "broken.ttf").write_bytes(b"not a font")
    assert fonts.discover([tmp_path, tmp_path / "missing"]) == FACES
    assert fonts.has_digits(BUILT_IN)
    assert fonts.digest(FACES) == fonts.digest([BUILT_IN]) != fonts.digest([BUILT_IN, BUILT_IN])


def test_contact_sheet_shows_every_region(samples: list[Sample]) -> None:
    sheet = contact_sheet(samples[:7], columns=3, cell=40)
    assert sheet.size == (3 * 40, 3 * 53)
    for position in range(7):
        cell = np.asarray(
            sheet.crop((position % 3 * 40, position // 3 * 53 + 13, position % 3 * 40 + 8, position // 3 * 53 + 20))
        )
        assert (cell != 96).any()
    with pytest.raises(ValueError, match="no samples"):
        contact_sheet([])


def test_contact_sheet_leaves_room_for_what_cannot_be_shown(samples: list[Sample]) -> None:
    good = samples[0]
    bad = [replace(good, image=b"no image"), replace(good, region=Region(5000, 0, 10, 10))]
    sheet = np.asarray(contact_sheet([*bad, good], columns=3, cell=40))
    assert (sheet[13:, :80] == 96).all()
    assert (sheet[:13, :40] != 96).any()
    assert (sheet[:13, 40:80] != 96).any()
    assert (sheet[13:, 80:] != 96).any()
