"""The gate every artifact passes before it is written: named checks, each with one clear line."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto

from export.operators import foreign_operators
from export.parity import BATCHES, THETAS, ParityError, check_parity
from models.checkpoint import CheckpointError, load_reader, weights_sha256
from models.readers import CLASSES, SLOTS, parameter_count
from models.served import OUTLINES, ServedReader, bends
from service.artifact import INPUT_NAME, ArtifactError, ArtifactMetadata, parse_metadata

REQUIRED_VERSIONS = ("torch", "onnx", "onnxscript", "opset")
"""What an artifact's metadata names the version of."""


@dataclass(frozen=True)
class Check:
    """The outcome of one check; `detail` says what was found, or what is wrong."""

    name: str
    passed: bool
    detail: str


class VerificationError(Exception):
    """Why a check fails; one line."""


class Candidate:
    """An artifact to be judged: the bytes of the file, and the checkpoint it was made from."""

    def __init__(self, artifact: bytes, weights: Path) -> None:
        self.model = onnx.load_model_from_string(artifact)
        self.weights = weights

    def parse_metadata(self) -> ArtifactMetadata:
        return parse_metadata({entry.key: entry.value for entry in self.model.metadata_props})

    @cached_property
    def metadata(self) -> ArtifactMetadata:
        """For all checks but that of the metadata itself."""
        try:
            return self.parse_metadata()
        except ArtifactError as error:
            raise VerificationError("cannot be judged without metadata") from error

    def require_weights(self) -> Path:
        if not self.weights.is_file():
            raise VerificationError(
                f"no weights at {self.weights}: parity cannot be shown (name the checkpoint with --weights)"
            )
        return self.weights


def verify(artifact: bytes, weights: Path, on_start: Callable[[str], object] = lambda name: None) -> list[Check]:
    """Run every check on the bytes of an artifact, made from the checkpoint `weights`.

    `on_start` is told the name of each check before it runs. A fault is a failed check, never an exception.
    """
    try:
        candidate = Candidate(artifact, weights)
    except DecodeError:
        return [Check("graph", False, "not an ONNX file")]
    checks = []
    for name, check in CHECKS.items():
        on_start(name)
        try:
            checks.append(Check(name, True, check(candidate)))
        except (VerificationError, ParityError, ArtifactError, CheckpointError, OSError) as error:
            checks.append(Check(name, False, str(error)))
        except Exception as error:  # A graph that no check foresaw must not get past the gate, nor break it.
            checks.append(Check(name, False, f"{type(error).__name__}: {' '.join(str(error).split())}"))
    return checks


