"""`housenumber experiment readers` and `invariance`: end to end in miniature, and the parts that can be told apart."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from narrow import narrow_networks
from numpy.typing import NDArray
from serving import plain
from tiny_reader import REVERSED, write_artifact
from tiny_reader import metadata as tiny_metadata

from housenumber.cli import main
from models.data.sample import Sample
from models.data.shards import write_shards
from models.data.synthetic.fonts import BUILT_IN
from models.data.synthetic.render import render
from models.experiments import house_numbers, readers
from models.experiments.distorted_numbers import DISTORTIONS, clutter, distort, distorted
from models.experiments.experiment import Settings
from models.experiments.house_numbers import framed
from models.experiments.invariance import SHARE, TURNED, lost
from models.experiments.pareto import front
from models.experiments.readers import RATIO
from models.readers import READERS
from models.training import loop
from models.training.recipe import Recipe
from service.geometry import Region
from service.imaging import Photo

EXAMPLE = Path(__file__).parents[1] / "docs/images/example.jpg"
CHOSEN = ("cnn", "parallel")

Pixels = NDArray[np.uint8]


def experiment(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["experiment", *map(str, arguments)])


def collection(folder: Path, *numbers: str) -> Path:
    """A collection of plain photographs that the tiny reader reads as these numbers."""
    folder.mkdir()
    rows = []
    for number in numbers:
        (folder / f"{number}.png").write_bytes(plain(number, (60, 30)))
        rows.append(json.dumps({"file": f"{number}.png", "label": number, "collection": "plain", "framing": "tight"}))
    (folder / "labels.jsonl").write_text("\n".join(rows) + "\n")
    return folder


# -- readers ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def miniature(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Narrow networks, a few of them, at small sizes; numbers in the one face that is always there."""
    monkeypatch.setattr(readers, "READERS", {name: READERS[name] for name in CHOSEN})
    monkeypatch.setattr(readers, "FRAMINGS", {"tight": 32, "loose": 64})
    monkeypatch.setattr(readers, "TIGHT_ALONE", frozenset({"parallel"}))
    monkeypatch.setattr(readers, "BATCH_SIZE", 4)
    monkeypatch.setattr(readers, "ROUNDS", 1)
    monkeypatch.setattr(readers, "TIMED_AT_ONCE", 1)

    def drawn(seed: int, start: int, count: int, processes: int) -> Iterator[Sample]:
        return (render(index, seed, (BUILT_IN,)) for index in range(start, start + count))

    monkeypatch.setattr(house_numbers, "generate", drawn)
    with narrow_networks():
        yield


@pytest.mark.usefixtures("miniature")
def test_readers_from_end_to_end(tmp_path: Path) -> None:
    photographs = collection(tmp_path / "photographs", "12", "7")
    out = tmp_path / "out"
    result = experiment("readers", "--steps", 2, "--collections", photographs, "--out", out)
    assert result.exit_code == 0, result.output
    told = json.loads((out / "result.json").read_text())["seeds"][0]
    assert {framing: tuple(rows) for framing, rows in told["figures"].items()} == {
        "tight": CHOSEN,
        "loose": ("cnn",),
    }
    for rows in told["figures"].values():
        for row in rows.values():
            assert row["steps"] == 2
            assert row["ms"] > 0
            assert 0 <= row["right"] <= 100
            assert 0 <= row["photographs right"] <= 100
        assert rows["cnn"][RATIO] == 1
    tight = told["figures"]["tight"]
    assert tight["parallel"][RATIO] == pytest.approx(tight["parallel"]["ms"] / tight["cnn"]["ms"])
    assert told["details"]["tight"]["cnn"]["plain"]["n"] == 2
    table = (out / "table.md").read_text()
    assert "| parallel |" in table
    assert "(96.00)" in table
    # Artifacts and weights are gone: a run of all readers would leave gigabytes.
    assert {path.name for path in out.iterdir()} == {
        *("result.json", "table.md"),
        *("pareto.png", "boxes-tight.png", "boxes-loose.png"),
    }


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five numbers, each a collection of its own; two are to be held out."""
    monkeypatch.setattr(readers, "HELD_OUT", 2)
    made = (replace(render(index, 9, (BUILT_IN,)), collection=f"number {index}") for index in range(5))
    write_shards(made, tmp_path / "shards")
    return tmp_path / "shards"


@pytest.fixture
def alone(miniature: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One reader at one size."""
    monkeypatch.setattr(readers, "READERS", {"cnn": READERS["cnn"]})
    monkeypatch.setattr(readers, "FRAMINGS", {"tight": 32})


