"""What pydantic finds wrong, told in one line."""

from __future__ import annotations

from collections.abc import Sequence

_LONGEST_FIELD_NAME = 120


def first_mistake(errors: Sequence[object]) -> str:
    """The first of pydantic's errors as one line that names the field."""
    error = errors[0]
    assert isinstance(error, dict)
    field = ".".join(map(str, error["loc"]))[:_LONGEST_FIELD_NAME]
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{field}: {message}" if field else message
