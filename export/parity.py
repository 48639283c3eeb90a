"""The same answers from ONNX Runtime and from PyTorch, wherever the transformers look."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch.nn import functional as F

from models.served import OUTLINES, ServedReader
from models.transformations import IDENTITY_THETA, Matrix
from models.transformer import SpatialTransformer
from service.artifact import INPUT_NAME

BATCHES = (1, 3, 32)
"""One, an odd few, and the most the service runs at a time."""

TOLERANCES = {
    # Softmax outputs in [0, 1]. Sums of thousands of float32 products in another order differ by some 1e-6; what
    # four transformers in a row make of it, on images with sharp edges, stays under a tenth of this.
    "probabilities": 1e-4,
    # Normalised coordinates, 2 to a width: 1e-4 is a 300th of a pixel at 64 px. Whatever hangs on the last bits of a
    # localisation network is far below, and no wrong convention (corners, order, centre) can hide in it.
    "theta": 1e-4,
    # Products of up to four thetas, whose errors add up.
    "boxes": 4e-4,
    OUTLINES: 4e-4,
}
"""Largest absolute difference allowed in each output."""

_TILT = math.radians(25)
_COS, _SIN = math.cos(_TILT), math.sin(_TILT)

THETAS: dict[str, Matrix | None] = {
    "as trained": None,
    "identity": IDENTITY_THETA,
    "zoomed": ((0.6, 0.0, 0.15), (0.0, 0.7, -0.1)),
    "rotated": ((_COS, -_SIN, 0.05), (_SIN, _COS, 0.0)),
    "partly outside": ((1.1, 0.1, 0.35), (0.0, 1.2, -0.25)),
}
"""What every transformer is made to look at, target -> source, as closely as its transformation can; None leaves the
weights as they are."""


class ParityError(Exception):
    """ONNX Runtime and PyTorch disagree, or cannot be compared; one line."""


@dataclass(frozen=True)
class Differences:
    """Largest absolute difference of each output, by its name."""

    largest: dict[str, float]

    def __str__(self) -> str:
        return ", ".join(f"{name} {difference:.1e}" for name, difference in self.largest.items())


def check_parity(model: onnx.ModelProto, reader: ServedReader, height: int, width: int) -> Differences:
    """Compare the two on random and on smooth images, in batches of `BATCHES`, with theta as in `THETAS`.

    A theta is set by giving the last layer of each localisation network zero weights and theta as its bias, in
    the graph (its initializers have the names of the module's parameters) and in PyTorch together. Both `model`
    and `reader` are left with the last theta.

    Raises:
        ParityError: a difference is beyond its tolerance, not finite, or ONNX Runtime cannot run the graph.
    """
    images = probe_images(max(BATCHES), height, width)
    transformers = {name: part for name, part in reader.named_modules() if isinstance(part, SpatialTransformer)}
    largest = dict.fromkeys(reader.output_names, 0.0)
    for case, theta in THETAS.items():
        if theta is not None:
            set_theta(model, transformers, theta)
        session = _session(model)
        with torch.inference_mode():
            expected = [output.numpy() for output in reader(torch.from_numpy(images))]
        for batch in BATCHES:
            found = _run(session, reader.output_names, images[:batch])
            for name, ours, theirs in zip(reader.output_names, found, expected, strict=True):
                difference = _difference(ours, theirs[:batch])
                # Not "greater than": NaN must fail too.
                if not difference <= TOLERANCES[name]:
                    raise ParityError(
                        f"{name} differ by {difference:.1e} (allowed {TOLERANCES[name]:.0e}) with theta {case},"
                        f" batch {batch}"
                    )
                largest[name] = max(largest[name], difference)
        if not transformers:
            break
    return Differences(largest)


def probe_images(count: int, height: int, width: int) -> NDArray[np.uint8]:
    """`[count, height, width, 3]`: smooth ones, as photographs are, and uniform noise, in turns."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand((count, 3, height, width), generator=generator)
    coarse = torch.rand((count, 3, 6, 6), generator=generator)
    smooth = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False).clamp(0, 1)
    turns = (torch.arange(count) % 2 == 0).reshape(-1, 1, 1, 1)
    pixels: NDArray[np.uint8] = (torch.where(turns, smooth, noise) * 255).byte().permute(0, 2, 3, 1).numpy()
    return pixels


def set_theta(model: onnx.ModelProto, transformers: Mapping[str, SpatialTransformer], theta: Matrix) -> None:
    """Make every transformer (by its name in the module) look there in every image, in `model` and in PyTorch.

    The exporter merges equal initializers, so that in an untrained reader several transformers share one: those
    that are there are set. Were one missed, its theta would be seen to differ.
    """
    initializers = {initializer.name: initializer for initializer in model.graph.initializer}
    for name, transformer in transformers.items():
        # As often as there are thetas: transformers side by side all look there.
        one = np.array(transformer.transformation.closest_to(theta), np.float32)
        numbers = np.resize(one, transformer.to_theta.out_features)
        parameters = dict(transformer.to_theta.named_parameters(f"{name}.to_theta"))
        for key, parameter in parameters.items():
            value = np.zeros(tuple(parameter.shape), np.float32) if key.endswith("weight") else numbers
            with torch.no_grad():
                parameter.copy_(torch.from_numpy(value))
            if key in initializers:
                initializers[key].CopyFrom(numpy_helper.from_array(value, key))


def _session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    # PyTorch's threads run in turns with these; spinning, each would keep the other off the cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no base class of their own.
        raise ParityError(f"ONNX Runtime cannot load the graph: {' '.join(str(error).split())}") from error


def _run(session: ort.InferenceSession, names: list[str], images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    try:
        outputs: list[NDArray[np.float32]] = session.run(names, {INPUT_NAME: images})
    except Exception as error:
        raise ParityError(
            f"ONNX Runtime cannot run a batch of {len(images)}: {' '.join(str(error).split())}"
        ) from error
    return outputs


def _difference(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    if ours.shape != theirs.shape:
        raise ParityError(f"ONNX Runtime gives shape {ours.shape}, PyTorch {theirs.shape}")
    return float(np.abs(ours - theirs).max(initial=0.0))
