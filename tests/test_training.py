"""Training: batches and views by (seed, epoch, index), optimisation, resume, and the signs of collapse."""

import json
import math
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from housenumber.cli import main
from models.checkpoint import load_reader, save_reader, weights_sha256
from models.data.sample import Sample
from models.data.shards import read_shards, write_shards
from models.data.synthetic.fonts import BUILT_IN
from models.data.synthetic.render import render
from models.readers import build_reader, negative_log_likelihood
from models.training import commands, loop
from models.training.collapse import signs_of_collapse
from models.training.dataset import DataError, Steps, Views, framed, hold_out
from models.training.optimiser import averaged, build_optimiser, learning_rate_factor, set_learning_rate
from models.training.recipe import AugmentTable, LossTable, OptimiserTable, Recipe, RunTable, ScheduleTable, load_recipe
from models.transformer import SpatialTransformer
from service.decoding import pack
from service.geometry import Region
from service.imaging import Photo

STEPS = 7

RECIPE = f"""
[reader]
name = "compact"
input_height = 32
input_width = 32
[data]
validation = 4
[augment]
region_scale = 1.2
region_shift = 0.1
invert = 0.3
contrast = 0.2
noise = 4.0
blur = 1.0
[optimiser]
name = "adamw"
learning_rate = 0.001
weight_decay = 0.01
clip_norm = 5.0
[schedule]
name = "cosine"
steps = {STEPS}
batch_size = 4
warmup_steps = 2
[run]
seed = 3
precision = "bf16"
average_decay = 0.9
log_every = 1
validate_every = 2
checkpoint_every = 3
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shards"
    write_shards((render(index, 0, (BUILT_IN,)) for index in range(14)), folder)
    return folder


@pytest.fixture(scope="module")
def samples(shards: Path) -> list[Sample]:
    return list(read_shards(shards))


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(RECIPE)
    return load_recipe(str(path))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, samples: list[Sample], recipe: Recipe) -> Path:
    """The folder of an undisturbed run. Tests that give it to another run give it a copy."""
    folder = tmp_path_factory.mktemp("finished")
    run(recipe, samples, folder, ignore)
    return folder


@pytest.fixture(autouse=True)
def _without_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing them takes as long as the steps of these runs; `finished` and what has a process of its own have them."""
    monkeypatch.setattr(loop, "draw_curves", lambda folder: folder)


def run(recipe: Recipe, samples: list[Sample], folder: Path, report: Callable[[loop.Progress], None]) -> Path:
    return loop.train(recipe, samples[:-4], samples[-4:], folder, workers=0, report=report)


def ignore(_progress: loop.Progress) -> None: ...


def view(sample: Sample, size: tuple[int, int]) -> NDArray[np.uint8]:
    photo = Photo.open(sample.image, max_pixels=10**6)
    return photo.views([sample.region or photo.whole], size)[0].pixels


def test_every_epoch_is_a_permutation_of_its_own() -> None:
    steps = list(Steps(count=10, batch_size=4, seed=1, start=0, steps=5))
    flat = [key for batch in steps for key in batch]
    for epoch in (0, 1):
        assert sorted(index for e, index in flat if e == epoch) == list(range(10))
    assert [i for e, i in flat if e == 0] != [i for e, i in flat if e == 1]
    assert [i for _, i in flat[:10]] != list(range(10))


@pytest.mark.parametrize("start", [1, 2, 3, 5])
def test_batches_go_on_where_they_stopped(start: int) -> None:
    whole = list(Steps(count=7, batch_size=3, seed=2, start=0, steps=6))
    assert list(Steps(count=7, batch_size=3, seed=2, start=start, steps=6)) == whole[start:]


def test_without_augmentation_training_sees_what_serving_sees(samples: list[Sample]) -> None:
    views = Views(samples, (32, 48), AugmentTable(), seed=0)
    for index, sample in enumerate(samples):
        pixels, target, _ = views[0, index]
        np.testing.assert_array_equal(pixels, view(sample, (32, 48)))
        assert target.tolist() == pack(sample.label, 5)


def test_augmentation_is_drawn_from_epoch_and_index(samples: list[Sample], recipe: Recipe) -> None:
    views, again = (Views(samples, (32, 32), recipe.augment, seed=5) for _ in range(2))
    np.testing.assert_array_equal(views[3, 1][0], again[3, 1][0])
    assert (views[3, 1][0] != views[4, 1][0]).any()
    assert (views[3, 1][0] != Views(samples, (32, 32), recipe.augment, seed=6)[3, 1][0]).any()


