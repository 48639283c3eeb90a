"""The Open Inference Protocol as Triton's own client speaks it."""

import asyncio
import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from numpy.typing import NDArray
from serving import plain
from tiny_reader import BOXES, SIZE, THETA, colour_of
from tritonclient.utils import InferenceServerException

from service.engine import OnnxEngine
from service.geometry import Region, corners_in_pixels

OUTPUTS = ["number", "confidence", "accepted", "probabilities", "theta", "boxes"]
NUMBERS = ["12", "407", ""]
AS_BASE64 = {"content_type": "base64"}


def address(client: httpx.Client) -> str:
    return f"127.0.0.1:{client.base_url.port}"


@pytest.fixture
def server(client: httpx.Client) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(address(client), concurrency=4) as server:
        yield server


def encoded(elements: list[bytes] | list[str], *, binary: bool = True, module: Any = triton) -> Any:
    tensor = module.InferInput("image", [len(elements)], "BYTES")
    return tensor.set_data_from_numpy(np.array(elements, dtype=np.object_), binary_data=binary)


def views(numbers: list[str]) -> NDArray[np.uint8]:
    return np.array([np.full((SIZE, SIZE, 3), colour_of(number)) for number in numbers], np.uint8)


def pixels(array: NDArray[Any], *, binary: bool = True) -> Any:
    return triton.InferInput("images", list(array.shape), "UINT8").set_data_from_numpy(array, binary_data=binary)


def wanted(*, binary: bool, names: list[str] = OUTPUTS) -> list[Any]:
    return [triton.InferRequestedOutput(name, binary_data=binary) for name in names]


def check(result: triton.InferResult, engine: OnnxEngine, numbers: list[str]) -> None:
    """All outputs are those of the artifact for these plain colours."""
    outputs = engine.infer(views(numbers))
    assert [number.decode() for number in as_bytes(result)] == numbers
    np.testing.assert_allclose(result.as_numpy("probabilities"), outputs.probabilities, atol=1e-6)
    np.testing.assert_allclose(result.as_numpy("theta"), np.stack([THETA] * len(numbers)), atol=1e-6)
    np.testing.assert_allclose(result.as_numpy("boxes"), np.stack([BOXES] * len(numbers)), atol=1e-6)
    best = outputs.probabilities.max(axis=2).prod(axis=1)
    np.testing.assert_allclose(result.as_numpy("confidence"), best, atol=1e-6)
    assert result.as_numpy("accepted").tolist() == [number != "" for number in numbers]
    kinds = {name: result.as_numpy(name).dtype for name in OUTPUTS}
    assert kinds == dict.fromkeys(OUTPUTS, np.float32) | {"number": np.object_, "accepted": np.bool_}


def as_bytes(result: triton.InferResult) -> list[bytes]:
    """The numbers; strings where they came in JSON."""
    numbers = result.as_numpy("number").tolist()
    return [number if isinstance(number, bytes) else number.encode() for number in numbers]


@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("binary_in", [True, False])
def test_both_inputs_and_all_outputs_in_binary_and_json(
    server: triton.InferenceServerClient, engine: OnnxEngine, binary_in: bool, binary_out: bool
) -> None:
    images = [plain(number) for number in NUMBERS]
    image = encoded(images if binary_in else [base64.b64encode(i).decode() for i in images], binary=binary_in)
    parameters = None if binary_in else AS_BASE64
    result = server.infer("tiny", [image], outputs=wanted(binary=binary_out), parameters=parameters)
    check(result, engine, NUMBERS)
    given = pixels(views(NUMBERS), binary=binary_in)
    check(server.infer("tiny", [given], outputs=wanted(binary=binary_out)), engine, NUMBERS)
    for output in result.get_response()["outputs"]:
        assert ("data" in output, "parameters" in output) == (not binary_out, binary_out)


