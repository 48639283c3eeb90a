"""How long a queue takes to drain, from what was done in the recent past."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.drain_rate import MAX_RETRY_AFTER_S, MIN_RETRY_AFTER_S, DrainRate


def working(rate: DrainRate, start: float, *, batches: int, size: int, seconds: float) -> float:
    """So many batches, one after the other; gives the time when the last was done."""
    rate.busy(start)
    for number in range(1, batches + 1):
        rate.done(size, start + number * seconds)
    return start + batches * seconds


def test_it_is_what_waits_over_the_images_per_second() -> None:
    rate = DrainRate()
    now = working(rate, 100.0, batches=50, size=8, seconds=0.4)  # 20 per second
    assert rate.retry_after_s(200, now) == 10
    assert rate.retry_after_s(201, now) == 11
    assert rate.retry_after_s(0, now) == MIN_RETRY_AFTER_S
    assert rate.retry_after_s(10**6, now) == MAX_RETRY_AFTER_S


def test_pauses_without_work_do_not_count() -> None:
    rate = DrainRate()
    now = working(rate, 0.0, batches=10, size=10, seconds=1.0)
    rate.idle()
    assert rate.retry_after_s(100, now + 10_000) == 10
    now = working(rate, now + 10_000, batches=10, size=10, seconds=1.0)
    assert rate.retry_after_s(100, now) == 10


def test_the_recent_past_counts_most() -> None:
    rate = DrainRate()
    now = working(rate, 0.0, batches=1000, size=10, seconds=0.1)
    now = working(rate, now, batches=60, size=10, seconds=1.0)
    assert 9 <= rate.retry_after_s(100, now) <= 10


def test_before_anything_was_done_it_is_as_long_as_that_takes() -> None:
    rate = DrainRate()
    assert rate.retry_after_s(100, 5.0) == MIN_RETRY_AFTER_S
    rate.busy(5.0)
    assert rate.retry_after_s(100, 5.1) == MIN_RETRY_AFTER_S
    assert rate.retry_after_s(100, 12.0) == 7
    assert rate.retry_after_s(100, 5000.0) == MAX_RETRY_AFTER_S


def test_a_queue_that_is_stuck_asks_for_more_and_more() -> None:
    rate = DrainRate()
    now = working(rate, 0.0, batches=100, size=10, seconds=0.1)
    told = [rate.retry_after_s(200, now + stuck) for stuck in (0, 1, 5, 20, 3600)]
    assert told[0] == 2
    assert told == sorted(told)
    assert told[-1] == MAX_RETRY_AFTER_S


@given(
    st.lists(st.tuples(st.sampled_from(["busy", "idle", "done", "ask"]), st.integers(0, 1000), st.floats(0, 1e6))),
)
def test_it_is_always_a_whole_number_of_seconds_within_the_limits(events: list[tuple[str, int, float]]) -> None:
    rate, now = DrainRate(), 0.0
    for event, count, pause in events:
        now += pause
        if event == "busy":
            rate.busy(now)
        elif event == "idle":
            rate.idle()
        elif event == "done":
            rate.done(count, now)
        told = rate.retry_after_s(count, now)
        assert isinstance(told, int)
        assert MIN_RETRY_AFTER_S <= told <= MAX_RETRY_AFTER_S


@pytest.mark.parametrize("instant", [0.0, 1e-9])
def test_a_clock_that_stands_still_does_no_harm(instant: float) -> None:
    rate = DrainRate()
    rate.busy(1.0)
    rate.done(100, 1.0 + instant)
    assert rate.retry_after_s(1000, 1.0 + instant) == MIN_RETRY_AFTER_S
