"""The decoding threads: bounded, in order, and rid of what nobody waits for."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from service.decode_pool import DecodePool
from service.errors import DeadlineExceeded, Draining, Internal, Overloaded


class Held:
    """A job that waits until it is let go, and notes that it ran."""

    def __init__(self) -> None:
        self.ran: list[int] = []
        self.entered = threading.Event()
        self.free = threading.Event()

    def __call__(self, job: int) -> int:
        self.ran.append(job)
        self.entered.set()
        self.free.wait()
        return job * job


def with_pool(
    test: Callable[[DecodePool, Held], Coroutine[Any, Any, None]], *, max_jobs: int, **observers: Any
) -> Held:
    held = Held()

    async def main() -> None:
        pool = DecodePool(1, max_jobs, **observers)
        try:
            await asyncio.wait_for(test(pool, held), 20)
        finally:
            held.free.set()
            pool.close()

    asyncio.run(main())
    return held


def test_results_come_in_the_order_of_the_jobs() -> None:
    async def test(pool: DecodePool, held: Held) -> None:
        held.free.set()
        assert await pool.map(held, [3, 1, 2]) == [9, 1, 4]
        assert await pool.map(held, []) == []

    with_pool(test, max_jobs=3)


def test_over_the_limit_nothing_is_begun_and_places_come_back() -> None:
    async def test(pool: DecodePool, held: Held) -> None:
        running = asyncio.create_task(pool.map(held, [1, 2]))
        await asyncio.to_thread(held.entered.wait, 10)
        with pytest.raises(Overloaded):
            await pool.map(held, [3, 4])
        held.free.set()
        assert await running == [1, 4]
        assert await pool.map(held, [5, 6, 7]) == [25, 36, 49]

    assert with_pool(test, max_jobs=3).ran == [1, 2, 5, 6, 7]


def test_a_caller_that_leaves_takes_its_waiting_jobs_along() -> None:
    async def test(pool: DecodePool, held: Held) -> None:
        running = asyncio.create_task(pool.map(held, [1, 2, 3]))
        await asyncio.to_thread(held.entered.wait, 10)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        held.free.set()
        assert await pool.map(held, [4, 5]) == [16, 25]

    assert with_pool(test, max_jobs=3).ran == [1, 4, 5]


def test_a_jobs_own_error_is_raised_and_gives_its_place_back() -> None:
    def broken(_job: int) -> int:
        raise ValueError("broken")

    async def test(pool: DecodePool, held: Held) -> None:
        for _ in range(3):
            with pytest.raises(ValueError, match="broken"):
                await pool.map(broken, [1])
        held.free.set()
        assert await pool.map(held, [2]) == [4]

    with_pool(test, max_jobs=1)


def test_jobs_past_their_deadline_are_not_begun() -> None:
    dropped: list[str] = []

    async def test(pool: DecodePool, held: Held) -> None:
        now = asyncio.get_running_loop().time()
        running = asyncio.create_task(pool.map(held, [1], deadline=now + 600))
        await asyncio.to_thread(held.entered.wait, 10)
        late = asyncio.create_task(pool.map(held, [2, 3], deadline=now))
        held.free.set()
        with pytest.raises(DeadlineExceeded):
            await late
        assert await running == [1]
        assert await pool.map(held, [4]) == [16]

    assert with_pool(test, max_jobs=3, observe_dropped=dropped.append).ran == [1, 4]
    assert set(dropped) <= {"expired", "cancelled"}
    assert dropped.count("expired") >= 1
    assert len(dropped) == 2


def test_what_was_dropped_and_rejected_is_told_even_to_observers_that_fail() -> None:
    told: list[object] = []

    def observe(event: object) -> None:
        told.append(event)
        raise RuntimeError("broken")

    async def test(pool: DecodePool, held: Held) -> None:
        running = asyncio.create_task(pool.map(held, [1, 2]))
        await asyncio.to_thread(held.entered.wait, 10)
        with pytest.raises(Overloaded) as raised:
            await pool.map(held, [3, 4])
        assert 1 <= raised.value.retry_after_s <= 60
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        held.free.set()
        assert await pool.map(held, [4, 5]) == [16, 25]

    with_pool(test, max_jobs=3, observe_dropped=observe, observe_rejected=observe)
    assert told == [2, "cancelled"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, StopIteration, asyncio.CancelledError, GeneratorExit])
def test_what_would_end_the_event_loop_is_an_internal_error(error: type[BaseException]) -> None:
    def broken(_job: int) -> int:
        raise error

    async def test(pool: DecodePool, held: Held) -> None:
        with pytest.raises(Internal):
            await pool.map(broken, [1, 2])
        held.free.set()
        assert await pool.map(held, [3, 4]) == [9, 16]

    # The second broken job may still be running when the first one has failed: there is room for both pairs.
    with_pool(test, max_jobs=4)


def test_one_failure_drops_the_rest_of_the_request() -> None:
    def broken(_job: int) -> int:
        raise ValueError("broken")

    async def test(pool: DecodePool, held: Held) -> None:
        holding = asyncio.create_task(pool.map(held, [1]))
        await asyncio.to_thread(held.entered.wait, 10)
        failing = asyncio.create_task(pool.map(lambda job: broken(job) if job == 2 else held(job), [2, 3]))
        await asyncio.sleep(0)
        assert pool.jobs == 3
        held.free.set()
        with pytest.raises(ValueError, match="broken"):
            await failing
        assert await holding == [1]

    with_pool(test, max_jobs=3)


def test_closing_refuses_what_has_not_begun_and_what_comes() -> None:
    async def test(pool: DecodePool, held: Held) -> None:
        running = asyncio.create_task(pool.map(held, [1]))
        waiting = asyncio.create_task(pool.map(held, [2]))
        await asyncio.to_thread(held.entered.wait, 10)
        pool.close()
        with pytest.raises(Draining):
            await waiting
        with pytest.raises(Draining):
            await pool.map(held, [3])
        held.free.set()
        assert await running == [1]
        assert pool.jobs == 0

    assert with_pool(test, max_jobs=3).ran == [1]
