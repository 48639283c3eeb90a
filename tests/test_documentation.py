"""The tables of the documentation are complete, and say what the code does."""

from pathlib import Path
from typing import Any

from documentation import ROOT, rows, section

from service.errors import ServiceError
from service.protocol import StrictHttp
from service.settings import DEFAULT_MODEL, Settings

API = (ROOT / "docs/api.md").read_text()
OPERATIONS = (ROOT / "docs/operations.md").read_text()
# Answers that are not the service's own exceptions: the framework's, that of `service.protocol`, and the balancer's.
_OTHERS = {
    ("403", "forbidden"),
    ("404", "not_found"),
    ("405", "method_not_allowed"),
    ("502", "bad_gateway"),
}


def as_told(default: Any) -> str:
    """A default as the tables write it."""
    match default:
        case None | ():
            return "none"
        case bool():
            return f"`{str(default).lower()}`"
        case Path():
            assert default == DEFAULT_MODEL
            return "the shipped reader"
        case float():
            return f"`{default:g}`"
        case _:
            return f"`{default}`"


def test_the_table_of_settings_is_whole() -> None:
    told = {cells[0].strip("`"): cells[1] for cells in rows(section(OPERATIONS, "Settings")) if cells[0][0] == "`"}
    assert told == {name: as_told(field.default) for name, field in Settings.model_fields.items()}


def test_the_limits_have_the_defaults_of_the_settings() -> None:
    told = {cells[0].strip("`"): cells[1] for cells in rows(section(API, "Limits")) if cells[0][0] == "`"}
    assert told == {name: as_told(Settings.model_fields[name].default).strip("`") for name in told}


def errors(cls: type[ServiceError] = ServiceError) -> set[tuple[str, str]]:
    """(status, code) of everything that the service raises."""
    return {each for sub in cls.__subclasses__() for each in errors(sub)} or {(str(cls.status), cls.code)}


def test_the_table_of_errors_is_whole() -> None:
    told = {(cells[0], cells[1].strip("`")) for cells in rows(section(API, "Errors")) if cells[0].isdecimal()}
    assert told == errors() | _OTHERS


def test_the_bounds_of_a_head_are_told() -> None:
    told = {cells[0]: cells[1] for cells in rows(section(OPERATIONS, "Security"))}
    assert told["head of a request, its size"].startswith(f"{StrictHttp.max_head_bytes // 1024} KiB;")
    assert told["time until a head is whole"] == f"{StrictHttp.head_timeout_s:g} s"
