"""The readers against the paper's table, and what every reader owes the rest of the project."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from models.readers import (
    CLASSES,
    READERS,
    SLOTS,
    ReaderOutput,
    ReaderSpec,
    build_reader,
    negative_log_likelihood,
)
from models.readers.compact import CompactReader, attended, point_positions
from models.readers.paper import FiveSoftmaxes, PaperReader
from models.served import ServedReader
from models.training.recipe import load_recipe
from models.transformations import IDENTITY_THETA
from models.transformer import SpatialTransformer, tiles

# The appendix of the STN paper, section A.2, as it is printed; 5 x 5 convolutions, padding 2.
TRUNK = (
    "conv48-max2-conv64-conv128-max2-conv160-conv192-max2-conv192-conv192-max2-conv192-fc3072-fc3072-fc3072-"
    # Five softmaxes of eleven.
    "fc55"
)
LOCALISATIONS = {"cnn": "", "st_cnn_single": "conv32-max2-conv32-fc32-fc32-fc6", "st_cnn_multi": "fc32-fc32-fc6"}
# (channels, side as a share of the input's) of the maps that are transformed.
TRANSFORMED = {
    "cnn": [],
    "st_cnn_single": [(3, 1)],
    "st_cnn_multi": [(3, 1), (48, 2), (64, 2), (128, 4)],
}

Costs = tuple[int, int]


def costs(table: str, channels: int, size: int) -> Costs:
    """(parameters, multiply-accumulates) of a network as the paper writes it, for one square map."""
    parameters = macs = 0
    flat = False
    for layer in table.split("-"):
        kind, width = layer.rstrip("0123456789"), int(layer.lstrip("convmaxf"))
        if kind == "max":
            size //= width
            continue
        if kind == "fc":
            inputs = channels if flat else channels * size * size
            flat, places = True, 1
        else:
            inputs, places = 25 * channels, size * size
        parameters += (inputs + 1) * width
        macs += inputs * width * places
        channels = width
    return parameters, macs


def expected_costs(reader: str, size: int) -> Costs:
    parts = [costs(TRUNK, 3, size)]
    parts += [costs(LOCALISATIONS[reader], channels, size // share) for channels, share in TRANSFORMED[reader]]
    return sum(part[0] for part in parts), sum(part[1] for part in parts)


@pytest.fixture
def forms_only() -> Iterator[None]:
    """Tensors without storage: their forms are worked out and nothing else, so that 128 px costs nothing."""
    with FakeTensorMode():
        yield


def build(name: str, size: int) -> nn.Module:
    return build_reader(ReaderSpec(name, size, size)).eval()


def counted_macs(reader: nn.Module, size: int) -> int:
    """What the convolutions and connected layers really multiply for one image."""
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            total += output.numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            total += output.numel() * module.in_features

    hooks = [part.register_forward_hook(count) for part in reader.modules() if not list(part.children())]
    reader(torch.zeros(1, 3, size, size))
    for hook in hooks:
        hook.remove()
    return total


PINNED = {
    ("cnn", 64): (32_820_951, 791_974_912),
    ("cnn", 128): (61_132_503, 3_110_769_664),
    ("st_cnn_single", 64): (33_898_877, 829_069_504),
    ("st_cnn_single", 128): (65_356_157, 3_259_144_384),
    ("st_cnn_multi", 64): (37_937_903, 797_091_584),
    ("st_cnn_multi", 128): (81_584_879, 3_131_221_760),
}
"""(parameters, multiply-accumulates)."""


@pytest.mark.usefixtures("forms_only")
@pytest.mark.parametrize(("name", "size"), PINNED)
def test_the_papers_readers_cost_what_its_table_says(name: str, size: int) -> None:
    reader = build(name, size)
    parameters = sum(parameter.numel() for parameter in reader.parameters())
    assert (parameters, counted_macs(reader, size)) == expected_costs(name, size) == PINNED[name, size]


@pytest.mark.usefixtures("forms_only")
@pytest.mark.parametrize(("name", "size"), PINNED)
def test_transformers_are_where_the_paper_puts_them(name: str, size: int) -> None:
    reader = build(name, size)
    seen: list[tuple[str, tuple[int, ...]]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
        kind = "transformer" if isinstance(module, SpatialTransformer) else "conv"
        seen.append((kind, tuple(inputs[0].shape[1:])))

    assert isinstance(reader, PaperReader)
    for stage in reader.stages:
        for layer in stage.modules():
            if isinstance(layer, nn.Conv2d):
                layer.register_forward_hook(note)
    for part in reader.modules():
        if isinstance(part, SpatialTransformer):
            part.register_forward_hook(note)
            # The output has the size of the input, as in the paper.
            assert part.oversampling == (1, 1)
    output = reader(torch.zeros(2, 3, size, size))
    assert output.theta.shape == (2, len(TRANSFORMED[name]), 2, 3)
    transformed = [(channels, size // share, size // share) for channels, share in TRANSFORMED[name]]
    assert [form for kind, form in seen if kind == "transformer"] == transformed
    # Each stands right before a convolution, the k-th before the k-th.
    order = [kind for kind, _ in seen]
    assert order == ["transformer", "conv"] * len(transformed) + ["conv"] * (8 - len(transformed))


@pytest.mark.usefixtures("forms_only")
@pytest.mark.parametrize("name", ["cnn", "st_cnn_single", "st_cnn_multi"])
def test_dropout_is_everywhere_but_in_the_first_convolution_and_the_localisation(name: str) -> None:
    reader = build(name, 64)
    assert isinstance(reader, PaperReader)
    kinds = {nn.Conv2d: "conv", nn.Linear: "fc", FiveSoftmaxes: "fc", nn.Dropout: "drop"}
    parts = [part for part in (*reader.stages.modules(), *reader.head.modules()) if type(part) in kinds]
    assert "-".join(kinds[type(part)] for part in parts) == "conv" + "-conv-drop" * 7 + "-fc-drop" * 3 + "-fc"
    assert {part.p for part in parts if isinstance(part, nn.Dropout)} == {0.5}
    assert not any(isinstance(part, nn.Dropout) for part in reader.transformers.modules())


@pytest.mark.parametrize("name", ["cnn", "st_cnn_single", "st_cnn_multi"])
@pytest.mark.parametrize("form", [(64, 32), (60, 60), (8, 8)])
def test_forms_the_papers_readers_cannot_take(name: str, form: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"{form[0]}x{form[1]}"):
        build_reader(ReaderSpec(name, *form))


def test_the_mean_of_each_image_is_subtracted() -> None:
    """Goodfellow's preparation: a constant added to one image changes nothing, that of another image neither."""
    reader = build_reader(ReaderSpec("cnn", 32, 32)).eval()
    images = torch.rand(2, 3, 32, 32) * 0.5
    lighter = images + torch.tensor([0.5, 0.1]).reshape(2, 1, 1, 1)
    with torch.inference_mode():
        torch.testing.assert_close(reader(lighter).logits, reader(images).logits, rtol=0, atol=1e-5)


