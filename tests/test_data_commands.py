"""`housenumber data ...`: what the commands write, and what they say of a user's mistakes."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from svhn_files import Number, png, write_directory

from housenumber.cli import main
from models.data.shards import read_shards
from models.data.synthetic.fonts import BUILT_IN, FONT_PACKAGES
from models.data.synthetic.render import render


def data(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["data", *map(str, arguments)])


@pytest.fixture(autouse=True)
def only_the_built_in_face(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is installed on this machine must not matter, and reading hundreds of fonts takes long."""
    for module in ("render", "fonts"):
        monkeypatch.setattr(f"models.data.synthetic.{module}.installed_faces", lambda: (BUILT_IN,))
    monkeypatch.setattr("models.data.commands.installed_faces", lambda: (BUILT_IN,))


def test_synthesize_writes_the_images_of_a_seed(tmp_path: Path) -> None:
    out = tmp_path / "synthetic"
    result = data("synthesize", "--count", 3, "--start", 5, "--seed", 2, "--processes", 1, "--out", out)
    assert result.exit_code == 0, result.output
    assert list(read_shards(out)) == [render(index, 2, (BUILT_IN,)) for index in (5, 6, 7)]
    assert "per second and process" in result.stdout
    assert "only 1 typefaces" in result.stderr

    again = data("synthesize", "--count", 3, "--processes", 1, "--out", out)
    assert again.exit_code == 2
    assert "already exists" in again.stderr


def test_fonts_says_what_there_is_and_what_to_install() -> None:
    result = data("fonts")
    assert result.exit_code == 0
    assert "1 faces" in result.stdout
    assert f"apt-get install --no-install-recommends {' '.join(FONT_PACKAGES)}" in result.stdout


def test_preview_shows_synthetic_images_or_a_collection(tmp_path: Path) -> None:
    sheets = [tmp_path / "synthetic.png", tmp_path / "shards.png", tmp_path / "labels.png"]
    (tmp_path / "labels.jsonl").write_text(json.dumps({"file": "1.png", "label": "5", "collection": "mine"}))
    (tmp_path / "1.png").write_bytes(png(20, 20, 0))
    data("synthesize", "--count", 2, "--processes", 1, "--out", tmp_path / "shards")
    results = [
        data("preview", "--count", 2, "--processes", 1, "--out", sheets[0]),
        data("preview", tmp_path / "shards", "--out", sheets[1]),
        data("preview", tmp_path, "--out", sheets[2]),
    ]
    assert [result.exit_code for result in results] == [0, 0, 0]
    for sheet, shown in zip(sheets, (2, 2, 1), strict=True):
        with Image.open(sheet) as image:
            assert image.format == "PNG"
            # One row of twelve cells of 96 x 96 pixels under their captions.
            cells = np.asarray(image)[13:].reshape(96, 12, 96, 3)
        assert (cells != 96).any(axis=(0, 2, 3)).tolist() == [True] * shown + [False] * (12 - shown)
    assert sheets[0].read_bytes() == sheets[1].read_bytes()


def test_svhn_prepares_and_accounts(tmp_path: Path) -> None:
    numbers = {"1.png": Number([(5, 4, 4, 8, 12)]), "2.png": Number([(1, 4, 4, 8, 12)] * 6)}
    write_directory(tmp_path / "train", numbers, {"1.png": png(20, 20, 0), "2.png": b"", "3.png": png(9, 9, 1)})
    result = data("svhn", tmp_path / "train", tmp_path / "shards", "--split", "train")
    assert result.exit_code == 0, result.output
    assert "3 photographs: 1 in" in result.stdout
    assert "1 with more than five digits" in result.stdout
    assert "1 corrupt or missing" in result.stdout
    assert [sample.source for sample in read_shards(tmp_path / "shards")] == ["train/1.png"]


def test_statistics_are_rewritten_from_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = tmp_path / "labels.json.gz"
    number = {"label": [1, 10], "left": [4, 14], "top": [3, 3], "width": [9, 9], "height": [20, 20]}
    labels.write_bytes(gzip.compress(json.dumps({"000000.png": number}).encode()))
    written = tmp_path / "statistics.json"
    monkeypatch.setattr("models.data.commands.STATISTICS_PATH", written)
    result = data("statistics", labels)
    assert result.exit_code == 0, result.output
    assert json.loads(written.read_text())["lengths"] == [0, 1, 0, 0, 0]


PHOTOGRAPH: dict[str, object] = {"label": [1], "left": [4], "top": [3], "width": [9], "height": [20]}
NOT_ONE: list[dict[str, object]] = [dict.fromkeys(PHOTOGRAPH, ()), {"label": [1] * 6}, {"label": 1}, {"top": []}]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not gzipped",
        gzip.compress(b"{"),
        gzip.compress(b"[1]"),
        gzip.compress(b"{}")[:-9] + b"\xff" * 9,
        *(gzip.compress(json.dumps({"1.png": PHOTOGRAPH | change}).encode()) for change in NOT_ONE),
    ],
    # Not the bytes themselves: a gzip header holds the time.
    ids=["empty", "plain", "half", "list", "damaged", "no-digits", "six-labels", "no-list", "no-top"],
)
def test_statistics_of_something_else_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "labels.json.gz").write_bytes(content)
    result = data("statistics", tmp_path / "labels.json.gz")
    assert result.exit_code == 2
    assert "labels.json.gz" in result.stderr


def test_mistakes_have_exit_code_2_and_no_stack_trace(tmp_path: Path) -> None:
    (tmp_path / "labels.jsonl").touch()
    out = tmp_path / "out"
    for arguments, reason in (
        (("svhn", tmp_path, out, "--split", "train"), "digitStruct.mat"),
        (("svhn", tmp_path / "missing", out, "--split", "train"), "does not exist"),
        (("svhn", tmp_path, out, "--split", "all"), "'all' is not one of"),
        (("preview", tmp_path, "--out", out), "no samples"),
        (("synthesize", "--count", 0, "--out", out), "0 is not in the range"),
    ):
        result = data(*arguments)
        assert result.exit_code == 2, result.output
        assert reason in result.stderr
        assert "Traceback" not in result.stderr
