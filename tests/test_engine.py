"""The engine's choices: threads, spinning, provider, and what it says about them."""

import logging
import re
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from service.cpus import CpuBudget
from service.engine import CPU, CUDA, OnnxEngine, ProviderError


def one_line(caplog: pytest.LogCaptureFixture) -> tuple[int, str]:
    """The only record, and clears it away."""
    (record,) = caplog.records
    caplog.clear()
    return record.levelno, record.getMessage()


def test_the_session_is_sized_for_this_process(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("service.engine.cpu_budget", lambda _workers: CpuBudget(affinity=8, quota=2.5))
    options = OnnxEngine(artifact, "cpu")._session.get_session_options()
    assert options.intra_op_num_threads == 2
    assert options.inter_op_num_threads == 1
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert one_line(caplog) == (
        logging.INFO,
        "running on the CPU: as the provider is set; batches at a time: 1, threads for each: 2 (there are 8 CPUs in the"
        " affinity mask, a quota of 2.5), not spinning",
    )


@pytest.mark.parametrize(("threads", "batches"), [(1, 4), (2, 2), (3, 1), (5, 1)])
def test_as_many_batches_run_at_a_time_as_there_are_cpus_for(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, threads: int, batches: int
) -> None:
    monkeypatch.setattr("service.engine.cpu_budget", lambda _workers: CpuBudget(affinity=4, quota=None))
    assert OnnxEngine(artifact, "cpu", intra_op_threads=threads).parallel_batches == batches


@pytest.mark.parametrize(("spinning", "entry"), [("on", "1"), ("off", "0"), ("auto", "0")])
def test_threads_and_spinning_are_as_set(
    artifact: Path, caplog: pytest.LogCaptureFixture, spinning: Any, entry: str
) -> None:
    caplog.set_level(logging.INFO)
    options = OnnxEngine(artifact, "cpu", intra_op_threads=3, spinning=spinning)._session.get_session_options()
    assert options.intra_op_num_threads == 3
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == entry
    _, line = one_line(caplog)
    assert "threads for each: 3 (" in line
    assert line.endswith("), " + ("spinning" if entry == "1" else "not spinning"))


class Machine:
    """A machine with an NVIDIA driver and onnxruntime-gpu, as far as the engine can tell.

    `missing` are the libraries that `preload_dlls` does not find; `failure` is what CUDA says then.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...] = (), failure: str = "") -> None:
        self.sessions: list[tuple[Any, Any]] = []
        self._missing, self._failure = missing, failure
        monkeypatch.setattr("service.engine._installed", lambda: {"onnxruntime-gpu", "numpy"})
        monkeypatch.setattr("service.engine.ort.get_available_providers", lambda: [CUDA, CPU])
        monkeypatch.setattr("service.engine.ctypes.CDLL", lambda _name: None)
        monkeypatch.setattr("service.engine.ort.preload_dlls", self._preload)
        self._session = ort.InferenceSession
        monkeypatch.setattr("service.engine.ort.InferenceSession", self._create)

    def _preload(self) -> None:
        for library in self._missing:
            print(f"Failed to load {library}: cannot open shared object file")

    def _create(self, model: bytes, options: Any, *, providers: list[Any], enable_fallback: int) -> Any:
        assert enable_fallback == 0
        if providers == [CPU]:
            return self._session(model, options, providers=[CPU])
        self.sessions.append((options, providers))
        if self._failure:
            raise RuntimeError(self._failure)
        session = self._session(model, providers=[CPU])
        session.get_providers = lambda: [CUDA]
        return session


def test_on_cuda_no_node_may_run_elsewhere_and_no_cpu_thread_spins(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    machine = Machine(monkeypatch)
    engine = OnnxEngine(artifact, "auto", gpu_memory_mib=100)
    assert engine.provider == CUDA
    ((options, [(provider, cuda_options)]),) = machine.sessions
    assert provider == CUDA
    assert options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
    assert options.intra_op_num_threads == 1
    assert cuda_options["gpu_mem_limit"] == 100 * 2**20
    assert cuda_options["use_tf32"] == 0
    assert one_line(caplog) == (
        logging.INFO,
        "running on CUDA, every node of the model; at most 100 MiB of its memory",
    )


FAILURES = [
    (("libcublas.so.13", "libcudnn.so.9"), "error 1", "CUDA libraries are missing (Failed to load libcublas.so.13"),
    ((), "no kernel\nfor GridSample", "CUDA cannot run every node of this artifact: no kernel for GridSample"),
]


@pytest.mark.parametrize(("missing", "failure", "mention"), FAILURES)
def test_cuda_that_does_not_work_is_one_line_with_the_reason(
    artifact: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    missing: tuple[str, ...],
    failure: str,
    mention: str,
) -> None:
    Machine(monkeypatch, missing, failure)
    with pytest.raises(ProviderError, match=re.escape(mention)) as raised:
        OnnxEngine(artifact, "cuda")
    assert "\n" not in str(raised.value)
    assert OnnxEngine(artifact, "auto").provider == CPU
    level, line = one_line(caplog)
    assert level == logging.WARNING
    assert line.startswith(f"running on the CPU: {mention}")
    assert capfd.readouterr() == ("", "")


def test_libraries_that_are_missing_do_not_matter_where_cuda_works(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Machine(monkeypatch, missing=("libcufft.so.12",))
    assert OnnxEngine(artifact, "cuda").provider == CUDA


NO_CUDA = [
    ("service.engine._installed", {"onnxruntime", "onnxruntime-gpu"}, "both installed"),
    ("service.engine.ort.get_available_providers", ["CPUExecutionProvider"], "onnxruntime-gpu"),
]


@pytest.mark.parametrize(("name", "answer", "mention"), NO_CUDA)
def test_cuda_is_refused_where_it_cannot_be_and_auto_says_so_once(
    artifact: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    name: str,
    answer: object,
    mention: str,
) -> None:
    monkeypatch.setattr(name, lambda: answer)
    with pytest.raises(ProviderError, match=mention):
        OnnxEngine(artifact, "cuda")
    caplog.set_level(logging.INFO)
    assert OnnxEngine(artifact, "auto").provider == CPU
    level, line = one_line(caplog)
    assert level == logging.WARNING
    assert re.match(rf"running on the CPU: .*{mention}.*; batches at a time: ", line)
    OnnxEngine(artifact, "cpu")
    assert one_line(caplog)[0] == logging.INFO
    assert capfd.readouterr() == ("", "")


def test_without_a_driver_auto_takes_the_cpu_without_a_word_of_the_runtimes_own(
    artifact: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def no_driver(name: str) -> None:
        raise OSError(name)

    Machine(monkeypatch)
    monkeypatch.setattr("service.engine.ctypes.CDLL", no_driver)
    with pytest.raises(ProviderError, match="NVIDIA driver"):
        OnnxEngine(artifact, "cuda")
    assert OnnxEngine(artifact, "auto").provider == CPU
    assert one_line(caplog)[1].startswith("running on the CPU: no NVIDIA driver was found (libcuda.so.1); ")
    assert capfd.readouterr() == ("", "")
