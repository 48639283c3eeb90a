"""Shards: what goes in comes out, and a half-written collection cannot be mistaken for a whole one."""

from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.data import shards
from models.data.sample import Sample, number_region, tight_box
from models.data.shards import ShardError, count_rows, read_shards, write_shards
from service.geometry import Region

coordinates = st.floats(allow_nan=False, allow_infinity=False)
samples_of_any_kind = st.builds(
    Sample,
    image=st.binary(max_size=60),
    label=st.from_regex(r"[0-9]{1,5}", fullmatch=True),
    region=st.none() | st.builds(Region, coordinates, coordinates, coordinates, coordinates),
    source=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    collection=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    number_box=st.none() | st.builds(Region, coordinates, coordinates, coordinates, coordinates),
)


def numbered(count: int) -> list[Sample]:
    return [Sample(bytes([i % 256]) * i, str(i), None, f"{i}.png", "counted") for i in range(count)]


@given(samples=st.lists(samples_of_any_kind, max_size=12), shard_rows=st.integers(1, 5))
def test_samples_come_back_as_they_were_in_order(
    samples: list[Sample], shard_rows: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = tmp_path_factory.mktemp("shards") / "new"
    write_shards([*samples, *numbered(1)], out, shard_rows=shard_rows)
    assert list(read_shards(out)) == [*samples, *numbered(1)]
    assert count_rows(out) == len(samples) + 1


def test_rows_are_split_into_shards_and_a_single_shard_can_be_read(tmp_path: Path) -> None:
    write_shards(numbered(700), tmp_path, shard_rows=300)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == [f"shard-0000{i}.parquet" for i in range(3)]
    assert [count_rows(file) for file in files] == [300, 300, 100]
    assert list(read_shards(files[2])) == numbered(700)[600:]


def test_columns_are_the_documented_ones_and_nothing_is_compressed(tmp_path: Path) -> None:
    write_shards([Sample(b"x" * 5000, "7", Region(1, 2, 3, 4), "a", "b", Region(2, 3, 1, 2))], tmp_path)
    file = pq.read_metadata(tmp_path / "shard-00000.parquet")
    table = pq.read_table(tmp_path / "shard-00000.parquet")
    assert table.to_pylist() == [
        {
            "image": b"x" * 5000,
            "label": "7",
            "region": [1.0, 2.0, 3.0, 4.0],
            "source": "a",
            "collection": "b",
            "number_box": [2.0, 3.0, 1.0, 2.0],
        }
    ]
    assert {file.row_group(0).column(i).compression for i in range(file.num_columns)} == {"UNCOMPRESSED"}


def test_samples_are_taken_as_they_are_needed(tmp_path: Path) -> None:
    """A generator that is far larger than memory must not be collected first."""
    written_when_taken: list[int] = []

    def watched() -> Iterator[Sample]:
        for sample in numbered(6):
            written_when_taken.append(len(list(tmp_path.glob("*.parquet"))))
            yield sample

    write_shards(watched(), tmp_path, shard_rows=2)
    assert written_when_taken == [0, 0, 1, 1, 2, 2]


def test_a_killed_run_leaves_no_collection_and_can_be_repeated(tmp_path: Path) -> None:
    def killed() -> Iterator[Sample]:
        yield from numbered(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(killed(), tmp_path, shard_rows=2)
    assert list(tmp_path.glob("*.parquet"))
    for read in (read_shards, count_rows):
        with pytest.raises(ShardError, match="unfinished"):
            read(tmp_path)

    write_shards(numbered(3), tmp_path, shard_rows=2)
    assert list(read_shards(tmp_path)) == numbered(3)


def test_only_finished_directories_are_complete(tmp_path: Path) -> None:
    assert not shards.is_complete(tmp_path / "missing")
    out = tmp_path / "new"
    shards.begin(out, {})
    shards.write_shard(numbered(1), shards.shard_path(out, 0))
    assert not shards.is_complete(out)
    shards.finish(out)
    assert shards.is_complete(out)
    (tmp_path / "empty").mkdir()
    assert not shards.is_complete(tmp_path / "empty")


def test_a_run_killed_while_it_claimed_its_directory_can_be_repeated(tmp_path: Path) -> None:
    (tmp_path / "unfinished.tmp").write_text('{"wri')
    write_shards(numbered(3), tmp_path)
    assert list(read_shards(tmp_path)) == numbered(3)


def test_a_shard_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def killed() -> Iterator[Sample]:
        yield from numbered(shards.ROWS_IN_MEMORY + 5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shards.write_shard(killed(), tmp_path / "shard-00000.parquet")
    assert not list(tmp_path.glob("*.parquet"))


def test_what_is_there_already_is_not_overwritten(tmp_path: Path) -> None:
    write_shards(numbered(2), tmp_path / "full")
    (tmp_path / "file").write_text("mine")
    for taken in (tmp_path / "full", tmp_path / "file"):
        with pytest.raises(ShardError, match="already exists"):
            write_shards(numbered(1), taken)
    assert list(read_shards(tmp_path / "full")) == numbered(2)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("content", [b"", b"PAR1 and then nothing of the kind", b"PAR1" * 40])
def test_files_that_are_not_parquet_are_refused_before_the_first_sample(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(ShardError, match="not a Parquet file"):
        read_shards(tmp_path)


def test_other_parquet_files_and_empty_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="no shards"):
        read_shards(tmp_path)
    pq.write_table(pa.table({"image": [b"x"], "text": ["7"]}), tmp_path / "other.parquet")
    with pytest.raises(ShardError, match=r"columns are \['image', 'text'\]"):
        read_shards(tmp_path)


def test_the_region_of_a_number_is_its_tight_box_enlarged_by_30_percent_and_clipped() -> None:
    boxes = [(20.0, 30.0, 10.0, 20.0), (32.0, 26.0, 8.0, 20.0)]  # together 20..40 x 26..50
    assert astuple(number_region(tight_box(boxes), 100, 100)) == pytest.approx((17, 22.4, 26, 31.2))
    assert astuple(number_region(tight_box(boxes), 40, 50)) == pytest.approx((17, 22.4, 23, 27.6))
