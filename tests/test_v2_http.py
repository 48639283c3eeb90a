"""The Open Inference Protocol field by field, as its specification has it, and its errors."""

import base64
import json
import socket
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from serving import Held, Sabotaged, listening, plain, serving, wait_until
from test_http_operations import samples
from tiny_reader import SIZE, colour_of

from service.app import create_app
from service.engine import OnnxEngine
from service.settings import DEFAULT_MODEL, Settings

INFER = "/v2/models/tiny/infer"
LENGTH = "Inference-Header-Content-Length"


class Schema(BaseModel):
    """The schemas are written down once more here, from the specifications: no field more, none of another type."""

    model_config = ConfigDict(extra="forbid", strict=True)


Given = TypeVar("Given", bound=Schema)


class Failure(Schema):
    error: str


class Server(Schema):
    name: str
    version: str
    extensions: list[str]
    provider: str = ""  # ours


class Tensor(Schema):
    name: str
    datatype: str
    shape: list[int]


class Model(Schema):
    name: str
    versions: list[str]
    platform: str
    inputs: list[Tensor]
    outputs: list[Tensor]


class Ready(Schema):
    name: str
    ready: bool


class Parameters(Schema):
    binary_data_size: int


class Output(Tensor):
    data: list[str | float | bool] = []
    parameters: Parameters | None = None


class Answer(Schema):
    model_name: str
    model_version: str
    id: str = ""
    outputs: list[Output]


class Duration(Schema):
    count: int
    ns: int


class Stages(Schema):
    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    cache_hit: Duration
    cache_miss: Duration


class Batch(Schema):
    batch_size: int
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


class Counted(Schema):
    name: str
    version: str
    last_inference: int
    inference_count: int
    execution_count: int
    inference_stats: Stages
    batch_stats: list[Batch]


class Statistics(Schema):
    model_stats: list[Counted]


def got(schema: type[Given], response: httpx.Response) -> Given:
    assert response.status_code == 200, response.text
    return schema.model_validate_json(response.content)


def failure(response: httpx.Response) -> tuple[int, str]:
    """Status and message of an error, after a check that it is what the protocol promises."""
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    assert "Traceback" not in response.text
    return response.status_code, Failure.model_validate_json(response.content).error


def image(*encoded: bytes, **changes: object) -> dict[str, Any]:
    data = [base64.b64encode(content).decode() for content in encoded]
    parameters = {"content_type": "base64"}
    return {
        "name": "image",
        "shape": [len(data)],
        "datatype": "BYTES",
        "parameters": parameters,
        "data": data,
    } | changes


def images(**changes: object) -> dict[str, Any]:
    shape = [1, SIZE, SIZE, 3]
    return {"name": "images", "shape": shape, "datatype": "UINT8", "data": [12] * (SIZE * SIZE * 3)} | changes


def ask(*inputs: object, **changes: object) -> dict[str, object]:
    return {"inputs": list(inputs)} | changes


def in_binary(request: dict[str, object], *tensors: bytes) -> tuple[bytes, dict[str, str]]:
    head = json.dumps(request).encode()
    return b"".join([head, *tensors]), {LENGTH: str(len(head))}


def test_the_server(client: httpx.Client) -> None:
    for path in ("/v2", "/v2/"):
        server = got(Server, client.get(path))
        assert server.name == "housenumber"
        assert {"binary_tensor_data", "model_configuration", "statistics"} <= set(server.extensions)
        assert server.provider == "CPUExecutionProvider"
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"live": True, "ready": True}


@pytest.mark.parametrize("path", ["/v2/models/tiny", "/v2/models/tiny/versions/7"])
def test_the_model(client: httpx.Client, path: str) -> None:
    model = got(Model, client.get(path))
    assert (model.name, model.versions, model.platform) == ("tiny", ["7"], "onnxruntime_onnx")
    assert [(tensor.name, tensor.datatype, tensor.shape) for tensor in (*model.inputs, *model.outputs)] == [
        ("image", "BYTES", [-1]),
        ("images", "UINT8", [-1, SIZE, SIZE, 3]),
        ("number", "BYTES", [-1]),
        ("confidence", "FP32", [-1]),
        ("accepted", "BOOL", [-1]),
        ("probabilities", "FP32", [-1, 5, 11]),
        ("theta", "FP32", [-1, 2, 2, 3]),
        ("boxes", "FP32", [-1, 2, 4, 2]),
    ]
    assert got(Ready, client.get(f"{path}/ready")) == Ready(name="tiny", ready=True)


