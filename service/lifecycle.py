"""Starting, ready, draining: what the process can do at the moment."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from enum import Enum
from functools import partial

from service.artifact import ArtifactError
from service.cpus import usable_cpus
from service.decode_pool import DecodePool
from service.engine import Engine, ProviderError
from service.errors import Draining, NotReady
from service.metrics import Metrics
from service.predictor import Predictor
from service.reader import Reader
from service.settings import Settings

logger = logging.getLogger(__name__)

# How long a caller is asked to wait before it tries again: loading and draining take seconds.
_RETRY_AFTER_S = 2


class State(Enum):
    STARTING = "the model is being loaded"
    READY = "ready"
    DRAINING = "the service is stopping"
    FAILED = "the model could not be loaded"


class Lifecycle:
    """Loads the model in the background and knows whether requests may come in.

    `load` makes the engine; it runs in a thread, while the port is open already. `on_failure` is called when
    that fails, after one line in the log.
    """

    def __init__(
        self,
        load: Callable[[], Engine],
        settings: Settings,
        metrics: Metrics,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        self.pool = DecodePool(
            settings.decode_threads or usable_cpus(),
            settings.max_queue_images,
            observe_dropped=partial(metrics.observe_dropped, "decode"),
            observe_rejected=partial(metrics.observe_rejected, "decode"),
        )
        self._load = load
        self._settings = settings
        self._metrics = metrics
        self._on_failure = on_failure
        self._state = State.STARTING
        self._predictor: Predictor | None = None
        self._loading: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to load. Needs the running event loop."""
        self._loading = asyncio.create_task(self._get_ready(), name="load")

    def admit(self) -> Predictor:
        """The predictor, for a request that comes in now; raises NotReady or Draining."""
        if self._state is State.DRAINING:
            raise Draining(self._state.value, _RETRY_AFTER_S)
        if self._state is not State.READY or self._predictor is None:
            raise NotReady(self._state.value, _RETRY_AFTER_S)
        return self._predictor

    def drain(self) -> None:
        """Lets no new request in; those inside are answered."""
        self._state = State.DRAINING

    async def close(self) -> None:
        """Ends the threads; requests must be done by then."""
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.wait([self._loading])
        if self._predictor is not None:
            await self._predictor.close()
        self.pool.close()

    async def _get_ready(self) -> None:
        try:
            reader = await asyncio.to_thread(self._warm_reader)
        except (ArtifactError, ProviderError) as error:
            logger.critical("%s: %s", State.FAILED.value, error)
            self._fail()
        except Exception:
            logger.critical(State.FAILED.value, exc_info=True)
            self._fail()
        else:
            self._predictor = Predictor(reader, self.pool, self._settings, self._metrics)
            if self._state is State.STARTING:
                self._state = State.READY
            model = self._predictor.model
            logger.info("ready: %s %s (%.12s) on %s", model.name, model.version, model.sha256, model.provider)

    def _warm_reader(self) -> Reader:
        reader = Reader(self._load(), self._settings.max_batch_size)
        reader.warm()
        return reader

    def _fail(self) -> None:
        if self._state is State.STARTING:
            self._state = State.FAILED
        self._on_failure()
