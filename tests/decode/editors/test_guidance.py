"""Several draws of an edit: the one is kept that moved as its words did, and a model says by what it was chosen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.layered import scenes
from helpers.text_model import save_text_model
from helpers.tiny_pipelines import save_pipeline
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cfaug.causal import SCM, CausalGraph, do
from cfaug.data import ArrayDataset
from cfaug.decode import CounterfactualModel, PretrainedDecoder
from cfaug.decode.editors import guidance
from cfaug.decode.editors.backends import Edit
from cfaug.decode.text_image import TextImageModel
from cfaug.decoder_config import DecoderConfig
from cfaug.editor_config import EditorConfig, GuideConfig
from cfaug.errors import ShardError, UsageError

GRAPH = CausalGraph("shape <-> ground; shape <-> colour; shape -> image; ground -> image; colour -> image")
ACTS = [do(ground="dots"), do(colour="red"), do(ground="lines", colour="blue"), do(ground="lines")]


@pytest.fixture(scope="module")
def data() -> ArrayDataset:
    return scenes(8, side=32)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text_model(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline("StableDiffusionInpaintPipeline", tmp_path_factory.mktemp("pipeline"))


def made(data: ArrayDataset, pipeline: Path, **guide: Any) -> CounterfactualModel:
    scm = SCM(GRAPH, data.schema).fit(data.table, seed=0)
    editor = EditorConfig(
        pipeline=str(pipeline), template="a {colour} {shape} on {ground}", steps=2, batch=2, guide=GuideConfig(**guide)
    )
    config = DecoderConfig(
        kind="pretrained", layers={"background": ["ground"], "foreground": ["colour"]}, editor=editor
    )
    return CounterfactualModel(scm, PretrainedDecoder(scm.schema, GRAPH.parents("image"), config).fit(data, 0, False))


def edited(model: CounterfactualModel, data: ArrayDataset) -> torch.Tensor:
    n = len(ACTS)
    images = torch.from_numpy(data.images[:n]).permute(0, 3, 1, 2).float() / 127.5 - 1
    masks = torch.from_numpy(np.stack([data.mask(i) for i in range(n)])).float()[:, None] / 255
    noise = model.abduct(images, data.table.iloc[:n], list(range(n)), masks=masks)
    found: torch.Tensor = model.act(ACTS).predict(noise)[0]
    return found


@given(st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=1, max_size=5))
def test_each_row_keeps_the_draw_that_scores_most(levels: list[list[int]]) -> None:
    """Row i of draw k is an image of one grey, which is also its score; of equal ones the first stays."""
    calls: list[list[int]] = []

    def run(edits: Any) -> Any:
        calls.append([edit.seed for edit in edits])
        draw = len(calls) - 1
        return np.stack([np.full((2, 2, 3), own[draw] / 255, np.float32) for own in levels])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextImageModel, "directions", lambda self, made, *_: np.stack(made)[:, 0, 0, 0] / 255.0)
        edits = [Edit(Image.new("RGB", (2, 2)), None, "new", "old", seed) for seed in range(len(levels))]
        found = guidance.best_of(run, edits, GuideConfig(clip="anywhere", draws=3))
    assert np.round(found[:, 0, 0, 0] * 255).astype(int).tolist() == [max(own) for own in levels]
    assert calls[0] == list(range(len(levels)))  # the first draw is the one there is without guidance
    assert len({seed for call in calls for seed in call}) == 3 * len(levels)


def test_more_draws_move_more_as_the_words_do(data: ArrayDataset, pipeline: Path, clip: Path) -> None:
    once, more = edited(made(data, pipeline), data), edited(made(data, pipeline, clip=str(clip), draws=4), data)
    moved = (once != more).flatten(1).any(1)
    assert moved.any()
    rows = [0, 3]  # one pass, so that what is scored is the whole move
    pixels = [x[rows].add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).numpy() for x in (once, more)]
    table = data.table.iloc[rows].to_dict("records")
    old = [f"a {row['colour']} {row['shape']} on {row['ground']}" for row in table]
    new = [f"a {row['colour']} {row['shape']} on {ACTS[i].assignments['ground']}" for i, row in zip(rows, table)]
    scores = [TextImageModel(str(clip)).directions(x, data.images[rows], new, old) for x in pixels]
    assert (scores[1] >= scores[0] - 1e-6).all()
    for i in rows:
        inside = torch.from_numpy(data.mask(i) > 127)  # type: ignore[operator]
        assert torch.equal(once[i][:, inside], more[i][:, inside])


def test_a_model_says_by_what_it_was_chosen(data: ArrayDataset, pipeline: Path, tmp_path: Path) -> None:
    own = save_text_model(_empty(tmp_path / "clip"))
    model = made(data, pipeline, clip=str(own), draws=2)
    model.save(tmp_path / "model")
    again = CounterfactualModel.load(tmp_path / "model")
    assert again.digest == model.digest != made(data, pipeline).digest
    assert torch.equal(edited(again, data), edited(model, data))
    assert str(tmp_path) not in "".join(p.read_text() for p in (tmp_path / "model").rglob("decoder.json"))
    weights = own / "model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    with pytest.raises(ShardError, match="expected the CLIP model that chose when the model was made, got another"):
        CounterfactualModel.load(tmp_path / "model")
    weights.unlink()
    with pytest.raises(UsageError, match=r"decoder\.editor\.guide\.clip: expected a directory"):
        CounterfactualModel.load(tmp_path / "model")


def _empty(place: Path) -> Path:
    place.mkdir()
    return place


@pytest.mark.parametrize("guide", [{"draws": 3}, {"clip": "somewhere"}, {"clip": "somewhere", "draws": 1}])
def test_both_or_neither(guide: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="expected clip, which chooses, and at least 2 draws, got clip"):
        GuideConfig(**guide)


def test_words_that_the_model_would_cut(data: ArrayDataset, pipeline: Path, tmp_path: Path) -> None:
    own = save_text_model(_empty(tmp_path / "clip"))
    settings = own / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "model_max_length": 8}))
    with pytest.raises(UsageError, match="expected prompts of at most 8 tokens"):
        made(data, pipeline, clip=str(own), draws=2).decoder.check((32, 32), ["ground"])  # type: ignore[attr-defined]
    made(data, pipeline).decoder.check((32, 32), ["ground"])  # type: ignore[attr-defined]


def test_what_cannot_be_chosen_from(data: ArrayDataset, pipeline: Path, clip: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"guide\.clip: expected a directory that transformers has saved"):
        made(data, pipeline, clip=str(tmp_path), draws=2)
    inverting = save_pipeline("StableDiffusionPipeline", tmp_path / "inverting")
    with pytest.raises(UsageError, match="expected a pipeline that draws another image under another seed, got Stable"):
        made(data, inverting, clip=str(clip), draws=2)
