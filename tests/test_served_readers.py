"""Every reader from a few steps of training to an answer over HTTP, checked against PyTorch and plain geometry."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from exporting import shorten_parity
from lecture import Array, affine_map, through
from narrow import narrow_networks
from serving import serving

from export.artifact import Label, build_artifact
from export.verify import verify
from models.checkpoint import load_reader
from models.data.sample import Sample
from models.data.synthetic.fonts import BUILT_IN
from models.data.synthetic.render import render
from models.readers import READERS, ReaderOutput
from models.training.loop import train
from models.training.recipe import Recipe
from service.engine import OnnxEngine
from service.imaging import Photo

TRANSFORMERS = {
    "compact": 1,
    "compact_points": 1,
    "compact_cnn": 0,
    "cnn": 0,
    "st_cnn_single": 1,
    "st_cnn_multi": 4,
    "maxout_cnn": 0,
    "maxout_cnn_slots": 0,
    "shared": 1,
    "parallel": 4,
}
SIDE_BY_SIDE = {"parallel"}
"""Readers whose transformers all look at the input; those of the others look at what the one before shows."""

LABEL = Label("doors", "2", threshold=0.25, temperature=1.5)
CORNERS = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], dtype=np.float64)


def recipe(name: str) -> Recipe:
    side = 64 if name.startswith("compact") else 32
    return Recipe.model_validate(
        {
            "reader": {"name": name, "input_height": side, "input_width": side},
            "data": {"validation": 2},
            # Fast for the transformers, so that they have left where they start.
            "optimiser": {"name": "adamw", "learning_rate": 0.003, "localisation_factor": 2.0},
            "schedule": {"name": "step", "steps": 4, "batch_size": 4},
            "run": {"seed": 1, "validate_every": 4, "checkpoint_every": 4},
        }
    )


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [render(index, 0, (BUILT_IN,)) for index in range(9)]


def reading_of(probabilities: Array) -> tuple[str, float]:
    """The most probable sequence of `[5, 11]` that has its digits in one run, found by trying all runs."""
    best = ("", float(probabilities[:, 10].prod()))
    for start, end in itertools.combinations(range(6), 2):
        digits = probabilities[start:end, :10]
        share = float(digits.max(axis=1).prod() * probabilities[:start, 10].prod() * probabilities[end:, 10].prod())
        if share > best[1]:
            best = ("".join(map(str, digits.argmax(axis=1))), share)
    return best


def corners_in_pixels(name: str, thetas: Array, region: tuple[float, float, float, float]) -> Array:
    """[K, 4, 2]: each corner through one transformer after the other back to the view, then into the photograph."""
    left, top, width, height = region
    boxes = []
    for k in range(len(thetas)):
        points = CORNERS
        for theta in thetas[k : k + 1] if name in SIDE_BY_SIDE else thetas[k::-1]:
            points = through(affine_map(theta), points)
        boxes.append([(left + (x + 1) / 2 * width, top + (y + 1) / 2 * height) for x, y in points])
    return np.array(boxes).reshape(len(thetas), 4, 2)


def test_all_readers_are_here() -> None:
    assert set(TRANSFORMERS) == set(READERS)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_from_training_to_an_answer(
    name: str, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_parity(monkeypatch)
    with narrow_networks():
        weights = train(recipe(name), samples[:6], samples[6:8], tmp_path, workers=0)
        artifact = build_artifact(weights, LABEL)
        assert [check for check in verify(artifact, weights) if not check.passed] == []
        reader, spec = load_reader(weights)
    path = tmp_path / "reader.onnx"
    path.write_bytes(artifact)

    photo = Photo.open(samples[8].image, max_pixels=10**6)
    region = (2.0, 3.0, photo.width - 7.0, photo.height - 4.0)
    (view,) = photo.views([photo.region(*region)], (spec.input_height, spec.input_width))
    with torch.inference_mode():
        output: ReaderOutput = reader(torch.from_numpy(view.pixels)[None].permute(0, 3, 1, 2) / 255)
    probabilities = (output.logits[0].double() / LABEL.temperature).softmax(dim=-1).numpy()
    thetas = output.theta[0].double().numpy()
    boxes = corners_in_pixels(name, thetas, region)
    number, confidence = reading_of(probabilities)
    assert len(thetas) == TRANSFORMERS[name]
    with narrow_networks():
        untrained = READERS[name](spec.input_height, spec.input_width).eval()
    with torch.inference_mode():
        start = untrained(torch.zeros(1, 3, spec.input_height, spec.input_width)).theta[0].double().numpy()
    assert (np.abs(thetas - start).max(axis=(1, 2)) > 0.01).all(), "a transformer that never moved proves nothing"

    with serving(OnnxEngine(path, "cpu", intra_op_threads=1), second_look=False) as client:
        response = client.post(
            "/predict",
            params={"region": ",".join(map(str, region))},
            content=samples[8].image,
            headers={"Content-Type": "application/octet-stream"},
        )
    assert response.status_code == 200, response.text
    body = response.json()
    (prediction,) = body["predictions"]
    assert (body["model"]["name"], body["model"]["version"]) == ("doors", "2")
    assert prediction["number"] == number
    assert prediction["confidence"] == pytest.approx(confidence, abs=1e-4)
    assert prediction["accepted"] == (number != "" and confidence >= LABEL.threshold)
    assert [box["transformer"] for box in prediction["boxes"]] == list(range(len(thetas)))
    for box, theta, corners in zip(prediction["boxes"], thetas, boxes, strict=True):
        np.testing.assert_allclose(box["theta"], theta, atol=2e-4)
        # A hundredth of a pixel, and float32's digits where so few steps have sent a box far away.
        np.testing.assert_allclose(box["corners"], corners, rtol=1e-5, atol=1e-2)
