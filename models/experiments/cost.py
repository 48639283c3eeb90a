"""What a network costs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models.readers import parameter_count


@dataclass(frozen=True)
class Cost:
    """Trained numbers, and the multiplications of convolutions and matrix products for one input."""

    parameters: int
    multiplications: int

    @classmethod
    def of(cls, network: nn.Module, *shape: int) -> Cost:
        """For an input of that shape, without the batch; leaves the network in evaluation mode."""
        # With gradients: the counter hooks itself into their graph.
        with FlopCounterMode(display=False) as counter:
            network.eval()(torch.zeros(1, *shape, device=next(network.parameters()).device))
        # It counts a multiplication and the addition after it as two.
        return cls(parameter_count(network), counter.get_total_flops() // 2)
