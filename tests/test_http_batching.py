"""Batching, seen from outside: what is full, what is dropped, and that the rest of the service answers meanwhile."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Self

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from serving import Held, Sabotaged, plain, problem_of, serving, wait_until

from service.engine import CUDA, OnnxEngine, Outputs
from service.pictures import Item, Picture, prepare


class HeldDecoder:
    """Prepares pictures once it is let go, at the latest at the end of its `with` block; `begun` counts those it was
    given. To be made before the service, which is to decode with it. With `only`, other pictures do not wait."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, only: bytes | None = None) -> None:
        self.begun = 0
        self._only = only
        self.go_on = threading.Event()
        monkeypatch.setattr("service.predictor.prepare", self._wait)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        self.go_on.set()

    def _wait(self, picture: Picture, size: tuple[int, int], max_pixels: int) -> list[Item]:
        if self._only in (None, picture.content):
            self.begun += 1
            self.go_on.wait()
        return prepare(picture, size, max_pixels)


@contextmanager
def calling(client: httpx.Client, *numbers: str) -> Iterator[list[str]]:
    """Callers that have sent one image each; what was read is in the list at the end."""
    read: list[str] = []
    with ThreadPoolExecutor(len(numbers)) as callers:
        answers = [callers.submit(client.post, "/predict", content=plain(number)) for number in numbers]
        yield read
        read += [answer.result().json()["predictions"][0]["number"] for answer in answers]


def decoding(client: httpx.Client) -> float:
    return gauge(client, "housenumber_decode_jobs")


def waiting(client: httpx.Client) -> float:
    return gauge(client, "housenumber_queue_images")


def gauge(client: httpx.Client, name: str) -> float:
    (line,) = [line for line in client.get("/metrics").text.splitlines() if line.startswith(f"{name} ")]
    return float(line.split()[1])


class DecodingInBatch(Sabotaged):
    """An engine whose one batch at a time one thread can decode."""

    ahead = False

    def __init__(self, engine: OnnxEngine) -> None:
        super().__init__(engine, lambda _images: None)


class DecodingAhead(DecodingInBatch):
    """An engine that runs more batches at a time than one thread decodes images for."""

    ahead = True

    def __init__(self, engine: OnnxEngine) -> None:
        super().__init__(engine)
        self.parallel_batches = 2


class OnCuda(DecodingInBatch):
    """An engine that does not compute on the CPU, which can decode meanwhile."""

    ahead = True

    def __init__(self, engine: OnnxEngine) -> None:
        super().__init__(engine)
        self.provider = CUDA


Kind = type[DecodingInBatch]
both_ways = pytest.mark.parametrize("kind", [DecodingInBatch, DecodingAhead, OnCuda])