def test_the_configuration_says_how_many_batches_are_computed_at_a_time(engine: OnnxEngine) -> None:
    three = Sabotaged(engine, lambda _images: None)
    three.parallel_batches = 3
    with serving(three) as client:
        (group,) = client.get("/v2/models/tiny/config").json()["instance_group"]
    assert group["count"] == 3


def test_the_configuration_is_what_perf_analyzer_needs(client: httpx.Client) -> None:
    config = client.get("/v2/models/tiny/config").json()
    assert config == client.get("/v2/models/tiny/versions/7/config").json()
    model = got(Model, client.get("/v2/models/tiny"))
    for kind, tensors in (("input", model.inputs), ("output", model.outputs)):
        types = {"BYTES": "TYPE_STRING", "UINT8": "TYPE_UINT8", "FP32": "TYPE_FP32", "BOOL": "TYPE_BOOL"}
        told = [(tensor["name"], tensor["data_type"], tensor["dims"]) for tensor in config[kind]]
        assert told == [(tensor.name, types[tensor.datatype], tensor.shape) for tensor in tensors]
    # It takes the first dimension off every shape where max_batch_size is not 0, and then refuses an input of none.
    for tensor in model.inputs:
        assert tensor.shape[1 if config["max_batch_size"] else 0 :]
    # It sends every input of which it has no data, unless that is optional.
    assert all(tensor["optional"] for tensor in config["input"])
    assert "sequence_batching" not in config
    defaults = Settings()
    assert config["dynamic_batching"]["default_queue_policy"]["max_queue_size"] == defaults.max_queue_images
    assert [(group["name"], group["kind"]) for group in config["instance_group"]] == [("tiny", "KIND_CPU")]
    assert config["parameters"]["max_batch_size"] == {"string_value": str(defaults.max_batch_size)}


def test_the_statistics_count_what_was_done(engine: OnnxEngine) -> None:
    with serving(engine, max_batch_size=2) as client:

        def counted() -> Counted:
            (counted,) = got(Statistics, client.get("/v2/models/tiny/stats")).model_stats
            assert client.get("/v2/models/stats").json() == client.get("/v2/models/tiny/versions/7/stats").json()
            return counted

        before = counted()
        assert (before.name, before.version) == ("tiny", "7")
        assert (before.last_inference, before.inference_count, before.batch_stats) == (0, 0, [])
        assert client.post(INFER, json=ask(image(plain("1"), plain("2"), plain("3")))).status_code == 200
        assert client.post("/predict", content=plain("4")).status_code == 200
        assert failure(client.post(INFER, json=ask(image(b"junk"))))[0] == 422
        after = counted()
    assert after.inference_count == 4
    assert after.execution_count == 3
    assert sum(batch.batch_size * batch.compute_infer.count for batch in after.batch_stats) == 4
    assert sum(batch.compute_infer.count for batch in after.batch_stats) == 3
    assert after.last_inference > 1_700_000_000_000
    stats = after.inference_stats
    assert (stats.success.count, stats.fail.count) == (2, 1)
    stages = stats.queue, stats.compute_input, stats.compute_infer, stats.compute_output
    assert [stage.count for stage in stages] == [2] * 4
    assert all(stage.ns > 0 for stage in (*stages, stats.success, stats.fail))
    assert sum(stage.ns for stage in stages) <= stats.success.ns + 100
    assert stats.cache_hit == stats.cache_miss == Duration(count=0, ns=0)


def test_an_answer_in_json(client: httpx.Client) -> None:
    response = client.post(INFER, json=ask(image(plain("12"), plain("")), id="42"))
    assert response.headers["content-type"] == "application/json"
    assert LENGTH not in response.headers
    answer = got(Answer, response)
    assert (answer.model_name, answer.model_version, answer.id) == ("tiny", "7", "42")
    tensors = {output.name: output for output in answer.outputs}
    model = got(Model, client.get("/v2/models/tiny"))
    assert [(o.name, o.datatype, o.shape) for o in answer.outputs] == [
        (o.name, o.datatype, [2, *o.shape[1:]]) for o in model.outputs
    ]
    assert all(len(output.data) == np.prod(output.shape) for output in answer.outputs)
    assert tensors["number"].data == ["12", ""]
    assert tensors["accepted"].data == [True, False]
    assert "id" not in client.post(INFER, json=ask(image(plain("1")))).json()
    assert client.post(INFER, json=ask(image(plain("1")), id="")).json()["id"] == ""


