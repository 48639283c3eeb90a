"""Collections: labels.jsonl and shards come out as the same kind of samples, and mistakes are named."""

import io
import json
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from models.data.collections import CollectionError, count_samples, load_collection
from models.data.shards import ShardError, write_shards
from service.geometry import Region


def photograph(width: int, height: int, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "grey").save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def write_labels(directory: Path, *rows: dict[str, Any]) -> None:
    """labels.jsonl with the fields that every row has filled in, and a photograph of 100 x 80 for each."""
    lines = []
    for number, row in enumerate(rows):
        full = {"file": f"some/{number}.jpg", "label": "12", "collection": "c", "framing": "crop", "source": "me"}
        lines.append(json.dumps(full | row))
        (directory / "some").mkdir(exist_ok=True)
        (directory / "some" / f"{number}.jpg").write_bytes(photograph(100, 80))
    (directory / "labels.jsonl").write_text("\n".join(lines) + "\n")


def only_region(directory: Path) -> Region:
    (sample,) = load_collection(directory)
    assert sample.region is not None
    return sample.region


def test_rows_become_samples_in_order_without_the_doubtful_ones(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"label": "007", "collection": "a"},
        {"label": ""},
        {"label": "8", "doubtful": True},
        {"label": "9", "doubtful": False},
    ]
    write_labels(tmp_path, *rows)
    samples = list(load_collection(tmp_path))
    assert [(s.label, s.collection, s.source, s.region) for s in samples] == [
        ("007", "a", "some/0.jpg", None),
        ("", "c", "some/1.jpg", None),
        ("9", "c", "some/3.jpg", None),
    ]
    assert samples[0].image == photograph(100, 80)
    assert count_samples(tmp_path) == 3


def test_the_box_of_a_number_in_a_photograph_is_enlarged_by_30_percent(tmp_path: Path) -> None:
    write_labels(tmp_path, {"framing": "photo", "number_box_xyxy": [40, 30, 60, 40]})
    assert astuple(only_region(tmp_path)) == pytest.approx((37, 28.5, 26, 13))


def test_digit_boxes_of_a_loose_photograph_are_united(tmp_path: Path) -> None:
    write_labels(tmp_path, {"framing": "loose", "digit_boxes": [[40, 30, 8, 10], [50, 32, 10, 10]]})
    # 40..60 x 30..42, and 15 % of 20 and 12 on each side
    assert astuple(only_region(tmp_path)) == pytest.approx((37, 28.2, 26, 15.6))


@pytest.mark.parametrize("framing", ["tight", "crop"])
def test_framed_photographs_are_read_as_a_whole_even_where_boxes_are_known(tmp_path: Path, framing: str) -> None:
    write_labels(tmp_path, {"framing": framing, "digit_boxes": [[40, 30, 8, 10]]})
    (sample,) = load_collection(tmp_path)
    assert sample.region is None


def test_regions_are_clipped_to_the_upright_photograph(tmp_path: Path) -> None:
    write_labels(tmp_path, {"framing": "photo", "number_box_xyxy": [0, 0, 80, 100]})
    (tmp_path / "some" / "0.jpg").write_bytes(photograph(100, 80, orientation=6))  # upright 80 x 100
    assert only_region(tmp_path) == Region(0, 0, 80, 100)


def test_photographs_that_do_not_decode_are_passed_on_for_evaluation_to_count(tmp_path: Path) -> None:
    write_labels(tmp_path, {"framing": "photo", "number_box_xyxy": [1, 2, 3, 4]})
    (tmp_path / "some" / "0.jpg").write_bytes(b"no photograph")
    (sample,) = load_collection(tmp_path)
    assert sample.image == b"no photograph"


def test_shards_hold_what_a_collection_gives(tmp_path: Path) -> None:
    write_labels(tmp_path, {"label": "1"}, {"framing": "photo", "number_box_xyxy": [40, 30, 60, 40]})
    write_shards(load_collection(tmp_path), tmp_path / "shards")
    assert list(load_collection(tmp_path / "shards")) == list(load_collection(tmp_path))
    assert list(load_collection(tmp_path / "shards" / "shard-00000.parquet")) == list(load_collection(tmp_path))
    assert count_samples(tmp_path / "shards") == 2


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"label": "1a"}, "line 2: label"),
        ({"label": 12}, "line 2: label"),
        ({"collection": None}, "line 2: collection"),
        ({"number_box_xyxy": [1, 2, 3]}, "line 2: number_box_xyxy"),
        ({"digit_boxes": []}, "line 2: digit_boxes"),
        ({"file": "some/missing.jpg"}, "line 2: there is no file some/missing.jpg"),
    ],
)
def test_labels_that_cannot_be_used_are_named_before_the_first_sample(
    tmp_path: Path, row: dict[str, Any], reason: str
) -> None:
    write_labels(tmp_path, {}, row)
    for use in (load_collection, count_samples):
        with pytest.raises(CollectionError, match=reason):
            use(tmp_path)


def test_lines_that_are_not_json_are_named(tmp_path: Path) -> None:
    (tmp_path / "labels.jsonl").write_text("file,label\n")
    with pytest.raises(CollectionError, match="line 1: Invalid JSON"):
        load_collection(tmp_path)


def test_paths_without_a_collection_are_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(photograph(8, 8))
    for use in (load_collection, count_samples):
        with pytest.raises(CollectionError, match="does not exist"):
            use(tmp_path / "missing")
        with pytest.raises(ShardError, match="no shards"):
            use(tmp_path)
        with pytest.raises(ShardError, match="not a Parquet file"):
            use(tmp_path / "photo.jpg")
