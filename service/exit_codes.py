"""How `housenumber serve` ends, beside 0: told to stop, and everything answered."""

from __future__ import annotations

from service.engine import ProviderError

EXIT_USAGE = 2
EXIT_LISTEN = 3
EXIT_MODEL = 5
EXIT_PROVIDER = 6
EXIT_UNANSWERED = 7
EXIT_WORKERS = 8
EXIT_STALLED = 9


def code_of_failure(error: Exception) -> int:
    """Of a model that cannot be served: whether the artifact is to blame, what it should run on, or what hangs."""
    match error:
        case ProviderError():
            return EXIT_PROVIDER
        case TimeoutError():
            return EXIT_STALLED
        case _:
            return EXIT_MODEL
