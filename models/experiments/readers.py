"""`readers`: every reader on house numbers under one budget, framed tightly and loosely (STN paper, section 4.2).

The budget is one of multiplications: who needs half as many for an image learns from twice as many images. Accuracy is
measured by the service's own code; times in ONNX Runtime, all readers taking turns.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch._subclasses.fake_tensor import FakeTensorMode

from export.artifact import Label, build_artifact
from models.data.sample import Sample
from models.data.shards import ShardError, read_shards
from models.evaluation.evaluate import evaluate_reader
from models.evaluation.timing import milliseconds_per_image
from models.experiments.cost import Cost
from models.experiments.experiment import Cells, Experiment, ExperimentError, Result, Settings, Table
from models.experiments.house_numbers import framed, photographs, synthetic_numbers
from models.experiments.pareto import pareto_chart
from models.experiments.report import gallery
from models.readers import READERS, ReaderSpec, build_reader
from models.training import loop
from models.training.dataset import DataError, hold_out
from models.training.recipe import DataTable, OptimiserTable, ReaderTable, Recipe, RunTable, ScheduleTable, load_recipe
from service.cpus import usable_cpus
from service.engine import Engine, OnnxEngine
from service.reader import Reader

FRAMINGS = {"tight": 64, "loose": 128}
"""Side of the view in pixels, as in the paper: loose views show more, and the number about as large."""
TIGHT_ALONE = frozenset({"maxout_cnn", "maxout_cnn_slots"})
"""Those of Goodfellow et al., who have no other size."""
REFERENCE = "cnn"
"""The reader whose time the others' is divided by."""
RATIO = f"÷ {REFERENCE}"

MULTIPLICATIONS, FULL_MULTIPLICATIONS = 3e11, 4e16
"""Of one reader at one size, once through all that it learns from. The larger is what `cnn` takes at 64 pixels for the
published schedule: 400,000 steps of 128."""
PUBLISHED = "cnn-64"
"""The recipe that this schedule is that of."""
BATCH_SIZE = 32
IMAGES, FULL_IMAGES = 4_000, 120_000
HELD_OUT, FULL_HELD_OUT = 200, 2_000
TIMED_AT_ONCE, ROUNDS = 8, 4
EXAMPLES = 6


def run(settings: Settings) -> Result:
    """Train, export, measure and time every reader at each framing."""
    training, held_out = _samples(settings)
    real = photographs(settings.collections) if settings.collections else []
    figures: dict[str, Cells] = {}
    details: dict[str, Any] = {}
    plots: dict[str, Figure] = {}
    for framing, size in FRAMINGS.items():
        to_learn, to_read, to_read_too = (
            [framed(sample, loosely=framing == "loose") for sample in samples] for samples in (training, held_out, real)
        )
        rows: Cells = {}
        details[framing] = {}
        engines: dict[str, Engine] = {}
        # With its optimiser a reader may take a gigabyte: nothing is kept but the artifacts, until they are timed.
        with tempfile.TemporaryDirectory(dir=settings.out) as kept:
            for name in READERS:
                if framing != "tight" and name in TIGHT_ALONE:
                    continue
                recipe, rows[name] = plan(name, size, settings)
                artifact = Path(kept) / f"{name}.onnx"
                _train(recipe, to_learn, to_read, artifact, f"{name}, {framing}", settings)
                engines[name] = OnnxEngine(artifact, "cpu", intra_op_threads=usable_cpus())
                details[framing][name] = {}
                for samples, prefix in ((to_read, ""), (to_read_too, "photographs ")):
                    if samples:
                        report = evaluate_reader(Reader(engines[name], second_look=False, search=False), samples)
                        total = report.overall.total
                        rows[name] |= {f"{prefix}right": 100 * total.accuracy}
                        rows[name] |= {f"{prefix}digits right": 100 * total.digit_accuracy}
                        details[framing][name] |= {key: part.to_json() for key, part in report.collections.items()}
            turns = iter(settings.track(ROUNDS, f"timing, {framing}"))
            times = milliseconds_per_image(engines, TIMED_AT_ONCE, ROUNDS, partial(_advance, turns))
            list(turns)
        for name, milliseconds in times.items():
            rows[name] |= {"ms": milliseconds, RATIO: milliseconds / times[REFERENCE]}
        figures[framing] = rows
        plots[f"boxes-{framing}"] = _boxes(engines, to_read[:EXAMPLES])
    costs = {"ms": "milliseconds per image", "M parameters": "million parameters"}
    plots["pareto"] = pareto_chart(figures, "right", costs)
    return Result(figures, details, plots)


def _samples(settings: Settings) -> tuple[list[Sample], list[Sample]]:
    """To learn from, and held out."""
    count, held_out = (FULL_IMAGES, FULL_HELD_OUT) if settings.full else (IMAGES, HELD_OUT)
    if settings.data is not None:
        try:
            return hold_out(read_shards(settings.data), held_out)
        except (ShardError, DataError) as error:
            raise ExperimentError(str(error)) from error
    if settings.steps:
        # No more than are used.
        count, held_out = (min(number, settings.steps * BATCH_SIZE) for number in (count, held_out))
    seed = 2 * settings.seed
    return synthetic_numbers(seed, count, settings), synthetic_numbers(seed + 1, held_out, settings)


