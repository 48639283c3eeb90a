"""Cost of the readers: milliseconds per image in ONNX Runtime on the CPU, all in one run, side by side.

    make bench        (or: python -m bench.readers --threads 2 --json bench.json)

Freshly initialised weights cost what trained ones do. The readers take turns, round after round, so that
whatever else the machine is doing falls on all of them; each figure is the median over all runs.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from export.artifact import Label, build_artifact
from models.checkpoint import save_reader
from models.data.progress import progress_bar
from models.readers import ReaderSpec, build_reader
from service.cpus import usable_cpus
from service.engine import OnnxEngine

READERS = (("compact", 96), ("compact_points", 128), ("cnn", 64), ("st_cnn_single", 64), ("st_cnn_multi", 64))
REFERENCE = "st_cnn_multi"
"""The reader whose cost the others are compared with."""
RUNS_IN_A_ROW = 5
"""Of one reader in its turn, as in a service: most runs then find its weights where the run before left them."""


@click.command()
@click.option("--batch", "batches", multiple=True, type=click.IntRange(min=1), default=(1, 8, 32), show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=usable_cpus, show_default="usable CPUs")
@click.option("--rounds", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--json", "json_out", type=click.Path(dir_okay=False, path_type=Path))
def main(batches: tuple[int, ...], threads: int, rounds: int, json_out: Path | None) -> None:
    """Time every reader's artifact at the sizes that the paper and the shipped recipe use."""
    with progress_bar() as bar, tempfile.TemporaryDirectory() as folder:
        work = bar.add_task("readers", total=len(READERS) + rounds * len(batches))
        engines = {}
        for name, size in READERS:
            engines[name] = _engine(name, size, Path(folder), threads)
            bar.advance(work)
        seconds: dict[tuple[str, int], list[float]] = {}
        for batch in batches:
            images = {
                name: np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8)
                for name, size in READERS
            }
            for engine, pixels in zip(engines.values(), images.values(), strict=True):
                engine.infer(pixels)
            for _ in range(rounds):
                for name, engine in engines.items():
                    for _ in range(RUNS_IN_A_ROW):
                        started = time.perf_counter()
                        engine.infer(images[name])
                        seconds.setdefault((name, batch), []).append(time.perf_counter() - started)
                bar.advance(work)
    figures = {key: statistics.median(times) / key[1] * 1000 for key, times in seconds.items()}

    table = Table("reader", "batch", "ms per image", f"{REFERENCE} ÷ this")
    for (name, batch), value in figures.items():
        table.add_row(name, str(batch), f"{value:.2f}", f"{figures[REFERENCE, batch] / value:.2f}")
    Console().print(table)
    if json_out:
        rows = [{"reader": name, "batch": batch, "ms_per_image": value} for (name, batch), value in figures.items()]
        json_out.write_text(json.dumps({"threads": threads, "rounds": rounds, "figures": rows}, indent=1) + "\n")


def _engine(name: str, size: int, folder: Path, threads: int) -> OnnxEngine:
    """An artifact of the reader with random weights, in a CPU session of so many threads."""
    torch.manual_seed(0)
    spec = ReaderSpec(name, size, size)
    weights, artifact = folder / f"{name}.safetensors", folder / f"{name}.onnx"
    save_reader(weights, build_reader(spec), spec)
    artifact.write_bytes(build_artifact(weights, Label(name=name)))
    return OnnxEngine(artifact, "cpu", intra_op_threads=threads)


if __name__ == "__main__":
    main()