def test_an_answer_in_binary(client: httpx.Client) -> None:
    body, headers = in_binary(
        ask(
            {
                "name": "image",
                "shape": [1],
                "datatype": "BYTES",
                "parameters": {"binary_data_size": 4 + len(plain("7"))},
            },
            outputs=[
                {"name": "accepted"},
                {"name": "theta", "parameters": {"binary_data": False}},
                {"name": "number"},
            ],
            parameters={"binary_data_output": True},
            model_name="as the specification's example has it",
        ),
        len(plain("7")).to_bytes(4, "little"),
        plain("7"),
    )
    response = client.post(INFER, content=body, headers=headers)
    assert response.headers["content-type"] == "application/octet-stream"
    head = response.content[: int(response.headers[LENGTH])]
    outputs = Answer.model_validate_json(head).outputs
    assert [output.name for output in outputs] == ["accepted", "theta", "number"]
    assert [output.parameters and output.parameters.binary_data_size for output in outputs] == [1, None, 5]
    assert len(outputs[1].data) == 12
    assert response.content[len(head) :] == b"\1" + b"\1\0\0\0" + b"7"


def test_a_compressed_answer_says_so(client: httpx.Client) -> None:
    for accept, encoding in (("gzip", "gzip"), ("deflate", "deflate"), ("br", None), ("gzip;q=0", None)):
        response = client.post(INFER, json=ask(image(plain("1"))), headers={"Accept-Encoding": accept})
        assert response.headers.get("content-encoding") == encoding
        assert got(Answer, response).outputs[0].data == ["1"]