class TestCompact:
    def test_its_size_and_cost_as_shipped(self) -> None:
        """At most four million parameters, and an eighth of the multiplications of `st_cnn_multi` at 64 px."""
        spec = load_recipe("compact").spec
        assert (spec.input_height, spec.input_width) == (96, 96)
        with FakeTensorMode():
            reader = build("compact", 96)
            parameters = sum(parameter.numel() for parameter in reader.parameters())
            macs = counted_macs(reader, 96)
        assert parameters == 863_369 <= 4_000_000
        assert 8 * macs <= PINNED["st_cnn_multi", 64][1]
        assert macs == 77_798_912

    def test_a_transformer_stands_on_the_input(self) -> None:
        reader = build_reader(ReaderSpec("compact", 64, 64)).eval()
        assert isinstance(reader, CompactReader)
        assert reader.transformer is not None
        forms: list[torch.Size] = []
        reader.transformer.register_forward_hook(lambda module, inputs, output: forms.append(inputs[0].shape))
        reader(torch.rand(1, 3, 64, 64))
        assert forms == [(1, 1, 64, 64)]

    def test_brightness_and_contrast_do_not_count(self) -> None:
        torch.manual_seed(0)
        reader = build_reader(ReaderSpec("compact", 64, 64)).eval()
        images = torch.rand(2, 3, 64, 64)
        with torch.inference_mode():
            torch.testing.assert_close(reader(images * 0.4 + 0.3).logits, reader(images).logits, rtol=0, atol=1e-3)

    @pytest.mark.parametrize("grey", [0.0, 0.5, 1.0])
    def test_an_image_without_contrast_is_read_too(self, grey: float) -> None:
        output = build_reader(ReaderSpec("compact", 64, 64)).eval()(torch.full((1, 3, 64, 64), grey))
        assert output.logits.isfinite().all()
        assert output.theta.isfinite().all()

    @pytest.mark.parametrize("form", [(64, 64), (128, 128), (64, 128), (48, 80), (34, 46), (2, 2)])
    def test_it_takes_any_even_form(self, form: tuple[int, int]) -> None:
        output = build_reader(ReaderSpec("compact", *form)).eval()(torch.rand(1, 3, *form))
        assert output.logits.shape == (1, SLOTS, CLASSES)

    @pytest.mark.parametrize("form", [(33, 64), (64, 47), (0, 64), (64, -2)])
    def test_forms_it_cannot_take(self, form: tuple[int, int]) -> None:
        with pytest.raises(ValueError, match=f"{form[0]}x{form[1]}"):
            build_reader(ReaderSpec("compact", *form))

    def test_points_are_spatial_softmaxes(self) -> None:
        """Against the sums written out, place by place."""
        torch.manual_seed(3)
        features, maps, positions = torch.randn(2, 3, 2, 4), torch.randn(2, 5, 2, 4), point_positions(2, 4)
        found, expected = attended(features, maps, positions)
        xs, ys = (-3.0, -1.0, 1.0, 3.0), (-2.0, 2.0)
        for image in range(2):
            for point in range(5):
                weights = {
                    (row, column): math.exp(maps[image, point, row, column]) for row in (0, 1) for column in range(4)
                }
                total = sum(weights.values())
                x = sum(weight * xs[column] for (_, column), weight in weights.items()) / total
                y = sum(weight * ys[row] for (row, _), weight in weights.items()) / total
                assert expected[image, 2 * point : 2 * point + 2].tolist() == pytest.approx([x, y], abs=1e-5)
                for channel in range(3):
                    mean = sum(float(features[image, channel, *place]) * weight for place, weight in weights.items())
                    assert float(found[image, 3 * point + channel]) == pytest.approx(mean / total, abs=1e-5)

    def test_its_twin_is_the_same_trunk_on_the_whole_input(self) -> None:
        """With the transformer at the identity and every pixel sampled, the two are one function."""
        torch.manual_seed(2)
        reader, twin = (build_reader(ReaderSpec(name, 64, 64)).eval() for name in ("compact_points", "compact_cnn"))
        state = {key: value for key, value in reader.state_dict().items() if not key.startswith("transformer.")}
        twin.load_state_dict(state)
        images = torch.rand(2, 3, 64, 64)
        with torch.inference_mode():
            torch.testing.assert_close(twin(images).logits, reader(images).logits, rtol=0, atol=1e-4)

    def test_its_twin_takes_multiples_of_the_window(self) -> None:
        with pytest.raises(ValueError, match="48x64"):
            build_reader(ReaderSpec("compact_cnn", 48, 64))


