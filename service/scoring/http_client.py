"""A service asked by many threads: as many requests at once as it bears, each one until it is answered.

How many may be under way follows the answers (additive increase, multiplicative decrease: D. Chiu and R. Jain 1989, as
in TCP): one more whenever all of them were answered, half as many when the service refuses or an answer does not come.
What may pass is sent again after a pause with full jitter (M. Brooker, "Exponential backoff and jitter", 2015), never
before the service said. A request that is sent twice does no harm: predicting changes nothing.
"""

from __future__ import annotations

import logging
import random
import threading
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from time import monotonic
from typing import Any

import httpx

from service.scoring.run import EngineError

logger = logging.getLogger(__name__)

ATTEMPTS = 10
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
# Longer than a service takes to say that it will not answer in time (request_timeout_ms).
_TIMEOUT = httpx.Timeout(60.0, connect=10.0)
_REQUESTS_AT_FIRST = 4

_TOO_LARGE, _TOO_MANY = 413, 429
_MAY_PASS = frozenset((408, _TOO_MANY, 500, 502, 503, 504))


class RequestTooLargeError(Exception):
    """The service takes no request of this size; one line that says why."""


class Window:
    """How many requests may be under way, at most `most`; thread-safe."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._size = float(min(_REQUESTS_AT_FIRST, most))
        self._inside = 0
        self._cuts = 0
        self._changed = threading.Condition()

    @property
    def size(self) -> int:
        return int(self._size)

    def enter(self) -> int:
        """Waits for a place; gives a ticket to leave with."""
        with self._changed:
            self._changed.wait_for(lambda: self._inside < self.size)
            self._inside += 1
            return self._cuts

    def leave(self, ticket: int, *, answered: bool) -> None:
        with self._changed:
            full = self._inside >= self.size
            self._inside -= 1
            if not answered:
                # What else was under way when it was cut tells nothing new.
                if ticket == self._cuts:
                    self._size = max(1.0, self._size / 2)
                    self._cuts += 1
            elif full:
                self._size = min(self.most, self._size + 1 / self._size)
            self._changed.notify_all()


@dataclass(frozen=True, slots=True)
class _Failure:
    """What may pass: why, and after how many seconds at the earliest."""

    reason: str
    wait_s: float = 0.0


class HttpClient:
    """Posts to one path of a service. At most `most` requests are under way."""

    def __init__(self, url: httpx.URL, parameters: dict[str, str], api_key: str | None, most: int) -> None:
        self.url = url
        self.window = Window(most)
        self._http = httpx.Client(
            params=parameters,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=_TIMEOUT,
            limits=httpx.Limits(max_connections=most, max_keepalive_connections=most),
        )
        self._given_up = threading.Event()
        self._not_before = 0.0

    def give_up(self) -> None:
        """Nothing is sent any more, and nobody waits to send it again."""
        self._given_up.set()

    def close(self) -> None:
        self._http.close()

    def post(self, **body: Any) -> bytes:
        """The content of the answer 200 to a body (`files` or `json`, as httpx takes them).

        Raises RequestTooLargeError, and EngineError for an answer that trying again would not change, or after all
        attempts.
        """
        for attempt in range(1, ATTEMPTS + 1):
            outcome = self._once(body)
            if isinstance(outcome, bytes):
                return outcome
            reason = f"{self.url}: {outcome.reason}"
            if attempt < ATTEMPTS:
                pause = max(outcome.wait_s, self._not_before - monotonic())
                pause += random.uniform(0.0, min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (attempt - 1)))
                logger.info("%s; trying again in %.1f s", reason, pause)
                if self._given_up.wait(pause):
                    break
        raise EngineError(f"{reason} (after {attempt} attempts)")

    def _once(self, body: dict[str, Any]) -> bytes | _Failure:
        # A caller's share that is used up is so for all of its requests.
        self._given_up.wait(max(0.0, self._not_before - monotonic()))
        ticket = self.window.enter()
        answered = False
        try:
            if self._given_up.is_set():
                raise EngineError("given up")
            response = self._http.post(self.url, **body)
            answered = response.status_code not in _MAY_PASS
        except httpx.TransportError as error:
            return _Failure(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
        finally:
            self.window.leave(ticket, answered=answered)
        if response.status_code == httpx.codes.OK:
            return response.content
        reason = _reason(response)
        if response.status_code == _TOO_LARGE:
            raise RequestTooLargeError(reason)
        if answered:
            raise EngineError(f"{self.url}: {reason}")
        failure = _Failure(reason, _retry_after(response))
        if response.status_code == _TOO_MANY:
            self._not_before = monotonic() + failure.wait_s
        return failure


def _reason(response: httpx.Response) -> str:
    """A problem (RFC 9457) in one line, or the status of what is none."""
    with suppress(ValueError, TypeError, KeyError):
        problem = response.json()
        return f"{response.status_code} {problem['code']}: {problem['detail']}"
    return f"{response.status_code} {response.reason_phrase}"


def _retry_after(response: httpx.Response) -> float:
    """Seconds, of a header that has them or a date; 0 where there is none that makes sense."""
    text = response.headers.get("Retry-After", "")
    if text.isdecimal():
        return float(text)
    with suppress(ValueError, TypeError):
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    return 0.0
