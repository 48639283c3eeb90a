"""The charts of an evaluation, as SVG to stand within a page.

They have no colours of their own: lines and letters are drawn in the page's `currentColor`, data in its custom
properties --first and --second, so that one chart does for a light and a dark page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from models.evaluation.confidence import Bin

MOST_POINTS = 500
"""A line of more points is thinned: no screen shows them."""

# Colours that stand for the page's own until the SVG is written.
_INK, _FIRST, _SECOND = "#010203", "#040506", "#070809"
_OF_THE_PAGE = {_INK: "currentColor", _FIRST: "var(--first)", _SECOND: "var(--second)"}

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # letters stay letters: small, searchable, in the page's font
    "svg.hashsalt": "housenumber",
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _INK,
    "grid.alpha": 0.15,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def coverage_chart(curve: Sequence[tuple[float, float]], target: float, accepted: tuple[float, float] | None) -> str:
    """SVG of the accuracy among the accepted over the share accepted.

    curve: as `coverage_curve` gives it, of at least one point. target: the accuracy that coverage is defined at.
    accepted: (share, accuracy) at the artifact's own threshold, if it accepts anything.
    """
    points = np.array(curve)[np.unique(np.linspace(0, len(curve) - 1, MOST_POINTS).astype(int))]

    def draw(axes: Any) -> None:
        axes.plot(*points.T, color=_FIRST, linewidth=1.8)
        axes.axhline(target, color=_SECOND, linestyle="--", linewidth=1, label=f"{target:.0%} right")
        if accepted is not None:
            axes.plot(*accepted, "o", color=_SECOND, label="the artifact's threshold")
        axes.set(xlabel="share accepted", ylabel="right among the accepted", xlim=(0, 1.02))
        axes.set_ylim(min(0.9, points[:, 1].min() - 0.02), 1.005)
        axes.legend(loc="lower left")

    return _svg("coverage", draw)


def reliability_chart(bins: Sequence[Bin | None]) -> str:
    """SVG of the share right in each bin of confidence, with the diagonal of perfect calibration.

    bins: as `reliability` gives them. The dots lie at the bins' mean confidence.
    """
    filled = [(index / len(bins), part) for index, part in enumerate(bins) if part is not None]

    def draw(axes: Any) -> None:
        accuracy = [part.accuracy for _, part in filled]
        axes.bar([lower for lower, _ in filled], accuracy, 1 / len(bins), align="edge", color=_FIRST, alpha=0.45)
        axes.plot([0, 1], [0, 1], "--", color=_INK, linewidth=1)
        axes.plot([part.confidence for _, part in filled], accuracy, "o", color=_FIRST, markersize=4)
        axes.set(xlabel="confidence", ylabel="right", xlim=(0, 1), ylim=(0, 1.02))

    return _svg("reliability", draw)


def confidence_chart(bins: Sequence[Bin | None], n: int) -> str:
    """SVG of how many of `n` readings, right and wrong, have which confidence; `bins` as `reliability` gives them."""
    edges = [index / len(bins) for index in range(len(bins))]
    right = np.array([0 if part is None else round(n * part.share * part.accuracy) for part in bins])
    wrong = np.array([0 if part is None else round(n * part.share) for part in bins]) - right

    def draw(axes: Any) -> None:
        axes.bar(edges, right, 1 / len(bins), align="edge", color=_FIRST, label="right")
        axes.bar(edges, wrong, 1 / len(bins), bottom=right, align="edge", color=_SECOND, label="wrong")
        axes.set(xlabel="confidence", ylabel="readings", xlim=(0, 1))
        axes.set_yscale("symlog", linthresh=10)  # a good reader is nearly always sure: the others must show too
        axes.set_ylim(0, None)
        axes.legend(loc="upper left")

    return _svg("confidence", draw)


def _svg(name: str, draw: Callable[[Any], None]) -> str:
    """What `draw` draws on the axes it is given; `name` keeps the ids apart from other charts' on the same page."""
    buffer = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.4, 3.1), layout="constrained")
        draw(figure.subplots())
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]  # without the prolog of a file
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    for stand_in, colour in _OF_THE_PAGE.items():
        svg = svg.replace(stand_in, colour)
    return svg
