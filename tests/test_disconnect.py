"""Work for a caller who may leave: what becomes of it, in whichever order things happen."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request

from service.disconnect import while_connected

NEVER = 10**6


async def turns(count: int) -> None:
    """So many turns of the event loop."""
    for _ in range(count):
        await asyncio.sleep(0)


def caller(leaves: Callable[[], Awaitable[object]]) -> Request:
    """A request whose body has been read, and whose caller leaves when `leaves` is done."""

    async def receive() -> dict[str, Any]:
        await leaves()
        return {"type": "http.disconnect"}

    return Request({"type": "http"}, receive)


def staying() -> Request:
    return caller(lambda: turns(NEVER))


async def work(count: int, ended: list[str]) -> str:
    try:
        await turns(count)
    except asyncio.CancelledError:
        ended.append("cancelled")
        raise
    ended.append("done")
    return "read"


def run(main: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(main, 10))


def test_a_caller_who_stays_gets_the_result_or_the_error() -> None:
    async def fail() -> None:
        raise ValueError("no digits")

    assert run(while_connected(staying(), work(3, []))) == "read"
    with pytest.raises(ValueError, match="no digits"):
        run(while_connected(staying(), fail()))


def test_nobody_waits_any_more_for_a_caller_to_leave_whose_work_is_done() -> None:
    async def main() -> None:
        await while_connected(staying(), work(3, []))
        await turns(2)
        assert len(asyncio.all_tasks()) == 2  # this one, and the one that waits for it

    run(main())


def test_work_for_a_caller_who_leaves_is_cancelled() -> None:
    ended: list[str] = []
    with pytest.raises(ClientDisconnect):
        run(while_connected(caller(lambda: turns(3)), work(NEVER, ended)))
    assert ended == ["cancelled"]


@pytest.mark.parametrize("lasts", range(8))
@pytest.mark.parametrize("stays", range(8))
def test_who_leaves_as_the_work_ends_cancels_nothing_else(lasts: int, stays: int) -> None:
    async def main() -> None:
        ended: list[str] = []
        try:
            outcome = await while_connected(caller(lambda: turns(stays)), work(lasts, ended))
        except ClientDisconnect:
            outcome = "left"
        # A cancellation that comes too late would be raised here.
        await turns(10)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        assert (outcome, ended) in (("read", ["done"]), ("left", ["done"]), ("left", ["cancelled"]))
        assert len(asyncio.all_tasks()) == 2  # this one, and the one that waits for it

    run(main())


def test_a_deadline_is_a_deadline_whether_or_not_the_caller_leaves_too() -> None:
    async def main(request: Request, seconds: float) -> None:
        async with asyncio.timeout(seconds):
            await while_connected(request, work(NEVER, []))

    with pytest.raises(TimeoutError):
        run(main(staying(), 0.01))

    async def both() -> None:
        gone = asyncio.Event()

        async def stand_still() -> str:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                gone.set()
                raise
            return "never"

        task = asyncio.current_task()
        assert task is not None

        async def leave() -> None:
            await asyncio.sleep(0.01)
            # As a deadline does, after it is known that the caller has left and before its task wakes up.
            asyncio.get_running_loop().call_soon(task.cancel)

        with pytest.raises(asyncio.CancelledError):
            await while_connected(caller(leave), stand_still())
        assert gone.is_set()
        assert task.uncancel() == 0

    run(both())
