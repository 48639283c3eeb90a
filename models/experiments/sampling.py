"""`sampling`: bilinear or nearest, with and without anti-aliasing (STN paper, section 3.3).

On RTS digits, seen by the transformer at a third of their resolution, where samples alone would skip most pixels.
Through nearest sampling no gradient reaches theta: a transformer that samples so while it learns stays where it starts.
"""

from functools import partial

from torch import Generator, Tensor, nn

from models.boxes import input_boxes
from models.experiments.digits import Digits, load_digits
from models.experiments.distortions import RTS_SIDE, rotate_translate_scale
from models.experiments.experiment import Cells, Experiment, Result, Settings, Table
from models.experiments.networks import convolutional_localisation
from models.experiments.report import Example, examples, gallery
from models.experiments.training import DEFAULT_TRAINING, Budget, answers, held_out, trained
from models.transformations import CORNERS, constant
from models.transformer import Sampling, SpatialTransformer

BUDGET = Budget(steps=2_000)
"""Of each network."""
SHRUNK = 3
"""Pixels of the input on each side of one pixel of the target."""
FILTERS, FULL_FILTERS = 32, 64

KERNELS: tuple[Sampling, ...] = ("bilinear", "nearest")
SAMPLES = {"anti-aliased": SHRUNK, "one sample": 1}
"""Samples on each side of a target's pixel."""


class SmallDigits(nn.Module):
    """One transformer from 42 x 42 to 14 x 14 and a CNN: logits, and what was looked at, `[N, 1, 4, 2]`."""

    def __init__(self, sampling: Sampling, samples: int, filters: int) -> None:
        super().__init__()
        side = RTS_SIDE // SHRUNK
        self.transformer = SpatialTransformer(
            *convolutional_localisation(1, RTS_SIDE),
            (RTS_SIDE, RTS_SIDE),
            (side, side),
            (samples, samples),
            sampling=sampling,
        )
        self.classifier = nn.Sequential(
            nn.Conv2d(1, filters, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(filters, filters, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(filters * (side // 2) ** 2, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        window, theta = self.transformer(images)
        return self.classifier(window), input_boxes(theta.unsqueeze(1))


def draw(digits: Digits, index: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """RTS digits and their labels."""
    images, labels = digits[index]
    return rotate_translate_scale(images, generator), labels


def moved(boxes: Tensor) -> float:
    """How far corners `[N, 1, 4, 2]` lie from where they start, the root mean square, in % of the image's side."""
    away = boxes - constant(CORNERS, boxes)
    return 100 * float(away.square().sum(dim=-1).mean().sqrt()) / 2


def run(settings: Settings) -> Result:
    """Train with each kernel; then let each trained network sample with the other."""
    split = load_digits(settings.data)
    images, labels = held_out(split.test, draw)
    figures: Cells = {}
    losses: dict[str, float] = {}
    shown: dict[str, list[Example]] = {}
    for kernel in KERNELS:
        for name, samples in SAMPLES.items():
            row = f"{kernel}, {name}"
            filters = FULL_FILTERS if settings.full else FILTERS
            build = partial(SmallDigits, kernel, samples, filters)
            network, cost, losses[row] = trained(build, images.shape[1:], split.training, draw, settings, BUDGET, row)
            answered = answers(network, images, labels)
            (network.transformer.sampling,) = (other for other in KERNELS if other != kernel)
            figures[row] = {
                "error": answered.wrong,
                "boxes moved": moved(answered.outlines),
                "error with the other kernel": answers(network, images, labels).wrong,
                "million multiplications": cost.multiplications / 1e6,
            }
            shown[row] = examples(images, answered.outlines)
    return Result(
        {"error": figures}, {"last training loss": losses}, plots={"boxes": gallery(shown)}, notes=(split.told,)
    )


EXPERIMENT = Experiment(
    title="Bilinear and nearest sampling",
    run=run,
    tables=(
        Table(
            "error",
            "RTS digits at a third of their resolution: error, % of the digits; boxes moved, % of the image's side",
            ("error", "boxes moved", "error with the other kernel", "million multiplications"),
            decimals=2,
        ),
    ),
    notes=(
        DEFAULT_TRAINING,
        "Trained with nearest sampling the boxes have not moved at all: no gradient reaches theta, and the transformer"
        " does no more than shrink the image. One trained with bilinear sampling can be run with the other kernel.",
        "anti-aliased: each pixel of the target is the mean of 3 x 3 samples; one sample: the pixel's centre alone.",
        "The paper defines both kernels and gives figures for bilinear sampling only.",
    ),
)
