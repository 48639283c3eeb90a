"""A reader with the interface of the artifact: uint8 pixels in; probabilities, theta and boxes out.

This one module is what export traces, what parity is measured against and what the evaluation of a checkpoint
runs, so the three cannot differ.
"""

from torch import Tensor, nn

from models.boxes import input_boxes
from models.transformer import SpatialTransformer
from service.artifact import OUTPUT_NAMES

OUTLINES = "outlines"
"""Name of the output that an artifact has beside the three of every one where a transformer bends lines. The service
does not ask for it, and no reader of `READERS` has such a transformer: `PaperReader` takes one."""


class ServedReader(nn.Module):
    """Normalisation, network, calibrated softmax and the composition of the boxes."""

    def __init__(self, reader: nn.Module, temperature: float = 1.0, *, outlines: bool = False) -> None:
        """
        Args:
            reader: one of `models.readers`.
            temperature: what the logits are divided by (Guo et al. 2017); 1 leaves them as they are.
            outlines: whether to answer with the outlines of the boxes too; `bends` says where they tell more than
                corners.
        """
        super().__init__()
        self.reader = reader
        self.temperature = temperature
        self.outlines = outlines
        self.output_names = [*OUTPUT_NAMES, OUTLINES] if outlines else [*OUTPUT_NAMES]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """
        Args:
            images: uint8 `[N, H, W, 3]`, RGB.

        Returns:
            probabilities `[N, 5, 11]`, theta `[N, K, 2, 3]`, boxes `[N, K, 4, 2]` and, if asked for, outlines
            `[N, K, M, 2]` (see `input_outlines`), all float32.
        """
        output = self.reader(images.permute(0, 3, 1, 2).float() / 255)
        probabilities = (output.logits / self.temperature).softmax(dim=-1)
        outlines = input_boxes(output.theta) if output.outlines is None else output.outlines
        points_per_side = outlines.shape[2] // 4
        boxes = outlines if points_per_side == 1 else outlines[:, :, ::points_per_side]
        answers = (probabilities, output.theta, boxes)
        return (*answers, outlines) if self.outlines else answers


def bends(reader: nn.Module) -> bool:
    """Whether a transformer of the reader bends straight lines, so that four corners do not say where it looked."""
    transformers = (part for part in reader.modules() if isinstance(part, SpatialTransformer))
    return any(transformer.transformation.points_per_side > 1 for transformer in transformers)
