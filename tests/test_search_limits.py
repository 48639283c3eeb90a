"""What a search in the service may take: time, room among what is decoded, and memory."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from serving import Sabotaged, encode, plain, serving, wait_until
from simulated_time import SimulatedLoop, SimulatedThreads, simulate
from test_http_batching import decoding, waiting
from test_search import BlockReader, picture, searches

from service.decode_pool import DecodePool
from service.imaging import Photo, Raster
from service.metrics import Metrics
from service.pictures import Item, Picture, prepare
from service.predictor import Predictor
from service.reader import Reader
from service.schemas import Prediction
from service.settings import Settings


class InTime:
    """The service on a simulated clock, on which each decoding and each batch takes so many seconds. `decodings` are
    those that were begun; `batches` too, each with its images."""

    def __init__(self, *, decode_s: float = 0.0, decode_threads: int = 1, batch_s: float = 0.0) -> None:
        self.decodings = 0
        self.batches: list[int] = []
        self._decode_s = decode_s
        self._decode_threads = decode_threads
        self._batch_s = batch_s

    def read(self, image: Image.Image, within_s: float) -> Prediction:
        async def main() -> Prediction:
            loop = cast(SimulatedLoop, asyncio.get_running_loop())
            with self._on_the_clock_of(loop):
                pool = DecodePool(self._decode_threads, 100)
                engine = Sabotaged(BlockReader(), lambda images: self.batches.append(len(images)))
                predictor = Predictor(Reader(engine), pool, Settings(), Metrics())
                predicted = await predictor.predict(
                    [Picture(encode(image), 0, "0")], min_confidence=None, boxes=True, deadline=loop.time() + within_s
                )
                await predictor.close()
                pool.close()
            (prediction,) = predicted.predictions
            return prediction

        return simulate(main, lambda: self._batch_s)

    @contextmanager
    def _on_the_clock_of(self, loop: SimulatedLoop) -> Iterator[None]:
        finish = PngImageFile.load_end

        def decode(image: PngImageFile) -> None:
            self.decodings += 1
            loop.now += self._decode_s
            finish(image)

        def threads(count: int, **_options: Any) -> SimulatedThreads:
            return SimulatedThreads(lambda: 0.0, count)

        with (
            patch.object(PngImageFile, "load_end", decode),
            patch("service.predictor.perf_counter", loop.time),
            patch("service.searcher.perf_counter", loop.time),
            patch("service.decode_pool.monotonic", loop.time),
            patch("service.decode_pool.ThreadPoolExecutor", threads),
        ):
            yield


@pytest.mark.parametrize("threads", [1, 2], ids=["decoded in the batch", "decoded ahead"])
@pytest.mark.parametrize(("within_s", "decodings"), [(4.0, 1), (4.1, 2)])
def test_a_photograph_is_not_decoded_for_a_search_that_would_be_too_late_then(
    within_s: float, decodings: int, threads: int
) -> None:
    """To decode it took 2 s for the first look, and a search leaves 50 ms."""
    service = InTime(decode_s=2.0, decode_threads=threads)
    prediction = service.read(picture("12", 300, 200), within_s)
    assert (service.decodings, prediction.accepted) == (decodings, decodings == 2)


@pytest.mark.parametrize(("within_s", "batches"), [(3.0, [1, 4]), (3.1, [1, 4, 1])])
def test_no_round_of_a_search_is_begun_that_would_be_too_late(within_s: float, batches: list[int]) -> None:
    """The first look and the round before took 1 s each."""
    service = InTime(batch_s=1.0)
    prediction = service.read(picture("12", 300, 200), within_s)
    assert (service.batches, prediction.accepted) == (batches, len(batches) == 3)


def test_a_search_asks_for_no_decoding_where_there_is_no_room_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though there is in the queue. Nothing is counted as refused."""
    places, costly, go_on = 16, plain("1", format="TIFF"), threading.Event()

    def hold(asked: Picture, size: tuple[int, int], max_pixels: int) -> list[Item]:
        if asked.content == costly:
            go_on.wait()
        return prepare(asked, size, max_pixels)

    monkeypatch.setattr("service.predictor.prepare", hold)
    with (
        serving(BlockReader(), decode_threads=1, max_queue_images=places, max_images=1) as client,
        ThreadPoolExecutor(places) as callers,
    ):
        try:
            others = [callers.submit(client.post, "/predict", content=costly)]
            wait_until(lambda: decoding(client) == 1)
            body = {"images": [{"data": base64.b64encode(plain("2")).decode()}]}
            others += [callers.submit(client.post, "/predict", json=body) for _ in range(places - 1)]
            wait_until(lambda: decoding(client) == places)
            response = client.post("/predict", content=encode(picture("12", 300, 200)))
        finally:
            go_on.set()
        assert {other.result().status_code for other in others} == {200}
        (prediction,) = response.raise_for_status().json()["predictions"]
        assert (prediction["accepted"], prediction["error"]) == (False, None)
        assert searches(client) == {"given_up": 1}
        assert "housenumber_rejected_images_total{" not in client.get("/metrics").text


