"""How much of something lies in what was looked at: any outlines, and several together."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from test_html_report import png
from tiny_reader import THETA, write_artifact
from tiny_reader import metadata as tiny_metadata
from torch._subclasses.fake_tensor import FakeTensorMode

from models.data.sample import Sample
from models.evaluation.box_coverage import covered_share, overlap
from models.evaluation.evaluate import read_samples
from models.readers import READERS, SIDE_BY_SIDE, ReaderSpec, build_reader
from models.transformer import ParallelTransformers
from service.engine import OnnxEngine
from service.geometry import Region
from service.reader import Reader

REGION = Region(40, 10, 30, 20)
GRID = 150

# Not floats as small as there are: the reference below divides by their differences.
coordinates = st.integers(-1500, 1500).map(lambda thousandths: thousandths / 1000)
outlines = st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=7)


def in_pixels(outline: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(REGION.x + (x + 1) / 2 * REGION.width, REGION.y + (y + 1) / 2 * REGION.height) for x, y in outline]


def inside(outline: list[tuple[float, float]]) -> NDArray[np.bool_]:
    """Which points of a fine grid over [-1, 1] lie in an outline: an odd number of its sides to their right."""
    ticks = (np.arange(GRID) + 0.5) / GRID * 2 - 1
    x, y = np.meshgrid(ticks, ticks)
    odd = np.zeros_like(x, dtype=bool)
    for (x0, y0), (x1, y1) in zip(outline, outline[1:] + outline[:1], strict=True):
        if y0 != y1:
            odd ^= ((y0 <= y) != (y1 <= y)) & (x0 + (y - y0) / (y1 - y0) * (x1 - x0) > x)
    return odd


@given(shapes=st.lists(outlines, min_size=1, max_size=3))
def test_any_outlines_together_cover_the_points_inside_any(shapes: list[list[tuple[float, float]]]) -> None:
    share = covered_share(REGION, *(in_pixels(shape) for shape in shapes))
    counted = np.logical_or.reduce([inside(shape) for shape in shapes]).mean()
    # A side may cut off half a cell of each row that it passes.
    sides = sum(len(shape) for shape in shapes)
    assert share == pytest.approx(counted, abs=2 * sides / GRID)


@given(outline=outlines)
def test_a_thing_and_itself_are_no_more(outline: list[tuple[float, float]]) -> None:
    shape = in_pixels(outline)
    assert covered_share(REGION, shape, shape[::-1]) == pytest.approx(covered_share(REGION, shape), abs=1e-9)


@pytest.mark.parametrize(
    ("outline", "share"),
    [
        ([(-1, -1), (0, -1), (0, 0), (1, 0), (1, 1), (-1, 1)], 0.75),  # an L
        ([(-1, -1), (1, 1), (1, -1), (-1, 1)], 0.5),  # crosses itself: two triangles
        ([(-2, -2), (2, -2), (2, 2), (-2, 2)], 1),
        ([(-1, -1), (1, -1), (-1, -1), (1, -1)], 0),
        ([], 0),
    ],
)
def test_outlines_that_are_known(outline: list[tuple[float, float]], share: float) -> None:
    assert covered_share(REGION, in_pixels(outline)) == pytest.approx(share, abs=1e-9)


def test_overlap_is_the_intersection_over_the_union() -> None:
    around = Region(-5, -5, 10, 10)
    left, right = [[(x - 1, -1.0), (x + 1, -1.0), (x + 1, 1.0), (x - 1, 1.0)] for x in (0.0, 1.0)]
    assert overlap(around, left, left) == pytest.approx(1)
    assert overlap(around, left, right) == pytest.approx(1 / 3)
    assert overlap(around, left, [(x + 3, y) for x, y in left]) == pytest.approx(0)
    assert overlap(around, [(x + 9, y) for x, y in left], left) == pytest.approx(0)
    assert overlap(Region(10, 10, 1, 1), left, right) == 0


def test_side_by_side_are_the_readers_with_parallel_transformers() -> None:
    found = set()
    for name in READERS:
        with FakeTensorMode():
            reader = build_reader(ReaderSpec(name, 64, 64))
        if any(isinstance(part, ParallelTransformers) for part in reader.modules()):
            found.add(name)
    assert found == SIDE_BY_SIDE


def test_a_number_may_lie_in_several_boxes_side_by_side(tmp_path: Path) -> None:
    """The tiny reader's two boxes hold different parts of the view."""
    photograph, region = png("12", side=100), Region(0, 0, 100, 100)
    sample = Sample(photograph, "12", region, "s", "c", region)
    shares = {}
    for reader in ("tiny", *SIDE_BY_SIDE):
        path = write_artifact(tmp_path / f"{reader}.onnx", tiny_metadata(reader=reader).to_metadata_map())
        ((_, outcome),) = read_samples(Reader(OnnxEngine(path, "cpu", intra_op_threads=1)), [sample])
        shares[reader] = outcome.number_share
    ticks = (np.arange(400) + 0.5) / 200 - 1
    points = np.stack(np.meshgrid(ticks, ticks), axis=-1)
    held = [np.abs((points - theta[:, 2]) @ np.linalg.inv(theta[:, :2]).T).max(axis=-1) <= 1 for theta in THETA]
    assert shares["tiny"] == pytest.approx(held[-1].mean(), abs=0.01)
    assert shares["parallel"] == pytest.approx((held[0] | held[1]).mean(), abs=0.01)
    assert (held[0] | held[1]).mean() > held[-1].mean() + 0.05


def test_boxes_overlap_by_what_both_hold_of_what_either_does(engine: OnnxEngine) -> None:
    """Beyond the view too; every view of the tiny reader's has the same boxes."""
    photograph = png("12", side=100)
    samples = [Sample(photograph, "12", region, "s", "c") for region in (None, Region(20, 30, 50, 40))]
    ticks = (np.arange(1000) + 0.5) / 250 - 2
    points = np.stack(np.meshgrid(ticks, ticks), axis=-1)
    first, second = (
        np.abs((points - theta[:, 2]) @ np.linalg.inv(theta[:, :2]).T).max(axis=-1) <= 1 for theta in THETA
    )
    expected = (first & second).sum() / (first | second).sum()
    assert 0 < expected < 1
    for _, outcome in read_samples(Reader(engine), samples):
        assert outcome.overlap == pytest.approx(expected, abs=0.01)
