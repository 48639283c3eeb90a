"""What the README shows is what happens: its commands run, its answers are the answers."""

import re
from collections.abc import Iterator

import httpx
import pytest
from click.testing import CliRunner
from documentation import ROOT, check_answer, only, sh, shown
from serving import serving

from housenumber.cli import main
from service.engine import OnnxEngine
from service.settings import DEFAULT_MODEL

README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def shipped() -> Iterator[httpx.Client]:
    """The shipped artifact, served."""
    with serving(OnnxEngine(DEFAULT_MODEL, "cpu")) as client:
        yield client


def test_the_two_commands() -> None:
    commands = [command for command, _ in shown(README)]
    assert "make serve" in commands
    assert "make test" in commands


@pytest.mark.parametrize("page", ["README.md", "docs/api.md"])
def test_the_call_gives_the_answer_shown(shipped: httpx.Client, page: str) -> None:
    check_answer((ROOT / page).read_text(), shipped)


def test_predict_prints_the_table_shown() -> None:
    command, output = only(README, r"^housenumber predict \S+$")
    assert sh(command) == output


def test_every_other_housenumber_command_exists() -> None:
    others = [command for command, _ in shown(README) if command.startswith("housenumber")]
    assert len(others) >= 5
    for command in others:
        words = command.split()
        # A command of a group has two words before its arguments.
        name = words[1:3] if words[1] == "data" else words[1:2]
        options = [word for word in words if word.startswith("--")]
        # In this process: most commands import PyTorch.
        told = CliRunner().invoke(main, [*name, "--help"], terminal_width=100)
        assert told.exit_code == 0, command
        assert all(re.search(rf"{option}\b", told.stdout) for option in options), command


def test_the_threshold_is_the_shipped_readers() -> None:
    (told,) = re.findall(r"the reader's threshold \(([\d.]+) for this one\)", README)
    assert told == f"{OnnxEngine(DEFAULT_MODEL, 'cpu').metadata.threshold:.3f}"


@pytest.mark.parametrize(
    "page", sorted(path.relative_to(ROOT) for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")))
)
def test_pictures_and_links_are_there(page: object) -> None:
    path = ROOT / str(page)
    for target in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", path.read_text()):
        link, _, anchor = "".join(target).partition("#")
        if link.startswith("http"):
            continue
        linked = (path.parent / link).resolve() if link else path
        assert linked.exists(), link
        if anchor:
            assert anchor in anchors(linked.read_text()), f"{link}#{anchor}"


def anchors(text: str) -> set[str]:
    """Of the headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-") for title in titles}
