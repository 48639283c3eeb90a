"""Every row of the contract's error table, and what must not happen meanwhile."""

import base64
import gzip
import json
import socket
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from serving import Held, Sabotaged, encode, listening, plain, problem_of, serving, wait_until
from tiny_reader import colour_of

from service.app import create_app
from service.engine import OnnxEngine
from service.errors import ServiceError
from service.settings import Settings

JSON = {"Content-Type": "application/json"}
MULTIPART = {"Content-Type": "multipart/form-data; boundary=cut"}


def part(head: str, data: bytes = b"data", boundary: bytes = b"cut") -> bytes:
    return b"--" + boundary + b"\r\n" + head.encode() + b"\r\n\r\n" + data + b"\r\n"


IMAGE_PART = 'Content-Disposition: form-data; name="image"; filename="a.png"'
END = b"--cut--\r\n"


@pytest.mark.parametrize(
    ("body", "mention"),
    [
        (b"", ""),
        (b"{", ""),
        (b"\xff\xfe", ""),
        (b"[1, 2]", ""),
        (b"[" * 100_000, ""),
        (b"{}", "images"),
        (b'{"images": []}', "no image"),
        (b'{"images": {}}', "images"),
        (b'{"images": ["abc"]}', "images.0"),
        (b'{"images": [{}]}', "images.0.data"),
        (b'{"images": [{"data": 5}]}', "images.0.data"),
        (b'{"images": [{"data": null}]}', "images.0.data"),
        (b'{"images": [{"data": "", "id": 5}]}', "images.0.id"),
        (b'{"images": [{"data": "", "url": "http://a"}]}', "images.0.url"),
        (b'{"images": [{"data": ""}], "extra": 1}', "extra"),
        (b'{"images": [{"data": "", "regions": []}]}', "images.0.regions"),
        (b'{"images": [{"data": "", "regions": [1, 2, 3, 4]}]}', "images.0.regions.0"),
        (b'{"images": [{"data": "", "regions": [[1, 2, 3]]}]}', "images.0.regions.0"),
        (b'{"images": [{"data": "", "regions": [["1", 2, 3, 4]]}]}', "images.0.regions.0.0"),
        (b'{"images": [{"data": "", "regions": [[true, 2, 3, 4]]}]}', "images.0.regions.0.0"),
        (b'{"images": [{"data": "&&&&"}]}', "base64"),
        (b'{"images": [{"data": "abc"}]}', "base64"),
        (b'{"images": [{"data": "data:image/png,abc"}]}', "base64"),
        (b'{"images": [{"data": "data:image/png;base64"}]}', "base64"),
        ('{"images": [{"data": "äöü"}]}'.encode(), "base64"),
    ],
)
def test_json_that_cannot_be_understood_is_a_bad_request(client: httpx.Client, body: bytes, mention: str) -> None:
    response = client.post("/predict", content=body, headers=JSON)
    assert problem_of(response) == (400, "bad_request")
    assert mention in response.json()["detail"]


@pytest.mark.parametrize(
    ("content_type", "body", "mention"),
    [
        ("multipart/form-data", part(IMAGE_PART) + END, "boundary"),
        ("multipart/form-data; boundary=" + "x" * 300, b"", "oundary"),
        (MULTIPART["Content-Type"], b"", "closing boundary"),
        (MULTIPART["Content-Type"], b"no multipart at all", "well-formed"),
        (MULTIPART["Content-Type"], part(IMAGE_PART), "closing boundary"),
        (MULTIPART["Content-Type"], b"--cut\r\nContent-Disp", "closing boundary"),
        (MULTIPART["Content-Type"], part(IMAGE_PART.replace("image", "photo")) + END, "'photo'"),
        (MULTIPART["Content-Type"], part('Content-Disposition: form-data; name="image"') + END, "no filename"),
        (MULTIPART["Content-Type"], part("Content-Type: image/png") + END, "named ''"),
        (MULTIPART["Content-Type"], part("X-Long: " + "x" * 100_000) + END, "well-formed"),
    ],
)
def test_multipart_that_cannot_be_understood_is_a_bad_request(
    client: httpx.Client, content_type: str, body: bytes, mention: str
) -> None:
    response = client.post("/predict", content=body, headers={"Content-Type": content_type})
    assert problem_of(response) == (400, "bad_request")
    assert mention in response.json()["detail"]


