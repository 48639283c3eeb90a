"""The rows of batch scoring: what `POST /predict` answers, and what is asked besides."""

import base64
import json
from pathlib import Path
from typing import Any

import duckdb
import httpx
import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image
from scoring import folder_of, numbers, rows, score, summary
from serving import Sabotaged, encode, plain
from test_search import BlockReader, picture
from tiny_reader import colour_of

from service.engine import OnnxEngine, Outputs
from service.errors import Internal
from service.reader import Reader
from service.scoring.core import Answers, Scorer
from service.scoring.records import Position, Record
from service.scoring.schema import METADATA_KEY, OWN_COLUMNS
from service.scoring.storage import Place
from service.scoring.transfers import StorageError


def as_prediction(row: dict[str, Any]) -> dict[str, Any]:
    """A row as `/predict` would have put it."""
    error = None if row["error_code"] is None else {"code": row["error_code"], "detail": row["error_detail"]}
    names = ("id", "region", "number", "confidence", "accepted", "digits", "boxes")
    return {**{name: row[name] for name in names}, "error": error, "size": (row["width"], row["height"])}


def as_row(prediction: dict[str, Any]) -> dict[str, Any]:
    image = prediction.pop("image")
    return {**prediction, "size": (image["width"], image["height"])}


def test_rows_are_the_answers_of_predict(artifact: Path, client: httpx.Client, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    noise = Image.fromarray(rng.integers(0, 256, (300, 200, 3), np.uint8))
    sideways = Image.Exif()
    sideways[0x0112] = 6
    images = {
        "photo": encode(noise, "JPEG", exif=sideways),
        "plain": plain("407", (40, 30)),
        "unsure": encode(Image.new("RGB", (8, 8), (12 + 36, 252, 252))),
        "nothing": encode(Image.new("RGB", (8, 8), (252, 252, 252))),
        "junk": b"junk",
        "empty": b"",
        "heic": b"\0\0\0\x18ftypheic",
        "large": encode(Image.new("L", (9000, 8000)), "PNG"),
        "torn": encode(noise, "PNG")[:5000],
    }
    regions: dict[str, list[list[float]]] = {
        "photo": [[0, 0, 100, 50], [10.5, 20.25, 100, 100], [290, 190, 50, 50], [0, 0, 0, 10]],
        "junk": [[0, 0, 1, 1], [1, 1, 2, 2]],
    }
    asked = [
        {"id": name, "data": base64.b64encode(data).decode(), **({"regions": regions[name]} if name in regions else {})}
        for name, data in images.items()
    ]
    manifest = tmp_path / "manifest.jsonl"
    fields = ({"id": image["id"], "bytes": image["data"], "regions": image.get("regions")} for image in asked)
    manifest.write_text("".join(json.dumps(line) + "\n" for line in fields))
    # What has no bytes at all is told as such here, while over HTTP there is an empty image.
    with_bytes = [image for image in asked if image["data"]]

    for flags, query in ((["--min-confidence", "0.3"], "?min_confidence=0.3"), ([], "")):
        out = tmp_path / f"out{len(flags)}"
        result = score(artifact, manifest, "--output", out, "--max-error-rate", "1", *flags)
        assert result.exit_code == 0, result.output
        answered = client.post(f"/predict{query}", json={"images": with_bytes}).json()
        written = rows(out)
        assert [as_prediction(row) for row in written if row["id"] != "empty"] == [
            as_row(prediction) for prediction in answered["predictions"]
        ]
        (empty,) = (row for row in written if row["id"] == "empty")
        assert empty["error_code"] == "bad_request"
        model = {"name": "model_name", "version": "model_version", "sha256": "model_sha256"}
        for row in written:
            assert {name: row[column] for name, column in model.items()} == {
                name: answered["model"][name] for name in model
            }


def test_the_dataset_can_be_read_at_once(artifact: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (folder_of(tmp_path / "in", 25) / "bad.png").write_bytes(b"junk")
    assert score(artifact, tmp_path / "in", "--output", out, "--part-size", 10).exit_code == 0
    assert sorted(path.name for path in out.glob("*.parquet")) == [
        "_listing.parquet",
        *(f"part-0000{index}.parquet" for index in range(3)),
    ]
    whole = ds.dataset(out).to_table()  # as pandas.read_parquet does
    assert whole.schema.equals(OWN_COLUMNS)
    assert whole.num_rows == 26
    query = (
        f"select number, digits[1].digit, boxes[1].corners[1][1], error_code from '{out}/part-*.parquet' order by id"
    )
    found = duckdb.execute(query).fetchall()
    assert len(found) == 26
    assert ("24", "2", found[0][2], None) in found
    assert [row for row in found if row[3]] == [(None, None, None, "bad_image")]
    for index in range(3):
        file = pq.ParquetFile(out / f"part-0000{index}.parquet")
        manifest = json.loads(file.metadata.metadata[METADATA_KEY])
        assert manifest["schema_version"] == 1
        assert manifest["counts"]["rows"] == file.metadata.num_rows
        assert file.metadata.row_group(0).column(0).compression == "ZSTD"


def test_the_summary_counts(artifact: Path, tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 18)
    (source / "bad.jpg").write_bytes(b"junk")
    (source / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (source / "notes.txt").write_bytes(b"not an image")
    result = score(artifact, source, "--output", tmp_path / "out", "--max-error-rate", 0.1)
    assert result.exit_code == 0
    found = summary(tmp_path / "out")
    assert (found["images"], found["rows"], found["accepted"], found["accepted_share"]) == (20, 20, 18, 0.9)
    assert found["errors"] == {"bad_image": 1, "unsupported_media_type": 1}
    assert found["error_share"] == 0.1
    assert found["images_per_s"] > 0
    assert found["passed_over"] == 1
    assert found["model"]["name"] == "tiny"


def test_no_boxes_and_limit(artifact: Path, tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 30)
    flags = ("--no-boxes", "--limit", 25, "--part-size", 10)
    assert score(artifact, source, "--output", tmp_path / "out", *flags).exit_code == 0
    found = rows(tmp_path / "out")
    assert len(found) == 25
    assert {row["boxes"] is None for row in found} == {True}
    assert score(artifact, source, "--output", tmp_path / "all").exit_code == 0
    assert [row["id"] for row in found] == [row["id"] for row in rows(tmp_path / "all")][:25]


def test_a_sample_is_drawn_by_the_ids_alone(artifact: Path, tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 200)
    outs = [tmp_path / name for name in ("half", "cut", "part")]
    assert score(artifact, source, "--output", outs[0], "--sample", 0.5).exit_code == 0
    assert score(artifact, source, "--output", outs[1], "--sample", 0.5, "--part-size", 7).exit_code == 0
    assert score(artifact, source / "a", "--output", outs[2], "--sample", 0.5).exit_code == 0
    half, cut, part = map(numbers, outs)
    assert 60 < len(half) < 140
    assert cut == half
    assert part == {name: number for name, number in half.items() if "/a/" in name}


@pytest.mark.parametrize("enough", [True, False])
def test_too_many_errors_stop_the_job_and_it_can_go_on(
    artifact: Path, tmp_path: Path, enough: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As soon as enough has been seen; and at the end, where there is never enough."""
    if enough:
        monkeypatch.setattr("service.scoring.run._ROWS_TO_JUDGE", 20)
    source, out = folder_of(tmp_path / "in", 40), tmp_path / "out"
    for index in range(10):
        (source / f"zz{index}.png").write_bytes(b"junk")
    flags = ("--output", out, "--part-size", 10, "--batch-size", 5)
    result = score(artifact, source, *flags)
    assert result.exit_code == 1
    assert "bad_image" in result.stderr
    assert "--max-error-rate 0.05" in result.stderr
    assert not (out / "_SUCCESS").exists()
    written = {path.name: path.read_bytes() for path in out.glob("part-*.parquet")}
    assert len(written) == (4 if enough else 5)
    again = score(artifact, source, *flags, "--max-error-rate", 0.2)
    assert again.exit_code == 0
    assert len(numbers(out)) == 50
    assert {name: (out / name).read_bytes() for name in written} == written


def test_an_empty_input_is_an_empty_dataset(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    assert score(artifact, tmp_path / "in", "--output", tmp_path / "out").exit_code == 0
    assert rows(tmp_path / "out") == []
    assert ds.dataset(tmp_path / "out").to_table().schema.equals(OWN_COLUMNS)
    assert summary(tmp_path / "out")["images"] == 0


def test_a_dry_run_says_what_and_how_much_and_writes_nothing(artifact: Path, tmp_path: Path) -> None:
    source, out = folder_of(tmp_path / "in", 30), tmp_path / "out"
    (source / "notes.txt").write_bytes(b"not an image")
    (source / "bad.png").write_bytes(b"junk")
    result = score(artifact, source, "--output", out, "--dry-run", "--part-size", 10)
    assert result.exit_code == 0, result.output
    assert "31 images" in result.stdout
    assert "1 other files are passed over" in result.stdout
    assert "4 files to be written" in result.stdout
    assert "images/s here" in result.stdout
    assert "bad_image 1" in result.stdout
    assert not out.exists()


def record(number: str) -> Record:
    return Record(number, number, plain(number), Position(0), 0)


def test_an_image_that_the_engine_fails_on_is_one_row_with_an_error(engine: OnnxEngine) -> None:
    red = colour_of("7")[0]

    def fail(images: NDArray[np.uint8]) -> None:
        if (images[:, 0, 0, 0] == red).any():
            raise RuntimeError("the engine cannot")

    scorer = Scorer(Reader(Sabotaged(engine, fail)), Answers(None, True, 10**6, True, search=True), {})
    found = scorer.score([record(number) for number in ("5", "7", "9")]).to_pylist()
    assert [(row["number"], row["error_code"]) for row in found] == [("5", None), (None, "internal"), ("9", None)]


def test_outputs_that_are_no_numbers_are_an_error_as_over_http(engine: OnnxEngine) -> None:
    class NotANumber(Sabotaged):
        def infer(self, images: NDArray[np.uint8]) -> Outputs:
            outputs = super().infer(images)
            outputs.probabilities[images[:, 0, 0, 0] == colour_of("7")[0]] = np.nan
            return outputs

    scorer = Scorer(Reader(NotANumber(engine, lambda images: None)), Answers(None, False, 10**6, True, search=True), {})
    found = scorer.score([record(number) for number in ("7", "5")]).to_pylist()
    assert [(row["number"], row["error_code"]) for row in found] == [(None, Internal.code), ("5", None)]


def in_file(path: Path) -> Record:
    return Record(path.name, path.name, Place.parse(str(path)), Position(0), 0)


def block_scorer() -> Scorer:
    """Whose reader is not sure of what is far away."""
    return Scorer(Reader(BlockReader()), Answers(None, True, 10**6, True, search=True), {})


def score_with(monkeypatch: pytest.MonkeyPatch, again: bytes | Exception) -> list[dict[str, Any]]:
    """The rows of a file that is to be searched, of whose second reading this comes."""
    contents = iter([encode(picture("12", 300, 200)), again])

    def read(_place: Place) -> bytes:
        content = next(contents)
        if isinstance(content, Exception):
            raise content
        return content

    monkeypatch.setattr(Place, "read", read)
    found: list[dict[str, Any]] = block_scorer().score([in_file(Path("/photograph"))]).to_pylist()
    assert next(contents, None) is None
    return found


def test_files_are_not_kept_and_those_that_are_searched_are_read_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    read = Place.read

    def note(place: Place) -> bytes:
        reads.append(place.name)
        return read(place)

    monkeypatch.setattr(Place, "read", note)
    photograph = picture("12", 300, 200)
    for name, image in (("far", photograph), ("near", photograph.crop((280, 190, 370, 240)))):
        (tmp_path / name).write_bytes(encode(image))
    records = [in_file(tmp_path / name) for name in ("far", "near", "far")]
    found = block_scorer().score(records).to_pylist()
    assert [(row["number"], row["accepted"]) for row in found] == [("12", True)] * 3
    assert reads == ["far", "near", "far", "far", "far"]


@pytest.mark.parametrize("again", [b"junk", b"", FileNotFoundError(2, "it is gone")])
def test_a_file_that_cannot_be_read_once_more_keeps_its_first_answer(
    again: bytes | OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    (row,) = score_with(monkeypatch, again)
    assert (row["accepted"], row["error_code"], row["width"]) == (False, None, 512)


def test_a_storage_that_fails_when_a_file_is_read_once_more_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match="no answer"):
        score_with(monkeypatch, StorageError("no answer"))
