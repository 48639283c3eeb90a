"""Files wherever they are: paths of this machine, and URLs of filesystems (s3://, gs://, abfs://, ... by pyarrow, any
other by fsspec).

What is read is whole, or an exception; what is written is there whole, or not at all. A transfer that fails is tried
again (`transfers`); when it fails for good, StorageError is raised. A file that is not there, or that may not be read,
is an OSError at once: more attempts would not help.
"""

from __future__ import annotations

import io
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from stat import S_ISDIR
from typing import BinaryIO, NamedTuple, cast
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from service.scoring.transfers import RangedFile, move, read_whole, retried

# Of a ranged read: large enough that the round trip hardly counts, small enough that a few of them fit in memory.
_BLOCK_BYTES = 4 * 2**20
_SPOOL_BYTES = 64 * 2**20
TEMPORARY_PREFIX = "_tmp-"


class Entry(NamedTuple):
    """What a folder holds: `size` in bytes, `modified` in nanoseconds since 1970 (0 where it is not known)."""

    place: Place
    is_folder: bool
    size: int
    modified: int


class Place(NamedTuple):
    """A file or a folder.

    Of this machine: `base` is "" and `key` an absolute path. Elsewhere: `base` is the URL without its path (credentials
    and options such as `?endpoint_override=` included), `key` the path in it, not escaped.
    """

    base: str
    key: str

    @classmethod
    def parse(cls, text: str) -> Place:
        """A path or a URL as a user writes it; raises ValueError for a URL that no filesystem knows."""
        if "://" not in text:
            return cls("", os.path.abspath(text))  # noqa: PTH100 - it resolves no links, and is fast
        url = urlsplit(text, allow_fragments=False)
        if url.scheme == "file":
            return cls("", os.path.normpath(unquote(url.path)))
        query = f"?{url.query}" if url.query else ""
        place = cls(f"{url.scheme}://{url.netloc}/{query}", url.path.strip("/"))
        _filesystem(place.base)
        return place

    def beside(self, text: str) -> Place:
        """What a manifest at this place means by a path: a URL, an absolute path of this machine, or a path that
        begins in the manifest's folder. Nothing in it is escaped: `?` and `#` are part of a name."""
        if "://" in text:
            scheme, _, rest = text.partition("://")
            host, _, key = rest.partition("/")
            own = urlsplit(self.base)
            if (scheme, host) == (own.scheme, own.netloc.rpartition("@")[2]):
                return Place(self.base, key)
            return Place.parse(text) if scheme == "file" else Place(f"{scheme}://{host}/", key)
        if self.base and not text.startswith("/"):
            folder = self.key.rpartition("/")[0]
            return Place(self.base, os.path.normpath(f"{folder}/{text}").strip("/"))
        return Place("", os.path.normpath(os.path.join(os.path.dirname(self.key), text)))  # noqa: PTH118, PTH120

    def __truediv__(self, name: str) -> Place:
        return Place(self.base, f"{self.key.rstrip('/')}/{name}" if self.key else name)

    def __str__(self) -> str:
        """As it is shown and stored: a URL without credentials and options."""
        if not self.base:  # the name of a local file may be no text at all
            return self.key.encode(errors="backslashreplace").decode()
        url = urlsplit(self.base)
        return f"{url.scheme}://{url.netloc.rpartition('@')[2]}/{self.key}"

    @property
    def is_local(self) -> bool:
        return not self.base

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]

    def entry(self) -> Entry | None:
        """What is there; None where there is nothing."""
        if self.is_local:
            try:
                stat = Path(self.key).stat()
            except (FileNotFoundError, NotADirectoryError):
                return None
            return Entry(self, S_ISDIR(stat.st_mode), stat.st_size, stat.st_mtime_ns)
        filesystem, path = self._where()
        info = retried(lambda: filesystem.get_file_info(path), self)
        return None if info.type == fs.FileType.NotFound else _entry(self, info)

    def entries(self) -> Iterator[Entry]:
        """What the folder holds, by name; nothing where it is not there.

        The names of one folder are in memory at a time. Links to folders of this machine are not followed: they may
        lead in a circle.
        """
        if self.is_local:
            try:
                with os.scandir(self.key) as items:
                    names = sorted((item.name, item.is_dir(follow_symlinks=False)) for item in items)
            except FileNotFoundError:
                return
            for name, is_folder in names:
                place = self / name
                try:
                    stat = Path(place.key).stat()
                    yield Entry(place, is_folder, stat.st_size, stat.st_mtime_ns)
                except OSError:  # gone, or a broken link: whoever reads it will say so
                    yield Entry(place, is_folder, 0, 0)
            return
        filesystem, path = self._where()
        selector = fs.FileSelector(path, allow_not_found=True)
        found = retried(lambda: filesystem.get_file_info(selector), self)
        for info in sorted(found, key=lambda info: info.path):
            yield _entry(self / info.base_name, info)

    def read(self) -> bytes:
        """All of a file. Raises OSError, StorageError."""
        if self.is_local:
            with open(self.key, "rb", buffering=0) as file:  # noqa: PTH123 - half the time of a Path, of small files
                return file.read()
        filesystem, path = self._where()
        return retried(lambda: read_whole(filesystem, path), self)

    def open(self) -> BinaryIO:
        """A file to be read from any position. Raises OSError, StorageError, now and at each read."""
        if self.is_local:
            return Path(self.key).open("rb")
        return io.BufferedReader(RangedFile(*self._where(), self), _BLOCK_BYTES)

    @contextmanager
    def replacing(self) -> Iterator[BinaryIO]:
        """A file to write to that takes this place, whole, when the block ends without an exception.

        Written under a temporary name and renamed, also in an object store (there: copied and deleted by the server),
        since a stream of pyarrow's that fails is completed as it is, not aborted. Raises OSError, StorageError.
        """
        folder = Place(self.base, self.key.rpartition("/")[0])
        temporary = folder / f"{TEMPORARY_PREFIX}{secrets.token_hex(4)}-{self.name}"
        if self.is_local:
            Path(folder.key).mkdir(parents=True, exist_ok=True)
            try:
                with Path(temporary.key).open("wb") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                Path(temporary.key).replace(self.key)
            except BaseException:
                Path(temporary.key).unlink(missing_ok=True)
                raise
            return
        with tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES) as spooled:
            spool = cast(BinaryIO, spooled)  # it is one, but typeshed does not say so
            yield spool
            size = spool.tell()
            retried(lambda: temporary._upload(spool, size), self)
            filesystem, path = temporary._where()
            target = self._where()[1]
            retried(lambda: move(filesystem, path, target, size), self)

    def write(self, data: bytes) -> None:
        """A small file, whole or not at all."""
        with self.replacing() as file:
            file.write(data)

    def delete(self) -> None:
        """Removes a file; it may be gone already."""
        if self.is_local:
            Path(self.key).unlink(missing_ok=True)
            return
        filesystem, path = self._where()
        try:
            retried(lambda: filesystem.delete_file(path), self)
        except FileNotFoundError:
            return

    def _where(self) -> tuple[fs.FileSystem, str]:
        """The filesystem and the path that it knows this place by."""
        filesystem, root = _filesystem(self.base)
        return filesystem, "/".join(filter(None, (root, self.key)))

    def _upload(self, spool: BinaryIO, size: int) -> None:
        filesystem, path = self._where()
        spool.seek(0)
        with filesystem.open_output_stream(path) as out:
            while block := spool.read(_BLOCK_BYTES):
                out.write(block)
        written = filesystem.get_file_info(path).size
        if written != size:
            raise OSError(f"{written} of {size} bytes arrived")


@lru_cache
def _filesystem(base: str) -> tuple[fs.FileSystem, str]:
    """The filesystem of a base and the path of its root; ValueError for a scheme that nothing speaks."""
    try:
        # It may ask the store for its region.
        filesystem, root = retried(lambda: fs.FileSystem.from_uri(base), Place(base, ""))
    except pa.ArrowInvalid as error:
        if "nrecognized filesystem type" not in str(error):
            raise ValueError(str(error)) from error
        filesystem, root = _by_fsspec(base)
    return filesystem, root.rstrip("/")


def _by_fsspec(base: str) -> tuple[fs.FileSystem, str]:
    # Imported here: most jobs do without.
    import fsspec

    try:
        filesystem, root = fsspec.core.url_to_fs(base)
    except ImportError as error:  # fsspec names the package that is missing
        raise ValueError(str(error)) from error
    return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), root


def _entry(place: Place, info: fs.FileInfo) -> Entry:
    return Entry(place, info.type == fs.FileType.Directory, info.size or 0, info.mtime_ns or 0)
