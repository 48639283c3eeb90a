"""As much of PromQL as it takes to say which metrics, labels and label values a query names."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_TOKEN = re.compile(
    r"""\s*(?:(?P<string>"(?:[^"\\]|\\.)*")
    |(?P<range>\[[^\]]+\])
    |(?P<duration>\d+[smhdwy]\b)
    |(?P<number>\d+(?:\.\d+)?(?:e\d+)?\b)
    |(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)
    |(?P<operator>=~|!~|!=|==|<=|>=|[-+*/%^<>=(){},]))""",
    re.VERBOSE,
)
_FUNCTIONS = {"rate", "increase", "changes", "absent", "histogram_quantile", "sum", "count", "max", "min", "avg"}
_GROUPING = {"by", "without", "on", "ignoring", "group_left", "group_right"}
_KEYWORDS = {"offset", "and", "or", "unless", "bool"}


@dataclass
class Query:
    """`selectors`: (metric, {label: (operator, value)}); `grouping`: the labels of by, without, on, ignoring."""

    selectors: list[tuple[str, dict[str, tuple[str, str]]]] = field(default_factory=list)
    grouping: set[str] = field(default_factory=set)


def parse(text: str) -> Query:
    """Raises ValueError for what it does not know, and for brackets that do not match."""
    tokens = _tokens(text)
    query, position, depth = Query(), 0, 0

    def here(offset: int = 0) -> str:
        return tokens[position + offset][1] if position + offset < len(tokens) else ""

    def names() -> list[str]:
        nonlocal position
        found = []
        position += 1
        while here() != ")":
            if here() != ",":
                found.append(here())
            position += 1
        return found

    while position < len(tokens):
        kind, token = tokens[position]
        depth += (token == "(") - (token == ")")
        position += 1
        if kind != "name" or token in _KEYWORDS:
            continue
        if token in _GROUPING:
            if here() == "(":
                query.grouping.update(names())
                position += 1
        elif token in _FUNCTIONS:
            if here() != "(" and here() not in _GROUPING:
                raise ValueError(f"{token} without its arguments: {text}")
        else:
            matchers: dict[str, tuple[str, str]] = {}
            if here() == "{":
                while here() != "}":
                    position += 1
                    matchers[here()] = here(1), here(2).strip('"')
                    position += 3
                position += 1
            query.selectors.append((token, matchers))
    if depth:
        raise ValueError(f"brackets do not match: {text}")
    return query


def _tokens(text: str) -> list[tuple[str, str]]:
    found, position = [], 0
    text = text.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if not match:
            raise ValueError(f"no PromQL at {text[position:][:40]!r}")
        found.append((str(match.lastgroup), match[str(match.lastgroup)]))
        position = match.end()
    return found
