"""What the balancer lets in, passes on, sends again, and says itself. How it stands by replicas that come, go, die and
freeze is in test_replicas.py."""

import json
import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from balancer import CONFIGURATION, PATIENCE_S, Balancer, balancing, free_port
from containers import ROOT, seconds, tool
from serving import plain, problem_of, serving, wait_until

from service import errors
from service.engine import OnnxEngine

# 5 MB: a bitmap is as large as its pixels.
PHOTOGRAPH = plain("417", (1300, 1300), "BMP")


class Faulty(ThreadingHTTPServer):
    """A replica that says it is ready and does with every POST, once it has come in, what `fault` does."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], fault: Callable[[BaseHTTPRequestHandler], None]) -> None:
        self.asked = 0
        faulty = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                answer(self, 200)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                faulty.asked += 1
                fault(self)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        super().__init__(address, Handler)


def answer(request: BaseHTTPRequestHandler, status: int) -> None:
    request.send_response(status)
    request.send_header("Content-Length", "0")
    request.end_headers()


def hang_up(request: BaseHTTPRequestHandler) -> None:
    request.close_connection = True


def say_overloaded(request: BaseHTTPRequestHandler) -> None:
    answer(request, 503)


@contextmanager
def faulty(address: tuple[str, int], fault: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[Faulty]:
    server = Faulty(address, fault)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def caller(balancer: Balancer, source: str = "127.0.0.1") -> Iterator[httpx.Client]:
    """A client whose address is `source`."""
    transport = httpx.HTTPTransport(local_address=source)
    with httpx.Client(base_url=balancer.url, transport=transport, timeout=PATIENCE_S) as client:
        yield client


def port_of(client: httpx.Client) -> int:
    port = client.base_url.port
    assert port is not None
    return port


@pytest.fixture(scope="module")
def reader(engine: OnnxEngine) -> Iterator[httpx.Client]:
    """A reader that lets each caller read one image per minute, asked directly."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("FORWARDED_ALLOW_IPS", "127.0.0.1")
        with serving(engine, rate_limit_per_minute=1) as client:
            yield client


@pytest.fixture(scope="module")
def balancer(reader: httpx.Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Balancer]:
    """The balancer in front of that one reader."""
    with balancing(tmp_path_factory.mktemp("balancer"), ["127.0.0.1"], port_of(reader)) as balancer:
        balancer.wait_for(1)
        yield balancer


# -- the file --------------------------------------------------------------------------------------------------------


