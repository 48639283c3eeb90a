"""What Prometheus is told. One registry per app, so that two apps in one process do not count together.

The processes of one service count together: each keeps its metrics in files of one folder, which it names with `share`
before it makes its `Metrics`, and any of them answers for all. `docs/operations.md` has the table of all metrics.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
    values,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from service.observing import Dropped, Searched

if TYPE_CHECKING:  # the supervisor of workers has no use for all that these bring
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


_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
# Whether metrics are shared is for `share` to say: not for a variable that was meant for another program.
os.environ.pop(_FOLDER, None)
values.ValueClass = values.MutexValue

_MODEL_INFO = "housenumber_model_info"


def share(folder: Path, process: str) -> None:
    """From now on this process's metrics are files in `folder`, where other processes have theirs under other names.

    One that takes the name of another that has ended counts on from where that one was.
    """
    os.environ[_FOLDER] = str(folder)
    values.ValueClass = values.MultiProcessValue(lambda: process)  # type: ignore[no-untyped-call]


def forget(folder: Path, process: str) -> None:
    """Takes what the process was (requests in flight, memory) out of the sums; what it counted stays."""
    mark_process_dead(process, str(folder))  # type: ignore[no-untyped-call]


class Metrics:
    """The service's counters, gauges and histograms."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._requests = Counter(
            "housenumber_requests",
            "Requests answered, by route, HTTP status and error code (ok where there was none).",
            ("route", "status", "code"),
            registry=registry,
        )
        self._in_flight = Gauge(
            "housenumber_requests_in_flight",
            "Requests that are being answered, probes aside.",
            registry=registry,
            multiprocess_mode="livesum",
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
            "Seconds of an answered request to read images, by stage: queue, decode, inference and total.",
            ("stage",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._of_stage = {stage: self._stages.labels(stage) for stage in ("decode", "queue", "inference", "total")}
        self._batches = Histogram(
            "housenumber_batch_size", "Images the model was given at once.", buckets=_IMAGES, registry=registry
        )
        self._second_looks = Counter(
            "housenumber_second_looks",
            "Images that were shown to the model once more, turned level.",
            registry=registry,
        )
        self._searches = Counter(
            "housenumber_searches",
            "Photographs that were searched for their number part by part, by outcome: found, nothing, or given_up (for"
            " want of room in the queue, or of time).",
            ("outcome",),
            registry=registry,
        )
        for outcome in get_args(Searched):
            self._searches.labels(outcome)  # from 0 on
        self._queue = Gauge(
            "housenumber_queue_images",
            "Images that wait to be decoded and read at the moment.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._decoding = Gauge(
            "housenumber_decode_jobs",
            "JSON bodies, and images where these are decoded ahead, that wait to be decoded or are being decoded.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._rejected = Counter(
            "housenumber_rejected_images",
            "Images that found no place, by the stage that was full: decode or queue; one for a request refused"
            " before its body was read.",
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
            _MODEL_INFO,
            "1 for the artifact that answers, by name, version, SHA-256 and what it runs on.",
            ("name", "version", "sha256", "provider"),
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._shown_model: Gauge | None = None
        self._loads = Counter(
            "housenumber_model_loads",
            "Models that were to be served: served, or failed, and then the one before goes on.",
            ("outcome",),
            registry=registry,
        )
        self._loads.labels("failed")  # from 0 on: an increase to 1 is seen only where there was a 0
        self._workers = Gauge(
            "housenumber_workers",
            "Processes that have a model to answer with.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._restarts = Counter(
            "housenumber_worker_restarts",
            "Processes that were started in the place of one that ended unasked.",
            registry=registry,
        )
        self._watched: dict[Gauge, Callable[[], float]] = {}
        self._process = _ProcessMetrics(registry)
        self._exposed = _Exposed(registry)

    def watch_queue(self, waiting: Callable[[], int]) -> None:
        """Asks `waiting` for the length of the queue at every `refresh`."""
        self._watched[self._queue] = waiting

    def watch_decoding(self, jobs: Callable[[], int]) -> None:
        """Asks `jobs` for the images in the decoding pool at every `refresh`."""
        self._watched[self._decoding] = jobs

    def refresh(self) -> None:
        """Brings up to date what changes by itself: for the metrics of this process when they are read, and every now
        and then for those that another process reads."""
        for gauge, value in self._watched.items():
            gauge.set(value())
        self._process.refresh()

    def show_model(self, model: ModelInfo) -> None:
        """The artifact that answers from now on."""
        if self._shown_model is not None:
            self._shown_model.set(0)
        self._shown_model = self._model.labels(**model.model_dump())
        self._shown_model.set(1)
        self._workers.set(1)
        self._loads.labels("served").inc()

    def observe_failed_load(self) -> None:
        """A model that was to be served from now on is not."""
        self._loads.labels("failed").inc()

    def observe_restart(self) -> None:
        self._restarts.inc()

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
        for stage, milliseconds in timing:
            self._of_stage[stage].observe(milliseconds / 1000)

    def observe_batch(self, size: int) -> None:
        self._batches.observe(size)

    def observe_second_looks(self, images: int) -> None:
        self._second_looks.inc(images)

    def observe_search(self, outcome: Searched) -> None:
        self._searches.labels(outcome).inc()

    def observe_rejected(self, stage: WaitingStage, images: int) -> None:
        self._rejected.labels(stage).inc(images)

    def observe_dropped(self, stage: WaitingStage, reason: Dropped) -> None:
        self._dropped.labels(stage, reason).inc()

    def exposition(self) -> bytes:
        """All of it, of all processes, in Prometheus' text format."""
        self.refresh()
        return generate_latest(self._exposed)


class _ProcessMetrics:
    """What `ProcessCollector` finds out about this process, as metrics that can be added up over processes.

    The start is that of the first process of all.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._collector = ProcessCollector(registry=None)
        self._metrics: dict[str, Counter | Gauge] = {}
        self._cpu_seconds = 0.0
        for family in self._collector.collect():  # nothing where there is no /proc
            if family.type == "counter":
                metric: Counter | Gauge = Counter(family.name, family.documentation, registry=registry)
            else:
                mode: Literal["min", "livesum"] = "min" if "start_time" in family.name else "livesum"
                metric = Gauge(family.name, family.documentation, registry=registry, multiprocess_mode=mode)
            self._metrics[family.name] = metric
        self.refresh()

    def refresh(self) -> None:
        for family in self._collector.collect():
            metric, value = self._metrics[family.name], family.samples[0].value
            if isinstance(metric, Gauge):
                metric.set(value)
            else:
                metric.inc(value - self._cpu_seconds)
                self._cpu_seconds = value


class _Exposed(Collector):
    """This process's registry, or where processes share a folder, what all of them have there."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._folder = os.environ.get(_FOLDER)

    def collect(self) -> Iterator[Metric]:
        if self._folder is None:
            families = self._registry.collect()
        else:
            families = MultiProcessCollector.merge(_written(Path(self._folder)))  # type: ignore[no-untyped-call]
        for family in families:
            if family.name == _MODEL_INFO:  # nothing can be taken out of a shared file: 0 is for what was replaced
                family.samples = [sample for sample in family.samples if sample.value]
            yield family


def _written(folder: Path) -> Iterator[str]:
    for path in folder.glob("*.db"):
        with suppress(FileNotFoundError):  # its process has just ended
            if path.stat().st_size:  # or has just begun
                yield str(path)
