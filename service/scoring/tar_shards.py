"""Tar shards as WebDataset writes them: members whose names are the same up to their first dot belong together."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from service.errors import BadRequest
from service.scoring.inputs import File, kind_of, suffix_of
from service.scoring.records import Columns, Position, Record, as_text

# (where the group begins and ends in the tar, its images and JSON by name)
_Group = tuple[int, int, list[tuple[str, bytes]]]


class _DamagedError(Exception):
    pass


def of_tar(file: File, source: BinaryIO, columns: Columns, start: Position) -> Iterator[Record]:
    """The images of a shard; a `.json` of their group has the fields of a manifest's row.

    A shard that is damaged or cut short gives, after what can be read, one record that says so.
    """
    source.seek(start.offset)
    try:
        for begin, end, members in _groups(source):
            skipped = start.inner if begin == start.offset else 0
            yield from _records(file, begin, end, members, skipped, columns)
    except (_DamagedError, tarfile.TarError) as error:
        name = f"{file.place}#{source.tell()}"
        content = BadRequest(f"the tar is damaged or cut short, and nothing after this is read: {error}")
        yield Record(name, name, content, Position(file.index + 1), file.begins + file.size)


def _records(
    file: File, begin: int, end: int, members: list[tuple[str, bytes]], skipped: int, columns: Columns
) -> Iterator[Record]:
    fields: Mapping[str, Any] = {}
    refused: BadRequest | None = None
    for name, data in members:
        if suffix_of(name) == "json":
            try:
                fields = as_text(json.loads(data))
            except (ValueError, AttributeError):
                refused = BadRequest(f"{name} is not a JSON object")
    images = [(name, data) for name, data in members if suffix_of(name) != "json"]
    for done, (name, data) in enumerate(images[skipped:], start=skipped + 1):
        after = Position(file.index, end) if done == len(images) else Position(file.index, begin, done)
        consumed = file.begins + after.offset
        yield Record.described(f"{file.place}/{name}", refused or data, fields, columns, after, consumed)


def _groups(source: BinaryIO) -> Iterator[_Group]:
    """The groups from where the file stands; raises TarError and _DamagedError after the last that is whole."""
    tar = tarfile.TarFile(fileobj=source)
    key, begin = "", 0
    members: list[tuple[str, bytes]] = []
    problem: Exception | None = None
    while problem is None:
        try:
            member = tar.next()
        except tarfile.TarError as error:
            problem = error
            break
        if member is None:
            break
        tar.members = []  # type: ignore[attr-defined]  # it would keep them all
        folder, slash, name = member.name.rpartition("/")
        stem = folder + slash + name.partition(".")[0]
        if members and stem != key:
            yield begin, member.offset, members
            members = []
        if not member.isfile() or not (kind_of(name) == "image" or suffix_of(name) == "json"):
            continue
        if not members:
            key, begin = stem, member.offset
        source.seek(member.offset_data)
        data = source.read(member.size)
        if len(data) == member.size:
            members.append((member.name, data))
        else:
            problem = _DamagedError(f"{member.name} has {len(data)} of its {member.size} bytes")
    if members:
        yield begin, tar.offset, members
    if problem is not None:
        raise problem
    # tarfile takes anything that is no header for the end.
    source.seek(tar.offset)
    mark = source.read(tarfile.BLOCKSIZE)
    if not mark:
        raise _DamagedError("it has no end mark")
    if mark.strip(b"\0"):
        raise _DamagedError("there is something else where a header should be")