def test_the_configuration_is_valid() -> None:
    checked = subprocess.run([tool("haproxy"), "-c", "-f", str(CONFIGURATION)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    assert "WARNING" not in checked.stderr


def test_its_own_errors_are_those_of_the_service() -> None:
    known = {error.code: error for error in vars(errors).values() if hasattr(error, "code")}
    bodies = re.findall(r"http-error status (\d+) .*lf-string '(.*)'", CONFIGURATION.read_text())
    assert {int(status) for status, _ in bodies} >= {408, 502, 503, 504}
    for status, body in bodies:
        problem = json.loads(body)
        assert problem["status"] == int(status)
        assert problem["type"] == f"urn:housenumber:problem:{problem['code']}"
        if problem["code"] not in {"bad_gateway", "not_found"}:  # which only the balancer and the framework say
            error = known[problem["code"]]
            assert (problem["status"], problem["title"]) == (error.status, error.title)


def test_the_times_of_the_configuration_are_documented() -> None:
    defaults = CONFIGURATION.read_text().split("\ndefaults\n")[1].split("\nfrontend")[0]
    times = {name: seconds(value) for name, value in re.findall(r"^ +timeout (\S+) (\S+)$", defaults, re.MULTILINE)}
    documentation = (ROOT / "docs/deployment.md").read_text()
    told = re.findall(r"^\| .*`timeout (\S+)`.* \| (\d+) \|", documentation, re.MULTILINE)
    assert {name: float(value) for name, value in told} == times


# -- what comes in and what is passed on -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/metrics", "/metrics?x=1", "/%6Detrics", "/%6d%65trics/", "//metrics"])
def test_metrics_are_hidden(path: str, balancer: Balancer, reader: httpx.Client) -> None:
    assert reader.get("/metrics").status_code == 200
    assert status_of(balancer, "GET", path) == 404


@pytest.mark.parametrize("path", ["repository/index", "%72epository/index", "repository/models/tiny/load"])
def test_the_model_repository_is_hidden(path: str, balancer: Balancer) -> None:
    assert status_of(balancer, "POST", f"/v2/{path}") == status_of(balancer, "POST", f"/v2%2F{path}") == 404


def test_its_errors_are_problems_under_v2_too(balancer: Balancer) -> None:
    with caller(balancer) as client:
        assert problem_of(client.post("/v2/repository/index")) == (404, "not_found")


def test_what_is_not_http_gets_a_text_of_haproxys(balancer: Balancer) -> None:
    """Nothing can be put in its place in HAProxy 2.6, though `http-error status 400` is taken for valid."""
    url = httpx.URL(balancer.url)
    with socket.create_connection((url.host, url.port or 0), timeout=PATIENCE_S) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nnot a header\r\n\r\n")
        with connection.makefile("rb") as answered:
            head = answered.read().partition(b"\r\n\r\n")[0].decode().lower().split("\r\n")
    assert head[0].startswith("http/1.1 400 ")
    assert "content-type: text/html" in head


def status_of(balancer: Balancer, method: str, path: str) -> int:
    """Of a request for the very characters of `path`."""
    connection = HTTPConnection(httpx.URL(balancer.url).netloc.decode(), timeout=PATIENCE_S)
    try:
        connection.request(method, path)
        return connection.getresponse().status
    finally:
        connection.close()


def test_the_rest_is_the_readers(balancer: Balancer, reader: httpx.Client) -> None:
    with caller(balancer) as client:
        assert client.get("/").text == reader.get("/").text
        assert client.get("/openapi.json").json() == reader.get("/openapi.json").json()
        assert client.get("/v2").json() == reader.get("/v2").json()
        assert client.get("/readyz").status_code == 200


def test_nobody_can_take_another_callers_address(balancer: Balancer) -> None:
    image = plain("1")
    statuses = []
    with caller(balancer, "127.0.0.7") as client, caller(balancer, "127.0.0.8") as other:
        for forged in ("10.0.0.1", "10.0.0.2", "127.0.0.8"):
            headers = {"X-Forwarded-For": forged}
            statuses.append(client.post("/predict", content=image, headers=headers).status_code)
        assert statuses == [200, 429, 429]
        assert other.post("/predict", content=image).status_code == 200


def test_one_id_from_the_caller_to_the_log(balancer: Balancer) -> None:
    with caller(balancer) as client:
        for sent in ("mine-1", 'quoted"and\\', "with,comma"):
            response = client.get("/nothing", headers={"X-Request-ID": sent})
            assert problem_of(response)[0] == 404
            assert response.headers["X-Request-ID"] == sent
            hidden = client.get("/metrics", headers={"X-Request-ID": sent})
            assert problem_of(hidden) == (404, "not_found")
            assert hidden.headers["X-Request-ID"] == sent
        made = client.get("/nothing").headers["X-Request-ID"]
        unfit = client.get("/nothing", headers={"X-Request-ID": "with a space"}).headers["X-Request-ID"]
    assert len({made, unfit}) == 2
    # The balancer writes a line when it has sent the answer.
    known = [f"{{{request_id}}}" for request_id in (made, unfit, "mine-1")]
    wait_until(lambda: all(request_id in balancer.log.read_text() for request_id in known), PATIENCE_S)


def test_those_inside_see_how_it_is(balancer: Balancer) -> None:
    assert balancer.inside.get("/readyz").status_code == 200
    assert 'haproxy_backend_active_servers{proxy="readers"} 1\n' in balancer.inside.get("/metrics").text


def test_without_a_reader_it_says_so(tmp_path: Path) -> None:
    with balancing(tmp_path, [], 8000) as balancer, caller(balancer) as client:
        assert balancer.inside.get("/readyz").status_code == 503
        assert 'haproxy_backend_active_servers{proxy="readers"} 0\n' in balancer.inside.get("/metrics").text
        response = client.post("/predict", content=plain("1"))
        assert problem_of(response) == (503, "not_ready")
        assert int(response.headers["Retry-After"]) > 0


def test_readers_that_come_are_used_and_those_that_go_are_not(engine: OnnxEngine, tmp_path: Path) -> None:
    with serving(engine) as first:
        port = port_of(first)
        with (
            faulty(("127.0.0.3", port), lambda request: answer(request, 204)) as second,
            balancing(tmp_path, ["127.0.0.1"], port) as balancer,
            caller(balancer) as client,
        ):
            balancer.wait_for(1)
            assert [client.post("/predict", content=plain("1")).status_code for _ in range(4)] == [200] * 4
            balancer.names.addresses.append("127.0.0.3")
            balancer.wait_for(2)
            assert {client.post("/predict", content=plain("1")).status_code for _ in range(4)} == {200, 204}
            balancer.names.addresses.remove("127.0.0.1")
            balancer.wait_for(1)
            assert [client.post("/predict", content=plain("1")).status_code for _ in range(4)] == [204] * 4
            assert second.asked >= 5


def test_the_next_request_goes_to_the_reader_that_has_the_fewest(tmp_path: Path) -> None:
    port = free_port("127.0.0.3")
    go_on = threading.Event()

    def hold(request: BaseHTTPRequestHandler) -> None:
        go_on.wait()
        answer(request, 204)

    with (
        faulty(("127.0.0.3", port), hold) as busy,
        faulty(("127.0.0.4", port), lambda request: answer(request, 204)) as idle,
        balancing(tmp_path, ["127.0.0.3", "127.0.0.4"], port) as balancer,
        caller(balancer) as client,
        ThreadPoolExecutor() as callers,
    ):
        balancer.wait_for(2)

        def send() -> None:
            before = busy.asked + idle.asked
            callers.submit(client.post, "/predict", content=plain("1"))
            wait_until(lambda: busy.asked + idle.asked > before, PATIENCE_S)

        try:
            while not busy.asked:  # as long as none has more than the other it is by turns
                send()
            assert [client.post("/predict", content=plain("1")).status_code for _ in range(4)] == [204] * 4
            assert busy.asked == 1
        finally:
            go_on.set()


# -- what is sent again ----------------------------------------------------------------------------------------------


@contextmanager
def beside_a_faulty_one(
    engine: OnnxEngine, directory: Path, fault: Callable[[BaseHTTPRequestHandler], None], **variables: str
) -> Iterator[tuple[httpx.Client, Faulty]]:
    """A caller of the balancer in front of a good reader and a faulty one, which get requests by turns."""
    with serving(engine) as good:
        port = port_of(good)
        with (
            faulty(("127.0.0.3", port), fault) as bad,
            balancing(directory, ["127.0.0.1", "127.0.0.3"], port, **variables) as balancer,
            caller(balancer) as client,
        ):
            balancer.wait_for(2)
            yield client, bad


def numbers(responses: list[httpx.Response]) -> list[str]:
    return [response.json()["predictions"][0]["number"] for response in responses if response.status_code == 200]


@pytest.mark.parametrize("fault", [hang_up, say_overloaded])
def test_a_request_is_sent_to_another_reader(
    fault: Callable[[BaseHTTPRequestHandler], None], engine: OnnxEngine, tmp_path: Path
) -> None:
    asked = [str(number) for number in range(100, 108)]
    with beside_a_faulty_one(engine, tmp_path, fault) as (client, bad):
        responses = [client.post("/predict", content=plain(number, (300, 300), "BMP")) for number in asked]
        chunked = client.post("/predict", content=iter([plain("19")]))  # of no known length
        assert numbers([*responses, chunked]) == [*asked, "19"]
        assert bad.asked > 0


def test_a_large_one_is_not_unless_the_balancer_is_told_to_keep_it(engine: OnnxEngine, tmp_path: Path) -> None:
    with beside_a_faulty_one(engine, tmp_path, hang_up) as (client, bad):
        # On a connection that was used before, HAProxy would say so by closing it, and not with a status.
        responses = [client.post("/predict", content=PHOTOGRAPH, headers={"Connection": "close"}) for _ in range(4)]
        lost = [response for response in responses if response.status_code != 200]
        assert len(lost) == bad.asked > 0
        assert {problem_of(response) for response in lost} == {(502, "bad_gateway")}
        assert all(int(response.headers["Retry-After"]) > 0 for response in lost)
        assert set(numbers(responses)) == {"417"}
    with beside_a_faulty_one(engine, tmp_path, hang_up, RETRY_BYTES="8388608") as (client, bad):
        assert numbers([client.post("/predict", content=PHOTOGRAPH) for _ in range(4)]) == ["417"] * 4
        assert bad.asked > 0


def test_a_request_that_nobody_can_answer_comes_back(tmp_path: Path) -> None:
    port = free_port("127.0.0.3")
    with (
        faulty(("127.0.0.3", port), hang_up) as one,
        faulty(("127.0.0.4", port), hang_up) as other,
        balancing(tmp_path, ["127.0.0.3", "127.0.0.4"], port) as balancer,
        caller(balancer) as client,
    ):
        balancer.wait_for(2)
        assert problem_of(client.post("/predict", content=plain("1"))) == (502, "bad_gateway")
        assert one.asked == other.asked == 2  # once and three times again, each time the one that has not just failed
