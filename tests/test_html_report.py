"""The HTML report: its statistics against references of their own, and the page that a browser would be given."""

import base64
import io
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_reader import THETA, colour_of

from housenumber.cli import main
from models.data.sample import Sample
from models.data.shards import write_shards
from models.evaluation.box_coverage import BoxCoverage, covered_share
from models.evaluation.charts import MOST_POINTS, coverage_chart, reliability_chart
from models.evaluation.evaluate import read_samples
from models.evaluation.html_report import digit_figures
from models.evaluation.report import Outcome, calibration
from models.evaluation.report_gallery import PICTURE_PX, SURROUNDINGS, Exhibit, Gallery, picture
from models.evaluation.statistics import slot_confusion, wilson_interval
from service.engine import OnnxEngine
from service.geometry import Region, corners_in_pixels
from service.reader import Reader

IDENTITY = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])


@pytest.mark.parametrize(
    ("right", "n", "lower", "upper"),
    [  # Newcombe 1998 (Statistics in Medicine 17), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_has_the_published_values(right: int, n: int, lower: float, upper: float) -> None:
    assert wilson_interval(right, n) == pytest.approx((lower, upper), abs=5e-5)
    assert wilson_interval(n - right, n) == pytest.approx((1 - upper, 1 - lower), abs=5e-5)


def test_confusion_packs_label_and_reading_to_the_left() -> None:
    counts = slot_confusion([("123", "124"), ("12", "2"), ("", "7"), ("123456", "12345")])
    expected = Counter({(10, 10): 2 + 3 + 4})
    expected.update([(1, 1), (2, 2), (3, 4)])
    expected.update([(1, 2), (2, 10)])
    expected.update([(10, 7)])
    expected.update([(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 10)])
    assert {(int(r), int(c)): int(counts[r, c]) for r, c in np.argwhere(counts)} == expected
    four = digit_figures(counts)[4]
    assert (four.slots, four.precision, four.recall) == (1, 0.5, 1.0)
    assert [digit_figures(counts)[9].precision, digit_figures(counts)[9].recall] == [None, None]


numbers = st.floats(-1.5, 1.5)


@given(a=numbers, b=numbers, c=numbers, d=numbers, x=numbers, y=numbers)
def test_covered_share_is_the_share_of_points_inside(
    a: float, b: float, c: float, d: float, x: float, y: float
) -> None:
    """A point of the view is inside when theta's inverse takes it into the target: counted on a fine grid."""
    matrix, shift = np.array([[a, b], [c, d]]), np.array([x, y])
    region = Region(40, 10, 30, 20)
    share = covered_share(region, corners_in_pixels(IDENTITY @ matrix.T + shift, region))
    if abs(np.linalg.det(matrix)) < 0.01:
        assert share <= 0.011
        return
    axis = (np.arange(200) + 0.5) / 100 - 1
    points = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    inside = np.abs((points - shift) @ np.linalg.inv(matrix).T).max(axis=1) <= 1
    assert share == pytest.approx(inside.mean(), abs=0.02)


@pytest.mark.parametrize("nudge", [0.0, 1e-9, -1e-9, 1e-6, -1e-6])
def test_a_transformer_at_the_identity_covers_everything(nudge: float) -> None:
    region = Region(3.7, 5.1, 96.3, 41.9)
    for turned in range(4):
        corners = np.roll(IDENTITY, turned, axis=0) * (1 + nudge) + [nudge, -nudge]
        assert covered_share(region, corners_in_pixels(corners, region)) == pytest.approx(1, abs=1e-5)
        assert covered_share(region, corners_in_pixels(corners[::-1], region)) == pytest.approx(1, abs=1e-5)
    assert covered_share(Region(1, 1, 0, 5), [(0, 0), (9, 0), (9, 9), (0, 9)]) == 0


def test_box_coverage_summarises_each_transformer() -> None:
    shares = [(k / 10, 1.0) for k in range(11)]
    coverage = BoxCoverage.of(shares, [1.0, 0.95, 0.5], [0.25, 0.5])
    first, second = coverage.transformers
    assert (first.mean, first.median, first.p10, first.p90) == pytest.approx((0.5, 0.5, 0.1, 0.9))
    assert second.p10 == 1.0
    assert (coverage.n, coverage.numbers) == (11, 3)
    assert (coverage.number_share, coverage.whole_numbers) == pytest.approx((2.45 / 3, 2 / 3))
    assert coverage.overlap == 0.375
    nothing_known = BoxCoverage.of(shares, [], [])
    assert (nothing_known.number_share, nothing_known.overlap) == (None, None)


def png(*numbers: str, side: int = 10) -> bytes:
    """A photograph with a square for each number, in the colour that the tiny reader reads as it."""
    image = Image.new("RGB", (side * len(numbers), side))
    for place, number in enumerate(numbers):
        image.paste(colour_of(number), (side * place, 0, side * place + side, side))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_shares_are_of_the_region_and_the_number_box_of_the_last_box(engine: OnnxEngine) -> None:
    """The tiny reader's boxes are the same in every view, so the shares do not depend on where the region lies."""
    photograph = png("12", "89", side=100)
    region, number_box = Region(100, 0, 100, 50), Region(105, 20, 40, 15)
    samples = [
        Sample(photograph, "89", region, "s", "c", number_box),
        Sample(photograph, "89", Region(110, 10, 50, 80), "s", "c"),
        Sample(b"nothing", "1", None, "s", "c", number_box),
    ]
    first, second, unread = (outcome for _, outcome in read_samples(Reader(engine), samples))
    assert first.view_shares == pytest.approx(second.view_shares, abs=1e-5)
    assert first.view_shares[0] == pytest.approx(0.375, abs=1e-5)  # inside the view: |det theta| = 0.5 x 0.75
    assert (first.digit_height, second.digit_height, unread.digit_height) == (15, None, 15)
    assert (second.number_share, unread.number_share, unread.view_shares) == (None, None, ())

    x, y = np.meshgrid(105 + (np.arange(800) + 0.5) / 20, 20 + (np.arange(300) + 0.5) / 20)
    points = np.stack([(x - 100) / 50 - 1, y / 25 - 1], -1) - THETA[-1][:, 2]
    inside = np.abs(points @ np.linalg.inv(THETA[-1][:, :2]).T).max(-1) <= 1
    assert 0 < inside.mean() < 1
    assert first.number_share == pytest.approx(inside.mean(), abs=0.01)


@given(ranks=st.lists(st.sampled_from([0.1, 0.5, 0.9]), max_size=12), limit=st.integers(1, 5))
def test_a_gallery_keeps_the_highest_and_of_equals_the_first(ranks: list[float], limit: int) -> None:
    gallery = Gallery(limit)
    for index, rank in enumerate(ranks):
        gallery.offer(rank, Exhibit(Sample(b"", "", None, str(index), "c"), Outcome("c", str(index), "", "", rank)))
    expected = sorted(range(len(ranks)), key=lambda index: -ranks[index])[:limit]
    assert [exhibit.sample.source for exhibit in gallery.exhibits()] == [str(index) for index in expected]
    assert gallery.offered == len(ranks)


def test_a_picture_shows_region_surroundings_and_number_box(engine: OnnxEngine) -> None:
    photograph = png("12", "89", side=100)
    sample = Sample(photograph, "89", Region(100, 0, 100, 100), "s", "c", Region(170, 70, 10, 20))
    shown = picture(Reader(engine), sample)
    assert shown.size == (PICTURE_PX, PICTURE_PX)
    scale = PICTURE_PX / (100 * (1 + SURROUNDINGS))
    margin = 100 * SURROUNDINGS / 2

    def at(x: float, y: float) -> tuple[int, ...]:
        pixel = shown.getpixel((round((x - 100 + margin) * scale), round((y + margin) * scale)))
        assert isinstance(pixel, tuple)
        return pixel

    assert at(95, 60) == colour_of("12")  # the neighbour, outside of the region
    assert at(103, 97) == colour_of("89")
    assert at(195, -8) == (128, 128, 128)  # where the photograph ends
    assert (255, 255, 255) in [at(175, 90 + step / 4) for step in range(-4, 5)]  # the lower edge of the number box


def test_charts_have_no_colours_or_ids_of_their_own() -> None:
    rng = np.random.default_rng(0)
    curve = [(share, float(right)) for share, right in zip(np.linspace(0, 1, 20_000), rng.random(20_000), strict=True)]
    coverage = coverage_chart(curve, 0.98, (0.9, 0.97))
    assert coverage.count(" L ") + coverage.count("\nL ") < 2 * MOST_POINTS
    bins = calibration([Outcome("c", "s", "1", "1", 0.7), Outcome("c", "s", "1", "2", 0.2)])
    reliability = reliability_chart(bins)
    assert reliability == reliability_chart(bins)
    for svg in (coverage, reliability):
        assert "currentColor" in svg
        assert "var(--first)" in svg
        assert not re.search(r"#0\d0\d0\d|<!DOCTYPE|<metadata", svg)
        ids = re.findall(r'\bid="([^"]+)"', svg)
        used = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', svg)
        assert {a or b for a, b in used} <= set(ids)
    assert not set(re.findall(r'\bid="([^"]+)"', coverage)) & set(re.findall(r'\bid="([^"]+)"', reliability))


class Page(HTMLParser):
    """Counts tags, checks that they are closed, and collects attributes and text."""

    VOID = ("meta", "link", "img", "br", "path", "use")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(" ".join(data.split()))


def evaluate(artifact: Path, samples: list[Sample], folder: Path) -> tuple[str, Page]:
    write_shards(samples, folder / "shards")
    arguments = ["evaluate", artifact, folder / "shards", "--html", folder / "report.html", "--provider", "cpu"]
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    html = (folder / "report.html").read_text(encoding="utf-8")
    return html, Page(html)


def test_the_page_stands_alone_and_escapes_what_it_is_given(artifact: Path, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    samples = [
        Sample(png("12"), "12", None, "right.png", "plates", Region(0, 0, 10, 8)),
        Sample(png("7"), "8", None, evil, "plates & co", Region(0, 0, 10, 40)),
        Sample(png("9"), "", None, "wall.png", "walls"),
        Sample(png(""), "", None, "sky.png", "walls"),
        Sample(png("1")[:-30], "31", None, "truncated.png", evil),
    ]
    html, page = evaluate(artifact, samples, tmp_path)
    assert not page.tags["script"]
    assert evil in page.text
    assert page.tags["h1"] == 1
    addresses = [value for tag, name, value in page.attributes if name in ("src", "href", "srcset", "data")]
    assert all(value.startswith(("data:", "#")) for value in addresses)
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))

    pictures = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    assert len(pictures) == 4  # two misread, two right; what does not decode is named in words
    for address in pictures:
        with Image.open(io.BytesIO(base64.b64decode(address.removeprefix("data:image/jpeg;base64,")))) as image:
            assert max(image.size) == PICTURE_PX
    assert "7" in page.text
    assert page.tags["svg"] == 3
    text = " ".join(page.text)
    assert "2 of 2 are shown" in text
    assert "truncated.png: bad_image" in text
    assert "accepted, of 2 images without one" in text
    for words in ("below 12 px", "32 to 64 px", "unknown", "no number", "2 digits"):
        assert words in page.text


def test_a_page_of_no_numbers_has_no_coverage(artifact: Path, tmp_path: Path) -> None:
    html, page = evaluate(artifact, [Sample(png("9"), "", None, "wall.png", "walls")], tmp_path)
    assert page.tags["svg"] == 2
    assert "100.0%" in page.text  # of false numbers
    assert "NaN" not in html
    assert "nan" not in page.text