def check_graph(candidate: Candidate) -> str:
    """ONNX's checker and strict shape inference, and everything in the one file."""
    outside = [tensor.name for tensor in candidate.model.graph.initializer if tensor.external_data]
    if outside:
        raise VerificationError(f"{len(outside)} weights lie outside the file, the first is {outside[0]!r}")
    try:
        onnx.checker.check_model(candidate.model)
        onnx.shape_inference.infer_shapes(candidate.model, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise VerificationError(" ".join(str(error).split())) from error
    return f"{len(candidate.model.graph.node)} nodes, checker and strict shape inference pass"


def check_operators(candidate: Candidate) -> str:
    """Only what CUDA takes."""
    foreign = foreign_operators(candidate.model)
    if foreign:
        raise VerificationError(f"not on the list of what CUDA takes: {', '.join(foreign)}")
    kinds = {node.op_type for node in candidate.model.graph.node}
    return f"{len(kinds)} kinds of operator, all with CUDA kernels"


def check_metadata(candidate: Candidate) -> str:
    """Complete, and of readers as `models/` makes them."""
    metadata = candidate.parse_metadata()
    missing = [name for name in REQUIRED_VERSIONS if not metadata.versions.get(name)]
    if missing:
        raise VerificationError(f"the versions of {', '.join(missing)} are missing")
    if (metadata.slots, metadata.classes) != (SLOTS, CLASSES):
        raise VerificationError(
            f"{metadata.slots} slots of {metadata.classes} classes; the readers have {SLOTS} of {CLASSES}"
        )
    return f"{metadata.name} {metadata.version}, reader {metadata.reader}, {metadata.parameters:,} parameters"


def check_interface(candidate: Candidate) -> str:
    """Names, types and shapes as the metadata promises; only the batch is dynamic."""
    metadata, graph = candidate.metadata, candidate.model.graph
    found = [_signature(value) for value in (*graph.input, *graph.output)]
    batch = found[0].shape[0] if found and found[0].shape else None
    if not isinstance(batch, str):
        raise VerificationError(f"the batch of {INPUT_NAME!r} is not dynamic")
    promised = [
        Signature(name, "UINT8" if name == INPUT_NAME else "FLOAT", (batch, *shape))
        for name, shape in metadata.shapes.items()
    ]
    # Of an outline the metadata do not promise how many points it has, only that it goes around four sides.
    outlines = [signature.shape for signature in found if signature.name == OUTLINES]
    promised += [
        Signature(OUTLINES, "FLOAT", (batch, metadata.transformers, 4 * _sides(shape), 2)) for shape in outlines
    ]
    if len(graph.input) != 1 or found != promised:
        raise VerificationError(f"the graph has {_listed(found)}; promised are {_listed(promised)}")
    return _listed(found)


def _sides(outline: tuple[int | str, ...]) -> int:
    """Points on each side of an outline `[N, K, 4 * S, 2]`; 0 where there is no telling."""
    return outline[2] // 4 if len(outline) == 4 and isinstance(outline[2], int) else 0


def check_sampling(candidate: Candidate) -> str:
    """One bilinear `GridSample` for each transformer, in the convention of `models.transformer`."""
    graph = candidate.model.graph
    nodes = [node for node in graph.node if node.op_type == "GridSample"]
    if len(nodes) != candidate.metadata.transformers:
        raise VerificationError(f"{len(nodes)} GridSample nodes for {candidate.metadata.transformers} transformers")
    for node in nodes:
        attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
        found = (
            attributes.get("mode", b"bilinear").decode(),
            attributes.get("padding_mode", b"zeros").decode(),
            attributes.get("align_corners", 0),
        )
        if found != ("bilinear", "zeros", 0):
            raise VerificationError(f"{node.name} samples with (mode, padding_mode, align_corners) = {found}")
    return f"{len(nodes)} GridSample, bilinear, zeros outside, align_corners 0"


def check_weights(candidate: Candidate) -> str:
    """Made from this very checkpoint, and described as it is."""
    metadata, path = candidate.metadata, candidate.require_weights()
    digest = weights_sha256(path)
    if metadata.weights_sha256 != digest:
        raise VerificationError(f"made from weights {metadata.weights_sha256[:12]}…; {path} is {digest[:12]}…")
    reader, spec = load_reader(path)
    described = (metadata.reader, metadata.input_size, metadata.parameters, metadata.training)
    stated = (spec.reader, (spec.input_height, spec.input_width), parameter_count(reader), spec.training)
    if described != stated:
        raise VerificationError(
            f"(reader, input size, parameters, training) are {described}; the checkpoint's are {stated}"
        )
    return f"sha256 {digest[:12]}…"


def check_parity_with_torch(candidate: Candidate) -> str:
    """The same answers as PyTorch. Runs last: it changes the graph's thetas."""
    metadata = candidate.metadata
    reader, spec = load_reader(candidate.require_weights())
    served = ServedReader(reader, metadata.temperature, outlines=bends(reader))
    differences = check_parity(candidate.model, served, spec.input_height, spec.input_width)
    thetas = ", ".join(THETAS) if metadata.transformers else "none"
    return f"largest differences: {differences} (batches {', '.join(map(str, BATCHES))}; theta: {thetas})"


CHECKS: dict[str, Callable[[Candidate], str]] = {
    "graph": check_graph,
    "operators": check_operators,
    "metadata": check_metadata,
    "interface": check_interface,
    "sampling": check_sampling,
    "weights": check_weights,
    "parity": check_parity_with_torch,
}


@dataclass(frozen=True)
class Signature:
    """An input or output: its name, the name of its type, its shape (a dynamic dimension is its symbol)."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype.lower()} [{', '.join(map(str, self.shape))}]"


def _signature(value: onnx.ValueInfoProto) -> Signature:
    tensor = value.type.tensor_type
    shape = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim)
    return Signature(value.name, TensorProto.DataType.Name(tensor.elem_type), shape)


def _listed(signatures: list[Signature]) -> str:
    return ", ".join(map(str, signatures))