def plan(name: str, size: int, settings: Settings) -> tuple[Recipe, dict[str, float]]:
    """How one reader is trained for views of `size` x `size` pixels, and what of it stands in the table."""
    # Without storage: the forms of the tensors say what is multiplied.
    with FakeTensorMode():
        cost = Cost.of(build_reader(ReaderSpec(name, size, size)), 3, size, size)
    paper = load_recipe(PUBLISHED)
    batch_size = paper.schedule.batch_size if settings.full else BATCH_SIZE
    affordable = (
        round(budget / cost.multiplications / batch_size) for budget in (MULTIPLICATIONS, FULL_MULTIPLICATIONS)
    )
    steps = settings.budget(*(max(1, count) for count in affordable))
    optimiser = OptimiserTable(name="adamw", learning_rate=1e-3, weight_decay=0.02, clip_norm=5.0)
    schedule = ScheduleTable(name="cosine", steps=steps, batch_size=batch_size, warmup_steps=steps // 20)
    if settings.full:
        optimiser = paper.optimiser
        schedule = paper.schedule.model_copy(update={"steps": steps, "step_every": max(1, steps // 5)})
    recipe = Recipe(
        reader=ReaderTable(name=name, input_height=size, input_width=size),
        data=DataTable(),
        optimiser=optimiser,
        schedule=schedule,
        run=RunTable(seed=settings.seed, precision="bf16", validate_every=steps, checkpoint_every=steps),
    )
    row = {"steps": steps, "M parameters": cost.parameters / 1e6, "M multiplications": cost.multiplications / 1e6}
    return recipe, row


def _train(
    recipe: Recipe, training: Sequence[Sample], watched: Sequence[Sample], out: Path, title: str, settings: Settings
) -> None:
    """Write the artifact `out` of what the recipe gives; `title` is the progress bar's."""
    steps = iter(settings.track(recipe.schedule.steps, title))
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        try:
            weights = loop.train(
                recipe, training, watched, Path(folder), workers=0, report=lambda progress: _advance(steps)
            )
        except (loop.TrainingError, DataError) as error:
            raise ExperimentError(f"{title}: {error}") from error
        out.write_bytes(build_artifact(weights, Label(name=recipe.reader.name)))
    list(steps)


def _advance(bar: Iterator[int]) -> None:
    next(bar)


def _boxes(engines: Mapping[str, Engine], samples: Sequence[Sample]) -> Figure:
    """Some views, and where each reader looks in them."""
    rows = {}
    for name, engine in engines.items():
        opened = [sample.open() for sample in samples]
        pixels = np.stack([photo.views([region], engine.metadata.input_size)[0].pixels for photo, region in opened])
        boxes = engine.infer(pixels).boxes
        rows[name] = list(zip(pixels.astype(np.float32) / 255, boxes, strict=True))
    return gallery(rows)


def _table(framing: str, published: Mapping[str, float]) -> Table:
    """Of one framing; `published`: the paper's errors in %, by reader."""
    figures = {name: {"right": 100 - error} for name, error in published.items()}
    figures.setdefault("st_cnn_multi", {})[RATIO] = 1.06
    return Table(
        framing,
        f"{framing.capitalize()} framing, {FRAMINGS[framing]} pixels; right: in %",
        (
            *("right", "digits right", "photographs right", "photographs digits right"),
            *("steps", "ms", RATIO, "M parameters", "M multiplications"),
        ),
        figures,
        decimals=2,
    )


EXPERIMENT = Experiment(
    title="All readers on house numbers under one budget",
    run=run,
    tables=(
        _table("tight", {"maxout_cnn": 4.0, "cnn": 4.0, "st_cnn_single": 3.7, "st_cnn_multi": 3.6}),
        _table("loose", {"cnn": 5.6, "st_cnn_single": 3.9, "st_cnn_multi": 3.9}),
    ),
    notes=(
        "One budget: each reader at each size multiplies equally often in training, so that costly ones learn from"
        " fewer images; --steps trains all for equally many steps of 32. The paper's accuracies took 400,000 steps of"
        " 128 on SVHN. Ten minutes on a CPU are far too few for any of these: there the costs are the result, and the"
        " accuracies no more than a sign that everything learns.",
        "Held out: synthetic numbers that nothing was learned from; photographs: --collections. Digits right: slot by"
        " slot, as `housenumber evaluate` counts.",
        f"ms: for each of {TIMED_AT_ONCE} images at once in ONNX Runtime on the CPU, the median over runs in which all"
        " readers of a table take turns. The paper's 1.06 is its own of st_cnn_multi to cnn.",
        "Loose: twice the width and height of the tight region, as far as the photograph reaches. Goodfellow's readers"
        " are for 64 pixels alone.",
    ),
    options=("data", "collections"),
)