def test_a_region_is_scaled_about_its_centre_and_moved_within_bounds() -> None:
    region, rng = Region(10, 20, 40, 30), np.random.default_rng(0)
    found = [framed(region, None, AugmentTable(region_scale=1.25, region_shift=0.1), rng) for _ in range(500)]
    widths = np.array([r.width for r in found]) / 40
    shifts = np.array([(r.x + r.width / 2 - 30) / r.width for r in found])
    assert 0.8 <= widths.min() < 0.83
    assert 1.21 < widths.max() <= 1.25
    assert -0.1 <= shifts.min() < -0.09
    assert 0.09 < shifts.max() <= 0.1
    assert framed(region, None, AugmentTable(), rng) == region


def test_transformers_learn_slowly_and_vectors_do_not_decay(recipe: Recipe) -> None:
    reader = build_reader(recipe.spec)
    table = OptimiserTable(name="sgd", learning_rate=0.5, weight_decay=0.25, localisation_factor=0.1)
    optimiser = build_optimiser(reader, table)
    set_learning_rate(optimiser, 0.5)
    settings = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in optimiser.param_groups
        for parameter in group["params"]
    }
    names = [name for name, _ in reader.named_parameters()]
    for name in ("transformer.to_theta.weight", "transformer.localisation.1.0.weight", "trunk.0.0.weight"):
        assert name in names
    for name, parameter in reader.named_parameters():
        expected = (0.05 if name.startswith("transformer.") else 0.5, 0.25 if parameter.ndim > 1 else 0.0)
        assert settings[id(parameter)] == pytest.approx(expected), name


def test_learning_rate_schedules() -> None:
    steps = ScheduleTable(name="step", steps=400, batch_size=1, step_every=80)
    assert [learning_rate_factor(step, steps) for step in (0, 79, 80, 160, 399)] == pytest.approx(
        [1, 1, 0.1, 0.01, 1e-4]
    )
    cosine = ScheduleTable(name="cosine", steps=110, batch_size=1, warmup_steps=10)
    assert [learning_rate_factor(step, cosine) for step in (0, 4, 9, 10, 60, 110)] == pytest.approx(
        [0.1, 0.5, 1, 1, 0.5, 0]
    )
    stopped = ScheduleTable(name="cosine", steps=60, decay_steps=110, batch_size=1, warmup_steps=10)
    for step in (0, 10, 59):
        assert learning_rate_factor(step, stopped) == learning_rate_factor(step, cosine)
    again = ScheduleTable(name="cosine", steps=310, batch_size=1, warmup_steps=10, restarts=(110,))
    for step in (0, 10, 60, 109):
        assert learning_rate_factor(step, again) == learning_rate_factor(step, cosine)
    assert [learning_rate_factor(step, again) for step in (110, 119, 120, 215, 310)] == pytest.approx(
        [0.1, 1, 1, 0.5, 0]
    )


def test_the_average_follows_its_formula() -> None:
    model = nn.Linear(1, 1, bias=False)
    average = averaged(model, decay=0.5)
    expected = 0.0
    for update, value in enumerate((2.0, 4.0, -1.0, 3.0)):
        with torch.no_grad():
            model.weight.fill_(value)
        average.update_parameters(model)
        keep = min(0.5, (1 + update) / (10 + update))
        expected = value if update == 0 else keep * expected + (1 - keep) * value
        assert next(average.parameters()).item() == pytest.approx(expected, rel=1e-6)


def test_training_lowers_the_loss_on_what_it_learns(tmp_path: Path, samples: list[Sample], recipe: Recipe) -> None:
    longer = recipe.model_copy(
        update={
            "augment": AugmentTable(),
            "schedule": recipe.schedule.model_copy(update={"steps": 40, "batch_size": 10}),
            "run": recipe.run.model_copy(update={"average_decay": 0.0, "validate_every": 40, "checkpoint_every": 40}),
        }
    )
    losses: list[float] = []
    weights = run(longer, samples, tmp_path / "run", lambda progress: losses.append(progress.loss))
    assert losses[-1] < 0.5 * losses[0]

    reader, spec = load_reader(weights)
    assert (spec.reader, spec.input_height, spec.input_width) == ("compact", 32, 32)
    assert spec.training["recipe"] == longer.model_dump(mode="json")
    # What was saved is what was trained: in evaluation mode it still knows its samples better than chance.
    pixels = torch.from_numpy(np.stack([view(sample, (32, 32)) for sample in samples[:10]]))
    targets = torch.tensor([pack(sample.label, 5) for sample in samples[:10]])
    with torch.inference_mode():
        loss = negative_log_likelihood(reader(pixels.permute(0, 3, 1, 2).float() / 255).logits, targets)
    assert float(loss) < 5 * math.log(11)


