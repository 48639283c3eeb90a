"""The token bucket: how many images a caller may send."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.errors import RateLimited
from service.rate_limit import RateLimit


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_minutes_images_may_come_at_once_and_then_the_rate_is_kept() -> None:
    clock = Clock()
    limit = RateLimit(60, clock)
    for _ in range(60):
        limit.take("a", 1)
    with pytest.raises(RateLimited) as refused:
        limit.take("a", 1)
    assert refused.value.retry_after_s == 1
    clock.now += 1
    limit.take("a", 1)
    with pytest.raises(RateLimited):
        limit.take("a", 1)


def test_callers_do_not_share() -> None:
    limit = RateLimit(1, Clock())
    limit.take("a", 1)
    limit.take("b", 1)


def test_to_ask_takes_nothing() -> None:
    limit = RateLimit(1, Clock())
    for _ in range(5):
        limit.take("a", 0)
    limit.take("a", 1)
    with pytest.raises(RateLimited):
        limit.take("a", 0)


def test_a_request_larger_than_the_limit_is_answered_and_paid_for_afterwards() -> None:
    clock = Clock()
    limit = RateLimit(60, clock)
    limit.take("a", 90)
    with pytest.raises(RateLimited) as refused:
        limit.take("a", 1)
    assert refused.value.retry_after_s == 31
    clock.now += 31
    limit.take("a", 1)


@given(
    per_minute=st.integers(1, 1000),
    requests=st.lists(st.tuples(st.floats(0, 100), st.integers(1, 64)), min_size=1, max_size=60),
)
@example(per_minute=1, requests=[(0.0, 18), (0.0, 1), (1.7513760710632411, 34), (0.0, 1)])
def test_over_any_time_no_caller_gets_more_than_the_rate(per_minute: int, requests: list[tuple[float, int]]) -> None:
    clock = Clock()
    limit = RateLimit(per_minute, clock)
    taken = last = 0
    for pause, images in requests:
        clock.now += pause
        try:
            limit.take("a", images)
        except RateLimited as refused:
            clock.now += refused.retry_after_s
            limit.take("a", 0)  # who waits as long as it is told to is let in
        else:
            taken, last = taken + images, images
    allowed = per_minute + (clock.now - 1000) * per_minute / 60
    assert taken - last <= allowed + 1e-3


def test_those_longest_unseen_are_forgotten_so_that_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.rate_limit._MAX_CALLERS", 2)
    limit = RateLimit(1, Clock())
    for caller in ("a", "b", "c"):
        limit.take(caller, 1)
    assert list(limit._left) == ["b", "c"]
