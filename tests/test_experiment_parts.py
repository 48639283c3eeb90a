"""`housenumber experiment parts`: the birds, the networks, and what is said of where they look."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from cub_files import SPECIES, write_cub

from housenumber.cli import main
from models.experiments import bird_tasks, birds, parts
from models.experiments.bird_tasks import Task, drawn_birds, photographed_birds
from models.experiments.birds import PLUMAGES, SIDE, draw_bird
from models.experiments.cost import Cost
from models.experiments.experiment import ExperimentError, Settings
from models.experiments.parts import NETWORKS, PartsNetwork, follows, overlap


def experiment(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["experiment", "parts", *map(str, arguments)])


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bird_tasks, "DRAWN_BATCH_SIZE", 4)
        return drawn_birds(Settings(0, tmp_path_factory.mktemp("out"), steps=1))


# -- birds -----------------------------------------------------------------------------------------------------------


def test_a_bird_follows_from_seed_and_index() -> None:
    image, label, places = draw_bird(3, 5)
    again = draw_bird(3, 5)
    np.testing.assert_array_equal(image, again[0])
    np.testing.assert_array_equal(places, again[2])
    assert label == again[1]
    assert (draw_bird(3, 6)[0] != image).any()
    assert (draw_bird(4, 5)[0] != image).any()


def test_head_and_body_bear_the_bars_of_their_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """Around each part's middle, the strongest wave of the image runs as the plumage says."""
    monkeypatch.setattr(birds, "NOISE", 0.0)
    seen = set()
    for index in range(40):
        image, label, places = draw_bird(1, index)
        for part, plumage in enumerate(divmod(label, PLUMAGES)):
            x, y = ((places[part] + 1) / 2 * SIDE).astype(int)
            patch = image[y - 5 : y + 5, x - 5 : x + 5].astype(float)
            spectrum = np.abs(np.fft.fft2((patch - patch.mean()) * np.outer(np.hanning(10), np.hanning(10)), (64, 64)))
            row, column = np.unravel_index(spectrum[:, :33].argmax(), (64, 33))
            angle = math.degrees(math.atan2(np.fft.fftfreq(64)[row], column / 64)) % 180
            wanted = 180 / PLUMAGES * plumage
            assert abs((angle - wanted + 90) % 180 - 90) < 20, (index, part)
            seen.add((part, plumage))
    assert len(seen) == 2 * PLUMAGES


def test_both_parts_are_in_the_image() -> None:
    places = np.stack([draw_bird(2, index)[2] for index in range(50)])
    assert np.abs(places).max() < 1 - 16 / SIDE
    assert np.linalg.norm(places[:, 0] - places[:, 1], axis=1).min() > 0.5
    # The head is on the left, so that of two windows each can have its part.
    assert (places[:, 0, 0] < places[:, 1, 0]).all()


