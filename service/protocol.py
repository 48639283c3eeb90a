"""HTTP/1.1 as uvicorn speaks it, with what uvicorn leaves to a proxy: bounds on all that is no body, answers that say
why something is no request, and one protocol only.

Without the bounds a caller can send header lines until the memory is full, or hold a connection open for good by
sending a byte now and then. The body the app itself bounds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, cast

import httptools
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.errors import BadRequest, HeadTooLarge, ServiceError, Unimplemented
from service.problems import MEDIA_TYPE, NO_ROUTE, problem_of, request_id_of

logger = logging.getLogger(__name__)

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class StrictHttp(HttpToolsProtocol):
    """Closes a connection whose request line and headers are not whole within `head_timeout_s` seconds, counted from
    the connection or the head's first byte, or within `max_head_bytes` bytes (give or take what is read at once, where
    they are not whole), and so for the trailers of a chunked body. What is no request is answered with a problem, as
    the connection's last. What comes between an answer and the next head, the rest of a body that was answered early
    or empty lines, is dropped, and keeps the connection no longer than uvicorn's `timeout_keep_alive`."""

    max_head_bytes = 2**16
    head_timeout_s = 20.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = False
        self._head_bytes: int | None = None  # None: neither a head nor trailers are being read
        self._reading = 0  # the bytes that were read at once
        self._timer: asyncio.TimerHandle | None = None
        self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head()
        super().connection_lost(exc)
        if self.cycle is not None:  # leaves no circle for the garbage collector
            self.cycle.transport = self.transport

    def shutdown(self) -> None:
        # A head that has begun belongs to a request that is answered, as the connection's last.
        if not self._in_head:
            super().shutdown()

    def make_last(self) -> None:
        """Makes the answer that is awaited, if one is, the connection's last."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._reading = len(data)
        try:
            self._feed(data)
            if self._head_bytes is not None:
                self._head_bytes += len(data)
                self._check_size(self._head_bytes)
        except (httptools.HttpParserError, ServiceError) as error:
            self._refuse(_reason(error))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._unset_keepalive_if_required()
        self._in_head = True
        self._await_head()

    def on_headers_complete(self) -> None:
        if self.transport.is_closing():  # since the body before this head
            return
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise Unimplemented("CONNECT: this is no proxy")
            return  # `_feed` has the head read once more
        self._end_head()
        self._check_head()
        super().on_headers_complete()
        is_whole = self.parser.get_method() != b"HEAD"
        self.cycle.transport = cast(asyncio.Transport, _Answer(self.transport, self._end, is_whole))
        self.headers = []  # uvicorn would add the trailers to the headers that the app sees

    def on_chunk_header(self) -> None:
        self._begin_count()  # of the trailers, if no body follows

    def on_body(self, body: bytes) -> None:
        self._head_bytes = None
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._head_bytes = None
        super().on_message_complete()
        self.cycle.more_body = False  # uvicorn says so only while there is no answer
        if not self.cycle.response_complete:
            return
        if self.cycle.keep_alive:
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.transport.close)
        else:
            self.transport.close()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_head:  # and so no idle connection
            self._unset_keepalive_if_required()

    def _feed(self, data: bytes) -> None:
        """Has the parser read `data`.

        The answer to a request for another protocol is one in this protocol (RFC 9110, section 7.8). But the parser
        leaves the body of such a request to the other protocol, or takes it for the next request: so a new one is given
        the head without its `Upgrade`, and then the rest.
        """
        while True:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                (end,) = upgrade.args
            fields = b"".join(b"%s: %s\r\n" % field for field in self.headers if field[0] != b"upgrade")
            version = self.parser.get_http_version().encode()
            head = b"%s %s HTTP/%s\r\n%s\r\n" % (self.parser.get_method(), self.url, version, fields)
            self.parser = httptools.HttpRequestParser(self)
            data = head + data[end:]

    def _check_head(self) -> None:
        """What the parser lets pass. Raises HeadTooLarge, Unimplemented or BadRequest."""
        size, hosts = len(self.url), 0
        for name, value in self.headers:
            size += len(name) + len(value)
            if name == b"host":
                hosts += 1
            elif name == b"transfer-encoding" and value.strip().lower() != b"chunked":
                coding = value.decode("latin-1")[:40]
                raise Unimplemented(f"the only transfer coding that is served is chunked, not {coding!r}")
        self._check_size(size)
        if hosts > 1 or (not hosts and self.parser.get_http_version() == "1.1"):
            raise BadRequest(f"a request has one Host header; this one has {hosts}")

    def _check_size(self, head_bytes: int) -> None:
        if head_bytes > self.max_head_bytes:
            raise HeadTooLarge(f"the head, or what follows the body, has more than {self.max_head_bytes} bytes")

    def _refuse(self, error: ServiceError) -> None:
        """Answers with the error; or, where a request before is still being answered, makes that answer the
        connection's last."""
        if self.transport.is_closing():
            return
        self._refused = True
        self._end_head()
        cycle, is_answered = self.cycle, False
        if cycle is not None and cycle.more_body and not self.pipeline:  # it is this request's body that is wrong
            is_answered = cycle.response_started and cast(_Answer, cycle.transport).has_begun
            self.scope["state"]["refused"] = error
            cycle.disconnected = True
            cycle.message_event.set()
        elif cycle is not None and not cycle.response_complete:
            cycle.keep_alive = False
            return
        else:  # of requests the app counts its own
            self.app_state["metrics"].observe_request(NO_ROUTE, error.status, error.code)
        if not is_answered:
            self.transport.write(self._answer(error))
        self._linger()

    def _end(self) -> None:
        """After the connection's last answer."""
        if (self.cycle.more_body or self._refused) and not self.pipeline:
            self._linger()
        else:
            self.transport.close()

    def _linger(self) -> None:
        """A connection closed with bytes unread is reset, and a reset discards the answer at the caller (RFC 9112,
        section 9.6): so only this side is closed, and for a while what the caller is still sending is read."""
        self.transport.write_eof()
        self.flow.resume_reading()
        self._close_in(self.timeout_keep_alive)

    def _answer(self, error: ServiceError) -> bytes:
        request_id = request_id_of(cast(Scope, self.scope) or {"headers": []})  # none: there were but empty lines
        logger.info("request %s is refused: %s", request_id, error.detail)
        body = problem_of(error, request_id).model_dump_json().encode()
        fields = {
            **dict(self.server_state.default_headers),
            b"content-type": MEDIA_TYPE.encode(),
            b"content-length": str(len(body)).encode(),
            b"x-request-id": request_id.encode(),
            b"connection": b"close",
        }
        return b"".join(
            [STATUS_LINE[error.status], *(b"%s: %s\r\n" % field for field in fields.items()), b"\r\n", body]
        )

    def _await_head(self) -> None:
        self._begin_count()
        self._close_in(self.head_timeout_s)

    def _begin_count(self) -> None:
        if self._head_bytes is None:
            self._head_bytes = -self._reading  # from the next read on: most of this one may be the body before

    def _end_head(self) -> None:
        self._in_head, self._head_bytes = False, None
        self._close_in(None)

    def _close_in(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.loop.call_later(seconds, self.transport.close)


class _Answer:
    """What an answer does with its connection, which it leaves with `end`. If it `is_whole`, with a body, its head is
    sent together with the first of that: two packets would cost both sides more than one."""

    def __init__(self, transport: asyncio.Transport, end: Callable[[], None], is_whole: bool) -> None:
        self._transport = transport
        self._end = end
        self._head = b""
        self.has_begun = not is_whole  # from then on nothing is held back
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        if self.has_begun or data == _CONTINUE:
            self._transport.write(data)
        elif self._head:
            self.has_begun = True
            self._transport.write(self._head + data)
        else:
            self._head = data

    def close(self) -> None:
        if self._head and not (self.has_begun or self.is_closing()):  # the app has failed between the two
            self.write(b"")
        self._end()


def _reason(error: httptools.HttpParserError | ServiceError) -> ServiceError:
    """Why there is no request: what the parser says, or the error in a method that it called, which is its context."""
    cause = error if isinstance(error, ServiceError) else error.__context__
    if isinstance(cause, ServiceError):
        return cause
    if cause is not None:  # uvicorn's, which wants a path
        return BadRequest("the target of the request is no path")
    return BadRequest(f"this is no HTTP/1.1 request: {error}")