@both_ways
def test_when_decoding_cannot_keep_up_the_service_is_overloaded_and_still_answers(
    kind: Kind, engine: OnnxEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = HeldDecoder(monkeypatch)
    with serving(kind(engine), decode_threads=1, max_queue_images=2, max_images=2) as client, held:
        # What is being decoded for its batch does not wait any more.
        numbers = ("1", "2") if kind.ahead else ("1", "2", "3")
        with calling(client, *numbers[:1]) as first:
            wait_until(lambda: held.begun == 1)
            with calling(client, *numbers[1:]) as others:
                wait_until(lambda: decoding(client) + waiting(client) == 2)
                response = client.post("/predict", content=plain("4"))
                assert problem_of(response) == (503, "overloaded")
                assert 1 <= int(response.headers["retry-after"]) <= 60
                assert client.get("/livez").status_code == client.get("/readyz").status_code == 200
                held.go_on.set()
        assert (*first, *others) == numbers
        assert client.post("/predict", content=plain("4")).status_code == 200


def test_images_of_one_request_are_decoded_for_several_batches_at_once(
    engine: OnnxEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = HeldDecoder(monkeypatch)
    two = DecodingAhead(engine)
    with (
        serving(two, decode_threads=2, max_batch_size=8) as client,
        ThreadPoolExecutor(1) as caller,
        held,
    ):
        files = [("image", ("a.png", plain(number))) for number in "12345"]
        answer = caller.submit(client.post, "/predict", files=files)
        wait_until(lambda: held.begun == 2)
        assert decoding(client) == waiting(client) == 0
        held.go_on.set()
        assert [prediction["number"] for prediction in answer.result().json()["predictions"]] == [*"12345"]


def test_what_is_slow_to_decode_does_not_hold_up_the_others(
    engine: OnnxEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread for decoding and one batch at a time: the small picture comes last and is answered first."""
    large = plain("7", (2000, 1001))
    held = HeldDecoder(monkeypatch, only=large)
    with serving(DecodingInBatch(engine), decode_threads=1) as client, ThreadPoolExecutor(1) as caller, held:
        slow = caller.submit(client.post, "/predict", files=[("image", ("a.png", large))] * 2)
        wait_until(lambda: held.begun == 1)
        assert client.post("/predict", content=plain("2")).json()["predictions"][0]["number"] == "2"
        assert not slow.done()
        held.go_on.set()
        assert [prediction["number"] for prediction in slow.result().json()["predictions"]] == ["7", "7"]


@both_ways
def test_a_picture_is_decoded_once_however_many_regions_are_read_of_it(
    kind: Kind, engine: OnnxEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = HeldDecoder(monkeypatch)
    held.go_on.set()
    with serving(kind(engine), decode_threads=1, max_batch_size=2) as client:
        regions = {"region": [f"{x},0,4,9" for x in (0, 3, 99, 7)]}
        files = [("image", ("a.png", plain(number))) for number in ("8", "9")]
        predictions = client.post("/predict", params=regions, files=files).json()["predictions"]
    assert [prediction["number"] for prediction in predictions] == ["8", "8", None, "8", "9", "9", None, "9"]
    assert {prediction["error"]["code"] for prediction in predictions if prediction["error"]} == {"bad_region"}
    assert held.begun == 2


@both_ways
def test_a_picture_that_does_not_decode_spoils_nobody_elses_batch(kind: Kind, engine: OnnxEngine) -> None:
    truncated = plain("3")[:-30]
    held = Held(engine)
    held.parallel_batches = kind(engine).parallel_batches
    with serving(held, decode_threads=1) as client:
        try:
            with calling(client, "1") as first:
                assert held.inside.wait(10)
                with ThreadPoolExecutor(2) as callers:
                    bad = callers.submit(client.post, "/predict", content=truncated)
                    files = [("image", ("a.png", content)) for content in (plain("4"), truncated, plain("5"))]
                    mixed = callers.submit(client.post, "/predict", files=files)
                    held.go_on.set()
                    assert problem_of(bad.result()) == (422, "bad_image")
                    predictions = mixed.result().json()["predictions"]
            assert [prediction["number"] for prediction in predictions] == ["4", None, "5"]
            assert predictions[1]["error"]["code"] == "bad_image"
            assert first == ["1"]
        finally:
            held.go_on.set()


def test_what_was_decoded_is_read_however_many_others_come(engine: OnnxEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two decoded images and two that are being decoded never find the queue full."""
    held_decoder, held = HeldDecoder(monkeypatch), Held(engine)
    limits = {"decode_threads": 2, "max_batch_size": 1, "max_queue_images": 4, "max_images": 2}
    with serving(held, **limits) as client:
        try:
            with calling(client, "1", "2", "3", "4") as read:
                wait_until(lambda: decoding(client) == 4)
                assert problem_of(client.post("/predict", content=plain("5"))) == (503, "overloaded")
                held_decoder.go_on.set()
                assert held.inside.wait(10)
                wait_until(lambda: waiting(client) == 3)
                with calling(client, "6") as late:
                    wait_until(lambda: waiting(client) == 4)
                    held.go_on.set()
                assert late == ["6"]
            assert read == ["1", "2", "3", "4"]
        finally:
            held_decoder.go_on.set()
            held.go_on.set()


@contextmanager
def full(engine: OnnxEngine) -> Iterator[httpx.Client]:
    """A client of a service whose queue, of one image, is full; what is inside is read in the end."""
    held = Held(engine)
    with serving(held, max_batch_size=1, max_queue_images=1, max_images=1) as client, ThreadPoolExecutor(2) as callers:
        try:
            answers = [callers.submit(client.post, "/predict", content=plain("1"))]
            assert held.inside.wait(10)
            answers.append(callers.submit(client.post, "/predict", content=plain("2")))
            wait_until(lambda: waiting(client) == 1)
            yield client
        finally:
            held.go_on.set()
        assert [answer.result().json()["predictions"][0]["number"] for answer in answers] == ["1", "2"]


def test_with_a_full_queue_a_body_is_not_waited_for(engine: OnnxEngine) -> None:
    with full(engine) as client:
        address = (client.base_url.host, client.base_url.port or 0)
        for path in ("/predict", "/v2/models/tiny/infer"):
            with socket.create_connection(address, timeout=10) as caller:
                caller.sendall(f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 9000\r\n\r\n".encode())
                answer = caller.recv(1000).lower()
            assert answer.startswith(b"http/1.1 503 ")
            assert b"x-request-id: " in answer
            assert b"retry-after: " in answer
        counted = client.get("/metrics").text
        for route in ("/predict", "/v2/models/{name}/infer"):
            labels = f'code="overloaded",route="{route}",status="503"'
            assert f"housenumber_requests_total{{{labels}}} 1.0" in counted
        assert client.get("/v2/models/tiny").status_code == 200
        assert client.get("/predict").status_code == 405


def test_requests_that_a_full_queue_refuses_share_a_line_of_the_log(
    engine: OnnxEngine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    with full(engine) as client:
        for number in range(3):
            answer = client.post("/predict", content=plain("3"), headers={"X-Request-ID": f"a-{number}"})
            assert problem_of(answer) == (503, "overloaded")
        wait_until(lambda: any("the queue is full" in record.getMessage() for record in caplog.records))
    (summary,) = [record for record in caplog.records if record.name == "service.shedding"]
    assert summary.levelname == "WARNING"
    assert summary.getMessage() == "the queue is full: 3 refused within 1 s"
    lines = {
        record.fields["request_id"]: (record.levelname, record.fields["code"])  # type: ignore[attr-defined]
        for record in caplog.records
        if record.name == "service.access_log" and "POST" in record.getMessage()
    }
    for number in range(3):
        assert lines.pop(f"a-{number}") == ("DEBUG", "overloaded")
    assert list(lines.values()) == [("INFO", "ok")] * 2


def test_what_was_refused_last_is_told_when_the_service_stops(
    engine: OnnxEngine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.shedding.SUMMARY_S", 60.0)
    with full(engine) as client:
        assert problem_of(client.post("/predict", content=plain("3"))) == (503, "overloaded")
    (summary,) = [record.getMessage() for record in caplog.records if record.name == "service.shedding"]
    assert summary == "the queue is full: 1 refused within 60 s"


@both_ways
def test_a_caller_that_has_left_is_not_decoded(kind: Kind, engine: OnnxEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    held = HeldDecoder(monkeypatch)
    with serving(kind(engine), decode_threads=1) as client, held:
        with calling(client, "1") as read:
            wait_until(lambda: held.begun == 1)
            with pytest.raises(httpx.ReadTimeout):
                client.post("/predict", content=plain("2"), timeout=0.5)
            wait_until(lambda: decoding(client) + waiting(client) == kind.ahead)
            held.go_on.set()
        assert read == ["1"]
        assert client.post("/predict", content=plain("3")).status_code == 200
        assert held.begun == 2


@both_ways
def test_an_image_past_its_deadline_is_not_decoded(
    kind: Kind, engine: OnnxEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = HeldDecoder(monkeypatch)
    with serving(kind(engine), decode_threads=1) as client, held:
        with calling(client, "1") as read:
            wait_until(lambda: held.begun == 1)
            late = client.post("/predict", content=plain("2"), headers={"X-Request-Timeout-Ms": "50"})
            assert problem_of(late) == (504, "deadline_exceeded")
            stage = "decode" if kind.ahead else "queue"
            assert f'{{reason="expired",stage="{stage}"}} 1.0' in client.get("/metrics").text
            held.go_on.set()
        assert read == ["1"]
        assert held.begun == 1


class NotANumber(Sabotaged):
    """An engine whose outputs for the image "7" are not numbers."""

    def __init__(self, engine: OnnxEngine) -> None:
        super().__init__(engine, lambda _images: None)

    def infer(self, images: NDArray[np.uint8]) -> Outputs:
        outputs = super().infer(images)
        seven = images[:, 0, 0, 0] == 12 + 24 * 7
        probabilities = np.where(seven[:, None, None], np.float32(np.nan), outputs.probabilities)
        return Outputs(probabilities, outputs.theta, outputs.boxes)


def test_what_is_not_a_number_is_an_error_and_never_an_answer(engine: OnnxEngine) -> None:
    with serving(NotANumber(engine)) as client:
        files = [("image", ("a.png", plain(number))) for number in ("1", "7", "2")]
        predictions = client.post("/predict", files=files).json()["predictions"]
        assert [prediction["number"] for prediction in predictions] == ["1", None, "2"]
        assert predictions[1]["error"]["code"] == "internal"
        assert problem_of(client.post("/predict", content=plain("7"))) == (500, "internal")


def test_with_a_delay_a_batch_waits_for_others_and_is_read_together(engine: OnnxEngine) -> None:
    sizes: list[int] = []

    def note(images: NDArray[np.uint8]) -> None:
        if images.any():
            sizes.append(len(images))

    with (
        serving(Sabotaged(engine, note), max_batch_size=2, max_batch_delay_ms=10_000) as client,
        calling(client, "1", "2") as read,
    ):
        pass
    assert sorted(read) == ["1", "2"]
    assert sizes == [2]
