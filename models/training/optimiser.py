"""Optimiser, learning-rate schedule and the average of the weights."""

import math

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from models.training.recipe import OptimiserTable, ScheduleTable
from models.transformer import SpatialTransformer


def build_optimiser(reader: nn.Module, table: OptimiserTable) -> torch.optim.Optimizer:
    """Parameters in groups: the transformers' own learn slowly, and vectors (norms, biases) do not decay.

    Each group keeps its share of the learning rate in `share`, which `set_learning_rate` scales.
    """
    slow = {
        id(parameter)
        for module in reader.modules()
        if isinstance(module, SpatialTransformer)
        for parameter in module.parameters()
    }
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for parameter in reader.parameters():
        groups.setdefault((id(parameter) in slow, parameter.ndim > 1), []).append(parameter)
    settings = [
        {
            "params": parameters,
            "share": table.localisation_factor if is_slow else 1.0,
            "weight_decay": table.weight_decay if decays else 0.0,
        }
        for (is_slow, decays), parameters in groups.items()
    ]
    if table.name == "sgd":
        return torch.optim.SGD(settings, lr=table.learning_rate, momentum=table.momentum)
    return torch.optim.AdamW(settings, lr=table.learning_rate, betas=(table.momentum, 0.999))


def learning_rate_factor(step: int, table: ScheduleTable) -> float:
    """What the learning rate is multiplied by at `step`: linear warm-up, then steps of 1/10, or cosine to 0.

    With restarts, each of them begins anew with the warm-up (warm restarts: Loshchilov and Hutter 2017).
    """
    start = max(at for at in (0, *table.restarts) if at <= step)
    end = min((at for at in table.restarts if at > step), default=table.decay_steps or table.steps)
    done = step - start
    if done < table.warmup_steps:
        return (done + 1) / table.warmup_steps
    if table.name == "step":
        return 0.1 ** (done // table.step_every) if table.step_every else 1.0
    whole = end - start - table.warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (done - table.warmup_steps) / max(1, whole)))


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float, *, shared: bool = True) -> None:
    """Give every group its share of the rate, or all of it."""
    for group in optimiser.param_groups:
        group["lr"] = rate * (group["share"] if shared else 1)


def averaged(reader: nn.Module, decay: float) -> AveragedModel:
    """A moving average of weights and buffers; a copy of the latest where `decay` is 0.

    The average starts fast, as (1 + n) / (10 + n), so that the first random weights do not linger in it.
    """

    def move(average: Tensor, latest: Tensor, updates: Tensor | int) -> Tensor:
        if not average.is_floating_point():
            return latest
        now = min(decay, (1 + int(updates)) / (10 + int(updates)))
        return torch.lerp(latest, average, now)

    return AveragedModel(reader, avg_fn=move, use_buffers=True)
