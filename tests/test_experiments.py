"""`housenumber experiment`: the digit experiments through the command, and what their digits are made by."""

from __future__ import annotations

import gzip
import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from lecture import Array, double_sum, projective_map, thin_plate_map, through
from matplotlib.patches import Polygon
from numpy.typing import NDArray
from torch import Tensor

from housenumber.cli import main
from models.experiments import distorted_digits, report, sampling, stacking, two_digits
from models.experiments.cost import Cost
from models.experiments.digits import Digits, load_digits
from models.experiments.distorted_digits import DEFAULTS, MODELS
from models.experiments.distortions import (
    DISTORTIONS,
    RTS_SIDE,
    bend,
    clutter,
    homography,
    placed,
    project,
    rotate,
    warp,
)
from models.experiments.experiment import Experiment, ExperimentError, Settings, Table, correlation
from models.experiments.experiment import Result as Figures
from models.experiments.networks import DigitNetwork, cnn, convolutional_localisation, fitted, point_localisation
from models.experiments.sampling import SmallDigits, moved
from models.experiments.stacking import BETWEEN, COMPOSED, ROW, Stack, compose
from models.experiments.training import Budget, answers, built, held_out, plan, train
from models.readers.compact import POSITION_SCALE
from models.readers.paper import Localisation
from models.thin_plate import ThinPlateSpline
from models.transformations import AFFINE, Projective, Rotation, Similarity
from models.transformer import tiles

Bytes = NDArray[np.uint8]

COUNT = 20
"""Of the stand-in digits."""
SEGMENTS = ("abcdef", "bc", "abged", "abgcd", "fgbc", "afgcd", "afgedc", "abc", "abcdefg", "abfgcd")
STROKES = {
    "a": (4, 7, 8, 20),
    "b": (4, 15, 17, 20),
    "c": (13, 24, 17, 20),
    "d": (21, 24, 8, 20),
    "e": (13, 24, 8, 11),
    "f": (4, 15, 8, 11),
    "g": (12, 15, 8, 20),
}


def stand_ins() -> tuple[Bytes, Bytes]:
    """Seven-segment digits, a little different each: uint8 `[COUNT, 28, 28]` and labels."""
    rng = np.random.default_rng(0)
    labels = (np.arange(COUNT) % 10).astype(np.uint8)
    images = np.zeros((COUNT, 28, 28), np.uint8)
    for image, label in zip(images, labels, strict=True):
        for segment in SEGMENTS[label]:
            top, bottom, left, right = STROKES[segment]
            image[top:bottom, left:right] = 255
        image[image > 0] -= rng.integers(0, 60, int((image > 0).sum()), np.uint8)
    return images, labels


def write_idx(path: Path, array: Bytes) -> None:
    """MNIST's format: two zero bytes, the type (8: bytes), how many dimensions, their sizes, the values."""
    header = bytes((0, 0, 8, array.ndim)) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    content = header + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    folder = tmp_path / "mnist"
    folder.mkdir()
    images, labels = stand_ins()
    write_idx(folder / "t10k-images-idx3-ubyte.gz", images)
    write_idx(folder / "t10k-labels-idx1-ubyte", labels)
    return folder


