"""Every transformation with every sampler: exported, through the gate, and taken by the service."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from exporting import combined_artifact, shorten_parity
from families import FAMILIES
from lecture import Array, through
from narrow import registered
from torch import Tensor, nn

from export import parity
from export.operators import foreign_operators
from export.verify import verify
from models.boxes import target_outline
from models.checkpoint import load_reader
from models.served import OUTLINES
from models.transformer import Sampling, SpatialTransformer
from service.engine import OnnxEngine

SIZE = 32


def looked_at(reader: nn.Module, images: Tensor) -> list[Array]:
    """The thetas `[N, *shape]` of every transformer, in the order of the network, in PyTorch."""
    thetas: list[Array] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        thetas.append(output[1].double().numpy())

    for part in reader.modules():
        if isinstance(part, SpatialTransformer):
            part.register_forward_hook(note)
    with torch.inference_mode():
        reader(images.permute(0, 3, 1, 2) / 255)
    return thetas


@pytest.mark.parametrize("sampling", ["bilinear", "nearest"])
@pytest.mark.parametrize("name", FAMILIES)
def test_it_is_exported_and_answers_as_pytorch_and_the_formulas_do(
    name: str, sampling: Sampling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_parity(monkeypatch)
    formula = FAMILIES[name].formula
    path = tmp_path / "reader.onnx"
    artifact, checkpoint = combined_artifact(name, sampling)
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(checkpoint)
    with registered(name, sampling):
        failed = {check.name: check.detail for check in verify(artifact, weights) if not check.passed}
        reader, _ = load_reader(weights)
    if sampling == "nearest":
        # All is well but that no reader learns where to look with it: the gate lets nothing pass that samples so.
        assert list(failed) == ["sampling"]
        assert "('nearest', 'zeros', 0)" in failed["sampling"]
    else:
        assert failed == {}
    assert foreign_operators(onnx.load_model_from_string(artifact)) == []

    path.write_bytes(artifact)
    images = parity.probe_images(4, SIZE, SIZE)
    outputs = OnnxEngine(path, "cpu", intra_op_threads=1).infer(images)
    first, second = looked_at(reader, torch.from_numpy(images))

    def expected(border: Array) -> Array:
        """[N, 2, M, 2]: back through the second transformer and the first."""
        return np.array(
            [
                (through(formula(one), border), through(formula(one), through(formula(two), border)))
                for one, two in zip(first, second, strict=True)
            ]
        )

    boxes = expected(np.array(target_outline(1)))
    np.testing.assert_allclose(outputs.boxes, boxes, atol=4e-4)
    assert np.abs(boxes[0] - boxes[1]).max() > 1e-3, "the boxes would be right for any image"
    own = [output.name for output in onnx.load_model_from_string(artifact).graph.output]
    if name == "thin plate":
        assert own == ["probabilities", "theta", "boxes", OUTLINES]
        session = ort.InferenceSession(artifact, providers=["CPUExecutionProvider"])
        (outlines,) = session.run([OUTLINES], {"images": images})
        np.testing.assert_allclose(outlines, expected(np.array(target_outline(8))), atol=4e-4)
    else:
        assert own == ["probabilities", "theta", "boxes"]
