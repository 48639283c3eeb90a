"""Keys, rates and slow callers, and requests made to exhaust the service.

Each hostile request is one that would need gigabytes, or minutes, if the service did with it what it asks for:
that it is answered, and that the service still answers afterwards, is the proof that it does not.
"""

import base64
import json
import socket
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image
from serving import Held, connected, encode, listening, plain, problem_of, serving, until_closed, wait_until
from tiny_reader import colour_of

from service.app import create_app
from service.engine import OnnxEngine
from service.errors import ServiceError
from service.protocol import StrictHttp
from service.settings import Settings

JSON = {"Content-Type": "application/json"}
MULTIPART = {"Content-Type": "multipart/form-data; boundary=cut"}


def still_there(client: httpx.Client) -> None:
    assert client.get("/livez").status_code == 200
    assert client.post("/predict", content=plain("7")).json()["predictions"][0]["number"] == "7"


# -- keys ------------------------------------------------------------------------------------------------------------


def test_keys_of_a_file_are_read_again_and_a_bad_file_changes_nothing(
    engine: OnnxEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys"
    file.write_text("alice:red\n")
    app = create_app(Settings(api_keys="always", api_keys_file=file), lambda _: engine)

    def statuses() -> list[int]:
        keys = ("always", "red", "blue")
        return [client.post("/predict", content=plain("1"), headers={"X-API-Key": key}).status_code for key in keys]

    with listening(app) as client:
        wait_until(lambda: client.get("/readyz").status_code == 200)
        assert statuses() == [200, 200, 401]
        file.write_text("bob:blue\n")
        app.state.access.reload()
        assert statuses() == [200, 401, 200]
        file.write_text("no good:blue\n")
        app.state.access.reload()
        assert statuses() == [200, 401, 200]
    (line,) = [record.getMessage() for record in caplog.records if record.name == "service.access"]
    assert line.startswith(f"the API keys stay as they were: {file}, line 1: ")
    assert "blue" not in line


def test_keys_are_compared_as_the_bytes_that_the_header_carries(engine: OnnxEngine) -> None:
    with serving(engine, api_keys="schlüssel") as client:
        for sent, status in (("schlüssel".encode(), 200), ("schlüssel".encode("latin-1"), 401)):
            headers = [(b"X-API-Key", sent)]
            assert client.post("/predict", content=plain("1"), headers=headers).status_code == status


def test_without_a_key_the_body_is_not_even_read(engine: OnnxEngine) -> None:
    with serving(engine, api_keys="one") as client:
        head = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n"
        with connected(client) as caller:
            caller.sendall(head)
            assert b" 401 " in caller.makefile("rb").readline()


# -- the rate limit --------------------------------------------------------------------------------------------------


def test_a_caller_over_its_rate_is_told_when_to_come_back(engine: OnnxEngine) -> None:
    with serving(engine, rate_limit_per_minute=3) as client:
        files = [("image", ("a.png", plain("1")))] * 2
        assert client.post("/predict", files=files).status_code == 200
        assert client.post("/predict?region=0,0,4,4&region=0,0,5,5", content=plain("1")).status_code == 200
        response = client.post("/predict", content=plain("1"))
        assert problem_of(response) == (429, "rate_limited")
        # One too many: two have to come back before there is one again, one every twenty seconds.
        assert 20 < int(response.headers["retry-after"]) <= 40
        assert client.get("/readyz").status_code == client.get("/metrics").status_code == 200


def test_each_key_has_its_own_rate_and_a_wrong_one_none(engine: OnnxEngine) -> None:
    with serving(engine, api_keys="alice:red, alice:green, bob:blue", rate_limit_per_minute=1) as client:

        def status(key: str) -> int:
            return client.post("/predict", content=plain("1"), headers={"X-API-Key": key}).status_code

        assert [status(key) for key in ("red", "green", "blue", "grey", "blue")] == [200, 429, 200, 401, 429]


@pytest.mark.parametrize("named", [None, "10.0.0.9", "127.0.0.1"])
def test_an_address_is_believed_of_the_proxy_that_is_named_alone(
    engine: OnnxEngine, monkeypatch: pytest.MonkeyPatch, named: str | None
) -> None:
    monkeypatch.delenv("FORWARDED_ALLOW_IPS", raising=False)
    if named is not None:
        monkeypatch.setenv("FORWARDED_ALLOW_IPS", named)
    with serving(engine, rate_limit_per_minute=1) as client:
        statuses = [
            client.post("/predict", content=plain("1"), headers={"X-Forwarded-For": f"10.0.0.{host}"}).status_code
            for host in (1, 2)
        ]
    assert statuses == [200, 200 if named == "127.0.0.1" else 429]


# -- slow callers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content_type", ["image/png", "application/json", "multipart/form-data; boundary=cut"])
def test_a_body_that_stops_coming_is_given_up_and_the_connection_closed(engine: OnnxEngine, content_type: str) -> None:
    with serving(engine, body_timeout_s=0.2) as client:
        with connected(client) as caller:
            caller.sendall(
                f"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: {content_type}\r\n"
                "Transfer-Encoding: chunked\r\n\r\n2\r\n--\r\n".encode()
            )
            head, _, body = until_closed(caller).partition(b"\r\n\r\n")
        assert b" 408 " in head
        assert b"connection: close" in head.lower()
        assert json.loads(body)["code"] == "request_timeout"
        still_there(client)


def test_a_slow_body_that_keeps_coming_is_read(engine: OnnxEngine) -> None:
    image = plain("5")
    with serving(engine, body_timeout_s=10) as client:

        def dripping() -> Iterator[bytes]:
            for position in range(len(image)):
                yield image[position : position + 1]

        assert client.post("/predict", content=dripping()).json()["predictions"][0]["number"] == "5"


@pytest.mark.parametrize("start", [b"", b"POST /predict HTTP/1.1\r\nHost: a\r\nX-Sl"])
def test_a_head_that_is_never_whole_ends_the_connection(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch, start: bytes
) -> None:
    with monkeypatch.context() as hasty:
        hasty.setattr(StrictHttp, "head_timeout_s", 1.0)
        with connected(client) as caller:
            caller.sendall(start)
            assert until_closed(caller) == b""
    still_there(client)


def test_the_time_for_a_head_does_not_run_while_a_body_comes(
    engine: OnnxEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(engine, body_timeout_s=1.5) as client:
        monkeypatch.setattr(StrictHttp, "head_timeout_s", 1.0)
        with connected(client) as caller:
            caller.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc")
            # Were the connection closed by the time for the head, there would be no answer.
            assert b" 408 " in until_closed(caller)


# -- heads and query -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line", [b"X-Long: " + b"x" * 100_000, b"X-Many: 1\r\n" * 10_000, b"Cookie: " + b"a=b; " * 20_000]
)
def test_a_head_without_end_is_too_large(client: httpx.Client, line: bytes) -> None:
    with connected(client) as caller:
        caller.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\n" + line)
        assert until_closed(caller).startswith(b"HTTP/1.1 431 ")
    still_there(client)


def test_a_caller_that_is_still_sending_gets_to_read_why_its_head_is_refused(client: httpx.Client) -> None:
    with connected(client) as caller:
        caller.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\n" + b"X-Many: 1\r\n" * 10_000)
        start = caller.recv(1)  # the service has made up its mind
        for _ in range(20):
            caller.sendall(b"X-Many: 1\r\n" * 10_000)
        assert (start + until_closed(caller)).startswith(b"HTTP/1.1 431 ")
    still_there(client)


def test_a_caller_that_never_stops_sending_its_head_is_cut_off(engine: OnnxEngine) -> None:
    def lines_without_end(caller: socket.socket) -> None:
        while True:
            caller.sendall(b"X-Many: 1\r\n" * 10_000)

    with listening(create_app(Settings(), lambda _: engine), timeout_keep_alive=1) as client:
        with connected(client) as caller:
            caller.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\n")
            with pytest.raises(ConnectionError):
                lines_without_end(caller)
        wait_until(lambda: client.get("/readyz").status_code == 200)
        still_there(client)


def test_a_head_without_end_takes_no_answer_from_the_request_before_it(
    engine: OnnxEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, refused, refuse = Held(engine), threading.Event(), StrictHttp._refuse

    def noted(protocol: StrictHttp, error: ServiceError) -> None:
        refuse(protocol, error)
        refused.set()

    monkeypatch.setattr(StrictHttp, "_refuse", noted)
    with serving(held) as client, connected(client) as caller:
        image = plain("7")
        caller.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(image) + image)
        held.inside.wait()
        # More than is read at once.
        caller.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\n" + b"X-Many: 1\r\n" * 100_000)
        refused.wait()
        held.go_on.set()
        head, _, body = until_closed(caller).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close" in head.lower()
    assert json.loads(body)["predictions"][0]["number"] == "7"


def test_a_path_without_end_is_too_large(client: httpx.Client) -> None:
    with connected(client) as caller:
        caller.sendall(b"POST /predict?region=" + b"1," * 50_000)
        assert until_closed(caller).startswith(b"HTTP/1.1 431 ")
    still_there(client)


def test_what_is_no_http_at_all_is_refused(client: httpx.Client) -> None:
    with connected(client) as caller:
        caller.sendall(b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03")
        assert until_closed(caller).startswith(b"HTTP/1.1 400 ")
    still_there(client)


def test_other_origins_are_told_nothing(client: httpx.Client) -> None:
    response = client.post("/predict", content=plain("1"), headers={"Origin": "https://elsewhere.example"})
    assert not [name for name in response.headers if name.startswith("access-control")]
    asked = client.options(
        "/predict", headers={"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "POST"}
    )
    assert problem_of(asked) == (405, "method_not_allowed")


# -- JSON and multipart ----------------------------------------------------------------------------------------------

DEEP = 100_000


@pytest.mark.parametrize(
    "body",
    [
        b"[" * DEEP + b"]" * DEEP,
        b'{"images": ' * DEEP + b"1" + b"}" * DEEP,
        b'{"images": [{"data": ' + b"[" * DEEP + b"]" * DEEP + b"}]}",
        b'{"images": [{"data": "", "regions": ' + b"[" * DEEP + b"]" * DEEP + b"}]}",
        b'{"images": [{"data": "", "regions": [[' + b"9" * DEEP + b", 0, 1, 1]]}]}",
    ],
    ids=["arrays", "objects", "data", "regions", "digits"],
)
def test_deep_or_endless_json_is_a_bad_request(client: httpx.Client, body: bytes) -> None:
    assert problem_of(client.post("/predict", content=body, headers=JSON)) == (400, "bad_request")
    still_there(client)


@pytest.mark.parametrize(
    "body",
    [
        b'{"images": [' + b'{"data":""},' * 1_000_000 + b'{"data":""}]}',
        b'{"images": [' + b"1," * 10_000_000 + b"1]}",
        b'{"images": [{"data": "", "regions": [' + b"1," * 10_000_000 + b"1]}]}",
        b'{"images": [], ' + b",".join(b'"%x": 1' % number for number in range(1_000_000)) + b"}",
        b'{"images": [], ' + b'"images": [], ' * 1_000_000 + b'"images": 1}',
    ],
    ids=["images of nothing", "images", "regions", "fields", "repeated fields"],
)
def test_a_million_values_are_too_many(client: httpx.Client, body: bytes) -> None:
    assert len(body) < Settings().max_body_bytes
    assert problem_of(client.post("/predict", content=body, headers=JSON)) == (413, "too_large")
    still_there(client)


def part(data: bytes, head: str = "", name: str = "image") -> bytes:
    disposition = f'Content-Disposition: form-data; name="{name}"; filename="a.png"\r\n'
    return f"--cut\r\n{disposition}{head}\r\n".encode() + data + b"\r\n"


def test_thousands_of_parts_are_too_many(client: httpx.Client) -> None:
    body = part(b"") * 20_000 + b"--cut--\r\n"
    assert problem_of(client.post("/predict", content=body, headers=MULTIPART)) == (413, "too_large")
    still_there(client)


def test_thousands_of_headers_of_one_part_are_a_bad_request(client: httpx.Client) -> None:
    body = part(plain("1"), "".join(f"X-{number}: 1\r\n" for number in range(20_000))) + b"--cut--\r\n"
    assert problem_of(client.post("/predict", content=body, headers=MULTIPART)) == (400, "bad_request")
    still_there(client)


def test_multipart_inside_multipart_is_not_opened(client: httpx.Client) -> None:
    body = part(plain("1"))
    for _ in range(8):  # each as large as the last, and its boundary the same
        body = part(body.replace(b"--cut", b"----cut"), "Content-Type: multipart/mixed; boundary=--cut\r\n")
    response = client.post("/predict", content=body + b"--cut--\r\n", headers=MULTIPART)
    assert problem_of(response) == (415, "unsupported_media_type")
    still_there(client)


# -- images ----------------------------------------------------------------------------------------------------------


def gibibytes(count: int) -> bytes:
    """A zlib stream of `count` GiB of zeros, about a thousandth as long."""
    compressor = zlib.compressobj(9)
    start = compressor.compress(bytes(2**20)) + compressor.flush(zlib.Z_FULL_FLUSH)
    # After a full flush every block stands for itself, so the second may be repeated.
    block = compressor.compress(bytes(2**20)) + compressor.flush(zlib.Z_FULL_FLUSH)
    return start + block * (1024 * count - 1)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(*extra: bytes, pixels: bytes | None = None) -> bytes:
    """A PNG image that reads as 42, with extra chunks before its pixels, or other pixels."""
    size = 16, 12
    row = b"\0" + bytes(colour_of("42")) * size[0]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(row * size[1]) if pixels is None else pixels)
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + data + chunk(b"IEND", b"")


BOMB = gibibytes(8)
ALLOWED_OF_A_BOMB = {200, 422}


@pytest.mark.parametrize(
    "data",
    [
        png_with(pixels=BOMB),
        png_with(chunk(b"zTXt", b"a\0\0" + BOMB)),
        png_with(chunk(b"iTXt", b"a\0\1\0\0\0" + BOMB)),
        png_with(chunk(b"iCCP", b"a\0\0" + BOMB)),
        png_with(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**20 - 1))) * 5_000),
    ],
    ids=["pixels", "text", "international text", "profile", "five thousand texts"],
)
def test_a_png_of_eight_gibibytes_is_not_unpacked(client: httpx.Client, data: bytes) -> None:
    assert len(data) < Settings().max_body_bytes
    response = client.post("/predict", content=data)
    assert response.status_code in ALLOWED_OF_A_BOMB
    if response.status_code == 422:
        assert problem_of(response) == (422, "bad_image")
    still_there(client)