NO_DATA = {key: value for key, value in images().items() if key != "data"}
BAD_REQUESTS: list[tuple[object, str]] = [
    ([], "object"),
    ({}, "inputs"),
    (ask(), "there are 0"),
    (ask(None), "inputs.0"),
    (ask(image(plain("1")), images()), "there are 2"),
    (ask(image(plain("1")), image(plain("1"))), "there are 2"),
    (ask(*[images()] * 17), "16"),
    (ask(images(name="pixels")), "'pixels' is no input"),
    (ask(images(name=5)), "inputs.0.name"),
    (ask({"name": "images"}), "inputs.0.shape"),
    (ask(images(datatype="INT8")), "UINT8"),
    (ask(images(shape=[])), "the shape is [N, 8, 8, 3]"),
    (ask(images(shape=[1])), "the shape is [N, 8, 8, 3]"),
    (ask(images(shape=[1, 8, 8, 4])), "the shape is [N, 8, 8, 3]"),
    (ask(images(shape=[1, 3, 8, 8])), "the shape is [N, 8, 8, 3]"),
    (ask(images(shape=[2, 8, 8, 3])), "192 elements"),
    (ask(images(shape=[0, 8, 8, 3], data=[])), "less than 1"),
    (ask(images(shape=[-1, 8, 8, 3])), "inputs.0.shape.0"),
    (ask(images(shape=[1.0, 8, 8, 3])), "inputs.0.shape.0"),
    (ask(images(shape=[10**30, 8, 8, 3])), "inputs.0.shape.0"),
    (ask(images(shape=[1] * 9)), "inputs.0.shape"),
    (ask(NO_DATA), "either data"),
    (ask(images(data=None)), "either data"),
    (ask(images(data={})), "inputs.0.data"),
    (ask(images(data=[])), "0 elements"),
    (ask(images(data=[256] * 192)), "0 to 255"),
    (ask(images(data=[0.5] * 192)), "0 to 255"),
    (ask(images(data=["a"] * 192)), "0 to 255"),
    (ask(images(data=[[0] * 192])), "nested lists"),
    (ask(images(parameters=[])), "inputs.0.parameters"),
    (ask(images(parameters={"a": {}})), "inputs.0.parameters.a"),
    (ask(images(parameters={"binary_data_size": 192})), "192 bytes"),
    (ask(images(parameters={"binary_data_size": 0})), "either data"),
    (ask(NO_DATA | {"parameters": {"binary_data_size": -1}}), "binary_data_size"),
    (ask(NO_DATA | {"parameters": {"binary_data_size": 10**30}}), "binary_data_size"),
    (ask(NO_DATA | {"parameters": {"binary_data_size": 2**62}}), "after the JSON there are 0"),
    (ask(images(parameters={"shared_memory_region": "a"})), "shared memory"),
    (ask(image(plain("1"), shape=[2])), "1 elements"),
    (ask(image(plain("1"), shape=[1, 1])), "the shape is [N]"),
    (ask(image(shape=[0])), "less than 1"),
    (ask(image(plain("1"), parameters={})), "content_type: base64"),
    (ask(image(plain("1"), parameters={"content_type": "image/png"})), "content_type: base64"),
    (ask(image(plain("1"), data=[5])), "element 0"),
    (ask(image(plain("1"), data=["&"])), "base64"),
    (ask(image(plain("1"), data=[["a"]])), "element 0"),
    (ask(images(), id=5), "id"),
    (ask(images(), parameters={"timeout": -1}), "timeout"),
    (ask(images(), parameters={"timeout": 10**400}), "timeout"),
    (ask(images(), parameters={"timeout": "soon"}), "timeout"),
    (ask(images(), parameters={"priority": "first"}), "priority"),
    (ask(images(), parameters={"sequence_id": 1}), "sequences are not supported"),
    (ask(images(), parameters={"sequence_id": "a"}), "sequences are not supported"),
    (ask(images(), parameters={"sequence_end": True}), "sequences are not supported"),
    (ask(images(), parameters={"a": None}), "parameters.a"),
    (ask(images(), parameters={str(i): None for i in range(65)}), "more than 64 parameters"),
    (ask(images(), outputs=[{}]), "outputs.0.name"),
    (ask(images(), outputs=["number"]), "outputs.0"),
    (ask(images(), outputs=[{"name": "digits" * 100}]), "is no output"),
    (ask(images(), outputs=[{"name": "theta"}, {"name": "theta"}]), "asked for twice"),
    (ask(images(), outputs=[{"name": "theta", "parameters": {"binary_data": 1}}]), "binary_data"),
    (ask(images(), outputs=[{"name": "theta", "parameters": {"classification": 1}}]), "classification"),
    (ask(images(), outputs=[{"name": "theta", "parameters": {"shared_memory_region": "a"}}]), "shared memory"),
]


@pytest.mark.parametrize(("request_", "mention"), BAD_REQUESTS, ids=range(len(BAD_REQUESTS)))
def test_a_request_that_cannot_be_understood(client: httpx.Client, request_: object, mention: str) -> None:
    status, error = failure(client.post(INFER, content=json.dumps(request_)))
    assert (status, mention in error) == (400, True), error
    assert len(error) < 400


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 20_000, b'{"inputs":' * 5000, b'{"id":"\\ud800"}'])
def test_a_body_that_is_no_json(client: httpx.Client, body: bytes) -> None:
    assert failure(client.post(INFER, content=body))[0] == 400


def test_nesting_without_end_is_refused(client: httpx.Client) -> None:
    deep = json.dumps(ask(images(data=[]))).replace("[]}", "[" * 150 + "]" * 150 + "}")
    assert failure(client.post(INFER, content=deep))[0] == 400
    deeper = deep.replace("[" * 150, "[" * 20_000).replace("]" * 150, "]" * 20_000)
    assert failure(client.post(INFER, content=deeper))[0] == 400


def test_far_more_elements_than_images_may_have_are_not_even_parsed(client: httpx.Client) -> None:
    most = ask(images(shape=[64, SIZE, SIZE, 3], data=np.zeros((64, SIZE, SIZE, 3), int).tolist()))
    assert client.post(INFER, json=most).status_code == 200
    for elements in (b"0,", b"[],", b"[", b'{"a":0},'):
        body = b'{"inputs":[{"data":[' + elements * 40_000 + b"0]}]}"
        status, error = failure(client.post(INFER, content=body))
        assert (status, "far more elements" in error) == (413, True)


