"""A retrained reader against the shipped one: what is counted, and when the candidate is refused."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from serving import plain
from tiny_reader import metadata, write_artifact

from housenumber.cli import main
from models.data.sample import Sample
from models.data.shards import write_shards
from models.evaluation.comparison import Comparison, Pair, mcnemar
from models.evaluation.confidence import Acceptance
from models.evaluation.report import Outcome


def outcome(right: bool, collection: str = "c", label: str = "12") -> Outcome:
    """Accepted when right, except where there is no number: there, any number read is accepted."""
    read = label if right else "13"
    return Outcome(collection, "s", label, read, 0.9 if right else 0.1, accepted=right == bool(label))


def pairs(both: int, only_candidate: int, only_shipped: int, neither: int = 0, collection: str = "c") -> list[Pair]:
    counts = {(True, True): both, (True, False): only_candidate, (False, True): only_shipped, (False, False): neither}
    return [
        (outcome(candidate, collection), outcome(shipped, collection))
        for (candidate, shipped), count in counts.items()
        for _ in range(count)
    ]


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [(0, 0, 1.0), (5, 5, 1.0), (0, 5, 2 / 32), (6, 0, 2 / 64), (1, 9, 2 * 11 / 1024), (3, 4, 1.0)],
)
def test_mcnemar_by_hand(first: int, second: int, p: float) -> None:
    assert mcnemar(first, second) == pytest.approx(p)


@given(st.integers(0, 5), st.integers(0, 5))
def test_mcnemar_counts_the_splits_that_are_as_uneven(first: int, second: int) -> None:
    n = first + second
    splits = [split.bit_count() for split in range(2**n)]
    uneven = sum(abs(2 * heads - n) >= abs(first - second) for heads in splits) / len(splits)
    assert mcnemar(first, second) == mcnemar(second, first) == pytest.approx(uneven)


def test_mcnemar_of_very_many_is_a_number() -> None:
    assert 0 < mcnemar(900, 1100) < 1
    assert mcnemar(0, 3000) == 0


def test_everything_is_counted_by_collection() -> None:
    comparison = Comparison.of([*pairs(7, 2, 1, 3), *pairs(4, 0, 1, 0, "d")], 0.02)
    assert list(comparison.collections) == ["c", "d"]
    duel = comparison.collections["c"]
    assert (duel.n, duel.candidate.right, duel.shipped.right) == (13, 9, 8)
    assert (duel.only_candidate, duel.only_shipped) == (2, 1)
    assert (duel.candidate.coverage, duel.shipped.coverage) == pytest.approx((9 / 13, 8 / 13))
    assert duel.candidate.acceptance == Acceptance(accepted=9 / 13, accepted_right=1, false_numbers=None)
    assert (comparison.overall.n, comparison.overall.candidate.right) == (18, 13)
    assert comparison.worse == []
    with pytest.raises(ValueError, match="nothing to compare"):
        Comparison.of([], 0.02)


def test_where_there_are_no_numbers_there_is_no_coverage() -> None:
    duel = Comparison.of([(outcome(True, label=""), outcome(False, label=""))] * 3, 0.02).overall
    assert (duel.candidate.right, duel.shipped.right) == (3, 0)
    assert duel.candidate.coverage is duel.shipped.coverage is None
    assert duel.candidate.acceptance == Acceptance(accepted=None, accepted_right=None, false_numbers=0)
    assert duel.shipped.acceptance == Acceptance(accepted=None, accepted_right=0, false_numbers=1)


@pytest.mark.parametrize(
    ("compared", "worse"),
    [
        (pairs(30, 0, 0), []),
        (pairs(30, 20, 0), []),  # better
        (pairs(30, 0, 5), []),  # a sixth worse, but p = 0.06
        (pairs(30, 0, 6), ["c", "all"]),
        (pairs(993, 0, 7), ["all"]),  # within the tolerance, and no chance
        (pairs(13, 0, 6), ["all"]),  # too few for a collection of its own
        ([*pairs(30, 0, 6), *pairs(60, 9, 3, 0, "d")], ["c"]),  # made good elsewhere
    ],
)
def test_the_candidate_is_refused_for_a_loss_that_is_not_chance(compared: list[Pair], worse: list[str]) -> None:
    assert Comparison.of(compared, 0.02).worse == worse


def test_the_tolerance_is_what_a_collection_may_lose() -> None:
    compared = [*pairs(90, 0, 10), *pairs(60, 10, 0, 0, "d")]
    assert Comparison.of(compared, 0.05).worse == ["c"]
    assert Comparison.of(compared, 0.1).worse == []


NUMBERS = [f"{number}" for number in range(10, 40)]


def sample(shown: str, label: str, collection: str) -> Sample:
    return Sample(plain(shown, (12, 10)), label, None, shown, collection)


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("comparison") / "shards"
    rows = [sample(number, number, "mine") for number in NUMBERS]
    write_shards([*rows, sample("7", "8", "yours"), sample("7", "7", "yours")], directory)
    return directory


@pytest.fixture(scope="module")
def blind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny reader whose classes are displaced by half the colours: it is always wrong."""
    import onnx
    from onnx import numpy_helper

    path = write_artifact(tmp_path_factory.mktemp("blind") / "blind.onnx", metadata(name="blind").to_metadata_map())
    model = onnx.load(str(path))
    (centres,) = [tensor for tensor in model.graph.initializer if tensor.name == "centres"]
    displaced = numpy_helper.to_array(centres)[[1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 10]]
    centres.CopyFrom(numpy_helper.from_array(displaced.copy(), "centres"))
    onnx.save(model, str(path))
    return path


