"""The batcher alone, with an engine that does what the test says."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.batcher import Batcher, Image
from service.engine import Outputs
from service.errors import BadImage, DeadlineExceeded, Draining, Internal, Overloaded


class Recorder:
    """An engine that answers each image with its own value, notes its batches, and can be held."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.poison: set[int] = set()
        self.entered = threading.Event()
        self.free = threading.Event()
        self.free.set()

    def __call__(self, images: NDArray[np.uint8]) -> Outputs:
        values = [int(image[0, 0, 0]) for image in images]
        self.batches.append(values)
        self.entered.set()
        self.free.wait()
        if self.poison & set(values):
            raise RuntimeError("poisoned")
        answers = np.array(values, np.float32)[:, None, None]
        return Outputs(answers, answers[..., None] + 1, answers[..., None] + 2)


def image(value: int) -> Image:
    return partial(np.full, (2, 2, 3), value, np.uint8)


def run(test: Callable[[Batcher, Recorder], Awaitable[None]], **limits: Any) -> Recorder:
    """Runs a test against a started batcher, which it closes."""
    recorder = Recorder()

    async def main() -> None:
        batcher = Batcher(recorder, **{"max_batch_size": 4, "max_queue_images": 8, **limits})
        try:
            await asyncio.wait_for(test(batcher, recorder), 20)
        finally:
            recorder.free.set()
            await asyncio.wait_for(batcher.close(), 20)

    asyncio.run(main())
    return recorder


async def hold(batcher: Batcher, recorder: Recorder) -> "asyncio.Future[Any]":
    """Keeps the engine busy with image 0 until `recorder.free` is set."""
    recorder.free.clear()
    recorder.entered.clear()
    (future,) = batcher.submit([image(0)])
    await asyncio.to_thread(recorder.entered.wait, 10)
    return future


async def values(futures: list["asyncio.Future[Any]"]) -> list[int]:
    answers = await asyncio.gather(*futures)
    for answer in answers:
        assert answer.outputs.probabilities.shape == (1, 1, 1)
        assert min(answer.queue_s, answer.decode_s, answer.inference_s) >= 0
    return [int(answer.outputs.probabilities[0, 0, 0]) for answer in answers]


def test_a_lone_image_does_not_wait_for_company() -> None:
    async def test(batcher: Batcher, _recorder: Recorder) -> None:
        assert await values(batcher.submit([image(5)])) == [5]
        assert await values(batcher.submit([image(6)])) == [6]

    assert run(test).batches == [[5], [6]]


def test_what_waits_goes_together_up_to_the_largest_batch() -> None:
    async def test(batcher: Batcher, recorder: Recorder) -> None:
        first = await hold(batcher, recorder)
        futures = [future for value in range(1, 7) for future in batcher.submit([image(value)])]
        assert batcher.waiting == 6
        recorder.free.set()
        assert await values([first, *futures]) == list(range(7))
        assert batcher.waiting == 0

    assert run(test).batches == [[0], [1, 2, 3, 4], [5, 6]]


def test_batches_are_computed_at_the_same_time_and_the_end_waits_for_all_of_them() -> None:
    """Each waits in the engine for the other; one alone would break the barrier."""
    together = threading.Barrier(2, timeout=10)

    def infer(images: NDArray[np.uint8]) -> Outputs:
        together.wait()
        answers = images[:, 0, 0, :1, None].astype(np.float32)
        return Outputs(answers, answers[..., None], answers[..., None])

    async def main() -> None:
        batcher = Batcher(infer, max_batch_size=2, max_queue_images=8, parallel_batches=2)
        futures = batcher.submit([image(value) for value in range(4)])
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        late = batcher.submit([image(9)])
        await batcher.close()
        assert await values(futures) == [0, 1, 2, 3]
        with pytest.raises(Draining):
            await late[0]

    asyncio.run(asyncio.wait_for(main(), 20))


