"""What an experiment leaves behind: result.json, table.md and plots."""

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from housenumber import __version__
from models.data.shards import write_text
from models.experiments.experiment import Experiment, Result, Table, best_device, mean_and_spread
from service.geometry import Region, corners_in_pixels

RESULT = "result.json"
TABLE = "table.md"

BOX_COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#cc79a7")
"""Of the transformers in turn: four of Okabe and Ito's, which most colour-blind people tell apart."""

Example = tuple[NDArray[np.float32], NDArray[np.float32]]
"""An image and the outlines in it, as `gallery` takes them."""


def write_report(
    name: str, experiment: Experiment, settings: Mapping[str, Any], results: Sequence[Result], seconds: float, out: Path
) -> Path:
    """Write all of it into the folder `out`; the path of the table.

    Args:
        name: the experiment's.
        experiment: what was run.
        settings: what it was run with.
        results: of the seeds 0, 1, 2, ...
        seconds: what all of them took.
        out: an existing folder.
    """
    told = {
        "experiment": name,
        "settings": dict(settings),
        "device": best_device().type,
        "threads": torch.get_num_threads(),
        "seconds": round(seconds, 1),
        "versions": {
            "housenumber": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "seeds": [
            {"seed": seed, "figures": result.figures, "details": result.details} for seed, result in enumerate(results)
        ],
    }
    write_text(out / RESULT, json.dumps(told, indent=1, default=str) + "\n")
    for plot, figure in {**results[0].plots, **experiment.curves(results)}.items():
        figure.savefig(out / f"{plot}.png", dpi=100)
    budget = (
        f"--steps {settings['steps']}"
        if settings["steps"]
        else "published schedule"
        if settings["full"]
        else "default budget"
    ) + (", all cells" if settings.get("all") else "")
    lines = [
        f"# {experiment.title}",
        "",
        f"`housenumber experiment {name}`, {budget}, {len(results)} seed{'s' if len(results) > 1 else ''};"
        f" {seconds / 60:.1f} minutes ({told['device']}, {told['threads']} threads).",
    ]
    for table in experiment.tables:
        lines += ["", *markdown(table, results)]
    notes = (*results[0].notes, *experiment.notes)
    lines += ["", *(f"- {note}" for note in notes)] if notes else []
    write_text(out / TABLE, "\n".join(lines) + "\n")
    return out / TABLE


def markdown(table: Table, results: Sequence[Result]) -> list[str]:
    """A table's lines: in each cell the mean, ± the spread where seeds differ, and the paper's figure in brackets."""
    cells = [result.figures[table.key] for result in results]
    rows = list(dict.fromkeys(row for figures in cells for row, values in figures.items() if values))
    filled = {column for figures in cells for row in figures.values() for column in row}
    if unknown := filled - set(table.columns):
        raise ValueError(f"table {table.key} has no column {', '.join(sorted(unknown))}")
    columns = [column for column in table.columns if column in filled]
    lines = [f"**{table.title}**" + (" (the paper's figure in brackets)" if table.published else "")]
    lines += ["", f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for row in rows:
        texts = [
            _cell(
                [figures[row][column] for figures in cells if column in figures.get(row, {})],
                table.published.get(row, {}).get(column),
                table.decimals,
            )
            for column in columns
        ]
        lines.append(f"| {row} | {' | '.join(texts)} |")
    return lines


def _cell(values: Sequence[float], published: float | None, decimals: int) -> str:
    text = "-"
    if values:
        mean, spread = mean_and_spread(values)
        text = f"{mean:.{decimals}f}" + (f" ± {spread:.{decimals}f}" if spread else "")
    return text if published is None else f"{text} ({published:.{decimals}f})"


def examples(images: Tensor, outlines: Tensor, count: int = 8) -> list[Example]:
    """The first images `[N, C, H, W]` in [0, 1] and the outlines there, `[N, K, M, 2]`, for a row of `gallery`.

    One channel is shown grey; of two the first is red and the second cyan.
    """
    shown = images[:count].float()
    shown = shown[:, 0] if shown.shape[1] == 1 else shown[:, [0, 1, 1]].permute(0, 2, 3, 1)
    return list(zip(shown.numpy(), outlines[:count].numpy(), strict=True))


def gallery(rows: Mapping[str, Sequence[Example]], caption: str = "") -> Figure:
    """Images in rows, with what each transformer looked at drawn into them.

    Args:
        rows: by title; each image is `[H, W]` or `[H, W, 3]` in [0, 1], its outlines are `[K, M, 2]`, closed, in its
            normalised coordinates (x, y), as `models.boxes` gives them; K may be 0. The dot is the target's top-left.
        caption: above it all.
    """
    width = max(len(images) for images in rows.values())
    figure = Figure(figsize=(1.3 * width + 1.2, 1.4 * len(rows) + 0.3), layout="constrained")
    figure.suptitle(caption, fontsize=9)
    grid = figure.subplots(len(rows), width, squeeze=False)
    for line, (title, images) in zip(grid, rows.items(), strict=True):
        for axes in line:
            axes.axis("off")
        line[0].set_title(title, fontsize=8, loc="left")
        for axes, (image, outlines) in zip(line, images, strict=False):
            draw_outlines(axes, image, outlines)
    return figure


def draw_outlines(axes: Axes, image: NDArray[np.float32], outlines: NDArray[np.float32]) -> None:
    """One image of a `gallery`."""
    height, width = image.shape[:2]
    # Pixel i spans [i, i + 1], as everywhere in this project; boxes may reach outside.
    axes.imshow(image, cmap="gray", vmin=0, vmax=1, extent=(0, width, height, 0))
    whole = Region.whole(width, height)
    for index, outline in enumerate(outlines.tolist()):
        corners = corners_in_pixels(outline, whole)
        colour = BOX_COLOURS[index % len(BOX_COLOURS)]
        axes.fill(*zip(*corners, strict=True), fill=False, edgecolor=colour, linewidth=1.2)
        axes.plot(*corners[0], ".", color=colour, markersize=4)
    axes.set(xlim=(-0.15 * width, 1.15 * width), ylim=(1.15 * height, -0.15 * height))
