"""Goodfellow's network: its layers, and what its length and digits become in the slots."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from models.readers import ReaderSpec, build_reader, negative_log_likelihood
from models.readers.maxout import (
    LengthAndDigits,
    LocallyConnected,
    MaxoutConvolution,
    Pool,
    SubtractiveNormalisation,
)
from service.decoding import decode

BLANK = 10


def layers_of(reader: nn.Module, size: int) -> list[str]:
    """The form of what each layer with weights, each pooling and each normalisation gives for one image."""
    seen: list[str] = []
    kinds = {
        MaxoutConvolution: "maxout",
        LocallyConnected: "local",
        Pool: "pool",
        SubtractiveNormalisation: "subtract",
        nn.Linear: "fc",
        nn.Dropout: "drop",
    }

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(f"{kinds.get(type(module), 'conv')} {'x'.join(map(str, output.shape[1:]))}")

    trunk = reader.trunk
    assert isinstance(trunk, nn.Sequential)
    for part in trunk:
        if type(part) in kinds or isinstance(part, nn.Conv2d):
            part.register_forward_hook(note)
    reader(torch.zeros(1, 3, size, size))
    return seen


def test_the_layers_are_those_of_the_paper() -> None:
    with FakeTensorMode():
        reader = build_reader(ReaderSpec("maxout_cnn", 64, 64)).eval()
        found = layers_of(reader, 64)
        parameters = sum(parameter.numel() for parameter in reader.parameters())
    expected, channels, expected_parameters = [], 3, 0
    # Strides of 2 and 1 in turns.
    for index, (units, side) in enumerate(
        zip((48, 64, 128, 160, 192, 192, 192, 192), (32, 32, 16, 16, 8, 8, 4, 4), strict=True)
    ):
        before = side * 2 if index % 2 == 0 else side
        form = f"{units}x{side}x{side}"
        expected += [
            f"{'conv' if index else 'maxout'} {units}x{before}x{before}",
            *(f"{kind} {form}" for kind in ("pool", "subtract", "drop")),
        ]
        expected_parameters += (25 * channels + 1) * units * (1 if index else 3)
        channels = units
    expected += ["local 192x4x4", "drop 192x4x4", "fc 3072", "drop 3072", "fc 3072", "drop 3072"]
    expected_parameters += 16 * (25 * 192 + 1) * 192 + 2 * (3072 + 1) * 3072 + (3072 + 1) * (6 + 50)
    assert found == expected
    assert parameters == expected_parameters


@pytest.mark.parametrize("name", ["maxout_cnn", "maxout_cnn_slots"])
@pytest.mark.parametrize("form", [(64, 32), (48, 48), (16, 16)])
def test_forms_it_cannot_take(name: str, form: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"{form[0]}x{form[1]}"):
        build_reader(ReaderSpec(name, *form))


def test_a_maxout_unit_is_the_largest_of_its_three_filters() -> None:
    layer = MaxoutConvolution(2, 4)
    x = torch.rand(2, 2, 6, 6)
    weight, bias = layer.filters.weight.reshape(3, 4, 2, 5, 5), layer.filters.bias
    assert bias is not None
    for unit in range(4):
        each = [
            F.conv2d(x, weight[index, unit : unit + 1], bias[4 * index + unit].reshape(1), padding=2)
            for index in range(3)
        ]
        torch.testing.assert_close(layer(x)[:, unit], torch.cat(each, dim=1).amax(dim=1))


def test_the_pooling_that_keeps_the_size() -> None:
    x = torch.rand(1, 2, 5, 4)
    for row, column in itertools.product(range(5), range(4)):
        window = x[:, :, row : row + 2, column : column + 2]
        torch.testing.assert_close(Pool(1)(x)[:, :, row, column], window.amax(dim=(2, 3)))


def test_subtractive_normalisation_takes_the_mean_of_the_neighbours_there_are() -> None:
    x = torch.rand(2, 3, 4, 5)
    for row, column in itertools.product(range(4), range(5)):
        around = x[:, :, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
        expected = x[:, :, row, column] - around.mean(dim=(2, 3))
        torch.testing.assert_close(SubtractiveNormalisation()(x)[:, :, row, column], expected)


def test_each_place_has_its_own_weights() -> None:
    layer = LocallyConnected(2, 3, 4)
    x = torch.rand(2, 2, 3, 3)
    padded = F.pad(x, (2, 2, 2, 2))
    for row, column in itertools.product(range(3), range(3)):
        place = 3 * row + column
        seen = padded[:, :, row : row + 5, column : column + 5].reshape(2, -1)
        expected = seen @ layer.weight[place] + layer.bias[place]
        torch.testing.assert_close(layer(x)[:, :, row, column], expected)


def distributions(seed: int, sharpness: float = 2.0) -> tuple[Tensor, Tensor]:
    """Logits of the length `[1, 6]` and of the digits `[1, 5, 10]`."""
    generator = torch.Generator().manual_seed(seed)
    length = sharpness * torch.randn(1, 6, generator=generator)
    return length, sharpness * torch.randn(1, 5, 10, generator=generator)


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000))
def test_each_slot_has_its_marginal_of_the_numbers_there_are(seed: int) -> None:
    """By adding up P(length) P(digits) over what each length and each digit of a slot can be."""
    length, digits = distributions(seed)
    of_length, of_digit = length.double().softmax(-1)[0], digits.double().softmax(-1)[0]
    expected = np.zeros((5, 11))
    for n in range(6):
        for slot in range(5):
            if slot < n:
                expected[slot, :10] += (of_length[n] * of_digit[slot]).numpy()
            else:
                expected[slot, BLANK] += of_length[n].item()
    logits = LengthAndDigits(7).slots(length, digits)
    np.testing.assert_allclose(logits[0].double().exp().numpy(), expected, atol=1e-6)
    # As logits they mean the same: the artifact takes their softmax.
    np.testing.assert_allclose(logits[0].double().softmax(-1).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(
    "lengths", [{0: 1.0}, {3: 1.0}, {5: 1.0}, {2: 0.7, 3: 0.3}, {4: 0.4, 5: 0.6}, {0: 0.5, 1: 0.5}]
)
def test_confidence_is_exact_where_two_lengths_in_a_row_have_it_all(lengths: dict[int, float]) -> None:
    _, digits = distributions(1, sharpness=9.0)
    length = torch.tensor([[lengths.get(n, 0.0) for n in range(6)]]).clamp(min=1e-30).log()
    (found,) = decode(LengthAndDigits(7).slots(length, digits).softmax(-1).numpy())
    best = digits.softmax(-1).amax(-1)[0].tolist()
    joint = {n: share * math.prod(best[:n]) for n, share in lengths.items()}
    n = max(joint, key=lambda n: joint[n])
    assert len(found.number) == n
    assert found.confidence == pytest.approx(joint[n], rel=1e-4)


def test_what_is_lost_where_more_lengths_are_likely() -> None:
    """One digit or three: two, which Goodfellow's head rules out, are as likely to independent slots."""
    digits = torch.full((1, 5, 10), -50.0)
    digits[..., 7] = 50
    length = torch.tensor([[0, 0.5, 0, 0.5, 0, 0]]).clamp(min=1e-30).log()
    slots = LengthAndDigits(7).slots(length, digits).softmax(-1)[0]
    by_length = [math.prod([*slots[:n, 7].tolist(), *slots[n:, BLANK].tolist()]) for n in range(6)]
    assert by_length == pytest.approx([0, 0.25, 0.25, 0.25, 0, 0], abs=1e-6)


