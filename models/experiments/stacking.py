"""`stacking`: four affine transformers in a row are one affine map; with a non-linearity between they are not.

The lecture: "could be a very nice exercise". On rotated digits, with the same layers in every network: affine
transformers, three convolutions with ReLU, a CNN. What differs is their order, and what the transformers sample.
"""

from functools import partial

import torch
from torch import Generator, Tensor, nn

from models.boxes import input_outlines, side_by_side
from models.experiments.digits import SIDE, Digits, load_digits
from models.experiments.distortions import rotate
from models.experiments.experiment import Cells, Experiment, Result, Settings, Table
from models.experiments.networks import cnn, convolutional_localisation
from models.experiments.report import Example, examples, gallery
from models.experiments.training import DEFAULT_TRAINING, Budget, answers, held_out, trained
from models.transformations import AFFINE
from models.transformer import SpatialTransformer

BUDGET = Budget(steps=800)
"""Of each network."""
COUNT = 4
CHANNELS = 4
"""Of each convolution between or behind the transformers."""
FILTERS, FULL_FILTERS = 24, 64
"""Of the CNN behind all."""

NONE, ONE, ROW, BETWEEN, COMPOSED = "none", "one", "four in a row", "four, convolutions between", "four, composed"
MODELS = (NONE, ONE, ROW, BETWEEN, COMPOSED)


class Stack(nn.Module):
    """Float `[N, 1, 28, 28]` -> logits, and each transformer's box in the input, `[N, K, 4, 2]`.

    Attributes:
        as_one: whether the input is sampled once, by the product of all thetas, before any other layer.
    """

    def __init__(self, kind: str, filters: int) -> None:
        """`kind`: one of MODELS."""
        super().__init__()
        self.kind = kind
        self.as_one = False
        self.transformers = nn.ModuleList(
            SpatialTransformer(
                *convolutional_localisation(CHANNELS if kind == BETWEEN and index else 1, SIDE), (SIDE, SIDE)
            )
            for index in range({NONE: 0, ONE: 1}.get(kind, COUNT))
        )
        self.convolutions = nn.ModuleList(
            nn.Sequential(nn.Conv2d(CHANNELS if index else 1, CHANNELS, 3, padding=1), nn.ReLU())
            for index in range(COUNT - 1)
        )
        self.classifier = cnn(CHANNELS, SIDE, filters)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = images
        wholes: list[Tensor] = []
        transformers = [module for module in self.transformers if isinstance(module, SpatialTransformer)]
        for index, transformer in enumerate(transformers):
            if self.kind == BETWEEN and index:
                x = self.convolutions[index - 1](x)
            theta = transformer.locate(x)
            wholes.append(compose(wholes[-1], theta) if wholes else theta)
            x = transformer.sample(images, wholes[-1]) if self.kind == COMPOSED else transformer.sample(x, theta)
        if self.as_one:
            x = transformers[-1].sample(images, wholes[-1])
        if self.kind != BETWEEN or self.as_one:
            for convolution in self.convolutions:
                x = convolution(x)
        if not wholes:
            return self.classifier(x), images.new_zeros(len(images), 0, 4, 2)
        return self.classifier(x), input_outlines(side_by_side(AFFINE, torch.stack(wholes, dim=1)))


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """The affine map that does what `inner` does, then `outer`: `[N, 2, 3]` each."""
    turned = torch.matmul(outer[:, :, :2], inner)
    return torch.cat((turned[:, :, :2], turned[:, :, 2:] + outer[:, :, 2:]), dim=2)


def draw(digits: Digits, index: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Digits turned by up to 90 degrees either way, and their labels."""
    images, labels = digits[index]
    return rotate(images, generator), labels


def run(settings: Settings) -> Result:
    """Train all networks on the same images, and ask each again with its transformers replaced by their product."""
    split = load_digits(settings.data)
    images, labels = held_out(split.test, draw)
    figures: Cells = {}
    losses: dict[str, float] = {}
    shown: dict[str, list[Example]] = {}
    for kind in MODELS:
        build = partial(Stack, kind, FULL_FILTERS if settings.full else FILTERS)
        network, cost, losses[kind] = trained(build, images.shape[1:], split.training, draw, settings, BUDGET, kind)
        answered = answers(network, images, labels)
        figures[kind] = {"error": answered.wrong}
        if kind != NONE:
            network.as_one = True
            figures[kind]["error as one"] = answers(network, images, labels).wrong
            shown[kind] = examples(images, answered.outlines)
        figures[kind] |= {
            "1000 parameters": cost.parameters / 1e3,
            "million multiplications": cost.multiplications / 1e6,
        }
    return Result(
        {"error": figures}, {"last training loss": losses}, plots={"boxes": gallery(shown)}, notes=(split.told,)
    )


EXPERIMENT = Experiment(
    title="Affine transformers in a row",
    run=run,
    tables=(
        Table(
            "error",
            "Rotated digits: error, % of the digits; and what the networks cost",
            ("error", "error as one", "1000 parameters", "million multiplications"),
        ),
    ),
    notes=(
        DEFAULT_TRAINING,
        "error as one: of the trained network, when the product of its thetas samples the input once and all layers"
        " come after it. Four in a row are one affine map, resampled four times; with convolutions and ReLU between"
        " they are not, and what was learned should not carry over.",
        "four, composed: each transformer sees the input through all before it, and the input is sampled anew by their"
        " product (inverse compositional, Lin and Lucey 2017).",
        "All networks have the same three convolutions (3 x 3, 4 maps, ReLU), between the transformers or behind them,"
        " and the same CNN; each transformer has its own localisation network. The paper gives no figures for this.",
    ),
)