def test_a_large_tensor_is_sent_flat() -> None:
    """While nested lists are parsed the process does nothing else: half a second for every million."""
    engine = OnnxEngine(DEFAULT_MODEL, "cpu", intra_op_threads=1)
    height, width = engine.metadata.input_size
    pixels = np.zeros((10, height, width, 3), int)
    with serving(engine) as client:

        def status(pixels: NDArray[np.int_], data: list[Any]) -> int:
            given = {"name": "images", "datatype": "UINT8", "shape": pixels.shape, "data": data}
            return client.post("/v2/models/house-number/infer", json={"inputs": [given]}).status_code

        assert status(pixels, pixels.tolist()) == 413
        assert status(pixels[:9], pixels[:9].tolist()) == 200
        assert status(pixels, pixels.ravel().tolist()) == 200
        # Nor may they be something else.
        body = b'{"inputs":[],"a":[' + b'{"":0},' * 150_001 + b"0]}"
        answer = client.post("/v2/models/house-number/infer", content=body)
        assert (answer.status_code, "flat" in failure(answer)[1]) == (413, True)


def test_binary_tensors_that_do_not_fit(client: httpx.Client) -> None:
    def sent(size: int, tensor: bytes, length: str | None = None, **changes: object) -> tuple[int, str]:
        body, headers = in_binary(ask(NO_DATA | {"parameters": {"binary_data_size": size}} | changes), tensor)
        return failure(client.post(INFER, content=body, headers=headers if length is None else {LENGTH: length}))

    of_bytes: dict[str, Any] = {"name": "image", "datatype": "BYTES", "shape": [2]}
    two = b"\1\0\0\0a\2\0\0\0bc"
    for (status, error), mention in (
        (sent(191, bytes(191)), "191 elements"),
        (sent(193, bytes(193)), "193 elements"),
        (sent(192, bytes(191)), "after the JSON there are 191"),
        (sent(192, bytes(193)), "after the JSON there are 193"),
        (sent(192, b""), "after the JSON there are 0"),
        (sent(192, bytes(192), length="99999999"), "the body has only"),
        (sent(192, bytes(192), length="9" * 5000), "nference-"),
        (sent(192, bytes(192), length="-1"), "inference-header-content-length"),
        (sent(192, bytes(192), length="some"), "inference-header-content-length"),
        (sent(192, bytes(192), length="0"), "JSON"),
        (sent(192, bytes(192), length="10"), "JSON"),
        (sent(192, bytes(192), data=[0] * 192), "either data"),
        (sent(10, two[:10], **of_bytes), "element 1"),
        (sent(7, two[:7], **of_bytes), "element 1"),
        (sent(5, two[:5], **of_bytes), "2 elements"),
        (sent(12, two + b"d", **of_bytes), "2 elements"),
        (sent(0, b"", **of_bytes), "2 elements"),
        (sent(8, b"\xff\xff\xff\xffabcd", **of_bytes), "element 0"),
    ):
        assert (status, mention in error) == (400, True), error
    # Without the header all of the body would be JSON.
    body, _ = in_binary(ask(NO_DATA | {"parameters": {"binary_data_size": 192}}), bytes(192))
    assert failure(client.post(INFER, content=body))[0] == 400


def test_one_bad_image_of_several_is_named(client: httpx.Client) -> None:
    good = plain("1")
    for bad, status in ((b"junk", 422), (good[:40], 422), (b"", 422), (b"%PDF-1.7 and so on", 415)):
        assert failure(client.post(INFER, json=ask(image(good, good, bad, good))))[0] == status
        assert failure(client.post(INFER, json=ask(image(good, good, bad, good))))[1].startswith("image 2: ")
        assert failure(client.post(INFER, json=ask(image(bad))))[1].startswith("image 0: ")
    broken = image(good, good) | {"data": [image(good)["data"][0], "&&&&"]}
    status, error = failure(client.post(INFER, json=ask(broken)))
    assert (status, error[:8]) == (400, "image 1:")


def test_a_fault_of_the_engine_names_its_image_and_tells_nothing(engine: OnnxEngine) -> None:
    def poison(array: NDArray[np.uint8]) -> None:
        if (array == colour_of("666")).all(axis=(1, 2, 3)).any():
            raise RuntimeError("secret of the inside")

    with serving(Sabotaged(engine, poison)) as client:
        status, error = failure(client.post(INFER, json=ask(image(plain("1"), plain("666"), plain("2")))))
        assert (status, error[:8]) == (500, "image 1:")
        assert "secret" not in error
        assert client.post(INFER, json=ask(image(plain("1")))).status_code == 200


