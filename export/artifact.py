"""The artifact: the graph of a checkpoint's reader, signed with what it is and where it comes from."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx
import onnxscript
import torch
from torch import nn

from export.graph import OPSET, trace
from models.checkpoint import load_reader, weights_sha256
from models.evaluation.calibration import Calibration
from models.readers import SLOTS, ReaderSpec, parameter_count, transformer_count
from models.served import ServedReader, bends
from service.artifact import ArtifactMetadata


@dataclass(frozen=True)
class Label:
    """What whoever exports says of the artifact; the checkpoint knows the rest.

    Attributes:
        name: name of the model in the service's answers.
        version: its version there.
        threshold: confidence from which a reading is accepted, 0 to 1.
        temperature: what the logits are divided by (calibration).
        evaluation: figures of `housenumber evaluate --json`, and under "calibration" those of `housenumber calibrate`.
    """

    name: str = "house-number"
    version: str = "1"
    threshold: float = 0.5
    temperature: float = 1.0
    evaluation: dict[str, Any] = field(default_factory=dict)

    def calibrated(self, calibration: Calibration) -> "Label":
        """The same label with the calibration's temperature, threshold and figures."""
        return replace(
            self,
            temperature=calibration.temperature,
            threshold=calibration.threshold,
            evaluation={**self.evaluation, "calibration": calibration.model_dump(mode="json")},
        )


def build_artifact(checkpoint: Path, label: Label) -> bytes:
    """The bytes of the artifact, weights and metadata inside: the same for the same checkpoint, label and versions.

    Raises:
        CheckpointError: the file is not a checkpoint of ours.
        OSError: it cannot be read.
    """
    reader, spec = load_reader(checkpoint)
    metadata = describe(reader, spec, label, weights_sha256(checkpoint))
    served = ServedReader(reader, label.temperature, outlines=bends(reader))
    model = trace(served, spec.input_height, spec.input_width)
    onnx.helper.set_model_props(model, metadata.to_metadata_map())
    artifact: bytes = model.SerializeToString(deterministic=True)
    return artifact


def describe(reader: nn.Module, spec: ReaderSpec, label: Label, weights_digest: str) -> ArtifactMetadata:
    """What the artifact of `reader` says about itself."""
    return ArtifactMetadata(
        name=label.name,
        version=label.version,
        reader=spec.reader,
        input_height=spec.input_height,
        input_width=spec.input_width,
        slots=SLOTS,
        transformers=transformer_count(reader),
        threshold=label.threshold,
        temperature=label.temperature,
        parameters=parameter_count(reader),
        weights_sha256=weights_digest,
        training=spec.training,
        evaluation=label.evaluation,
        versions={
            # Without the build's suffix ("+cpu"): it says nothing about the graph.
            "torch": torch.__version__.partition("+")[0],
            "onnx": onnx.__version__,
            "onnxscript": onnxscript.__version__,
            "opset": str(OPSET),
        },
    )