def test_the_rim_of_a_part_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window between head and body sees rims, and learns nothing from them."""
    monkeypatch.setattr(birds, "NOISE", 0.0)
    monkeypatch.setattr(birds, "HEAD", (13.0, 13.0))
    rows, columns = np.mgrid[:SIDE, :SIDE] + 0.5
    for index in range(20):
        image, _, places = draw_bird(2, index)
        x, y = (places[0] + 1) / 2 * SIDE
        away = np.hypot(columns - x, rows - y)
        rim = image[(away > 13 * birds.MARKED + 1) & (away < 12)].astype(float)
        assert rim.std() < 1
        assert image[away < 13 * birds.MARKED - 1].std() > 25


# -- networks --------------------------------------------------------------------------------------------------------


def test_the_networks_multiply_about_as_often(task: Task) -> None:
    costs = [Cost.of(PartsNetwork(task, count), 1, SIDE, SIDE).multiplications for count in NETWORKS.values()]
    assert max(costs) < 1.1 * min(costs), costs


@pytest.mark.parametrize(
    ("count", "middles"),
    [
        (0, []),
        (1, [(0, 0)]),
        (2, [(-0.5, 0), (0.5, 0)]),
        (4, [(-0.5, -0.5), (0.5, -0.5), (-0.5, 0.5), (0.5, 0.5)]),
    ],
)
def test_windows_begin_as_tiles(task: Task, count: int, middles: list[tuple[float, float]]) -> None:
    logits, found = PartsNetwork(task, count).eval()(torch.rand(3, 1, SIDE, SIDE))
    assert logits.shape == (3, PLUMAGES**2)
    assert found.tolist() == [list(map(list, middles))] * 3


def test_a_window_shows_a_part_of_the_image_pixel_for_pixel(task: Task) -> None:
    network = PartsNetwork(task, 4)
    assert network.transformers is not None
    image = torch.rand(1, 1, SIDE, SIDE)
    windows, _ = network.transformers(image)
    low, high = SIDE // 4 - SIDE // 6, SIDE // 4 + SIDE // 6
    torch.testing.assert_close(windows[:, 2], image[:, :, -high:-low, low:high], atol=1e-5, rtol=0)


# -- figures ---------------------------------------------------------------------------------------------------------


def test_overlap_is_the_share_of_a_window() -> None:
    same = torch.zeros(5, 2, 2)
    assert overlap(same, 0.5) == 1
    beside = torch.tensor([[[-0.25, 0.0], [0.25, 0.0]]])
    assert overlap(beside, 0.5) == pytest.approx(0.5)
    assert overlap(beside, 0.25) == 0
    assert overlap(torch.tensor([[[0.0, 0.0], [0.5, 0.5], [2.0, 2.0]]]), 0.5) == pytest.approx((0.25 + 0 + 0) / 3)


def test_who_follows_which_part() -> None:
    places = torch.from_numpy(np.random.default_rng(0).uniform(-0.8, 0.8, (400, 2, 2))).float()
    head = follows(places[:, 0] + 0.05, places, 0.5)
    assert head["nearer to the head"] > 95
    assert head["holds the head"] == 100
    assert head["moves with the head"] == pytest.approx(100, abs=0.01)
    assert abs(head["moves with the body"]) < 15
    still = follows(torch.zeros(400, 2), places, 0.5)
    assert (still["moves with the head"], still["moves with the body"]) == (0, 0)
    assert still["holds the head"] == pytest.approx(100 * (0.5 / 0.8) ** 2, abs=10)


def test_what_cannot_be_seen_is_left_out() -> None:
    places = torch.zeros(4, 2, 2)
    places[0, 0] = math.nan
    middles = torch.tensor([[9.0, 9.0], [0, 0], [0, 0], [0, 0]])
    assert follows(middles, places, 0.5)["holds the head"] == 100
    assert follows(middles[:1], places[:1], 0.5) == {}


# -- the command -----------------------------------------------------------------------------------------------------


def test_drawn_birds_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bird_tasks, "DRAWN_BATCH_SIZE", 4)
    told = []
    for out, seeds in ((tmp_path / "first", 2), (tmp_path / "again", 1)):
        result = experiment("--steps", 2, "--seeds", seeds, "--out", out)
        assert result.exit_code == 0, result.output
        told.append(json.loads((out / "result.json").read_text())["seeds"])
        assert (out / "boxes.png").read_bytes().startswith(b"\x89PNG")
    assert told[0][:1] == told[1]
    first, second = (seed["figures"] for seed in told[0])
    assert first["accuracy"].keys() == NETWORKS.keys()
    assert len(first["followed"]) == 1 + 2 + 4
    assert first["followed"] != second["followed"]
    assert all(0 <= row["right"] <= min(row["head right"], row["body right"]) for row in first["accuracy"].values())
    table = (tmp_path / "first" / "table.md").read_text()
    assert "| none |" in table
    assert "(84.1)" in table


def test_photographs_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bird_tasks, "CUB_BATCH_SIZE", 2)
    monkeypatch.setattr(bird_tasks, "CUB_WIDTHS", (4,) * 5)
    monkeypatch.setattr(bird_tasks, "usable_cpus", lambda: 0)
    monkeypatch.setattr(parts, "NETWORKS", {"none": 0, "2 transformers": 2})
    folder = write_cub(tmp_path / "CUB_200_2011")
    out = tmp_path / "out"
    result = experiment("--data", folder, "--steps", 1, "--out", out)
    assert result.exit_code == 0, result.output
    told = json.loads((out / "result.json").read_text())
    assert told["settings"]["data"] == str(folder)
    accuracy = told["seeds"][0]["figures"]["accuracy"]
    assert "head right" not in accuracy["none"]
    assert accuracy["2 transformers"]["overlap"] >= 0


def test_the_papers_sizes(tmp_path: Path) -> None:
    made = photographed_birds(write_cub(tmp_path / "cub"), Settings(0, tmp_path))
    assert (made.side, made.classes, len(made.widths)) == (448, len(SPECIES), 4)
    assert round(made.side * made.window) == 224
    assert [len(part) for part in (made.training, made.test)] == [4, 2]  # type: ignore[arg-type]


def test_folders_that_will_not_do(tmp_path: Path) -> None:
    result = experiment("--data", tmp_path, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "images.txt" in result.output
    folder = write_cub(tmp_path / "cub")
    (folder / "train_test_split.txt").write_text("".join(f"{number} 1\n" for number in range(1, 7)))
    with pytest.raises(ExperimentError, match="no photographs to test"):
        photographed_birds(folder, Settings(0, tmp_path))


def test_options_that_are_of_no_use_are_refused(tmp_path: Path) -> None:
    result = experiment("--collections", tmp_path, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "parts takes no --collections" in result.output
