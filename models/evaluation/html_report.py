"""An evaluation as one HTML file for people to look at: no network, no scripts, pictures and charts within."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from models.evaluation.box_coverage import WHOLE_NUMBER
from models.evaluation.charts import confidence_chart, coverage_chart, reliability_chart
from models.evaluation.report import COVERAGE_ACCURACY, Figures, Outcome, Report, percent
from models.evaluation.report_gallery import Exhibit, Galleries, Gallery, picture
from models.evaluation.statistics import BLANK
from service.reader import Reader

_JPEG_QUALITY = 80


@dataclass(frozen=True)
class DigitFigures:
    """How a digit fares over all slots: None where it is never read (precision) or never there (recall)."""

    digit: str
    slots: int
    precision: float | None
    recall: float | None


@dataclass(frozen=True)
class ConfusionCell:
    """How often a class was read as another, and the strength of its colour in [0, 1]."""

    count: int
    strength: float
    right: bool


@dataclass(frozen=True)
class Picture:
    """An exhibit to be shown: the address holds the JPEG itself."""

    address: str
    outcome: Outcome


def html_report(about: dict[str, str], report: Report, galleries: Galleries, reader: Reader) -> str:
    """The page.

    about: name -> value of what is to stand at its head: the model and the data.
    galleries: were offered what `report` is of; `reader` reads their exhibits once more.
    """
    environment = Environment(
        loader=PackageLoader("models.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    total = report.overall.total
    parts = [*report.collections.items(), ("all", report.overall)]
    charts = {
        "coverage": Markup(coverage_chart(report.curve, COVERAGE_ACCURACY, _at_threshold(total)))
        if report.curve
        else "",
        "reliability": Markup(reliability_chart(report.calibration)),
        "confidence": Markup(confidence_chart(report.calibration, total.n - total.unreadable)),
    }
    return environment.get_template("report.html.j2").render(
        about=about,
        report=report,
        target=COVERAGE_ACCURACY,
        whole_number=WHOLE_NUMBER,
        total=total,
        collections=[(name, part.total) for name, part in parts],
        lengths=[(_spelled(length), figures) for length, figures in report.overall.by_length.items()],
        looked=[(name, part.boxes) for name, part in parts if part.boxes],
        digits=digit_figures(report.confusion),
        confusion=_confusion_cells(report.confusion),
        classes=[*"0123456789", "blank"],
        charts=charts,
        galleries={"failures": galleries.failures, "doubtful": galleries.doubtful},
        pictures={
            "failures": _pictures(galleries.failures, reader),
            "doubtful": _pictures(galleries.doubtful, reader),
        },
        unreadable=[outcome for outcome in report.errors if outcome.error],
    )


def _spelled(length: int) -> str:
    return "no number" if length == 0 else f"{length} digit{'s' * (length != 1)}"


def digit_figures(confusion: NDArray[np.int64]) -> list[DigitFigures]:
    """Precision and recall of each digit, from a `slot_confusion`."""
    figures = []
    for digit in range(BLANK):
        right, there, read = confusion[digit, digit], confusion[digit].sum(), confusion[:, digit].sum()
        figures.append(
            DigitFigures(
                digit=str(digit),
                slots=int(there),
                precision=float(right / read) if read else None,
                recall=float(right / there) if there else None,
            )
        )
    return figures


def _confusion_cells(confusion: NDArray[np.int64]) -> list[list[ConfusionCell]]:
    """Coloured by the share of the row, as its root: mistakes are rare, and are to be seen."""
    strength = np.sqrt(confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1))
    return [
        [ConfusionCell(int(count), float(strength[row, column]), row == column) for column, count in enumerate(counts)]
        for row, counts in enumerate(confusion)
    ]


def _at_threshold(total: Figures) -> tuple[float, float] | None:
    return (total.accepted / total.numbers, total.accepted_right / total.accepted) if total.accepted else None


def _pictures(gallery: Gallery, reader: Reader) -> list[Picture]:
    return [Picture(_data_address(exhibit, reader), exhibit.outcome) for exhibit in gallery.exhibits()]


def _data_address(exhibit: Exhibit, reader: Reader) -> str:
    buffer = io.BytesIO()
    picture(reader, exhibit.sample).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