def test_what_is_not_there(client: httpx.Client) -> None:
    for path in ("/v2/models/small", "/v2/models/tiny/versions/8", "/v2/models/TINY/config", "/v2/models/x/ready"):
        status, error = failure(client.get(path))
        assert (status, "there is tiny version 7" in error) == (404, True)
    for path in ("/v2/models/small/infer", "/v2/models/tiny/versions/8/infer", f"/v2/models/{'x' * 2000}/infer"):
        assert failure(client.post(path, json=ask(images())))[0] == 404
    assert failure(client.get("/v2/nothing"))[0] == 404
    assert failure(client.get(INFER))[0] == 405
    # The rest of the service has problems.
    assert client.get("/v3").headers["content-type"] == "application/problem+json"
    assert client.get("/v2x").headers["content-type"] == "application/problem+json"


def test_the_limits_are_those_of_predict(engine: OnnxEngine) -> None:
    with serving(engine, max_body_bytes=2000, max_images=2, max_pixels=200) as client:
        assert client.post(INFER, json=ask(image(plain("1"), plain("2")))).status_code == 200
        assert failure(client.post(INFER, json=ask(image(*[plain("1")] * 3))))[0] == 413
        assert failure(client.post(INFER, json=ask(image(plain("1", (20, 11))))))[0] == 413
        assert failure(client.post(INFER, content=b" " * 2001))[0] == 413
        assert failure(client.post(INFER, content=iter([b" " * 1500] * 2)))[0] == 413
        bomb = zlib.compress(b" " * 50_000_000)[:2000]
        assert failure(client.post(INFER, content=bomb, headers={"Content-Encoding": "deflate"}))[0] == 413
        assert failure(client.post(INFER, content=b"{}", headers={"Content-Encoding": "gzip"}))[0] == 400
        assert failure(client.post(INFER, content=b"{}", headers={"Content-Encoding": "br"}))[0] == 415


def test_all_but_health_needs_a_key_where_there_are_keys(engine: OnnxEngine) -> None:
    with serving(engine, api_keys="one") as client:
        model = "/v2/models/tiny"
        for path in ("/v2/health/live", "/v2/health/ready", f"{model}/ready", f"{model}/versions/7/ready"):
            assert client.get(path).status_code == 200
        for path in (
            "/v2",
            "/v2/",
            model,
            f"{model}/versions/7",
            f"{model}/config",
            f"{model}/stats",
            "/v2/models/stats",
        ):
            response = client.get(path)
            assert failure(response)[0] == 401
            assert response.headers["www-authenticate"] == "Bearer"
            assert client.get(path, headers={"X-API-Key": "one"}).status_code == 200
        assert failure(client.get("/v2/models/secret"))[0] == 401
        assert failure(client.post(INFER, content=b"junk", headers={"Inference-Header-Content-Length": "x"}))[0] == 401
        headers = {"Authorization": "Bearer one"}
        assert client.post(INFER, json=ask(image(plain("1"))), headers=headers).status_code == 200


def test_the_rate_limit_counts_the_images(engine: OnnxEngine) -> None:
    with serving(engine, rate_limit_per_minute=3) as client:
        assert client.post(INFER, json=ask(image(*[plain("1")] * 3))).status_code == 200
        response = client.post(INFER, json=ask(images()))
        assert failure(response)[0] == 429
        assert int(response.headers["retry-after"]) >= 1


def test_before_and_after(engine: OnnxEngine) -> None:
    loaded = threading.Event()

    def load(_: Path) -> OnnxEngine:
        loaded.wait()
        return engine

    def check_unavailable() -> None:
        unavailable = [client.get(path) for path in ("/v2/health/ready", "/v2/models/tiny/ready", "/v2/models/tiny")]
        for response in (*unavailable, client.post(INFER, json=ask(images()))):
            assert failure(response)[0] == 503
            assert int(response.headers["retry-after"]) >= 1
        assert client.get("/v2/health/live").status_code == 200
        assert got(Server, client.get("/v2")).provider == ""

    app = create_app(Settings(), load)
    with listening(app) as client:
        try:
            check_unavailable()
        finally:
            loaded.set()
        wait_until(lambda: client.get("/v2/health/ready").status_code == 200)
        app.state.lifecycle.drain()
        assert failure(client.get("/v2/health/ready"))[0] == 503
        assert client.get("/v2/models/tiny/ready").status_code == 200
        assert client.post(INFER, json=ask(images())).status_code == 200


