"""What a run tells: `metrics.jsonl`, TensorBoard, and the curves as a picture."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter

from models.data.shards import write_text

METRICS = "metrics.jsonl"
CURVES = "curves.png"


class Journal:
    """Writes the scalars of a run as they come; goes on after a resume as if nothing had happened."""

    def __init__(self, folder: Path, start: int) -> None:
        """
        Args:
            folder: the run's.
            start: first step to come; what an earlier, killed run wrote from there on is dropped.
        """
        self.path = folder / METRICS
        kept = [row for row in read_metrics(self.path) if row["step"] <= start]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)

    def scalars(self, step: int, **values: float) -> None:
        """One row: values after `step` steps."""
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self.board.add_scalar(name.replace("_", "/", 1), value, step)

    def image(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        """A picture, uint8 `[H, W, 3]`."""
        self.board.add_image(name, pixels, step, dataformats="HWC")

    def flush(self) -> None:
        """Put on disk what TensorBoard holds back: to be called before a state from which a run may go on."""
        self.board.flush()

    def close(self) -> None:
        """Write what is still held back."""
        self.board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows so far; a last line cut off by a kill is left out."""
    rows: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows


def draw_curves(folder: Path) -> Path:
    """`curves.png`: loss, validation accuracy and learning rate over the steps."""
    rows = read_metrics(folder / METRICS)
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    panels = {
        "negative log-likelihood": ("train_loss", "validation_loss"),
        "whole numbers right": ("validation_accuracy",),
        "learning rate": ("train_learning_rate",),
    }
    for axes, (title, names) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for name in names:
            points = [(row["step"], row[name]) for row in rows if name in row]
            if points:
                axes.plot(*zip(*points, strict=True), label=name.replace("_", " "))
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
        if len(names) > 1:
            axes.legend()
            axes.set_yscale("log")
    figure.savefig(folder / CURVES, dpi=100)
    return folder / CURVES
