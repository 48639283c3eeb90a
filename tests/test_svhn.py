"""SVHN format 1: the official files in, shards and an account of every entry out."""

import json
from dataclasses import astuple
from pathlib import Path

import h5py
import numpy as np
import pytest
from svhn_files import Number, png, write_archive, write_digit_struct, write_directory

from models.data import shards, svhn
from models.data.digit_struct import DigitStruct, LabelError, SvhnError
from models.data.shards import ShardError, read_shards
from models.data.svhn import prepare
from service.geometry import Region

NUMBERS = {
    "1.png": Number([(1, 20, 10, 10, 20), (9, 30, 11, 12, 20)]),
    "2.png": Number([(10, 5, 5, 10, 20)]),
    "3.png": Number([(2, 4, 4, 6, 9), (10, 10, 4, 6, 9), (10, 16, 4, 6, 9)]),
    "4.png": Number([(d, 6 * d, 4, 6, 9) for d in range(1, 7)]),
    "5.png": Number([(d, 6 * d, 4, 6, 9) for d in range(1, 6)]),
}
PHOTOGRAPHS = {name: png(60, 40, seed) for seed, name in enumerate(NUMBERS)}


def values(region: Region | None) -> tuple[float, ...]:
    assert region is not None
    return astuple(region)


@pytest.fixture
def train(tmp_path: Path) -> Path:
    write_directory(tmp_path / "train", NUMBERS, PHOTOGRAPHS)
    return tmp_path / "train"


@pytest.fixture(autouse=True)
def two_entries_per_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svhn, "ENTRIES_PER_SHARD", 2)