@pytest.mark.parametrize("whose", ["header", "parameter"])
def test_after_the_deadline_what_waits_is_dropped(engine: OnnxEngine, whose: str) -> None:
    held = Held(engine)
    headers = {"X-Request-Timeout-Ms": "300" if whose == "header" else "600000"}
    parameters = {"timeout": 300_000 if whose == "parameter" else 600_000_000}
    with serving(held) as client, ThreadPoolExecutor(1) as callers:
        try:
            running = callers.submit(client.post, "/predict", content=plain("1"))
            assert held.inside.wait(10)
            late = client.post(INFER, json=ask(image(plain("2")), parameters=parameters), headers=headers)
            assert failure(late) == (504, "no answer within 300 ms")
        finally:
            held.go_on.set()
        assert running.result().status_code == 200
        # A caller cannot ask for more time than the service gives.
        assert client.post(INFER, json=ask(images(), parameters={"timeout": 2**62})).status_code == 200
    assert colour_of("2")[0] not in held.computed


def test_a_full_queue_is_overloaded(engine: OnnxEngine) -> None:
    held = Held(engine)
    with serving(held, max_batch_size=1, max_queue_images=2, max_images=2) as client, ThreadPoolExecutor(2) as callers:
        try:
            running = callers.submit(client.post, INFER, json=ask(images()))
            assert held.inside.wait(10)
            waiting = callers.submit(client.post, INFER, json=ask(image(plain("2"), plain("3"))))
            wait_until(lambda: "housenumber_queue_images 2.0" in client.get("/metrics").text)
            response = client.post(INFER, json=ask(images()))
            assert failure(response)[0] == 503
            assert int(response.headers["retry-after"]) >= 1
        finally:
            held.go_on.set()
        assert running.result().status_code == 200
        assert got(Answer, waiting.result()).outputs[0].data == ["2", "3"]


def test_batches_are_shared_with_predict(engine: OnnxEngine) -> None:
    held = Held(engine)
    with serving(held, max_batch_size=8) as client, ThreadPoolExecutor(3) as callers:
        try:
            first = callers.submit(client.post, "/predict", content=plain("1"))
            assert held.inside.wait(10)
            others = [
                callers.submit(client.post, "/predict", content=plain("2")),
                callers.submit(client.post, INFER, json=ask(image(plain("3"), plain("4")))),
            ]
            wait_until(lambda: "housenumber_queue_images 3.0" in client.get("/metrics").text)
        finally:
            held.go_on.set()
        assert {answer.result().status_code for answer in (first, *others)} == {200}
        (counted,) = got(Statistics, client.get("/v2/models/tiny/stats")).model_stats
    assert [(batch.batch_size, batch.compute_infer.count) for batch in counted.batch_stats] == [(1, 1), (3, 1)]


def test_the_images_of_a_caller_that_has_left_are_not_computed(engine: OnnxEngine) -> None:
    held = Held(engine)
    left = 'housenumber_requests_total{code="client_closed_request",route="/v2/models/{name}/infer",status="499"}'
    body = json.dumps(ask(image(plain("2")))).encode()
    with serving(held) as client, ThreadPoolExecutor(1) as callers:
        try:
            running = callers.submit(client.post, "/predict", content=plain("1"))
            assert held.inside.wait(10)
            with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=10) as caller:
                caller.sendall(
                    f"POST {INFER} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
                )
                wait_until(lambda: "housenumber_queue_images 1.0" in client.get("/metrics").text)
            wait_until(lambda: left in client.get("/metrics").text)
        finally:
            held.go_on.set()
        assert running.result().status_code == 200
    assert held.computed == [colour_of("1")[0]]


