"""`two-digits`: one transformer for each of two digits (STN paper, appendix A.1; the lecture's "a box for each digit").

Two digits, each turned, scaled and moved for itself as in RTS, lie in two channels of one image or beside each other in
one. They are read, or only their sum is told. A CNN against two transformers side by side, of equally many parameters.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Generator, Tensor, nn

from models.evaluation.box_coverage import overlap
from models.experiments.digits import Digits, load_digits
from models.experiments.distortions import RTS_SIDE, anywhere, placed, uniform, warp
from models.experiments.experiment import Cells, Experiment, Result, Settings, Table, correlation, ratios
from models.experiments.networks import (
    TRANSFORMATIONS,
    DigitNetwork,
    cnn_features,
    convolutional_localisation,
    fitted,
    point_localisation,
)
from models.experiments.report import Example, examples, gallery
from models.experiments.training import DEFAULT_TRAINING, TEST_SEED, Budget, answers, held_out, trained
from models.readers.paper import Localisation
from models.transformations import IDENTITY_THETA, Matrix, Similarity
from models.transformer import tiles
from service.geometry import Region

BUDGET = Budget(steps=1_000, learning_rate=3e-3)
PARAMETERS, FULL_PARAMETERS = 100_000, 400_000
HIDDEN = 64
"""Units between the features and what is said of them: a sum is not linear in what the digits look like."""
BESIDE_SIDE = 60
"""Of the one image that holds both digits, in pixels."""
BESIDE_X, BESIDE_Y = (0.33, 0.53), (-0.5, 0.5)
"""Where the right digit's centre lies, normalised; the left one's is as far on the other side."""
MEASURED = 200
"""Test images whose boxes are measured."""
AROUND = Region(-5, -5, 10, 10)
"""Five times the image, normalised: boxes are compared as far as they lie in it."""

MODELS = {"CNN": None, "2 x ST-CNN affine": "affine", "2 x ST-CNN TPS": "TPS"}
TASKS = {"added": (19,), "read": (2, 10)}
"""What is said of two digits: one of 19 sums, or one of ten digits twice."""
PLACES: dict[str, tuple[int, int, Sequence[Matrix]]] = {
    "two channels": (2, RTS_SIDE, (IDENTITY_THETA, IDENTITY_THETA)),
    "one image": (1, BESIDE_SIDE, tiles(1, 2)),
}
"""Where the two digits are: channels, side in pixels, and where two transformers start."""
COLUMNS = tuple(f"{place}, {task}" for place in PLACES for task in TASKS)
DEFAULT_COLUMNS = ("two channels, added", "one image, read")
"""What the default budget is for; `--all` and `--full` train all."""

PUBLISHED = {
    "CNN": {"two channels, added": 14.7},
    "2 x ST-CNN affine": {"two channels, added": 9.0},
    "2 x ST-CNN TPS": {"two channels, added": 5.8},
}


def in_two_channels(first: Tensor, second: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Each digit, `[N, 1, 28, 28]`, anywhere in a channel of its own, as RTS.

    Returns:
        The images `[N, 2, 42, 42]`, and the digits' centres `[N, 2, 2]`, normalised (x, y).
    """
    channels, centres = [], []
    for digits in (first, second):
        angle, scale, centre = anywhere(generator, len(digits))
        channels.append(warp(digits, Similarity(), placed(angle, scale, centre, RTS_SIDE), RTS_SIDE))
        centres.append(centre)
    return torch.cat(channels, dim=1), torch.stack(centres, dim=1)