SMALL = {"compact": 64, "compact_points": 64, "compact_cnn": 64}
"""Side in pixels at which a reader is cheap enough to be run here; 32 for the papers'."""


@pytest.mark.parametrize("name", READERS)
def test_every_reader_answers_five_rows_of_eleven(name: str) -> None:
    size = SMALL.get(name, 32)
    reader = build_reader(ReaderSpec(name, size, size)).eval()
    output: ReaderOutput = reader(torch.rand(3, 3, size, size))
    assert output.logits.shape == (3, 5, 11)
    transformers = {"compact": 1, "compact_points": 1, "shared": 1, "parallel": 4}
    assert output.theta.shape == (3, transformers.get(name, len(TRANSFORMED.get(name, ()))), 2, 3)
    # Untrained, each transformer shows all it gets, or its tile.
    start = torch.tensor(tiles(1, 4) if name == "parallel" else IDENTITY_THETA)
    assert torch.equal(output.theta, start.expand_as(output.theta))


@pytest.mark.parametrize("name", ["compact", "compact_points", "st_cnn_single", "st_cnn_multi", "shared", "parallel"])
def test_learning_reaches_the_localisation_networks(name: str) -> None:
    """They start behind zero weights: the first step moves only the last layer, from the second on all learn."""
    torch.manual_seed(1)
    size = SMALL.get(name, 32)
    reader = build_reader(ReaderSpec(name, size, size)).train()
    images, targets = torch.rand(4, 3, size, size), torch.randint(CLASSES, (4, SLOTS))
    transformers = [part for part in reader.modules() if isinstance(part, SpatialTransformer)]
    optimiser = torch.optim.SGD(reader.parameters(), lr=1e-3)
    for learns in (False, True):
        optimiser.zero_grad()
        torch.autograd.backward(negative_log_likelihood(reader(images).logits, targets))
        for transformer in transformers:
            assert all(moves(transformer.to_theta))
            assert set(moves(transformer.localisation)) == {learns}
        optimiser.step()