@pytest.fixture
def digits() -> Tensor:
    """Float `[COUNT, 1, 28, 28]`."""
    return torch.from_numpy(stand_ins()[0]).unsqueeze(1).float() / 255


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["experiment", *map(str, arguments)])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("name", "tables"),
    [
        ("distorted-digits", {"error", "ratio", "parameters", "multiplications"}),
        ("two-digits", {"error", "ratio", "boxes", "cost"}),
        ("stacking", {"error"}),
        ("sampling", {"error"}),
    ],
)
def test_an_experiment_leaves_figures_tables_and_pictures_that_its_seed_decides(
    mnist: Path, tmp_path: Path, name: str, tables: set[str]
) -> None:
    twice, once = tmp_path / "twice", tmp_path / "once"
    result = call(name, "--data", mnist, "--steps", 1, "--seeds", 2, "--out", twice)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(twice / "table.md")
    assert {path.name for path in twice.iterdir()} == {"result.json", "table.md", "boxes.png"}
    told = json.loads((twice / "result.json").read_text())
    assert [run["seed"] for run in told["seeds"]] == [0, 1]
    assert all(set(run["figures"]) == tables for run in told["seeds"])
    more_cells = {"all": False} if name in ("distorted-digits", "two-digits") else {}
    assert told["settings"] == {"full": False, "steps": 1, "data": str(mnist)} | more_cells
    assert {"housenumber", "torch", "numpy", "python"} <= set(told["versions"])
    table = (twice / "table.md").read_text()
    assert "--steps 1, 2 seeds" in table
    assert "Of MNIST's 20 test digits 16 to learn from" in table

    assert call(name, "--data", mnist, "--steps", 1, "--out", once).exit_code == 0
    assert json.loads((once / "result.json").read_text())["seeds"] == told["seeds"][:1]
    assert told["seeds"][0]["details"] != told["seeds"][1]["details"]


