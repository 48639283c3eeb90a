"""The Pareto front of cost and accuracy."""

from collections.abc import Mapping

from matplotlib.figure import Figure

from models.experiments.experiment import Cells


def front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The Pareto front: the names of the points (cost, accuracy) that no other dominates, cheapest first."""
    best = []
    for name, (cost, accuracy) in points.items():
        others = (point for other, point in points.items() if other != name)
        if not any(c <= cost and a >= accuracy and (c, a) != (cost, accuracy) for c, a in others):
            best.append(name)
    return sorted(best, key=lambda name: points[name])


def pareto_chart(figures: Mapping[str, Cells], accuracy: str, costs: Mapping[str, str]) -> Figure:
    """A panel for each table and cost, with a line through the front.

    Args:
        figures: tables by their title.
        accuracy: the column that is good when it is high.
        costs: the columns that are good when they are low, with what to write at the axis.
    """
    figure = Figure(figsize=(5.5 * len(costs), 3.8 * len(figures)), layout="constrained")
    grid = figure.subplots(len(figures), len(costs), squeeze=False)
    for line, (title, cells) in zip(grid, figures.items(), strict=True):
        for axes, (column, label) in zip(line, costs.items(), strict=True):
            points = {name: (row[column], row[accuracy]) for name, row in cells.items()}
            axes.plot(*zip(*(points[name] for name in front(points)), strict=True), color="0.7", zorder=1)
            for name, point in points.items():
                axes.plot(*point, "o", zorder=2)
                axes.annotate(name, point, xytext=(4, 4), textcoords="offset points", fontsize=8)
            axes.set(title=title, xlabel=label, ylabel=f"{accuracy}, %", xscale="log")
            axes.grid(alpha=0.3)
    return figure
