"""The spatial transformer against the paper's formulas, written out as sums in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lecture import (
    Array,
    affine_map,
    double_sum,
    noise,
    pixel_indices,
    sub_gradients,
    target_centres,
    through,
)
from torch import Tensor, nn

from models.transformations import AFFINE, IDENTITY_THETA
from models.transformer import SpatialTransformer, sample, target_grid


def exact_grid(rows: int, columns: int) -> Tensor:
    """`target_grid` before its rounding to float32, so that float64 results can be compared to the last digits."""
    centres = target_centres(rows, columns).reshape(-1, 2)
    grid = torch.tensor(np.column_stack((centres, np.ones(len(centres)))))
    torch.testing.assert_close(target_grid(rows, columns).double(), grid, rtol=0, atol=1e-6)
    return grid


def looked_at(source: Tensor, theta: Tensor, target: tuple[int, int]) -> Tensor:
    """What an affine theta shows of `[N, C, H, W]`, in the precision of theta."""
    points = AFFINE.on(exact_grid(*target).to(theta.dtype), theta)
    return sample(source, points.reshape(-1, *target, 2))


def sampled(source: Array, theta: Array, target: tuple[int, int]) -> Array:
    """The module under test, one map."""
    result: Array = looked_at(torch.tensor(source)[None], torch.tensor(theta)[None], target)[0].numpy()
    return result


def source_pixels(theta: Array, source: tuple[int, int], target: tuple[int, int]) -> tuple[Array, Array]:
    """Where each target pixel's centre lands in the source: (x, y) in indices of pixels, each [H', W']."""
    return pixel_indices(through(affine_map(theta), target_centres(*target)), *source)


def by_the_sum(source: Array, theta: Array, target: tuple[int, int]) -> Array:
    return double_sum(source, *source_pixels(theta, (source.shape[1], source.shape[2]), target))


def affine(angle: float, scale_x: float, scale_y: float, shear: float, x: float, y: float) -> Array:
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos * scale_x, -sin * scale_y + shear, x], [sin * scale_x, cos * scale_y, y]])


def transformer(
    source: tuple[int, int],
    target: tuple[int, int] | None = None,
    channels: int = 1,
    oversampling: tuple[int, int] | None = None,
) -> SpatialTransformer:
    localisation = nn.Sequential(nn.Flatten(), nn.Linear(channels * source[0] * source[1], 4), nn.ReLU())
    return SpatialTransformer(localisation, 4, source, target, oversampling)


THETAS = {
    "identity": np.array(IDENTITY_THETA),
    "zoomed in": affine(0, 0.5, 0.6, 0, 0.2, -0.1),
    "zoomed out": affine(0, 1.7, 1.4, 0, 0, 0),
    "rotated": affine(0.6, 1, 1, 0, 0, 0),
    "sheared": affine(0.1, 0.9, 0.8, 0.4, 0.1, 0.1),
    "partly outside": affine(-0.3, 1, 1, 0, 0.8, -0.5),
    "wholly outside": affine(0, 0.4, 0.4, 0, 3, 3),
    "mirrored": affine(0, -1, 1, 0, 0, 0),
    "a single point": affine(0, 0, 0, 0, 0.31, -0.27),
}


@pytest.mark.parametrize("name", THETAS)
@pytest.mark.parametrize("target", [(6, 9), (4, 4), (11, 5)])
def test_sampling_is_the_double_sum(name: str, target: tuple[int, int]) -> None:
    source = noise(3, 6, 9)
    np.testing.assert_allclose(
        sampled(source, THETAS[name], target), by_the_sum(source, THETAS[name], target), atol=1e-12
    )


def test_outside_is_zero() -> None:
    assert (sampled(np.ones((2, 5, 5)), THETAS["wholly outside"], (5, 5)) == 0).all()
    # Half a pixel beyond the edge the last pixel still counts half: the map is surrounded by zeros.
    edge = affine(0, 0, 0, 0, 1.0, 0)
    np.testing.assert_allclose(sampled(np.ones((1, 5, 5)), edge, (1, 1)), 0.5)


numbers = st.floats(-2, 2, allow_nan=False)


@settings(max_examples=60)
@given(
    theta=st.lists(numbers, min_size=6, max_size=6),
    source=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    target=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    seed=st.integers(0, 1000),
)
def test_any_theta_is_the_double_sum(
    theta: list[float], source: tuple[int, int], target: tuple[int, int], seed: int
) -> None:
    matrix = np.array(theta).reshape(2, 3)
    pixels = noise(2, *source, seed=seed)
    np.testing.assert_allclose(sampled(pixels, matrix, target), by_the_sum(pixels, matrix, target), atol=1e-11)


