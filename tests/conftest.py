import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, settings
from serving import serving
from tiny_reader import write_artifact

from service.engine import OnnxEngine

# Before anything imports PyTorch, and for the processes that tests start. Its threads wait for each other by turning in
# circles: with as many of them as there are CPUs, each other busy process makes these small networks several times
# slower than one thread is.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes says nothing about what is tested, only how busy the machine is.
settings.register_profile("at any speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("at any speed")


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny reader as an .onnx file."""
    return write_artifact(tmp_path_factory.mktemp("artifact") / "tiny.onnx")


@pytest.fixture(scope="session")
def engine(artifact: Path) -> OnnxEngine:
    """The tiny reader in a real session."""
    return OnnxEngine(artifact, "cpu", intra_op_threads=1)


@pytest.fixture(scope="module")
def client(engine: OnnxEngine) -> Iterator[httpx.Client]:
    """A client of a ready service with the default settings."""
    with serving(engine) as client:
        yield client
