"""The transformations and the two samplers against the lecture's formulas, in float64."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from families import FAMILIES, SCALE, Family
from hypothesis import given, settings
from hypothesis import strategies as st
from lecture import (
    Array,
    double_sum,
    nearest,
    noise,
    pixel_indices,
    sub_gradients,
    target_centres,
    through,
)
from torch import Tensor, nn

from models.thin_plate import ThinPlateSpline
from models.transformations import CORNERS, HORIZON, IDENTITY_THETA, Matrix, Projective, Translation
from models.transformer import ParallelTransformers, Sampling, SpatialTransformer, sample, target_grid, tiles

families = pytest.mark.parametrize("name", FAMILIES)


def points_of(family: Family, thetas: Array, points: Array) -> Array:
    """The formula for each theta, `[N, M, 2]`; the points are the same for all, or `[N, M, 2]`."""
    each = np.broadcast_to(points, (len(thetas), *points.shape[-2:]))
    return np.stack([through(family.formula(theta), own) for theta, own in zip(thetas, each, strict=True)])


class TestMaps:
    @families
    def test_number_of_parameters(self, name: str) -> None:
        family = FAMILIES[name]
        assert family.transformation.size == family.numbers == len(family.transformation.closest_to(IDENTITY_THETA))

    @families
    def test_points_go_where_the_formula_says(self, name: str) -> None:
        family = FAMILIES[name]
        thetas, shared, own = family.thetas(3), noise(11, 2, seed=1), noise(3, 5, 2, seed=2)
        for points in (shared, own):
            sent = family.transformation(torch.tensor(thetas), torch.tensor(points)).numpy()
            np.testing.assert_allclose(sent, points_of(family, thetas, points), rtol=1e-9, atol=1e-9)

    @families
    def test_a_grid_goes_where_its_points_go(self, name: str) -> None:
        family = FAMILIES[name]
        thetas, grid = torch.tensor(family.thetas(2)), target_grid(5, 7).double()
        on_grid = family.transformation.on(family.transformation.basis(grid), thetas)
        torch.testing.assert_close(on_grid, family.transformation(thetas, grid[:, :2]), rtol=0, atol=1e-12)

    @families
    def test_it_starts_at_the_identity(self, name: str) -> None:
        """The translation at its own scale, about the middle: at a scale of one that is the identity."""
        transformation = Translation() if name == "translation" else FAMILIES[name].transformation
        start = torch.tensor(transformation.closest_to(IDENTITY_THETA), dtype=torch.float64)
        points = torch.tensor(noise(9, 2))
        sent = transformation(start.reshape(1, *transformation.shape), points)
        torch.testing.assert_close(sent[0], points, rtol=0, atol=1e-12)
        source = torch.rand(2, 3, 16, 16)
        module = SpatialTransformer(nn.Flatten(), 3 * 256, (16, 16), transformation=transformation)
        shown, theta = module(source)
        assert theta.shape == (2, *transformation.shape)
        torch.testing.assert_close(shown, source, rtol=0, atol=1e-5)

    def test_a_fixed_scale_starts_in_the_middle(self) -> None:
        assert Translation(SCALE).closest_to(IDENTITY_THETA) == pytest.approx([0, 0], abs=1e-12)

    @families
    def test_nothing_in_the_family_is_closer(self, name: str) -> None:
        """Least squares over the target, against thetas on all sides of the one that is said to be closest."""
        family = FAMILIES[name]
        matrix: Matrix = ((0.8, -0.5, 0.2), (0.3, 0.6, -0.1))
        points = target_centres(9, 9).reshape(-1, 2)
        wanted = np.column_stack((points, np.ones(81))) @ np.array(matrix).T
        best = np.array(family.transformation.closest_to(matrix))
        tried = np.vstack((best, best + 0.03 * noise(40, len(best))))
        sent = family.transformation(
            torch.tensor(tried.reshape(-1, *family.transformation.shape)), torch.tensor(points)
        )
        errors = np.square(sent.numpy() - wanted).sum(axis=(1, 2))
        assert errors.argmin() == 0
        assert (errors[1:] > errors[0] + 1e-6).all()

    @families
    def test_theta_of_the_artifact_is_the_affine_map_closest_at_the_corners(self, name: str) -> None:
        family = FAMILIES[name]
        thetas = family.thetas(2)
        found = family.transformation.affine(torch.tensor(thetas)).numpy()
        homogeneous = np.column_stack((CORNERS, np.ones(4)))
        for theta, matrix in zip(thetas, found, strict=True):
            sent = through(family.formula(theta), np.array(CORNERS))
            solution, *_ = np.linalg.lstsq(homogeneous, sent, rcond=None)
            np.testing.assert_allclose(matrix, solution.T, atol=1e-9)

    def test_beyond_the_horizon_all_is_finite_and_far_away(self) -> None:
        theta = torch.tensor([[1.0, 0, 0, 0, 1, 0, 3, 0]]).requires_grad_()
        sent = Projective()(theta, torch.tensor([[-1.0, 0.5], [0.9, 0.5]]))
        assert sent[0].tolist() == [pytest.approx([-1 / HORIZON, 0.5 / HORIZON]), pytest.approx([0.9 / 3.7, 0.5 / 3.7])]
        (gradient,) = torch.autograd.grad(sent.sum(), theta)
        assert gradient.isfinite().all()

    @pytest.mark.parametrize("size", [2, 3, 5])
    def test_a_spline_takes_its_control_points_where_theta_says(self, size: int) -> None:
        transformation = ThinPlateSpline(size)
        theta = torch.tensor(noise(1, size**2, 2))
        ticks = np.linspace(-1, 1, size)
        control = np.array([(x, y) for y in ticks for x in ticks])
        torch.testing.assert_close(transformation(theta, torch.tensor(control)), theta, rtol=0, atol=1e-9)

    def test_a_spline_of_one_point_is_refused(self) -> None:
        with pytest.raises(ValueError, match="1 x 1"):
            ThinPlateSpline(1)


class TestSampling:
    target = (5, 7)

    def shown(self, family: Family, source: Array, thetas: Array, sampling: Sampling) -> Tensor:
        points = family.transformation(torch.tensor(thetas), torch.tensor(target_centres(*self.target).reshape(-1, 2)))
        return sample(torch.tensor(source), points.reshape(-1, *self.target, 2), sampling)

    def indices(self, family: Family, theta: Array, source: Array) -> tuple[Array, Array]:
        return pixel_indices(through(family.formula(theta), target_centres(*self.target)), *source.shape[-2:])

    def sampled(self, family: Family, source: Array, sampling: Sampling) -> Iterator[tuple[Array, Array, Array, Array]]:
        """For each image: what is shown of it, the image itself, and where it was sampled, in pixel indices x and y."""
        thetas = family.thetas(len(source), spread=0.3)
        shown = self.shown(family, source, thetas, sampling).numpy()
        for of_image, image, theta in zip(shown, source, thetas, strict=True):
            yield of_image, image, *self.indices(family, theta, source)

    @families
    def test_bilinear_is_the_double_sum(self, name: str) -> None:
        for shown, image, x, y in self.sampled(FAMILIES[name], noise(3, 2, 6, 8), "bilinear"):
            np.testing.assert_allclose(shown, double_sum(image, x, y), atol=1e-9)

    @families
    def test_nearest_is_the_double_sum_with_the_other_kernel(self, name: str) -> None:
        # Of odd size: a rotation leaves the middle where it is, which is to be a pixel, not between two.
        for shown, image, x, y in self.sampled(FAMILIES[name], noise(3, 2, 7, 9), "nearest"):
            assert min(np.abs(np.abs(at - np.floor(at)) - 0.5).min() for at in (x, y)) > 1e-6
            np.testing.assert_array_equal(shown, double_sum(image, x, y, nearest))

    @pytest.mark.parametrize("sampling", ["bilinear", "nearest"])
    @families
    def test_the_module_shows_what_the_formula_says(self, name: str, sampling: Sampling) -> None:
        family, source = FAMILIES[name], noise(2, 1, 6, 8)
        module = SpatialTransformer(
            nn.Flatten(), 48, (6, 8), self.target, (1, 1), transformation=family.transformation, sampling=sampling
        )
        thetas = family.thetas(2)
        shown = module.sample(torch.tensor(source), torch.tensor(thetas)).numpy()
        expected = self.shown(family, source, thetas, sampling).numpy()
        np.testing.assert_allclose(shown, expected, atol=1e-5)

    def test_of_two_pixels_equally_near_the_even_one_is_taken(self) -> None:
        """The paper's floor(x + 1/2) would take the right one."""
        source = torch.arange(4.0).reshape(1, 1, 1, 4)
        between = torch.tensor([[[[-0.5, 0.0], [0.0, 0.0], [0.5, 0.0]]]])
        assert sample(source, between, "nearest").flatten().tolist() == [0, 2, 2]

    def test_nearest_outside_is_zero_from_half_a_pixel_beyond_the_last_centre(self) -> None:
        source = torch.ones(1, 1, 4, 4)
        points = torch.tensor([[[[0.99, 0.0], [1.01, 0.0], [-0.99, -0.99], [0.0, -1.01]]]])
        assert sample(source, points, "nearest").flatten().tolist() == [1, 0, 1, 0]