def test_official_directory_becomes_shards(train: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    report = prepare(train, out, "train")

    samples = {sample.source: sample for sample in read_shards(out)}
    assert [(source, sample.label) for source, sample in samples.items()] == [
        ("train/1.png", "19"),
        ("train/2.png", "0"),
        ("train/3.png", "200"),
        ("train/5.png", "12345"),
    ]
    assert {sample.collection for sample in samples.values()} == {"svhn-train"}
    assert all(samples[f"train/{name}"].image == PHOTOGRAPHS[name] for name in NUMBERS if name != "4.png")
    # 1.png: the digits cover 20..42 x 10..31, 22 x 21; 15 % more on each side.
    assert values(samples["train/1.png"].region) == pytest.approx((20 - 3.3, 10 - 3.15, 22 * 1.3, 21 * 1.3))

    assert report.entries == 5
    assert report.lengths == {"1": 1, "2": 1, "3": 1, "5": 1}
    assert report.too_long == [{"id": "train/4.png", "number": "123456"}]
    assert report.skipped == []
    written = json.loads((out / "report.json").read_text())
    assert written["too_long"] == report.too_long
    assert written["lengths"] == {"1": 1, "2": 1, "3": 1, "5": 1}


def test_regions_are_clipped_to_the_photograph(tmp_path: Path) -> None:
    number = Number([(7, -2, 1, 58, 38)])  # SVHN has boxes that begin left of the photograph
    write_directory(tmp_path / "test", {"1.png": number}, {"1.png": png(60, 40, 0)})
    prepare(tmp_path / "test", tmp_path / "shards", "test")
    (sample,) = read_shards(tmp_path / "shards")
    assert sample.region == Region(0, 0, 60, 40)


@pytest.mark.parametrize("labels_first", [True, False])
def test_archive_gives_the_same_samples_in_its_own_order(train: Path, tmp_path: Path, labels_first: bool) -> None:
    photographs = ["3.png", "1.png", "5.png", "4.png", "2.png"]
    others = ["digitStruct.mat", "see_bboxes.m"]
    order = [*others, *photographs] if labels_first else [*photographs, *others]
    write_archive(tmp_path / "train.tar.gz", train, order)

    of_archive = prepare(tmp_path / "train.tar.gz", tmp_path / "of-archive", "train")
    of_directory = prepare(train, tmp_path / "of-directory", "train")

    archived = list(read_shards(tmp_path / "of-archive"))
    assert [sample.source for sample in archived] == [f"train/{n}.png" for n in (3, 1, 5, 2)]
    assert set(archived) == set(read_shards(tmp_path / "of-directory"))
    assert of_archive == of_directory


def break_label(path: Path, group_of: int, field: str, value: float | None) -> None:
    """Deletes a field of the group_of-th photograph, or puts `value` in its place."""
    with h5py.File(path, "r+") as file:
        group = file[file["digitStruct/bbox"][group_of, 0]]
        del group[field]
        if value is not None:
            group.create_dataset(field, data=np.array([[value]]))


def test_what_is_corrupt_or_missing_is_skipped_and_reported(tmp_path: Path) -> None:
    def one_digit(label: float = 3, left: float = 10, width: float = 8) -> Number:
        return Number([(label, left, 4, width, 20)])

    numbers = {
        "1.png": one_digit(),
        "2.png": one_digit(),
        "3.png": one_digit(),
        "4.png": one_digit(label=11),
        "5.png": one_digit(width=0),
        "6.png": one_digit(left=500),
        "7.png": one_digit(),
        "8.png": one_digit(left=float("nan")),
        "9.png": Number([(1, 2, 3, 4, 5), (1, 2, 3, 4, 5)]),
        "10.png": one_digit(),
        "11.png": one_digit(label=0),
        "12.png": one_digit(label=1.5),
    }
    photographs = {name: png(60, 40, seed) for seed, name in enumerate(numbers)}
    photographs["2.png"] = photographs["2.png"][:-700]
    photographs["3.png"] = b"no image at all"
    del photographs["7.png"]
    photographs["stray.png"] = png(9, 9, 9)
    write_directory(tmp_path / "extra", numbers, photographs)
    break_label(tmp_path / "extra" / "digitStruct.mat", 8, "left", 2.0)  # one left, two of the rest
    break_label(tmp_path / "extra" / "digitStruct.mat", 9, "top", None)

    report = prepare(tmp_path / "extra", tmp_path / "shards", "extra")

    assert [sample.source for sample in read_shards(tmp_path / "shards")] == ["extra/1.png"]
    reasons = {entry["id"]: entry["reason"] for entry in report.skipped}
    expected = {
        "2.png": "does not decode",
        "3.png": "no image",
        "4.png": "label 11 is not one of 1 to 10",
        "5.png": "0 x 20 pixels",
        "6.png": "outside the photograph of 60 x 40",
        "7.png": "No such file",
        "8.png": "nan",
        "9.png": "unreadable labels",
        "10.png": "unreadable labels",
        "11.png": "label 0 is not",
        "12.png": "label 1.5 is not",
        "stray.png": "without labels",
    }
    assert set(reasons) == {f"extra/{name}" for name in expected}
    for name, part in expected.items():
        assert part in reasons[f"extra/{name}"]
    assert report.entries == 13 == sum(report.lengths.values()) + len(report.skipped)


def test_entries_whose_name_is_unreadable_or_taken_are_reported(tmp_path: Path) -> None:
    numbers = {f"{n}.png": Number([(n, 2, 3, 14, 15)]) for n in (1, 2, 3)}
    write_directory(tmp_path / "train", numbers, {name: png(20, 20, 1) for name in numbers})
    with h5py.File(tmp_path / "train" / "digitStruct.mat", "r+") as file:
        names = file["digitStruct/name"]
        names[1, 0] = names[0, 0]
        names[2, 0] = h5py.Reference()
    report = prepare(tmp_path / "train", tmp_path / "shards", "train")
    assert [entry["id"] for entry in report.skipped] == [
        "train/entry 2",
        "train/entry 3",
        "train/2.png",
        "train/3.png",
    ]
    assert [sample.label for sample in read_shards(tmp_path / "shards")] == ["1"]


def test_archive_that_breaks_off_reports_what_is_behind_the_break(train: Path, tmp_path: Path) -> None:
    archive = tmp_path / "train.tar.gz"
    write_archive(archive, train, ["digitStruct.mat", *NUMBERS])
    archive.write_bytes(archive.read_bytes()[:-9000])  # each of the photographs takes some 7,300 bytes
    report = prepare(archive, tmp_path / "shards", "train")
    labels = [sample.label for sample in read_shards(tmp_path / "shards")]
    assert labels == ["19", "0", "200"]
    assert [entry["id"] for entry in report.skipped] == ["train/5.png"]
    assert "breaks off" in report.skipped[0]["reason"]
    assert report.entries == 5


class Killed(BaseException):
    """Not an Exception, as a signal is none."""


@pytest.mark.parametrize("archived", [False, True])
@pytest.mark.parametrize("after", range(6))
def test_a_killed_run_is_continued_with_the_same_result(
    train: Path, tmp_path: Path, archived: bool, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = train
    if archived:
        source = tmp_path / "train.tar.gz"
        write_archive(source, train, ["digitStruct.mat", *NUMBERS])
    expected = prepare(source, tmp_path / "at-once", "train")

    def killing(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("photographs", after):
            raise Killed

    out = tmp_path / "killed"
    if after:
        with pytest.raises(Killed):
            prepare(source, out, "train", killing)
        with pytest.raises(ShardError, match="unfinished"):
            read_shards(out)
    else:  # killed in the last instant, between the report and the end
        with monkeypatch.context() as patch:
            patch.setattr(shards, "finish", lambda out: killing("photographs", 0, 0))
            with pytest.raises(Killed):
                prepare(source, out, "train")
    (out / "shard-00002.tmp").write_bytes(b"half a shard")
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")}

    assert prepare(source, out, "train") == expected
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    at_once = {path.name: path.read_bytes() for path in (tmp_path / "at-once").iterdir()}
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.suffix != ".tmp"} == at_once
    assert prepare(source, out, "train") == expected


def test_another_source_or_split_in_the_same_place_is_refused(train: Path, tmp_path: Path) -> None:
    other = dict(NUMBERS) | {"1.png": Number([(3, 20, 10, 10, 20)])}
    write_directory(tmp_path / "other", other, PHOTOGRAPHS)
    write_archive(tmp_path / "train.tar.gz", train, ["digitStruct.mat", *NUMBERS])

    def killing(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("photographs", 3):
            raise Killed

    with pytest.raises(Killed):
        prepare(train, tmp_path / "half", "train", killing)
    prepare(train, tmp_path / "whole", "train")
    for out in (tmp_path / "half", tmp_path / "whole"):
        before = sorted(out.iterdir())
        for source, split in ((tmp_path / "other", "train"), (train, "test"), (tmp_path / "train.tar.gz", "train")):
            with pytest.raises((SvhnError, ShardError), match="another"):
                prepare(source, out, split)
        assert sorted(out.iterdir()) == before


def test_sources_that_are_not_svhn_are_refused_with_the_reason(train: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "digitStruct.mat").write_text("MATLAB 5.0 MAT-file")
    (tmp_path / "hdf5").mkdir()
    h5py.File(tmp_path / "hdf5" / "digitStruct.mat", "w").close()
    (tmp_path / "no.tar.gz").write_bytes(b"not an archive")
    write_archive(tmp_path / "no-labels.tar.gz", train, ["1.png"])
    write_archive(tmp_path / "train.tar.gz", train, ["digitStruct.mat"])
    for source, split, reason in (
        ("missing", "train", "neither"),
        ("empty", "train", "no digitStruct.mat"),
        ("text", "train", "not an HDF5 file"),
        ("hdf5", "train", "no /digitStruct"),
        ("no.tar.gz", "train", "not a tar archive"),
        ("no-labels.tar.gz", "train", "no digitStruct.mat"),
        ("train.tar.gz", "test", "'train', not 'test'"),
    ):
        with pytest.raises(SvhnError, match=reason):
            prepare(tmp_path / source, tmp_path / "shards", split)
    assert not (tmp_path / "shards").exists()


def test_progress_counts_every_entry(train: Path, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    prepare(train, tmp_path / "shards", "train", lambda *call: calls.append(call))
    assert calls == [("names", n, 5) for n in range(1, 6)] + [("photographs", n, 5) for n in range(1, 6)]


def test_digit_struct_reads_scalars_and_references(tmp_path: Path) -> None:
    write_digit_struct(tmp_path / "digitStruct.mat", NUMBERS)
    with DigitStruct(tmp_path / "digitStruct.mat") as labels:
        assert [labels.name(index) for index in range(len(labels))] == list(NUMBERS)
        for index, number in enumerate(NUMBERS.values()):
            read = [(int(d.digit), d.left, d.top, d.width, d.height) for d in labels.digits(index)]
            assert read == [(label % 10, *box) for label, *box in number.digits]


def test_a_number_without_digits_is_a_label_error(tmp_path: Path) -> None:
    write_digit_struct(tmp_path / "digitStruct.mat", {"1.png": Number([(1, 2, 3, 4, 5)])})
    with h5py.File(tmp_path / "digitStruct.mat", "r+") as file:
        group = file[file["digitStruct/bbox"][0, 0]]
        for field in list(group):
            del group[field]
            group.create_dataset(field, data=np.empty((0, 1)))
    with DigitStruct(tmp_path / "digitStruct.mat") as labels, pytest.raises(LabelError, match="no digits"):
        labels.digits(0)
