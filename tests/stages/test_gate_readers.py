"""Readers of a gate that has no pretrained net: what sees shapes alone, and which reader is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers.layered import write_folder
from helpers.tiny_run import call
from helpers.wrong_models import Recording
from hypothesis import given
from hypothesis import strategies as st

from cfaug.config import load_recipe
from cfaug.decode import CounterfactualModel
from cfaug.offline import Plan
from cfaug.offline.commit import open_destination
from cfaug.offline.make_shard import ShardWork
from cfaug.shipped_recipes import shipped_recipes
from cfaug.stages.checked_inputs import open_inputs
from cfaug.stages.gate import make_gate
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
    nets = [net for reader in learned.readers.values() for net in reader.nets]  # type: ignore[attr-defined]
    assert not any(
        part.training for net in nets for part in net.modules()
    )  # or images of one batch would judge one another
    reader = learned.readers["digit"]
    rows = np.flatnonzero(rare)[:20]
    images = torch.from_numpy(np.stack([inputs.train.image(int(i)) for i in rows])).permute(0, 3, 1, 2)
    folds = folds_of([str(key) for key in table.index[rows]], fold_count(recipe))
    negative = reader.of_images((255 - images).float() / 127.5 - 1, folds)  # type: ignore[attr-defined]
    assert (negative.argmax(1) == codes[rows]).mean() > 0.6


def test_a_gate_that_was_just_made_judges_as_one_that_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "r.yaml"
    write_folder(tmp_path / "data", train=60)
    content = {
        "name": "read", "data": {"source": "folder", "root": str(tmp_path / "data"), "masks": "mask"},
        "attributes": {"target": "shape", "spurious": ["ground"]}, "graph": "shape <-> ground; shape -> image; ground -> image",
        "decoder": {"kind": "layered", "layers": {"background": ["ground"]}}, "plan": {"per_image": 1, "null_fraction": 0.0},
        "generate": {"workers": 0, "samples_per_shard": 60, "batch_size": 20}, "gate": {"enabled": True, "least": 2}, "train": {"epochs": 3, "null_p": 0.0, "methods": ["erm", "cfaug"]},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(content))
    assert call(capsys, "fit", path, "--out", tmp_path / "out").code == 0
    assert call(capsys, "plan", path, "--out", tmp_path / "out").code == 0
    recipe = load_recipe(tmp_path / "out" / "config.yaml")
    inputs, model = (
        open_inputs(recipe, progress=False, fitted=True),
        CounterfactualModel.load(tmp_path / "out" / "model"),
    )
    plan, found = Plan.load(tmp_path / "out" / "plan"), []
    for _ in range(2):
        gate = make_gate(recipe, inputs, model, tmp_path / "out")
        recording = Recording(gate)
        work = ShardWork(model, inputs.sources, plan, open_destination(tmp_path / "out"), 20, {}, gate=recording)
        for _ in range(2):  # and judging changes nothing in it
            work.batch(plan.rows_of(0)[:20])
        found.append({name: np.array(values) for name, values in recording.found.items()})
    assert "near the data" in found[0]
    for name, values in found[0].items():
        assert np.allclose(values, found[1][name], equal_nan=True), name
        assert np.allclose(values[:20], values[20:40], equal_nan=True), name