@pytest.mark.parametrize(
    ("name", "rows", "columns"),
    [
        ("distorted-digits", tuple(MODELS), tuple(DISTORTIONS)),
        ("two-digits", tuple(two_digits.MODELS), two_digits.COLUMNS),
    ],
)
def test_all_cells_can_be_trained_at_the_default_budget(
    mnist: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    rows: tuple[str, ...],
    columns: tuple[str, ...],
) -> None:
    for module in (distorted_digits, two_digits):
        monkeypatch.setattr(module, "PARAMETERS", 40_000)
    result = call(name, "--data", mnist, "--steps", 1, "--all", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    told = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (told["settings"]["full"], told["settings"]["all"]) == (False, True)
    figures = told["seeds"][0]["figures"]["error"]
    assert {row: tuple(cells) for row, cells in figures.items()} == dict.fromkeys(rows, columns)
    assert "--steps 1, all cells, 1 seed" in (tmp_path / "out" / "table.md").read_text()


def test_experiments_without_more_cells_refuse_to_train_all(mnist: Path) -> None:
    result = call("stacking", "--data", mnist, "--all")
    assert result.exit_code == 2
    assert "stacking takes no --all" in result.output


def test_nearest_sampling_leaves_the_boxes_where_they_start(mnist: Path, tmp_path: Path) -> None:
    assert call("sampling", "--data", mnist, "--steps", 3, "--out", tmp_path / "out").exit_code == 0
    figures = json.loads((tmp_path / "out" / "result.json").read_text())["seeds"][0]["figures"]["error"]
    boxes_moved = {row: cells["boxes moved"] for row, cells in figures.items()}
    assert boxes_moved["nearest, anti-aliased"] == boxes_moved["nearest, one sample"] == 0
    assert boxes_moved["bilinear, anti-aliased"] > 0 < boxes_moved["bilinear, one sample"]


# What goes wrong


def test_without_a_terminal_each_network_is_a_line_of_the_log_as_soon_as_it_is_trained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def run(settings: Settings) -> Figures:
        list(settings.track(20, "a first network"))
        assert "a first network" in (told := capsys.readouterr().err)
        assert "20/20" in told
        list(settings.track(30, "a second network"))
        raise ExperimentError(capsys.readouterr().err)

    monkeypatch.setattr(sampling, "EXPERIMENT", replace(sampling.EXPERIMENT, run=run))
    with pytest.raises(click.UsageError) as told:
        main(["experiment", "sampling", "--out", str(tmp_path)], standalone_mode=False)
    assert "a first network" not in told.value.message
    assert "30/30" in told.value.message


def test_the_digits_have_to_be_given() -> None:
    result = call("stacking")
    assert result.exit_code == 2
    assert "give --data" in result.output


@pytest.mark.parametrize("name", ["t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte"])
def test_a_missing_file_is_named(mnist: Path, name: str) -> None:
    (mnist / name).unlink()
    with pytest.raises(ExperimentError, match=name.removesuffix(".gz")):
        load_digits(mnist)


@pytest.mark.parametrize("content", [b"", b"no gzip", gzip.compress(b"no idx file"), gzip.compress(b"")[:-4]])
def test_a_broken_file_is_named(mnist: Path, content: bytes) -> None:
    (mnist / "t10k-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(ExperimentError, match=r"t10k-images-idx3-ubyte\.gz"):
        load_digits(mnist)


def test_images_and_labels_have_to_be_as_many(mnist: Path) -> None:
    write_idx(mnist / "t10k-labels-idx1-ubyte", np.zeros(COUNT - 1, np.uint8))
    with pytest.raises(ExperimentError, match="not as many"):
        load_digits(mnist)


# The digits and their split


def test_the_test_files_alone_are_split_without_overlap_and_always_alike(mnist: Path) -> None:
    images, labels = stand_ins()
    split = load_digits(mnist)
    assert (len(split.training), len(split.test)) == (16, 4)
    found = torch.cat((split.training.images, split.test.images)).numpy()
    assert sorted(image.tobytes() for image in found) == sorted(image.tobytes() for image in images)
    by_content = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    for part in (split.training, split.test):
        assert [by_content[image.numpy().tobytes()] for image in part.images] == part.labels.tolist()
    again = load_digits(mnist)
    assert torch.equal(split.training.images, again.training.images)


def test_the_official_split_is_kept_where_it_is_there(mnist: Path) -> None:
    images, labels = stand_ins()
    write_idx(mnist / "train-images-idx3-ubyte", images[:7])
    write_idx(mnist / "train-labels-idx1-ubyte", labels[:7])
    split = load_digits(mnist)
    assert split.training.labels.tolist() == labels[:7].tolist()
    assert split.test.labels.tolist() == labels.tolist()
    pixels, _ = split.test[torch.tensor([3])]
    np.testing.assert_allclose(pixels[0, 0].numpy(), images[3] / 255)


# The distortions, against what is worked out another way


@pytest.mark.parametrize("turns", [-1, 1, 2])
def test_quarter_turns_are_exact_and_anticlockwise(digits: Tensor, turns: int) -> None:
    theta = torch.full((COUNT, 1), turns * math.pi / 2)
    turned = warp(digits, Rotation(), theta, 28)
    np.testing.assert_allclose(turned.numpy(), np.rot90(digits.numpy(), turns, axes=(2, 3)), atol=1e-4)
    same = warp(digits, Similarity(), placed(theta[:, 0], torch.ones(COUNT), torch.zeros(COUNT, 2), 28), 28)
    np.testing.assert_allclose(same.numpy(), turned.numpy(), atol=1e-4)


def test_a_digit_is_copied_to_where_its_centre_is_put(digits: Tensor) -> None:
    centre = torch.tensor([[5.0, -3.0]]).expand(COUNT, 2) * 2 / RTS_SIDE
    moved_digits = warp(digits, Similarity(), placed(torch.zeros(COUNT), torch.ones(COUNT), centre, RTS_SIDE), RTS_SIDE)
    expected = np.zeros((COUNT, 1, RTS_SIDE, RTS_SIDE))
    # (42 - 28) / 2 = 7 pixels on each side, and 5 to the right, 3 up.
    expected[:, :, 4 : 4 + 28, 12 : 12 + 28] = digits
    np.testing.assert_allclose(moved_digits.numpy(), expected, atol=1e-4)


def test_a_digit_at_twice_the_scale_covers_four_times_the_area(digits: Tensor) -> None:
    theta = placed(torch.zeros(COUNT), torch.full((COUNT,), 2.0), torch.zeros(COUNT, 2), 56)
    large = warp(digits, Similarity(), theta, 56)
    np.testing.assert_allclose(large.sum(dim=(1, 2, 3)), 4 * digits.sum(dim=(1, 2, 3)), rtol=1e-3)
    rows = np.flatnonzero(large[8, 0].numpy().max(axis=1) > 0.5)
    # An 8 reaches from row 4 up to 24, so from 8 up to 48.
    assert (rows[0], rows[-1]) == (8, 47)


def test_a_homography_takes_any_four_corners_to_the_square() -> None:
    quadrilateral = torch.tensor([[-0.9, -0.5], [0.6, -0.8], [0.7, 0.9], [-0.4, 0.6]])
    theta = homography(quadrilateral[None])
    sent = through(projective_map(theta[0].double().numpy()), quadrilateral.double().numpy())
    np.testing.assert_allclose(sent, [[-1, -1], [1, -1], [1, 1], [-1, 1]], atol=1e-5)


def reference(digit: Tensor, points: Array) -> Array:
    """The lecture's double sum at normalised points `[H, W, 2]`."""
    x, y = (((points[..., axis] + 1) * 28 - 1) / 2 for axis in (0, 1))
    return double_sum(digit.double().numpy(), x, y)


@pytest.mark.parametrize(
    ("transformation", "path"), [(Projective(), projective_map), (ThinPlateSpline(4), thin_plate_map)]
)
def test_warping_looks_through_the_map_from_the_new_image_to_the_digit(
    digits: Tensor, transformation: Projective | ThinPlateSpline, path: type
) -> None:
    start = torch.tensor(transformation.closest_to(((1.2, 0.1, 0.1), (-0.2, 1.1, 0.0))))
    theta = (start + 0.05 * torch.randn(start.shape, generator=generator())).reshape(1, *transformation.shape)
    ticks = (2 * np.arange(28) + 1) / 28 - 1
    points = np.stack(np.meshgrid(ticks, ticks), axis=-1)
    expected = reference(digits[3], through(path(theta[0].double().numpy()), points))
    np.testing.assert_allclose(warp(digits[3:4], transformation, theta, 28)[0].numpy(), expected, atol=1e-3)


@pytest.mark.parametrize("name", list(DISTORTIONS))
def test_a_distortion_follows_from_its_seed_and_keeps_the_digit(digits: Tensor, name: str) -> None:
    distortion = DISTORTIONS[name]
    first, again, other = (distortion.distort(digits, generator(seed)) for seed in (3, 3, 4))
    assert first.shape == (COUNT, 1, distortion.side, distortion.side)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert 0 <= float(first.min()) <= float(first.max()) <= 1 + 1e-5
    assert not torch.equal(first[0], first[10]), "two of the same digit are distorted alike"
    seen = first.sum(dim=(1, 2, 3)) / digits.sum(dim=(1, 2, 3))
    # Scaled to at least 0.7 of each side, so to half the area; corners moved far may leave less of one or two.
    assert float(seen.median()) > 0.4
    assert float(seen.min()) > 0.03


def test_rotated_digits_turn_by_up_to_ninety_degrees_either_way() -> None:
    bar = torch.zeros(400, 1, 28, 28)
    # From the centre upwards: its centre of mass tells the angle.
    bar[:, :, 4:14, 13:15] = 1
    turned = rotate(bar, generator())[:, 0]
    ticks = torch.arange(28) - 13.5
    x, y = (turned * ticks).sum(dim=(1, 2)), (turned * ticks[:, None]).sum(dim=(1, 2))
    angles = torch.rad2deg(torch.atan2(-x, -y))
    assert -90.5 < float(angles.min()) < -80
    assert 80 < float(angles.max()) < 90.5
    assert abs(float(angles.mean())) < 8


def test_bent_and_projected_digits_are_scaled_down_and_moved_as_far_as_the_paper_says() -> None:
    """Of a full square: on average its area is that of the scaled one, however its corners are moved."""
    square = torch.ones(500, 1, 28, 28)
    for distort in (project, bend):
        share = distort(square, generator()).mean(dim=(1, 2, 3))
        # The mean of s^2 for s between 0.75 and 1 is 0.77; what is moved out of the image is lost.
        assert 0.66 < float(share.mean()) < 0.84
        assert float(share.std()) > 0.05


def test_clutter_keeps_the_digit_and_adds_at_most_six_patches(digits: Tensor) -> None:
    cluttered = clutter(digits, generator())[:, 0].numpy()
    for image, digit in zip(cluttered, digits[:, 0].numpy(), strict=True):
        at = [
            (row, column)
            for row in range(33)
            for column in range(33)
            if (image[row : row + 28, column : column + 28] >= digit).all()
        ]
        assert at, "the digit is not there as it was"
        row, column = at[0]
        beside = image.copy()
        beside[row : row + 28, column : column + 28] = 0
        assert (beside > 0).sum() <= 6 * 36
    assert (cluttered > 0).sum() > (digits > 0).sum().item()


# Two digits


def test_two_digits_lie_where_their_centres_say(digits: Tensor) -> None:
    dots = torch.zeros(COUNT, 1, 28, 28)
    dots[:, :, 13:15, 13:15] = 1
    channels, centres = two_digits.in_two_channels(dots, dots, generator())
    ticks = (2 * torch.arange(RTS_SIDE) + 1) / RTS_SIDE - 1
    mass = channels.sum(dim=(2, 3))
    found = torch.stack(((channels * ticks).sum(dim=(2, 3)), (channels * ticks[:, None]).sum(dim=(2, 3))), dim=-1)
    torch.testing.assert_close(found / mass.unsqueeze(-1), centres, atol=0.03, rtol=0)
    image, centres = two_digits.in_one_image(digits, digits, generator())
    assert image.shape == (COUNT, 1, 60, 60)
    assert (centres[:, 0, 0] < 0).all()
    assert (centres[:, 1, 0] > 0).all()


@pytest.mark.parametrize("place", list(two_digits.PLACES))
def test_two_digits_are_read_in_order_or_added(mnist: Path, place: str) -> None:
    test = load_digits(mnist).training
    index = torch.arange(8)
    images, read = two_digits.draw(place, "read", test, index, generator())
    same, added = two_digits.draw(place, "added", test, index, generator())
    assert torch.equal(images, same)
    assert torch.equal(read[:, 0], test.labels[:8])
    assert torch.equal(read.sum(dim=1), added)


def test_a_box_follows_the_digit_that_it_moves_with() -> None:
    centres = torch.randn(50, 2, 2, generator=generator()) * 0.3
    square = torch.tensor([[-0.3, -0.3], [0.3, -0.3], [0.3, 0.3], [-0.3, 0.3]])
    outlines = centres.flip(1).unsqueeze(2) + square
    figures = two_digits.followed(outlines, centres)
    assert figures["box 1 with digit 2"] == pytest.approx(100, abs=0.01)
    assert figures["box 2 with digit 1"] == pytest.approx(100, abs=0.01)
    assert abs(figures["box 1 with digit 1"]) < 40
    assert correlation(torch.zeros(50, 2), centres[:, 0]) == 0


# The networks


def test_a_network_is_as_wide_as_its_parameters_allow() -> None:
    for parameters in (20_000, 100_000):
        width = next(p for p in fitted(lambda width: cnn(1, 28, width), parameters).parameters()).shape[0]
        counts = [sum(p.numel() for p in cnn(1, 28, w).parameters()) for w in (width, width + 1)]
        assert counts[0] <= parameters < counts[1]


@pytest.mark.parametrize("name", list(DISTORTIONS))
def test_the_networks_of_a_comparison_have_about_as_many_parameters(name: str) -> None:
    distortion = DISTORTIONS[name]
    costs = {
        model: Cost.of(MODELS[model].network(distortion, 100_000), 1, distortion.side, distortion.side)
        for model in MODELS
    }
    assert all(92_000 <= cost.parameters <= 100_000 for cost in costs.values())
    # And where the transformer zooms out, it is what saves the multiplications.
    if distortion.side > 28:
        assert costs["ST-CNN affine"].multiplications * 4 < costs["CNN"].multiplications


@pytest.mark.parametrize("name", DISTORTIONS)
def test_the_default_budget_has_its_own_localisation_and_start(name: str) -> None:
    distortion, default = DISTORTIONS[name], DEFAULTS[name]
    networks = [MODELS["ST-CNN TPS"].network(distortion, 100_000, choice) for choice in (None, default)]
    paper, own = (Cost.of(network, 1, distortion.side, distortion.side).parameters for network in networks)
    assert paper == pytest.approx(own, rel=0.08)
    half = 0.5 if name == "cluttered" else 1.0
    for network, side in zip(networks, (1.0, half), strict=True):
        outline = network(torch.rand(2, 1, distortion.side, distortion.side))[1][:, 0]
        torch.testing.assert_close(outline.abs().amax(dim=(1, 2)), torch.full((2,), side))
    assert MODELS["CNN"].network(distortion, 100_000, default).transformers is None
    connected = MODELS["ST-FCN affine"].network(distortion, 100_000, default).transformers
    assert connected is not None
    assert not any(isinstance(layer, torch.nn.Conv2d) for layer in connected.localisation.modules())


def test_the_default_budget_normalises_every_convolution_and_the_full_one_none(tmp_path: Path) -> None:
    for full in (False, True):
        settings = Settings(0, tmp_path, full=full)
        network = built(lambda: DigitNetwork(cnn, 8, 1, 28, convolutional_localisation), settings)
        kinds = [type(layer).__name__ for layer in network.modules()]
        assert kinds.count("Conv2d") == 4
        assert kinds.count("BatchNorm2d") == (0 if full else 4)
        behind = [after for kind, after in pairwise(kinds) if kind == "Conv2d"]
        assert set(behind) == {"ReLU" if full else "BatchNorm2d"}


@pytest.mark.parametrize("place", two_digits.PLACES)
@pytest.mark.parametrize("localisation", [convolutional_localisation, point_localisation])
def test_networks_for_two_digits_have_about_as_many_parameters(place: str, localisation: Localisation) -> None:
    channels, side, _ = two_digits.PLACES[place]
    networks = [
        two_digits.two_digit_network(place, "read", family, 100_000, localisation)
        for family in two_digits.MODELS.values()
    ]
    assert all(92_000 <= Cost.of(network, channels, side, side).parameters <= 100_000 for network in networks)


def test_points_move_with_the_digit(digits: Tensor) -> None:
    """Points on what is brightest move as far as the digit does: 8 of 60 pixels are 2 of the map's 9 places."""
    localisation, features = point_localisation(1, 60)
    canvas = torch.zeros(1, 1, 60, 60)
    canvas[..., 8:36, 8:36] = digits[:1]
    with torch.no_grad():
        for parameter in localisation.parameters():
            parameter.fill_(1.0)
        before, after = (localisation(image) for image in (canvas, canvas.roll((8, 16), (2, 3))))
    assert before.shape == (1, features)
    moved = ((after - before)[0, 20:] / POSITION_SCALE).reshape(-1, 2)
    torch.testing.assert_close(moved, torch.tensor([8 / 9, 4 / 9]).expand(8, 2), atol=1e-5, rtol=0)


def test_an_untrained_transformer_shows_the_classifier_the_whole_image(digits: Tensor) -> None:
    torch.manual_seed(0)
    network = DigitNetwork(cnn, 8, 1, 28, convolutional_localisation)
    logits, outlines = network(digits)
    torch.testing.assert_close(logits, network.classifier(digits), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(outlines[0, 0], torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]))
    two = DigitNetwork(cnn, 8, 1, 28, convolutional_localisation, AFFINE, tiles(1, 2))
    assert two(digits)[1].shape == (COUNT, 2, 4, 2)


def shaken(kind: str, amount: float = 0.1) -> Stack:
    """A stack whose transformers all do something."""
    torch.manual_seed(1)
    network = Stack(kind, 4).eval()
    with torch.no_grad():
        for transformer in network.transformers:
            transformer.to_theta.bias.add_(amount * torch.randn(6))  # type: ignore[union-attr, operator]
            transformer.to_theta.weight.add_(0.02 * torch.randn(6, 20))  # type: ignore[union-attr, operator]
    return network


def test_affine_maps_compose_as_their_matrices_do() -> None:
    outer, inner = torch.randn(2, 5, 2, 3, generator=generator())
    last = torch.tensor([0.0, 0.0, 1.0]).expand(5, 1, 3)
    expected = torch.cat((outer, last), dim=1) @ torch.cat((inner, last), dim=1)
    torch.testing.assert_close(compose(outer, inner), expected[:, :2])


def test_composed_transformers_are_one_and_those_with_layers_between_are_not(digits: Tensor) -> None:
    apart = {}
    for kind in (ROW, BETWEEN, COMPOSED):
        network = shaken(kind)
        with torch.inference_mode():
            logits, boxes = network(digits)
            network.as_one = True
            as_one, same_boxes = network(digits)
        apart[kind] = float((logits - as_one).abs().max() / logits.std())
        if kind != BETWEEN:
            torch.testing.assert_close(boxes, same_boxes)
    assert apart[COMPOSED] == 0
    assert apart[ROW] > 1e-3, "four resamplings blur"
    assert apart[BETWEEN] > 1e-3


def test_smooth_images_are_the_same_through_four_in_a_row_and_through_their_product() -> None:
    """But for the blur, which a smooth image hardly shows: what is in the row is one affine map."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 28), torch.linspace(-1, 1, 28), indexing="ij")
    smooth = torch.exp(-4 * ((x - 0.1) ** 2 + 2 * (y + 0.1) ** 2))[None, None]
    network = shaken(ROW, 0.03)
    with torch.inference_mode():
        seen, whole = smooth, None
        for transformer in network.transformers:
            theta = transformer.locate(seen)  # type: ignore[operator]
            seen = transformer.sample(seen, theta)  # type: ignore[operator]
            whole = theta if whole is None else compose(whole, theta)
        at_once = transformer.sample(smooth, whole)  # type: ignore[operator]
    assert float((seen - at_once).abs().max()) < 0.2 * float((seen - smooth).abs().max())


# Training and measuring


def test_a_network_learns_the_same_from_the_same_seed_and_learns(mnist: Path) -> None:
    split = load_digits(mnist)

    def draw(digits: Digits, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return digits[index]

    images, labels = held_out(split.training, draw)
    assert len(images) == 3 * len(split.training)

    def wrong(seed: int, steps: int) -> tuple[float, list[float]]:
        settings = Settings(seed, mnist, steps=steps)
        network = built(lambda: DigitNetwork(cnn, 12, 1, 28), settings)
        train(network, split.training, draw, settings, Budget(1), "")
        return answers(network, images, labels).wrong, [float(p.detach().sum()) for p in network.parameters()]

    assert wrong(0, 2) == wrong(0, 2)
    assert wrong(0, 2)[1] != wrong(1, 2)[1]
    assert wrong(0, 120)[0] < 20 < wrong(0, 1)[0]


def test_the_full_budget_is_the_papers(tmp_path: Path) -> None:
    budget = Budget(7, learning_rate=0.5, localisation_factor=0.25, weight_decay=0.125)
    optimiser, schedule = plan(Settings(0, tmp_path, full=True), budget)
    assert (optimiser.name, optimiser.learning_rate, optimiser.weight_decay) == ("sgd", 0.01, 0.0)
    assert (schedule.steps, schedule.batch_size, schedule.step_every) == (150_000, 256, 50_000)
    assert optimiser.localisation_factor == 0.1
    assert plan(Settings(0, tmp_path, full=True, steps=3), budget)[1].steps == 3


def test_the_default_budget_is_the_experiments_own(tmp_path: Path) -> None:
    budget = Budget(7, learning_rate=0.5, localisation_factor=0.25, weight_decay=0.125)
    optimiser, schedule = plan(Settings(0, tmp_path), budget)
    assert (optimiser.learning_rate, optimiser.localisation_factor, optimiser.weight_decay) == (0.5, 0.25, 0.125)
    assert schedule.steps == 7


def test_an_answer_is_right_when_all_of_it_is() -> None:
    logits = torch.eye(10)[torch.tensor([[1, 2], [1, 3], [4, 2], [1, 2]])]

    class Fixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = torch.nn.Parameter(torch.zeros(1))

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            return logits, images

    assert answers(Fixed(), torch.zeros(4, 1), torch.tensor([[1, 2]]).expand(4, 2)).wrong == 50


def test_corners_that_moved_are_measured_in_shares_of_the_image() -> None:
    start = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]).expand(3, 1, 4, 2)
    assert moved(start) == 0
    assert moved(start + torch.tensor([0.6, 0.8])) == pytest.approx(50)
    with torch.inference_mode():
        assert moved(SmallDigits("nearest", 1, 4)(torch.zeros(2, 1, RTS_SIDE, RTS_SIDE))[1]) == 0


# The report


def test_a_table_shows_mean_and_spread_beside_the_papers_figures() -> None:
    table = Table("error", "Error, %", ("R", "P", "E"), {"CNN": {"R": 1.2, "P": 1.5}})
    runs = [
        Figures({"error": {"CNN": {"R": 2.0, "P": 1.0}, "ST": {"R": 1.0}, "none": {}}}),
        Figures({"error": {"CNN": {"R": 4.0, "P": 1.0}, "ST": {"R": 1.5}, "none": {}}}),
    ]
    assert report.markdown(table, runs)[2:] == [
        "| | R | P |",
        "|---|---|---|",
        "| CNN | 3.0 ± 1.4 (1.2) | 1.0 (1.5) |",
        "| ST | 1.2 ± 0.4 | - |",
    ]
    assert report.markdown(table, runs[:1])[4] == "| CNN | 2.0 (1.2) | 1.0 (1.5) |"
    with pytest.raises(ValueError, match="no column X"):
        report.markdown(table, [Figures({"error": {"CNN": {"X": 1.0}}})])


@pytest.mark.parametrize("module", [distorted_digits, two_digits, stacking])
def test_the_papers_figures_stand_where_ours_do(module: object) -> None:
    found = module.EXPERIMENT  # type: ignore[attr-defined]
    assert isinstance(found, Experiment)
    for table in found.tables:
        assert {column for row in table.published.values() for column in row} <= set(table.columns)


def test_boxes_are_drawn_over_grey_and_coloured_images() -> None:
    square = torch.tensor([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]]).expand(2, 1, 4, 2)
    rows = {
        "grey": report.examples(torch.rand(2, 1, 8, 8), square),
        "two channels": report.examples(torch.rand(2, 2, 8, 6), square.expand(2, 2, 4, 2)),
    }
    figure = report.gallery(rows)
    drawn = [[tuple(patch.get_xy()[0]) for patch in axes.patches if isinstance(patch, Polygon)] for axes in figure.axes]
    assert drawn == [[(2.0, 2.0)]] * 2 + [[(1.5, 2.0)] * 2] * 2
