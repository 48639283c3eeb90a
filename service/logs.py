"""The log on stderr, one event after the other: lines of JSON for a program, text for a person at a terminal.

What a line says besides its message (of a request: id, route, status, milliseconds per stage) travels in the
record's `fields`. No line shows an image, a number that was read, or an API key.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

_to_json = json.JSONEncoder(default=str).encode

LogFormat = Literal["auto", "json", "text"]


def configure(level: str, log_format: LogFormat, stream: TextIO | None = None) -> None:
    """Sends what this process logs to `stream`, by default stderr; "auto" is text on a terminal and JSON elsewhere."""
    handler = logging.StreamHandler(stream)
    as_text = log_format == "text" or (log_format == "auto" and handler.stream.isatty())
    handler.setFormatter(TextFormatter() if as_text else JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    # What no line shows, it would find out for each of them (the manual's `Optimization`).
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    # What is wrong with a caller's image is the caller's answer, and no error of the service.
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    # A line for each request that this program sends would hide all others.
    logging.getLogger("httpx").setLevel(logging.WARNING)


class JsonFormatter(logging.Formatter):
    """One object per line, in ASCII: a line break of a traceback, or of a message, is written as \\n."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return _to_json(entry)


class TextFormatter(logging.Formatter):
    """Time, level and message, then the fields as name=value."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-8s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        fields = [f"{name}={value}" for name, value in _fields(record).items() if value is not None]
        return " ".join([super().formatMessage(record), *fields])


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return getattr(record, "fields", {})
