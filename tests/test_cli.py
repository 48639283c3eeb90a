"""The `housenumber` command, as a script would call it."""

import json
import math
import re
import sys
from pathlib import Path
from types import ModuleType

import click
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from serving import encode, plain, serving
from tiny_reader import REVERSED, write_artifact, write_version

import housenumber
from housenumber.cli import main
from service import exit_codes
from service.engine import OnnxEngine
from service.errors import BadImage
from service.exit_codes import EXIT_MODEL
from service.settings import Settings


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_every_exit_code_of_serve_is_told() -> None:
    codes = [value for name, value in vars(exit_codes).items() if name.startswith("EXIT_")]
    assert len(set(codes)) == len(codes) == 7
    told = call("serve", "--help").output.split("Exit codes:")[1]
    table = (Path(__file__).parent.parent / "docs/operations.md").read_text()
    for code in codes:
        assert re.search(rf"\b{code}\s+\w", told)
        assert f"\n| {code} |" in table


def predict(artifact: Path, *arguments: object) -> Result:
    return call("predict", "--model", artifact, "--provider", "cpu", *arguments)


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    paths = []
    for number in ("19", "407"):
        path = tmp_path / f"{number}.png"
        path.write_bytes(plain(number, (40, 30)))
        paths.append(path)
    return paths


def test_help_names_every_command_and_the_exit_codes() -> None:
    result = call("--help")
    assert result.exit_code == 0
    for name in ("serve", "predict", "train", "evaluate", "export", "verify", "data"):
        assert f"\n  {name} " in result.output
    assert "Exit codes" in result.output
    assert call("--version").output == f"housenumber, version {housenumber.__version__}\n"


def test_serve_has_a_documented_flag_for_every_setting_but_the_keys() -> None:
    output = call("serve", "--help").output
    for name in Settings.model_fields:
        assert (f"--{name.replace('_', '-')} " in output) == (name not in ("api_keys", "admin_keys")), name
    assert "--model-name TEXT " in output
    assert "--model-version INTEGER " in output
    assert "--model-repository PATH " in output
    assert "HOUSENUMBER_API_KEYS" in output
    assert "HOUSENUMBER_ADMIN_KEYS" in output


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve", "--port", "http"],
        ["serve", "--provider", "tpu"],
        ["serve", "--max-images", "1000"],
        ["serve", "--nothing"],
        ["serve", "--model", "a.onnx", "--model-repository", "models"],
        ["serve", "--model-version", "2"],
        ["predict"],
        ["predict", "--provider", "tpu", "a.png"],
        ["predict", "--region", "1,2,3", "a.png"],
        ["predict", "--min-confidence", "2", "a.png"],
        ["predict", "--draw", "out.xyz", "a.png"],
        ["predict", "--draw", "out.psd", "a.png"],
        ["predict", "--draw", "out", "a/x.png", "b/x.png"],
        ["nothing"],
    ],
)
def test_wrong_usage_is_exit_code_2_and_no_stack_trace(arguments: list[str]) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert "Error: " in result.stderr
    assert "Traceback" not in result.output


def test_a_wrong_variable_is_wrong_usage_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOUSENUMBER_PORT", "http")
    result = call("serve")
    assert result.exit_code == 2
    assert "HOUSENUMBER_PORT" in result.stderr


def test_predict_prints_a_table(artifact: Path, photos: list[Path]) -> None:
    result = predict(artifact, *photos)
    assert result.exit_code == 0
    for text in ("19", "407", "100.0%", "yes"):
        assert text in result.stdout


