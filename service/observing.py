"""Telling those who count what happens in the queues, who must not be able to stop them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal, ParamSpec

logger = logging.getLogger(__name__)

Parameters = ParamSpec("Parameters")

Dropped = Literal["cancelled", "expired"]
"""Why work was dropped before it was begun: its caller left, or its deadline passed."""

Searched = Literal["found", "nothing", "given_up"]
"""What came of a search."""


def why_given_up(deadline: float | None, now: float) -> Dropped:
    """Of work that was cancelled by its caller, who may have waited until the deadline."""
    return "expired" if deadline is not None and deadline <= now else "cancelled"


def unheard(_event: object) -> None:
    """An observer that does nothing."""


def tell(observer: Callable[Parameters, None], *args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
    """Calls the observer; an exception of its own is logged and goes no further."""
    try:
        observer(*args, **kwargs)
    except Exception:
        logger.exception("an observer failed")
