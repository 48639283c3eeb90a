"""Files that are written whole or not at all."""

from pathlib import Path

import pytest

from models.files import replacing


def test_what_was_there_stays_until_the_new_file_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    with replacing(path) as unfinished:
        unfinished.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("file.bin", b"new")]


def broken_off(path: Path, error: BaseException) -> None:
    with replacing(path) as unfinished:
        unfinished.write_bytes(b"ne")
        raise error


@pytest.mark.parametrize("error", [OSError("no space"), KeyboardInterrupt()])
def test_what_failed_leaves_nothing_behind(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    with pytest.raises(type(error)):
        broken_off(path, error)
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("file.bin", b"old")]
