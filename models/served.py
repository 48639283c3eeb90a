"""A reader with the interface of the artifact: uint8 pixels in; probabilities, theta and boxes out.

This one module is what export traces, what parity is measured against and what the evaluation of a checkpoint
runs, so the three cannot differ.
"""

from torch import Tensor, nn

from models.boxes import input_boxes


class ServedReader(nn.Module):
    """Normalisation, network, calibrated softmax and the composition of the boxes."""

    def __init__(self, reader: nn.Module, temperature: float = 1.0) -> None:
        """
        Args:
            reader: one of `models.readers`.
            temperature: what the logits are divided by (Guo et al. 2017); 1 leaves them as they are.
        """
        super().__init__()
        self.reader = reader
        self.temperature = temperature

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            images: uint8 `[N, H, W, 3]`, RGB.

        Returns:
            probabilities `[N, 5, 11]`, theta `[N, K, 2, 3]` and boxes `[N, K, 4, 2]` (see `input_boxes`), float32.
        """
        output = self.reader(images.permute(0, 3, 1, 2).float() / 255)
        probabilities = (output.logits / self.temperature).softmax(dim=-1)
        return probabilities, output.theta, input_boxes(output.theta)