class TestGradients:
    """In float64, at thetas that send no point onto a kink (a pixel's centre, where one-sided slopes differ)."""

    smooth = ("zoomed in", "rotated", "sheared", "partly outside")
    target = (5, 4)

    @pytest.mark.parametrize("name", smooth)
    def test_against_finite_differences(self, name: str) -> None:
        source = torch.tensor(noise(1, 2, 6, 7), requires_grad=True)
        theta = torch.tensor(THETAS[name])[None].requires_grad_()
        x, y = source_pixels(THETAS[name], (6, 7), self.target)
        assert min(np.abs(x - x.round()).min(), np.abs(y - y.round()).min()) > 1e-4
        assert torch.autograd.gradcheck(lambda u, t: looked_at(u, t, self.target), (source, theta))

    @pytest.mark.parametrize("name", smooth)
    def test_against_the_papers_sub_gradients(self, name: str) -> None:
        pixels, upstream = noise(2, 6, 7), noise(2, *self.target, seed=1)
        source = torch.tensor(pixels)[None].requires_grad_()
        theta = torch.tensor(THETAS[name])[None].requires_grad_()
        out = looked_at(source, theta, self.target)[0]
        got_source, got_theta = torch.autograd.grad((out * torch.tensor(upstream)).sum(), (source, theta))
        by_source, by_x, by_y = sub_gradients(pixels, *source_pixels(THETAS[name], (6, 7), self.target), upstream)
        u, v = np.moveaxis(target_centres(*self.target), -1, 0)
        # The six numbers by the chain rule; a normalised unit is half the map's pixels.
        by_theta = [[(by * u).sum(), (by * v).sum(), by.sum()] for by in (by_x * 7 / 2, by_y * 6 / 2)]
        np.testing.assert_allclose(got_source[0].numpy(), by_source, atol=1e-11)
        np.testing.assert_allclose(got_theta[0].numpy(), by_theta, atol=1e-11)

    def test_on_a_kink_it_is_a_sub_gradient(self) -> None:
        """At the identity every point is on a kink: whatever slope is taken lies between those of the two sides."""
        pixels = noise(1, 4, 4)
        theta = torch.tensor(IDENTITY_THETA, dtype=torch.float64)[None].requires_grad_()
        source = torch.tensor(pixels)[None]
        middle = looked_at(source, theta, (4, 4))[0, 0, 1, 2]
        (by_theta,) = torch.autograd.grad(middle, theta)
        slopes = sorted((pixels[0, 1, 2] - pixels[0, 1, 1], pixels[0, 1, 3] - pixels[0, 1, 2]))
        by_x = by_theta[0, 0, 2].item() / 2
        assert slopes[0] - 1e-12 <= by_x <= slopes[1] + 1e-12

    def test_both_reach_the_localisation_and_the_source(self) -> None:
        module = transformer((8, 8))
        source = torch.randn(2, 1, 8, 8, requires_grad=True)
        out, _ = module(source)
        for gradient in torch.autograd.grad(out.square().mean(), (module.to_theta.bias, source)):
            assert gradient.abs().max() > 0


class TestConvention:
    def test_theta_maps_target_to_source(self) -> None:
        """By hand: x_source = x_target + 1 on four pixels looks two pixels to the right."""
        source = np.array([[[1.0, 2.0, 3.0, 4.0]]])
        np.testing.assert_allclose(sampled(source, affine(0, 1, 1, 0, 1, 0), (1, 4)), [[[3, 4, 0, 0]]])

    def test_half_the_scale_shows_the_middle_half_enlarged(self) -> None:
        source = np.array([[[0.0, 1.0, 2.0, 3.0]]])
        # Target centres -.75 -.25 .25 .75 halved lie at pixels .75 1.25 1.75 2.25.
        np.testing.assert_allclose(sampled(source, affine(0, 0.5, 1, 0, 0, 0), (1, 4)), [[[0.75, 1.25, 1.75, 2.25]]])

    def test_x_comes_first_and_y_points_down(self) -> None:
        source = np.zeros((1, 4, 4))
        source[0, 3, 0] = 1
        looked = sampled(source, affine(0, 1, 1, 0, -1, 1), (4, 4))
        assert np.argwhere(looked[0]).tolist() == [[1, 2]]

    def test_a_quarter_turn(self) -> None:
        """(x, y) -> (-y, x): the target's top-left shows the source's top-right, so the image turns anticlockwise."""
        source = noise(1, 4, 4)
        turned = sampled(source, affine(math.pi / 2, 1, 1, 0, 0, 0), (4, 4))
        np.testing.assert_allclose(turned[0], np.rot90(source[0]), atol=1e-12)


