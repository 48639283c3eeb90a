"""The readers `shared` and `parallel`: what they have in common with the paper's, and what is their own."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from lecture import target_centres
from narrow import narrow_networks
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from models.readers import ReaderSpec, build_reader, negative_log_likelihood
from models.readers.parallel import ParallelReader
from models.readers.shared import SHARED, SharedReader
from models.training.optimiser import build_optimiser
from models.training.recipe import load_recipe
from models.transformer import tiles

TARGETS = torch.tensor([[1, 2, 10, 10, 10], [3, 10, 10, 10, 10]])


@pytest.fixture
def narrow() -> Iterator[None]:
    with narrow_networks():
        yield


def build(name: str, size: int) -> nn.Module:
    torch.manual_seed(0)
    return build_reader(ReaderSpec(name, size, size)).eval()


@pytest.mark.parametrize("name", ["shared", "parallel"])
@pytest.mark.parametrize("form", [(64, 32), (40, 40), (8, 8)])
def test_forms_they_cannot_take(name: str, form: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"{form[0]}x{form[1]}"):
        build_reader(ReaderSpec(name, *form))


@pytest.mark.parametrize("name", ["shared-64", "shared-128", "parallel-64", "parallel-128"])
def test_what_is_slow_is_what_is_not_shared(name: str) -> None:
    """A tenth of the rate for the localisation network and theta; the stages that `shared` shares are the trunk's."""
    recipe = load_recipe(name)
    with torch.device("meta"):
        reader = build_reader(recipe.spec)
    slow = {
        id(parameter)
        for group in build_optimiser(reader, recipe.optimiser).param_groups
        for parameter in group["params"]
        if group["share"] == 0.1
    }
    found = {key.split(".")[0] for key, parameter in reader.named_parameters() if id(parameter) in slow}
    rest = {key.split(".")[0] for key, parameter in reader.named_parameters() if id(parameter) not in slow}
    if name.startswith("shared"):
        assert (found, rest) == ({"transformer"}, {"shared", "rest", "head"})
    else:
        assert (found, rest) == ({"transformers"}, {"trunks", "head"})


class TestShared:
    def test_at_the_start_it_is_the_papers_cnn(self) -> None:
        """The same weights in the same places; 64 pixels are copied to the bit at the identity."""
        reader, plain = build("shared", 64), build("cnn", 64)
        weights = {}
        for key, value in reader.state_dict().items():
            part, _, name = key.partition(".")
            if part in ("shared", "rest"):
                index, _, name = name.partition(".")
                weights[f"stages.{int(index) + (SHARED if part == 'rest' else 0)}.{name}"] = value
            elif part == "head":
                weights[key] = value
        plain.load_state_dict(weights)
        images = torch.rand(1, 3, 64, 64)
        with torch.inference_mode():
            torch.testing.assert_close(reader(images).logits, plain(images).logits, rtol=0, atol=1e-6)

    def test_the_localisation_network_sees_the_third_stages_map(self) -> None:
        with FakeTensorMode():
            reader = build("shared", 64)
            assert isinstance(reader, SharedReader)
            seen: list[torch.Size] = []
            reader.transformer.localisation.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape))
            reader(torch.zeros(2, 3, 64, 64))
            # As the paper's fourth transformer of `st_cnn_multi`: fc32-fc32 on 128 maps of 16x16.
            assert seen == [(2, 128, 16, 16)]
            own = sum(parameter.numel() for parameter in reader.transformer.parameters())
        assert own == (128 * 256 + 1) * 32 + 33 * 32 + 33 * 6

    @pytest.mark.usefixtures("narrow")
    def test_the_shared_stages_learn_from_both_uses(self) -> None:
        """With the use for looking cut off the gradient of a shared weight is another, and neither is zero."""
        reader = build("shared", 32)
        assert isinstance(reader, SharedReader)
        nn.init.normal_(reader.transformer.to_theta.weight, std=0.1)
        images, first = torch.rand(2, 3, 32, 32), next(reader.shared.parameters())

        def gradient() -> Tensor:
            (found,) = torch.autograd.grad(negative_log_likelihood(reader(images).logits, TARGETS), first)
            return found

        both = gradient()
        reader.transformer.localisation.register_forward_pre_hook(lambda module, inputs: (inputs[0].detach(),))
        reading = gradient()
        assert reading.abs().max() > 0
        assert (both - reading).abs().max() > 1e-3 * reading.abs().max()


class TestParallel:
    def test_each_starts_at_its_tile_and_the_boxes_say_so(self) -> None:
        with narrow_networks():
            reader = build("parallel", 32)
        output = reader(torch.rand(2, 3, 32, 32))
        for image in range(2):
            assert output.theta[image].tolist() == [pytest.approx(np.array(tile)) for tile in tiles(1, 4)]
        expected = [[(x, -1), (x + 0.5, -1), (x + 0.5, 1), (x, 1)] for x in (-1, -0.5, 0, 0.5)]
        np.testing.assert_allclose(output.outlines.detach().numpy(), [expected] * 2, atol=1e-6)

    @pytest.mark.usefixtures("narrow")
    def test_a_trunk_sees_its_own_window_alone(self) -> None:
        """At the start: the gradient of what a trunk finds is zero outside its quarter of the image.

        A sample reaches one pixel beyond its tile. What a pixel gets through the mean of the image, which is
        subtracted, is the same for all and taken out.
        """
        reader = build("parallel", 32)
        assert isinstance(reader, ParallelReader)
        images = torch.rand(1, 3, 32, 32)
        found: list[Tensor] = []
        for trunk in reader.trunks:
            trunk.register_forward_hook(lambda module, inputs, output: found.append(inputs[0]))
        images.requires_grad_()
        reader(images)
        x = torch.tensor(target_centres(32, 32)[0, :, 0])
        for index, window in enumerate(found):
            (gradient,) = torch.autograd.grad(window.square().sum(), images, retain_graph=True)
            own = (gradient - gradient[0, 0, 0, 31 if index < 2 else 0]).abs().amax(dim=(0, 1, 2)) > 1e-5
            low = -1 + index / 2
            near = (x > low - 2 / 32) & (x < low + 0.5 + 2 / 32)
            assert own[(x > low) & (x < low + 0.5)].all()
            assert not own[~near].any()

    def test_the_trunks_cost_what_the_one_of_cnn_does(self) -> None:
        with FakeTensorMode():
            reader, plain = build("parallel", 64), build("cnn", 64)
            counts = [
                sum(
                    parameter.numel()
                    for key, parameter in network.named_parameters()
                    if key.startswith(("trunks", "stages"))
                )
                for network in (reader, plain)
            ]
            head, plain_head = (
                sum(parameter.numel() for key, parameter in network.named_parameters() if key.startswith("head"))
                for network in (reader, plain)
            )
            assert isinstance(reader, ParallelReader)
            windows: list[torch.Size] = []
            for trunk in reader.trunks:
                trunk.register_forward_hook(lambda module, inputs, output: windows.append(inputs[0].shape))
            reader(torch.zeros(1, 3, 64, 64))
        assert counts[0] == 4 * counts[1]
        assert head == plain_head
        # Four windows have as many pixels as the input.
        assert windows == [(1, 3, 32, 32)] * 4
