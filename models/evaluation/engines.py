"""The engine of a model file, whichever of the two kinds it is."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from models.checkpoint import CheckpointError
from models.evaluation.checkpoint_engine import CheckpointEngine
from service.artifact import ArtifactError, ArtifactMetadata
from service.engine import Engine, OnnxEngine, Outputs, Provider


def load_engine(model: Path, provider: Provider) -> Engine:
    """The engine of an artifact (.onnx) or of weights (.safetensors).

    Raises ArtifactError when it cannot be loaded, ProviderError, and click.UsageError for any other suffix.
    """
    if model.suffix == ".onnx":
        return OnnxEngine(model, provider)
    if model.suffix == ".safetensors":
        try:
            return CheckpointEngine(model, provider)
        except CheckpointError as error:
            raise ArtifactError(str(error)) from error  # for the user it is the same: a model that cannot be loaded
    raise click.UsageError(f"{model} is neither an artifact (.onnx) nor weights (.safetensors)")


class WrappedEngine:
    """What an engine around another one has of that."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def metadata(self) -> ArtifactMetadata:
        return self._engine.metadata

    @property
    def sha256(self) -> str:
        return self._engine.sha256

    @property
    def provider(self) -> str:
        return self._engine.provider

    @property
    def parallel_batches(self) -> int:
        return self._engine.parallel_batches


class RecordingEngine(WrappedEngine):
    """An engine that keeps the probabilities of every image that it reads, in order: not of one for which it gives no
    finite numbers, which is not read."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._batches: list[NDArray[np.float32]] = []

    @property
    def parallel_batches(self) -> int:
        """One: batches that run side by side would not be recorded in order."""
        return 1

    def infer(self, images: NDArray[np.uint8]) -> Outputs:
        """See `service.engine.Engine.infer`."""
        outputs = self._engine.infer(images)
        self._batches.append(outputs.probabilities[outputs.finite()])
        return outputs

    def take(self) -> NDArray[np.float32]:
        """The probabilities [N, slots, classes] since the last call; N is 0 when there were no images."""
        metadata = self.metadata
        nothing = np.empty((0, metadata.slots, metadata.classes), np.float32)
        batches, self._batches = self._batches, []
        return np.concatenate([nothing, *batches])
