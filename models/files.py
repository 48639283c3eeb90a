"""Files that are written whole or not at all, however the process ends."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, to be written in the block; when that ends well, it takes the place of `path`.

    What a killed process leaves behind has the name of `temporary_path`.
    """
    temporary = temporary_path(path)
    yield temporary
    temporary.replace(path)


def temporary_path(path: Path) -> Path:
    """Where `replacing` writes what is to become `path`."""
    return path.with_suffix(".tmp")
