"""Cost of the readers: milliseconds per image in ONNX Runtime on the CPU, all in one run, side by side.

    make bench        (or: python -m bench.readers --threads 2 --json bench.json)

Freshly initialised weights cost what trained ones do. The readers take turns, round after round; each figure is the
median over all runs.
"""

import json
import tempfile
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.table import Table

from export.artifact import Label, build_artifact
from models.checkpoint import save_reader
from models.data.progress import progress_bar
from models.evaluation.timing import milliseconds_per_image
from models.readers import READERS, ReaderSpec, build_reader
from models.training.recipe import RECIPES, load_recipe
from service.cpus import usable_cpus
from service.engine import OnnxEngine

REFERENCE = "st_cnn_multi"
"""The reader whose cost the others are compared with."""


def smallest_specs() -> list[ReaderSpec]:
    """Every reader, at the smallest input that it has a recipe for."""
    specs = [load_recipe(path.stem).spec for path in RECIPES.glob("*.toml")]
    return [
        min((spec for spec in specs if spec.reader == name), key=lambda spec: spec.input_height * spec.input_width)
        for name in READERS
    ]


@click.command()
@click.option("--batch", "batches", multiple=True, type=click.IntRange(min=1), default=(1, 8, 32), show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=usable_cpus, show_default="usable CPUs")
@click.option("--rounds", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--json", "json_out", type=click.Path(dir_okay=False, path_type=Path))
def main(batches: tuple[int, ...], threads: int, rounds: int, json_out: Path | None) -> None:
    """Time every reader's artifact at the smallest size that a recipe trains it for."""
    specs = smallest_specs()
    with progress_bar() as bar, tempfile.TemporaryDirectory() as folder:
        work = bar.add_task("readers", total=len(specs) + rounds * len(batches))
        engines = {}
        for spec in specs:
            engines[spec.reader] = _engine(spec, Path(folder), threads)
            bar.advance(work)
        figures = {
            (name, batch): value
            for batch in batches
            for name, value in milliseconds_per_image(engines, batch, rounds, lambda: bar.advance(work)).items()
        }

    table = Table("reader", "batch", "ms per image", f"{REFERENCE} ÷ this")
    for (name, batch), value in figures.items():
        table.add_row(name, str(batch), f"{value:.2f}", f"{figures[REFERENCE, batch] / value:.2f}")
    Console().print(table)
    if json_out:
        rows = [{"reader": name, "batch": batch, "ms_per_image": value} for (name, batch), value in figures.items()]
        json_out.write_text(json.dumps({"threads": threads, "rounds": rounds, "figures": rows}, indent=1) + "\n")


def _engine(spec: ReaderSpec, folder: Path, threads: int) -> OnnxEngine:
    """An artifact of the reader with random weights, in a CPU session of so many threads."""
    torch.manual_seed(0)
    weights, artifact = folder / f"{spec.reader}.safetensors", folder / f"{spec.reader}.onnx"
    save_reader(weights, build_reader(spec), spec)
    artifact.write_bytes(build_artifact(weights, Label(name=spec.reader)))
    return OnnxEngine(artifact, "cpu", intra_op_threads=threads)


if __name__ == "__main__":
    main()
