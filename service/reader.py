"""Readings: what the engine's outputs mean for the regions that were asked for.

`Reader.read_each` is the whole way from views to readings, for whoever has them all at hand (the command line,
evaluation). HTTP has a batcher between the two halves and uses the second one, `Reader.compose`, alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.artifact import ArtifactMetadata
from service.decoding import Digit, decode
from service.engine import CUDA, Engine, OnnxEngine, Outputs
from service.errors import Internal, ServiceError
from service.geometry import Region, corners_in_pixels
from service.imaging import View
from service.infer_each import infer_each
from service.observing import tell, unheard
from service.search import holds_more, is_doubtful, search_at_once
from service.second_look import look_twice

__all__ = ["Box", "Engine", "OnnxEngine", "Outputs", "Reader", "Reading"]

DEFAULT_MAX_BATCH_SIZE = 32
# As answers have it, so that a number is accepted by whoever asks for the very confidence it was told with.
_CONFIDENCE_DECIMALS = 6


@dataclass(frozen=True, slots=True)
class Box:
    """What a transformer looked at: four corners (x, y), clockwise from the target's top-left, in the pixels of
    the upright image (a corner may lie outside it), and its theta, target -> source, two rows of three."""

    transformer: int
    corners: tuple[tuple[float, float], ...]
    theta: tuple[tuple[float, float, float], ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """A reader's answer for one region. `number` is "" where no digit is seen, and then never accepted."""

    number: str
    confidence: float
    accepted: bool
    digits: tuple[Digit, ...]
    boxes: tuple[Box, ...]


class Reader:
    """Reads views with an engine, at most `max_batch_size` at a time. Thread-safe if the engine is.

    With `second_look`, what it saw crooked and is not sure of it looks at twice (`service.second_look`), and
    `observe_second_looks` is told how many images of a batch those were. With `search`, photographs that it is not sure
    of are worth a search (`service.search`).
    """

    def __init__(
        self,
        engine: Engine,
        max_batch_size: int = DEFAULT_MAX_BATCH_SIZE,
        *,
        second_look: bool = True,
        search: bool = True,
        observe_second_looks: Callable[[int], None] = unheard,
    ) -> None:
        self.engine = engine
        self.max_batch_size = max_batch_size
        self._second_look = second_look
        self._search = search and self.metadata.transformers == 1
        self._observe_second_looks = observe_second_looks
        # Powers of two, and the largest.
        self._sizes = [*(1 << power for power in range((max_batch_size - 1).bit_length())), max_batch_size]

    @property
    def metadata(self) -> ArtifactMetadata:
        return self.engine.metadata

    def warm(self) -> None:
        """Runs the batch sizes that will be met, so that no caller waits for memory or kernels to be set up."""
        for size in self._sizes:
            self.engine.infer(np.zeros((size, *self.metadata.input_size, 3), np.uint8))

    def infer(self, images: NDArray[np.uint8]) -> Outputs:
        """The outputs for uint8 [N, input_height, input_width, 3], N up to `max_batch_size`."""
        if not self._second_look:
            return self._filled_up(images)
        outputs, twice = look_twice(self._filled_up, images, self.metadata.alphabet)
        if twice:
            tell(self._observe_second_looks, twice)
        return outputs

    def _filled_up(self, images: NDArray[np.uint8]) -> Outputs:
        """`Engine.infer` for a batch of any size up to `max_batch_size`.

        On CUDA every new batch size has each convolution choose its kernel once more, which takes longer than many
        batches do: there a batch is filled up with black images to the next size that `warm` has run.
        """
        count = len(images)
        size = next((size for size in self._sizes if size >= count), count)
        if self.engine.provider == CUDA and size > count:
            images = np.concatenate([images, np.zeros((size - count, *images.shape[1:]), np.uint8)])
        return self.engine.infer(images)[:count]

    def read(self, views: Sequence[View], *, min_confidence: float | None = None, boxes: bool = True) -> list[Reading]:
        """`read_each`, where nothing fails; raises Internal."""
        readings = []
        for reading in self.read_each(views, min_confidence=min_confidence, boxes=boxes):
            if isinstance(reading, Internal):
                raise reading
            readings.append(reading)
        return readings

    def read_each(
        self, views: Sequence[View], *, min_confidence: float | None = None, boxes: bool = True
    ) -> list[Reading | Internal]:
        """One reading per view, in order, or Internal where the engine fails on it (`service.infer_each`).

        `min_confidence` replaces the artifact's own threshold; `boxes=False` leaves the boxes out. Raises what a view's
        `photo` raises that is no ServiceError.
        """
        looks = self._infer_each([view.pixels for view in views])
        return [
            look
            if isinstance(look, Internal)
            else self.compose(self._searched(view, look), view.region, min_confidence=min_confidence, boxes=boxes)
            for view, look in zip(views, looks, strict=True)
        ]

    def _infer_each(self, images: Sequence[NDArray[np.uint8]]) -> list[Outputs | Internal]:
        """Of any number of views."""
        size = self.max_batch_size
        batches = (images[start : start + size] for start in range(0, len(images), size))
        return [look for batch in batches for look in infer_each(self.infer, batch)]

    def _searched(self, view: View, first: Outputs) -> Outputs:
        """What a search finds, where it is worth one; or what was seen first (N = 1)."""
        if view.photo is None or not self.is_worth_searching(view, first):
            return first
        try:
            return search_at_once(view.photo(), view.region, self.metadata, self._infer_each) or first
        except ServiceError:
            return first

    def is_worth_searching(self, view: View, outputs: Outputs) -> bool:
        """Whether there may be more to see in the view's photograph than these outputs (N = 1) say of it."""
        return self._search and holds_more(view) and is_doubtful(view, outputs, self.metadata)

    def compose(
        self, outputs: Outputs, region: Region, *, min_confidence: float | None = None, boxes: bool = True
    ) -> Reading:
        """The reading that the outputs for one image (N = 1) are for the region that was shown, in upright-image
        pixels."""
        threshold = self.metadata.threshold if min_confidence is None else min_confidence
        (answer,) = decode(outputs.probabilities, self.metadata.alphabet)
        confidence = round(answer.confidence, _CONFIDENCE_DECIMALS)
        return Reading(
            number=answer.number,
            confidence=confidence,
            accepted=answer.number != "" and confidence >= threshold,
            digits=answer.digits,
            boxes=_boxes(outputs, region) if boxes else (),
        )


def _boxes(outputs: Outputs, region: Region) -> tuple[Box, ...]:
    (of_all,), (thetas,) = outputs.boxes.tolist(), outputs.theta.tolist()
    return tuple(
        [
            Box(index, corners_in_pixels(corners, region), tuple(map(tuple, theta)))
            for index, (corners, theta) in enumerate(zip(of_all, thetas, strict=True))
        ]
    )
