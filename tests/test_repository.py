"""The model repository on disk: its layout, which version is chosen, and what is refused with which words."""

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_reader import metadata

from service.artifact import ArtifactError
from service.engine import OnnxEngine
from service.repository import MODEL_FILE, Candidate, NoSuchModelError, Repository
from service.settings import Settings
from service.source import Listed, Source

SHA256 = hashlib.sha256(b"model").hexdigest()


def put(root: Path, name: str, *versions: int | str) -> None:
    for version in versions:
        folder = root / name / str(version)
        folder.mkdir(parents=True)
        (folder / MODEL_FILE).write_bytes(b"model")


def versions(repository: Repository) -> list[tuple[str, str]]:
    return [(candidate.name, candidate.version) for candidate in repository.candidates()]


# -- layout ----------------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.sets(st.integers(1, 10**30), min_size=1, max_size=12))
def test_versions_are_compared_as_numbers(numbers: set[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        put(root, "tiny", *numbers)
        assert versions(Repository(root)) == [("tiny", str(number)) for number in sorted(numbers)]
        newest = Repository(root).find()
        assert newest == Candidate(root / "tiny" / str(max(numbers)) / MODEL_FILE, "tiny", str(max(numbers)))
        for number in numbers:
            assert Repository(root).find("tiny", str(number)).version == str(number)


def test_what_is_not_a_version_is_passed_over(tmp_path: Path) -> None:
    put(tmp_path, "tiny", 2, "0", "01", "-1", "1.0", "v3", "latest", "٣", "10.tmp", ".5", "1 ", "1\n")
    put(tmp_path, ".git", 1)
    (tmp_path / "tiny/7").write_text("a file")
    (tmp_path / "notes.md").write_text("a file")
    (tmp_path / "empty").mkdir()
    assert versions(Repository(tmp_path)) == [("tiny", "2")]


def test_a_folder_that_may_not_be_read_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "tiny", 1)
    (tmp_path / "lost+found").mkdir()
    iterdir = Path.iterdir

    def refusing(path: Path) -> Iterator[Path]:
        if path.name == "lost+found":
            raise PermissionError(13, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", refusing)
    assert versions(Repository(tmp_path)) == [("tiny", "1")]


def test_links_are_followed(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere", "tiny", 4)
    (tmp_path / "models/tiny").mkdir(parents=True)
    (tmp_path / "models/tiny/5").symlink_to(tmp_path / "elsewhere/tiny/4")
    assert Repository(tmp_path / "models").find().version == "5"


def test_a_version_without_a_file_is_listed_but_not_the_newest(tmp_path: Path) -> None:
    put(tmp_path, "tiny", 1)
    (tmp_path / "tiny/2").mkdir()
    (tmp_path / "tiny/2/model.onnx.part").write_bytes(b"mod")
    repository = Repository(tmp_path)
    assert versions(repository) == [("tiny", "1"), ("tiny", "2")]
    assert repository.find("tiny").version == "1"
    with pytest.raises(NoSuchModelError, match=r"no model\.onnx for version 2 of tiny; versions with one: 1$"):
        repository.find("tiny", "2")


# -- choice ----------------------------------------------------------------------------------------------------------


def test_of_several_models_one_must_be_named(tmp_path: Path) -> None:
    put(tmp_path, "b", 1)
    put(tmp_path, "a", 1, 2)
    repository = Repository(tmp_path)
    with pytest.raises(ArtifactError, match="has several models, a, b; say which with model_name"):
        repository.find()
    assert repository.find("a").version == "2"
    assert repository.find("b").version == "1"


@pytest.mark.parametrize(
    ("name", "version", "mention"),
    [
        ("c", None, "no model 'c'; there is a"),
        ("../a", None, r"no model '\.\./a'"),
        ("a", "3", "for version 3 of a; versions with one: 1, 2"),
        ("a", "01", "for version 01 of a"),
        ("a", "../2", r"for version \.\./2 of a"),
        ("empty", None, "for any version of empty; versions with one: none"),
    ],
)
def test_what_is_not_there(tmp_path: Path, name: str, version: str | None, mention: str) -> None:
    put(tmp_path, "a", 1, 2)
    (tmp_path / "empty/1").mkdir(parents=True)
    with pytest.raises(NoSuchModelError, match=mention) as refused:
        Repository(tmp_path).find(name, version)
    assert "\n" not in str(refused.value)


def test_a_repository_that_is_empty_or_none(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"has no NAME/VERSION/model\.onnx; copy one there"):
        Repository(tmp_path).find()
    with pytest.raises(ArtifactError, match="nowhere: No such file"):
        Repository(tmp_path / "nowhere").find()
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="file: Not a directory"):
        Repository(tmp_path / "file").candidates()


# -- integrity -------------------------------------------------------------------------------------------------------


def candidate(root: Path, name: str = "tiny", version: str = "7") -> Candidate:
    put(root, name, version)
    return Candidate(root / name / version / MODEL_FILE, name, version)


def test_folders_and_metadata_agree(tmp_path: Path) -> None:
    candidate(tmp_path).check(metadata())
    for described in (metadata(version="8"), metadata(name="small"), metadata(version="07")):
        with pytest.raises(ArtifactError, match="its folders say tiny version 7; move it, or export") as refused:
            candidate(tmp_path / described.name / described.version).check(described)
        assert f"is {described.name} version {described.version}," in str(refused.value)
    # A file outside a repository may be called anything.
    Candidate(tmp_path / "model.onnx").check(metadata())


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_file_that_was_copied_in_part_is_refused_wherever_it_ends(
    artifact: Path, tmp_path: Path, data: st.DataObject
) -> None:
    whole = artifact.read_bytes()
    part = tmp_path / "part.onnx"
    part.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(ArtifactError):
        OnnxEngine(part, "cpu", intra_op_threads=1)


def test_the_bytes_of_a_file(tmp_path: Path) -> None:
    there = candidate(tmp_path)
    assert there.has_sha256(SHA256)
    assert not there.has_sha256("0" * 64)
    there.path.unlink()
    assert not there.has_sha256(SHA256)


# -- source ----------------------------------------------------------------------------------------------------------


def test_a_single_file_is_all_there_is(tmp_path: Path) -> None:
    source = Source(Settings(model=tmp_path / "model.onnx"))
    assert source.wanted() == Candidate(tmp_path / "model.onnx")
    assert source.listed(source.wanted()) == []
    with pytest.raises(ArtifactError, match="start with model_repository instead of model"):
        source.chosen("tiny", None)


def test_the_pinned_version_is_wanted_or_else_the_newest(tmp_path: Path) -> None:
    put(tmp_path, "tiny", 1, 2)
    source = Source(Settings(model_repository=tmp_path))
    assert (source.pinned, source.wanted().version) == (None, "2")
    put(tmp_path, "tiny", 10)
    assert source.wanted().version == "10"
    source.pinned = "1"
    assert source.wanted().version == "1"
    pinned = Source(Settings(model_repository=tmp_path, model_version=2))
    assert (pinned.pinned, pinned.wanted().version) == ("2", "2")


def test_the_model_that_was_begun_with_stays_the_model(tmp_path: Path) -> None:
    put(tmp_path, "tiny", 1)
    source = Source(Settings(model_repository=tmp_path))
    assert source.wanted().name == "tiny"
    put(tmp_path, "other", 5)
    assert source.wanted().name == "tiny"
    with pytest.raises(NoSuchModelError, match="serves tiny, not other; another one can, with model_name"):
        source.chosen("other", None)
    assert source.chosen("tiny", None).version == "1"
    assert Source(Settings(model_repository=tmp_path, model_name="other")).wanted().name == "other"


def test_every_version_is_listed_with_the_reason_why_it_is_not_served(tmp_path: Path) -> None:
    put(tmp_path, "other", 5)
    put(tmp_path, "tiny", 1, 2, 3)
    (tmp_path / "tiny/4").mkdir()
    source = Source(Settings(model_repository=tmp_path, model_name="tiny", model_version=2))
    source.refused[source.chosen("tiny", "3")] = "truncated"
    assert source.listed(source.wanted()) == [
        Listed("other", "5", False, "this process serves tiny"),
        Listed("tiny", "1", False, "not loaded"),
        Listed("tiny", "2", True, ""),
        Listed("tiny", "3", False, "truncated"),
        Listed("tiny", "4", False, "there is no model.onnx"),
    ]
