"""HTTP/1.1 as uvicorn speaks it, with bounds on the head of a request, which uvicorn leaves to a proxy.

Without them a caller can send header lines until the memory is full, or hold a connection open for good by sending
a byte now and then. What comes after the head, the body, the app itself bounds.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class BoundedHead(HttpToolsProtocol):
    """Closes a connection whose request line and headers are not whole within `head_timeout_s` seconds, counted from
    the connection or the head's first byte, or within `max_head_bytes` bytes, give or take what is read at once."""

    max_head_bytes = 2**16
    head_timeout_s = 20.0
    linger_s = 2.0  # for how long what still comes of a refused head is read, and dropped

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes: int | None = None  # None: no head is being read
        self._head_timer: asyncio.TimerHandle | None = None
        self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._begin_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begin_head()

    def on_headers_complete(self) -> None:
        self._end_head()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        # A head that has begun belongs to a request that is answered, as the connection's last.
        if not self._head_bytes:
            super().shutdown()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        super().data_received(data)
        if self._head_bytes is None or self.transport.is_closing():
            return
        self._head_bytes += len(data)
        if self._head_bytes > self.max_head_bytes:
            self._refuse()

    def _refuse(self) -> None:
        """Answers 431; or, where a request before is still being answered, makes that answer the connection's last.

        A connection closed with bytes unread is reset, and a reset discards the answer at the caller (RFC 9112, section
        9.6): so only this side is closed, and what the caller is still sending is read.
        """
        self._refused = True
        self._end_head()
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
            return
        self.transport.write(_TOO_LARGE)
        self.transport.write_eof()
        self._head_timer = self.loop.call_later(self.linger_s, self.transport.close)

    def _begin_head(self) -> None:
        self._end_head()
        self._head_bytes = 0
        self._head_timer = self.loop.call_later(self.head_timeout_s, self.transport.close)

    def _end_head(self) -> None:
        self._head_bytes = None
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
