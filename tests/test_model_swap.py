"""Another version while the service runs: nothing is lost, every answer is one version's, a bad one changes nothing."""

import gc
import json
import pickle
import queue
import re
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from service_process import PATIENCE_S, service_process
from serving import Held, Sabotaged, listening, plain, problem_of, serving, wait_until
from test_http_operations import samples
from tiny_reader import REVERSED, colour_of, metadata, write_artifact, write_version

from service.app import create_app
from service.artifact import ArtifactError
from service.engine import CUDA, Engine, OnnxEngine
from service.lifecycle import LOAD_ERRORS
from service.settings import Settings
from service.source import Choice

INDEX = "/v2/repository/index"
LOAD = "/v2/repository/models/tiny/load"
LOADS = "housenumber_model_loads_total"
ADMIN = {"X-API-Key": "boss"}

# What each version reads where version 1 reads 12.
READS = {"1": "12", "2": "87", "3": "12"}


def open_engine(path: Path) -> OnnxEngine:
    return OnnxEngine(path, "cpu", intra_op_threads=1)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with version 1."""
    write_version(tmp_path, 1)
    return tmp_path


@contextmanager
def swapping(
    root: Path, load: Callable[[Path], Engine] = open_engine, **settings: Any
) -> Iterator[tuple[httpx.Client, FastAPI]]:
    """A ready service on a repository, its admin as its client, and `POST /reload`."""
    app = create_app(Settings(model_repository=root, admin_keys="boss", **settings), load)
    let_reload(app)
    with listening(app) as client:
        wait_until(lambda: client.get("/readyz").status_code == 200)
        client.headers.update(ADMIN)
        yield client, app


def let_reload(app: FastAPI) -> None:
    """`POST /reload` does what SIGHUP does, and is answered when it is done."""

    @app.post("/reload")
    async def reload() -> None:
        await app.state.lifecycle.reload()


def load(client: httpx.Client, version: int | None = None) -> httpx.Response:
    """Asks for a version, the newest by default."""
    config = json.dumps({"version_policy": {"specific": {"versions": [version]}}})
    return client.post(LOAD, json={} if version is None else {"parameters": {"config": config}})


def refused(response: httpx.Response) -> tuple[int, str]:
    assert set(response.json()) == {"error"}
    return response.status_code, response.json()["error"]


def loads(client: httpx.Client) -> dict[str, float]:
    """How many models were loaded, by what came of it."""
    found = samples(client)
    return {outcome: found[LOADS, (("outcome", outcome),)] for outcome in ("served", "failed")}


def read(client: httpx.Client) -> tuple[str, str]:
    """Version and number that an image is answered with."""
    answer = client.post("/predict", content=plain("12"))
    assert answer.status_code == 200, answer.text
    return answer.json()["model"]["version"], answer.json()["predictions"][0]["number"]


def states(client: httpx.Client) -> dict[str, tuple[str, str]]:
    """State and reason by version."""
    return {entry["version"]: (entry["state"], entry["reason"]) for entry in client.post(INDEX).json()}


# -- without losing a request ----------------------------------------------------------------------------------------


def predict_several(client: httpx.Client) -> tuple[str, set[str]]:
    files = [("image", ("a.png", plain("12")))] * 3
    answer = client.post("/predict", files=files)
    assert answer.status_code == 200, answer.text
    return answer.json()["model"]["version"], {p["number"] for p in answer.json()["predictions"]}


def infer(client: httpx.Client) -> tuple[str, set[str]]:
    view = np.full((8, 8, 3), colour_of("12")).ravel().tolist()
    images = {"name": "images", "shape": [2, 8, 8, 3], "datatype": "UINT8", "data": view * 2}
    answer = client.post("/v2/models/tiny/infer", json={"inputs": [images], "outputs": [{"name": "number"}]})
    assert answer.status_code == 200, answer.text
    return answer.json()["model_version"], set(answer.json()["outputs"][0]["data"])


def test_under_a_steady_stream_no_request_fails_and_each_is_answered_by_one_version(root: Path) -> None:
    write_version(root, 2, alphabet=REVERSED)
    enough = threading.Event()

    def caller(ask: Callable[[httpx.Client], tuple[str, set[str]]], url: httpx.URL) -> list[tuple[str, set[str]]]:
        answers = []
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            while not enough.is_set():
                answers.append(ask(client))
        return answers

    with swapping(root, max_batch_size=4) as (client, _), ThreadPoolExecutor(6) as callers:
        streams = [callers.submit(caller, ask, client.base_url) for ask in (predict_several, infer) * 3]
        try:
            for version in (1, 2, 1, 2, 1, 2):
                assert load(client, version).status_code == 200
                # From the answer on, the new version it is.
                assert read(client) == (str(version), READS[str(version)])
        finally:
            enough.set()
        answers = [answer for stream in streams for answer in stream.result()]
    assert {version for version, _ in answers} == {"1", "2"}
    assert all(numbers == {READS[version]} for version, numbers in answers)


def test_those_inside_finish_on_the_old_version(root: Path) -> None:
    held: list[Held] = []

    def held_at_first(path: Path) -> Engine:
        if held:
            return open_engine(path)
        held.append(Held(open_engine(path)))
        return held[0]

    with swapping(root, held_at_first, max_batch_size=1) as (client, _), ThreadPoolExecutor(2) as callers:
        try:
            running = callers.submit(read, client)
            assert held[0].inside.wait(10)
            waiting = callers.submit(infer, client)
            wait_until(lambda: samples(client)["housenumber_queue_images", ()] == 2)
            write_version(root, 2, alphabet=REVERSED)
            assert load(client).status_code == 200
            assert read(client) == ("2", "87")
            # They are still counted, and nothing was taken from them.
            assert samples(client)["housenumber_queue_images", ()] == 2
            assert not running.done()
            assert not waiting.done()
        finally:
            held[0].go_on.set()
        assert running.result() == ("1", "12")
        assert waiting.result() == ("1", {"12"})
        assert samples(client)["housenumber_queue_images", ()] == 0


def test_the_memory_of_the_old_version_is_free_at_once(root: Path) -> None:
    write_version(root, 2, alphabet=REVERSED)
    opened: list[weakref.ref[OnnxEngine]] = []

    def watched(path: Path) -> Engine:
        engine = open_engine(path)
        opened.append(weakref.ref(engine))
        return engine

    with swapping(root, watched) as (client, _):
        gc.disable()  # which would come too late for a GPU's memory
        try:
            for version in (1, 2, 1):
                read(client)
                infer(client)
                assert client.post("/predict", content=b"junk").status_code == 422
                files = [("image", ("a.png", plain("12"))), ("image", ("b.png", b"junk"))]
                assert client.post("/predict", files=files).status_code == 200
                assert load(client, version).status_code == 200
                wait_until(lambda: [engine() is not None for engine in opened[-2:]] == [False, True])
        finally:
            gc.enable()


def test_what_is_told_about_the_model_is_that_of_the_new_one(root: Path) -> None:
    write_version(root, 2, alphabet=REVERSED, threshold=0.25)

    def told() -> tuple[object, ...]:
        (model,) = [
            dict(labels)
            for (name, labels), value in samples(client).items()
            if name == "housenumber_model_info" and value == 1
        ]
        (statistics,) = client.get("/v2/models/tiny/stats").json()["model_stats"]
        config = client.get("/v2/models/tiny/config").json()
        return (
            model["version"],
            model["sha256"],
            client.get("/v2/models/tiny").json()["versions"],
            statistics["version"],
            statistics["inference_count"],
            config["version_policy"],
            config["parameters"]["sha256"]["string_value"],
        )

    with swapping(root, model_version=1) as (client, _):
        read(client)
        one = open_engine(root / "tiny/1/model.onnx").sha256
        assert told() == ("1", one, ["1"], "1", 1, {"specific": {"versions": [1]}}, one)
        assert load(client).json() == {"name": "tiny", "version": "2", "state": "READY", "reason": ""}
        two = open_engine(root / "tiny/2/model.onnx").sha256
        assert told() == ("2", two, ["2"], "2", 0, {"latest": {"num_versions": 1}}, two)
        read(client)
        assert told()[4] == 1
        # A version that is not loaded is not served, and it is said how it would be.
        status, error = refused(client.get("/v2/models/tiny/versions/1"))
        assert status == 404
        assert "there is tiny version 2" in error
        assert LOAD in error


# -- which version ---------------------------------------------------------------------------------------------------


def test_back_to_an_earlier_version_which_then_stays(root: Path) -> None:
    write_version(root, 2, alphabet=REVERSED)
    with swapping(root) as (client, _):
        assert read(client) == ("2", "87")
        assert load(client, 1).status_code == 200
        assert read(client) == ("1", "12")
        write_version(root, 3)
        client.post("/reload")
        assert read(client) == ("1", "12")  # asked for by its number
        assert load(client).json()["version"] == "3"
        assert refused(load(client, 7))[0] == 404
        assert loads(client)["failed"] == 0  # a question for what is not there breaks nothing
        write_version(root, 10, alphabet=REVERSED)
        assert read(client)[0] == "3"
        client.post("/reload")
        assert read(client) == ("10", "87")  # the newest again


def test_what_serves_already_is_not_loaded_again(root: Path) -> None:
    opened: list[str] = []

    def counting(path: Path) -> Engine:
        opened.append(path.parent.name)
        return open_engine(path)

    with swapping(root, counting) as (client, _):
        assert load(client).status_code == load(client, 1).status_code == 200
        client.post("/reload")
        assert opened == ["1"]
        # Other bytes under the same name are another file.
        write_version(root, 1, alphabet=REVERSED)
        client.post("/reload")
        assert opened == ["1", "1"]
        assert read(client) == ("1", "87")


def test_a_single_file_is_loaded_again_when_its_bytes_have_changed(tmp_path: Path) -> None:
    file = write_artifact(tmp_path / "model.onnx")
    opened: list[Path] = []

    def counting(path: Path) -> Engine:
        opened.append(path)
        return open_engine(path)

    app = create_app(Settings(model=file), counting)
    let_reload(app)
    with listening(app) as client:
        wait_until(lambda: client.get("/readyz").status_code == 200)
        client.post("/reload")
        assert len(opened) == 1
        write_artifact(file, metadata(version="8", alphabet=REVERSED).to_metadata_map())
        client.post("/reload")
        assert read(client) == ("8", "87")
        for spoil in (lambda: file.write_bytes(b"no model"), file.unlink):
            spoil()
            client.post("/reload")
            assert read(client) == ("8", "87")
        assert opened == [file] * 4


def test_a_signal_loads_the_newest_version_or_leaves_the_old_one(root: Path, tmp_path: Path) -> None:
    flags = "--model-repository", str(root), "--provider", "cpu"
    with service_process(tmp_path / "log", *flags) as process:
        process.wait_until_ready()
        with process.client() as client:
            assert read(client) == ("1", "12")
            write_version(root, 2, alphabet=REVERSED)
            process.popen.send_signal(signal.SIGHUP)
            wait_until(lambda: read(client) == ("2", "87"), PATIENCE_S)
            bad = write_version(root, 3)
            bad.write_bytes(b"no model")
            process.popen.send_signal(signal.SIGHUP)
            wait_until(lambda: "; tiny 2 goes on" in process.log, PATIENCE_S)
            assert read(client) == ("2", "87")
        process.popen.terminate()
        assert process.ends() == 0
    # A start has nothing to go on with.
    with service_process(tmp_path / "log", *flags) as process:
        assert process.ends() == 5
        (line,) = [line for line in process.log.splitlines() if "CRITICAL" in line]
        assert f"{bad}: ONNX Runtime cannot load it" in line
    with service_process(tmp_path / "log", *flags, "--model-version", "2") as process:
        process.wait_until_ready()


def test_one_load_at_a_time_and_the_last_one_stays(root: Path) -> None:
    write_version(root, 2, alphabet=REVERSED)
    write_version(root, 3)
    inside, go_on = threading.Event(), threading.Event()
    opened: list[str] = []

    def slow(path: Path) -> Engine:
        opened.append(path.parent.name)
        if path.parent.name == "2":
            inside.set()
            go_on.wait()
        return open_engine(path)

    with swapping(root, slow, model_version=1) as (client, _), ThreadPoolExecutor(2) as admins:
        try:
            first = admins.submit(load, client, 2)
            assert inside.wait(10)
            second = admins.submit(load, client, 3)
            wait_until(lambda: samples(client)["housenumber_requests_in_flight", ()] == 2)
            assert opened == ["1", "2"]
            assert read(client) == ("1", "12")  # meanwhile nobody waits
        finally:
            go_on.set()
        assert first.result().json()["version"] == "2"
        assert second.result().json()["version"] == "3"
        assert opened == ["1", "2", "3"]
        assert read(client)[0] == "3"


# -- a version that is no good ---------------------------------------------------------------------------------------


def truncated(root: Path) -> None:
    path = write_version(root, 2)
    path.write_bytes(path.read_bytes()[:-10])


def of_another_version(root: Path) -> None:
    write_version(root, 2, version="3")


def of_another_name(root: Path) -> None:
    write_artifact(write_version(root, 2), metadata(name="small", version="2").to_metadata_map())


def of_no_format(root: Path) -> None:
    write_artifact(write_version(root, 2), {})


def with_another_checksum(root: Path) -> None:
    write_version(root, 2).with_name("SHA256SUMS").write_text("0" * 64 + "  model.onnx\n")


def of_another_shape(root: Path) -> None:
    write_version(root, 2, slots=4)


BAD: dict[Callable[[Path], None], str] = {
    truncated: "ONNX Runtime cannot load it",
    of_another_version: "the artifact is tiny version 3, its folders say tiny version 2",
    of_another_name: "the artifact is small version 2, its folders say tiny version 2",
    of_no_format: "not an artifact of this project",
    with_another_checksum: "SHA256SUMS says 0000",
    of_another_shape: "its metadata promises",
}


@pytest.mark.parametrize("spoil", BAD)
def test_a_bad_version_leaves_the_old_one_and_says_so(
    root: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None]
) -> None:
    with swapping(root) as (client, app):
        caplog.clear()
        spoil(root)
        for version in (None, 2):
            status, error = refused(load(client, version))
            assert (status, BAD[spoil] in error) == (400, True), error
        assert read(client) == ("1", "12")
        assert states(client) == {"1": ("READY", ""), "2": ("UNAVAILABLE", error)}
        client.post("/reload")
        assert read(client) == ("1", "12")
        assert client.get("/readyz").status_code == 200
        lines = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
        assert lines == [f"{error}; tiny 1 goes on"] * 3
        assert loads(client) == {"served": 1, "failed": 3}
        # Copied once more, it is as good as any.
        write_version(root, 2, alphabet=REVERSED).with_name("SHA256SUMS").unlink(missing_ok=True)
        client.post("/reload")
        assert read(client) == ("2", "87")
        assert states(client) == {"1": ("UNAVAILABLE", "not loaded"), "2": ("READY", "")}
        assert loads(client) == {"served": 2, "failed": 3}
    assert not any(record.exc_info for record in caplog.records)
    assert app.state.lifecycle.waiting == 0


def test_a_version_that_cannot_run_is_refused(root: Path) -> None:
    def broken(path: Path) -> Engine:
        def fail(_: object) -> None:
            raise RuntimeError("no kernel\nfor this")

        return Sabotaged(open_engine(path), fail) if path.parent.name == "2" else open_engine(path)

    with swapping(root, broken) as (client, _):
        write_version(root, 2)
        path = root / "tiny/2/model.onnx"
        assert refused(load(client)) == (400, f"{path}: the model does not run: no kernel for this")
        assert read(client)[0] == "1"


def test_a_version_that_falls_back_to_the_cpu_does_not_replace_one_on_cuda(root: Path) -> None:
    def on_cuda_at_first(path: Path) -> Engine:
        engine = Sabotaged(open_engine(path), lambda _: None)
        if path.parent.name == "1":
            engine.provider = CUDA
        return engine

    with swapping(root, on_cuda_at_first) as (client, _):
        write_version(root, 2)
        status, error = refused(load(client))
        assert (status, "does not run on CUDA" in error) == (400, True)
        assert read(client)[0] == "1"


def test_a_fault_of_ours_while_loading_changes_nothing_either(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    faults = [RuntimeError("secret of the inside")] * 2

    def faulty(path: Path) -> Engine:
        if path.parent.name == "2" and faults:
            raise faults.pop()
        return open_engine(path)

    with swapping(root, faulty) as (client, _):
        write_version(root, 2)
        status, error = refused(load(client))
        assert (status, "secret" in error) == (500, False)
        client.post("/reload")
        assert len([record for record in caplog.records if record.exc_info]) == 2
        assert read(client)[0] == "1"
        assert loads(client) == {"served": 1, "failed": 2}
        assert load(client).status_code == 200  # nothing is locked
        assert read(client)[0] == "2"


# -- before and after ------------------------------------------------------------------------------------------------


def test_a_version_that_hangs_is_given_up_and_holds_up_no_other(root: Path) -> None:
    write_version(root, 2)
    write_version(root, 3)
    over = threading.Event()

    def hangs(path: Path) -> Engine:
        if path.parent.name == "2":
            over.wait()
        return open_engine(path)

    try:
        with swapping(root, hangs, model_version=1, load_timeout_s=1) as (client, _):
            reason = f"{root / 'tiny/2/model.onnx'}: the model is not loaded and warm after 1 s"
            assert refused(load(client, 2)) == (500, reason)
            assert states(client)["2"] == ("UNAVAILABLE", reason)
            assert read(client) == ("1", "12")
            assert load(client, 3).status_code == 200
            assert read(client) == ("3", "12")
            assert loads(client) == {"served": 2, "failed": 1}
    finally:
        over.set()


def test_a_service_that_stops_takes_no_other_version(root: Path) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def slow(path: Path) -> Engine:
        if path.parent.name == "2":
            inside.set()
            go_on.wait()
        return open_engine(path)

    with swapping(root, slow) as (client, app), ThreadPoolExecutor(1) as admins:
        write_version(root, 2)
        try:
            running = admins.submit(load, client)
            assert inside.wait(10)
            app.state.lifecycle.drain()
        finally:
            go_on.set()
        assert refused(running.result()) == (503, "the service is stopping")
        assert refused(load(client)) == (503, "the service is stopping")
        client.post("/reload")
        assert app.state.lifecycle.admit().model.version == "1"


def test_until_the_first_model_is_loaded_others_wait(root: Path) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def slow(path: Path) -> Engine:
        inside.set()
        go_on.wait()
        return open_engine(path)

    app = create_app(Settings(model_repository=root, admin_keys="boss"), slow)
    with listening(app) as client, ThreadPoolExecutor(1) as admins:
        client.headers.update(ADMIN)
        try:
            assert inside.wait(10)
            write_version(root, 2, alphabet=REVERSED)
            assert client.post(INDEX).status_code == 503
            loading = admins.submit(load, client)
            wait_until(lambda: samples(client)["housenumber_requests_in_flight", ()] == 1)
        finally:
            go_on.set()
        assert loading.result().json()["version"] == "2"
        assert read(client) == ("2", "87")


@pytest.mark.parametrize(
    ("settings", "mention"),
    [
        ({"model_version": 3}, "no model.onnx for version 3 of tiny; versions with one: 1"),
        ({"model_name": "small"}, "no model 'small'; there is other, tiny"),
        ({}, "several models, other, tiny; say which with model_name"),
    ],
)
def test_a_choice_that_is_not_there_is_one_line_at_the_start(
    root: Path, settings: dict[str, Any], mention: str
) -> None:
    told: queue.SimpleQueue[Exception] = queue.SimpleQueue()
    write_version(root, 1, name="other")
    if "model_version" in settings:
        settings = {**settings, "model_name": "tiny"}
    app = create_app(Settings(model_repository=root, **settings), open_engine, told.put)
    with listening(app) as client:
        error = told.get(timeout=10)
        assert problem_of(client.get("/readyz")) == (503, "not_ready")
    assert isinstance(error, LOAD_ERRORS)
    assert mention in str(error)
    assert "\n" not in str(error)


# -- the repository API ----------------------------------------------------------------------------------------------


def test_the_index_lists_every_version(root: Path) -> None:
    write_version(root, 2, alphabet=REVERSED)
    write_version(root, 5, name="other")
    with swapping(root, model_name="tiny") as (client, _):
        other = {"name": "other", "version": "5", "state": "UNAVAILABLE", "reason": "this process serves tiny"}
        two = {"name": "tiny", "version": "2", "state": "READY", "reason": ""}
        one = {"name": "tiny", "version": "1", "state": "UNAVAILABLE", "reason": "not loaded"}
        assert client.post(INDEX).json() == client.post(INDEX, json={"ready": False}).json() == [other, one, two]
        assert client.post(INDEX, json={"ready": True}).json() == [two]
        # What serves is listed also when it is no longer there.
        (root / "tiny/2/model.onnx").unlink()
        (root / "tiny/2").rmdir()
        assert client.post(INDEX).json() == [other, one, two]
        root.rename(root.with_name("gone"))
        status, error = refused(client.post(INDEX))
        assert (status, "No such file" in error) == (500, True)
        assert read(client)[0] == "2"


def config(policy: object, name: str = "version_policy") -> dict[str, object]:
    return {"parameters": {"config": json.dumps({name: policy, "max_batch_size": 8})}}


def test_a_load_takes_what_tritons_configuration_says(root: Path) -> None:
    write_version(root, 2, alphabet=REVERSED)
    with swapping(root) as (client, _):
        for body, version in (
            (config({"specific": {"versions": [1]}}), "1"),
            ({}, "2"),
            (config({"specific": {"versions": ["1"]}}, "versionPolicy"), "1"),
            (config({"latest": {"num_versions": 1}}), "2"),
            (config({"specific": {"versions": [1]}}), "1"),
            (config({"latest": {}}), "2"),
            (config({"specific": {"versions": [1]}}), "1"),
            ({"parameters": {"config": "{}"}}, "2"),
        ):
            assert client.post(LOAD, json=body).json()["version"] == version
            assert read(client)[0] == version
        assert client.post(LOAD).status_code == 200  # without any body


NOT_UNDERSTOOD: list[tuple[object, str]] = [
    ([], "object"),
    ({"parameters": 5}, "parameters"),
    ({"parameters": {"config": "{"}}, "parameters.config"),
    ({"parameters": {"config": {}}}, "parameters.config"),
    ({"parameters": {"config": "[]"}}, "parameters.config"),
    (config([]), "version_policy"),
    (config({"all": {}}), "one version is served at a time"),
    (config({"latest": {"num_versions": 2}}), "latest.num_versions is 1"),
    (config({"specific": {"versions": []}}), "one element"),
    (config({"specific": {"versions": [1, 2]}}), "one element"),
    (config({"specific": {"versions": ["one"]}}), "version_policy.specific.versions.0"),
    (config({"specific": {"versions": [0]}}), "version_policy.specific.versions.0"),
    (config({"specific": {"versions": [2**63]}}), "version_policy.specific.versions.0"),
    (config({"specific": {}}), "versions"),
    (config({"specific": {"versions": [1]}, "latest": {}}), "one version is served at a time"),
    ({"parameters": {"file:2/model.onnx": "aaaa"}}, "copy them into the repository"),
    ({"parameters": {"version": "1"}}, "'version' is not known; a version is asked for with `config`"),
]


def test_a_load_that_cannot_be_understood(root: Path) -> None:
    with swapping(root) as (client, _):
        for body, mention in NOT_UNDERSTOOD:
            status, error = refused(client.post(LOAD, json=body))
            assert (status, mention in error) == (400, True), error
        assert refused(client.post(LOAD, content=b"\xff"))[0] == 400
        assert refused(client.post(INDEX, content=b"[]"))[0] == 400
        assert refused(client.post(LOAD, content=b" " * (2**20 + 1)))[0] == 413
        assert read(client)[0] == "1"


def test_what_is_not_in_the_repository_is_404(root: Path) -> None:
    write_version(root, 5, name="other")
    with swapping(root, model_name="tiny") as (client, _):
        for version in (2, 2**63 - 1):
            status, error = refused(load(client, version))
            assert (status, "versions with one: 1" in error) == (404, True)
        for name in ("other", "nothing"):
            status, error = refused(client.post(f"/v2/repository/models/{name}/load"))
            assert (status, "this process serves tiny" in error) == (404, True)
        status, error = refused(client.post("/v2/repository/models/tiny/unload"))
        assert (status, "one model must serve" in error) == (400, True)
        assert read(client)[0] == "1"


def test_without_a_repository_there_is_the_one_model(engine: OnnxEngine) -> None:
    with serving(engine, admin_keys="boss") as client:
        client.headers.update(ADMIN)
        assert client.post(INDEX).json() == [{"name": "tiny", "version": "7", "state": "READY", "reason": ""}]
        status, error = refused(client.post(LOAD))
        assert (status, "model_repository" in error) == (400, True)
        assert client.get("/v2/models/tiny/config").json()["version_policy"] == {"latest": {"num_versions": 1}}


def test_other_processes_are_told_what_to_load(root: Path) -> None:
    told: list[Choice] = []

    async def spread(choice: Choice) -> None:
        told.append(choice)
        if choice.version == "2":
            raise ArtifactError("worker 3: there is no model.onnx")

    app = create_app(Settings(model_repository=root, admin_keys="boss"), open_engine, spread=spread)
    with listening(app) as client:
        wait_until(lambda: client.get("/readyz").status_code == 200)
        client.headers.update(ADMIN)
        assert load(client, 1).status_code == 200
        write_version(root, 2)
        assert refused(load(client)) == (500, "worker 3: there is no model.onnx")
        assert read(client)[0] == "1"
        assert load(client, 9).status_code == 404
    one, two = Choice("tiny", "1", newest=False), Choice("tiny", "2", newest=True)
    assert told == [one, two, one]  # one could not, so all go back
    assert pickle.loads(pickle.dumps(told)) == told


# -- admin keys ------------------------------------------------------------------------------------------------------


def test_where_there_is_no_admin_key_the_repository_api_is_off(root: Path) -> None:
    app = create_app(Settings(model_repository=root, api_keys="one"), open_engine)
    with listening(app) as client:
        wait_until(lambda: client.get("/readyz").status_code == 200)
        for headers in ({}, {"X-API-Key": "one"}):
            for path in (INDEX, LOAD, "/v2/repository/models/tiny/unload"):
                status, error = refused(client.post(path, headers=headers))
                assert (status, "admin_keys" in error) == (403, True)
        assert "model_repository" not in client.get("/v2", headers={"X-API-Key": "one"}).json()["extensions"]


def test_only_admin_keys_may_load_and_they_may_all_else(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "admins"
    file.write_text("carol:chief\n")
    with swapping(root, api_keys="alice:one", admin_keys_file=file) as (client, app):
        del client.headers["X-API-Key"]

        def statuses(key: str) -> list[int]:
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            answers = [
                client.post(INDEX, headers=headers),
                client.post(LOAD, headers=headers),
                client.post("/predict", content=plain("1"), headers=headers),
                client.get("/v2", headers=headers),
            ]
            for answer in answers:
                assert (answer.headers.get("www-authenticate") == "Bearer") == (answer.status_code == 401)
            return [answer.status_code for answer in answers]

        assert statuses("boss") == statuses("chief") == [200] * 4
        assert statuses("one") == [403, 403, 200, 200]
        assert statuses("") == statuses("wrong") == [401] * 4
        assert "an admin key is needed" in refused(client.post(INDEX, headers={"X-API-Key": "one"}))[1]
        assert "model_repository" in client.get("/v2", headers=ADMIN).json()["extensions"]
        by_key = {
            dict(labels)["key"]: value
            for (name, labels), value in samples(client).items()
            if name == "housenumber_key_images_total"
        }
        assert by_key == {"admin-key-1": 1, "carol": 1, "alice": 1}
        file.write_text("dave:other\n")
        app.state.access.reload()
        assert statuses("chief") == [401] * 4
        assert statuses("other") == [200] * 4
        file.write_text("")
        app.state.access.reload()
        assert statuses("other") == [200] * 4


def test_admin_keys_alone_close_nothing_else(root: Path) -> None:
    with swapping(root) as (client, _):
        del client.headers["X-API-Key"]
        assert read(client)[0] == "1"
        assert refused(load(client))[0] == 401


def test_the_way_back_that_the_operator_is_told_asks_for_a_version(root: Path) -> None:
    told = (Path(__file__).parent.parent / "docs/deployment.md").read_text()
    (body,) = re.findall(r"-d '(\{\"parameters\".*)'", told)
    write_version(root, 2, alphabet=REVERSED)
    write_version(root, 3)
    write_version(root, 4, alphabet=REVERSED)
    with swapping(root) as (client, _):
        assert read(client) == ("4", READS["2"])
        assert client.post(LOAD, content=body).status_code == 200
        assert read(client) == ("3", "12")
