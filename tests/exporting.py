"""Checkpoints whose answers depend on what they are shown, and the faults an artifact can have."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import pytest
import torch
from narrow import COMBINED, registered
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from export import parity
from export.artifact import Label, build_artifact
from models.checkpoint import save_reader
from models.readers import ReaderSpec, build_reader
from models.transformer import Sampling, SpatialTransformer
from service.artifact import METADATA_KEY

TRAINING = {"recipe": "test", "steps": 3, "data": ["a", "b"]}


def lively_checkpoint(path: Path, reader: str, size: int = 64) -> Path:
    """Weights of He et al.'s scale and transformers off the identity.

    As initialised the paper's readers answer nearly the same for every image, so any two of them would agree.
    """
    torch.manual_seed(0)
    spec = ReaderSpec(reader, size, size, TRAINING)
    network = build_reader(spec)
    for part in network.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
        elif isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            nn.init.uniform_(part.running_mean, -0.1, 0.1)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
    for part in network.modules():
        if isinstance(part, SpatialTransformer):
            part.reset()
            nn.init.normal_(part.to_theta.weight, std=0.02)
    save_reader(path, network, spec)
    return path


@cache
def combined_artifact(family: str, sampling: Sampling) -> tuple[bytes, bytes]:
    """The artifact of a lively `COMBINED` for 32 x 32 pixels, and its checkpoint. Made once: it takes seconds."""
    with TemporaryDirectory() as folder, registered(family, sampling):
        weights = lively_checkpoint(Path(folder, "weights.safetensors"), COMBINED, 32)
        return build_artifact(weights, Label()), weights.read_bytes()


def shorten_parity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults show in a batch of three as well as in one of 32, and with two thetas as well as with five."""
    monkeypatch.setattr(parity, "BATCHES", (1, 3))
    monkeypatch.setattr(parity, "THETAS", {case: parity.THETAS[case] for case in ("as trained", "identity")})


Fault = Callable[[onnx.ModelProto], None]


def _node(model: onnx.ModelProto, kind: str) -> onnx.NodeProto:
    nodes: list[onnx.NodeProto] = [node for node in model.graph.node if node.op_type == kind]
    return nodes[0]


def _initializer(model: onnx.ModelProto, fits: Callable[[TensorProto], bool]) -> TensorProto:
    tensors: list[TensorProto] = [tensor for tensor in model.graph.initializer if fits(tensor)]
    return tensors[0]


def _sampling(name: str, value: str | int) -> Fault:
    def fault(model: onnx.ModelProto) -> None:
        node = _node(model, "GridSample")
        kept = [attribute for attribute in node.attribute if attribute.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])

    return fault


def _weights_times(factor: float) -> Fault:
    def fault(model: onnx.ModelProto) -> None:
        tensor = _initializer(model, lambda tensor: tensor.name == "reader.trunk.1.0.weight")
        changed = numpy_helper.to_array(tensor) * np.float32(factor)
        tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))

    return fault


def _metadata(**changes: object) -> Fault:
    def fault(model: onnx.ModelProto) -> None:
        entry = next(entry for entry in model.metadata_props if entry.key == METADATA_KEY)
        entry.value = json.dumps({**json.loads(entry.value), **changes})

    return fault


def _no_metadata(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]