def in_one_image(first: Tensor, second: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """The first digit on the left, the second on the right; the brighter shows where they meet.

    Returns:
        The images `[N, 1, 60, 60]`, and the digits' centres `[N, 2, 2]`, normalised (x, y).
    """
    images, centres = [], []
    for digits, sign in ((first, -1), (second, 1)):
        count = len(digits)
        angle, scale, _ = anywhere(generator, count)
        x, y = sign * uniform(generator, count, *BESIDE_X), uniform(generator, count, *BESIDE_Y)
        centre = torch.stack((x, y), dim=1)
        images.append(warp(digits, Similarity(), placed(angle, scale, centre, BESIDE_SIDE), BESIDE_SIDE))
        centres.append(centre)
    return torch.maximum(*images), torch.stack(centres, dim=1)


def pairs(place: str, digits: Digits, index: Tensor, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """The digits of these indices, each with another: images, the two labels `[N, 2]`, and centres."""
    first, first_labels = digits[index]
    second, second_labels = digits[torch.randint(len(digits), index.shape, generator=generator)]
    show = in_two_channels if place == "two channels" else in_one_image
    images, centres = show(first, second, generator)
    return images, torch.stack((first_labels, second_labels), dim=1), centres


def draw(place: str, task: str, digits: Digits, index: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Images, and what is to be said of them."""
    images, labels, _ = pairs(place, digits, index, generator)
    return images, labels.sum(dim=1) if task == "added" else labels


def two_digit_network(
    place: str, task: str, family: str | None, parameters: int, localisation: Localisation
) -> nn.Module:
    """With at most so many parameters; `family` is None for the CNN, which goes without the localisation."""
    channels, side, starts = PLACES[place]

    def classifier(channels: int, side: int, filters: int) -> nn.Module:
        network, features = cnn_features(channels, side, filters)
        outputs = TASKS[task]
        last = nn.Linear(HIDDEN, torch.Size(outputs).numel())
        return network.extend((nn.Linear(features, HIDDEN), nn.ReLU(), last, nn.Unflatten(1, outputs)))

    located = localisation if family else None
    transformation = TRANSFORMATIONS[family or "affine"]
    return fitted(
        lambda width: DigitNetwork(classifier, width, channels, side, located, transformation, starts), parameters
    )


def run(settings: Settings) -> Result:
    """Train every network on every task of the budget, and measure its boxes."""
    split = load_digits(settings.data)
    columns = COLUMNS if settings.full or settings.every else DEFAULT_COLUMNS
    parameters = FULL_PARAMETERS if settings.full else PARAMETERS
    localisation = convolutional_localisation if settings.full else point_localisation
    errors: Cells = {name: {} for name in MODELS}
    costs: Cells = {name: {} for name in MODELS}
    losses: Cells = {name: {} for name in MODELS}
    boxes: Cells = {}
    shown: dict[str, list[Example]] = {}
    for column in columns:
        place, task = column.split(", ")
        drawn = partial(draw, place, task)
        images, targets = held_out(split.test, drawn)
        measured = torch.arange(min(MEASURED, len(split.test)))
        measured_images, labels, centres = pairs(
            place, split.test, measured, torch.Generator().manual_seed(TEST_SEED + 1)
        )
        for name, family in MODELS.items():
            build = partial(two_digit_network, place, task, family, parameters, localisation)
            network, cost, losses[name][column] = trained(
                build, images.shape[1:], split.training, drawn, settings, BUDGET, f"{column}, {name}"
            )
            costs[name][f"1000 parameters, {column}"] = cost.parameters / 1e3
            costs[name][f"million multiplications, {column}"] = cost.multiplications / 1e6
            errors[name][column] = answers(network, images, targets).wrong
            if family:
                outlines = answers(network, measured_images, labels.sum(1) if task == "added" else labels).outlines
                boxes[f"{column}: {name}"] = followed(outlines, centres)
                shown[f"{column}: {name}"] = examples(measured_images, outlines)
    return Result(
        {"error": errors, "ratio": ratios(errors, "CNN"), "boxes": boxes, "cost": costs},
        {"last training loss": losses},
        plots={"boxes": gallery(shown)},
        notes=(split.told,),
    )


def followed(outlines: Tensor, centres: Tensor) -> dict[str, float]:
    """How much the two boxes overlap, and which digit each one follows, both in %.

    Args:
        outlines: `[N, 2, M, 2]`.
        centres: of the digits, `[N, 2, 2]`.
    """
    overlaps = [overlap(AROUND, *boxes) for boxes in outlines.tolist()]
    figures = {"overlap": 100 * sum(overlaps) / len(overlaps)}
    for box in range(2):
        for digit in range(2):
            with_digit = correlation(outlines[:, box].mean(dim=1), centres[:, digit])
            figures[f"box {box + 1} with digit {digit + 1}"] = 100 * with_digit
    return figures


EXPERIMENT = Experiment(
    title="Two digits, two transformers",
    run=run,
    tables=(
        Table("error", "Error, % of the images", COLUMNS, PUBLISHED),
        Table("ratio", "Error ÷ that of the CNN", COLUMNS, ratios(PUBLISHED, "CNN"), decimals=2),
        Table(
            "boxes",
            "Overlap of the two boxes (intersection ÷ union), and how each one's middle moves with each digit's"
            " (correlation), %",
            ("overlap", *(f"box {box} with digit {digit}" for box in (1, 2) for digit in (1, 2))),
        ),
        Table(
            "cost",
            "What the networks cost",
            tuple(f"{what}, {column}" for column in COLUMNS for what in ("1000 parameters", "million multiplications")),
        ),
    ),
    notes=(
        "Digits are turned, scaled and moved as in RTS, each for itself: in two channels of 42 x 42, or side by side in"
        " one image of 60 x 60, where digit 1 is the left one. All must be right: the sum, or both digits in order.",
        "Both transformers look at all channels; their windows are the channels of one CNN. In two channels both start"
        " at the whole image, in one image at its left and its right half. The paper gives figures for the sum of two"
        " channels alone, from a fully connected network behind the transformers.",
        f"{DEFAULT_TRAINING} A quarter of the parameters, a localisation that reads points from its last map in the"
        " place of the paper's connected layer, and without --all two of the four tasks; --full trains all as the"
        " paper does.",
    ),
    options=("data", "all"),
)
