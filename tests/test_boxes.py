"""Boxes: where the transformers looked, against the real chain of layers and against 3 x 3 matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from models.boxes import input_boxes
from models.readers import ReaderSpec, build_reader
from models.readers.paper import PaperReader
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


@settings(max_examples=60, deadline=None)
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