def _outside_file(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")


def _missing_node(model: onnx.ModelProto) -> None:
    model.graph.node.remove(_node(model, "Softmax"))


def _shape_that_contradicts(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 12


def _shape_operator(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Shape", ["images"], ["size"], name="size"))


def _newer_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 22


def _fixed_batch(model: onnx.ModelProto) -> None:
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2


def _dynamic_height(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "H"


def _float_pixels(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT


def _renamed_output(model: onnx.ModelProto) -> None:
    name = model.graph.output[1].name
    for node in model.graph.node:
        node.output[:] = ["where" if output == name else output for output in node.output]
        node.input[:] = ["where" if read == name else read for read in node.input]
    model.graph.output[1].name = "where"


def _batch_of_one(model: onnx.ModelProto) -> None:
    """Reshapes that make one image of whatever they get; those to matrices hold rows of all images, and stay."""
    forms = {node.input[1] for node in model.graph.node if node.op_type == "Reshape"}
    for tensor in model.graph.initializer:
        form = numpy_helper.to_array(tensor)
        if tensor.name in forms and len(form) > 2 and form[0] == -1:
            tensor.CopyFrom(numpy_helper.from_array(np.where(form == -1, 1, form), tensor.name))


def _corners_swapped(model: onnx.ModelProto) -> None:
    tensor = _initializer(model, lambda tensor: list(tensor.dims) == [4, 2])
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[::-1].copy(), tensor.name))


def _theta_out_of_reach(model: onnx.ModelProto) -> None:
    """The weights of theta under other names, as if the exporter had folded them."""
    for tensor in model.graph.initializer:
        if ".to_theta." in tensor.name:
            for node in model.graph.node:
                node.input[:] = ["folded" + read if read == tensor.name else read for read in node.input]
            tensor.name = "folded" + tensor.name


FAULTS: dict[str, tuple[Fault, str, str]] = {
    "weights outside the file": (_outside_file, "graph", "lie outside the file"),
    "missing node": (_missing_node, "graph", "node"),
    "contradicting shape": (_shape_that_contradicts, "graph", "12"),
    "operator of shapes": (_shape_operator, "operators", "Shape"),
    "newer opset": (_newer_opset, "operators", "opset ai.onnx 22"),
    "no metadata": (_no_metadata, "metadata", "no entry 'housenumber'"),
    "other format": (_metadata(format_version=2), "metadata", "format version 2"),
    "threshold out of range": (_metadata(threshold=1.5), "metadata", "threshold"),
    "no name": (_metadata(name=""), "metadata", "name"),
    "unknown versions": (_metadata(versions={"torch": "2", "onnx": "1"}), "metadata", "onnxscript, opset"),
    "other alphabet": (_metadata(alphabet="0123456789A"), "metadata", "5 slots of 12 classes"),
    "fixed batch": (_fixed_batch, "interface", "not dynamic"),
    "dynamic height": (_dynamic_height, "interface", "[N, H, 64, 3]"),
    "float pixels": (_float_pixels, "interface", "images float"),
    "renamed output": (_renamed_output, "interface", "where float"),
    "size other than promised": (_metadata(input_width=128), "interface", "[N, 64, 128, 3]"),
    "boxes other than promised": (_metadata(transformers=2), "interface", "[N, 2, 4, 2]"),
    "nearest": (_sampling("mode", "nearest"), "sampling", "nearest"),
    "mode of another type": (_sampling("mode", 3), "sampling", "AttributeError"),
    "border": (_sampling("padding_mode", "border"), "sampling", "border"),
    "corners aligned": (_sampling("align_corners", 1), "sampling", "'zeros', 1"),
    "transformers other than promised": (_metadata(transformers=0), "sampling", "1 GridSample nodes for 0"),
    "other weights": (_metadata(weights_sha256="0" * 64), "weights", "000000000000"),
    "other reader": (_metadata(reader="cnn"), "weights", "'cnn'"),
    "parameters miscounted": (_metadata(parameters=7), "weights", ", 7,"),
    "training forgotten": (_metadata(training={}), "weights", "{}"),
    "changed weight": (_weights_times(1.01), "parity", "probabilities differ"),
    "weight not a number": (_weights_times(float("nan")), "parity", "differ by nan"),
    "other temperature": (_metadata(temperature=1.5), "parity", "probabilities differ"),
    "batch of one": (_batch_of_one, "parity", "a batch of 3"),
    "corners swapped": (_corners_swapped, "parity", "boxes differ"),
    "theta out of reach": (_theta_out_of_reach, "parity", "with theta identity"),
}
"""Name -> (what breaks the model, the check that must fail, what its line must say)."""


def broken(artifact: bytes, fault: Fault) -> bytes:
    """The artifact with the fault."""
    model = onnx.load_model_from_string(artifact)
    fault(model)
    broken: bytes = model.SerializeToString()
    return broken
