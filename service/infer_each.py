"""A batch in which no image's fault is another's."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from service.engine import Infer, Outputs
from service.errors import Internal
from service.observing import tell, unheard

logger = logging.getLogger(__name__)

FAILED = "the reader failed on this image"


def infer_each(
    infer: Infer, pixels: Sequence[NDArray[np.uint8]], observe_batch: Callable[[int], None] = unheard
) -> list[Outputs | Internal]:
    """For each image its outputs (N = 1), or Internal where the engine fails on it or they are not finite numbers.

    A batch that fails is read image by image: one that is bad must not take its neighbours with it. `observe_batch` is
    told the size of every batch that does not. Whatever Exception an engine raises, and whatever it returns, this
    raises nothing.
    """
    if not pixels:
        return []
    try:
        outputs = infer(np.stack(pixels))
        finite = outputs.finite()
        if len(finite) != len(pixels):
            raise RuntimeError(f"{len(finite)} answers for {len(pixels)} images")
    except Exception as error:
        if len(pixels) == 1:
            logger.error("the engine failed on an image", exc_info=error)
            return [Internal(FAILED)]
        logger.warning("a batch of %d images failed (%r); reading them one by one", len(pixels), error)
        return [result for image in pixels for result in infer_each(infer, [image], observe_batch)]
    tell(observe_batch, len(pixels))
    if not finite.all():
        logger.error("the engine's outputs for %d images are not finite numbers", np.count_nonzero(~finite))
    return [outputs[n : n + 1] if is_finite else Internal(FAILED) for n, is_finite in enumerate(finite)]
