"""Looking twice: what a reader saw crooked, it is shown again as it stood, turned until the box is level."""

import math

import numpy as np
from numpy.typing import NDArray

from models.data.warp import Matrix, rotation, warped
from models.evaluation.engines import WrappedEngine
from service.decoding import decode
from service.engine import Outputs


class SecondLook(WrappedEngine):
    """An engine that runs another one twice, and keeps for each image the outputs of which it is the more confident.

    For the second look a view is turned about its middle until the upper edge of the box that the last transformer
    found is level. Thetas and boxes are those of the view as it was given. Without transformers there is nothing to
    turn by: the second look is then the first.
    """

    def infer(self, images: NDArray[np.uint8]) -> Outputs:
        """See `service.engine.Engine.infer`."""
        first = self._engine.infer(images)
        if not first.boxes.shape[1]:
            return first
        height, width = images.shape[1:3]
        side = np.diag([width / 2, height / 2])
        angles = [_slope(box @ side) for box in first.boxes[:, -1].astype(np.float64)]
        second = self._engine.infer(
            np.stack(
                [
                    warped(image, (width / 2, height / 2), rotation(angle), np.array([width, height]))
                    for image, angle in zip(images, angles, strict=True)
                ]
            )
        )
        # From the normalised coordinates of the turned view back to those of the first.
        back = np.stack([np.linalg.inv(side) @ rotation(-angle) @ side for angle in angles])
        second = Outputs(second.probabilities, *_mapped(back, second))
        surer = (self._confidence(second) > self._confidence(first))[:, None, None]
        return Outputs(
            np.where(surer, second.probabilities, first.probabilities),
            np.where(surer[..., None], second.theta, first.theta),
            np.where(surer[..., None], second.boxes, first.boxes),
        )

    def _confidence(self, outputs: Outputs) -> NDArray[np.float64]:
        return np.array([read.confidence for read in decode(outputs.probabilities, self.metadata.alphabet)])


def _slope(box: Matrix) -> float:
    """Of the edge from a box's first corner to its second, `[4, 2]` in pixels: radians, downwards as y is."""
    x, y = box[1] - box[0]
    return math.atan2(y, x)


def _mapped(back: NDArray[np.float64], outputs: Outputs) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Theta `[N, K, 2, 3]` and boxes `[N, K, 4, 2]`, each image's followed by its map `[N, 2, 2]`."""
    theta = np.einsum("nij,nkjl->nkil", back, outputs.theta)
    boxes = np.einsum("nij,nkcj->nkci", back, outputs.boxes)
    return theta.astype(np.float32), boxes.astype(np.float32)
