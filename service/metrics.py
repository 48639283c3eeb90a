"""What Prometheus is told. One registry per app, so that two apps in one process do not count together."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from service.schemas import Timing

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The service's counters and histograms."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "housenumber_requests",
            "Requests answered, by route, HTTP status and error code (ok where there was none).",
            ("route", "status", "code"),
            registry=self._registry,
        )
        self._images = Counter(
            "housenumber_images",
            "Predictions in the answers of /predict, by error code (ok where there was none).",
            ("code",),
            registry=self._registry,
        )
        self._stages = Histogram(
            "housenumber_predict_seconds",
            "Seconds of an answered /predict request, by stage: decode, queue, inference and total.",
            ("stage",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._batches = Histogram(
            "housenumber_batch_size",
            "Images the model was given at once.",
            buckets=_IMAGES,
            registry=self._registry,
        )
        self._queue = Gauge(
            "housenumber_queue_images", "Images that wait for the model at the moment.", registry=self._registry
        )

    def watch_queue(self, waiting: Callable[[], int]) -> None:
        """Asks `waiting` for the length of the queue whenever the metrics are read."""
        self._queue.set_function(waiting)

    def observe_request(self, route: str, status: int, code: str) -> None:
        self._requests.labels(route, str(status), code).inc()

    def observe_image(self, code: str) -> None:
        self._images.labels(code).inc()

    def observe_timing(self, timing: Timing) -> None:
        for stage, milliseconds in timing.model_dump().items():
            self._stages.labels(stage).observe(milliseconds / 1000)

    def observe_batch(self, size: int) -> None:
        self._batches.observe(size)

    def exposition(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)
