"""Where a transformer is told to look, and framing anew around the number."""

import math
from dataclasses import astuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.boxes import input_boxes
from models.training.dataset import framed
from models.training.location import location_loss, wanted_window
from models.training.recipe import AugmentTable
from service.geometry import Region

REGION = Region(10, 20, 200, 100)


def theta_of(window: np.ndarray) -> torch.Tensor:
    """The upright theta `[1, 1, 2, 3]` whose box is exactly that window."""
    x, y, half_x, half_y = (float(value) for value in window)
    return torch.tensor([[[[half_x, 0, x], [0, half_y, y]]]], dtype=torch.float64)


def test_a_window_by_hand() -> None:
    # 60 x 20 pixels, 0.12 x 20 of room on each side: 64.8 x 24.8 around (110, 70), the centre of the region.
    assert wanted_window(Region(80, 60, 60, 20), REGION) == pytest.approx([0, 0, 0.324, 0.248])
    # A single digit gets 1.5 times its height; its centre (20, 30) is 10 pixels from the region's corner.
    assert wanted_window(Region(19, 20, 2, 20), REGION) == pytest.approx([-0.9, -0.8, 0.15, 0.248])
    assert np.isnan(wanted_window(None, REGION)).all()


def test_the_window_itself_has_no_loss_and_any_other_has() -> None:
    wanted = wanted_window(Region(80, 60, 60, 20), REGION)
    target = torch.from_numpy(wanted)[None]
    assert location_loss(theta_of(wanted), target).item() == pytest.approx(0, abs=1e-9)
    for change in ((0.1, 0, 0, 0), (0, -0.1, 0, 0), (0, 0, 0.1, 0), (0, 0, 0, -0.1)):
        assert location_loss(theta_of(wanted + np.array(change)), target).item() > 0.01


@given(turn=st.floats(-math.pi, math.pi), half=st.floats(0.05, 0.8))
def test_only_the_rectangle_around_the_box_counts(turn: float, half: float) -> None:
    """A turned square window fits its own bounding rectangle, at every angle."""
    c, s = math.cos(turn) * half, math.sin(turn) * half
    theta = torch.tensor([[[[c, -s, 0.2], [s, c, -0.1]]]], dtype=torch.float64)
    around = abs(c) + abs(s)
    wanted = torch.tensor([[0.2, -0.1, around, around]], dtype=torch.float32)
    assert location_loss(theta, wanted).item() == pytest.approx(0, abs=1e-6)


def test_errors_count_against_the_size_of_the_window() -> None:
    """A shift by half a window costs the same whether the window is large or small; in both it is beyond smoothing."""
    for half in (0.5, 0.05):
        theta = theta_of(np.array([half, 0, half, half]))
        loss = location_loss(theta, torch.tensor([[0, 0, half, half]]))
        assert loss.item() == pytest.approx(1 - 0.05, abs=1e-5)


def test_images_whose_number_is_not_known_do_not_count() -> None:
    theta = torch.cat([theta_of(np.array([0.5, 0, 0.5, 0.5])), theta_of(np.array([0.0, 0, 9, 9]))])
    known = torch.tensor([0, 0, 0.5, 0.5])
    wanted = torch.stack((known, torch.full((4,), math.nan)))
    assert location_loss(theta, wanted).item() == pytest.approx(location_loss(theta[:1], known[None]).item())
    assert location_loss(theta, torch.full((2, 4), math.nan)).item() == 0


def test_the_gradient_is_that_of_the_loss_and_reaches_every_transformer() -> None:
    torch.manual_seed(0)
    theta = torch.eye(2, 3, dtype=torch.float64).expand(3, 2, 2, 3) + 0.1 * torch.randn(3, 2, 2, 3).double()
    theta.requires_grad_()
    wanted = torch.tensor([[0.1, 0.2, 0.3, 0.2], [-0.3, 0.0, 0.5, 0.4], [math.nan] * 4])
    loss = location_loss(theta, wanted)
    (gradient,) = torch.autograd.grad(loss, theta)
    assert gradient[:2].abs().amax(dim=(2, 3)).min() > 0
    assert gradient[2].abs().max() == 0
    # Downhill: a small step against the gradient lowers the loss.
    assert location_loss(theta.detach() - 0.01 * gradient, wanted) < loss
    assert input_boxes(theta).shape == (3, 2, 4, 2)


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
