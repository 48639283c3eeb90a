"""What supervisor and workers say to each other, over a real pipe."""

import asyncio
from collections.abc import Awaitable, Callable
from multiprocessing import Pipe
from typing import Any

import pytest

from service.channel import Channel


class End(Channel):
    """An end of the pipe that writes down what it gets."""

    def __init__(self, connection: Any) -> None:
        super().__init__(connection)
        self.got: list[tuple[str, Any]] = []
        self.over = asyncio.Event()
        self.open(lambda word, about: self.got.append((word, about)), self.over.set)

    async def has_got(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(self.got) < count:
                await asyncio.sleep(0.001)


def with_both(test: Callable[[End, End], Awaitable[None]]) -> Callable[[], None]:
    async def run() -> None:
        here, there = map(End, Pipe())
        try:
            await test(here, there)
        finally:
            here.close()
            there.close()

    def in_a_loop() -> None:
        asyncio.run(run())

    return in_a_loop


async def messages(here: End, there: End) -> None:
    here.send("whole")
    here.send("load", {"name": "tiny", "version": "1"})
    await there.has_got(2)
    assert there.got == [("whole", None), ("load", {"name": "tiny", "version": "1"})]


async def replies(here: End, there: End) -> None:
    """In the order asked, also past one who does not wait any more."""
    asked = [asyncio.create_task(here.ask("load", number)) for number in range(3)]
    await there.has_got(3)
    asked[1].cancel()
    for failure in ("first", "second", None):
        there.reply(failure)
    assert await asked[0] == "first"
    assert await asked[2] is None
    assert asked[1].cancelled()


async def the_other_end_is_gone(here: End, there: End) -> None:
    asked = asyncio.create_task(here.ask("load", 1))
    await there.has_got(1)
    here.send("late")
    there.close()
    with pytest.raises(ConnectionError):
        await asked
    await asyncio.wait_for(here.over.wait(), 20)
    here.send("nobody hears it")
    with pytest.raises(ConnectionError):
        await here.ask("load", 2)
    # What was sent before the end is not lost.
    assert there.got == [("load", 1), ("late", None)]


test_messages_arrive_in_order = with_both(messages)
test_replies_come_to_those_who_asked = with_both(replies)
test_an_end_that_is_gone_is_noticed = with_both(the_other_end_is_gone)
