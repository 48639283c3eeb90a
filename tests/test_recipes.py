"""Recipes: what a file may say, and what it stands for."""

from pathlib import Path

import pytest

from models.readers import build_reader
from models.training.recipe import RECIPES, LossTable, RecipeError, load_recipe

SHIPPED = sorted(path.stem for path in RECIPES.glob("*.toml"))

MINIMAL = """
[reader]
name = "compact"
input_height = 32
input_width = 32
[data]
[optimiser]
name = "adamw"
learning_rate = 0.001
[schedule]
name = "cosine"
steps = 10
batch_size = 4
"""


def test_the_papers_readers_and_our_own_have_recipes() -> None:
    names = ("cnn", "st_cnn_single", "st_cnn_multi", "shared", "parallel")
    papers = {f"{name}-{size}" for name in names for size in (64, 128)} | {"maxout_cnn-64", "maxout_cnn_slots-64"}
    stages = {"compact_points", "compact_points_finish", "compact_points_turned"}
    assert set(SHIPPED) == {"compact", "compact_cnn", "compact_cnn_turned"} | stages | papers


@pytest.mark.parametrize("name", [name for name in SHIPPED if not name.startswith("compact")])
def test_the_papers_schedule(name: str) -> None:
    recipe = load_recipe(name)
    reader, _, size = name.partition("-")
    assert (recipe.reader.name, recipe.reader.input_height, recipe.reader.input_width) == (reader, int(size), int(size))
    assert (recipe.optimiser.name, recipe.optimiser.learning_rate) == ("sgd", 0.01)
    assert (recipe.optimiser.weight_decay, recipe.optimiser.localisation_factor) == (5e-4, 0.1)
    assert (recipe.schedule.name, recipe.schedule.steps, recipe.schedule.step_every) == ("step", 400_000, 80_000)
    assert recipe.schedule.batch_size == 128
    assert recipe.data.synthetic_count == 0


def test_the_twin_is_trained_as_its_model_is_once_that_reads() -> None:
    assert build_reader(load_recipe("compact").spec)
    model, twin = load_recipe("compact_points"), load_recipe("compact_cnn")
    assert (twin.reader.name, twin.loss) == ("compact_cnn", LossTable())
    assert twin.schedule.steps == model.schedule.steps - model.loss.location_only
    differ = {"reader": model.reader, "loss": model.loss, "schedule": model.schedule}
    assert twin.model_copy(update=differ) == model


def test_only_a_transformer_can_be_told_where_to_look(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(MINIMAL.replace('"compact"', '"cnn"') + "[loss]\nlocation = 1.0\n")
    with pytest.raises(RecipeError, match=r"loss\.location: cnn has no transformer"):
        load_recipe(str(path))
    path.write_text(MINIMAL + "[loss]\nlocation_only = 3\n")
    with pytest.raises(RecipeError, match=r"loss\.location_only"):
        load_recipe(str(path))


def test_a_recipe_is_named_by_all_its_values(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(MINIMAL)
    digest = load_recipe(str(path)).digest
    path.write_text(MINIMAL + "\n# a comment\n[augment]\nnoise = 0.0\n")
    assert load_recipe(str(path)).digest == digest
    assert load_recipe(str(path), steps=11).digest != digest
    path.write_text(MINIMAL + "[augment]\nnoise = 1.0\n")
    assert load_recipe(str(path)).digest != digest


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (MINIMAL.replace("steps = 10", "steps = 0"), "schedule.steps"),
        (MINIMAL.replace("steps = 10", ""), "schedule.steps"),
        (MINIMAL.replace("[data]", "[data]\nvalidaton = 3"), "data.validaton"),
        (MINIMAL.replace('"adamw"', '"adam"'), "optimiser.name"),
        (MINIMAL + "[augment]\nregion_scale = 0.5\n", "augment.region_scale"),
        (MINIMAL + "[augment]\nregion_shift = 0.6\n", "augment.region_shift"),
        (MINIMAL + "[run]\nseed = -1\n", "run.seed"),
        (MINIMAL + f"[run]\nseed = {2**31}\n", "run.seed"),
        (MINIMAL + "[run", "end of document"),
        ("schedule = 3\n" + MINIMAL.partition("[schedule]")[0], "schedule: "),
        (MINIMAL.replace('"compact"', '"vgg"'), "no reader is called 'vgg'"),
        (MINIMAL.replace("input_width = 32", "input_width = 33"), "32x33"),
    ],
)
def test_a_wrong_recipe_says_where(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    for steps in (None, 3):
        with pytest.raises(RecipeError, match=complaint) as caught:
            load_recipe(str(path), steps)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)


def test_an_unknown_recipe_names_those_there_are() -> None:
    with pytest.raises(RecipeError, match="st_cnn_multi-64"):
        load_recipe("compct")


def test_steps_can_be_replaced() -> None:
    recipe, plain = load_recipe("compact", steps=3), load_recipe("compact")
    assert recipe.schedule == plain.schedule.model_copy(update={"steps": 3})
    assert recipe.model_copy(update={"schedule": plain.schedule}) == plain
