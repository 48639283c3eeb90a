"""What callers write on a connection, byte by byte: requests for another protocol, and what is no request at all."""

import asyncio
import json
import re
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Iterator
from http.client import HTTPResponse
from typing import Any

import httpx
import pytest
from fastapi.responses import StreamingResponse
from serving import Held, connected, listening, plain, serving, until_closed, wait_until

from service.app import create_app
from service.engine import OnnxEngine
from service.protocol import StrictHttp
from service.settings import Settings

IMAGE = plain("7")
PREDICT = b"POST /predict HTTP/1.1\r\nHost: a\r\n"
LAST = b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
# An image it is not, but a request it would be, if it were taken for one.
SMUGGLED = b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n"


def statuses(received: bytes) -> list[int]:
    """Of all answers on a connection."""
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]


def sized(head: bytes, body: bytes) -> bytes:
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def chunked(head: bytes, body: bytes, trailers: bytes = b"") -> bytes:
    size = len(body) // 2
    chunks = b"".join(b"%x\r\n" % len(part) + part + b"\r\n" for part in (body[:size], body[size:]) if part)
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n" + trailers + b"\r\n"


def next_answer(caller: socket.socket) -> tuple[int, Any]:
    """Status and JSON of the answer to the one request that is being answered."""
    answer = HTTPResponse(caller)
    answer.begin()
    return answer.status, json.loads(answer.read())


def number_of(answer: tuple[int, Any]) -> str:
    status, body = answer
    assert status == 200, body
    (prediction,) = body["predictions"]
    number: str = prediction["number"]
    return number


def refusal(received: bytes) -> tuple[int, str, str]:
    """Status, code and detail of an answer that is its connection's last and only one."""
    head, _, body = received.partition(b"\r\n\r\n")
    (status,) = statuses(received)
    fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in head.decode().split("\r\n"))}
    problem = json.loads(body)
    assert set(problem) == {"type", "title", "status", "detail", "code", "request_id"}
    assert fields["content-type"] == "application/problem+json"
    assert fields["connection"] == "close"
    assert int(fields["content-length"]) == len(body)
    assert fields["x-request-id"] == problem["request_id"]
    assert "date" in fields
    assert problem["status"] == status
    return status, problem["code"], problem["detail"]


# -- other protocols -------------------------------------------------------------------------------------------------

UPGRADES = [
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n",  # as Java and curl do
    b"Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: YQ==\r\n",
    b"upgrade: foo\r\nconnection: keep-alive, Upgrade\r\n",
    b"Upgrade: foo\r\nUpgrade: bar\r\nProxy-Connection: Upgrade\r\n",
]


@pytest.mark.parametrize("upgrade", UPGRADES, ids=["h2c", "websocket", "foo", "foo and bar"])
@pytest.mark.parametrize("framed", [sized, chunked])
def test_a_request_for_another_protocol_is_read_and_answered_as_any_other(
    client: httpx.Client, upgrade: bytes, framed: Any
) -> None:
    with connected(client) as caller:
        for body in (IMAGE, b"", SMUGGLED, IMAGE):
            head, blank, rest = framed(PREDICT + upgrade, body).partition(b"\r\n\r\n")
            caller.sendall(head + blank)
            time.sleep(0.05)  # the head is read alone
            caller.sendall(rest)
            status, answer = next_answer(caller)
            if body == IMAGE:
                assert number_of((status, answer)) == "7"
            else:
                assert (status, answer["code"]) == ((422, "bad_image") if body else (400, "bad_request"))
        caller.sendall(LAST)
        assert statuses(until_closed(caller)) == [200]


@pytest.mark.parametrize("upgrade", UPGRADES, ids=["h2c", "websocket", "foo", "foo and bar"])
def test_of_a_request_for_another_protocol_nothing_is_taken_for_a_request(client: httpx.Client, upgrade: bytes) -> None:
    requests = [
        sized(PREDICT + upgrade, SMUGGLED),
        b"GET /livez HTTP/1.1\r\nHost: a\r\n" + upgrade + b"\r\n",
        sized(b"GET /livez HTTP/1.1\r\nHost: a\r\n" + upgrade, SMUGGLED),
        chunked(PREDICT + upgrade, SMUGGLED),
        sized(b"DELETE /livez HTTP/1.1\r\nHost: a\r\n" + upgrade, SMUGGLED),
        sized(PREDICT + upgrade + b"Content-Type: application/json\r\n", SMUGGLED * 4000),
    ]
    expected = [422, 200, 200, 422, 405, 400]
    with connected(client) as caller:  # all at once: each waits for the one before
        caller.sendall(b"".join(requests) + LAST)
        assert statuses(until_closed(caller)) == [*expected, 200]
    for request, status in zip(requests, expected, strict=True):
        with connected(client) as caller:
            caller.sendall(request + LAST)
            assert statuses(until_closed(caller)) == [status, 200]