def test_the_metrics_count_by_route_not_by_path(engine: OnnxEngine) -> None:
    with serving(engine) as client:
        client.post(INFER, json=ask(image(plain("1"), plain("2"))))
        client.post(INFER, json=ask(image(b"junk")))
        for name in ("a", "b", "c"):
            client.get(f"/v2/models/{name}")
            client.get(f"/v2/{name}")
        counted = samples(client)
    requests = {
        dict(labels)["route"]: value
        for (name, labels), value in counted.items()
        if name == "housenumber_requests_total"
    }
    assert requests["/v2/models/{name}"] == requests["other"] == 3
    assert set(requests) <= {"/readyz", "/v2/models/{name}", "/v2/models/{name}/infer", "other"}
    labels = ("code", "ok"), ("route", "/v2/models/{name}/infer"), ("status", "200")
    assert counted["housenumber_requests_total", labels] == 1
    assert counted["housenumber_images_total", (("code", "ok"),)] == 2
    for stage in ("decode", "queue", "inference", "total"):
        assert counted["housenumber_predict_seconds_count", (("stage", stage),)] == 1


def test_the_documentation_has_the_protocol(client: httpx.Client) -> None:
    schema = client.get("/openapi.json").json()
    protocol = {path for path in schema["paths"] if path.startswith("/v2")}
    per_model = {
        f"/v2/models/{{name}}{version}{end}"
        for version in ("", "/versions/{version}")
        for end in ("", "/ready", "/config", "/stats", "/infer")
    }
    repository = {f"/v2/repository/{end}" for end in ("index", "models/{name}/load", "models/{name}/unload")}
    assert protocol == {"/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/stats"} | per_model | repository
    infer = schema["paths"]["/v2/models/{name}/versions/{version}/infer"]["post"]
    assert set(infer["requestBody"]["content"]) == {"application/json", "application/octet-stream"}
    assert {parameter["name"].lower() for parameter in infer["parameters"]} == {
        "name",
        "version",
        LENGTH.lower(),
        "x-request-timeout-ms",
    }
    for path in protocol:
        for operation in schema["paths"][path].values():
            for status, response in operation["responses"].items():
                reference = response["content"]["application/json"]["schema"].get("$ref", "")
                assert reference.endswith("/ErrorResponse") == (status != "200")
    for path, kind in (("index", "IndexRequest"), ("models/{name}/load", "LoadRequest")):
        body = schema["paths"][f"/v2/repository/{path}"]["post"]["requestBody"]
        assert body["content"]["application/json"]["schema"] == {"$ref": f"#/components/schemas/{kind}"}
        assert not body["required"]
    assert {"InferRequest", "RequestInput", "InferResponse", "ErrorResponse"} <= set(schema["components"]["schemas"])


few = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
ALLOWED = {200, 400, 413, 415, 422}


def check_sent(client: httpx.Client, body: bytes, headers: dict[str, str]) -> None:
    response = client.post(INFER, content=body, headers=headers)
    assert response.status_code in ALLOWED
    if response.status_code != 200:
        failure(response)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@few
@given(
    field=st.sampled_from(["name", "shape", "datatype", "parameters", "data"]),
    given_=st.sampled_from([image(plain("1")), images()]),
    value=json_values,
    rest=st.dictionaries(st.sampled_from(["id", "parameters", "outputs", "inputs"]), json_values, max_size=2),
)
@example(field="data", given_=images(), value=["x" * 100_000] + [0] * 191, rest={})
@example(field="shape", given_=images(), value=[10**4000, 8, 8, 3], rest={})
@example(field="name", given_=images(), value="\ud800", rest={})
def test_any_value_in_any_field(
    client: httpx.Client, field: str, given_: dict[str, Any], value: object, rest: dict[str, object]
) -> None:
    check_sent(client, json.dumps(ask(given_ | {field: value}) | rest).encode(), {})


@few
@given(tensor=st.binary(max_size=220), size=st.integers(0, 220), shift=st.integers(-5, 5), kind=st.booleans())
def test_any_binary_tensor(client: httpx.Client, tensor: bytes, size: int, shift: int, kind: bool) -> None:
    given_: dict[str, object] = {"name": "image", "datatype": "BYTES", "shape": [1]} if kind else NO_DATA
    head = json.dumps(ask(given_ | {"parameters": {"binary_data_size": size}})).encode()
    check_sent(client, head + tensor, {LENGTH: str(len(head) + shift)})


@few
@given(body=st.binary(max_size=300), encoding=st.sampled_from(["gzip", "deflate", "identity", "br"]))
def test_any_compressed_bytes(client: httpx.Client, body: bytes, encoding: str) -> None:
    check_sent(client, body, {"Content-Encoding": encoding})