def test_a_run_that_is_stopped_gives_the_same_weights(
    tmp_path: Path, samples: list[Sample], recipe: Recipe, finished: Path
) -> None:
    assert load_file(finished / loop.WEIGHTS)

    class StoppedError(Exception): ...

    for at in range(1, STEPS):
        folder = tmp_path / f"stopped-{at}"

        def stop(progress: loop.Progress, at: int = at) -> None:
            if progress.step == at:
                raise StoppedError

        with pytest.raises(StoppedError):
            run(recipe, samples, folder, stop)
        weights = run(recipe, samples, folder, ignore)
        assert weights.read_bytes() == (finished / loop.WEIGHTS).read_bytes()
        assert (folder / "metrics.jsonl").read_text() == (finished / "metrics.jsonl").read_text()
        events = EventAccumulator(str(folder / "tensorboard")).Reload()
        assert [event.step for event in events.Scalars("train/loss")] == list(range(1, STEPS + 1))


def test_sigkill_at_any_moment_changes_nothing(tmp_path: Path, shards: Path, recipe_file: Path, finished: Path) -> None:
    arguments = ["train", str(recipe_file), "--data", str(shards), "--out", str(tmp_path / "killed")]
    command = [sys.executable, "-m", "housenumber", *arguments]
    metrics = tmp_path / "killed/metrics.jsonl"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    give_up = time.monotonic() + 60
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") >= 3):
        assert time.monotonic() < give_up
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run(command, check=True, capture_output=True)
    for name in (loop.WEIGHTS, "metrics.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (finished / name).read_bytes()
    events = EventAccumulator(str(tmp_path / "killed/tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, STEPS + 1))


def test_a_run_leaves_metrics_curves_and_pictures_of_its_boxes(finished: Path) -> None:
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "train_loss" in row] == list(range(1, STEPS + 1))
    assert all(row["train_location"] == 0 for row in rows if "train_loss" in row)  # the recipe does not ask for it
    assert [row["step"] for row in rows if "validation_accuracy" in row] == [2, 4, 6, 7]
    with Image.open(finished / "curves.png") as curves:
        curves.load()
    events = EventAccumulator(str(finished / "tensorboard")).Reload()
    assert [event.step for event in events.Images("boxes")] == [2, 4, 6, 7]
    assert len(events.Scalars("train/loss")) == STEPS


def test_a_transformer_learns_where_the_numbers_are(tmp_path: Path, samples: list[Sample], recipe: Recipe) -> None:
    longer = recipe.model_copy(
        update={
            "loss": LossTable(location=1.0, location_only=20),
            "augment": AugmentTable(),
            "schedule": recipe.schedule.model_copy(update={"steps": 40, "batch_size": 10}),
            "run": recipe.run.model_copy(update={"validate_every": 40, "checkpoint_every": 40}),
        }
    )
    run(longer, samples, tmp_path, ignore)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "train_loss" in row]
    # Nothing is read in the first steps, and what reads does not change in them.
    assert [row["train_loss"] == 0 for row in steps] == [True] * 20 + [False] * 20
    assert steps[-1]["train_location"] < 0.7 * steps[0]["train_location"]


def test_while_only_the_transformer_learns_the_rest_stays(
    tmp_path: Path, samples: list[Sample], recipe: Recipe
) -> None:
    only = recipe.model_copy(update={"loss": LossTable(location=1.0, location_only=STEPS), "run": RunTable(seed=3)})
    reader, _ = load_reader(run(only, samples, tmp_path, ignore))
    torch.manual_seed(only.run.seed)
    fresh = build_reader(only.spec).state_dict()
    for name, value in reader.state_dict().items():
        assert torch.equal(value, fresh[name]) != name.startswith("transformer."), name


def test_a_box_beyond_the_photograph_is_no_reason_to_stop(samples: list[Sample]) -> None:
    """As some of SVHN's are: only what is in the photograph can be framed or looked at."""
    photo = Photo.open(samples[0].image, max_pixels=10**6)
    outside = replace(samples[0], number_box=Region(-30, 0, 32, photo.height / 2), region=None)
    views = Views([outside], (32, 32), AugmentTable(reframe=1, region_scale=1.15, region_shift=0.06), seed=1)
    for epoch in range(300):
        *_, window = views[epoch, 0]
        assert np.isfinite(window).all()


def test_synthetic_images_are_made_once_for_each_generator(
    tmp_path: Path, recipe_file: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shorter = RECIPE.replace(f"steps = {STEPS}", "steps = 2")
    recipe_file.write_text(shorter.replace("validation = 4", "validation = 4\nsynthetic_count = 14"))
    made = []

    def generate(seed: int, start: int, count: int, processes: int) -> list[Sample]:
        made.append(count)
        return samples

    monkeypatch.setattr(commands, "generate", generate)
    for digest, runs in (("first", 1), ("first", 1), ("second", 2)):
        monkeypatch.setattr(commands, "generator_digest", lambda faces, digest=digest: digest)
        result = CliRunner().invoke(main, ["train", str(recipe_file), "--out", f"run-{digest}", "--workers", "0"])
        assert result.exit_code == 0, result.stderr
        assert made == [14] * runs
    assert sorted(path.name for path in Path("data").iterdir()) == ["synthetic-0-14-first", "synthetic-0-14-second"]


def test_a_folder_of_another_recipe_is_refused(
    tmp_path: Path, samples: list[Sample], recipe: Recipe, finished: Path
) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    other = recipe.model_copy(update={"run": recipe.run.model_copy(update={"seed": 4})})
    with pytest.raises(loop.TrainingError, match="another recipe"):
        run(other, samples, folder, ignore)


def test_a_folder_of_other_data_is_refused(
    tmp_path: Path, samples: list[Sample], recipe: Recipe, finished: Path
) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    for other in (replace(samples[0], label="77777"), replace(samples[0], region=None), samples[1]):
        with pytest.raises(loop.TrainingError, match="other data"):
            run(recipe, [other, *samples[1:]], folder, ignore)


def test_a_run_goes_on_from_finished_weights(
    tmp_path: Path, samples: list[Sample], recipe: Recipe, finished: Path
) -> None:
    first = finished / loop.WEIGHTS
    standing = recipe.model_copy(update={"optimiser": OptimiserTable(name="sgd", learning_rate=1e-30)})
    again = loop.train(standing, samples[:-4], samples[-4:], tmp_path / "again", initial=first, workers=0)
    before, after = load_file(first), load_file(again)
    parameters = dict(load_reader(first)[0].named_parameters())
    for name in parameters:  # the statistics of the batches go on, whatever the rate
        torch.testing.assert_close(after[name], before[name], rtol=1e-6, atol=0)
    assert load_reader(again)[1].training["initial_sha256"] == weights_sha256(first)
    assert "initial_sha256" not in load_reader(first)[1].training


def test_a_folder_of_a_run_that_began_elsewhere_is_refused(
    tmp_path: Path, samples: list[Sample], recipe: Recipe, finished: Path
) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    with pytest.raises(loop.TrainingError, match="began elsewhere"):
        loop.train(recipe, samples[:-4], samples[-4:], folder, initial=folder / loop.WEIGHTS, workers=0)


def test_weights_of_another_reader_are_refused(
    tmp_path: Path, samples: list[Sample], recipe: Recipe, finished: Path
) -> None:
    larger = recipe.model_copy(update={"reader": recipe.reader.model_copy(update={"input_height": 64})})
    other = tmp_path / "larger.safetensors"
    save_reader(other, build_reader(larger.spec), larger.spec)
    for initial, fault in ((other, "compact for 32x64 pixels"), (finished / loop.STATE, "state.pt")):
        with pytest.raises(loop.TrainingError, match=fault):
            loop.train(recipe, samples[:-4], samples[-4:], tmp_path / "run", initial=initial, workers=0)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_photograph_that_does_not_decode_is_named(
    tmp_path: Path, samples: list[Sample], recipe: Recipe, workers: int
) -> None:
    broken = [replace(sample, image=b"no image", source=f"{n}.png") for n, sample in enumerate(samples[:-4])]
    with pytest.raises(DataError, match=r"^synthetic, \d+\.png: [^\n]*no image$"):
        loop.train(recipe, broken, samples[-4:], tmp_path, workers=workers)


def test_a_label_too_long_for_the_slots_is_named_before_training(samples: list[Sample]) -> None:
    with pytest.raises(DataError, match="synthetic, 0/1: '123456' does not fit 5 slots"):
        Views([samples[0], replace(samples[1], label="123456")], (32, 32), AugmentTable(), seed=0)


def test_the_last_samples_are_held_out(samples: list[Sample]) -> None:
    assert hold_out(iter(samples), 4) == (samples[:-4], samples[-4:])
    with pytest.raises(DataError, match="too few"):
        hold_out(samples[:4], 4)


def test_an_unreadable_state_is_refused(tmp_path: Path, samples: list[Sample], recipe: Recipe) -> None:
    (tmp_path / loop.STATE).write_bytes(b"no state")
    with pytest.raises(loop.TrainingError, match="remove it"):
        run(recipe, samples, tmp_path, ignore)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path, samples: list[Sample], recipe: Recipe) -> None:
    table = recipe.optimiser.model_copy(update={"learning_rate": 1e30, "clip_norm": 0.0})
    with pytest.raises(loop.TrainingError, match="lower the learning rate"):
        run(recipe.model_copy(update={"optimiser": table}), samples, tmp_path, ignore)


def test_a_collapsing_transformer_is_warned_of(
    tmp_path: Path,
    samples: list[Sample],
    recipe: Recipe,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def point(transformer: SpatialTransformer) -> None:
        with torch.no_grad():
            transformer.to_theta.weight.zero_()
            transformer.to_theta.bias.copy_(torch.tensor([0.01, 0, 0, 0, 0.01, 0]))

    monkeypatch.setattr(SpatialTransformer, "reset", point)
    run(recipe, samples, tmp_path, ignore)
    assert "transformer 0 is degenerate" in caplog.text


@pytest.mark.parametrize(
    ("corners", "fault"),
    [
        ([(-1, -1), (1, -1), (1, 1), (-1, 1)], None),
        ([(-0.4, -0.4), (0.4, -0.4), (0.4, 0.4), (-0.4, 0.4)], None),
        ([(1, -1), (1, 1), (-1, 1), (-1, -1)], None),  # turned, upright again by a quarter
        ([(-0.06, -0.06), (0.06, -0.06), (0.06, 0.06), (-0.06, 0.06)], "degenerate"),
        ([(-1, -1), (1, 1), (1, 1), (-1, -1)], "degenerate"),
        ([(-9, -9), (9, -9), (9, 9), (-9, 9)], "lost"),
        ([(1.1, -1), (3, -1), (3, 1), (1.1, 1)], "outside"),
        ([(0.5, -1), (2.5, -1), (2.5, 1), (0.5, 1)], "off-centre"),
        ([(math.nan, 0), (1, -1), (1, 1), (-1, 1)], "not a number"),
    ],
)
def test_signs_of_collapse(corners: list[tuple[float, float]], fault: str | None) -> None:
    good = torch.tensor([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)])
    boxes = torch.stack((good.expand(10, 4, 2), torch.tensor(corners, dtype=torch.float32).expand(10, 4, 2)), dim=1)
    faults = signs_of_collapse(boxes)
    assert bool(faults) == (fault is not None)
    assert fault is None or any(f"transformer 1 is {fault}" in line for line in faults)
    # One image in ten is no collapse.
    boxes[1:, 1] = good
    assert not signs_of_collapse(boxes)


def test_mistakes_on_the_command_line_are_one_line(tmp_path: Path, samples: list[Sample], recipe_file: Path) -> None:
    write_shards(samples[:3], tmp_path / "few")
    write_shards([replace(sample, label="123456") for sample in samples], tmp_path / "long")
    for arguments, complaint in (
        (["nonsense"], "there is no recipe"),
        (["cnn-64"], "housenumber data svhn"),
        ([str(recipe_file), "--data", str(tmp_path)], "no shards"),
        ([str(recipe_file), "--data", str(tmp_path / "few")], "too few"),
        ([str(recipe_file), "--data", str(tmp_path / "long")], "does not fit 5 slots"),
    ):
        result = CliRunner().invoke(main, ["train", *arguments, "--out", str(tmp_path / "run")])
        assert result.exit_code == 2
        assert complaint in result.stderr
        assert "Traceback" not in result.stderr