def test_without_a_wish_all_outputs_come_and_with_one_only_those(
    server: triton.InferenceServerClient, engine: OnnxEngine
) -> None:
    check(server.infer("tiny", [encoded([plain("5")])]), engine, ["5"])
    asked = [*wanted(binary=False, names=["number"]), *wanted(binary=True, names=["theta"])]
    result = server.infer("tiny", [encoded([plain("5")])], outputs=asked, request_id="a-1", model_version="7")
    assert [output["name"] for output in result.get_response()["outputs"]] == ["number", "theta"]
    assert result.get_output("number")["data"] == ["5"]
    assert result.as_numpy("theta").shape == (1, 2, 2, 3)
    assert result.as_numpy("boxes") is None
    assert result.get_response()["id"] == "a-1"
    assert (result.get_response()["model_name"], result.get_response()["model_version"]) == ("tiny", "7")


def test_the_answers_are_those_of_predict(client: httpx.Client, server: triton.InferenceServerClient) -> None:
    image = plain("053", (40, 20))
    (prediction,) = client.post("/predict", content=image).json()["predictions"]
    result = server.infer("tiny", [encoded([image])])
    assert as_bytes(result) == [prediction["number"].encode()]
    assert result.as_numpy("confidence")[0] == pytest.approx(prediction["confidence"], abs=1e-6)
    assert result.as_numpy("accepted")[0] == prediction["accepted"]
    looked_at = zip(prediction["boxes"], result.as_numpy("theta")[0], result.as_numpy("boxes")[0], strict=True)
    for box, theta, corners in looked_at:
        np.testing.assert_allclose(box["theta"], theta, atol=1e-5)
        np.testing.assert_allclose(box["corners"], corners_in_pixels(corners, Region.whole(40, 20)), atol=1e-3)


@pytest.mark.parametrize("coming_back", ["gzip", "deflate", None])
@pytest.mark.parametrize("going", ["gzip", "deflate", None])
def test_bodies_may_be_compressed_both_ways(
    server: triton.InferenceServerClient, engine: OnnxEngine, going: str | None, coming_back: str | None
) -> None:
    for binary in (True, False):
        result = server.infer(
            "tiny",
            [pixels(views(NUMBERS), binary=binary)],
            outputs=wanted(binary=binary),
            request_compression_algorithm=going,
            response_compression_algorithm=coming_back,
        )
        check(result, engine, NUMBERS)


def test_what_the_client_asks_about_the_server(server: triton.InferenceServerClient) -> None:
    assert server.is_server_live()
    assert server.is_server_ready()
    assert server.is_model_ready("tiny")
    assert server.is_model_ready("tiny", "7")
    assert not server.is_model_ready("tiny", "8")
    assert not server.is_model_ready("small")
    assert server.get_server_metadata()["name"] == "housenumber"
    assert server.get_model_metadata("tiny", "7")["versions"] == ["7"]
    assert server.get_model_config("tiny")["name"] == "tiny"
    for statistics in (server.get_inference_statistics(), server.get_inference_statistics("tiny", "7")):
        assert statistics["model_stats"][0]["name"] == "tiny"


def test_several_requests_at_once(server: triton.InferenceServerClient) -> None:
    waiting = [server.async_infer("tiny", [encoded([plain(str(i))])], request_id=str(i)) for i in range(8)]
    results = [request.get_result() for request in waiting]
    assert [as_bytes(result) for result in results] == [[str(i).encode()] for i in range(8)]
    assert [result.get_response()["id"] for result in results] == [str(i) for i in range(8)]


def test_the_asyncio_client(client: httpx.Client, engine: OnnxEngine) -> None:
    async def ask(server: triton_aio.InferenceServerClient, number: str, encoding: str | None) -> triton.InferResult:
        return await server.infer(
            "tiny",
            [encoded([plain(number)], module=triton_aio)],
            request_compression_algorithm=encoding,
            response_compression_algorithm=encoding,
        )

    async def session() -> None:
        async with triton_aio.InferenceServerClient(address(client)) as server:
            assert await server.is_server_ready()
            assert await server.is_model_ready("tiny", "7")
            assert (await server.get_model_metadata("tiny"))["platform"] == "onnxruntime_onnx"
            asked = [(str(i), encoding) for i in range(4) for encoding in ("gzip", "deflate", None)]
            results = await asyncio.gather(*(ask(server, number, encoding) for number, encoding in asked))
            for (number, _), result in zip(asked, results, strict=True):
                check(result, engine, [number])
            with pytest.raises(InferenceServerException, match="no model"):
                await server.infer("small", [encoded([plain("1")], module=triton_aio)])
            statistics = await server.get_inference_statistics("tiny")
            assert statistics["model_stats"][0]["inference_count"] >= len(asked)

    asyncio.run(session())


