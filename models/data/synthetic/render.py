"""Puts the stages together: one seed and one index make one sample, always the same."""

from __future__ import annotations

import hashlib
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from models.data.sample import Sample
from models.data.synthetic import camera, fonts
from models.data.synthetic.camera import Photograph
from models.data.synthetic.closeup import photograph_closeup
from models.data.synthetic.fonts import Face, installed_faces
from models.data.synthetic.lettering import set_digits
from models.data.synthetic.negatives import KINDS, photograph_without_number, render_without_number
from models.data.synthetic.palette import draw_palette
from models.data.synthetic.scene import photograph_scene
from models.data.synthetic.statistics import draw, draw_number, load_statistics

COLLECTION = "synthetic"
NO_NUMBER_SHARE = 0.06
SCENE_SHARE = 0.22
# Share of tilted numbers whose digits stay upright on a sloping line.
STEPPED_SHARE = 0.2
# Share of numbers whose tilt is drawn evenly: steep ones are rare in the statistics and hard to read.
EVEN_TILT_SHARE = 0.06
SMALLEST, LARGEST = 10.0, 100.0


def render(index: int, seed: int, faces: Sequence[Face] | None = None) -> Sample:
    """The sample of that index; faces: what to set numbers in, the installed ones when None."""
    rng = np.random.default_rng([seed, index])
    faces = installed_faces() if faces is None else faces
    number = draw_number(rng)
    way = rng.random()
    if way < NO_NUMBER_SHARE:
        number = ""
        taken = photograph_without_number(KINDS[int(rng.integers(len(KINDS)))], faces, rng)
    elif way < NO_NUMBER_SHARE + SCENE_SHARE:
        taken = photograph_scene(number, faces, rng)
    else:
        taken = _closeup(number, faces, rng)
    return Sample(
        image=camera.encode(taken.image, rng),
        label=number,
        region=taken.region,
        source=f"{seed}/{index}",
        collection=COLLECTION,
        number_box=taken.number_box if number else None,
    )


def _closeup(number: str, faces: Sequence[Face], rng: np.random.Generator) -> Photograph:
    """A close view with the size and the tilt that the statistics say."""
    native = float(np.clip(draw(load_statistics().height, rng), SMALLEST, LARGEST))
    working = float(np.clip(native * 1.15, 28, LARGEST))
    tilt = float(np.clip(draw(load_statistics().tilt, rng), -45, 45))
    if rng.random() < EVEN_TILT_SHARE:
        tilt = float(rng.uniform(-40, 40))
    stepped = rng.random() < STEPPED_SHARE
    letters = set_digits(number, round(working), faces, rng, tilt if stepped else 0.0)
    turn = float(rng.normal(0, 2)) if stepped else tilt
    return photograph_closeup(letters, len(number), native, turn, draw_palette(rng), rng)


def generate(
    seed: int, start: int, count: int, processes: int, faces: Sequence[Face] | None = None
) -> Iterator[Sample]:
    """Samples start to start + count - 1 of a seed, in order, rendered by so many processes."""
    return _in_order(render, seed, start, count, processes, faces)


def generate_without_number(
    seed: int, start: int, count: int, processes: int, faces: Sequence[Face] | None = None
) -> Iterator[Sample]:
    """As `generate`, but of images without a number, all KINDS by turns, each its own collection."""
    return _in_order(render_without_number, seed, start, count, processes, faces)


def _in_order(
    renderer: Callable[..., Sample],
    seed: int,
    start: int,
    count: int,
    processes: int,
    faces: Sequence[Face] | None,
) -> Iterator[Sample]:
    faces = tuple(installed_faces() if faces is None else faces)
    job = partial(renderer, seed=seed, faces=faces)
    indices = range(start, start + count)
    if processes <= 1:
        yield from map(job, indices)
        return
    # "spawn": a fork of a process that runs threads (torch's, ours) may hang.
    with multiprocessing.get_context("spawn").Pool(processes, initializer=_start_worker) as pool:
        yield from pool.imap(job, indices, chunksize=32)


def _start_worker() -> None:
    cv2.setNumThreads(1)
    # Ctrl-C reaches all processes; the parent ends this one, which would only print a stack trace.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def generator_digest(faces: Sequence[Face], package: Path = Path(__file__).parent) -> str:
    """Twelve hexadecimal characters that name this generator with these faces: its sources, its statistics and the
    faces' names. Two machines with equal digests (and the same versions of the libraries) make equal images."""
    whole = hashlib.sha256(fonts.digest(faces).encode())
    for file in sorted([*package.glob("*.py"), package / "statistics.json"]):
        content = file.read_bytes()
        whole.update(f"\n{file.name} {len(content)}\n".encode())
        whole.update(content)
    return whole.hexdigest()[:12]
