"""Reads collections exactly as the service would, and leaves no sample out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from models.data.sample import MAX_PIXELS, Sample
from models.data.shards import chunks
from models.evaluation.report import Outcome, Report
from service.errors import ServiceError
from service.imaging import Photo, View
from service.reader import Reader


def evaluate_reader(reader: Reader, samples: Iterable[Sample]) -> Report:
    """Reads all `samples` and reports how much was right."""
    return Report.of(outcome for _, outcome in read_samples(reader, samples))


def read_samples(reader: Reader, samples: Iterable[Sample]) -> Iterator[tuple[Sample, Outcome]]:
    """What `reader` reads in each sample, in order; `reader.max_batch_size` samples are in memory at a time.

    A photograph that cannot be decoded, or a region that is not part of it, gives an outcome with an error.
    """
    for batch in chunks(samples, reader.max_batch_size):
        views = [_view(sample, reader.metadata.input_size) for sample in batch]
        readings = iter(reader.read([view for view in views if isinstance(view, View)], boxes=False))
        for sample, view in zip(batch, views, strict=True):
            if isinstance(view, View):
                reading = next(readings)
                read, confidence, error = reading.number, reading.confidence, None
            else:
                read, confidence, error = None, 0.0, f"{view.code}: {view.detail}"
            yield sample, Outcome(sample.collection, sample.source, sample.label, read, confidence, error)


def _view(sample: Sample, size: tuple[int, int]) -> View | ServiceError:
    try:
        photo = Photo.open(sample.image, max_pixels=MAX_PIXELS)
        (view,) = photo.views([photo.whole if sample.region is None else sample.region], size)
    except ServiceError as error:
        return error
    return view
