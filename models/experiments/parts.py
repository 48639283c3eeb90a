"""`parts`: fine-grained classes that hang on two parts (STN paper, section 4.3; lecture: head and body of a bird).

One, two and four transformers side by side look at the image with one localisation network, and their features are
concatenated; without any, the same kind of network sees the whole image at a window's resolution. On drawn birds all
networks multiply about as often, so that more windows mean narrower streams. On CUB-200-2011 (`--data`) streams are
alike, as in the paper.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler

from models.boxes import input_outlines, side_by_side
from models.experiments.bird_tasks import Task, drawn_birds, photographed_birds
from models.experiments.birds import PLUMAGES
from models.experiments.cost import Cost
from models.experiments.experiment import Cells, Experiment, Result, Settings, Table, best_device, correlation
from models.experiments.report import gallery
from models.experiments.training import answer, learn
from models.readers.compact import LOCALISATION_FEATURES, POINTS, PointLocalisation, convolution
from models.readers.paper import centred
from models.transformations import Translation
from models.transformer import ParallelTransformers, tiles

NETWORKS = {"none": 0, "1 transformer": 1, "2 transformers": 2, "4 transformers": 4}
TILES = {1: (1, 1), 2: (1, 2), 4: (2, 2)}
"""(rows, columns) that so many windows start at: together they cover all they can."""
PARTS = ("head", "body")

EXAMPLES = 6
"""Images shown of each network."""


class Grey(nn.Module):
    """The mean of the channels, `[N, C, H, W]` -> `[N, 1, H, W]`."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=1, keepdim=True)


