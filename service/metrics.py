"""What Prometheus is told. One registry per app, so that two apps in one process do not count together.

`docs/operations.md` has the table of all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from service.observing import Dropped
from service.reader import Reading
from service.schemas import ModelInfo, Timing

CONTENT_TYPE = CONTENT_TYPE_LATEST

WaitingStage = Literal["decode", "queue"]

# The moment each series began, as a series of its own: nobody asks, and it nearly doubles what is sent.
disable_created_metrics()  # type: ignore[no-untyped-call]

# From a small model's batch on a fast machine to the longest request there is by default.
_SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)
_CONFIDENCE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0)


class Metrics:
    """The service's counters, gauges and histograms."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "housenumber_requests",
            "Requests answered, by route, HTTP status and error code (ok where there was none).",
            ("route", "status", "code"),
            registry=registry,
        )
        self._in_flight = Gauge(
            "housenumber_requests_in_flight", "Requests that are being answered, probes aside.", registry=registry
        )
        self._images = Counter(
            "housenumber_images",
            "Images and regions answered, by error code (ok where there was none).",
            ("code",),
            registry=registry,
        )
        self._key_images = Counter(
            "housenumber_key_images",
            "Images and regions asked for, by the name of the API key.",
            ("key",),
            registry=registry,
        )
        self._stages = Histogram(
            "housenumber_predict_seconds",
            "Seconds of an answered request to read images, by stage: decode, queue, inference and total.",
            ("stage",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._batches = Histogram(
            "housenumber_batch_size", "Images the model was given at once.", buckets=_IMAGES, registry=registry
        )
        self._queue = Gauge(
            "housenumber_queue_images", "Images that wait for the model at the moment.", registry=registry
        )
        self._decoding = Gauge(
            "housenumber_decode_jobs",
            "Images and JSON bodies that wait to be decoded, or are being decoded, at the moment.",
            registry=registry,
        )
        self._rejected = Counter(
            "housenumber_rejected_images",
            "Images that found no place, by the stage that was full: decode or queue.",
            ("stage",),
            registry=registry,
        )
        self._dropped = Counter(
            "housenumber_dropped_images",
            "Images that were dropped before they cost anything, by stage (decode, queue) and reason: cancelled (the"
            " caller left) or expired (the deadline passed).",
            ("stage", "reason"),
            registry=registry,
        )
        self._readings = Counter(
            "housenumber_readings",
            "Images and regions that were read, by outcome: accepted, doubtful (a number under the threshold),"
            " no_number.",
            ("outcome",),
            registry=registry,
        )
        self._confidence = Histogram(
            "housenumber_confidence",
            "Confidence of the numbers that were read.",
            buckets=_CONFIDENCE,
            registry=registry,
        )
        self._model = Gauge(
            "housenumber_model_info",
            "1 for the artifact that answers, by name, version, SHA-256 and what it runs on.",
            ("name", "version", "sha256", "provider"),
            registry=registry,
        )
        ProcessCollector(registry=registry)

    def watch_queue(self, waiting: Callable[[], int]) -> None:
        """Asks `waiting` for the length of the queue whenever the metrics are read."""
        self._queue.set_function(waiting)

    def watch_decoding(self, jobs: Callable[[], int]) -> None:
        """Asks `jobs` for the images in the decoding pool whenever the metrics are read."""
        self._decoding.set_function(jobs)

    def show_model(self, model: ModelInfo) -> None:
        """The artifact that answers from now on."""
        self._model.clear()
        self._model.labels(**model.model_dump()).set(1)

    def request_in_flight(self) -> AbstractContextManager[object]:
        """Counts a request as long as it is inside."""
        return self._in_flight.track_inprogress()

    def observe_request(self, route: str, status: int, code: str) -> None:
        self._requests.labels(route, str(status), code).inc()

    def observe_key(self, name: str, images: int) -> None:
        self._key_images.labels(name).inc(images)

    def observe_image(self, code: str) -> None:
        self._images.labels(code).inc()

    def observe_reading(self, reading: Reading) -> None:
        """How sure the reader is; a change of these shows photographs that are not what they used to be."""
        if not reading.number:
            self._readings.labels("no_number").inc()
            return
        self._readings.labels("accepted" if reading.accepted else "doubtful").inc()
        self._confidence.observe(reading.confidence)

    def observe_timing(self, timing: Timing) -> None:
        for stage, milliseconds in timing.model_dump().items():
            self._stages.labels(stage).observe(milliseconds / 1000)

    def observe_batch(self, size: int) -> None:
        self._batches.observe(size)

    def observe_rejected(self, stage: WaitingStage, images: int) -> None:
        self._rejected.labels(stage).inc(images)

    def observe_dropped(self, stage: WaitingStage, reason: Dropped) -> None:
        self._dropped.labels(stage, reason).inc()

    def exposition(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)
