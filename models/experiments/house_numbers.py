"""House numbers for experiments: synthetic ones, photographs, and how closely they are framed."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from models.data.sample import Sample, number_region
from models.data.synthetic.render import generate
from models.evaluation.options import open_data
from models.experiments.experiment import Settings
from service.cpus import usable_cpus
from service.errors import ServiceError

FEW = 256
"""So many are drawn sooner than a second process starts."""
LOOSE = 1.0
"""How much a tight region is enlarged to give a loose one: twice the width, twice the height."""


def synthetic_numbers(seed: int, count: int, settings: Settings) -> list[Sample]:
    """The first `count` of that seed's series."""
    drawn = generate(seed, 0, count, usable_cpus() if count > FEW else 1)
    return [sample for sample, _ in zip(drawn, settings.track(count, "house numbers"), strict=True)]


def photographs(paths: Sequence[Path]) -> list[Sample]:
    """All samples of the collections. Raises click.UsageError where they cannot be read, or hold none."""
    return [sample for data in open_data(paths) for sample in data.samples]


def framed(sample: Sample, *, loosely: bool) -> Sample:
    """The sample as the STN paper frames house numbers.

    Tightly: the number's box enlarged by 30 %, or where that is not known what the sample shows. Loosely: twice the
    width and height of that. Both end where the photograph does. What cannot be decoded stays as it is.
    """
    try:
        photo, region = sample.open()
    except ServiceError:
        return sample
    if sample.number_box is not None:
        region = number_region(sample.number_box, photo.width, photo.height)
    if loosely:
        region = region.enlarged(LOOSE).clipped(photo.width, photo.height)
    return replace(sample, region=region)
