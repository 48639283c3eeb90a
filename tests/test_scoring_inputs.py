"""What batch scoring can read: every kind of input, what comes with it, and what may be wrong with it."""

import base64
import csv
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scoring import folder_of, numbers, rows, score, tar_of
from serving import plain

from service.errors import BadRequest
from service.scoring.inputs import InputError, Survey, found, read_listing, write_listing
from service.scoring.records import Columns, Position, Record, regions_of
from service.scoring.sources import records
from service.scoring.storage import Place


def listed(*inputs: object) -> list[str]:
    """The keys of what is found, relative to the working directory."""
    return [os.path.relpath(entry.place.key) for _, entry in found([str(text) for text in inputs], Survey({}))]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    names = ("a/1.JPG", "a/b/2.png", "a/b/c/3.webp", "a/notes.txt", "a/.hidden/4.png", "a/._5.png", "6.tar", "7.csv")
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_folders_give_images_and_shards_in_the_order_of_their_names(tree: Path) -> None:
    survey = Survey({})
    assert len(list(found([str(tree)], survey))) == 4
    assert survey == Survey({"tar": 1, "image": 3}, 0, 2)
    assert listed("a", ".") == ["a/1.JPG", "a/b/2.png", "a/b/c/3.webp", "6.tar", *listed("a")]
    assert listed("7.csv", "a/notes.txt") == ["7.csv", "a/notes.txt"]  # named, so wanted
    (tree / "a/b/round").symlink_to(tree / "a")
    assert listed("a") == ["a/1.JPG", "a/b/2.png", "a/b/c/3.webp"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a/*.JPG", ["a/1.JPG"]),
        ("a/*", ["a/1.JPG", "a/notes.txt"]),
        ("a/**", ["a/1.JPG", "a/b/2.png", "a/b/c/3.webp", "a/notes.txt"]),
        ("**/*.png", ["a/b/2.png"]),
        ("a/**/[0-2].*", ["a/1.JPG", "a/b/2.png"]),
        ("a/*/[!0-1].pn?", ["a/b/2.png"]),
        ("?.tar", ["6.tar"]),
    ],
)
def test_patterns(tree: Path, pattern: str, expected: list[str]) -> None:
    assert listed(pattern) == expected
    assert listed(tree / pattern) == expected


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tree: Path) -> None:
    (tree / "a[1].png").write_bytes(b"")
    (tree / "a1.png").write_bytes(b"")
    assert listed("a[1].png") == ["a[1].png"]


@pytest.mark.parametrize("wrong", ["nowhere", "*.gif", "[z-a].png", "nosuch://bucket/key"])
def test_an_input_that_is_not_there_is_wrong_usage(artifact: Path, tree: Path, wrong: str) -> None:
    with pytest.raises(InputError):
        listed(wrong)
    result = score(artifact, wrong, "--output", "out")
    assert result.exit_code == 2
    assert wrong.partition(":")[0] in result.stderr
    assert "Traceback" not in result.output


def write_manifest(path: Path, table: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(table), path, row_group_size=4)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(table[0]))
            writer.writeheader()
            writer.writerows(table)
    return path


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_manifests_of_paths_and_of_bytes(artifact: Path, tmp_path: Path, suffix: str) -> None:
    for number in range(10):
        (tmp_path / f"{number}.png").write_bytes(plain(str(number)))
    of_paths = write_manifest(
        tmp_path / f"paths.{suffix}",
        [{"path": f"{n}.png" if n % 2 else str(tmp_path / f"{n}.png"), "id": f"p{n}"} for n in range(10)],
    )
    binary = suffix == "parquet"
    images = [plain(str(number)) for number in range(20, 30)]
    of_bytes = write_manifest(
        tmp_path / f"bytes.{suffix}",
        [{"image": image if binary else base64.b64encode(image).decode()} for image in images],
    )
    assert score(artifact, of_paths, "--output", tmp_path / "a", "--part-size", 3).exit_code == 0
    assert numbers(tmp_path / "a") == {f"p{number}": str(number) for number in range(10)}
    assert {row["source"] for row in rows(tmp_path / "a")} == {str(tmp_path / f"{number}.png") for number in range(10)}
    flags = ("--bytes-column", "image", "--part-size", 3)
    assert score(artifact, of_bytes, "--output", tmp_path / "b", *flags).exit_code == 0
    assert numbers(tmp_path / "b") == {f"{of_bytes}#{index}": str(20 + index) for index in range(10)}


