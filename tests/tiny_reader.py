"""A reader small enough to know by heart, as a real artifact for ONNX Runtime.

It looks at 8 x 8 pixels and reads the mean of each colour channel as one digit: channel value 12 + 24 d is the
digit d, and 252 is blank. So a plain colour is a number of up to three digits, and `colour_of` says which. Its
two transformers always look at the same places.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from service.artifact import ArtifactMetadata

SIZE = 8
BLANK = 252
# An alphabet for another version: it reads "12" where this one reads "87".
REVERSED = "9876543210"
THRESHOLD = 0.6

# Two transformers: one that crops and shears, one that is a rotation by 30 degrees partly outside.
_COS, _SIN = np.cos(np.pi / 6), np.sin(np.pi / 6)
THETA = np.array(
    [[[0.5, 0.1, -0.2], [0.0, 0.75, 0.1]], [[0.9 * _COS, -0.9 * _SIN, 0.4], [0.9 * _SIN, 0.9 * _COS, 0.3]]],
    dtype=np.float32,
)
# The target's corners, clockwise from the top-left, through theta.
BOXES = np.array(
    [[[t[0] @ (x, y, 1), t[1] @ (x, y, 1)] for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))] for t in THETA],
    dtype=np.float32,
)


def colour_of(number: str) -> tuple[int, int, int]:
    """The colour that reads as a number of up to three digits."""
    red, green, blue = ([12 + 24 * int(digit) for digit in number] + [BLANK] * 3)[:3]
    return red, green, blue


def metadata(**changes: object) -> ArtifactMetadata:
    fields = {
        "name": "tiny",
        "version": "7",
        "reader": "tiny",
        "input_height": SIZE,
        "input_width": SIZE,
        "transformers": len(THETA),
        "threshold": THRESHOLD,
        "temperature": 1.0,
        "parameters": 0,
        "weights_sha256": "0" * 64,
        "training": {},
        "evaluation": {},
        "versions": {},
    }
    return ArtifactMetadata.model_validate({**fields, **changes})


def write_version(root: Path, number: int, *, name: str = "tiny", **changes: object) -> Path:
    """Writes the artifact as a version in the repository `root`; `changes` are those of its metadata."""
    path = root / name / str(number) / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    described = metadata(**{"name": name, "version": str(number), **changes})
    return write_artifact(path, described.to_metadata_map())


def write_artifact(path: Path, properties: dict[str, str] | None = None, *, zero: float = 0.0) -> Path:
    """Writes the artifact; `properties` replaces its metadata entries, and `zero` what is added to all boxes, so that
    with NaN there are none."""
    centres = np.array([12.0 + 24.0 * digit for digit in range(10)] + [BLANK], np.float32)
    slots = np.array([1, 1, 1, 0, 0], np.float32)[None, :, None]
    bias = np.zeros((1, 5, 11), np.float32)
    bias[:, 3:, 10] = 50.0  # the last two slots are always blank
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "rows_and_columns"], ["colour"], keepdims=0),
        helper.make_node("Gather", ["colour", "channel_of_slot"], ["channels"], axis=1),
        helper.make_node("Unsqueeze", ["channels", "last"], ["of_slot"]),
        helper.make_node("Sub", ["of_slot", "centres"], ["distance"]),
        helper.make_node("Mul", ["distance", "distance"], ["squared"]),
        helper.make_node("Mul", ["squared", "sharpness"], ["sharp"]),
        helper.make_node("Add", ["sharp", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
        # Zero, once per image: gives the constants below their batch dimension.
        helper.make_node("ReduceMean", ["colour", "second"], ["brightness"], keepdims=1),
        helper.make_node("Mul", ["brightness", "zero"], ["nothing"]),
        helper.make_node("Unsqueeze", ["nothing", "last_two"], ["nothing4"]),
        helper.make_node("Add", ["nothing4", "all_theta"], ["theta"]),
        helper.make_node("Add", ["nothing4", "all_boxes"], ["boxes"]),
    ]
    constants: dict[str, NDArray[np.generic]] = {
        "rows_and_columns": np.array([1, 2]),
        "second": np.array([1]),
        "last": np.array([2]),
        "last_two": np.array([2, 3]),
        "channel_of_slot": np.array([0, 1, 2, 0, 0]),
        "centres": centres,
        "sharpness": slots * np.float32(-0.05),
        "bias": bias,
        "zero": np.array([zero], np.float32),
        "all_theta": THETA[None],
        "all_boxes": BOXES[None],
    }
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", SIZE, SIZE, 3])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 5, 11]),
            helper.make_tensor_value_info("theta", TensorProto.FLOAT, ["N", *THETA.shape]),
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["N", *BOXES.shape]),
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, metadata().to_metadata_map() if properties is None else properties)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path
