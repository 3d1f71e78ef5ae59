"""What a recipe points at is opened and checked before anything is trained."""

from __future__ import annotations

from pathlib import Path

from cfaug.config import load_recipe
from cfaug.data import duplicates_across_splits
from cfaug.shipped_recipes import shipped_recipes
from cfaug.stages.checked_inputs import open_inputs


def test_digits_that_their_colours_hide_are_no_duplicates(mnist_root: Path) -> None:
    """Two digits in one colour on that very ground are one image; they are of two splits all the same."""
    few = [f"--data.root={mnist_root}", "--data.train_images=500", "--data.val_images=500"]
    inputs = open_inputs(load_recipe(shipped_recipes()["double_colored_mnist"], few), progress=False)
    assert duplicates_across_splits((inputs.train, inputs.val, inputs.test))
