"""API keys: which caller a key belongs to. No key is ever shown, only its name."""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path

from pydantic import SecretStr

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


class KeysError(Exception):
    """The keys cannot be used. The message is one line that says where the mistake is and shows no key."""


class Keys:
    """The keys of a setting and of a file with one per line; empty lines and lines that begin with # are passed over.

    A key is written `KEY` or `name:KEY`; the name is for logs, metrics and limits. Several keys may have one name,
    so that a caller can change from one to the next. A key without a name is called by its place, `key-2` or
    `line-7`, with `prefix` before it. Raises KeysError.
    """

    def __init__(self, given: Sequence[SecretStr], file: Path | None, prefix: str = "") -> None:
        self._given = given
        self._file = file
        self._prefix = prefix
        self._names = self._read()

    def __bool__(self) -> bool:
        return bool(self._names)

    def reload(self) -> int:
        """Reads the file again and gives the number of keys; raises KeysError, and then the old ones remain."""
        self._names = self._read()
        return len(self._names)

    def name_of(self, offers: Iterable[bytes]) -> str | None:
        """The name of a key that is among the offers. Every pair is compared, in constant time each, so how long
        it takes says nothing about the keys; as digests, so not even their length."""
        names = [
            name
            for offer in map(_digest, offers)
            for digest, name in self._names.items()
            if hmac.compare_digest(digest, offer)
        ]
        return names[0] if names else None

    def _read(self) -> dict[bytes, str]:
        names: dict[bytes, str] = {}
        for place, default, text in (*self._from_setting(), *self._from_file()):
            name, colon, key = text.partition(":")
            if not colon:
                name, key = default, text
            if not _NAME.fullmatch(name) or not key.strip():
                raise KeysError(f"{place}: neither KEY nor name:KEY, with a name of letters, digits, `.`, `_` and `-`")
            if names.setdefault(_digest(key.strip().encode()), name) != name:
                raise KeysError(f"{place}: the key of {name} is also that of another name")
        return names

    def _from_setting(self) -> Iterator[tuple[str, str, str]]:
        """(place, name by default, text) of each key."""
        for number, key in enumerate(self._given, 1):
            yield f"{self._prefix}key {number} of the setting", f"{self._prefix}key-{number}", key.get_secret_value()

    def _from_file(self) -> Iterator[tuple[str, str, str]]:
        if self._file is None:
            return
        try:
            lines = self._file.read_text(encoding="utf-8-sig").splitlines()
        except OSError as error:
            raise KeysError(f"{self._file}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise KeysError(f"{self._file}: not a text file in UTF-8") from error
        keys = [(number, text) for number, line in enumerate(lines, 1) if (text := line.strip()) and text[0] != "#"]
        if not keys:  # most likely a mistake, and one that would let everybody in
            raise KeysError(f"{self._file}: there is no key in it")
        for number, text in keys:
            yield f"{self._file}, line {number}", f"{self._prefix}line-{number}", text


def _digest(key: bytes) -> bytes:
    return sha256(key).digest()