def moves(module: nn.Module) -> list[bool]:
    """Of each parameter, whether the loss depends on it."""
    return [p.grad is not None and p.grad.abs().max().item() > 0 for p in module.parameters()]


class TestLoss:
    def test_by_hand(self) -> None:
        """-log of the product of the five probabilities of the label, then the mean over the two images."""
        probabilities = torch.full((2, 5, 11), 0.05)
        # "12" and "00000", blanks are class 10.
        targets = torch.tensor([[1, 2, 10, 10, 10], [0, 0, 0, 0, 0]])
        for image, shares in enumerate(((0.5, 0.4, 0.3, 0.2, 0.1), (0.5, 0.5, 0.5, 0.5, 0.25))):
            for slot, share in enumerate(shares):
                probabilities[image, slot] = (1 - share) / 10
                probabilities[image, slot, targets[image, slot]] = share
        expected = (-math.log(0.5 * 0.4 * 0.3 * 0.2 * 0.1) - math.log(0.5**4 * 0.25)) / 2
        assert negative_log_likelihood(probabilities.log(), targets).item() == pytest.approx(expected, rel=1e-5)

    def test_a_constant_on_the_logits_changes_nothing(self) -> None:
        logits, targets = torch.randn(3, 5, 11), torch.randint(11, (3, 5))
        torch.testing.assert_close(
            negative_log_likelihood(logits + 7, targets), negative_log_likelihood(logits, targets)
        )

    def test_half_precision_is_summed_in_full(self) -> None:
        logits, targets = torch.randn(64, 5, 11).bfloat16(), torch.randint(11, (64, 5))
        loss = negative_log_likelihood(logits, targets)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, negative_log_likelihood(logits.float(), targets))


class TestServedReader:
    @pytest.mark.parametrize("temperature", [1.0, 2.5])
    def test_pixels_in_probabilities_out(self, temperature: float) -> None:
        torch.manual_seed(0)
        reader = build_reader(ReaderSpec("compact", 64, 64)).eval()
        images = torch.randint(256, (3, 64, 64, 3), dtype=torch.uint8)
        with torch.inference_mode():
            probabilities, theta, boxes = ServedReader(reader, temperature)(images)
            plain = reader(torch.stack([image.permute(2, 0, 1) for image in images]).double().div(255).float())
        expected = (plain.logits.double() / temperature).exp()
        expected /= expected.sum(dim=-1, keepdim=True)
        torch.testing.assert_close(probabilities.double(), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(theta, plain.theta)
        assert boxes.tolist() == [[[[-1, -1], [1, -1], [1, 1], [-1, 1]]]] * 3


def test_a_name_that_no_reader_has() -> None:
    with pytest.raises(
        ValueError, match=r"'vgg'.*compact, compact_points, compact_cnn, cnn, st_cnn_single, st_cnn_multi"
    ):
        build_reader(ReaderSpec("vgg", 64, 64))
