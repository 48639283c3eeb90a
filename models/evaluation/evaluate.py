"""Reads collections exactly as the service would, and leaves no sample out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import combinations
from statistics import fmean

from models.data.sample import Sample
from models.data.shards import chunks
from models.evaluation.box_coverage import covered_share, overlap
from models.evaluation.report import Outcome, Report
from models.readers import SIDE_BY_SIDE
from service.errors import Internal, ServiceError
from service.imaging import View
from service.reader import Reader, Reading


def evaluate_reader(reader: Reader, samples: Iterable[Sample]) -> Report:
    """Reads all `samples` and reports how much was right."""
    return Report.of(outcome for _, outcome in read_samples(reader, samples))


def read_samples(reader: Reader, samples: Iterable[Sample]) -> Iterator[tuple[Sample, Outcome]]:
    """What `reader` reads in each sample, in order; `reader.max_batch_size` samples are in memory at a time.

    A photograph that cannot be decoded, a region that is not part of it, or an image on which the reader fails gives an
    outcome with an error.
    """
    for batch in chunks(samples, reader.max_batch_size):
        views = [_view(sample, reader.metadata.input_size) for sample in batch]
        readings = iter(reader.read_each([view for view in views if isinstance(view, View)]))
        for sample, view in zip(batch, views, strict=True):
            unread = _unread(sample)
            if isinstance(view, View):
                side_by_side = reader.metadata.reader in SIDE_BY_SIDE
                yield sample, _outcome(unread, sample, view, next(readings), side_by_side=side_by_side)
            else:
                yield sample, _failed(unread, view)


def _unread(sample: Sample) -> Outcome:
    box = sample.number_box
    height = None if box is None else box.height
    return Outcome(sample.collection, sample.source, sample.label, None, 0.0, digit_height=height)


def _failed(unread: Outcome, error: ServiceError) -> Outcome:
    return replace(unread, error=f"{error.code}: {error.detail}")


def _outcome(
    unread: Outcome, sample: Sample, view: View, reading: Reading | Internal, *, side_by_side: bool
) -> Outcome:
    if isinstance(reading, Internal):
        return _failed(unread, reading)
    corners = [box.corners for box in reading.boxes]
    read_from = corners if side_by_side else corners[-1:]
    box = sample.number_box
    # Boxes may reach beyond the view: this much of them is compared.
    around = view.region.enlarged(4.0)
    overlaps = [overlap(around, first, second) for first, second in combinations(corners, 2)]
    return replace(
        unread,
        read=reading.number,
        confidence=reading.confidence,
        accepted=reading.accepted,
        view_shares=tuple(covered_share(view.region, looked_at) for looked_at in corners),
        number_share=covered_share(box, *read_from) if box is not None and corners else None,
        overlap=fmean(overlaps) if overlaps else None,
    )


def _view(sample: Sample, size: tuple[int, int]) -> View | ServiceError:
    try:
        photo, region = sample.open()
        (view,) = photo.views([region], size)
    except ServiceError as error:
        return error
    return view
