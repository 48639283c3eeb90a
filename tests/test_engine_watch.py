"""The watch before an engine: what counts as a stall, and what does not."""

import asyncio
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from service import engine_watch
from service.engine import Infer, Outputs
from service.engine_watch import EngineWatch

Pixels = NDArray[np.uint8]
TICK_S = 0.01
PATIENCE_S = 60
IMAGE = np.full((1, 2, 3, 3), 9, np.uint8)


@pytest.fixture(autouse=True)
def _short_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_watch, "TICK_S", TICK_S)


def outputs(count: int, value: float = 0.5) -> Outputs:
    return Outputs(*(np.full((count, 1, 1), value, np.float32) for _ in range(3)))


class Engine:
    """Answers, but for what `fails` says of a call: its images, and which one it is."""

    def __init__(self, fails: Callable[[Pixels, int], bool], failure: str = "raises") -> None:
        self.asked: list[Pixels] = []
        self._fails = fails
        self._failure = failure

    def __call__(self, images: Pixels) -> Outputs:
        self.asked.append(images)
        if not self._fails(images, len(self.asked)):
            return outputs(len(images))
        if self._failure == "raises":
            raise MemoryError
        return outputs(len(images), np.nan)


def watched(engine: Infer) -> EngineWatch:
    return EngineWatch(engine, (2, 3))


def stalls(watch: EngineWatch, ticks: int, until: Callable[[], bool]) -> bool:
    """Whether it stalls for so many ticks before `until`."""

    async def main() -> bool:
        stalled = asyncio.create_task(watch.stalled(ticks * TICK_S))
        async with asyncio.timeout(PATIENCE_S):
            while not (stalled.done() or until()):
                await asyncio.sleep(TICK_S)
        if stalled.done():
            await stalled  # which raises what it raised
        return stalled.done()

    return asyncio.run(main())


def asks(watch: EngineWatch) -> None:
    with pytest.raises(MemoryError):
        watch.infer(IMAGE)


def never() -> bool:
    return False


@pytest.mark.parametrize("failure", ["raises", "not a number"])
def test_an_engine_that_fails_on_everything_stalls(failure: str) -> None:
    engine = Engine(lambda images, call: True, failure)
    watch = watched(engine)
    if failure == "raises":
        asks(watch)
    else:
        watch.infer(IMAGE)
    assert not watch.is_failing  # on the black image it has not failed yet
    assert stalls(watch, 10, never)
    assert watch.is_failing
    # Nobody else has asked: the watch has, black images of the right size.
    assert len(engine.asked) > 1
    assert all(images.shape == (1, 2, 3, 3) and not images.any() for images in engine.asked[1:])


def test_an_image_that_cannot_be_read_is_no_stall() -> None:
    engine = Engine(lambda images, call: bool(images.any()))
    watch = watched(engine)
    for _ in range(3):
        asks(watch)
    assert not stalls(watch, 3, lambda: len(engine.asked) >= 4 and watch.stalled_s == 0)
    assert not watch.is_failing


def test_an_engine_that_recovers_has_not_stalled() -> None:
    engine = Engine(lambda images, call: call <= 4)
    watch = watched(engine)
    asks(watch)
    assert not stalls(watch, 1000, lambda: len(engine.asked) >= 5 and watch.stalled_s == 0)
    assert not watch.is_failing


def test_an_answer_for_one_image_of_several_is_an_answer() -> None:
    def half(images: Pixels) -> Outputs:
        return Outputs.joined([outputs(1), outputs(1, np.nan)])

    watch = watched(half)
    watch.infer(np.concatenate([IMAGE, IMAGE]))
    ticks = iter(range(20))
    assert not stalls(watch, 3, lambda: next(ticks, None) is None)


@pytest.fixture
def hanging() -> Iterator[tuple[EngineWatch, threading.Event]]:
    """A watch whose engine is at an image until the event is set."""
    begun, released = threading.Event(), threading.Event()

    def infer(images: Pixels) -> Outputs:
        begun.set()
        released.wait(PATIENCE_S)
        return outputs(len(images))

    watch = watched(infer)
    thread = threading.Thread(target=watch.infer, args=(IMAGE,))
    thread.start()
    begun.wait(PATIENCE_S)
    yield watch, released
    released.set()
    thread.join()


def test_a_call_that_does_not_come_back_stalls(hanging: tuple[EngineWatch, threading.Event]) -> None:
    watch, _ = hanging
    assert stalls(watch, 10, never)
    assert watch.stalled_s >= 10 * TICK_S * 0.99


def test_a_call_that_comes_back_in_time_does_not(hanging: tuple[EngineWatch, threading.Event]) -> None:
    watch, released = hanging
    released.set()
    assert not stalls(watch, 1000, lambda: watch.stalled_s == 0)


def test_time_that_nobody_could_look_does_not_count(hanging: tuple[EngineWatch, threading.Event]) -> None:
    """Without the event loop, which stands still with the process."""
    watch, _ = hanging
    threading.Event().wait(5 * TICK_S)
    assert watch.stalled_s == 0