@pytest.mark.parametrize("kind", [b"prVt", b"IDAT", b"tEXt"])
def test_a_png_of_a_million_chunks_is_refused(client: httpx.Client, kind: bytes) -> None:
    data = png_with(chunk(kind, b"") * 1_000_000)
    assert problem_of(client.post("/predict", content=data)) == (422, "bad_image")
    assert client.post("/predict", content=png_with(chunk(kind, b"a\0") * 100)).status_code in ALLOWED_OF_A_BOMB
    still_there(client)


def test_of_a_gif_of_a_million_frames_the_first_is_read(client: httpx.Client) -> None:
    first = plain("42", format="GIF")
    assert first.endswith(b";")
    frame = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0"
    data = first[:-1] + frame * 1_000_000 + b";"
    assert len(data) < Settings().max_body_bytes
    assert client.post("/predict", content=data).json()["predictions"][0]["number"] == "42"
    still_there(client)


@pytest.mark.parametrize("size", [(1, 50_000), (50_000, 1)])
@pytest.mark.parametrize("image_format", ["PNG", "BMP", "TIFF", "JPEG", "GIF"])
def test_a_line_of_fifty_thousand_pixels_is_an_image_like_any_other(
    client: httpx.Client, size: tuple[int, int], image_format: str
) -> None:
    response = client.post("/predict", content=plain("42", size, image_format))
    (prediction,) = response.json()["predictions"]
    assert prediction["image"] == {"index": 0, "width": size[0], "height": size[1]}
    assert prediction["number"] == "42"


