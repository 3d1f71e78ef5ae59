"""What a recipe points at is opened and checked before anything is trained."""

from __future__ import annotations

from pathlib import Path

from cfaug.config import load_recipe
from cfaug.data import duplicates_across_splits
from cfaug.shipped_recipes import shipped_recipes
from cfaug.stages.checked_inputs import open_inputs, training_oracle
from cfaug.train import TrainingSets


def test_digits_that_their_colours_hide_are_no_duplicates(mnist_root: Path) -> None:
    """Two digits in one colour on that very ground are one image; they are of two splits all the same."""
    few = [f"--data.root={mnist_root}", "--data.train_images=500", "--data.val_images=500"]
    inputs = open_inputs(load_recipe(shipped_recipes()["double_colored_mnist"], few), progress=False)
    assert duplicates_across_splits((inputs.train, inputs.val, inputs.test))


def test_the_oracle_has_as_many_images_as_cfaug_shows() -> None:
    recipe = load_recipe(shipped_recipes()["demo"], ["--plan.per_image=2"])
    inputs = open_inputs(recipe, progress=False)
    oracle = training_oracle(recipe, inputs)
    assert oracle is not None
    assert len(oracle) == 3 * len(inputs.train)
    images = {oracle.image(i).tobytes() for i in range(len(oracle))}
    assert len(images) > 0.95 * len(oracle)
    digits = oracle.table["digit"].to_numpy().reshape(3, -1)
    assert (digits == inputs.train.table["digit"].to_numpy()).all()
    without = load_recipe(shipped_recipes()["demo"], ["--train.methods=[erm, oracle]"])
    assert training_oracle(without, inputs) is inputs.oracle


def test_a_larger_oracle_takes_no_more_steps() -> None:
    recipe = load_recipe(shipped_recipes()["demo"], [])
    inputs = open_inputs(recipe, progress=False)
    sets = TrainingSets(inputs.train, inputs.grouper, oracle=training_oracle(recipe, inputs))
    assert sets.of("oracle").shown == sets.of("erm").shown == len(inputs.train)
    assert len(sets.of("oracle").targets) > len(inputs.train)