class TestGradients:
    @families
    def test_of_theta_and_source_against_finite_differences(self, name: str) -> None:
        family, source = FAMILIES[name], noise(1, 1, 5, 6)
        theta = family.thetas(1, seed=3)
        centres = target_centres(3, 4)
        x, y = pixel_indices(through(family.formula(theta[0]), centres), 5, 6)
        assert min(np.abs(at - at.round()).min() for at in (x, y)) > 1e-4, "on a kink there is no gradient"
        flat = torch.tensor(centres.reshape(-1, 2))

        def shown(source: Tensor, theta: Tensor) -> Tensor:
            return sample(source, family.transformation(theta, flat).reshape(1, 3, 4, 2))

        assert torch.autograd.gradcheck(
            shown, (torch.tensor(source, requires_grad=True), torch.tensor(theta, requires_grad=True))
        )

    @settings(max_examples=40)
    @given(seed=st.integers(0, 10_000), height=st.integers(1, 6), width=st.integers(1, 6))
    def test_of_coordinates_are_the_papers_sub_gradients(self, seed: int, height: int, width: int) -> None:
        """Wherever the points are, in the map, at its edge or outside; none is on a kink."""
        pixels, upstream = noise(2, height, width, seed=seed), noise(2, 3, 4, seed=seed + 1)
        points = 1.2 * noise(3, 4, 2, seed=seed + 2)
        x, y = pixel_indices(points, height, width)
        source = torch.tensor(pixels)[None].requires_grad_()
        at = torch.tensor(points)[None].requires_grad_()
        total = (sample(source, at)[0] * torch.tensor(upstream)).sum()
        got_source, got_points = torch.autograd.grad(total, (source, at))
        by_source, by_x, by_y = sub_gradients(pixels, x, y, upstream)
        np.testing.assert_allclose(got_source[0].numpy(), by_source, atol=1e-10)
        # A normalised unit is half the map's pixels.
        np.testing.assert_allclose(got_points[0, ..., 0].numpy(), by_x * width / 2, atol=1e-10)
        np.testing.assert_allclose(got_points[0, ..., 1].numpy(), by_y * height / 2, atol=1e-10)

    def test_on_a_kink_it_is_the_slope_to_the_right(self) -> None:
        """One of the two one-sided slopes, so a sub-gradient.

        The formula as it is printed gives neither: the neighbour to the right is a whole pixel away and counts 0, and
        the pixel that is hit counts +1 alone.
        """
        row = np.array([[[3.0, -1.0, 4.0, 10.0]]])
        for hit in (1, 2):
            at = torch.tensor([[[[(2 * hit + 1) / 4 - 1, 0.0]]]], dtype=torch.float64, requires_grad=True)
            (gradient,) = torch.autograd.grad(sample(torch.tensor(row)[None], at).sum(), at)
            by_x = gradient[0, 0, 0, 0].item() / 2
            assert by_x == pytest.approx(row[0, 0, hit + 1] - row[0, 0, hit])
            _, printed, _ = sub_gradients(row, np.array([[float(hit)]]), np.zeros((1, 1)), np.ones((1, 1, 1)))
            assert printed.item() == row[0, 0, hit]

    def test_outside_nothing_is_learned(self) -> None:
        """A whole pixel beyond the last centre both the value and its slopes are zero."""
        source = torch.tensor(noise(1, 1, 4, 4), requires_grad=True)
        points = torch.tensor([[[[1.3, 0.0], [-1.3, 0.1], [0.1, 1.3], [5.0, -5.0]]]], dtype=torch.float64)
        points.requires_grad_()
        shown = sample(source, points)
        assert (shown == 0).all()
        for gradient in torch.autograd.grad(shown.sum(), (source, points)):
            assert (gradient == 0).all()

    @families
    def test_nearest_passes_gradient_to_values_and_none_to_theta(self, name: str) -> None:
        family = FAMILIES[name]
        source = torch.tensor(noise(1, 2, 7, 9), requires_grad=True)
        theta = torch.tensor(family.thetas(1), requires_grad=True)
        centres = target_centres(5, 7)
        upstream = noise(2, 5, 7)
        points = family.transformation(theta, torch.tensor(centres.reshape(-1, 2))).reshape(1, 5, 7, 2)
        total = (sample(source, points, "nearest")[0] * torch.tensor(upstream)).sum()
        by_source, by_theta = torch.autograd.grad(total, (source, theta))
        x, y = pixel_indices(through(family.formula(theta[0].detach().numpy()), centres), 7, 9)
        copied = np.einsum(
            "cij,ijm,ijn->cnm", upstream, nearest(x[..., None] - np.arange(9)), nearest(y[..., None] - np.arange(7))
        )
        np.testing.assert_allclose(by_source[0].numpy(), copied, atol=1e-12)
        assert (by_theta == 0).all()