def test_a_request_for_another_protocol_may_come_in_any_two_pieces(client: httpx.Client) -> None:
    request = sized(PREDICT + UPGRADES[0], IMAGE)
    with connected(client) as caller:
        caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for position in range(1, request.index(b"\r\n\r\n") + 6):
            caller.sendall(request[:position])
            time.sleep(0.002)
            caller.sendall(request[position:])
            assert number_of(next_answer(caller)) == "7"


def test_a_request_for_another_protocol_may_be_the_connections_last(client: httpx.Client) -> None:
    with connected(client) as caller:
        caller.sendall(sized(PREDICT + b"Connection: close, Upgrade\r\nUpgrade: h2c\r\n", IMAGE) + SMUGGLED)
        received = until_closed(caller)
    assert statuses(received) == [200]
    assert b"connection: close" in received
    assert b'"number":"7"' in received


def test_nobody_is_connected_to_anywhere(client: httpx.Client) -> None:
    with connected(client) as caller:
        caller.sendall(sized(b"CONNECT elsewhere.example:443 HTTP/1.1\r\nHost: elsewhere.example\r\n", SMUGGLED))
        assert refusal(until_closed(caller))[:2] == (501, "not_implemented")


# -- what is no request ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_line", "fields", "status", "mention"),
    [
        ("FOO /predict", "", 400, "method"),
        ("POST /predict", "Content-Length: 3\r\nContent-Length: 3\r\n", 400, "Content-Length"),
        ("POST /predict", "Content-Length: 3, 3\r\n", 400, "Content-Length"),
        ("POST /predict", "Content-Length: -3\r\n", 400, "Content-Length"),
        ("POST /predict", "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", 400, "Content-Length"),
        ("POST /predict", "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", 400, "Transfer-Encoding"),
        ("POST /predict", "Transfer-Encoding: gzip, chunked\r\n", 501, "gzip"),
        ("POST /predict", "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n", 501, "gzip"),
        ("POST /predict", "Transfer-Encoding: identity\r\n", 501, "identity"),
        ("POST /predict", "Host: b\r\nContent-Length: 3\r\n", 400, "Host"),
        ("POST /predict?" + "x" * 70_000, "", 431, "65536"),
        ("POST /predict", "X-Long: " + "x" * 70_000 + "\r\n", 431, "65536"),
        ("POST predict", "", 400, "url"),
        ("POST a:1", "", 400, "url"),
        ("POST http://[elsewhere.example/", "", 400, "target"),
        ("POST http://elsewhere.example", "", 400, "target"),
        ("POST /predict", "X-Odd : 1\r\n", 400, "header"),
        ("POST /predict", "X-Odd: \0\r\n", 400, "header"),
    ],
)
def test_what_is_no_request_is_told_why(
    client: httpx.Client, request_line: str, fields: str, status: int, mention: str
) -> None:
    with connected(client) as caller:
        caller.sendall(f"{request_line} HTTP/1.1\r\nHost: a\r\n{fields}\r\n".encode() + SMUGGLED)
        code = {400: "bad_request", 431: "head_too_large", 501: "not_implemented"}[status]
        answered = refusal(until_closed(caller))
    assert answered[:2] == (status, code)
    assert mention in answered[2]
    assert len(answered[2]) < 200


def test_a_request_says_for_whom_it_is(client: httpx.Client) -> None:
    with connected(client) as caller:
        caller.sendall(b"GET /livez HTTP/1.1\r\nX-Request-ID: mine\r\n\r\n")
        received = until_closed(caller)
    assert refusal(received)[:2] == (400, "bad_request")
    assert json.loads(received.partition(b"\r\n\r\n")[2])["request_id"] == "mine"
    with connected(client) as caller:
        caller.sendall(b"GET /livez HTTP/1.0\r\n\r\n")  # when there was no Host
        assert statuses(until_closed(caller)) == [200]


def test_empty_lines_without_end_are_no_request(client: httpx.Client) -> None:
    with connected(client) as caller:
        caller.sendall(b"\r\n" * StrictHttp.max_head_bytes)
        assert refusal(until_closed(caller))[:2] == (431, "head_too_large")


def test_what_is_no_request_is_counted_once(engine: OnnxEngine) -> None:
    with serving(engine) as client:
        for sent in (b"FOO / HTTP/1.1\r\n\r\n", b"\r\n" * StrictHttp.max_head_bytes):
            with connected(client) as caller:
                caller.sendall(sent)
                assert until_closed(caller)
        counted = client.get("/metrics").text
    for code, status in (("bad_request", 400), ("head_too_large", 431)):
        assert f'requests_total{{code="{code}",route="other",status="{status}"}} 1.0' in counted


