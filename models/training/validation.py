"""How a reader in training does on the samples held out for it."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from models.readers import negative_log_likelihood
from models.served import ServedReader
from service.decoding import decode, pack
from service.drawing import draw
from service.geometry import Region, corners_in_pixels
from service.reader import Box, Reading

BATCH_SIZE = 256
PICTURES, COLUMNS = 16, 4
"""Views whose boxes are drawn for TensorBoard, and how many of them stand side by side."""
CELL = 192
"""Side of a drawn view, in pixels."""


@dataclass(frozen=True)
class Validation:
    """Loss, share of whole numbers right, and all the boxes `[N, K, 4, 2]` (normalised, in the input)."""

    loss: float
    accuracy: float
    boxes: Tensor


def validate(reader: nn.Module, views: Tensor, targets: Tensor, device: torch.device) -> Validation:
    """Read uint8 views `[N, H, W, 3]` in float32 and compare with int64 targets `[N, 5]`."""
    served = ServedReader(reader).eval()
    loss, right, boxes = 0.0, 0, []
    with torch.inference_mode():
        for start in range(0, len(views), BATCH_SIZE):
            batch = views[start : start + BATCH_SIZE].to(device)
            wanted = targets[start : start + BATCH_SIZE]
            probabilities, _, batch_boxes = (output.cpu() for output in served(batch))
            loss += float(negative_log_likelihood(probabilities.clamp(min=1e-12).log(), wanted)) * len(wanted)
            for answer, target in zip(decode(probabilities.numpy()), wanted.tolist(), strict=True):
                right += pack(answer.number, len(target)) == target
            boxes.append(batch_boxes)
    return Validation(loss / len(views), right / len(views), torch.cat(boxes))


def picture_of_boxes(reader: nn.Module, views: Tensor, device: torch.device) -> NDArray[np.uint8]:
    """The first uint8 views `[N, H, W, 3]` with what was read and where: one picture, uint8 `[H, W, 3]`."""
    views = views[:PICTURES]
    with torch.inference_mode():
        probabilities, theta, boxes = (out.cpu().numpy() for out in ServedReader(reader).eval()(views.to(device)))
    sheet = Image.new("RGB", (COLUMNS * CELL, -(-len(views) // COLUMNS) * CELL))
    for index, (view, answer) in enumerate(zip(views.numpy(), decode(probabilities), strict=True)):
        region = Region.whole(view.shape[1], view.shape[0])
        looked_at = tuple(
            Box(k, corners_in_pixels(corners, region), tuple(map(tuple, theta[index, k])))
            for k, corners in enumerate(boxes[index].tolist())
        )
        reading = Reading(answer.number, answer.confidence, True, answer.digits, looked_at)
        drawn = draw(Image.fromarray(view), [reading], [None]).resize((CELL, CELL))
        sheet.paste(drawn, (index % COLUMNS * CELL, index // COLUMNS * CELL))
    return np.asarray(sheet)
