"""Training networks, those of digits above all, and looking at what they then say and where they look."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from models.experiments.cost import Cost
from models.experiments.digits import Digits
from models.experiments.experiment import Settings, best_device
from models.experiments.networks import Network, normalise
from models.training.optimiser import build_optimiser, learning_rate_factor, set_learning_rate
from models.training.recipe import OptimiserTable, ScheduleTable

FULL_STEPS = 150_000
TEST_SEED = 2**31
"""Of the test's distortions: the same for every seed, and no seed's own."""
TEST_VIEWS = 3
"""Each test digit is shown so often, differently distorted each time."""
TEST_BATCH = 500

DEFAULT_TRAINING = (
    "Default budget: few steps of 64 images with Adam, and batch normalisation behind each convolution, of all networks"
    " alike; the paper has 150,000 steps of 256 with SGD, and no normalisation."
)
"""What a table says of it."""

Draw = Callable[[Digits, Tensor, Generator], tuple[Tensor, Tensor]]
"""The images and targets of the digits of these indices, distorted by chance."""


@dataclass(frozen=True)
class Budget:
    """How the digit networks are trained by default.

    Attributes:
        steps: of 64 images each.
        learning_rate: at its highest.
        localisation_factor: the localisation network's share of it.
        weight_decay: of all weights, decoupled from the loss (AdamW, Loshchilov and Hutter 2019).
    """

    steps: int
    learning_rate: float = 4e-3
    localisation_factor: float = 0.5
    weight_decay: float = 0.0


def plan(settings: Settings, budget: Budget) -> tuple[OptimiserTable, ScheduleTable]:
    """How the digit networks are trained: by this budget, or as the paper says (appendix A.4).

    The paper: SGD, 150,000 steps of 256 images, learning rate 0.01, divided by 10 every 50,000, no weight decay. It
    says nothing of momentum here, nor of a slower localisation; 0.9 and 0.1 are what it takes for house numbers.
    """
    steps = settings.budget(budget.steps, FULL_STEPS)
    if settings.full:
        return (
            OptimiserTable(name="sgd", learning_rate=0.01),
            ScheduleTable(name="step", steps=steps, batch_size=256, step_every=FULL_STEPS // 3),
        )
    return (
        OptimiserTable(
            name="adamw",
            learning_rate=budget.learning_rate,
            localisation_factor=budget.localisation_factor,
            weight_decay=budget.weight_decay,
        ),
        ScheduleTable(name="cosine", steps=steps, batch_size=64, warmup_steps=steps // 20),
    )


def trained(
    build: Callable[[], Network],
    shape: Sequence[int],
    digits: Digits,
    draw: Draw,
    settings: Settings,
    budget: Budget,
    title: str,
) -> tuple[Network, Cost, float]:
    """A network as `built` makes it and `train` trains it, what it costs for one image `[C, H, W]` of that shape, and
    its last loss."""
    network = built(build, settings)
    cost = Cost.of(network, *shape)
    return network, cost, train(network, digits, draw, settings, budget, title)


def train(network: nn.Module, digits: Digits, draw: Draw, settings: Settings, budget: Budget, title: str) -> float:
    """Train a network on digits; the rest is as in `learn`.

    Which digits come when, and how distorted, follows from the seed alone: every network of a comparison sees the same.
    """
    optimiser, schedule = plan(settings, budget)
    generator = torch.Generator().manual_seed(settings.seed)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(schedule.steps):
            index = torch.randint(len(digits), (schedule.batch_size,), generator=generator)
            yield draw(digits, index, generator)

    return learn(network, batches(), optimiser, schedule, settings, title)


def learn(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimiser_table: OptimiserTable,
    schedule: ScheduleTable,
    settings: Settings,
    title: str,
) -> float:
    """Train a network that answers (logits `[N, ..., C]`, ...) on a batch of float images and targets `[N, ...]` for
    each step; `title` is the progress bar's.

    Returns:
        The mean loss over the last tenth of the steps.
    """
    optimiser = build_optimiser(network, optimiser_table)
    device = next(network.parameters()).device
    network.train()
    losses = []
    for step, (images, targets) in zip(settings.track(schedule.steps, title), batches, strict=True):
        set_learning_rate(optimiser, optimiser_table.learning_rate * learning_rate_factor(step, schedule))
        logits, *_ = network(images.to(device))
        loss = F.cross_entropy(logits.flatten(0, -2), targets.to(device).flatten())
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        losses.append(float(loss.detach()))
    last = losses[-max(1, len(losses) // 10) :]
    return sum(last) / len(last)


def held_out(digits: Digits, draw: Draw) -> tuple[Tensor, Tensor]:
    """All digits, each `TEST_VIEWS` times: the same images and targets for every network and seed."""
    generator = torch.Generator().manual_seed(TEST_SEED)
    views = [draw(digits, torch.arange(len(digits)), generator) for _ in range(TEST_VIEWS)]
    return torch.cat([images for images, _ in views]), torch.cat([targets for _, targets in views])


@dataclass(frozen=True)
class Answers:
    """Of all images.

    Attributes:
        wrong: the share that is not all right, in %.
        outlines: `[N, K, M, 2]`, as the network gives them.
    """

    wrong: float
    outlines: Tensor


def answers(network: nn.Module, images: Tensor, targets: Tensor) -> Answers:
    """What a network says to images `[N, ...]` whose right answers are `[N, ...]`."""
    said, outlines = zip(*(answer(network, batch) for batch in torch.split(images, TEST_BATCH)), strict=True)
    right = torch.cat(said) == targets
    wrong = 100 * float((~right.reshape(len(targets), -1).all(dim=1)).float().mean())
    return Answers(wrong, torch.cat(outlines))


@torch.inference_mode()
def answer(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """What a network says to a batch of float images, `[N, ...]`, and where it looked, on the CPU."""
    logits, looked_at = network.eval()(images.to(next(network.parameters()).device))
    return logits.argmax(dim=-1).cpu(), looked_at.cpu()


def built(build: Callable[[], Network], settings: Settings) -> Network:
    """A network with weights drawn from the seed, where it is to be trained.

    At the default budget its convolutions are normalised, which the paper's are not: with a thousand steps, not
    150,000, localisation networks otherwise hardly begin to learn.
    """
    torch.manual_seed(settings.seed)
    network = build()
    if not settings.full:
        normalise(network)
    return network.to(best_device())
