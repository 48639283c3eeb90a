"""Where a transformer is told to look, and framing anew around the number."""

import math
from dataclasses import astuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.boxes import input_boxes
from models.data.synthetic.fonts import BUILT_IN
from models.data.synthetic.render import render
from models.training.dataset import Views, framed, turned
from models.training.location import location_loss, wanted_window
from models.training.recipe import AugmentTable
from service.geometry import Region
from service.imaging import Photo

REGION = Region(10, 20, 200, 100)


def upright(x: float, y: float, half_x: float, half_y: float) -> torch.Tensor:
    """The window `[2, 3]` with that centre and those half sizes."""
    return torch.tensor([[half_x, 0, x], [0, half_y, y]], dtype=torch.float64)


def loss_of(theta: torch.Tensor, wanted: torch.Tensor) -> float:
    return location_loss(theta[None, None], wanted[None]).item()


def test_a_window_by_hand() -> None:
    # 60 x 20 pixels, 0.12 x 20 of room on each side: 64.8 x 24.8 around (110, 70), the centre of the region.
    assert wanted_window(Region(80, 60, 60, 20), REGION) == pytest.approx(upright(0, 0, 0.324, 0.248).numpy())
    # A single digit gets 1.5 times its height; its centre (20, 30) is 10 pixels from the region's corner.
    assert wanted_window(Region(19, 20, 2, 20), REGION) == pytest.approx(upright(-0.9, -0.8, 0.15, 0.248).numpy())
    assert np.isnan(wanted_window(None, REGION)).all()
    # A quarter turn anticlockwise: what was to the left of the centre is below it, and the window's own x points up.
    turned = wanted_window(Region(50, 60, 60, 20), REGION, math.pi / 2)
    assert turned == pytest.approx(np.array([[0, 0.124, 0], [-0.648, 0, 0.6]]), abs=1e-6)


@pytest.mark.parametrize("turn", [0.0, 0.7, -2.0])
def test_the_window_itself_has_no_loss_and_any_other_has(turn: float) -> None:
    wanted = torch.from_numpy(wanted_window(Region(80, 60, 60, 20), REGION, turn))
    assert loss_of(wanted, wanted) == pytest.approx(0, abs=1e-9)
    # In the window's own coordinates: moved either way, wider, less high.
    for change in (
        [[0, 0, 0.1], [0, 0, 0]],
        [[0, 0, 0], [0, 0, -0.1]],
        [[0.1, 0, 0], [0, 0, 0]],
        [[0, 0, 0], [0, -0.1, 0]],
    ):
        assert loss_of(wanted + wanted[:, :2] @ torch.tensor(change), wanted) > 0.001


@given(turn=st.floats(-math.pi, math.pi), half=st.floats(0.05, 0.8))
def test_only_the_rectangle_around_the_box_counts_for_an_upright_window(turn: float, half: float) -> None:
    """A turned square window fits its own bounding rectangle, at every angle."""
    c, s = math.cos(turn) * half, math.sin(turn) * half
    around = abs(c) + abs(s)
    theta = torch.tensor([[c, -s, 0.2], [s, c, -0.1]], dtype=torch.float64)
    assert loss_of(theta, upright(0.2, -0.1, around, around)) == pytest.approx(0, abs=1e-6)


@given(turn=st.floats(0.2, 1.3), away=st.floats(0.15, 1.2), sign=st.sampled_from([-1, 1]))
def test_of_a_turned_window_the_angle_counts_too(turn: float, away: float, sign: int) -> None:
    """The distance is at least that of both sides' sines: smooth L1 of sin(angle), twice."""

    def square(angle: float) -> torch.Tensor:
        c, s = math.cos(angle) * 0.3, math.sin(angle) * 0.3
        return torch.tensor([[c, s, 0], [-s, c, 0]], dtype=torch.float64)

    assert loss_of(square(turn + sign * away), square(turn)) >= 2 * (math.sin(away) - 0.05) - 1e-5


def test_errors_count_against_the_size_of_the_window() -> None:
    """A shift by half a window costs the same whether the window is large or small; in both it is beyond smoothing."""
    for half in (0.5, 0.05):
        assert loss_of(upright(half, 0, half, half), upright(0, 0, half, half)) == pytest.approx(1 - 0.05, abs=1e-5)


def test_images_whose_number_is_not_known_do_not_count() -> None:
    theta = torch.stack([upright(0.5, 0, 0.5, 0.5), upright(0.0, 0, 9, 9)]).unsqueeze(1)
    known = upright(0, 0, 0.5, 0.5)
    wanted = torch.stack((known, torch.full((2, 3), math.nan)))
    assert location_loss(theta, wanted).item() == pytest.approx(location_loss(theta[:1], known[None]).item())
    assert location_loss(theta, torch.full((2, 2, 3), math.nan)).item() == 0


