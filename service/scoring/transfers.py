"""Transfers that may fail: tried again, checked for their length, and reported when they fail for good."""

from __future__ import annotations

import io
import logging
import os
import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

from pyarrow import fs

logger = logging.getLogger(__name__)

ATTEMPTS = 6
FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 8.0

# Said by a storage that answered, and will say so again. Everything else may be the network.
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_FINAL_TEXT = re.compile(r"ACCESS_DENIED|NO_SUCH_KEY|NO_SUCH_BUCKET|HTTP status 4(?!08|29)\d\d")

Result = TypeVar("Result")


class StorageError(Exception):
    """A storage that does not answer as it should, after all attempts; one line that names the file."""


def retried(action: Callable[[], Result], name: object) -> Result:
    """What the action gives.

    An OSError that may pass is met with another attempt, after a growing pause with jitter; the last one becomes a
    StorageError with the `name` of what is transferred. One that is final is raised.
    """
    for attempt in range(ATTEMPTS):
        try:
            return action()
        except OSError as error:
            if isinstance(error, _FINAL) or _FINAL_TEXT.search(str(error)):
                raise
            reason = " ".join(str(error).split())
        if attempt + 1 < ATTEMPTS:
            pause = min(_LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt) * random.uniform(0.5, 1.0)
            logger.warning("%s: %s; trying again in %.1f s", name, reason, pause)
            time.sleep(pause)
    raise StorageError(f"{name}: {reason} (after {ATTEMPTS} attempts)")


def read_whole(filesystem: fs.FileSystem, path: str) -> bytes:
    """All of a file, or an OSError."""
    with filesystem.open_input_file(path) as file:
        return _exactly(file.size(), file.read())


def move(filesystem: fs.FileSystem, source: str, target: str, size: int) -> None:
    """Renames a file of so many bytes, also where an earlier attempt did so and only its answer was lost."""
    if filesystem.get_file_info(source).type != fs.FileType.NotFound:
        filesystem.move(source, target)
    moved = filesystem.get_file_info(target)
    if moved.type == fs.FileType.NotFound or moved.size != size:
        raise OSError(f"{target} is not there after it was renamed")


class RangedFile(io.RawIOBase):
    """A remote file read in ranges, each tried again by itself: a tar of many gigabytes does not start anew."""

    def __init__(self, filesystem: fs.FileSystem, path: str, name: object) -> None:
        super().__init__()
        self._name = name
        self._file = retried(lambda: filesystem.open_input_file(path), name)
        self._size: int = retried(self._file.size, name)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = max(0, min(len(buffer), self._size - self._at))
        if count:
            buffer[:count] = retried(lambda: _exactly(count, self._file.read_at(count, self._at)), self._name)
        self._at += count
        return count

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _exactly(count: int, data: bytes) -> bytes:
    if len(data) != count:
        raise OSError(f"{len(data)} of {count} bytes came")
    return data