class TestLoss:
    def test_by_hand(self) -> None:
        """-log of P(length) and of P(digit) for the digits there are; the other slots have no part."""
        head = LengthAndDigits(3).train()
        features = torch.randn(3, 3)
        targets = torch.tensor([[1, 2, BLANK, BLANK, BLANK], [9, 0, 0, 4, 5], [BLANK] * 5])
        of_length = head.length(features).double().softmax(-1)
        of_digit = head.digits(features).double().reshape(3, 5, 10).softmax(-1)
        expected = 0.0
        for image, row in enumerate(targets.tolist()):
            number = [digit for digit in row if digit != BLANK]
            joint = of_length[image, len(number)]
            for slot, digit in enumerate(number):
                joint = joint * of_digit[image, slot, digit]
            expected -= math.log(joint.item()) / 3
        logits = head(features)
        assert logits.shape == (3, 6, 11)
        assert negative_log_likelihood(logits, targets).item() == pytest.approx(expected, rel=1e-5)

    def test_its_gradient_is_finite_in_half_precision_too(self) -> None:
        head = LengthAndDigits(3).train()
        with torch.autocast("cpu", torch.bfloat16):
            logits = head(torch.randn(2, 3))
        torch.autograd.backward(negative_log_likelihood(logits, torch.tensor([[1, 2, BLANK, BLANK, BLANK]] * 2)))
        for parameter in head.parameters():
            assert parameter.grad is not None
            assert parameter.grad.isfinite().all()

    def test_it_is_that_of_the_whole_number(self) -> None:
        """Over all numbers of up to two digits, with no mass on longer ones, the probabilities add up to one."""
        head = LengthAndDigits(3).train()
        with torch.no_grad():
            head.length.weight.zero_()
            head.length.bias.copy_(torch.tensor([0.3, 0.1, 0.2, -60, -60, -60]))
        numbers = [(), *((a,) for a in range(10)), *itertools.product(range(10), repeat=2)]
        targets = torch.tensor([[*number, *[BLANK] * (5 - len(number))] for number in numbers])
        logits = head(torch.randn(1, 3).expand(len(numbers), 3))
        each = [-negative_log_likelihood(logits[i : i + 1], targets[i : i + 1]).double() for i in range(len(numbers))]
        assert torch.stack(each).exp().sum().item() == pytest.approx(1, rel=1e-5)


def test_the_two_heads_stand_on_one_trunk() -> None:
    with FakeTensorMode():
        own, other = (build_reader(ReaderSpec(name, 32, 32)) for name in ("maxout_cnn", "maxout_cnn_slots"))
        shapes = [
            {key: value.shape for key, value in reader.state_dict().items() if key.startswith("trunk.")}
            for reader in (own, other)
        ]
        assert shapes[0] == shapes[1]
        assert other.train()(torch.zeros(2, 3, 32, 32)).logits.shape == (2, 5, 11)
        assert own.train()(torch.zeros(2, 3, 32, 32)).logits.shape == (2, 6, 11)