def test_the_gradient_is_that_of_the_loss_and_reaches_every_transformer() -> None:
    torch.manual_seed(0)
    theta = torch.eye(2, 3, dtype=torch.float64).expand(3, 2, 2, 3) + 0.1 * torch.randn(3, 2, 2, 3).double()
    theta.requires_grad_()
    turned = torch.from_numpy(wanted_window(Region(80, 60, 60, 20), REGION, 0.5)).double()
    wanted = torch.stack([upright(0.1, 0.2, 0.3, 0.2), turned, torch.full((2, 3), math.nan)])
    loss = location_loss(theta, wanted)
    (gradient,) = torch.autograd.grad(loss, theta)
    assert gradient[:2].abs().amax(dim=(2, 3)).min() > 0
    assert gradient[2].abs().max() == 0
    # Downhill: a small step against the gradient lowers the loss.
    assert location_loss(theta.detach() - 0.01 * gradient, wanted) < loss
    assert input_boxes(theta).shape == (3, 2, 4, 2)


@given(
    turn=st.floats(-math.pi, math.pi),
    x=st.integers(10, 60),
    y=st.integers(10, 30),
    width=st.integers(20, 40),
    height=st.integers(12, 20),
)
def test_a_turned_view_shows_the_number_in_its_wanted_window(
    turn: float, x: int, y: int, width: int, height: int
) -> None:
    """A bright rectangle on black: the window's middle is its middle, and it is bright where the number is alone."""
    pixels = np.zeros((60, 110, 3), np.uint8)
    pixels[y : y + height, x : x + width] = 255
    number, region = Region(x, y, width, height), Region(4, 4, 102, 52)
    shown, around = turned(pixels, region, turn)
    assert around.centre == pytest.approx(region.centre)
    assert (around.width, around.height) == pytest.approx(shown.shape[1::-1], abs=0.5)
    window = wanted_window(number, around, turn)
    grid = np.stack(np.meshgrid(np.linspace(-1, 1, 41), np.linspace(-1, 1, 41)), axis=-1).reshape(-1, 2)
    at = (grid @ window[:, :2].T + window[:, 2] + 1) / 2 * shown.shape[1::-1] - 0.5
    column, row = np.rint(at).astype(int).T
    seen = shown[row.clip(0, shown.shape[0] - 1), column.clip(0, shown.shape[1] - 1), 0]
    # Pixels from the window's middle, and half of the number's size; within 1.5 pixels of its edge it may be grey.
    away = np.abs(grid) * np.diagonal(wanted_window(number, region)) * (region.width / 2, region.height / 2)
    half = np.array([width, height]) / 2
    inside, outside = (away < half - 1.5).all(axis=1), (away > half + 1.5).any(axis=1)
    assert inside.any()
    assert (seen[inside] > 200).all()
    assert (seen[outside] < 60).all()


def test_views_are_turned_as_often_as_the_recipe_says() -> None:
    """Half of them: the others are the service's own views."""
    sample = render(0, 0, (BUILT_IN,))
    views = Views([sample], (64, 64), AugmentTable(turned=0.5, turn=60), 0)
    rows = [views[epoch, 0] for epoch in range(60)]
    windows = [window for _, _, window in rows]
    upright_ones = [bool(window[0, 1] == 0 and window[1, 0] == 0) for window in windows]
    assert 15 < sum(upright_ones) < 45
    photo = Photo.open(sample.image, max_pixels=10**7)
    plain = photo.views([sample.region or photo.whole], (64, 64))[0].pixels
    assert all((view == plain).all() == is_upright for (view, _, _), is_upright in zip(rows, upright_ones, strict=True))


@given(
    seed=st.integers(0, 2**32),
    left=st.floats(-5, 40),
    top=st.floats(-5, 30),
    right=st.floats(-5, 40),
    bottom=st.floats(-5, 30),
)
def test_a_view_framed_anew_lies_between_the_number_and_the_region(
    seed: int, left: float, top: float, right: float, bottom: float
) -> None:
    """Where an annotated region cuts the number by a little, that edge moves out to the number at most."""
    number = Region(100, 50, 60, 20)
    region = Region(100 - left, 50 - top, 60 + left + right, 20 + top + bottom)
    found = framed(region, number, AugmentTable(reframe=1), np.random.default_rng(seed))
    slack = 1e-6
    assert min(region.x, number.x) - slack <= found.x <= number.x + slack
    assert min(region.y, number.y) - slack <= found.y <= number.y + slack
    assert number.right - slack <= found.right <= max(region.right, number.right) + slack
    assert number.bottom - slack <= found.bottom <= max(region.bottom, number.bottom) + slack
    unknown = framed(region, None, AugmentTable(reframe=1), np.random.default_rng(seed))
    assert astuple(unknown) == pytest.approx(astuple(region))