class TestStart:
    @pytest.mark.parametrize("size", [(8, 8), (7, 13), (1, 1), (64, 64)])
    def test_identity_is_an_exact_copy(self, size: tuple[int, int]) -> None:
        source = torch.rand(2, 3, *size)
        out, theta = transformer(size, channels=3)(source)
        assert theta.tolist() == [[list(row) for row in IDENTITY_THETA]] * 2
        # Coordinates in float32 are off by some 1e-7 of the width, and so is the weight of the neighbour.
        torch.testing.assert_close(out, source, rtol=0, atol=2e-5)

    def test_powers_of_two_copy_to_the_bit(self) -> None:
        source = torch.rand(1, 1, 32, 32)
        out, _ = transformer((32, 32))(source)
        assert torch.equal(out, source)

    def test_reset_makes_theta_the_identity_again(self) -> None:
        module = transformer((8, 8))
        nn.init.normal_(module.to_theta.weight)
        nn.init.normal_(module.to_theta.bias)
        module.reset()
        assert module.locate(torch.rand(3, 1, 8, 8)).tolist() == [[list(row) for row in IDENTITY_THETA]] * 3


class TestAntiAliasing:
    @pytest.mark.parametrize("ratio", [(2, 2), (1, 4), (3, 2)])
    def test_identity_with_a_whole_ratio_is_the_mean_of_the_block(self, ratio: tuple[int, int]) -> None:
        target = (4, 5)
        source = torch.rand(2, 3, target[0] * ratio[0], target[1] * ratio[1])
        out, _ = transformer((source.shape[2], source.shape[3]), target, channels=3)(source)
        blocks = source.reshape(2, 3, target[0], ratio[0], target[1], ratio[1]).mean(dim=(3, 5))
        torch.testing.assert_close(out, blocks, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("target", [(4, 4), (8, 4), (4, 8)])
    def test_a_checkerboard_shrunk_is_grey(self, target: tuple[int, int]) -> None:
        board = (torch.arange(16)[:, None] + torch.arange(16)) % 2
        out, _ = transformer((16, 16), target)(board.float()[None, None])
        torch.testing.assert_close(out, torch.full_like(out, 0.5), rtol=0, atol=1e-5)

    def test_without_it_the_checkerboard_would_be_seen(self) -> None:
        """A ratio of three hits every third pixel's centre: black and white instead of grey."""
        board = ((torch.arange(15)[:, None] + torch.arange(15)) % 2).float()[None, None]
        plain, _ = transformer((15, 15), (5, 5), oversampling=(1, 1))(board)
        smooth, _ = transformer((15, 15), (5, 5))(board)
        assert (plain.max() - plain.min()).item() == pytest.approx(1, abs=1e-4)
        assert (smooth.max() - smooth.min()).item() == pytest.approx(1 / 9, abs=1e-4)

    @pytest.mark.parametrize("name", ["rotated", "zoomed in", "partly outside"])
    def test_each_pixel_is_the_mean_of_its_samples(self, name: str) -> None:
        """Ratio 5 : 2 takes three samples each way."""
        module = transformer((10, 10), (4, 4))
        assert module.oversampling == (3, 3)
        source = noise(1, 10, 10)
        theta = torch.tensor(THETAS[name])[None]
        out = module.sample(torch.tensor(source)[None], theta)[0].numpy()
        fine = by_the_sum(source, THETAS[name], (12, 12))
        np.testing.assert_allclose(out, fine.reshape(1, 4, 3, 4, 3).mean(axis=(2, 4)), atol=1e-5)

    def test_enlarging_takes_one_sample(self) -> None:
        assert transformer((8, 8), (16, 12)).oversampling == (1, 1)


@pytest.mark.parametrize("channels", [1, 3, 48])
@pytest.mark.parametrize("target", [(5, 9), (12, 12), (30, 2)])
def test_any_map_and_any_target_size(channels: int, target: tuple[int, int]) -> None:
    module = transformer((12, 10), target, channels)
    out, theta = module(torch.rand(3, channels, 12, 10))
    assert out.shape == (3, channels, *target)
    assert theta.shape == (3, 2, 3)


def test_theta_is_that_of_each_image() -> None:
    module = transformer((4, 4))
    nn.init.normal_(module.to_theta.weight)
    source = torch.rand(2, 1, 4, 4)
    both, thetas = module(source)
    assert not torch.equal(thetas[0], thetas[1])
    for index in range(2):
        alone, theta = module(source[index : index + 1])
        torch.testing.assert_close(theta[0], thetas[index])
        torch.testing.assert_close(alone[0], both[index])


def test_autocast_leaves_coordinates_their_digits() -> None:
    """bf16 has 8 bits: at 128 px it would be off by half a pixel."""
    module = transformer((128, 128), channels=1)
    source = torch.rand(1, 1, 128, 128)
    with torch.autocast("cpu", torch.bfloat16):
        out, theta = module(source)
    assert theta.dtype == torch.float32
    torch.testing.assert_close(out.float(), source, rtol=0, atol=1e-2)


def test_a_map_in_bf16_comes_back_in_bf16() -> None:
    source = torch.rand(1, 2, 8, 8).bfloat16()
    out = transformer((8, 8), channels=2).sample(source, torch.tensor(IDENTITY_THETA)[None])
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, source)