@pytest.mark.parametrize(
    ("query", "mention"),
    [
        ("region=1,2,3", "region"),
        ("region=1,2,3,4,5", "region"),
        ("region=a,b,c,d", "region"),
        ("region=", "region"),
        ("region=1,2,3,4&region=x", "region"),
        ("region=nan,0,5,5", "finite"),
        ("region=0,0,inf,5", "finite"),
        ("region=0,0,1e400,5", "finite"),
        ("min_confidence=0.1&min_confidence=0.2", "min_confidence: given more than once"),
        ("min_confidence=2", "min_confidence"),
        ("min_confidence=-0.1", "min_confidence"),
        ("min_confidence=nan", "min_confidence"),
        ("min_confidence=high", "min_confidence"),
        ("boxes=maybe", "boxes"),
        ("regions=1,2,3,4", "regions"),
    ],
)
def test_a_parameter_that_cannot_be_understood_is_a_bad_request(client: httpx.Client, query: str, mention: str) -> None:
    response = client.post(f"/predict?{query}", content=plain("1"))
    assert problem_of(response) == (400, "bad_request")
    assert mention in response.json()["detail"]


@pytest.mark.parametrize("timeout", ["0", "-5", "soon", "1.5", "9" * 5000])
def test_a_deadline_that_cannot_be_understood_is_a_bad_request(client: httpx.Client, timeout: str) -> None:
    response = client.post("/predict", content=plain("1"), headers={"X-Request-Timeout-Ms": timeout})
    assert problem_of(response) == (400, "bad_request")


def test_no_image_at_all_is_a_bad_request(client: httpx.Client) -> None:
    assert problem_of(client.post("/predict")) == (400, "bad_request")
    assert problem_of(client.post("/predict", content=END, headers=MULTIPART)) == (400, "bad_request")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 400])
def test_a_region_in_json_is_of_finite_numbers(client: httpx.Client, number: str) -> None:
    coded = base64.b64encode(plain("1")).decode()
    images = f'{{"data": "{coded}"}}, {{"data": "{coded}", "regions": [[0, 0, {number}, 1]]}}'
    response = client.post("/predict", content=f'{{"images": [{images}]}}', headers=JSON)
    assert problem_of(response) == (400, "bad_request")
    assert "images.1.regions.0" in response.json()["detail"]


def test_base64_may_have_white_space_and_nothing_else_besides(client: httpx.Client) -> None:
    coded = base64.b64encode(plain("1")).decode()
    for between in ("\n", "\r\n", " ", "\t"):
        body = {"images": [{"data": between.join(coded)}]}
        assert client.post("/predict", json=body).json()["predictions"][0]["number"] == "1"
    for between in ("\0", "-", "\u00a0", "\u2003"):
        body = {"images": [{"data": f"{coded[:8]}{between}{coded[8:]}"}]}
        assert problem_of(client.post("/predict", json=body)) == (400, "bad_request")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br"])
def test_a_compressed_body_is_told_so(client: httpx.Client, encoding: str) -> None:
    compressed = gzip.compress(plain("1"))
    response = client.post("/predict", content=compressed, headers={"Content-Encoding": encoding})
    assert problem_of(response) == (415, "unsupported_media_type")
    assert f"Content-Encoding '{encoding}'" in response.json()["detail"]
    assert client.post("/predict", content=plain("1"), headers={"Content-Encoding": "identity"}).status_code == 200


@pytest.mark.parametrize("content_type", ["", "application/octet-stream", "text/plain", "text/json"])
def test_json_that_is_not_called_json_is_told_so(client: httpx.Client, content_type: str) -> None:
    body = json.dumps({"images": [{"data": base64.b64encode(plain("1")).decode()}]}).encode()
    response = client.post("/predict", content=body, headers={"Content-Type": content_type} if content_type else {})
    assert problem_of(response) == (415, "unsupported_media_type")
    assert "Content-Type: application/json" in response.json()["detail"]


