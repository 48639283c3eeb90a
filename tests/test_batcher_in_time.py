"""The batcher on a simulated clock: when batches go, how long a full queue says to wait, and that nothing is lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from simulated_time import simulate

from service.batcher import Answer, Batcher, Image
from service.engine import Outputs
from service.errors import DeadlineExceeded, Draining, Internal, Overloaded


def image(value: int) -> Image:
    return partial(np.full, (1, 1, 3), value, np.uint8)


@dataclass
class Engine:
    """Answers each image with its own value, and notes when it was given which images.

    `mood` says what it does instead when such an image is among them.
    """

    seconds: float = 0.010
    mood: dict[int, str] = field(default_factory=dict)
    begun: list[tuple[float, list[int]]] = field(default_factory=list)
    _busy: float = 0.0

    def took(self) -> float:
        """Seconds of the batch that has just been run: none where none of its images was wanted any more."""
        took, self._busy = self._busy, 0.0
        return took

    def __call__(self, images: NDArray[np.uint8]) -> Outputs:
        self._busy = self.seconds
        values = [int(image[0, 0, 0]) for image in images]
        self.begun.append((asyncio.get_running_loop().time() - 1000, values))
        moods = {self.mood.get(value) for value in values}
        for name, error in (("raise", RuntimeError), ("memory", MemoryError), ("exit", SystemExit), ("key", KeyError)):
            if name in moods:
                raise error(name)
        answers = np.array(values, np.float32)[:, None, None]
        if "nan" in moods:
            answers = np.where(np.isin(answers, [v for v in values if self.mood.get(v) == "nan"]), np.nan, answers)
        boxes = answers[:-1] if "short" in moods else answers
        return Outputs(answers, answers, boxes)


def run(
    test: Callable[[Batcher], Coroutine[Any, Any, None]], engine: Engine | None = None, **options: Any
) -> list[tuple[Any, list[int]]]:
    """Runs a test against a started batcher; gives the batches, each with the time when it began."""
    engine = engine or Engine()

    async def main() -> None:
        batcher = Batcher(engine, **{"max_batch_size": 4, "max_queue_images": 100, **options})
        await test(batcher)
        await batcher.close()

    simulate(main, engine.took)
    return [(pytest.approx(at), values) for at, values in engine.begun]


async def arriving(batcher: Batcher, *at: float) -> list[asyncio.Future[Answer]]:
    """Submits one image at each time; they are numbered from 1."""
    futures = []
    for value, moment in enumerate(at, 1):
        await asyncio.sleep(1000 + moment - asyncio.get_running_loop().time())
        futures += batcher.submit([image(value)])
    return futures


def test_without_a_delay_the_first_image_goes_at_once_and_the_rest_when_the_engine_is_free() -> None:
    async def test(batcher: Batcher) -> None:
        await asyncio.gather(*await arriving(batcher, 0.0, 0.001, 0.002, 0.015))

    assert run(test) == [(0.0, [1]), (0.010, [2, 3]), (0.020, [4])]


def test_batches_run_beside_each_other_as_many_as_the_engine_takes() -> None:
    async def test(batcher: Batcher) -> None:
        await asyncio.gather(*await arriving(batcher, 0.0, 0.001, 0.002, 0.003, 0.012))

    # The third and fourth wait for the first batch's end, the fifth for the second's, and no batch for its neighbour's.
    assert run(test, parallel_batches=2) == [(0.0, [1]), (0.001, [2]), (0.010, [3, 4]), (0.012, [5])]


def test_with_a_delay_too_a_batch_begins_while_another_runs() -> None:
    async def test(batcher: Batcher) -> None:
        await asyncio.gather(*await arriving(batcher, 0.0, 0.006, 0.007))

    assert run(test, max_batch_delay_s=0.005, parallel_batches=2) == [(0.005, [1]), (0.011, [2, 3])]


def test_the_delay_counts_from_the_first_image_and_later_ones_do_not_reset_it() -> None:
    async def test(batcher: Batcher) -> None:
        await asyncio.gather(*await arriving(batcher, 0.0, 0.002, 0.004, 0.006))

    batches = run(test, Engine(seconds=0.0005), max_batch_size=9, max_batch_delay_s=0.005)
    assert batches == [(0.005, [1, 2, 3]), (0.011, [4])]


def test_a_full_batch_goes_at_once() -> None:
    async def test(batcher: Batcher) -> None:
        await asyncio.gather(*await arriving(batcher, 0.0, 0.001, 0.001, 0.002, 0.003))

    assert run(test, max_batch_delay_s=0.5) == [(0.002, [1, 2, 3, 4]), (0.503, [5])]


def test_an_image_that_has_waited_for_the_engine_does_not_wait_for_others_too() -> None:
    async def test(batcher: Batcher) -> None:
        await asyncio.gather(*await arriving(batcher, 0.0, 0.010))

    assert run(test, Engine(seconds=0.1), max_batch_delay_s=0.005) == [(0.005, [1]), (0.105, [2])]


def test_the_delay_of_one_who_has_left_is_nobody_elses() -> None:
    async def test(batcher: Batcher) -> None:
        first, second = await arriving(batcher, 0.0, 0.004)
        first.cancel()
        await second

    assert run(test, max_batch_delay_s=0.005) == [(0.009, [2])]


def test_closing_does_not_wait_for_the_delay() -> None:
    async def main() -> None:
        batcher = Batcher(Engine(), max_batch_size=4, max_queue_images=8, max_batch_delay_s=60.0)
        (future,) = batcher.submit([image(1)])
        await asyncio.sleep(0.001)
        await batcher.close()
        with pytest.raises(Draining):
            await future
        assert asyncio.get_running_loop().time() == pytest.approx(1000.001)

    simulate(main, lambda: 0.01)


def test_a_large_request_and_many_small_ones_share_batches_in_the_order_they_came() -> None:
    async def test(batcher: Batcher) -> None:
        futures = batcher.submit([image(value) for value in range(100)])
        for value in range(100, 200):
            futures += batcher.submit([image(value)])
        await asyncio.gather(*futures)

    batches = [values for _, values in run(test, max_batch_size=32, max_queue_images=200)]
    assert [len(values) for values in batches] == [32] * 6 + [8]
    assert [value for values in batches for value in values] == list(range(200))


def test_a_full_queue_says_how_long_it_takes_to_drain() -> None:
    async def test(batcher: Batcher) -> None:
        with pytest.raises(Overloaded) as raised:  # nothing is known yet
            batcher.submit([image(0)] * 101)
        assert raised.value.retry_after_s == 1
        callers = [asyncio.create_task(forever(batcher)) for _ in range(100)]
        await asyncio.sleep(20)
        with pytest.raises(Overloaded, match="the limit is 100") as raised:
            batcher.submit([image(0)] * 50)
        # 96 images wait, and every 0.8 s four are read; the batch that is being read counts as it goes on.
        assert raised.value.retry_after_s == pytest.approx(96 / 5, abs=3)
        for caller in callers:
            caller.cancel()

    async def forever(batcher: Batcher) -> None:
        while True:
            await batcher.submit([image(0)])[0]

    run(test, Engine(seconds=0.8))


def test_a_queue_that_waits_for_the_decoder_drains_as_fast_as_that_decodes() -> None:
    async def test(batcher: Batcher) -> None:
        decoder = asyncio.Lock()

        async def forever() -> None:
            while True:
                with batcher.reserve(1):
                    async with decoder:
                        await asyncio.sleep(0.5)
                await batcher.submit([image(0)])[0]

        callers = [asyncio.create_task(forever()) for _ in range(20)]
        await asyncio.sleep(60)
        with pytest.raises(Overloaded, match="20 images are waiting") as raised:
            batcher.check_room(81)
        assert raised.value.retry_after_s == pytest.approx(20 * 0.5, abs=1)
        for caller in callers:
            caller.cancel()

    run(test)


def test_an_idle_night_after_an_image_that_did_not_decode_does_not_make_the_queue_slow() -> None:
    async def test(batcher: Batcher) -> None:
        await asyncio.gather(*batcher.submit([image(0)] * 80))
        with batcher.reserve(1):
            await asyncio.sleep(0.01)
        await asyncio.sleep(8 * 3600)
        with batcher.reserve(100), pytest.raises(Overloaded) as raised:
            batcher.check_room()
        assert raised.value.retry_after_s == pytest.approx(100 / 5, abs=1)

    run(test, Engine(seconds=0.8))


def test_an_idle_night_does_not_make_the_queue_slow() -> None:
    async def test(batcher: Batcher) -> None:
        await asyncio.gather(*batcher.submit([image(0)] * 80))
        await asyncio.sleep(8 * 3600)
        waiting = batcher.submit([image(0)] * 100)
        with pytest.raises(Overloaded) as raised:
            batcher.submit([image(0)])
        assert raised.value.retry_after_s == pytest.approx(100 / 5, abs=1)
        await asyncio.gather(*waiting)

    run(test, Engine(seconds=0.8))


def test_why_images_were_dropped_and_rejected_is_told() -> None:
    dropped: Counter[str] = Counter()
    rejected: list[int] = []

    async def test(batcher: Batcher) -> None:
        futures = batcher.submit([image(1)])
        await asyncio.sleep(0.001)
        cancelled = batcher.submit([image(2), image(3)])
        expired = batcher.submit([image(4)], deadline=asyncio.get_running_loop().time() + 0.001)
        with pytest.raises(Overloaded):
            batcher.submit([image(5)] * 3)
        cancelled[0].cancel()
        futures[0].cancel()  # too late: it is being computed
        await asyncio.gather(cancelled[1], *expired, return_exceptions=True)

    run(
        test,
        max_queue_images=5,
        observe_dropped=lambda reason: dropped.update([reason]),
        observe_rejected=rejected.append,
    )
    assert dropped == {"cancelled": 1, "expired": 1}
    assert rejected == [3]


MOODS = ("raise", "memory", "exit", "key", "nan", "short")


@dataclass
class Request:
    """What a caller does: from `at` on, with so many images, until `deadline` or until it leaves, if ever; it may keep
    their places for the time that it `decodes` them."""

    at: float
    images: int
    deadline: float | None
    leaves: float | None
    decodes: float | None

    @property
    def submits(self) -> float:
        # To the millisecond, which all moments are drawn in: 0.045 + 0.005 is less than 0.05.
        return round(self.at + (self.decodes or 0.0), 3)


_moments = st.integers(0, 60).map(lambda milliseconds: milliseconds / 1000)
_requests = st.builds(
    Request,
    at=_moments,
    images=st.integers(0, 6),
    deadline=st.none() | _moments,
    leaves=st.none() | _moments,
    decodes=st.none() | _moments,
)


@settings(max_examples=200)
@given(
    requests=st.lists(_requests, max_size=12),
    closed_at=st.none() | _moments,
    mood=st.dictionaries(st.integers(0, 40), st.sampled_from(MOODS), max_size=5),
    largest=st.integers(1, 6),
    limit=st.integers(1, 20),
    delay=st.sampled_from([0.0, 0.003, 0.020]),
    seconds=st.sampled_from([0.0, 0.002, 0.015]),
    deaf=st.booleans(),
)
def test_whatever_happens_each_image_gets_its_own_answer_or_a_reason(
    requests: list[Request],
    closed_at: float | None,
    mood: dict[int, str],
    largest: int,
    limit: int,
    delay: float,
    seconds: float,
    deaf: bool,
) -> None:
    engine = Engine(seconds, mood)
    submitted: list[int] = []
    arrived: dict[int, float] = {}
    computed: list[int] = []
    dropped: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    reserved = 0

    def observe(event: object) -> None:
        if isinstance(event, str):
            dropped.update([event])
        if deaf:
            raise OSError("the observer is broken")

    async def caller(batcher: Batcher, request: Request, values: list[int]) -> None:
        loop = asyncio.get_running_loop()
        nonlocal reserved
        await asyncio.sleep(request.at)
        fits = batcher.waiting + reserved + len(values) <= limit
        deadline = None if request.deadline is None else 1000 + request.deadline
        try:
            if request.decodes is not None:
                with batcher.reserve(len(values)):
                    reserved += len(values)
                    fits = True
                    await asyncio.sleep(request.decodes)
                reserved -= len(values)
            futures = batcher.submit([image(value) for value in values], deadline)
        except Draining:
            assert closed_at is not None
            assert request.submits >= closed_at
            return
        except Overloaded:
            assert not fits
            return
        assert batcher.waiting + reserved <= limit
        submitted.extend(values)
        arrived.update(dict.fromkeys(values, loop.time() - 1000))
        if request.leaves is not None:
            await asyncio.sleep(max(0.0, request.leaves - request.submits))
            for future in futures:
                future.cancel()
            await asyncio.sleep(0)
        for value, result in zip(values, await asyncio.gather(*futures, return_exceptions=True), strict=True):
            if isinstance(result, Answer):
                assert value not in mood or mood[value] not in MOODS
                assert result.outputs.probabilities.item() == result.outputs.boxes.item() == value
                assert result.queue_s >= 0
            elif isinstance(result, Internal):
                assert value in mood
            elif isinstance(result, DeadlineExceeded):
                assert request.deadline is not None
                outcomes["expired"] += 1
            elif isinstance(result, Draining):
                assert closed_at is not None
            else:
                assert isinstance(result, asyncio.CancelledError)
                assert request.leaves is not None
                outcomes["left late"] += request.deadline is not None and loop.time() >= request.deadline

    async def main() -> None:
        batcher = Batcher(
            engine,
            max_batch_size=largest,
            max_queue_images=limit,
            max_batch_delay_s=delay,
            observe_batch=observe,
            observe_dropped=observe,
            observe_rejected=observe,
        )
        starts = np.cumsum([0, *(request.images for request in requests)])
        callers = [
            caller(batcher, request, list(range(start, start + request.images)))
            for start, request in zip(starts.tolist(), requests, strict=False)
        ]
        async with asyncio.TaskGroup() as group:
            for coroutine in callers:
                group.create_task(coroutine)
            if closed_at is not None:
                await asyncio.sleep(closed_at)
                await batcher.close()
        assert batcher.waiting == reserved == 0
        await batcher.close()

    with patch("service.batcher.logger"), patch("service.observing.logger"):  # thousands of tracebacks
        simulate(main, engine.took)

    of_image = {
        value: request
        for start, request in zip(np.cumsum([0, *(r.images for r in requests)]).tolist(), requests, strict=False)
        for value in range(start, start + request.images)
    }
    free = 0.0
    for at, values in engine.begun:
        assert 1 <= len(values) <= largest
        for value in values:
            request = of_image[value]
            assert request.deadline is None or at < request.deadline + 1e-6
            assert request.leaves is None or at <= max(request.leaves, request.submits) + 1e-6
        # Never later than when the engine is free and the first of them has waited for the delay.
        assert at <= max(free, arrived[values[0]] + delay) + 1e-6
        free = at + seconds
        computed += [value for value in values if value not in computed]
    order = {value: position for position, value in enumerate(submitted)}
    assert [order[value] for value in computed] == sorted(order[value] for value in computed)
    # Who leaves at the deadline, or after it, has waited until then.
    assert outcomes["expired"] <= dropped["expired"] <= outcomes["expired"] + outcomes["left late"]
