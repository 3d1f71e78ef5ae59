"""Imported images as a mechanism: whose image a row gets, what it refuses, and what is on disk."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.layered import scenes
from PIL import Image

from cfaug import SCM, CausalGraph, do
from cfaug.data.images import to_uint8
from cfaug.decode import CounterfactualModel, EditedFile, ImportedDecoder
from cfaug.errors import DataError, ShardError, UsageError
from cfaug.train.models import as_input

DATA = scenes(6)
GRAPH = CausalGraph("shape <-> ground; shape -> image; ground -> image; colour -> image")


def model_of(folder: Path) -> CounterfactualModel:
    """Of the first four sources there is an image for seed 7, of the first also one for seed 8."""
    folder.mkdir()
    edits = {}
    for i, seed in ((0, 7), (1, 7), (2, 7), (3, 7), (0, 8)):
        name = f"{i}-{seed}.png"
        Image.fromarray(np.full((24, 24, 3), 10 * i + seed, np.uint8)).save(folder / name)
        edits[DATA.key(i), seed] = EditedFile(name, hashlib.sha256((folder / name).read_bytes()).hexdigest())
    scm = SCM(GRAPH, DATA.schema).fit(DATA.table, seed=0)
    return CounterfactualModel(scm, ImportedDecoder(scm.schema, GRAPH.parents("image"), folder, edits))


def predicted(model: CounterfactualModel, rows: list[int], seeds: list[int], acts: list[object]) -> np.ndarray:
    images = as_input(torch.from_numpy(DATA.images[rows]).permute(0, 3, 1, 2))
    noise = model.abduct(images, DATA.table.iloc[rows].reset_index(drop=True), seeds, keys=[DATA.key(i) for i in rows])
    made, _ = model.act(acts).predict(noise)  # type: ignore[arg-type]
    return to_uint8(made).permute(0, 2, 3, 1).numpy()


def test_a_row_gets_the_image_of_its_source_and_seed(tmp_path: Path) -> None:
    model = pickle.loads(pickle.dumps(model_of(tmp_path / "edits")))
    own = DATA.table["ground"].iloc[2]
    acts = [do(ground="dots"), do(ground="lines"), do(), do(ground=own), do(ground="dots", colour="red")]
    made = predicted(model, [0, 1, 5, 2, 0], [8, 7, 7, 7, 7], acts)
    assert (made[0] == 8).all()
    assert (made[1] == 17).all()
    assert np.array_equal(made[2], DATA.images[5])
    assert (made[3] == 27).all()  # an intervention to the factual value has an image too
    assert (made[4] == 7).all()
    assert model.makes(DATA.key(0), 8, do(ground="dots"))
    assert not model.makes(DATA.key(1), 8, do(ground="dots"))
    assert model.makes(DATA.key(1), 8, do())


def test_what_was_not_imported_is_refused(tmp_path: Path) -> None:
    model = model_of(tmp_path / "edits")
    with pytest.raises(UsageError, match="of which no image was imported"):
        predicted(model, [1], [8], [do(ground="dots" if DATA.table["ground"].iloc[1] == "lines" else "lines")])
    with pytest.raises(UsageError, match="expected no strength for imported images, got 2"):
        model.decoder.predict(model.decoder.abduct(_sources()), DATA.table.iloc[:1], [{"ground"}], 2)
    (tmp_path / "edits" / "0-7.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="expected the file that was imported, got a different one"):
        predicted(model, [0], [7], [do(ground="dots", colour="red")])
    (tmp_path / "edits" / "0-7.png").unlink()
    with pytest.raises(DataError, match="expected an edited image, got No such file"):
        predicted(model, [0], [7], [do(ground="dots", colour="red")])


def _sources() -> object:
    from cfaug.data.micro_batch import Sources

    images = as_input(torch.from_numpy(DATA.images[:1]).permute(0, 3, 1, 2))
    return Sources(images, pd.DataFrame(DATA.table.iloc[:1]), [DATA.key(0)], [7])


def test_a_run_can_be_moved_with_its_images(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    model = model_of(run / "edits")
    model.save(run / "model")
    assert not list((run / "model").glob("*.png"))
    moved = shutil.move(run, tmp_path / "moved")
    again = CounterfactualModel.load(Path(moved) / "model")
    assert again.digest == model.digest
    assert (predicted(again, [1], [7], [do(ground="dots", colour="red")]) == 17).all()
    content = json.loads((tmp_path / "moved" / "model" / "decoder.json").read_text())
    content["edits"][0][3] = "0" * 64
    (tmp_path / "moved" / "model" / "decoder.json").write_text(json.dumps(content))
    with pytest.raises(ShardError, match="corrupt checkpoint"):
        CounterfactualModel.load(tmp_path / "moved" / "model")


def test_the_digest_is_of_the_files_and_not_of_their_place(tmp_path: Path) -> None:
    first, second = model_of(tmp_path / "one").decoder, model_of(tmp_path / "two").decoder
    assert first.digest == second.digest
    assert isinstance(first, ImportedDecoder)
    edits = {**first.edits, (DATA.key(0), 8): EditedFile("0-8.png", "0" * 64)}
    others = [
        ImportedDecoder(first.schema, first.parents, first.folder, edits),
        ImportedDecoder(first.schema, first.parents, first.folder, first.edits, "humanEdits"),
    ]
    assert len({first.digest, *(one.digest for one in others)}) == 3
