"""The model card beside the shipped weights says what the artifact itself says."""

import hashlib
import re
from typing import Any

import pytest

from models.training.recipe import load_recipe
from service.artifact import ArtifactMetadata
from service.engine import OnnxEngine
from service.settings import DEFAULT_MODEL

CARD = (DEFAULT_MODEL.parent / "MODEL_CARD.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def metadata() -> ArtifactMetadata:
    return OnnxEngine(DEFAULT_MODEL, "cpu", intra_op_threads=1).metadata


def rows() -> dict[str, list[str]]:
    """The cells of every table row of the card, by the first one."""
    lines = [line.strip("|").split("|") for line in CARD.splitlines() if line.startswith("|")]
    return {cells[0].strip(" `"): [cell.strip() for cell in cells[1:]] for cells in lines}


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def test_the_files_are_the_ones_it_names(metadata: ArtifactMetadata) -> None:
    weights = hashlib.sha256(DEFAULT_MODEL.with_suffix(".safetensors").read_bytes()).hexdigest()
    assert weights == metadata.weights_sha256
    assert f"`{weights[:12]}`" in CARD
    assert f"{metadata.parameters:,}" in CARD
    size = sum(DEFAULT_MODEL.with_suffix(suffix).stat().st_size for suffix in (".onnx", ".safetensors"))
    assert size <= 16e6


def test_calibration_is_what_the_graph_applies(metadata: ArtifactMetadata) -> None:
    calibration: Any = metadata.evaluation["calibration"]
    assert calibration["weights_sha256"] == metadata.weights_sha256
    assert (calibration["temperature"], calibration["threshold"]) == (metadata.temperature, metadata.threshold)
    found = rows()
    assert found["temperature"] == [f"{metadata.temperature:.3f}"]
    assert found["threshold"] == [f"{metadata.threshold:.3f}"]


def test_every_figure_is_that_of_the_evaluation_in_the_artifact(metadata: ArtifactMetadata) -> None:
    evaluation: Any = metadata.evaluation
    assert evaluation["model"]["temperature"] == metadata.temperature
    assert evaluation["model"]["threshold"] == metadata.threshold
    found = rows()
    collections = {**evaluation["collections"], "all": evaluation["overall"]}
    for name, figures in collections.items():
        low, high = figures["accuracy_interval"]
        interval = f"{100 * low:.1f} to {100 * high:.1f}"
        right = [percent(figures[key]) for key in ("accuracy", "digit_accuracy", "coverage")]
        assert found[name] == [str(figures["n"]), right[0], interval, *right[1:]], name


def test_it_was_trained_by_the_recipe_that_is_here(metadata: ArtifactMetadata) -> None:
    assert metadata.training["recipe_sha256"] == load_recipe("compact_points_turned").digest
    assert re.search(r"no real photograph", CARD)
