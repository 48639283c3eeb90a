"""The engine: a batch of pixels in, the artifact's three outputs out, on ONNX Runtime."""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from service.artifact import INPUT_NAME, OUTPUT_NAMES, ArtifactError, ArtifactMetadata, parse_metadata
from service.checksum import read_checked
from service.cpus import cpu_budget

logger = logging.getLogger(__name__)

Provider = Literal["auto", "cuda", "cpu"]
Spinning = Literal["auto", "on", "off"]
CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"

_FATAL_ONLY = 4
_MIB = 2**20


class ProviderError(Exception):
    """The execution provider asked for cannot run this artifact; the message is one line with the fix."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """The outputs of a graph for N images of K transformers.

    `probabilities` float32 [N, slots, len(alphabet) + 1]: the softmaxes, blank last. `theta` float32 [N, K, 2, 3]:
    target -> source of each transformer, normalised coordinates. `boxes` float32 [N, K, 4, 2]: the corners (x, y)
    of what each transformer looks at, clockwise from its target's top-left, in the normalised coordinates of
    the input.
    """

    probabilities: NDArray[np.float32]
    theta: NDArray[np.float32]
    boxes: NDArray[np.float32]

    def finite(self) -> NDArray[np.bool_]:
        """[N]: whether every number for an image is one. Raises ValueError unless all three are for N images."""
        arrays = (self.probabilities, self.theta, self.boxes)
        if len({len(array) for array in arrays}) > 1:
            raise ValueError(f"outputs for {', '.join(str(len(array)) for array in arrays)} images")
        per_image = [np.isfinite(array).all(axis=tuple(range(1, array.ndim))) for array in arrays]
        finite: NDArray[np.bool_] = np.logical_and.reduce(per_image)
        return finite

    def __getitem__(self, images: slice | NDArray[np.bool_ | np.intp]) -> Outputs:
        """The outputs of some images, chosen as in an array [N]: a slice, a mask or indices."""
        return Outputs(self.probabilities[images], self.theta[images], self.boxes[images])

    @staticmethod
    def joined(parts: Sequence[Outputs]) -> Outputs:
        """The outputs of at least one part, one after the other."""
        return Outputs(
            np.concatenate([part.probabilities for part in parts]),
            np.concatenate([part.theta for part in parts]),
            np.concatenate([part.boxes for part in parts]),
        )


Infer = Callable[[NDArray[np.uint8]], Outputs]
"""`Engine.infer`, or what stands before it."""


class Engine(Protocol):
    """What runs an artifact. `sha256` names the artifact's bytes, `provider` what they run on; `parallel_batches` is
    how many batches it runs at a time without one waiting for another."""

    @property
    def metadata(self) -> ArtifactMetadata: ...
    @property
    def sha256(self) -> str: ...
    @property
    def provider(self) -> str: ...
    @property
    def parallel_batches(self) -> int: ...

    def infer(self, images: NDArray[np.uint8]) -> Outputs:
        """Runs a batch of RGB views, uint8 [N, input_height, input_width, 3], N >= 1. Thread-safe."""
        ...


class OnnxEngine:
    """An artifact in an ONNX Runtime session.

    `provider`: "cpu"; "cuda", which refuses with ProviderError unless every node of the graph runs there; or
    "auto", which takes CUDA where that works and otherwise the CPU. `intra_op_threads` is for each batch on the CPU, by
    default as many as this process may use, one of `workers` that share the machine; `spinning` is whether they stay
    busy while they wait for work ("auto": they do not; `bench/batching.py` measures why); `gpu_memory_mib` caps the
    arena on the GPU, which never shrinks. One log line says what was chosen and why. Raises ArtifactError for a file
    that is missing, not an artifact, or not what the checksum file beside it says.
    """

    def __init__(
        self,
        path: Path,
        provider: Provider = "auto",
        *,
        intra_op_threads: int | None = None,
        workers: int = 1,
        spinning: Spinning = "auto",
        gpu_memory_mib: int = 4096,
    ) -> None:
        # Read once: the digest is then of the very bytes that run.
        model, self.sha256 = read_checked(path)
        # What ONNX Runtime would print about a missing GPU is said by the one line below, or by an exception.
        ort.set_default_logger_severity(_FATAL_ONLY)
        budget = cpu_budget(workers)
        threads = intra_op_threads or budget.usable
        self._session = _cpu_session(path, model, threads, spins=spinning == "on")
        self.metadata = _described(path, self._session)
        level, reason = logging.INFO, "as the provider is set"
        if provider != "cpu":
            try:
                self._session = _cuda_session(model, gpu_memory_mib)
            except ProviderError as error:
                if provider == "cuda":
                    raise
                level, reason = logging.WARNING, str(error)
        self.provider: str = self._session.get_providers()[0]
        self.parallel_batches = 1 if self.provider == CUDA else max(1, budget.usable // threads)
        if self.provider == CUDA:
            logger.info("running on CUDA, every node of the model; at most %d MiB of its memory", gpu_memory_mib)
        else:
            batches = f"batches at a time: {self.parallel_batches}, threads for each: {threads} (there are {budget})"
            spins = f"{'' if spinning == 'on' else 'not '}spinning"
            logger.log(level, "running on the CPU: %s; %s, %s", reason, batches, spins)

    def infer(self, images: NDArray[np.uint8]) -> Outputs:
        """See `Engine.infer`."""
        outputs = self._session.run(OUTPUT_NAMES, {INPUT_NAME: np.ascontiguousarray(images)})
        return Outputs(*outputs)


def _cpu_session(path: Path, model: bytes, threads: int, *, spins: bool) -> ort.InferenceSession:
    options = _session_options(threads)
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spins else "0")
    try:
        return ort.InferenceSession(model, options, providers=[CPU], enable_fallback=0)
    except Exception as error:  # ONNX Runtime's exceptions have no base class of their own.
        raise ArtifactError(f"{path}: ONNX Runtime cannot load it: {_one_line(error)}") from error


def _session_options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    options.intra_op_num_threads = threads
    # One node after the other: there is nothing for threads between nodes to do.
    options.inter_op_num_threads = 1
    return options


def _cuda_session(model: bytes, memory_mib: int) -> ort.InferenceSession:
    """A session with every node on CUDA, or ProviderError.

    ONNX Runtime itself falls back to the CPU without a word when a library is missing, and lists CUDA as
    available all the same; so the fallback is disabled and the session is asked what it got.
    """
    if {"onnxruntime", "onnxruntime-gpu"} <= _installed():
        raise ProviderError(
            "onnxruntime and onnxruntime-gpu are both installed, which breaks CUDA; the fix: `pip uninstall -y"
            " onnxruntime onnxruntime-gpu`, then `pip install onnxruntime-gpu`"
        )
    if CUDA not in ort.get_available_providers():
        raise ProviderError("the installed onnxruntime has no CUDA; `pip install onnxruntime-gpu` (Linux x86-64)")
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise ProviderError("no NVIDIA driver was found (libcuda.so.1)") from None
    # It prints what it does not find; those names are the reason to report if the session then fails.
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        ort.preload_dlls()
    # By default it would start one thread per core of the machine, which would spin, with nothing to do.
    options = _session_options(threads=1)
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    cuda_options: dict[str, Any] = {
        # By default products are rounded to ten bits: thetas and boxes would not be those that export has verified.
        "use_tf32": 0,
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
        "gpu_mem_limit": memory_mib * _MIB,
    }
    try:
        session = ort.InferenceSession(model, options, providers=[(CUDA, cuda_options)], enable_fallback=0)
    except Exception as error:
        missing = [line for line in printed.getvalue().splitlines() if line.startswith("Failed to load")]
        if missing:
            raise ProviderError(
                f"CUDA libraries are missing ({missing[0]}); in a checkout, `pip install -e '.[cuda]'`"
            ) from error
        raise ProviderError(f"CUDA cannot run every node of this artifact: {_one_line(error)}") from error
    if session.get_providers()[0] != CUDA:
        raise ProviderError(f"ONNX Runtime chose {session.get_providers()[0]} although CUDA was asked for")
    return session


def _installed() -> set[str]:
    """The names of the installed packages, as the index spells them."""
    return {dist.metadata["Name"].lower().replace("_", "-") for dist in distributions()}


def _described(path: Path, session: ort.InferenceSession) -> ArtifactMetadata:
    """The artifact's metadata, after a check that the graph has the interface the metadata promises."""
    try:
        metadata = parse_metadata(session.get_modelmeta().custom_metadata_map)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error
    found = {node.name: (node.type, node.shape[1:]) for node in (*session.get_inputs(), *session.get_outputs())}
    for name, shape in metadata.shapes.items():
        signature = ("tensor(uint8)" if name == INPUT_NAME else "tensor(float)", list(shape))
        if found.get(name) != signature:
            raise ArtifactError(
                f"{path}: {name!r} of the graph is {found.get(name)}; its metadata promises {signature}"
            )
    if len(session.get_inputs()) != 1:
        raise ArtifactError(f"{path}: the graph has other inputs than {INPUT_NAME!r}")
    return metadata


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