@settings(max_examples=20)
@given(sizes=st.lists(st.integers(0, 6), max_size=12), largest=st.integers(1, 5), parallel=st.integers(1, 3))
def test_every_caller_gets_its_own_answers_in_order(sizes: list[int], largest: int, parallel: int) -> None:
    async def test(batcher: Batcher, _recorder: Recorder) -> None:
        async def caller(start: int, size: int) -> None:
            wanted = list(range(start, start + size))
            assert await values(batcher.submit([image(value) for value in wanted])) == wanted

        starts = np.cumsum([0, *sizes])
        await asyncio.gather(*(caller(int(start), size) for start, size in zip(starts, sizes, strict=False)))

    recorder = run(test, max_batch_size=largest, max_queue_images=100, parallel_batches=parallel)
    assert sorted(value for batch in recorder.batches for value in batch) == list(range(sum(sizes)))
    assert all(1 <= len(batch) <= largest for batch in recorder.batches)


@settings(max_examples=50)
@given(waiting=st.integers(1, 40), largest=st.integers(1, 8), parallel=st.integers(1, 6))
def test_what_waits_is_shared_by_the_batches_that_may_begin(waiting: int, largest: int, parallel: int) -> None:
    """Nobody computes more than one image more than another, unless all have as many as they may."""

    async def test(batcher: Batcher, recorder: Recorder) -> None:
        recorder.free.clear()
        futures = batcher.submit([image(1)] * waiting)
        begun = min(waiting, parallel * largest)
        while sum(map(len, recorder.batches)) < begun:
            await asyncio.sleep(0.001)
        sizes = [len(batch) for batch in recorder.batches]
        assert len(sizes) == min(waiting, parallel)
        assert max(sizes) - min(sizes) <= 1
        assert batcher.waiting == waiting - begun
        recorder.free.set()
        assert await values(futures) == [1] * waiting

    run(test, max_batch_size=largest, max_queue_images=100, parallel_batches=parallel)


def test_with_a_delay_what_waits_goes_together() -> None:
    async def test(batcher: Batcher, _recorder: Recorder) -> None:
        assert await values(batcher.submit([image(value) for value in range(6)])) == list(range(6))

    recorder = run(test, max_batch_delay_s=0.001, parallel_batches=2)
    assert sorted(recorder.batches) == [[0, 1, 2, 3], [4, 5]]


def test_over_the_limit_all_or_none_are_taken() -> None:
    async def test(batcher: Batcher, recorder: Recorder) -> None:
        first = await hold(batcher, recorder)
        waiting = batcher.submit([image(value) for value in range(1, 7)])
        with pytest.raises(Overloaded):
            batcher.submit([image(7)] * 3)
        waiting += batcher.submit([image(7)] * 2)
        with pytest.raises(Overloaded):
            batcher.submit([image(8)])
        recorder.free.set()
        assert await values([first, *waiting]) == [0, 1, 2, 3, 4, 5, 6, 7, 7]
        assert await values(batcher.submit([image(9)])) == [9]

    run(test)


def test_cancelled_images_leave_their_place_and_are_not_computed() -> None:
    async def test(batcher: Batcher, recorder: Recorder) -> None:
        first = await hold(batcher, recorder)
        left = batcher.submit([image(1)] * 8)
        for future in left:
            future.cancel()
        await asyncio.sleep(0)
        assert batcher.waiting == 0
        stayed = batcher.submit([image(2)] * 8)
        stayed[3].cancel()
        recorder.free.set()
        assert await values([first, *stayed[:3], *stayed[4:]]) == [0] + [2] * 7

    assert run(test).batches == [[0], [2] * 4, [2] * 3]


def test_images_past_their_deadline_are_not_computed() -> None:
    async def test(batcher: Batcher, recorder: Recorder) -> None:
        now = asyncio.get_running_loop().time()
        first = await hold(batcher, recorder)
        (late,) = batcher.submit([image(1)], deadline=now - 1)
        (early,) = batcher.submit([image(2)], deadline=now + 600)
        recorder.free.set()
        with pytest.raises(DeadlineExceeded):
            await late
        assert await values([first, early]) == [0, 2]

    assert run(test).batches == [[0], [2]]


