"""The log: its two formats, one line per request, and what must not be in it."""

import base64
import io
import json
import logging
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from service_process import PATIENCE_S, service_process
from serving import Sabotaged, plain, serving, wait_until

from housenumber.cli import main
from service import logs
from service.engine import OnnxEngine


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers, root.level = handlers, level
    logging.captureWarnings(False)


def configured(log_format: logs.LogFormat, level: str = "info", stream: io.StringIO | None = None) -> io.StringIO:
    stream = stream or io.StringIO()
    logs.configure(level, log_format, stream)
    return stream


def entries(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def requests(stream: io.StringIO) -> list[dict[str, Any]]:
    return [entry for entry in entries(stream) if entry["logger"] == "service.access_log"]


# -- formats ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("log_format", "stream", "is_json"),
    [
        ("auto", io.StringIO, True),
        ("auto", Terminal, False),
        ("json", Terminal, True),
        ("text", io.StringIO, False),
    ],
)
def test_a_program_gets_json_and_a_person_text(
    log_format: logs.LogFormat, stream: Callable[[], io.StringIO], is_json: bool
) -> None:
    written = configured(log_format, stream=stream())
    logging.getLogger("service.x").info("hello %s", "there", extra={"fields": {"count": 2, "key": None}})
    line = written.getvalue()
    assert line.endswith("\n")
    if is_json:
        (entry,) = entries(written)
        assert entry.pop("time").endswith("+00:00")
        assert entry == {"level": "INFO", "logger": "service.x", "message": "hello there", "count": 2, "key": None}
    else:
        assert line.endswith(" INFO     hello there count=2\n")


def test_an_exception_is_one_line_of_json_with_all_of_its_traceback() -> None:
    stream = configured("json")
    try:
        raise ValueError("first\nsecond \ud800 ü")
    except ValueError:
        logging.getLogger("x").exception("it failed\nagain")
    assert stream.getvalue().isascii()
    (entry,) = entries(stream)
    assert entry["message"] == "it failed\nagain"
    assert entry["exception"].startswith("Traceback (most recent call last):\n")
    assert "ValueError: first\nsecond" in entry["exception"]


def test_less_than_the_level_is_not_written() -> None:
    stream = configured("json", "warning")
    logging.getLogger("x").info("no")
    logging.getLogger("x").warning("yes")
    assert [entry["message"] for entry in entries(stream)] == ["yes"]


# -- requests --------------------------------------------------------------------------------------------------------

KEY = "verysecretkey"


def test_what_is_wrong_with_an_image_is_no_error_of_the_service() -> None:
    stream = configured("json")
    logging.getLogger("PIL.TiffImagePlugin").error("more samples per pixel than can be decoded: 5")
    assert entries(stream) == []


def test_each_request_is_one_line_with_its_id_code_and_stages(engine: OnnxEngine) -> None:
    stream = configured("json")
    with serving(engine, api_keys=f"alice:{KEY}") as client:
        headers = {"X-API-Key": KEY, "X-Request-ID": "abc-1"}
        files = [("image", ("a.png", plain("123")))] * 2
        assert client.post("/predict", files=files, headers=headers).status_code == 200
        assert client.post("/predict", content=b"junk", headers=headers).status_code == 422
        assert client.post("/predict", content=plain("1")).status_code == 401
        assert client.get("/nothing/here").status_code == 404
    read, junk, stranger, nowhere = requests(stream)

    assert all(read.pop(name) >= 0 for name in ("decode_ms", "queue_ms", "inference_ms", "total_ms"))
    del read["time"]
    assert read == {
        "level": "INFO",
        "logger": "service.access_log",
        "message": "POST /predict",
        "request_id": "abc-1",
        "route": "/predict",
        "status": 200,
        "code": "ok",
        "images": 2,
        "key": "alice",
    }
    assert (junk["status"], junk["code"], junk["images"], junk["key"]) == (422, "bad_image", 1, "alice")
    assert (stranger["status"], stranger["code"], stranger["key"]) == (401, "unauthorized", None)
    assert (nowhere["status"], nowhere["route"]) == (404, "other")
    assert len({entry["request_id"] for entry in requests(stream)}) == 3