def test_a_query_region_with_json_is_a_bad_request(client: httpx.Client) -> None:
    body = {"images": [{"data": base64.b64encode(plain("1")).decode()}]}
    response = client.post("/predict?region=0,0,4,4", json=body)
    assert problem_of(response) == (400, "bad_request")
    assert "images[].regions" in response.json()["detail"]


def test_without_a_key_that_matches_the_caller_is_unauthorized(engine: OnnxEngine) -> None:
    with serving(engine, api_keys="one, two") as client:
        wrong: list[dict[str, str]] = [
            {},
            {"X-API-Key": "three"},
            {"X-API-Key": ""},
            {"X-API-Key": "one, two"},
            {"Authorization": "Bearer three"},
            {"Authorization": "Basic one"},
        ]
        for headers in wrong:
            response = client.post("/predict?boxes=maybe", content=plain("1"), headers=headers)
            assert problem_of(response) == (401, "unauthorized")
            assert response.headers["www-authenticate"] == "Bearer"
        for headers in ({"X-API-Key": "two"}, {"Authorization": "Bearer one"}, {"Authorization": "bearer two"}):
            assert client.post("/predict", content=plain("1"), headers=headers).status_code == 200
        assert client.get("/readyz").status_code == client.get("/metrics").status_code == 200


def test_a_body_over_the_limit_is_too_large_declared_or_streamed(engine: OnnxEngine) -> None:
    image = plain("1")
    with serving(engine, max_body_bytes=len(image)) as client:
        assert client.post("/predict", content=image).status_code == 200
        assert problem_of(client.post("/predict", content=image + b"\0")) == (413, "too_large")
        streamed = client.post("/predict", content=iter([image, b"\0"]))
        assert problem_of(streamed) == (413, "too_large")
        files = [("image", ("a.png", image)) for _ in range(2)]
        assert problem_of(client.post("/predict", files=files)) == (413, "too_large")
        assert problem_of(client.post("/predict", content=b"x" * 5000, headers=JSON)) == (413, "too_large")


def test_more_pixels_than_the_limit_are_too_large_by_the_header_alone(engine: OnnxEngine) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    with serving(engine, max_pixels=16 * 12) as client:
        assert client.post("/predict", content=plain("1", (16, 12))).status_code == 200
        assert problem_of(client.post("/predict", content=plain("1", (193, 1)))) == (413, "too_large")
        assert problem_of(client.post("/predict", content=bomb)) == (413, "too_large")


def test_more_images_than_the_limit_are_too_large_and_each_region_counts(engine: OnnxEngine) -> None:
    image, coded = plain("1"), base64.b64encode(plain("1")).decode()
    region = [0, 0, 4, 4]
    with serving(engine, max_images=3) as client:

        def files(count: int) -> list[tuple[str, tuple[str, bytes]]]:
            return [("image", ("a.png", image))] * count

        assert client.post("/predict", files=files(3)).status_code == 200
        assert problem_of(client.post("/predict", files=files(4))) == (413, "too_large")
        assert problem_of(client.post("/predict?region=0,0,4,4&region=0,0,4,4", files=files(2))) == (413, "too_large")
        assert client.post("/predict?" + "region=0,0,4,4&" * 3, content=image).status_code == 200
        assert problem_of(client.post("/predict?" + "region=0,0,4,4&" * 4, content=image)) == (413, "too_large")
        images = [{"data": coded}, {"data": coded, "regions": [region, region]}]
        assert client.post("/predict", json={"images": images}).status_code == 200
        assert problem_of(client.post("/predict", json={"images": [*images, images[0]]})) == (413, "too_large")


