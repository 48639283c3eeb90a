"""SVHN format 1, the official files, prepared as shards.

A source is the unpacked directory of a split (`1.png` ... and `digitStruct.mat`) or the official archive of it
(`train.tar.gz`, `test.tar.gz`, `extra.tar.gz`), which is read as a stream and never unpacked.

The photographs are stored as they are, byte for byte. SVHN's files are narrow cut-outs around the number already
(the three archives have 2.6 GB for a quarter of a million photographs), so a crop would save little, and
whatever training wants to do around the number (shift, turn, zoom out) finds the real surroundings.

The photographs, in the order of their source, are prepared in blocks: one shard for each `ENTRIES_PER_SHARD`,
written atomically together with the report on its block. A killed run is thus continued at the first block that
has no shard. Nothing is dropped silently: see `Report`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from models.data import shards
from models.data.digit_struct import DigitBox, DigitStruct, LabelError, SvhnError
from models.data.sample import MAX_DIGITS, Sample, number_region, open_photo, tight_box
from models.data.svhn_source import MissingPhotoError, Photograph, open_source, sha256
from service.errors import ServiceError

SPLITS = ("train", "test", "extra")
ENTRIES_PER_SHARD = 2048
REPORT = "report.json"

Progress = Callable[[str, int, int], None]
"""Called with what is being read, how many have been, and of how many."""


@dataclass
class Report:
    """What became of every entry: `entries` = the sum of `lengths` + `too_long` + `skipped`.

    lengths: how many numbers of each length, "1" to "5", are in the shards.
    too_long: id and number of those with more than five digits, which the readers' five slots cannot hold.
    skipped: id and reason of corrupt or missing photographs and labels.
    """

    entries: int = 0
    lengths: dict[str, int] = field(default_factory=dict)
    too_long: list[dict[str, str]] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)

    def add(self, entries: int, lengths: dict[str, int], too_long: list[Any], skipped: list[Any]) -> None:
        """Adds the report on a further block, given as the fields of one."""
        self.entries += entries
        for length, count in lengths.items():
            self.lengths[length] = self.lengths.get(length, 0) + count
        self.too_long += too_long
        self.skipped += skipped


def prepare(source: Path, out: Path, split: str, progress: Progress = lambda *_: None) -> Report:
    """Writes the samples of one split to `out`, with `report.json`; goes on where a killed run stopped.

    Raises SvhnError or ShardError when the source is not SVHN's, or when `out` holds anything other than this
    source and split, prepared in part or in whole.
    """
    with open_source(source, split) as files, DigitStruct(files.labels) as labels:
        task = {
            "split": split,
            "labels_sha256": sha256(files.labels),
            "photographs": files.identity,
            "entries_per_shard": ENTRIES_PER_SHARD,
        }
        if (out / REPORT).exists():
            return _finished_report(out, task)
        shards.begin(out, task, go_on=True)

        report = Report()
        index_of = _index_names(labels, report, split, progress)
        photographs = _watched(files.photographs(list(index_of)), len(index_of), progress)
        for index, block in groupby(photographs, key=lambda item: item[0] // ENTRIES_PER_SHARD):
            shard = shards.shard_path(out, index)
            if not shard.exists():
                samples, of_block = _prepare_block((photo for _, photo in block), labels, index_of, split)
                shards.write_shard(samples, shard, asdict(of_block))
            report.add(**shards.read_note(shard))
    shards.write_text(out / REPORT, json.dumps({"task": task, **asdict(report)}, indent=1))
    shards.finish(out)
    return report


def _finished_report(out: Path, task: dict[str, Any]) -> Report:
    fields = json.loads((out / REPORT).read_text())
    if (found := fields.pop("task")) != task:
        raise SvhnError(f"{out} holds another source: {found}; this one is {task}")
    if (out / shards.UNFINISHED).exists():  # killed between the report and the removal of the marker
        shards.finish(out)
    report = Report()
    report.add(**fields)
    return report


def _index_names(labels: DigitStruct, report: Report, split: str, progress: Progress) -> dict[str, int]:
    """File name -> index of its labels; entries whose name is unreadable or taken are reported as skipped."""
    index_of: dict[str, int] = {}
    for index in range(len(labels)):
        progress("names", index + 1, len(labels))
        try:
            name = labels.name(index)
            if name in index_of:
                raise LabelError(f"{name} has labels already")
        except LabelError as error:
            report.add(1, {}, [], [{"id": f"{split}/entry {index + 1}", "reason": str(error)}])
        else:
            index_of[name] = index
    return index_of


def _watched(photographs: Iterator[Photograph], total: int, progress: Progress) -> Iterator[tuple[int, Photograph]]:
    for index, photograph in enumerate(photographs):
        yield index, photograph
        progress("photographs", index + 1, max(total, index + 1))


def _prepare_block(
    photographs: Iterator[Photograph], labels: DigitStruct, index_of: dict[str, int], split: str
) -> tuple[list[Sample], Report]:
    samples: list[Sample] = []
    report = Report()
    for photograph in photographs:
        report.entries += 1
        source = f"{split}/{photograph.name}"
        try:
            if photograph.name not in index_of:
                raise LabelError("a photograph without labels")
            digits = labels.digits(index_of[photograph.name])
            number = "".join(digit.digit for digit in digits)
            if len(number) > MAX_DIGITS:
                report.too_long.append({"id": source, "number": number})
                continue
            samples.append(_sample(photograph.load(), digits, number, source, f"svhn-{split}"))
        except (LabelError, MissingPhotoError, ServiceError) as error:
            report.skipped.append({"id": source, "reason": str(error)})
    lengths = Counter(str(len(sample.label)) for sample in samples)
    report.lengths = {length: lengths[length] for length in sorted(lengths)}
    return samples, report


def _sample(image: bytes, digits: list[DigitBox], number: str, source: str, collection: str) -> Sample:
    photo = open_photo(image)
    number_box = tight_box((digit.left, digit.top, digit.width, digit.height) for digit in digits)
    region = number_region(number_box, photo.width, photo.height)
    if region.width <= 0 or region.height <= 0:
        raise LabelError(f"the digits' boxes lie outside the photograph of {photo.width} x {photo.height}")
    photo.views([region], (1, 1))  # a photograph that does not decode is found here, not in training
    return Sample(image, number, region, source, collection, number_box)
