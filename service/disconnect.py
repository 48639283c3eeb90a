"""Work for a caller who may leave before it is done."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

Result = TypeVar("Result")


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is cancelled when the caller closes the connection; raises ClientDisconnect then.

    The request's body must have been read to its end: what comes after it is the end of the connection.
    """
    caller = asyncio.current_task()
    assert caller is not None
    is_done = has_left = False

    def leave(leaving: asyncio.Task[None]) -> None:
        nonlocal has_left
        # It may have been called for when `work` ended: a cancellation then would hit what comes after it.
        if not (is_done or leaving.cancelled()):
            has_left = True
            caller.cancel()

    leaving = asyncio.create_task(_until_left(request))
    leaving.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if has_left and caller.uncancel() == 0:
            raise ClientDisconnect from None
        raise
    finally:
        is_done = True
        leaving.cancel()


async def _until_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