def compare(*arguments: object) -> Result:
    called = [str(argument) for argument in ("compare", *arguments, "--provider", "cpu")]
    return CliRunner().invoke(main, called, env={"COLUMNS": "200"})


def test_a_reader_is_as_good_as_itself(artifact: Path, collection: Path, tmp_path: Path) -> None:
    result = compare(artifact, artifact, collection, "--json", tmp_path / "figures.json", "--batch-size", 4)
    assert result.exit_code == 0, result.output
    assert "mine" in result.stdout
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["candidate"] == figures["shipped"]
    assert figures["candidate"]["file"] == artifact.name
    assert figures["worse"] == []
    mine, yours = figures["collections"]["mine"], figures["collections"]["yours"]
    assert (mine["n"], mine["candidate"]["right"], mine["shipped"]["right"]) == (30, 30, 30)
    assert (yours["n"], yours["candidate"]["right"], yours["p"]) == (2, 1, 1.0)


def test_a_worse_reader_is_refused_and_the_figures_are_kept(
    artifact: Path, blind: Path, collection: Path, tmp_path: Path
) -> None:
    result = compare(blind, artifact, collection, "--json", tmp_path / "figures.json")
    assert result.exit_code == 1, result.output
    assert "is worse than" in result.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["worse"] == ["mine", "all"]
    assert figures["collections"]["mine"]["only_shipped"] == 30
    assert compare(artifact, blind, collection).exit_code == 0


def test_mistakes_are_one_line(artifact: Path, collection: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "labels.jsonl").touch()
    (tmp_path / "model.txt").write_text("weights")
    for candidate, data, reason in (
        (tmp_path / "missing.onnx", collection, "does not exist"),
        (tmp_path / "model.txt", collection, "neither an artifact"),
        (artifact, tmp_path / "none", "no samples"),
        (artifact, tmp_path, "no shards"),
    ):
        result = compare(candidate, artifact, data)
        assert result.exit_code == 2, result.output
        assert reason in result.stderr
    assert "nan is not a finite number" in compare(artifact, artifact, collection, "--tolerance", "nan").stderr


def test_the_rule_is_in_the_help() -> None:
    text = " ".join(CliRunner().invoke(main, ["compare", "--help"]).output.split())
    for part in ("at least 20 images", "more than the tolerance", "McNemar", "p < 0.05", "exit code is 1"):
        assert part in text
