"""Boxes: where the transformers looked, against the real chain of layers and against 3 x 3 matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import FAMILIES
from hypothesis import given, settings
from hypothesis import strategies as st
from lecture import Array, Map, target_centres, through
from numpy.typing import NDArray
from torch import Tensor, nn

from models.boxes import affine_thetas, in_a_row, input_boxes, input_outlines, target_outline
from models.readers import ReaderSpec, build_reader
from models.readers.paper import PaperReader, connected_localisation
from models.transformer import SpatialTransformer, target_grid

CORNERS = ((-1, -1), (1, -1), (1, 1), (-1, 1))


def homogeneous_boxes(thetas: NDArray[np.float64]) -> NDArray[np.float64]:
    """[K, 2, 3] -> [K, 4, 2]: the corners of the k-th target through A1 A2 ... Ak, as 3 x 3 matrices."""
    boxes = []
    product = np.eye(3)
    for theta in thetas:
        product = product @ np.vstack((theta, (0, 0, 1)))
        boxes.append([(product @ (x, y, 1))[:2] for x, y in CORNERS])
    return np.array(boxes).reshape(-1, 4, 2)


def mild_theta(rng: np.random.Generator) -> NDArray[np.float32]:
    """Zoomed in, tilted and moved, so that a chain of four stays inside the image."""
    angle, scale = rng.uniform(-0.4, 0.4), rng.uniform(0.6, 0.8, size=2)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * scale
    return np.column_stack((rotation, rng.uniform(-0.08, 0.08, size=2))).astype(np.float32)


@settings(max_examples=60)
@given(
    count=st.integers(1, 5),
    batch=st.integers(1, 3),
    seed=st.integers(0, 10_000),
)
def test_any_thetas_compose_as_matrices(count: int, batch: int, seed: int) -> None:
    thetas = np.random.default_rng(seed).normal(size=(batch, count, 2, 3))
    boxes = input_boxes(torch.tensor(thetas)).numpy()
    assert boxes.shape == (batch, count, 4, 2)
    for index in range(batch):
        np.testing.assert_allclose(boxes[index], homogeneous_boxes(thetas[index]), rtol=1e-10, atol=1e-10)


def test_by_hand() -> None:
    """The first looks at the right half; the second at the upper half of what the first shows."""
    theta = torch.tensor([[[[0.5, 0, 0.5], [0, 1, 0]], [[1, 0, 0], [0, 0.5, -0.5]]]])
    first, second = input_boxes(theta)[0].tolist()
    assert first == [[0, -1], [1, -1], [1, 1], [0, 1]]
    assert second == [[0, -1], [1, -1], [1, 0], [0, 0]]


def test_order_matters() -> None:
    """A turn, then a step to the right of what the turn shows: downwards in the input."""
    turn, step = [[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]], [[1.0, 0.0, 0.5], [0.0, 1.0, 0.0]]
    second = input_boxes(torch.tensor([[turn, step]]))[0, 1]
    torch.testing.assert_close(second.mean(dim=0), torch.tensor([0.0, 0.5]))


@pytest.mark.parametrize("batch", [1, 3])
def test_no_transformers_no_boxes(batch: int) -> None:
    assert input_boxes(torch.zeros(batch, 0, 2, 3)).shape == (batch, 0, 4, 2)


def ramp(size: int) -> Tensor:
    """[1, 3, size, size]: each pixel holds its own normalised x, its y, and 1."""
    centres = (torch.arange(size) * 2 + 1) / size - 1
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack((x, y, torch.ones_like(x)))[None]


def corners_of(shown: Tensor) -> NDArray[np.float64]:
    """The corners of a map whose pixels hold coordinates: the affine map through its pixels, at (+-1, +-1)."""
    size = shown.shape[-1]
    held = shown[0].permute(1, 2, 0).reshape(-1, 3).double().numpy()
    here = ramp(size)[0].permute(1, 2, 0).reshape(-1, 3).double().numpy()
    # A pixel whose samples were partly outside says so: its 1 is less.
    inside = held[:, 2] > 0.999
    assert inside.sum() > 20
    solution, *_ = np.linalg.lstsq(here[inside], held[inside, :2], rcond=None)
    assert np.abs(here[inside] @ solution - held[inside, :2]).max() < 1e-3
    corners: NDArray[np.float64] = np.array([(x, y, 1) for x, y in CORNERS]) @ solution
    return corners


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("seed", range(5))
def test_coordinates_sent_through_the_reader_arrive_in_the_boxes(size: int, seed: int) -> None:
    """A ramp of coordinates through the reader's own transformers and poolings, in its own order.

    Its convolutions are "same" and move nothing, so they are left out. Max pooling would take the largest coordinate,
    half a pixel off; the mean of the same 2 x 2 pixels is their centre.
    """
    with torch.device("meta"):
        # Without storage: of the layers only their forms are needed.
        reader = build_reader(ReaderSpec("st_cnn_multi", size, size))
    assert isinstance(reader, PaperReader)
    rng = np.random.default_rng(seed)
    thetas = [torch.from_numpy(mild_theta(rng))[None] for _ in reader.transformers]
    boxes = input_boxes(torch.stack(thetas, dim=1))[0].numpy()
    shown = ramp(size)
    for index, stage in enumerate(reader.stages):
        if index < len(reader.transformers):
            transformer = reader.transformers[index]
            assert isinstance(transformer, SpatialTransformer)
            transformer.grid = target_grid(*transformer.target_size)
            assert shown.shape[-2:] == transformer.target_size
            shown = transformer.sample(shown, thetas[index])
            np.testing.assert_allclose(corners_of(shown), boxes[index], atol=2e-3)
        for layer in stage.modules():
            if isinstance(layer, nn.MaxPool2d):
                shown = nn.functional.avg_pool2d(shown, layer.kernel_size, layer.stride, layer.padding)
    assert len(boxes) == 4
    assert shown.shape[-1] == size // 16


MILD = ((0.8, -0.1, 0.05), (0.1, 0.8, -0.03))
"""Where each of a row looks, so that the last still looks at the input."""


def after_each_other(*maps: Map) -> Map:
    def path(u: float, v: float) -> tuple[float, float]:
        for each in maps:
            u, v = each(u, v)
        return u, v

    return path


def border(points_per_side: int) -> Array:
    """Around the target from its top-left corner, written out."""
    steps = [2 * step / points_per_side - 1 for step in range(points_per_side)]
    right = [(at, -1.0) for at in steps]
    down = [(1.0, at) for at in steps]
    left = [(-at, 1.0) for at in steps]
    up = [(-1.0, -at) for at in steps]
    return np.array(right + down + left + up)


@pytest.mark.parametrize("points_per_side", [1, 2, 8])
def test_the_border_is_closed_and_clockwise(points_per_side: int) -> None:
    points = np.array(target_outline(points_per_side))
    np.testing.assert_allclose(points, border(points_per_side), atol=1e-12)
    assert points[::points_per_side].tolist() == [list(corner) for corner in CORNERS]


@pytest.mark.parametrize("last", FAMILIES)
@pytest.mark.parametrize("first", FAMILIES)
def test_outlines_go_back_through_every_earlier_transformer(first: str, last: str) -> None:
    """Three in a row, of two kinds: the formulas, one after the other, for each point of the border."""
    row = [FAMILIES[name] for name in (first, last, first)]
    thetas = [family.thetas(2, seed=index, start=MILD) for index, family in enumerate(row)]
    placed = [(family.transformation, torch.tensor(theta)) for family, theta in zip(row, thetas, strict=True)]
    found = input_outlines(in_a_row(placed)).numpy()
    per_side = 8 if "thin plate" in (first, last) else 1
    assert found.shape == (2, 3, 4 * per_side, 2)
    for image in range(2):
        for k in range(3):
            way = [row[index].formula(thetas[index][image]) for index in range(k, -1, -1)]
            expected = through(after_each_other(*way), border(per_side))
            np.testing.assert_allclose(found[image, k], expected, rtol=1e-8, atol=1e-8)
    assert affine_thetas(placed).shape == (2, 3, 2, 3)


def test_side_by_side_each_goes_straight_to_the_input() -> None:
    family = FAMILIES["affine"]
    thetas = family.thetas(2)
    ways = [[(family.transformation, torch.tensor(theta)[None])] for theta in thetas]
    found = input_outlines(ways).numpy()
    for index, theta in enumerate(thetas):
        np.testing.assert_allclose(found[0, index], homogeneous_boxes(theta[None])[0], atol=1e-12)


@pytest.mark.parametrize("name", FAMILIES)
def test_coordinates_sent_through_any_transformers_arrive_where_the_outlines_say(name: str) -> None:
    """As above, with transformations of every kind; what the maps show is asked pixel by pixel, not at the corners.

    Between pixels a map that is not affine is not linear, and neither is its mean over 2 x 2: hence the tolerance.
    """
    family, size = FAMILIES[name], 128
    with torch.device("meta"):
        reader = PaperReader(size, 4, connected_localisation, family.transformation)
    thetas = [family.thetas(1, seed=index, spread=0.02, start=MILD) for index in range(4)]
    shown = ramp(size)
    for index, stage in enumerate(reader.stages):
        if index < 4:
            transformer = reader.transformers[index]
            assert isinstance(transformer, SpatialTransformer)
            transformer.grid = family.transformation.basis(target_grid(*transformer.target_size))
            shown = transformer.sample(shown, torch.tensor(thetas[index], dtype=torch.float32))
            way = [family.formula(thetas[k][0]) for k in range(index, -1, -1)]
            expected = through(after_each_other(*way), target_centres(*transformer.target_size))
            inside = shown[0, 2].numpy() > 0.999
            assert inside.mean() > 0.5
            found = shown[0, :2].permute(1, 2, 0).numpy()
            np.testing.assert_allclose(found[inside], expected[inside], atol=4e-3)
        for layer in stage.modules():
            if isinstance(layer, nn.MaxPool2d):
                shown = nn.functional.avg_pool2d(shown, layer.kernel_size, layer.stride, layer.padding)
