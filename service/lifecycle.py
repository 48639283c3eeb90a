"""Starting, ready, draining: what the process can do at the moment, and which model it does it with."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import replace
from enum import Enum
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any
from weakref import WeakSet

from service.artifact import ArtifactError
from service.cpus import usable_cpus
from service.decode_pool import DecodePool
from service.engine import CUDA, Engine, ProviderError
from service.engine_watch import EngineWatch
from service.errors import Draining, NotReady, ServiceError
from service.metrics import Metrics
from service.predictor import Predictor
from service.reader import Reader
from service.repository import Candidate, NoSuchModelError
from service.settings import Settings
from service.source import Choice, Listed, Source

logger = logging.getLogger(__name__)

# How long a caller is asked to wait before it tries again: loading and draining take seconds.
_RETRY_AFTER_S = 2
LOAD_ERRORS = (ArtifactError, ProviderError, TimeoutError)
"""Why a model is not loaded, each with a message that says all there is to say."""


class State(Enum):
    STARTING = "the model is being loaded"
    READY = "ready"
    DRAINING = "the service is stopping"
    FAILED = "the model could not be loaded"


class Lifecycle:
    """Loads the model in the background, changes it for another one, and knows whether requests may come in.

    `load` makes the engine of a file; it runs in a thread, the first time while the port is open already. `on_failure`
    is told why that first model cannot be served, in one of LOAD_ERRORS where that says it all: also where it is not
    loaded and warm within `load_timeout_s` (TimeoutError). Where a later one cannot, the one before it goes on.

    `whole` is False as long as other processes of the service, without which it is not ready, are still loading;
    `on_serving` is called whenever a model was loaded, or chosen anew, `on_stall` when the engine that serves has given
    no answer for `stall_timeout_s`.
    """

    def __init__(
        self,
        load: Callable[[Path], Engine],
        settings: Settings,
        metrics: Metrics,
        on_failure: Callable[[Exception], None] = lambda _error: None,
    ) -> None:
        self.pool = DecodePool(
            settings.decode_threads or usable_cpus(settings.workers),
            settings.max_queue_images,
            observe_dropped=partial(metrics.observe_dropped, "decode"),
            observe_rejected=partial(metrics.observe_rejected, "decode"),
        )
        self._load = load
        self._settings = settings
        self._metrics = metrics
        self._on_failure = on_failure
        self.whole = True
        self.on_serving: Callable[[], None] = lambda: None
        self.on_stall: Callable[[], None] = lambda: None
        self._source = Source(settings)
        self._state = State.STARTING
        self._predictor: Predictor | None = None
        self._serving: Candidate | None = None
        self._watching: asyncio.Task[None] | None = None
        self._retired: set[Predictor] = set()
        self._one_at_a_time = asyncio.Lock()
        self._loading: WeakSet[_Loading] = WeakSet()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def pinned(self) -> bool:
        """Whether a reload stays with the version that serves, whatever newer ones there are."""
        return self._source.pinned is not None

    @property
    def choice(self) -> Choice | None:
        """What `load` is to be given elsewhere for the same; None for a file, and as long as nothing serves."""
        serving = self._serving
        return Choice(serving.name, serving.version, not self.pinned) if serving and serving.name else None

    @property
    def is_loading(self) -> bool:
        """Whether a thread is still at a model, if only one that nobody waits for any more."""
        return any(loading.is_alive() for loading in self._loading)

    @property
    def waiting(self) -> int:
        """Images that wait for a model, be it the one that serves or one that finishes what it has."""
        return sum(predictor.waiting for predictor in (self._predictor, *self._retired) if predictor)

    @property
    def is_full(self) -> bool:
        """Whether there is a model and not one more image may wait for it."""
        return self._predictor is not None and self._predictor.is_full

    def start(self) -> None:
        """Begins to load. Needs the running event loop."""
        self._in_background(self._get_ready())

    def admit(self) -> Predictor:
        """The predictor, for a request that has come in; raises NotReady or Draining where there is none yet."""
        if self._predictor is None:
            raise self._unavailable()
        return self._predictor

    def check_ready(self) -> None:
        """Whether requests should be sent here. Raises NotReady, and Draining, when what comes is still served."""
        if self._state is not State.READY:
            raise self._unavailable()
        if self.admit().watch.is_failing:
            raise NotReady("the engine fails on every image", _RETRY_AFTER_S)
        if not self.whole:
            raise NotReady("another process of the service is still loading the model", _RETRY_AFTER_S)

    async def load(self, choice: Choice) -> Choice:
        """Serves another version from the repository: new requests get it at once, those inside finish on the old one.

        Given back is the choice for other processes, with the version that was found. One load at a time: a second one
        waits. Raises ArtifactError (NoSuchModelError where there is none), ProviderError, TimeoutError, NotReady and
        Draining; the old model then goes on.
        """
        candidate = await self._change(partial(self._source.chosen, choice.name, choice.version))
        self._source.pinned = None if choice.newest else candidate.version
        self.on_serving()
        return replace(choice, version=candidate.version)

    def follow_newest(self) -> None:
        """Has a later reload look for a newer version than the one that serves, whichever that was to be."""
        self._source.pinned = None

    def reload(self) -> asyncio.Task[None]:
        """Begins to load the newest version, or the pinned one, or the single file, if that is not what serves already.

        What goes wrong is in the log, and the old model goes on. Needs the running event loop.
        """
        return self._in_background(self._reload())

    async def index(self) -> list[Listed]:
        """Every version in the repository, and the one that serves. Raises ArtifactError, NotReady and Draining."""
        model = self.admit().model
        listed = await asyncio.to_thread(self._source.listed, self._serving)
        if not any(version.ready for version in listed):  # its file is gone, or there is no repository
            listed.append(Listed(model.name, model.version, True, ""))
        return listed

    def drain(self) -> None:
        """Says from now on that it is not ready, and loads no other model; what comes in is served until `close`."""
        self._state = State.DRAINING

    async def close(self) -> None:
        """Ends the threads; requests must be done by then."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for predictor in (self._predictor, *self._retired):
            if predictor is not None:
                await predictor.close()
        self.pool.close()

    async def _get_ready(self) -> None:
        async with self._one_at_a_time:
            try:
                candidate = await asyncio.to_thread(self._source.wanted)
                reader = await self._opened(candidate)
            except Exception as error:
                if self._state is State.STARTING:
                    self._state = State.FAILED
                self._on_failure(error)
            else:
                if self._state is State.STARTING:
                    self._state = State.READY
                self._serve(candidate, reader)
                self.on_serving()

    async def _reload(self) -> None:
        try:
            await self._change(self._source.wanted)
            self.on_serving()
        except LOAD_ERRORS:
            pass  # is in the log
        except ServiceError as error:
            logger.warning("the model is not loaded again: %s", error.detail)
        except Exception:
            logger.exception("the model is not loaded again")

    async def _change(self, find: Callable[[], Candidate]) -> Candidate:
        """Serves what `find`, in a thread, finds, and gives that; it may be what serves already."""
        async with self._one_at_a_time:
            model = self._changeable().model
            try:
                candidate = await asyncio.to_thread(find)
                if not await asyncio.to_thread(self._is_serving, candidate, model.sha256):
                    reader = await self._replacement(candidate, model.provider)
                    self._changeable()  # it may have been told to stop
                    self._serve(candidate, reader)
            except (NoSuchModelError, ServiceError):  # a question for what is not there, or it is stopping
                raise
            except Exception as error:
                self._metrics.observe_failed_load()
                if isinstance(error, LOAD_ERRORS):
                    logger.error("%s; %s %s goes on", error, model.name, model.version)
                raise
            self._source.refused.pop(candidate, None)
            return candidate

    def _changeable(self) -> Predictor:
        """The predictor that another one may replace; raises NotReady and Draining."""
        if self._state is State.DRAINING:
            raise self._unavailable()
        return self.admit()

    def _unavailable(self) -> NotReady | Draining:
        error = Draining if self._state is State.DRAINING else NotReady
        return error(self._state.value, _RETRY_AFTER_S)

    def _is_serving(self, candidate: Candidate, sha256: str) -> bool:
        return candidate == self._serving and candidate.has_sha256(sha256)

    async def _replacement(self, candidate: Candidate, provider: str) -> Reader:
        """The reader that is to take the place of one that runs on `provider`; what is refused is remembered."""
        try:
            reader = await self._opened(candidate)
            if provider == CUDA and reader.engine.provider != CUDA:  # with `auto`: many times slower, and unasked for
                raise ProviderError(f"{candidate.path}: it does not run on CUDA, as the model does that serves")
            return reader
        except LOAD_ERRORS as error:
            self._source.refused[candidate] = str(error)
            raise

    async def _opened(self, candidate: Candidate) -> Reader:
        limit_s = self._settings.load_timeout_s
        loading = _Loading(partial(self._open, candidate))
        self._loading.add(loading)
        loading.start()
        try:
            async with asyncio.timeout(limit_s):
                return await asyncio.wrap_future(loading.opened)
        except TimeoutError:
            raise TimeoutError(f"{candidate.path}: the model is not loaded and warm after {limit_s:g} s") from None

    def _open(self, candidate: Candidate) -> Reader:
        engine = self._load(candidate.path)
        candidate.check(engine.metadata)
        reader = Reader(
            engine,
            self._settings.max_batch_size,
            second_look=self._settings.second_look,
            search=self._settings.search,
            observe_second_looks=self._metrics.observe_second_looks,
        )
        try:
            reader.warm()
        except Exception as error:  # of any kind: it is ONNX Runtime's
            raise ArtifactError(f"{candidate.path}: the model does not run: {' '.join(str(error).split())}") from error
        return reader

    def _serve(self, candidate: Candidate, reader: Reader) -> None:
        old = self._predictor
        self._predictor = Predictor(reader, self.pool, self._settings, self._metrics)
        self._serving = candidate
        if self._watching is not None:
            self._watching.cancel()
        self._watching = self._in_background(self._watch(self._predictor.watch))
        if old is not None:
            self._retired.add(old)
            self._in_background(self._retire(old))
        model = self._predictor.model
        self._metrics.show_model(model)
        logger.info("ready: %s %s (%.12s) on %s", model.name, model.version, model.sha256, model.provider)

    async def _retire(self, predictor: Predictor) -> None:
        await predictor.unused()
        await predictor.close()
        self._retired.discard(predictor)

    async def _watch(self, engine: EngineWatch) -> None:
        await engine.stalled(self._settings.stall_timeout_s)
        logger.critical("the engine has given no answer for %g s", self._settings.stall_timeout_s)
        self.on_stall()

    def _in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class _Loading(Thread):
    """A reader that is being opened. Not in a thread of a pool: the process would wait at its end for a driver that
    does not come back."""

    def __init__(self, open_reader: Callable[[], Reader]) -> None:
        super().__init__(name="load", daemon=True)
        self._open_reader = open_reader
        self.opened: Future[Reader] = Future()
        self.opened.set_running_or_notify_cancel()  # so that giving up does not keep the thread from ending in order

    def run(self) -> None:
        try:
            self.opened.set_result(self._open_reader())
        except BaseException as error:
            self.opened.set_exception(error)
