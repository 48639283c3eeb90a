"""`invariance`: what looking is worth when house numbers stand crooked, small, off-centre, slanted or among clutter.

The shipped reader, as it is served and with one look alone, against a twin without transformers, all through the
service's own code (lecture: the upside-down truck).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from models.data.sample import Sample
from models.evaluation.engines import load_engine
from models.evaluation.evaluate import evaluate_reader
from models.experiments.distorted_numbers import DISTORTIONS, distorted
from models.experiments.experiment import (
    Cells,
    Experiment,
    ExperimentError,
    Result,
    Settings,
    Table,
    mean_and_spread,
)
from models.experiments.house_numbers import framed, photographs, synthetic_numbers
from models.experiments.report import gallery
from service.engine import Engine
from service.errors import ServiceError
from service.reader import Reader
from service.settings import DEFAULT_MODEL

TWIN = Path(__file__).parents[1] / "weights" / "compact_cnn_turned.safetensors"
"""Made by `make twin`."""
IMAGES, FULL_IMAGES = 300, 2_000
"""Synthetic, where no collections are given."""
SEED = 1_000
"""Of the series that they are taken from: no recipe learns from it."""
NEAR = 45
"""Degrees, either way, at which losses are compared."""
EXAMPLES = 6
ONCE = "reader, looking once"
READERS = ("reader", ONCE, "twin")
UNITS = {
    "rotation": "degrees",
    "scale": "of the region",
    "shift": "in sides of the region",
    "shear": "pixels for each pixel down",
    "clutter": "fragments",
}
TURNED = f"at ±{NEAR}°"
SHARE = "lost ÷ the twin's"


def run(settings: Settings) -> Result:
    """Read everything by every amount of every distortion, with all of them."""
    reader, twin = _engines(settings)
    twice, once, blind = Reader(reader, search=False), Reader(reader, second_look=False, search=False), Reader(twin)
    readers = dict(zip(READERS, (twice, once, blind), strict=True))
    samples = [framed(sample, loosely=False) for sample in _numbers(settings)]
    if not samples:
        raise ExperimentError("the collections hold no numbers to read")
    figures: dict[str, Cells] = {name: {} for name in DISTORTIONS}
    for name, of_name in readers.items():
        count = len(samples) * sum(map(len, DISTORTIONS.values()))
        shown = zip(distorted(samples, settings.seed), settings.track(count, name), strict=True)
        report = evaluate_reader(of_name, (sample for sample, _ in shown))
        for distortion, amounts in DISTORTIONS.items():
            for amount in amounts:
                right = report.collections[f"{distortion} {amount:g}"].total.accuracy
                figures[distortion].setdefault(f"{amount:g}", {})[name] = 100 * right
    figures["lost"] = lost(figures["rotation"])
    details = {
        "samples": len(samples),
        **{
            name: {"reader": of_name.metadata.reader, "sha256": of_name.engine.sha256}
            for name, of_name in readers.items()
        },
    }
    return Result(figures, details, {"boxes": _boxes(readers["reader"], samples[:EXAMPLES], settings.seed)})


def lost(rotation: Cells) -> Cells:
    """What each loses between upright and turned by NEAR degrees, the mean of both ways, in points."""
    cells: Cells = {}
    for name in READERS:
        upright = rotation["0"][name]
        turned = (rotation[f"{NEAR}"][name] + rotation[f"-{NEAR}"][name]) / 2
        cells[name] = {"upright": upright, TURNED: turned, "lost": upright - turned}
    *readers, twin = READERS
    if cells[twin]["lost"] > 0:
        for name in readers:
            cells[name][SHARE] = cells[name]["lost"] / cells[twin]["lost"]
    return cells


def _engines(settings: Settings) -> tuple[Engine, Engine]:
    return load_engine(settings.model or DEFAULT_MODEL, "auto"), load_engine(settings.twin or TWIN, "auto")


def _numbers(settings: Settings) -> list[Sample]:
    """What has a number."""
    if settings.collections:
        samples = photographs(settings.collections)
    else:
        samples = synthetic_numbers(SEED + settings.seed, FULL_IMAGES if settings.full else IMAGES, settings)
    return [sample for sample in samples if sample.label]


def curves_chart(results: Sequence[Result]) -> Figure:
    """A panel for each distortion with a curve for each reader: the mean of the seeds, and their spread."""
    figure = Figure(figsize=(3.6 * len(DISTORTIONS), 3.4), layout="constrained")
    panels = figure.subplots(1, len(DISTORTIONS), sharey=True)
    for axes, (distortion, amounts) in zip(panels, DISTORTIONS.items(), strict=True):
        for name in READERS:
            figures = [
                mean_and_spread([result.figures[distortion][f"{amount:g}"][name] for result in results])
                for amount in amounts
            ]
            axes.errorbar(amounts, [m for m, _ in figures], [s or 0 for _, s in figures], marker=".", label=name)
        axes.set(title=distortion, xlabel=UNITS[distortion], ylim=(0, 100))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("whole numbers right, %")
    panels[0].legend()
    return figure


def _boxes(reader: Reader, samples: Sequence[Sample], seed: int) -> Figure:
    """Some photographs by every second rotation, and where the reader looks in them."""
    wanted = [f"rotation {amount:g}" for amount in DISTORTIONS["rotation"][::2]]
    rows: dict[str, list[tuple[NDArray[np.float32], NDArray[np.float32]]]] = {name: [] for name in wanted}
    for sample in distorted(samples, seed):
        if sample.collection in rows:
            try:
                photo, region = sample.open()
                pixels = photo.views([region], reader.metadata.input_size)[0].pixels
            except ServiceError:
                continue
            boxes = reader.infer(pixels[None]).boxes[0]
            rows[sample.collection].append(((pixels / 255).astype(np.float32), boxes))
    return gallery(rows)


EXPERIMENT = Experiment(
    title="Invariance: the shipped reader and its twin without transformers",
    run=run,
    tables=(
        Table(
            "lost",
            f"Whole numbers right, in %, upright and turned by {NEAR} degrees",
            ("upright", TURNED, "lost", SHARE),
        ),
        *(Table(name, f"Whole numbers right, in %, by {name} ({UNITS[name]})", READERS) for name in DISTORTIONS),
    ),
    notes=(
        "Without --collections, of synthetic numbers. Each is framed tightly where its box is known; images without a"
        " number are left out. models/experiments/distorted_numbers.py says how each distortion is made.",
        "The lecture and the paper show such curves for digits alone: there are no figures to stand beside these.",
        "A twin tells most where it was trained as the reader was: `compact_cnn_turned` is that of"
        " `compact_points_turned`.",
        "As it is served, the reader looks twice (service/second_look.py): what it saw crooked and is not sure of it is"
        " shown again, turned until its box is level; the probabilities of both looks are averaged.",
    ),
    curves=lambda results: {"curves": curves_chart(results)},
    options=("collections", "model", "twin"),
)
