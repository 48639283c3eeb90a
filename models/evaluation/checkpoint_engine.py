"""An engine that runs a checkpoint in PyTorch, so that it is evaluated by the very code that serves artifacts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.checkpoint import load_reader, weights_sha256
from models.readers import parameter_count, transformer_count
from models.served import ServedReader
from service.artifact import ArtifactMetadata
from service.engine import Outputs, Provider, ProviderError


class CheckpointEngine:
    """A `service.engine.Engine` on safetensors weights.

    provider: "cpu", "cuda", or "auto" for CUDA where there is one.
    Raises CheckpointError (see `load_reader`) and ProviderError when CUDA is asked for and not there.
    """

    def __init__(self, path: Path, provider: Provider = "auto") -> None:
        if provider == "cuda" and not torch.cuda.is_available():
            raise ProviderError("PyTorch sees no CUDA device; `--provider auto` or `cpu` runs without one")
        self._device = torch.device("cpu" if provider == "cpu" or not torch.cuda.is_available() else "cuda")
        reader, spec = load_reader(path)
        self._served = ServedReader(reader).eval().to(self._device)
        self.sha256 = weights_sha256(path)
        self.parallel_batches = 1
        self.provider = f"PyTorch {self._device.type}"
        self.metadata = ArtifactMetadata(
            name=path.stem,
            version="unexported",
            reader=spec.reader,
            input_height=spec.input_height,
            input_width=spec.input_width,
            transformers=transformer_count(reader),
            threshold=0.0,
            temperature=1.0,
            parameters=parameter_count(reader),
            weights_sha256=self.sha256,
            training=spec.training,
            evaluation={},
            versions={"torch": torch.__version__},
        )

    @torch.inference_mode()
    def infer(self, images: NDArray[np.uint8]) -> Outputs:
        """See `service.engine.Engine.infer`."""
        batch = torch.from_numpy(images).to(self._device)
        probabilities, theta, boxes = (output.float().cpu().numpy() for output in self._served(batch))
        return Outputs(probabilities, theta, boxes)