def test_eight_photographs_are_searched_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted when all that may be decoded wait for that, and when all have come to their first looks."""
    count, at_once = 12, 8
    begun: list[Photo] = []
    given = 0
    decode, look = threading.Event(), threading.Event()
    raster = Photo.raster

    def hold_raster(photo: Photo, max_pixels: int) -> Raster:
        begun.append(photo)
        decode.wait()
        return raster(photo, max_pixels)

    def hold_looks(images: NDArray[np.uint8]) -> None:
        nonlocal given
        given += len(images) if images.any() else 0
        if given > count:
            look.wait()

    def looks() -> float:
        return given - count + waiting(client)

    monkeypatch.setattr(Photo, "raster", hold_raster)
    files = [("image", encode(picture("12", 300 + n, 200))) for n in range(count)]
    with (
        serving(Sabotaged(BlockReader(), hold_looks), decode_threads=1) as client,
        ThreadPoolExecutor(1) as caller,
    ):
        try:
            answer = caller.submit(client.post, "/predict", files=files)
            wait_until(lambda: len(begun) == 1)
            assert decoding(client) == at_once
            decode.set()
            wait_until(lambda: looks() == 4 * at_once)
            assert (len(begun), decoding(client)) == (at_once, 0)
        finally:
            decode.set()
            look.set()
        predictions = answer.result().raise_for_status().json()["predictions"]
        assert [prediction["number"] for prediction in predictions] == ["12"] * count
        assert searches(client) == {"found": count}


def test_no_more_photographs_wait_for_a_search_than_one_request_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a service that gets more than it can search would have all wait for it, until their deadlines."""
    go_on, raster = threading.Event(), Photo.raster

    def hold(photo: Photo, max_pixels: int) -> Raster:
        go_on.wait()
        return raster(photo, max_pixels)

    monkeypatch.setattr(Photo, "raster", hold)
    with serving(BlockReader(), decode_threads=1, max_images=2) as client, ThreadPoolExecutor(1) as caller:
        try:
            files = [("image", encode(picture("12", 300 + n, 200))) for n in range(2)]
            first = caller.submit(client.post, "/predict", files=files)
            wait_until(lambda: decoding(client) == 2)
            (second,) = client.post("/predict", content=encode(picture("21", 300, 200))).json()["predictions"]
            assert (second["accepted"], second["error"]) == (False, None)
            assert searches(client) == {"given_up": 1}
        finally:
            go_on.set()
        predictions = first.result().raise_for_status().json()["predictions"]
        assert [prediction["number"] for prediction in predictions] == ["12"] * 2
        (third,) = client.post("/predict", content=encode(picture("21", 300, 200))).json()["predictions"]
        assert third["number"] == "21"
        assert searches(client) == {"given_up": 1, "found": 3}


def test_a_photograph_that_does_not_decode_again_keeps_its_first_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as for want of memory; another photograph of the request is searched as ever."""
    whole = picture("12", 300, 200)
    photographs = [whole, whole.crop((0, 0, 480, 384))]
    decoded: list[tuple[int, int]] = []
    finish = PngImageFile.load_end

    def decode(image: PngImageFile) -> None:
        if image.size == whole.size and image.size in decoded:
            raise MemoryError
        decoded.append(image.size)
        finish(image)

    monkeypatch.setattr(PngImageFile, "load_end", decode)
    with serving(BlockReader()) as client:
        response = client.post("/predict", files=[("image", encode(one)) for one in photographs])
        first, second = response.raise_for_status().json()["predictions"]
        assert (first["accepted"], first["error"]) == (False, None)
        assert (second["number"], second["accepted"]) == ("12", True)
        assert searches(client) == {"given_up": 1, "found": 1}
