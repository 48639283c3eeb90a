"""Files that are written whole or not at all, however the process ends."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, to be written in the block; when that ends well, it takes the place of `path`,
    otherwise it is removed.

    What a killed process leaves behind has the name of `temporary_path`.
    """
    temporary = temporary_path(path)
    try:
        yield temporary
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    temporary.replace(path)


def temporary_path(path: Path) -> Path:
    """Where `replacing` writes what is to become `path`."""
    return path.with_suffix(".tmp")
