"""Readers of a gate that has no pretrained net: what sees shapes alone, and which reader is kept."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from cfaug.config import load_recipe
from cfaug.shipped_recipes import shipped_recipes
from cfaug.stages.checked_inputs import open_inputs
from cfaug.stages.gate_readers import fold_count, folds_of, learn_readers
from cfaug.stages.shapes import shapes

colours = st.tuples(*[st.integers(0, 255)] * 3)


@given(colours, colours, st.integers(0, 1000))
def test_shapes_of_two_colours_do_not_depend_on_them(fore: tuple[int, ...], back: tuple[int, ...], seed: int) -> None:
    mask = torch.from_numpy(np.random.default_rng(seed).random((1, 1, 9, 9)) < 0.3)
    mask[..., 0, 0], mask[..., 1, 1] = False, True
    image = torch.where(mask, *(torch.tensor(c, dtype=torch.uint8)[None, :, None, None] for c in (fore, back)))
    found = shapes(image)
    assert found.shape == (1, 1, 9, 9)
    if fore == back:
        assert (found == found[..., :1, :1]).all()
    else:
        drawn = mask.to(torch.uint8) * 255
        assert torch.equal(found, drawn) or torch.equal(found, 255 - drawn)
        if sum(fore) != sum(back):  # more of every channel is brighter, and a swap of colours is the negative
            swapped = shapes(
                torch.where(mask, *(torch.tensor(c, dtype=torch.uint8)[None, :, None, None] for c in (back, fore)))
            )
            assert torch.equal(swapped, 255 - found)


def test_where_colours_are_the_shortcut_the_target_is_read_from_shapes() -> None:
    recipe = load_recipe(shipped_recipes()["demo"], ["--train.epochs=6", "--train.learning_rate=2e-2"])
    inputs = open_inputs(recipe, progress=False, fitted=True)
    learned = learn_readers(recipe, inputs, ["digit", "foreground"], None, progress=False)
    assert list(learned.blind) == ["digit"]  # and what is intervened on is read from colours
    assert learned.real is not None
    table = inputs.schema.canonical(inputs.train.table)
    codes = np.asarray(inputs.schema.index("digit", table["digit"]))
    rare = table["foreground"] != table.groupby("digit")["foreground"].transform(lambda own: own.mode()[0])
    right = learned.scores["digit"].argmax(1) == codes
    assert right[rare].mean() > right.mean() - 0.1  # a plain reader: 20 points less and more
    reader = learned.readers["digit"]
    rows = np.flatnonzero(rare)[:20]
    images = torch.from_numpy(np.stack([inputs.train.image(int(i)) for i in rows])).permute(0, 3, 1, 2)
    folds = folds_of([str(key) for key in table.index[rows]], fold_count(recipe))
    negative = reader.of_images((255 - images).float() / 127.5 - 1, folds)  # type: ignore[attr-defined]
    assert (negative.argmax(1) == codes[rows]).mean() > 0.6