def test_only_the_poisonous_image_fails() -> None:
    async def test(batcher: Batcher, recorder: Recorder) -> None:
        first = await hold(batcher, recorder)
        recorder.poison = {2}
        futures = batcher.submit([image(1), image(2), image(3)])
        recorder.free.set()
        with pytest.raises(Internal) as raised:
            await futures[1]
        assert "poisoned" not in raised.value.detail
        assert await values([first, futures[0], futures[2]]) == [0, 1, 3]
        assert await values(batcher.submit([image(4)])) == [4]

    assert run(test).batches == [[0], [1, 2, 3], [1], [2], [3], [4]]


class Pixels:
    """An image that raises instead, or waits until it is let go; `asked` is how often it was called."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.asked = 0
        self.free = threading.Event()
        self.free.set()
        self._error = error

    def __call__(self) -> NDArray[np.uint8]:
        self.asked += 1
        self.free.wait()
        if self._error is not None:
            raise self._error
        return np.full((2, 2, 3), 7, np.uint8)


def test_an_image_without_pixels_has_its_own_answer_and_its_neighbours_theirs() -> None:
    errors = [BadImage("cut off"), RuntimeError("a secret"), MemoryError(), SystemExit(3), KeyboardInterrupt()]

    async def test(batcher: Batcher, recorder: Recorder) -> None:
        first = await hold(batcher, recorder)
        pairs = [batcher.submit([Pixels(error), image(4)]) for error in errors]
        recorder.free.set()
        await first
        for error, (bad, good) in zip(errors, pairs, strict=True):
            with pytest.raises(BadImage if isinstance(error, BadImage) else Internal) as raised:
                await bad
            assert "secret" not in raised.value.detail
            assert await values([good]) == [4]
        with pytest.raises(BadImage, match="cut off"):
            await batcher.submit([Pixels(errors[0])])[0]

    # The engine is given what has pixels, and nothing where nothing has.
    assert run(test, max_queue_images=20, max_batch_size=4).batches == [[0], [4, 4], [4, 4], [4]]


def test_the_event_loop_goes_on_while_an_image_is_being_decoded() -> None:
    async def test(batcher: Batcher, _recorder: Recorder) -> None:
        slow = Pixels()
        slow.free.clear()
        (future,) = batcher.submit([slow])
        while not slow.asked:
            await asyncio.sleep(0.001)
        slow.free.set()
        assert await values([future]) == [7]

    run(test)


def test_what_is_dropped_is_not_decoded() -> None:
    async def test(batcher: Batcher, recorder: Recorder) -> None:
        first = await hold(batcher, recorder)
        left, late, stays = Pixels(), Pixels(), Pixels()
        (leaving,) = batcher.submit([left])
        (expired,) = batcher.submit([late], deadline=asyncio.get_running_loop().time() - 1)
        (staying,) = batcher.submit([stays])
        leaving.cancel()
        recorder.free.set()
        with pytest.raises(DeadlineExceeded):
            await expired
        assert await values([first, staying]) == [0, 7]
        assert (left.asked, late.asked, stays.asked) == (0, 0, 1)

    run(test)


def test_who_leaves_or_is_late_while_a_batch_is_being_decoded_is_not_decoded_either() -> None:
    dropped: list[str] = []

    async def test(batcher: Batcher, recorder: Recorder) -> None:
        slow, left, late, stays = Pixels(), Pixels(), Pixels(), Pixels()
        slow.free.clear()
        now = asyncio.get_running_loop().time()
        first = await hold(batcher, recorder)
        futures = [*batcher.submit([slow, left]), *batcher.submit([late], now + 1), *batcher.submit([stays], now + 600)]
        recorder.free.set()
        await first
        while not slow.asked:
            await asyncio.sleep(0.001)
        futures[1].cancel()
        await asyncio.sleep(now + 1 - asyncio.get_running_loop().time())
        slow.free.set()
        with pytest.raises(DeadlineExceeded):
            await futures[2]
        assert await values([futures[0], futures[3]]) == [7, 7]
        assert (slow.asked, left.asked, late.asked, stays.asked) == (1, 0, 0, 1)

    assert run(test, observe_dropped=dropped.append).batches == [[0], [7, 7]]
    assert sorted(dropped) == ["cancelled", "expired"]


def test_whatever_the_engine_does_the_loop_goes_on() -> None:
    failures: list[BaseException] = [RuntimeError("a"), MemoryError(), SystemExit(3), KeyboardInterrupt()]

    def engine(images: NDArray[np.uint8]) -> Outputs:
        if failures:
            raise failures.pop()
        if len(images) == 1 and images.max() == 9:
            return Outputs(*[np.zeros((5, 1, 1), np.float32)] * 3)  # answers for images nobody sent
        return Outputs(*[np.zeros((len(images), 1, 1), np.float32)] * 3)

    async def main() -> None:
        batcher = Batcher(engine, max_batch_size=2, max_queue_images=8)
        for value in (1, 1, 1, 1, 9):
            with pytest.raises(Internal):
                await asyncio.wait_for(batcher.submit([image(value)])[0], 10)
        await asyncio.wait_for(batcher.submit([image(1)])[0], 10)
        await batcher.close()

    asyncio.run(main())


def test_an_image_whose_outputs_are_not_numbers_fails_alone() -> None:
    def engine(images: NDArray[np.uint8]) -> Outputs:
        answers = images[:, :1, 0, :1].astype(np.float32)
        bad = np.where(answers == 2, np.inf, answers)
        return Outputs(np.where(answers == 1, np.nan, answers), bad[..., None], bad[..., None])

    async def main() -> None:
        batcher = Batcher(engine, max_batch_size=4, max_queue_images=8)
        futures = batcher.submit([image(value) for value in range(4)])
        results = await asyncio.wait_for(asyncio.gather(*futures, return_exceptions=True), 10)
        assert [isinstance(result, Internal) for result in results] == [False, True, True, False]
        await batcher.close()

    asyncio.run(main())


def test_whatever_the_engine_returns_the_loop_goes_on() -> None:
    one = np.zeros((1, 1, 1), np.float32)
    returned: list[Any] = [None, 7, Outputs(one, one, one[:0]), Outputs(one[:0], one[:0], one[:0])]

    async def main() -> None:
        batcher = Batcher(lambda _images: returned.pop(), max_batch_size=2, max_queue_images=8)
        while returned:
            with pytest.raises(Internal):
                await asyncio.wait_for(batcher.submit([image(1)])[0], 10)
        await batcher.close()

    asyncio.run(main())


def test_what_is_being_decoded_keeps_its_place_and_is_refused_no_more() -> None:
    async def test(batcher: Batcher, recorder: Recorder) -> None:
        first = await hold(batcher, recorder)
        waiting = batcher.submit([image(1)] * 3)
        with batcher.reserve(4):
            assert batcher.waiting == 3
            with pytest.raises(Overloaded, match="7 images are waiting; the limit is 8"):
                batcher.check_room(2)
            with pytest.raises(Overloaded), batcher.reserve(2):
                pytest.fail("there is no room")
            waiting += batcher.submit([image(2)])
            with pytest.raises(Overloaded):
                batcher.check_room()
        waiting += batcher.submit([image(3)] * 4)
        with pytest.raises(Overloaded):
            batcher.check_room()
        recorder.free.set()
        assert await values([first, *waiting]) == [0, 1, 1, 1, 2, 3, 3, 3, 3]

    run(test)


def test_places_for_what_does_not_decode_are_free_again() -> None:
    async def test(batcher: Batcher, _recorder: Recorder) -> None:
        with pytest.raises(ValueError, match="no image"), batcher.reserve(8):
            raise ValueError("no image")
        assert await values(batcher.submit([image(4)] * 8)) == [4] * 8

    run(test)


def test_a_batcher_that_closes_keeps_no_places() -> None:
    async def test(batcher: Batcher, _recorder: Recorder) -> None:
        with batcher.reserve(1):
            await batcher.close()
        with pytest.raises(Draining):
            batcher.submit([image(1)])
        with pytest.raises(Draining), batcher.reserve(1):
            pytest.fail("it is closed")

    run(test)


def test_an_observer_that_fails_stops_nothing() -> None:
    def broken(_event: object) -> None:
        raise RuntimeError("broken")

    async def test(batcher: Batcher, recorder: Recorder) -> None:
        first = await hold(batcher, recorder)
        (second,) = batcher.submit([image(1)])
        (late,) = batcher.submit([image(2)], deadline=asyncio.get_running_loop().time() - 1)
        with pytest.raises(Overloaded):
            batcher.submit([image(3)] * 9)
        recorder.free.set()
        with pytest.raises(DeadlineExceeded):
            await late
        assert await values([first, second]) == [0, 1]

    run(test, observe_batch=broken, observe_dropped=broken, observe_rejected=broken)


def test_a_caller_may_leave_while_its_image_is_being_computed() -> None:
    async def test(batcher: Batcher, recorder: Recorder) -> None:
        first = await hold(batcher, recorder)
        first.cancel()
        (second,) = batcher.submit([image(1)])
        recorder.free.set()
        assert await values([second]) == [1]

    assert run(test).batches == [[0], [1]]


def test_images_of_different_shapes_do_not_spoil_each_other() -> None:
    async def test(batcher: Batcher, recorder: Recorder) -> None:
        first = await hold(batcher, recorder)
        futures = batcher.submit([image(1), partial(np.full, (3, 3, 3), 2, np.uint8)])
        recorder.free.set()
        assert await values([first, *futures]) == [0, 1, 2]

    run(test)


def test_closing_finishes_the_running_batch_and_refuses_the_rest() -> None:
    async def main() -> None:
        recorder = Recorder()
        batcher = Batcher(recorder, max_batch_size=4, max_queue_images=8)
        running = await hold(batcher, recorder)
        (waiting,) = batcher.submit([image(1)])
        closing = asyncio.create_task(batcher.close())
        with pytest.raises(Draining):
            await asyncio.wait_for(waiting, 10)
        with pytest.raises(Draining):
            batcher.submit([image(2)])
        recorder.free.set()
        assert await values([running]) == [0]
        await asyncio.wait_for(closing, 10)
        assert recorder.batches == [[0]]

    asyncio.run(main())


def test_who_gives_up_closing_takes_no_batch_along() -> None:
    async def main() -> None:
        recorder = Recorder()
        batcher = Batcher(recorder, max_batch_size=4, max_queue_images=8)
        running = await hold(batcher, recorder)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(batcher.close(), 0.01)
        recorder.free.set()
        assert await values([running]) == [0]
        await asyncio.wait_for(batcher.close(), 10)

    asyncio.run(main())


def test_an_event_loop_that_ends_leaves_nobody_waiting() -> None:
    async def main() -> None:
        recorder = Recorder()
        batcher = Batcher(recorder, max_batch_size=1, max_queue_images=8)
        running = await hold(batcher, recorder)
        (waiting,) = batcher.submit([image(1)])
        # As `asyncio.run` does at its end.
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        try:
            results = await asyncio.wait_for(asyncio.gather(running, waiting, return_exceptions=True), 10)
        finally:
            recorder.free.set()
        assert [type(result) for result in results] == [Internal, Draining]
        with pytest.raises(Draining):
            batcher.submit([image(2)])

    asyncio.run(main())


def test_a_batcher_that_never_started_can_be_closed() -> None:
    async def main() -> None:
        batcher = Batcher(Recorder(), max_batch_size=1, max_queue_images=8)
        (waiting,) = batcher.submit([image(1)])
        await batcher.close()
        with pytest.raises(Draining):
            await waiting

    asyncio.run(main())


def test_batch_sizes_are_told() -> None:
    sizes: list[int] = []

    async def test(batcher: Batcher, recorder: Recorder) -> None:
        first = await hold(batcher, recorder)
        futures = batcher.submit([image(1), image(2)])
        recorder.free.set()
        await values([first, *futures])

    run(test, observe_batch=sizes.append)
    assert sizes == [1, 2]