@pytest.mark.usefixtures("alone")
def test_the_same_seed_gives_the_same_reader(shards: Path, tmp_path: Path) -> None:
    """What it answers to the same numbers says which it is."""
    first, again, other = (readers.run(Settings(seed, tmp_path, shards, steps=2)).details for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("full", [False, True])
def test_all_multiply_equally_often(tmp_path: Path, full: bool) -> None:
    rows = []
    for name in ("compact", "cnn", "st_cnn_multi"):
        recipe, row = readers.plan(name, 64, Settings(0, tmp_path, full=full))
        rows.append(row["steps"] * recipe.schedule.batch_size * row["M multiplications"] * 1e6)
        assert (recipe.optimiser.name, recipe.schedule.batch_size) == (("sgd", 128) if full else ("adamw", 32))
    budget = readers.FULL_MULTIPLICATIONS if full else readers.MULTIPLICATIONS
    assert rows == pytest.approx([budget] * len(rows), rel=0.05)


@pytest.mark.usefixtures("alone")
def test_shards_take_the_place_of_synthetic_numbers(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned_from: list[list[str]] = []
    train = loop.train

    def noted(recipe: Recipe, training: list[Sample], *others: Any, **options: Any) -> Path:
        learned_from.append([sample.collection for sample in training])
        return train(recipe, training, *others, **options)

    monkeypatch.setattr(loop, "train", noted)
    read = readers.run(Settings(0, tmp_path, shards, steps=1)).details["tight"]["cnn"]
    assert learned_from == [["number 0", "number 1", "number 2"]]
    assert list(read) == ["number 3", "number 4"]
    result = experiment("readers", "--data", collection(tmp_path / "no-shards", "1"), "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "no-shards" in result.output


def test_framing_follows_the_number_and_ends_with_the_photograph() -> None:
    photograph = plain("12", (200, 100))
    sample = Sample(photograph, "12", Region(0, 0, 10, 10), "s", "c", Region(90, 40, 20, 20))
    assert framed(sample, loosely=False).region == Region(87, 37, 26, 26)
    assert framed(sample, loosely=True).region == Region(74, 24, 52, 52)
    wide = Sample(photograph, "12", Region(20, 0, 160, 100), "s", "c")
    assert framed(wide, loosely=False).region == wide.region
    assert framed(wide, loosely=True).region == Region(0, 0, 200, 100)
    assert framed(Sample(b"nothing", "1", None, "s", "c"), loosely=True).region is None


names = st.text("abcdef", min_size=1, max_size=2)
points = st.dictionaries(names, st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1)


@given(points=points)
def test_nothing_beats_the_front(points: dict[str, tuple[float, float]]) -> None:
    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a != b and a[0] <= b[0] and a[1] >= b[1]

    best = front(points)
    for name, point in points.items():
        assert (name in best) == (not any(beats(other, point) for other in points.values()))
    assert [points[name][0] for name in best] == sorted(points[name][0] for name in best)


# -- invariance ------------------------------------------------------------------------------------------------------


def test_invariance_from_end_to_end(tmp_path: Path) -> None:
    """Of one colour all over, a photograph reads the same however it is turned; the twin reads everything wrong."""
    photographs = collection(tmp_path / "photographs", "12", "7", "345")
    model = write_artifact(tmp_path / "model.onnx")
    twin = write_artifact(tmp_path / "twin.onnx", tiny_metadata(alphabet=REVERSED).to_metadata_map())
    arguments = ("--collections", photographs, "--model", model, "--twin", twin)
    told = []
    for out in (tmp_path / "first", tmp_path / "again"):
        result = experiment("invariance", *arguments, "--out", out)
        assert result.exit_code == 0, result.output
        told.append(json.loads((out / "result.json").read_text())["seeds"])
    assert told[0] == told[1]
    figures = told[0][0]["figures"]
    for distortion in ("rotation", "scale", "shift", "shear"):
        assert figures[distortion] == {
            f"{a:g}": {"reader": 100, "reader, looking once": 100, "twin": 0} for a in DISTORTIONS[distortion]
        }
    assert figures["clutter"]["0"]["reader"] == 100
    assert figures["clutter"]["16"]["reader"] < 100
    for name in ("reader", "reader, looking once"):
        assert figures["lost"][name] == {"upright": 100, TURNED: 100, "lost": 0}
    assert told[0][0]["details"]["samples"] == 3
    first = tmp_path / "first"
    assert {path.name for path in first.iterdir()} == {"result.json", "table.md", "curves.png", "boxes.png"}
    assert "| -45 | 100.0 | 100.0 | 0.0 |" in (first / "table.md").read_text()


def test_the_reader_and_the_twin_that_come_along_read_a_number(tmp_path: Path) -> None:
    shutil.copy(EXAMPLE, tmp_path)
    (tmp_path / "labels.jsonl").write_text('{"file": "example.jpg", "label": "925", "collection": "examples"}\n')
    result = experiment("invariance", "--collections", tmp_path, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    (told,) = json.loads((tmp_path / "out" / "result.json").read_text())["seeds"]
    assert [told["details"][name]["reader"] for name in ("reader", "twin")] == ["compact_points", "compact_cnn"]
    assert told["figures"]["rotation"]["0"] == {"reader": 100, "reader, looking once": 100, "twin": 100}


def test_collections_without_a_number_are_refused(tmp_path: Path) -> None:
    model = write_artifact(tmp_path / "model.onnx")
    photographs = collection(tmp_path / "photographs", "1")
    (photographs / "labels.jsonl").write_text('{"file": "1.png", "label": "", "collection": "walls"}\n')
    result = experiment("invariance", "--collections", photographs, "--model", model, "--twin", model)
    assert result.exit_code == 2
    assert "no numbers to read" in result.output


def test_what_is_lost_is_the_mean_of_both_ways() -> None:
    def row(reader: float, once: float, twin: float) -> dict[str, float]:
        return {"reader": reader, "reader, looking once": once, "twin": twin}

    cells = lost({"-45": row(80, 91, 20), "0": row(90, 91, 80), "45": row(60, 81, 40)})
    assert cells["reader"] == {"upright": 90, TURNED: 70, "lost": 20, SHARE: pytest.approx(0.4)}
    assert cells["reader, looking once"] == {"upright": 91, TURNED: 86, "lost": 5, SHARE: pytest.approx(0.1)}
    assert cells["twin"] == {"upright": 80, TURNED: 30, "lost": 50}


def picture(height: int, width: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(("distortion", "neutral"), [("rotation", 0), ("scale", 1), ("shear", 0)])
def test_neutral_amounts_show_the_region_as_it_is(distortion: str, neutral: float) -> None:
    pixels = picture(40, 60)
    view = distort(pixels, Region(10, 8, 30, 20), distortion, neutral)
    np.testing.assert_array_equal(view, pixels[8:28, 10:40])


def test_a_quarter_turn_is_one() -> None:
    pixels = picture(20, 30)
    np.testing.assert_array_equal(distort(pixels, Region(0, 0, 30, 20), "rotation", 90), np.rot90(pixels))
    np.testing.assert_array_equal(distort(pixels, Region(0, 0, 30, 20), "rotation", -90), np.rot90(pixels, -1))


@pytest.mark.parametrize(("amount", "left", "top"), [(0.0, 15, 10), (0.5, 30, 20), (-0.5, 0, 0)])
def test_a_shifted_region_is_whole_in_a_view_of_twice_its_size(amount: float, left: int, top: int) -> None:
    pixels = picture(20, 30)
    view = distort(pixels, Region(0, 0, 30, 20), "shift", amount)
    assert view.shape == (40, 60, 3)
    np.testing.assert_array_equal(view[top : top + 20, left : left + 30], pixels)


def test_around_a_region_there_is_the_photograph_and_then_its_edge() -> None:
    pixels = np.full((60, 60, 3), 10, np.uint8)
    pixels[20:40, 20:40] = 200
    view = distort(pixels, Region(20, 20, 20, 20), "scale", 0.25)
    assert view.shape == (20, 20, 3)
    assert (view[8:12, 8:12] == 200).all()
    assert (view[:5] == 10).all()


@given(height=st.integers(1, 40), width=st.integers(1, 40), count=st.integers(0, 20), seed=st.integers(0, 99))
def test_clutter_leaves_the_middle_free(height: int, width: int, count: int, seed: int) -> None:
    view = np.zeros((4 * height, 4 * width, 3), np.uint8)
    clutter(view, [np.full((3, 5, 3), 255, np.uint8)], count, np.random.default_rng(seed))
    assert not view[height : 3 * height, width : 3 * width].any()
    assert view.any() == (count > 0)


def test_photographs_that_do_not_decode_are_passed_on() -> None:
    broken = Sample(b"nothing", "12", None, "broken", "c")
    whole = Sample(plain("7", (30, 20)), "7", None, "whole", "c")
    given = list(distorted([broken, whole], 0))
    amounts = sum(map(len, DISTORTIONS.values()))
    assert [sample.image for sample in given[:amounts]] == [b"nothing"] * amounts
    assert [sample.collection for sample in given[:amounts]] == [sample.collection for sample in given[amounts:]]
    assert {Photo.open(sample.image, max_pixels=10**6).format for sample in given[amounts:]} == {"PNG"}