@pytest.mark.parametrize("sampling", ["bilinear", "nearest"])
def test_only_bilinear_teaches_where_to_look(sampling: Sampling) -> None:
    """Blots are to be brought to the middle. Through nearest the localisation network does not move at all."""
    torch.manual_seed(0)
    module = SpatialTransformer(
        nn.Flatten(), 256, (16, 16), (8, 8), (1, 1), transformation=Translation(0.5), sampling=sampling
    )
    centres = target_grid(16, 16)[:, :2]
    places = 0.8 * torch.rand(64, 1, 2) - 0.4
    blots = (-8 * (centres - places).square().sum(dim=2)).exp().reshape(64, 1, 16, 16)
    wanted = (-8 * (target_grid(8, 8)[:, :2] / 2).square().sum(dim=1)).exp().reshape(1, 1, 8, 8)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    optimiser = torch.optim.Adam(module.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = (module(blots)[0] - wanted).square().mean()
        torch.autograd.backward(loss)
        optimiser.step()
        losses.append(loss.item())
    if sampling == "bilinear":
        assert losses[-1] < losses[0] / 10
    else:
        assert losses[-1] == losses[0] > 0.01
        assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


class TestParallel:
    def make(self, starts: tuple[Matrix, ...]) -> ParallelTransformers:
        localisation = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Tanh())
        return ParallelTransformers(localisation, 5, (8, 8), (4, 4), (1, 1), starts=starts)

    @pytest.mark.parametrize("grid", [(1, 1), (2, 2), (1, 4), (3, 2)])
    def test_tiles_cover_the_plane_once(self, grid: tuple[int, int]) -> None:
        seen = np.zeros((12, 12), int)
        for (a, b, x), (c, d, y) in tiles(*grid):
            assert (b, c) == (0, 0)
            rows = np.abs(target_centres(12, 12)[..., 1] - y) < d
            columns = np.abs(target_centres(12, 12)[..., 0] - x) < a
            seen += rows & columns
        assert (seen == 1).all()

    def test_each_starts_at_its_own_tile(self) -> None:
        module = self.make(tiles(2, 2))
        source = torch.rand(3, 1, 8, 8)
        shown, theta = module(source)
        assert theta.shape == (3, 4, 2, 3)
        assert shown.shape == (3, 4, 1, 4, 4)
        quarters = [source[:, :, row : row + 4, column : column + 4] for row in (0, 4) for column in (0, 4)]
        torch.testing.assert_close(shown, torch.stack(quarters, dim=1), rtol=0, atol=1e-6)

    def test_one_localisation_network_learns_from_all(self) -> None:
        torch.manual_seed(0)
        module = self.make(tiles(1, 2))
        nn.init.normal_(module.to_theta.weight, std=0.1)
        source = torch.rand(1, 1, 8, 8)
        first = module.localisation[1].weight  # type: ignore[index]
        both, *each = (
            torch.autograd.grad(module(source)[0][:, part].square().sum(), first)[0] for part in (slice(2), 0, 1)
        )
        assert all(gradient.abs().max() > 0 for gradient in each)
        torch.testing.assert_close(both, each[0] + each[1])