def test_the_table_shows_names_as_they_are(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = [f"{name}.png" for name in ("a[bold]b", "c[", "[/red]", "d")]
    for name in names[:-1]:
        path = Path(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(plain("19"))
    result = predict(artifact, *names)
    assert result.exit_code == 1
    for name in names:
        assert name in result.stdout
    assert "error" in result.stdout


def test_predict_json_is_the_services_answer(artifact: Path, engine: OnnxEngine, photos: list[Path]) -> None:
    result = predict(artifact, "--json", "--region", "0,0,20,30", "--region", "5,5,30,20", *photos)
    assert result.exit_code == 0
    answer = json.loads(result.stdout)
    with serving(engine) as client:
        files = [("image", (photo.name, photo.read_bytes())) for photo in photos]
        served = client.post("/predict?region=0,0,20,30&region=5,5,30,20", files=files).json()
    assert answer["model"] == served["model"]
    assert [prediction.pop("id") for prediction in answer["predictions"]] == [
        str(photo) for photo in photos for _ in range(2)
    ]
    for prediction in served["predictions"]:
        prediction.pop("id")
    assert answer["predictions"] == served["predictions"]


def test_predict_reads_with_the_model_that_serve_would_serve(
    photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_version(tmp_path / "models", 9)
    write_version(tmp_path / "models", 10, alphabet=REVERSED)
    monkeypatch.setenv("HOUSENUMBER_MODEL_REPOSITORY", str(tmp_path / "models"))
    result = call("predict", "--provider", "cpu", "--json", photos[0])
    assert json.loads(result.stdout)["model"]["version"] == "10"
    write_version(tmp_path / "models", 11, version="12")
    result = call("predict", "--provider", "cpu", photos[0])
    assert (result.exit_code, "its folders say tiny version 11" in result.stderr) == (5, True)


def test_a_bad_file_is_told_and_the_others_are_read(artifact: Path, photos: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"junk")
    result = predict(artifact, "--json", photos[0], bad, tmp_path / "missing.png", tmp_path, photos[1])
    assert result.exit_code == 1
    predictions = json.loads(result.stdout)["predictions"]
    assert [prediction["number"] for prediction in predictions] == ["19", None, None, None, "407"]
    assert predictions[1]["error"]["code"] == "bad_image"
    assert "No such file" in predictions[2]["error"]["detail"]
    assert "directory" in predictions[3]["error"]["detail"]
    table = predict(artifact, photos[0], bad)
    assert table.exit_code == 1
    assert "error" in table.stdout
    assert "Traceback" not in table.output


def test_an_image_on_which_the_reader_fails_is_told(photos: list[Path], tmp_path: Path) -> None:
    broken = write_artifact(tmp_path / "broken.onnx", zero=math.nan)
    result = predict(broken, "--json", photos[0])
    assert result.exit_code == 1
    (prediction,) = json.loads(result.stdout)["predictions"]
    assert (prediction["number"], prediction["error"]["code"]) == (None, "internal")


def test_min_confidence_decides_what_is_accepted(artifact: Path, tmp_path: Path) -> None:
    unsure = tmp_path / "unsure.png"
    unsure.write_bytes(encode(Image.new("RGB", (8, 8), (12 + 36, 252, 252))))

    def accepted(*arguments: object) -> bool:
        (prediction,) = json.loads(predict(artifact, "--json", *arguments, unsure).stdout)["predictions"]
        return bool(prediction["accepted"])

    assert not accepted()
    assert accepted("--min-confidence", "0.3")


def test_one_drawing_is_a_file_and_several_are_a_directory(artifact: Path, photos: list[Path], tmp_path: Path) -> None:
    one = tmp_path / "out" / "drawn.jpg"
    assert predict(artifact, "--draw", one, photos[0]).exit_code == 0
    many = tmp_path / "new" / "drawings"
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"junk")
    assert predict(artifact, "--draw", many, *photos, bad).exit_code == 1
    assert sorted(path.name for path in many.iterdir()) == ["19.png", "407.png"]
    for path in (one, *many.iterdir()):
        with Image.open(path) as drawn:
            colours = drawn.convert("RGB").getcolors(drawn.width * drawn.height) or []
            assert len(colours) > 2  # the photograph has only one


def test_a_drawing_never_takes_the_place_of_a_photograph(artifact: Path, photos: list[Path]) -> None:
    before = [path.read_bytes() for path in photos]
    for arguments in ((photos[0], photos[0]), (photos[0].parent, *photos)):
        result = predict(artifact, "--draw", *arguments)
        assert result.exit_code == 2
        assert "is one of the images to be read" in result.output
    assert [path.read_bytes() for path in photos] == before


def test_a_drawing_that_cannot_be_written_is_one_line(artifact: Path, photos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("")
    result = predict(artifact, "--draw", tmp_path / "a file" / "out.png", photos[0])
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert "File exists" in result.stderr


def test_a_model_that_cannot_be_loaded_is_one_line_and_its_own_code(photos: list[Path], tmp_path: Path) -> None:
    stranger = write_artifact(tmp_path / "stranger.onnx", properties={})
    for model in (stranger, tmp_path / "missing.onnx"):
        result = predict(model, photos[0])
        assert result.exit_code == EXIT_MODEL
        assert result.stderr.startswith("Error: ")
        assert len(result.stderr.splitlines()) == 1


def test_the_environment_gives_predict_its_model(
    artifact: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOUSENUMBER_MODEL", str(artifact))
    monkeypatch.setenv("HOUSENUMBER_PROVIDER", "cpu")
    assert call("predict", photos[0]).exit_code == 0
    monkeypatch.setenv("HOUSENUMBER_MAX_PIXELS", "10")
    result = call("predict", "--json", photos[0])
    assert json.loads(result.stdout)["predictions"][0]["error"]["code"] == "too_large"


def command_that_raises(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Makes `train` a command that fails in this way."""

    @click.command()
    def train() -> None:
        raise error

    module = ModuleType("models.training.commands")
    module.__dict__["train"] = train
    monkeypatch.setitem(sys.modules, "models.training.commands", module)


def test_a_missing_extra_is_one_line_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    command_that_raises(monkeypatch, ModuleNotFoundError("No module named 'torch'", name="torch.nn"))
    result = call("train")
    assert result.exit_code == 4
    assert "pip install -e '.[train]'" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FileNotFoundError(2, "No such file or directory", "recipe.toml"), "recipe.toml: No such file or directory"),
        (BadImage("the image is torn"), "the image is torn"),
    ],
)
def test_a_users_mistake_in_any_room_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception, line: str) -> None:
    command_that_raises(monkeypatch, error)
    result = call("train")
    assert result.exit_code == 1
    assert result.stderr == f"Error: {line}\n"


@pytest.mark.parametrize("error", [ModuleNotFoundError("x", name="nonsense"), OSError("x"), RuntimeError("x")])
def test_our_own_faults_are_not_hidden(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    command_that_raises(monkeypatch, error)
    assert call("train").exception is error