def test_what_is_no_chunk_is_told_why(engine: OnnxEngine) -> None:
    with serving(engine) as client, connected(client) as caller:
        caller.sendall(PREDICT + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nno size\r\n")
        status, _, detail = refusal(until_closed(caller))
        assert (status, "chunk size" in detail) == (400, True)
        assert 'requests_total{code="bad_request",route="/predict",status="400"} 1.0' in client.get("/metrics").text


def test_a_caller_that_is_still_sending_gets_to_read_what_is_no_chunk(client: httpx.Client) -> None:
    with connected(client) as caller:
        body = b"20000\r\n" + bytes(2**17) + b"\r\nno size\r\n"
        caller.sendall(PREDICT + b"Transfer-Encoding: chunked\r\n\r\n" + body + bytes(20_000_000))
        assert refusal(until_closed(caller))[0] == 400


def test_after_its_answer_a_body_that_is_wrong_gets_no_second_one(engine: OnnxEngine) -> None:
    with serving(engine, api_keys="one") as client, connected(client) as caller:
        caller.sendall(PREDICT + b"Transfer-Encoding: chunked\r\n\r\n")
        assert next_answer(caller)[0] == 401
        caller.sendall(b"no size\r\n")
        assert until_closed(caller) == b""


def test_what_is_no_request_takes_no_answer_from_the_one_before_it(client: httpx.Client) -> None:
    with connected(client) as caller:
        caller.sendall(sized(PREDICT, IMAGE) + b"FOO / HTTP/1.1\r\n\r\n")
        received = until_closed(caller)
    assert statuses(received) == [200]
    assert b"connection: close" in received


# -- what follows a body ---------------------------------------------------------------------------------------------


def test_what_follows_a_body_is_no_part_of_the_head(engine: OnnxEngine) -> None:
    with serving(engine, api_keys="one") as client, connected(client) as caller:
        caller.sendall(chunked(PREDICT, IMAGE, b"X-API-Key: one\r\n"))
        assert next_answer(caller)[0] == 401
    with serving(engine) as client, connected(client) as caller:
        caller.sendall(chunked(PREDICT, IMAGE, b"X-Check: 1\r\n") + LAST)
        assert statuses(until_closed(caller)) == [200, 200]


def test_what_follows_a_body_is_bounded_as_a_head_is(client: httpx.Client) -> None:
    start, end = chunked(PREDICT, IMAGE)[:-2], b"x" * StrictHttp.max_head_bytes
    with connected(client) as caller:
        caller.sendall(start + b"X-Long: ")
        try:
            for _ in range(16):  # more than is read at once
                caller.sendall(end)
        except ConnectionError:
            pytest.fail("what still came was not read")
        assert refusal(until_closed(caller))[:2] == (431, "head_too_large")


def test_many_small_chunks_are_a_body_like_any_other(client: httpx.Client) -> None:
    image = plain("7", (300, 300), "BMP")
    with connected(client) as caller:
        body = b"".join(b"1\r\n" + image[place : place + 1] + b"\r\n" for place in range(len(image)))
        caller.sendall(PREDICT + b"Transfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n")
        assert number_of(next_answer(caller)) == "7"


# -- connections that are kept ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hasty(engine: OnnxEngine) -> Iterator[httpx.Client]:
    """A client of a service that keeps a connection for a second, and answers who has no key at once."""
    with listening(create_app(Settings(api_keys="one"), lambda _: engine), timeout_keep_alive=1) as client:
        yield client


def is_closed(caller: socket.socket, drop: bytes) -> bool:
    """Whether a connection on which something comes again and again is closed all the same."""
    caller.settimeout(0.1)
    for _ in range(100):
        try:
            caller.sendall(drop)
            return caller.recv(1) == b""
        except TimeoutError:
            pass
        except ConnectionError:
            return True
    return False


@pytest.mark.parametrize("rest", [b"Content-Length: 1000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n3e8\r\n"])
def test_after_its_answer_the_rest_of_a_body_is_not_waited_for_long(hasty: httpx.Client, rest: bytes) -> None:
    with connected(hasty) as caller:
        caller.sendall(PREDICT + rest)
        assert next_answer(caller)[0] == 401
        assert is_closed(caller, b"x")


def test_empty_lines_keep_no_connection(hasty: httpx.Client) -> None:
    with connected(hasty) as caller:
        caller.sendall(sized(PREDICT, b""))
        assert next_answer(caller)[0] == 401
        assert is_closed(caller, b"\r\n")


def test_when_the_rest_of_a_body_has_come_its_connection_is_one_as_any_other(hasty: httpx.Client) -> None:
    with connected(hasty) as caller:
        for _ in range(2):
            caller.sendall(PREDICT + b"Content-Length: 1000\r\n\r\n")
            assert next_answer(caller)[0] == 401
            caller.sendall(b"x" * 1000)
        assert until_closed(caller) == b""


def test_a_head_that_began_before_the_answer_to_the_last_one_has_its_own_time(engine: OnnxEngine) -> None:
    held = Held(engine)
    with listening(create_app(Settings(), lambda _: held), timeout_keep_alive=1) as client, connected(client) as caller:
        wait_until(lambda: client.get("/readyz").status_code == 200)
        begin, rest = PREDICT[:20], PREDICT[20:] + b"Content-Length: %d\r\n\r\n" % len(IMAGE)
        caller.sendall(sized(PREDICT, IMAGE))
        assert held.inside.wait(20)
        caller.sendall(begin)
        time.sleep(0.1)  # it is read before the answer is given
        held.go_on.set()
        assert number_of(next_answer(caller)) == "7"
        caller.sendall(rest)
        time.sleep(1.5)
        caller.sendall(IMAGE)
        assert number_of(next_answer(caller)) == "7"


@pytest.mark.parametrize("fields", [b"", b"Connection: close\r\n"])
def test_a_caller_that_is_still_sending_gets_to_read_an_early_answer(client: httpx.Client, fields: bytes) -> None:
    body = bytes(Settings().max_body_bytes + 1)
    with connected(client) as caller:
        caller.sendall(sized(PREDICT + fields, body))
        assert next_answer(caller)[1]["code"] == "too_large"


@pytest.mark.parametrize("after", [LAST, b"FOO / HTTP/1.1\r\n\r\n"])
def test_nothing_is_answered_after_the_connections_last_answer(hasty: httpx.Client, after: bytes) -> None:
    with connected(hasty) as caller:
        caller.sendall(PREDICT + b"Connection: close\r\nContent-Length: 1000\r\n\r\n")
        assert next_answer(caller)[0] == 401
        caller.sendall(b"x" * 1000 + after)
        assert until_closed(caller) == b""


# -- answers ---------------------------------------------------------------------------------------------------------


def test_an_answer_comes_in_one_piece(client: httpx.Client) -> None:
    with connected(client) as caller:
        for request in (sized(PREDICT, IMAGE), b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"):
            caller.sendall(request)
            head, _, body = caller.recv(65536).partition(b"\r\n\r\n")
            assert b"content-length: %d\r\n" % len(body) in head + b"\r\n"


def test_a_body_that_is_asked_for_is_asked_for_at_once(client: httpx.Client) -> None:
    with connected(client) as caller:
        caller.sendall(PREDICT + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(IMAGE))
        assert caller.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        caller.sendall(IMAGE)
        assert number_of(next_answer(caller)) == "7"


def test_a_head_without_a_body_is_not_held_back(client: httpx.Client) -> None:
    with connected(client) as caller:
        for _ in range(2):
            caller.sendall(b"HEAD /livez HTTP/1.1\r\nHost: a\r\n\r\n")
            assert caller.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_of_an_answer_that_fails_after_its_head_the_head_is_sent(engine: OnnxEngine) -> None:
    def failing() -> Iterator[bytes]:
        raise RuntimeError("no body")
        yield b""

    app = create_app(Settings(), lambda _: engine)
    app.add_api_route("/failing", lambda: StreamingResponse(failing()), response_model=None)
    with listening(app) as client, connected(client) as caller:
        caller.sendall(b"GET /failing HTTP/1.1\r\nHost: a\r\n\r\n")
        received = until_closed(caller)
    assert statuses(received) == [200]
    assert received.endswith(b"\r\n\r\n")  # and no last chunk, from which the caller knows that something is missing


def test_what_turns_out_to_be_no_request_before_its_answer_is_sent_is_told_why(engine: OnnxEngine) -> None:
    begun = threading.Event()

    async def waiting() -> AsyncIterator[bytes]:
        begun.set()
        await asyncio.sleep(60)
        yield b""

    app = create_app(Settings(), lambda _: engine)
    app.add_api_route("/waiting", lambda: StreamingResponse(waiting()), response_model=None)
    with listening(app) as client, connected(client) as caller:
        caller.sendall(b"GET /waiting HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert begun.wait(20)
        caller.sendall(b"zz\r\n")
        assert refusal(until_closed(caller))[:2] == (400, "bad_request")


def test_callers_that_reset_their_connection_leave_no_task_that_failed(
    engine: OnnxEngine, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(engine) as client:
        for _ in range(10):
            with connected(client) as caller:
                caller.sendall(2 * sized(PREDICT, IMAGE))
                caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                time.sleep(0.001)
        wait_until(lambda: "housenumber_requests_in_flight 0.0" in client.get("/metrics").text)
    assert not [record.getMessage() for record in caplog.records if record.name == "asyncio"]