def test_columns_are_passed_through_and_keep_their_types_in_parquet(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(plain("1"))
    table = pa.table(
        {
            "path": ["1.png", "1.png"],
            "id": [1, 2],
            "when": pa.array([0, None], pa.timestamp("ms", "UTC")),
            "tags": [["x", "y"], []],
            "number": ["one", "uno"],  # also the name of a column of ours
        }
    )
    pq.write_table(table, tmp_path / "m.parquet")
    assert score(artifact, tmp_path / "m.parquet", "--output", tmp_path / "out").exit_code == 0
    written = pq.read_table(tmp_path / "out" / "part-00000.parquet")
    assert written.schema.field("when").type == pa.timestamp("ms", "UTC")
    assert written.column("when").equals(pa.chunked_array(table.column("when")))
    assert written.column("tags").to_pylist() == [["x", "y"], []]
    assert written.column("number").to_pylist() == ["1", "1"]
    assert written.column("input_number").to_pylist() == ["one", "uno"]
    assert written.column("id").to_pylist() == ["1", "2"]


def test_columns_of_text_are_passed_through_as_text(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(plain("1"))
    lines = write_manifest(
        tmp_path / "m.jsonl",
        [{"path": "1.png", "a": 1, "b": "x"}, {"path": "1.png", "a": {"c": None}}, {"path": "1.png", "b": "\ud800"}],
    )
    assert score(artifact, lines, "--output", tmp_path / "out").exit_code == 0
    assert [(row["a"], row["b"]) for row in rows(tmp_path / "out")] == [("1", "x"), ('{"c": null}', None), (None, "?")]
    cells = write_manifest(tmp_path / "m.csv", [{"path": "1.png", "a": "007", "b": ""}])
    both = score(artifact, lines, cells, "--output", tmp_path / "both")
    assert both.exit_code == 0
    assert [(row["a"], row["b"]) for row in rows(tmp_path / "both")][-1] == ("007", "")


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"m.parquet": [{"path": "1.png", "number": 1, "input_number": 2}]}, "input_number"),
        ({"m.parquet": [{"path": "1.png", "x": 1}], "m.csv": [{"path": "1.png", "x": 1}]}, "'x'"),
        ({"m.csv": [{"file": "1.png", "x": 1}]}, "'file', 'x'"),
        ({"m.parquet": [{"file": "1.png"}]}, "--path-column"),
    ],
)
def test_columns_that_cannot_be_are_wrong_usage(
    artifact: Path, tmp_path: Path, tables: dict[str, list[dict[str, Any]]], words: str
) -> None:
    manifests = [write_manifest(tmp_path / name, table) for name, table in tables.items()]
    result = score(artifact, *manifests, "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert words in result.stderr
    # Nothing has begun: the right command may use the same output.
    (tmp_path / "1.png").write_bytes(plain("1"))
    assert score(artifact, tmp_path / "1.png", "--output", tmp_path / "out").exit_code == 0


def test_a_field_that_comes_late_is_told_not_lost(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(plain("1"))
    lines = [{"path": "1.png", "id": str(index)} for index in range(150)]
    lines[120]["late"] = "x"
    result = score(artifact, write_manifest(tmp_path / "m.jsonl", lines), "--output", tmp_path / "out")
    assert result.exit_code == 0
    (wrong,) = (row for row in rows(tmp_path / "out") if row["error_code"])
    assert wrong["id"] == "120"
    assert "'late'" in wrong["error_detail"]


def test_what_is_wrong_with_a_row_of_a_manifest_is_in_its_row(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(plain("1"))
    (tmp_path / "m.csv").write_text(
        "path,id,regions\n1.png,good,\nmissing.png,missing,\n.,folder,\n,none,\n1.png,regions,nonsense\n1.png,short\n"
        '1.png,outside,"0,0,99,99"\n1.png,halves,"0,0,4,4;[]"\nnosuch://a/b.png,scheme,\n'
    )
    (tmp_path / "m.jsonl").write_text(
        '{"path": "1.png", "id": "json"}\n\n[]\n{"path": \n{"bytes": "%", "id": "base64"}\n'
    )
    flags = ("--max-error-rate", 1)
    result = score(artifact, tmp_path / "m.csv", tmp_path / "m.jsonl", "--output", tmp_path / "out", *flags)
    assert result.exit_code == 0, result.output
    told = [
        (row["id"].rpartition("/")[2], row["error_code"], row["error_detail"] or "") for row in rows(tmp_path / "out")
    ]
    assert [(name, code) for name, code, _ in told] == [
        ("good", None),
        ("missing", "bad_request"),
        ("folder", "bad_request"),
        ("none", "bad_request"),
        ("regions", "bad_request"),
        ("m.csv#5", "bad_request"),
        ("outside", "bad_region"),
        ("halves", "bad_request"),
        ("scheme", "bad_request"),
        ("json", None),
        ("m.jsonl#1", "bad_request"),
        ("m.jsonl#2", "bad_request"),
        ("base64", "bad_request"),
    ]
    detail = {name: text for name, _, text in told}
    assert "No such file" in detail["missing"]
    assert "directory" in detail["folder"]
    assert "nosuch" in detail["scheme"]
    assert "line 4" in detail["m.jsonl#2"]


def test_regions_give_a_row_each(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(plain("1", (20, 10)))
    forms = [[[0, 0, 5, 5], [5, 0, 5, 5.5]], None]
    written = write_manifest(tmp_path / "m.jsonl", [{"path": "1.png", "regions": form} for form in forms])
    typed = write_manifest(tmp_path / "m.parquet", [{"path": "1.png", "regions": form} for form in forms])
    texts = [{"path": "1.png", "regions": text} for text in ("0,0,5,5;5,0,5,5.5", "", "[[0,0,5,5],[5,0,5,5.5]]")]
    cells = write_manifest(tmp_path / "m.csv", texts)
    assert score(artifact, written, typed, cells, "--output", tmp_path / "out").exit_code == 0
    both = [[0.0, 0.0, 5.0, 5.0], [5.0, 0.0, 5.0, 5.5]]
    found_regions = [row["region"] for row in rows(tmp_path / "out")]
    assert found_regions == [*both, None, *both, None, *both, None, *both]


@pytest.mark.parametrize("wrong", ["1,2,3", "[[1,2,3]]", "[1,2,3,4]", "[", [[1, 2, 3]], 5, {"x": 1}])
def test_regions_that_are_none_are_refused(wrong: Any) -> None:
    with pytest.raises(BadRequest):
        regions_of(wrong)


def shard(path: Path) -> Path:
    """Groups as WebDataset has them: JSON before and after its image, two images of one group, and none."""
    return tar_of(
        path,
        [
            ("a/0001.png", plain("1")),
            ("a/0001.json", json.dumps({"id": "one", "place": "x", "n": 1}).encode()),
            ("a/0001.cls", b"5"),
            ("a/0002.json", json.dumps({"place": "y", "regions": [[0, 0, 4, 4]]}).encode()),
            ("a/0002.left.png", plain("21")),
            ("a/0002.right.png", plain("22")),
            ("a/0003.json", b"{}"),
            ("b/0003.png", plain("3")),
            ("b/0004.json", b"["),
            ("b/0004.png", plain("4")),
            ("b/0005.png", b"junk"),
            (f"b/{'long' * 50}.png", plain("6")),
        ],
    )


def test_tar_shards(artifact: Path, tmp_path: Path) -> None:
    path = shard(tmp_path / "shard.tar")
    flags = ("--part-size", 2, "--max-error-rate", 1)
    assert score(artifact, tmp_path, "--output", tmp_path / "out", *flags).exit_code == 0
    written = rows(tmp_path / "out")
    assert [
        (row["id"].removeprefix(f"{path}/"), row["number"], row["place"], row["error_code"]) for row in written
    ] == [
        ("one", "1", "x", None),
        ("a/0002.left.png", "21", "y", None),
        ("a/0002.right.png", "22", "y", None),
        ("b/0003.png", "3", None, None),
        ("b/0004.png", None, None, "bad_request"),
        ("b/0005.png", None, None, "bad_image"),
        (f"b/{'long' * 50}.png", "6", None, None),
    ]
    assert [row["region"] for row in written][:3] == [None, [0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 4.0]]
    assert written[0]["source"] == f"{path}/a/0001.png"
    assert written[0]["n"] == "1"


@pytest.mark.parametrize("damage", ["cut in an image", "cut after an image", "overwritten", "empty", "not a tar"])
def test_a_damaged_shard_is_told_and_what_is_whole_is_read(artifact: Path, tmp_path: Path, damage: str) -> None:
    members = [(f"{number}.png", plain(str(number))) for number in range(4)]
    path = tar_of(tmp_path / "shard.tar", members)
    whole = path.read_bytes()
    stride = 1024 if len(members[0][1]) <= 512 else 1536
    path.write_bytes(
        {
            "cut in an image": whole[: 2 * stride + 512 + 10],
            "cut after an image": whole[: 2 * stride],
            "overwritten": whole[: 2 * stride] + b"x" * 512 + whole[2 * stride + 512 :],
            "empty": b"",
            "not a tar": b"x" * 2000,
        }[damage]
    )
    result = score(artifact, path, "--output", tmp_path / "out", "--max-error-rate", 1)
    assert result.exit_code == 0
    written = rows(tmp_path / "out")
    assert [row["number"] for row in written] == (["0", "1", None] if damage not in ("empty", "not a tar") else [None])
    assert written[-1]["error_code"] == "bad_request"
    assert "damaged or cut short" in written[-1]["error_detail"]


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, list[str]]:
    """The list of an input of every kind."""
    root = tmp_path_factory.mktemp("everything")
    table = [{"path": f"{index}.png", "x": str(index)} for index in range(9)]
    inputs = [
        folder_of(root / "in", 5),
        shard(root / "shard.tar"),
        *(write_manifest(root / f"m.{suffix}", table) for suffix in ("csv", "jsonl", "parquet")),
        root / "in" / "0000.png",
    ]
    texts = [str(path) for path in inputs]
    listing = Place.parse(str(root / "listing.parquet"))
    write_listing(listing, texts)
    return listing, texts


COMPARED = ("id", "source", "next", "consumed", "regions", "passed")


def test_reading_goes_on_from_every_record(everything: tuple[Place, list[str]]) -> None:
    listing, inputs = everything

    def read(start: Position) -> list[Record]:
        return list(records(listing, inputs, Columns(), start))

    def said(found: list[Record]) -> list[tuple[object, ...]]:
        # Two errors are never equal, but say the same.
        return [(*(getattr(record, name) for name in COMPARED), repr(record.content)) for record in found]

    whole = read(Position(0))
    assert len(whole) == 5 + 7 + 3 * 9 + 1
    assert [record.consumed for record in whole] == sorted(record.consumed for record in whole)
    assert whole[-1].consumed == sum(file.size for file in read_listing(listing, inputs))
    for index, record in enumerate(whole, start=1):
        assert said(read(record.next)) == said(whole[index:])


def test_a_name_that_is_no_text_is_read_all_the_same(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    name = os.fsdecode(os.fsencode(tmp_path / "in") + b"/\xff.png")
    Path(name).write_bytes(plain("5"))
    assert score(artifact, tmp_path / "in", "--output", tmp_path / "out").exit_code == 0
    (row,) = rows(tmp_path / "out")
    assert row["number"] == "5"
    assert row["source"].endswith("\\udcff.png")


def test_any_filesystem_of_fsspec(artifact: Path, tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for number in range(5):
        memory.pipe(f"/scoring/in/{number}.png", plain(str(number)))
    try:
        result = score(artifact, "memory://scoring/in", "--output", "memory://scoring/out", "--part-size", 2)
        assert result.exit_code == 0, result.output
        assert numbers("memory://scoring/out") == {
            f"memory://scoring/in/{number}.png": str(number) for number in range(5)
        }
    finally:
        memory.rm("/scoring", recursive=True)