def test_the_protocol_under_v2_is_logged_alike(engine: OnnxEngine) -> None:
    stream = configured("json")
    data = {"data": [base64.b64encode(plain("7")).decode()], "parameters": {"content_type": "base64"}}
    body = {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", **data}]}
    with serving(engine) as client:
        assert client.get("/v2/health/ready").status_code == 200
        assert client.post("/v2/models/tiny/infer", json=body).status_code == 200
    (entry,) = requests(stream)
    assert (entry["route"], entry["status"], entry["images"]) == ("/v2/models/{name}/infer", 200, 1)
    assert entry["inference_ms"] > 0


def test_probes_are_logged_at_debug_only(engine: OnnxEngine) -> None:
    for level, expected in (("info", set()), ("debug", {"/livez", "/readyz", "/metrics"})):
        stream = configured("json", level)
        with serving(engine) as client:
            for probe in ("/livez", "/readyz", "/metrics"):
                assert client.get(probe).status_code == 200
        assert {entry["route"] for entry in requests(stream)} == expected


def test_a_fault_is_one_line_with_a_traceback_and_one_for_its_request(engine: OnnxEngine) -> None:
    def broken(_images: object) -> None:
        if armed:
            raise RuntimeError("the engine is on fire")

    armed = False
    stream = configured("json")
    with serving(Sabotaged(engine, broken)) as client:
        armed = True
        assert client.post("/predict", content=plain("1")).status_code == 500
    (fault,) = [entry for entry in entries(stream) if "exception" in entry]
    assert fault["exception"].endswith("RuntimeError: the engine is on fire")
    (entry,) = requests(stream)
    assert (entry["status"], entry["code"]) == (500, "internal")


def test_no_image_no_number_and_no_key_is_ever_logged(engine: OnnxEngine) -> None:
    stream = configured("json", "debug")
    image = plain("837")
    coded = base64.b64encode(image).decode()
    with serving(engine, api_keys=f"alice:{KEY}") as client:
        keys: list[dict[str, str]] = [
            {"X-API-Key": KEY},
            {"Authorization": f"Bearer {KEY}"},
            {"X-API-Key": "wrong" + KEY},
        ]
        for headers in keys:
            client.post("/predict", content=image, headers=headers)
            client.post("/predict", json={"images": [{"data": coded, "id": KEY}]}, headers=headers)
            client.post("/predict", json={"images": [{"data": coded[:-3] + "?"}]}, headers=headers)
            client.post(f"/{KEY}", content=image, headers=headers)
    ours = [entry for entry in entries(stream) if entry["logger"].startswith(("service", "uvicorn"))]
    assert len(ours) >= 12
    for entry in ours:
        text = json.dumps({name: value for name, value in entry.items() if not name.endswith(("_ms", "id", "time"))})
        assert KEY not in text
        assert "837" not in text
        assert coded[:12] not in text


# -- the process -----------------------------------------------------------------------------------------------------


def test_the_process_logs_json_and_reads_its_keys_again_on_sighup(artifact: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("alice:red\n")
    flags = ("--model", str(artifact), "--provider", "cpu", "--api-keys-file", str(keys), "--log-format", "json")
    with service_process(tmp_path / "log", *flags) as server:

        def logged() -> list[dict[str, Any]]:
            return [json.loads(line) for line in server.log.splitlines()]

        def reloaded(message: str) -> None:
            server.popen.send_signal(signal.SIGHUP)
            wait_until(lambda: any(entry["message"].startswith(message) for entry in logged()), PATIENCE_S)

        server.wait_until_ready()
        with server.client() as client:

            def status(key: str) -> int:
                return client.post("/predict", content=plain("42"), headers={"X-API-Key": key}).status_code

            assert [status("red"), status("blue")] == [200, 401]
            keys.write_text("bob:blue\ncarol:green\n")
            reloaded("2 API keys are in use")
            assert [status("red"), status("blue")] == [401, 200]
            keys.unlink()
            reloaded("the API keys stay as they were")
            assert [status("red"), status("blue")] == [401, 200]
        server.popen.terminate()
        assert server.ends() == 0
        lines = [entry for entry in logged() if entry.get("route") == "/predict"]
    # Once each: the server's own lines about requests are off.
    assert [entry["status"] for entry in lines] == [200, 401, 401, 200, 401, 200]
    assert [entry["message"] for entry in logged() if "/predict" in entry["message"]] == ["POST /predict"] * 6


def test_keys_that_cannot_be_used_are_wrong_usage(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["serve", "--api-keys-file", str(tmp_path / "nowhere")])
    assert result.exit_code == 2
    assert "the API keys: " in result.output
    assert "nowhere: No such file" in " ".join(result.output.split())
