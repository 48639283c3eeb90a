"""`--workers N`: one process that listens and watches, and N that answer."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Coroutine, Iterator, MutableSequence
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import Pipe, get_context, resource_tracker
from multiprocessing.context import SpawnProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

from service import logs
from service.channel import NOT_LISTENING, Channel, Post
from service.exit_codes import EXIT_MODEL, EXIT_PROVIDER, EXIT_UNANSWERED, EXIT_USAGE, EXIT_WORKERS
from service.keys import KeysError
from service.metrics import Metrics, forget, share
from service.settings import Settings
from service.source import Choice

logger = logging.getLogger(__name__)

_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
# In memory, always writable in a container, and no work for a disk.
_SHARED_MEMORY = Path("/dev/shm")
# What another start would not change.
_HOPELESS = {EXIT_USAGE, EXIT_MODEL, EXIT_PROVIDER}
_ATTEMPTS_PER_WORKER = 3
# A worker that lived as long as this did not crash because of how it was started.
_SETTLED_S = 60.0
_LONGEST_PAUSE_S = 30.0
_LOOK_S = 1.0
# More than a worker needs to end when it is told to.
_LATE_S = 5.0
_NOW_S = 1.0


class Supervisor:
    """Keeps `settings.workers` workers, and passes on to them what it is told by signals.

    The sockets are its own: what waits in them outlives a worker. One that ends unasked is replaced, at first at once,
    then after a pause that grows. One that hangs is killed, and so replaced: whose event loop has not turned for
    `settings.worker_timeout_s`, or that is not warm after `settings.load_timeout_s`. Where none can be started it
    gives up, with the exit code that the workers gave.
    """

    def __init__(self, settings: Settings) -> None:
        self.exit_code = 0
        self._settings = settings
        self._spawning = get_context("spawn")
        self._connections: MutableSequence[int] = self._spawning.RawArray("i", [NOT_LISTENING] * settings.workers)
        self._beats: MutableSequence[int] = self._spawning.RawArray("i", settings.workers)
        self._workers: dict[int, _Watched] = {}
        self._choice: Choice | None = None
        self._whole = False
        self._in_vain = 0
        self._failure_told = False
        self._stopping = asyncio.Event()
        self._spreading = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    def run(self, listeners: list[socket.socket]) -> None:
        """Returns when all workers have ended. Raises OSError where there is no room for a temporary folder."""
        self._listeners = listeners
        resource_tracker.ensure_running()  # it would unblock signals while the first worker is started
        memory = _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK) else None
        with TemporaryDirectory(prefix="housenumber-", dir=memory) as folder:
            self._folder = Path(folder)
            share(self._folder, "supervisor")
            self._metrics = Metrics()
            asyncio.run(self._watch())

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._on_stop)
        loop.add_signal_handler(signal.SIGINT, self._on_stop)
        loop.add_signal_handler(signal.SIGHUP, self._tell_all, "reload")
        tasks = [asyncio.create_task(self._refresh()), asyncio.create_task(self._look_after_them())]
        try:
            async with asyncio.TaskGroup() as keeping:
                for place in range(self._settings.workers):
                    keeping.create_task(self._keep(place))
        finally:
            for task in tasks:
                task.cancel()
            self._kill_all()

    async def _keep(self, place: int) -> None:
        """Has a worker in this place until the service stops."""
        crashes = 0
        while True:
            started = monotonic()
            code = await self._life_of_a_worker(place)
            if self._stopping.is_set():
                if code != 0 and self.exit_code == 0:
                    self.exit_code = EXIT_UNANSWERED
                return
            if self._is_hopeless(code):
                self._give_up(code)
                return
            crashes = 1 if monotonic() - started > _SETTLED_S else crashes + 1
            pause = min(2.0 ** (crashes - 2), _LONGEST_PAUSE_S) if crashes > 1 else 0.0
            logger.error("worker %d ended by %s; another one takes its place in %g s", place, _how(code), pause)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
            if self._stopping.is_set():
                return
            self._metrics.observe_restart()

    async def _life_of_a_worker(self, place: int) -> int:
        """Starts it, and gives its exit code when it has ended, negative for the signal that ended it."""
        try:
            worker = self._start(place)
        except OSError as error:
            logger.error("a process cannot be started: %s", error)
            self._in_vain += 1
            return EXIT_WORKERS
        code = await worker.ended()
        worker.channel.close()
        del self._workers[place]
        self._connections[place] = NOT_LISTENING
        forget(self._folder, str(place))
        self._in_vain += not worker.warm
        return code

    def _start(self, place: int) -> _Watched:
        connection, other_end = Pipe()
        post = Post(
            place=place,
            listeners=self._listeners,
            connection=other_end,
            connections=self._connections,
            beats=self._beats,
            folder=self._folder,
            replacement=self._whole,
            choice=self._choice,
        )
        process = self._spawning.Process(target=_work, args=(self._settings, post), name=f"worker {place}")
        with _signals_blocked():  # until it has said that it ignores them
            process.start()
        other_end.close()
        worker = self._workers[place] = _Watched(place, process, Channel(connection))
        worker.channel.open(partial(self._on_message, worker))
        return worker

    def _on_message(self, worker: _Watched, word: str, about: Any) -> None:
        match word:
            case "serving":
                worker.choice = about
                # One that has been told what to begin with does not choose: others may have gone on meanwhile.
                if worker.warm or self._choice is None:
                    self._choice = about
                if not worker.warm:
                    self._on_warm(worker)
            case "failed":
                if self._whole or not self._failure_told:
                    logger.critical("%s", about)
                self._failure_told = True
            case "spread":
                self._in_background(self._spread(worker, about))

    def _on_warm(self, worker: _Watched) -> None:
        worker.warm = True
        worker.silent_s = 0.0
        self._in_vain = 0
        logger.info("worker %d (process %d) is warm", worker.place, worker.process.pid)
        if not self._whole and sum(other.warm for other in self._workers.values()) == self._settings.workers:
            self._whole = True
            self._tell_all("whole")
            logger.info("ready: all %d workers are warm", self._settings.workers)

    async def _spread(self, origin: _Watched, choice: Choice) -> None:
        """Has all load what one has loaded; also that one, if another choice has overtaken its own."""
        async with self._spreading:
            others = [worker for worker in self._workers.values() if worker.choice != choice]
            failures = await asyncio.gather(*(worker.load(choice) for worker in others))
        origin.channel.reply(next(filter(None, failures), None))

    def _on_stop(self) -> None:
        if self._stopping.is_set():
            self._tell_all("stop")
            self._kill_all_in(_NOW_S)
            return
        self._stop_keeping()
        self._tell_all("drain")
        self._kill_all_in(self._settings.drain_delay_s + self._settings.drain_timeout_s + _LATE_S)

    def _is_hopeless(self, code: int) -> bool:
        """Whether nothing speaks for another attempt, after one that ended like this."""
        if code in _HOPELESS and not self._whole:
            return True
        any_warm = any(worker.warm for worker in self._workers.values())
        return not any_warm and self._in_vain >= _ATTEMPTS_PER_WORKER * self._settings.workers

    def _give_up(self, code: int) -> None:
        self.exit_code = code if code in _HOPELESS else EXIT_WORKERS
        if self._whole or not self._failure_told:
            logger.critical("no worker can be started; the last one ended by %s", _how(code))
        self._stop_keeping()
        self._kill_all()

    def _stop_keeping(self) -> None:
        self._stopping.set()
        for listener in self._listeners:  # the workers have theirs, and close them when they have drained
            listener.close()

    def _tell_all(self, word: str) -> None:
        for worker in self._workers.values():
            worker.channel.send(word)

    def _kill_all_in(self, seconds: float) -> None:
        asyncio.get_running_loop().call_later(seconds, self._kill_all)

    def _kill_all(self) -> None:
        for worker in self._workers.values():
            worker.process.kill()

    async def _refresh(self) -> None:
        while True:
            self._metrics.refresh()
            await asyncio.sleep(_LOOK_S)

    async def _look_after_them(self) -> None:
        while not self._stopping.is_set():  # from then on they have so long to end
            for worker in self._workers.values():
                self._look_at(worker)
            await asyncio.sleep(_LOOK_S)

    def _look_at(self, worker: _Watched) -> None:
        """Kills a worker that hangs. What this process sleeps through, as when all are frozen together, does not
        count: silence is what it has itself looked at for so long."""
        beat = self._beats[worker.place]
        is_silent = not worker.warm or beat == worker.beat
        worker.silent_s = worker.silent_s + _LOOK_S if is_silent else 0.0
        worker.beat = beat
        settings = self._settings
        if worker.silent_s < (settings.worker_timeout_s if worker.warm else settings.load_timeout_s):
            return
        worker.process.kill()
        what = "given no sign of life" if worker.warm else "not become warm"
        logger.error("worker %d has %s for %g s: it is killed", worker.place, what, worker.silent_s)
        worker.silent_s = 0.0

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Watched:
    """A worker as its supervisor sees it. `choice` is what it serves; None before it is `warm`, and for a file. It has
    had the same `beat`, or has not become warm, for `silent_s`."""

    def __init__(self, place: int, process: SpawnProcess, channel: Channel) -> None:
        self.place = place
        self.process = process
        self.channel = channel
        self.warm = False
        self.choice: Choice | None = None
        self.beat = 0
        self.silent_s = 0.0

    async def ended(self) -> int:
        """Waits for the end of the process; gives its exit code."""
        loop, over = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self.process.sentinel, over.set)
        await over.wait()
        loop.remove_reader(self.process.sentinel)
        self.process.join()
        assert self.process.exitcode is not None
        return self.process.exitcode

    async def load(self, choice: Choice) -> str | None:
        """What went wrong, in one line. That it ends meanwhile is no failure: the next one begins with the choice."""
        try:
            return await self.channel.ask("load", choice)
        except ConnectionError:
            return None


def _how(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


@contextmanager
def _signals_blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(settings: Settings, post: Post) -> None:
    """What a worker's process runs."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    logs.configure(settings.log_level, settings.log_format)
    share(post.folder, str(post.place))
    # Imported here: the supervisor needs nothing of it.
    from service.worker import Worker

    try:
        worker = Worker(settings, post)
    except KeysError as error:
        Channel(post.connection).send("failed", f"the API keys: {error}")
        sys.exit(EXIT_USAGE)
    worker.run(post.listeners)
    sys.exit(worker.exit_code)
