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
    """Of a model that cannot be served: whether the artifact is to blame or what it should run on."""
    return EXIT_PROVIDER if isinstance(error, ProviderError) else EXIT_MODEL