class PartsNetwork(nn.Module):
    """Takes float `[N, C, side, side]`; logits `[N, classes]`, and the windows' middles `[N, count, 2]`, normalised."""

    def __init__(self, task: Task, count: int) -> None:
        """`count`: transformers; 0 for none."""
        super().__init__()
        side = round(task.side * task.window)
        self.transformers: ParallelTransformers | None = None
        if count:
            # A window's pixels are the image's: each takes one sample.
            self.transformers = ParallelTransformers(
                nn.Sequential(Grey(), PointLocalisation(task.side, task.side)),
                LOCALISATION_FEATURES + 2 * POINTS,
                (task.side, task.side),
                (side, side),
                (1, 1),
                transformation=Translation(task.window),
                starts=tiles(*TILES[count]),
            )
        self.whole = nn.AvgPool2d(task.side // side)
        widths = task.widths[count]
        self.streams = nn.ModuleList(_stream(task.channels, widths, task.first_stride) for _ in range(max(1, count)))
        self.classify = nn.Linear(max(1, count) * widths[-1], task.classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pixels = centred(images)
        if self.transformers is None:
            windows, middles = self.whole(pixels).unsqueeze(1), images.new_zeros(len(images), 0, 2)
        else:
            windows, middles = self.transformers(pixels)
        seen = [stream(windows[:, index]) for index, stream in enumerate(self.streams)]
        return self.classify(torch.cat(seen, dim=1)), middles


def _stream(channels: int, widths: tuple[int, ...], first_stride: int) -> nn.Sequential:
    """Convolutions, all but the first of stride 2, and the mean of the last one's map."""
    layers: list[nn.Module] = []
    for width in widths:
        layers.append(convolution(channels, width, stride=2 if layers else first_stride))
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def run(settings: Settings) -> Result:
    """Train every network on the same images in the same order, and look at where it looked."""
    device = best_device()
    task = photographed_birds(settings.data, settings) if settings.data else drawn_birds(settings)
    drawn = settings.data is None
    accuracy: Cells = {}
    followed: Cells = {}
    shown: dict[str, list[tuple[NDArray[np.float32], NDArray[np.float32]]]] = {}
    for name, count in NETWORKS.items():
        torch.manual_seed(settings.seed)
        network = PartsNetwork(task, count).to(device)
        cost = Cost.of(network, task.channels, task.side, task.side)
        fit(network, task, settings, name)
        seen = look(network, task)
        right = {"right": seen.read == seen.labels}
        if drawn:
            right["head right"] = seen.read // PLUMAGES == seen.labels // PLUMAGES
            right["body right"] = seen.read % PLUMAGES == seen.labels % PLUMAGES
        accuracy[name] = {column: 100 * float(values.float().mean()) for column, values in right.items()}
        accuracy[name] |= {
            "1000 parameters": cost.parameters / 1e3,
            "million multiplications": cost.multiplications / 1e6,
        }
        if count > 1:
            accuracy[name]["overlap"] = 100 * overlap(seen.middles, task.window)
        for index in range(count):
            followed[f"{name}: {index + 1}"] = follows(seen.middles[:, index], seen.parts, task.window)
        shown[name] = _examples(seen, task, count)
    return Result({"accuracy": accuracy, "followed": followed}, plots={"boxes": gallery(shown)})


def fit(network: PartsNetwork, task: Task, settings: Settings, name: str) -> None:
    """Train on the task, drawing everything from the seed; a progress bar says `name`."""
    schedule = task.schedule
    order = torch.Generator().manual_seed(settings.seed)
    count = schedule.steps * schedule.batch_size
    sampler = RandomSampler(task.training, num_samples=count, generator=order)  # type: ignore[arg-type]
    loader = DataLoader(task.training, schedule.batch_size, sampler=sampler, num_workers=task.workers, generator=order)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels, _ in loader:
            if task.mirrored:
                mirrored = torch.rand(len(images), generator=order) < 0.5
                images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
            yield images.float() / 255, labels

    learn(network, batches(), task.optimiser, schedule, settings, name)


@dataclass(frozen=True)
class Seen:
    """What a network made of N test images.

    Attributes:
        read: the classes that it says, `[N]`.
        middles: of its windows, `[N, K, 2]`, normalised (x, y).
        labels: the true classes.
        parts: the middles of the true parts, `[N, 2, 2]`.
    """

    read: Tensor
    middles: Tensor
    labels: Tensor
    parts: Tensor


def look(network: PartsNetwork, task: Task) -> Seen:
    """All test images, in their order."""
    loader = DataLoader(task.test, 2 * task.schedule.batch_size, num_workers=task.workers)
    batches = ((*answer(network, images.float() / 255), labels, parts) for images, labels, parts in loader)
    return Seen(*(torch.cat(column) for column in zip(*batches, strict=True)))


def overlap(middles: Tensor, window: float) -> float:
    """The share of a window that another one covers too, in the mean over images and pairs of windows.

    Args:
        middles: `[N, K, 2]`, K >= 2.
        window: side of a window as a share of the image's.
    """
    pairs = combinations(range(middles.shape[1]), 2)
    shares = [(1 - (middles[:, a] - middles[:, b]).abs() / (2 * window)).clamp(min=0).prod(dim=1) for a, b in pairs]
    return float(torch.stack(shares).mean())


def follows(middles: Tensor, parts: Tensor, window: float) -> dict[str, float]:
    """How one transformer's windows lie to the parts, over the images in which both can be seen.

    Args:
        middles: `[N, 2]`.
        parts: `[N, 2, 2]`.
        window: side of a window as a share of the image's.

    Returns:
        In per cent, how often the window is nearer to the head, and how often it holds each part's middle; and the
        correlation of its place with each part's, the mean of x and y, which is 0 where it does not move.
    """
    known = ~parts.isnan().flatten(1).any(dim=1)
    middles, parts = middles[known], parts[known]
    if len(middles) < 2:
        return {}
    away = parts - middles.unsqueeze(1)
    distance = away.norm(dim=2)
    figures = {"nearer to the head": 100 * float((distance[:, 0] < distance[:, 1]).float().mean())}
    for index, part in enumerate(PARTS):
        figures[f"holds the {part}"] = 100 * float((away[:, index].abs() < window).all(dim=1).float().mean())
    for index, part in enumerate(PARTS):
        figures[f"moves with the {part}"] = 100 * correlation(middles, parts[:, index])
    return figures


def _examples(seen: Seen, task: Task, count: int) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """The first test images and the outlines of the windows there, as `gallery` takes them."""
    examples = []
    for index in range(min(EXAMPLES, len(seen.labels))):
        image = (task.test[index][0].float() / 255).permute(1, 2, 0).squeeze(2).numpy()
        middles = seen.middles[index : index + 1]
        outlines = np.zeros((0, 4, 2), np.float32)
        if count:
            outlines = input_outlines(side_by_side(Translation(task.window), middles))[0].numpy()
        examples.append((image, outlines))
    return examples


EXPERIMENT = Experiment(
    title="Fine-grained classes of two parts: parallel transformers",
    run=run,
    tables=(
        Table(
            "accuracy",
            "Right, in % of the test images; the paper's figures are its own, of CUB-200-2011",
            ("right", "head right", "body right", "overlap", "1000 parameters", "million multiplications"),
            {"none": {"right": 82.3}, "2 transformers": {"right": 83.1}, "4 transformers": {"right": 84.1}},
        ),
        Table(
            "followed",
            "Which part each transformer follows, in %",
            (
                "nearer to the head",
                *(f"holds the {part}" for part in PARTS),
                *(f"moves with the {part}" for part in PARTS),
            ),
        ),
    ),
    notes=(
        "Without --data the birds are drawn (models/experiments/birds.py): the paper's figures compare in their order"
        " alone. Class: the pair of head and body, each one of 4.",
        "Inception with batch normalisation, pretrained on ImageNet, which the paper fine-tunes, is not at hand: every"
        " stream is a small convolutional network, and the localisation network that of `compact_points`, trained from"
        " nothing. The schedule is ours. Without pretraining, CUB-200-2011 is read far worse than in the paper.",
        "overlap: the share of a window that another covers too. moves with: the correlation of the window's place with"
        " the part's.",
    ),
)