def test_every_number_an_image_may_hold_is_one_element(server: triton.InferenceServerClient) -> None:
    # More than a batch, and elements of no bytes among the answers.
    numbers = [str(i % 1000) if i % 7 else "" for i in range(50)]
    assert [n.decode() for n in as_bytes(server.infer("tiny", [pixels(views(numbers))]))] == numbers


def test_priority_and_further_parameters_are_accepted(server: triton.InferenceServerClient) -> None:
    parameters = {"text": "a", "number": 1.5, "flag": True, "count": 3}
    result = server.infer("tiny", [encoded([plain("1")])], priority=2, timeout=20_000_000, parameters=parameters)
    assert as_bytes(result) == [b"1"]


def test_the_documentations_example_runs(
    client: httpx.Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documentation = (Path(__file__).parent.parent / "docs/api.md").read_text(encoding="utf-8")
    (code,) = (part for part in re.findall(r"```python\n(.*?)```", documentation, re.DOTALL) if "server.infer" in part)
    photograph = tmp_path / "house.jpg"
    photograph.write_bytes(plain("407", format="JPEG"))
    for placeholder, real in (
        ("localhost:8000", address(client)),
        ("house-number", "tiny"),
        ("house.jpg", str(photograph)),
    ):
        assert placeholder in code
        code = code.replace(placeholder, real)
    exec(code, {})
    assert capsys.readouterr().out.startswith("407 ")


def refused(server: triton.InferenceServerClient, *inputs: Any, **options: Any) -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as caught:
        server.infer("tiny", list(inputs), **options)
    return caught.value.status(), caught.value.message()


def test_what_is_wrong_with_a_request_reaches_the_caller(server: triton.InferenceServerClient) -> None:
    one, view = encoded([plain("1")]), pixels(views(["1"]))
    wide = pixels(np.zeros((1, SIZE, SIZE + 1, 3), np.uint8))
    floats = triton.InferInput("images", [1, SIZE, SIZE, 3], "FP32")
    floats.set_data_from_numpy(np.zeros((1, SIZE, SIZE, 3), np.float32))
    none = triton.InferInput("images", [0, SIZE, SIZE, 3], "UINT8")
    none.set_data_from_numpy(np.zeros((0, SIZE, SIZE, 3), np.uint8))
    other = triton.InferInput("pictures", [1], "BYTES").set_data_from_numpy(np.array([b"a"], dtype=np.object_))
    shared = triton.InferInput("image", [1], "BYTES").set_shared_memory("region", 100)
    for expected, (status, message) in {
        "give one of image, images": refused(server, one, view),
        "there are 0": refused(server),
        "'pictures' is no input": refused(server, other),
        f"the shape is [N, {SIZE}, {SIZE}, 3]": refused(server, wide),
        "the datatype is UINT8, not 'FP32'": refused(server, floats),
        "N is less than 1": refused(server, none),
        "content_type: base64": refused(server, encoded(["abc"], binary=False)),
        "not base64": refused(server, encoded(["&"], binary=False), parameters=AS_BASE64),
        "shared memory": refused(server, shared),
        "sequences are not supported": refused(server, one, sequence_id=5, sequence_start=True),
        "'digits' is no output": refused(server, one, outputs=wanted(binary=True, names=["digits"])),
        "asked for twice": refused(server, one, outputs=wanted(binary=True, names=["theta", "theta"])),
        "classification": refused(server, one, outputs=[triton.InferRequestedOutput("number", class_count=3)]),
    }.items():
        assert status == "400", message
        assert expected in message
    status, message = refused(server, encoded([plain("1"), b"junk", plain("2")]))
    assert (status, message[:8]) == ("422", "image 1:")
    assert refused(server, encoded([b"%PDF-1.7 and so on"]))[0] == "415"
    assert refused(server, pixels(views(["1"] * 65))) == ("413", "more than 64 images in one request")
    assert refused(server, one, timeout=1)[0] == "504"
    assert refused(server, one, headers={"X-Request-Timeout-Ms": "soon"})[0] == "400"
    # None of this hurts those that come after.
    assert as_bytes(server.infer("tiny", [one])) == [b"1"]