def tiff(*tags: tuple[int, int, int, int], next_directory: int = 0) -> bytes:
    """A little-endian TIFF file of one directory of (tag, type, count, value) and 600 zero bytes of pixels."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", next_directory)
    return b"II*\0" + struct.pack("<I", 8) + directory + bytes(600)


SHORT, LONG = 3, 4
WHOLE = {
    256: (256, LONG, 1, 16),  # width
    257: (257, LONG, 1, 12),  # height
    258: (258, SHORT, 1, 8),  # bits per sample
    259: (259, SHORT, 1, 1),  # not compressed
    262: (262, SHORT, 1, 1),  # black is zero
    273: (273, LONG, 1, 130),  # where the pixels are
    277: (277, SHORT, 1, 1),  # samples per pixel
    278: (278, LONG, 1, 12),  # rows per strip
    279: (279, LONG, 1, 192),  # bytes of the strip
}
MOST = 2**32 - 1


def test_the_tiff_of_the_next_test_is_one(client: httpx.Client) -> None:
    assert client.post("/predict", content=tiff(*WHOLE.values())).status_code == 200


@pytest.mark.parametrize(
    ("changed", "answers"),
    [
        ([(256, LONG, 1, MOST), (257, LONG, 1, MOST)], {(413, "too_large")}),
        ([(256, LONG, 1, MOST)], {(413, "too_large")}),
        ([(256, LONG, 1, 0)], {(422, "bad_image")}),
        ([(273, LONG, MOST, 8)], {(422, "bad_image")}),
        ([(273, LONG, 1, MOST)], {(422, "bad_image")}),
        ([(258, SHORT, MOST, 8)], {(200, ""), (422, "bad_image")}),
        ([(258, SHORT, 1, 65535)], {(422, "bad_image")}),
        ([(277, SHORT, 1, 65535)], {(422, "bad_image")}),
        ([(278, LONG, 1, MOST)], {(200, ""), (422, "bad_image")}),
        ([(279, LONG, 1, MOST)], {(200, ""), (422, "bad_image")}),
        ([(259, SHORT, 1, 5)], {(422, "bad_image")}),  # LZW, which these zeros are not
        ([(259, SHORT, 1, 34892)], {(422, "bad_image")}),  # something that nobody decodes
        ([(322, LONG, 1, MOST), (323, LONG, 1, MOST), (324, LONG, 1, 130)], {(200, ""), (422, "bad_image")}),
        ([(700 + number, LONG, MOST, 8) for number in range(2_000)], {(200, ""), (422, "bad_image")}),
    ],
)
def test_a_tiff_with_absurd_tags_is_refused(
    client: httpx.Client, changed: list[tuple[int, int, int, int]], answers: set[tuple[int, str]]
) -> None:
    tags = {**WHOLE, **{tag[0]: tag for tag in changed}}
    response = client.post("/predict", content=tiff(*tags.values()))
    assert (response.status_code, "" if response.is_success else problem_of(response)[1]) in answers
    still_there(client)


def test_a_tiff_whose_directories_go_round_in_circles_is_read_once(client: httpx.Client) -> None:
    assert client.post("/predict", content=tiff(*WHOLE.values(), next_directory=8)).status_code == 200


def test_a_webp_that_promises_more_than_the_limit_is_refused_by_its_header(client: httpx.Client) -> None:
    largest = struct.pack("<I", 16_383 | 16_383 << 14)
    data = b"WEBPVP8L" + struct.pack("<I", 5) + b"\x2f" + largest
    response = client.post("/predict", content=b"RIFF" + struct.pack("<I", len(data)) + data)
    assert problem_of(response) == (413, "too_large")


def test_what_another_format_hides_is_never_opened(client: httpx.Client) -> None:
    """The bytes decide, and of the formats that the imaging library knows besides none is ever tried."""
    image = Image.new("RGB", (16, 12), colour_of("42"))
    for image_format in ("PPM", "TGA", "ICO", "PCX", "SGI", "EPS", "PDF", "JPEG2000", "DDS", "IM"):
        data = encode(image, image_format)
        assert client.post("/predict", content=data, headers={"Content-Type": "image/png"}).status_code in {415, 422}
    coded = base64.b64encode(encode(image, "PPM")).decode()
    body = {"images": [{"data": f"data:image/png;base64,{coded}"}]}
    assert problem_of(client.post("/predict", json=body)) == (415, "unsupported_media_type")