@pytest.mark.parametrize("declared", ["text/plain", "application/pdf", "video/mp4", "application/xml; charset=utf-8"])
def test_no_image_declared_as_none_is_an_unsupported_type(client: httpx.Client, declared: str) -> None:
    response = client.post("/predict", content=b"some bytes", headers={"Content-Type": declared})
    assert problem_of(response) == (415, "unsupported_media_type")
    files = {"image": ("a.txt", b"some bytes", declared)}
    assert problem_of(client.post("/predict", files=files)) == (415, "unsupported_media_type")
    coded = base64.b64encode(b"some bytes").decode()
    body = {"images": [{"data": f"data:{declared.replace(' ', '')};base64,{coded}"}]}
    assert problem_of(client.post("/predict", json=body)) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    "data",
    [b"%PDF-1.7\n", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"8BPS\0\1", b"\0\0\0\x18ftypheic\0\0\0\0"],
)
def test_a_known_format_that_is_not_served_is_an_unsupported_type(client: httpx.Client, data: bytes) -> None:
    response = client.post("/predict", content=data, headers={"Content-Type": "image/png"})
    assert problem_of(response) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    "declared", ["image/png", "image/heic", "application/octet-stream", "application/x-www-form-urlencoded", None]
)
def test_unknown_bytes_that_could_be_an_image_are_a_bad_image(client: httpx.Client, declared: str | None) -> None:
    headers = {"Content-Type": declared} if declared else {}
    assert problem_of(client.post("/predict", content=b"some bytes", headers=headers)) == (422, "bad_image")


