"""The bytes of records that are not on this machine, read before they are scored, many at a time."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from service.scoring.records import Record
from service.scoring.storage import Place

# A file of an object store takes tens of milliseconds, whatever its size.
_REMOTE_READERS = 32


class ContentReader:
    """Reads the bytes of remote records, for any number of threads at once."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_REMOTE_READERS, "read")

    def read(self, records: Sequence[Record]) -> Sequence[Record]:
        """The records with the bytes, or with why there are none, in place of where these are; what is on this machine
        is left for the one who scores it. Raises StorageError."""
        if any(isinstance(record.content, Place) and not record.content.is_local for record in records):
            return list(self._threads.map(_with_content, records))
        return records

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)


def _with_content(record: Record) -> Record:
    return replace(record, content=record.read())