def test_a_truncated_or_empty_image_is_a_bad_image(client: httpx.Client) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for format in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"):  # noqa: A001
        data = encode(Image.fromarray(pixels), format)
        truncated = client.post("/predict", content=data[: len(data) // 2], headers={"Content-Type": "text/plain"})
        assert problem_of(truncated)[0] in {415, 422}, format
        assert problem_of(client.post("/predict", content=data[: len(data) // 2])) == (422, "bad_image"), format
    assert problem_of(client.post("/predict", files={"image": ("a", b"")})) == (422, "bad_image")
    assert problem_of(client.post("/predict", json={"images": [{"data": ""}]})) == (422, "bad_image")


@pytest.mark.parametrize("region", ["0,0,0,5", "0,0,5,-5", "0,0,17.5,5", "-2,0,5,5", "16,12,5,5"])
def test_a_region_that_is_not_part_of_the_image_is_a_bad_region(client: httpx.Client, region: str) -> None:
    response = client.post(f"/predict?region={region}", content=plain("1", (16, 12)))
    assert problem_of(response) == (422, "bad_region")
    assert "16 x 12" in response.json()["detail"]


def test_with_a_single_image_one_bad_region_is_the_answer(client: httpx.Client) -> None:
    response = client.post("/predict?region=0,0,5,5&region=0,0,99,5", content=plain("1"))
    assert problem_of(response) == (422, "bad_region")


def test_a_full_queue_is_overloaded_and_recovers(engine: OnnxEngine) -> None:
    held = Held(engine)
    limits = {"max_batch_size": 1, "max_queue_images": 2, "max_images": 2}
    with serving(held, **limits) as client, ThreadPoolExecutor(3) as callers:
        try:
            running = callers.submit(client.post, "/predict", content=plain("1"))
            assert held.inside.wait(10)
            files = [("image", ("a.png", plain(number))) for number in ("2", "3")]
            waiting = callers.submit(client.post, "/predict", files=files)

            wait_until(lambda: "housenumber_queue_images 2.0" in client.get("/metrics").text)
            response = client.post("/predict", content=plain("4"))
            assert problem_of(response) == (503, "overloaded")
            assert int(response.headers["retry-after"]) >= 1
        finally:
            held.go_on.set()
        assert running.result().json()["predictions"][0]["number"] == "1"
        assert [p["number"] for p in waiting.result().json()["predictions"]] == ["2", "3"]
        assert client.post("/predict", content=plain("4")).status_code == 200


def test_a_draining_service_says_so_and_serves_what_comes(engine: OnnxEngine) -> None:
    app = create_app(Settings(), lambda _: engine)
    with listening(app) as client:
        wait_until(lambda: client.get("/readyz").status_code == 200)
        app.state.lifecycle.drain()
        response = client.get("/readyz")
        assert problem_of(response) == (503, "draining")
        assert int(response.headers["retry-after"]) >= 1
        assert client.post("/predict", content=plain("1")).json()["predictions"][0]["number"] == "1"
        assert client.get("/livez").status_code == 200


def test_a_service_that_is_told_to_stop_before_it_is_ready_is_draining(engine: OnnxEngine) -> None:
    loaded = threading.Event()

    def load(_: Path) -> OnnxEngine:
        loaded.wait()
        return engine

    app = create_app(Settings(), load)
    with listening(app) as client:
        try:
            app.state.lifecycle.drain()
            for response in (client.get("/readyz"), client.post("/predict", content=plain("1"))):
                assert problem_of(response) == (503, "draining")
        finally:
            loaded.set()


def test_ready_is_what_the_other_processes_of_the_service_are_too(engine: OnnxEngine) -> None:
    app = create_app(Settings(), lambda _: engine)
    app.state.lifecycle.whole = False
    with listening(app) as client:
        wait_until(lambda: client.post("/predict", content=plain("1")).status_code == 200)
        assert problem_of(client.get("/readyz")) == (503, "not_ready")
        assert client.get("/v2/health/ready").status_code == 503
        app.state.lifecycle.whole = True
        assert client.get("/readyz").status_code == 200


def test_until_the_model_is_loaded_the_service_is_not_ready(engine: OnnxEngine) -> None:
    loaded = threading.Event()

    def load(_: Path) -> OnnxEngine:
        loaded.wait()
        return engine

    with listening(create_app(Settings(), load)) as client:
        try:
            for response in (client.get("/readyz"), client.post("/predict", content=plain("1"))):
                assert problem_of(response) == (503, "not_ready")
                assert int(response.headers["retry-after"]) >= 1
            assert client.get("/livez").status_code == 200
        finally:
            loaded.set()
        wait_until(lambda: client.get("/readyz").status_code == 200)
        assert client.post("/predict", content=plain("1")).status_code == 200


@pytest.mark.parametrize("whose", ["the caller's", "the server's"])
def test_after_the_deadline_waiting_images_are_dropped_not_computed(engine: OnnxEngine, whose: str) -> None:
    held = Held(engine)
    limits = {"request_timeout_ms": 1500} if whose == "the server's" else {}
    headers = {"X-Request-Timeout-Ms": "1500" if whose == "the caller's" else "600000"}
    with serving(held, **limits) as client, ThreadPoolExecutor(1) as callers:
        try:
            running = callers.submit(client.post, "/predict", content=plain("1"), headers=headers)
            assert held.inside.wait(10)
            response = client.post("/predict", content=plain("2"), headers=headers)
            assert problem_of(response) == (504, "deadline_exceeded")
            assert problem_of(running.result()) == (504, "deadline_exceeded")
        finally:
            held.go_on.set()
        assert client.post("/predict", content=plain("3")).json()["predictions"][0]["number"] == "3"
    assert held.computed == [colour_of("1")[0], colour_of("3")[0]]


def test_a_body_that_never_comes_meets_the_deadline(client: httpx.Client) -> None:
    with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=10) as caller:
        caller.sendall(
            b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\nX-Request-Timeout-Ms: 100\r\n\r\nabc"
        )
        status_line = caller.makefile("rb").readline()
    assert b" 504 " in status_line


def test_a_caller_that_leaves_in_the_middle_does_no_harm(client: httpx.Client) -> None:
    with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=10) as caller:
        caller.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\nabc")
    left = 'housenumber_requests_total{code="client_closed_request",route="/predict",status="499"}'
    wait_until(lambda: left in client.get("/metrics").text)
    assert client.post("/predict", content=plain("1")).status_code == 200


def test_the_waiting_images_of_a_caller_that_has_left_are_dropped_not_computed(engine: OnnxEngine) -> None:
    held = Held(engine)
    left = 'housenumber_requests_total{code="client_closed_request",route="/predict",status="499"}'
    with serving(held) as client, ThreadPoolExecutor(1) as callers:
        try:
            running = callers.submit(client.post, "/predict", content=plain("1"))
            assert held.inside.wait(10)
            image = plain("2")
            with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=10) as caller:
                caller.sendall(f"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: {len(image)}\r\n\r\n".encode())
                caller.sendall(image)
                wait_until(lambda: "housenumber_queue_images 1.0" in client.get("/metrics").text)
            wait_until(lambda: left in client.get("/metrics").text)
        finally:
            held.go_on.set()
        assert running.result().status_code == 200
        assert client.post("/predict", content=plain("3")).status_code == 200
    assert held.computed == [colour_of("1")[0], colour_of("3")[0]]


def poison(images: NDArray[np.uint8]) -> None:
    if (images == colour_of("666")).all(axis=(1, 2, 3)).any():
        raise RuntimeError("secret of the inside")


def test_a_fault_of_ours_is_internal_and_tells_nothing(engine: OnnxEngine) -> None:
    with serving(Sabotaged(engine, poison)) as client:
        response = client.post("/predict", content=plain("666"))
        assert problem_of(response) == (500, "internal")
        assert "secret" not in response.text
        files = [("image", ("a.png", plain(number))) for number in ("1", "666", "2")]
        predictions = client.post("/predict", files=files).json()["predictions"]
        assert [prediction["number"] for prediction in predictions] == ["1", None, "2"]
        assert predictions[1]["error"]["code"] == "internal"
        assert client.post("/predict", content=plain("1")).status_code == 200


def test_a_fault_outside_the_engine_is_internal_too(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_args: object, **_kwargs: object) -> None:
        raise RuntimeError("secret of the inside")

    with monkeypatch.context() as patched:
        patched.setattr("service.app.read_pictures", broken)
        response = client.post("/predict", content=plain("1"), headers={"X-Request-ID": "abc"})
    assert problem_of(response) == (500, "internal")
    assert response.headers["x-request-id"] == "abc"
    assert "secret" not in response.text
    with monkeypatch.context() as patched:
        patched.setattr("service.pictures.Photo.open", broken)
        assert problem_of(client.post("/predict", content=plain("1"))) == (500, "internal")
    assert client.post("/predict", content=plain("1")).status_code == 200


def test_wrong_paths_and_methods_are_problems_that_say_what_there_is(client: httpx.Client) -> None:
    for path, mention in (
        ("/predicts", "there is no /predicts; /docs says what there is"),
        ("/predict/", "there is no /predict/; /predict is meant"),
        ("/predict//", "there is no /predict//; /predict is meant"),
        ("/predicts/", "there is no /predicts/; /docs says what there is"),
        ("//", "there is no //; /docs says what there is"),
        ("/static-offline-docs/none", "there is no /static-offline-docs/none; /docs says what there is"),
        ("/" + "x" * 1000, f"there is no /{'x' * 79}; /docs says what there is"),
    ):
        response = client.get(client.base_url.copy_with(raw_path=path.encode()))
        assert problem_of(response) == (404, "not_found")
        assert response.json()["detail"] == mention
    answer = client.post("/v2/models/tiny/infer/", headers={"Host": "elsewhere.example"})
    assert (answer.status_code, answer.json()) == (
        404,
        {"error": "there is no /v2/models/tiny/infer/; /v2/models/tiny/infer is meant"},
    )
    for method, path, allowed in (
        ("GET", "/predict", "POST"),
        ("POST", "/livez", "GET, HEAD"),
        ("PUT", "/docs", "GET, HEAD"),
    ):
        response = client.request(method, path)
        assert problem_of(response) == (405, "method_not_allowed")
        assert response.headers["allow"] == allowed
        assert response.json()["detail"] == f"{path} takes {allowed}, not {method}"


def test_the_table_is_the_contracts() -> None:
    def leaves(cls: type[ServiceError]) -> list[type[ServiceError]]:
        return [leaf for sub in cls.__subclasses__() for leaf in leaves(sub)] or [cls]

    assert {(leaf.status, leaf.code) for leaf in leaves(ServiceError)} == {
        (400, "bad_request"),
        (401, "unauthorized"),
        (403, "forbidden"),
        (408, "request_timeout"),
        (413, "too_large"),
        (415, "unsupported_media_type"),
        (422, "bad_image"),
        (422, "bad_region"),
        (429, "rate_limited"),
        (431, "head_too_large"),
        (503, "overloaded"),
        (503, "draining"),
        (503, "not_ready"),
        (504, "deadline_exceeded"),
        (500, "internal"),
        (501, "not_implemented"),
    }
