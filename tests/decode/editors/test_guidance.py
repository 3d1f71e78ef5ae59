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
ACTS = [do(ground="dots"), do(colour="red"), do(ground="lines"), do(ground="dots")]
"""Of one pass each, so that what is scored is the whole move; of the first four images none has the value already."""


@pytest.fixture(scope="module")
def data() -> ArrayDataset:
    return scenes(8, side=32)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text_model(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline("StableDiffusionInpaintPipeline", tmp_path_factory.mktemp("pipeline"))


def made(data: ArrayDataset, pipeline: Path, editor_: Any = None, **guide: Any) -> CounterfactualModel:
    scm = SCM(GRAPH, data.schema).fit(data.table, seed=0)
    words = {"template": "a {colour} {shape} on {ground}", "steps": 2, "batch": 2}
    editor = EditorConfig(pipeline=str(pipeline), guide=GuideConfig(**guide), **{**words, **(editor_ or {})})
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
        return [np.full((2, 2, 3), own[draw], np.uint8) for own in levels]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextImageModel, "directions", lambda self, made, *_: np.stack(made)[:, 0, 0, 0].astype(float))
        edits = [Edit(Image.new("RGB", (2, 2)), None, "new", "old", seed) for seed in range(len(levels))]
        found = guidance.best_of(run, edits, [], GuideConfig(clip="anywhere", draws=3))
    assert [int(image[0, 0, 0]) for image in found] == [max(own) for own in levels]
    assert calls[0] == list(range(len(levels)))  # the first draw is the one there is without guidance
    assert len({seed for call in calls for seed in call}) == 3 * len(levels)


def scores(images: torch.Tensor, data: ArrayDataset, clip: Path) -> Any:
    pixels = list(images.add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).numpy())
    factual = data.table.iloc[: len(ACTS)].to_dict("records")
    old, new = (
        [f"a {row['colour']} {row['shape']} on {row['ground']}" for row in rows]
        for rows in (factual, [{**row, **act.assignments} for row, act in zip(factual, ACTS)])
    )
    assert all(a != b for a, b in zip(old, new))
    return TextImageModel(str(clip)).directions(pixels, [image.copy() for image in data.images[: len(ACTS)]], new, old)


@pytest.mark.parametrize("guide", [{"draws": 4}, {"scale": 0.3}])
def test_a_guided_edit_moves_more_as_its_words_do(
    guide: dict[str, Any], data: ArrayDataset, pipeline: Path, clip: Path
) -> None:
    model = made(data, pipeline, clip=str(clip), **guide)
    once, more = edited(made(data, pipeline), data), edited(model, data)
    assert scores(more, data, clip).mean() > scores(once, data, clip).mean()
    for i in (0, 2, 3):
        inside = torch.from_numpy(data.mask(i) > 127)  # type: ignore[operator]
        assert torch.equal(once[i][:, inside], more[i][:, inside])
    assert torch.equal(edited(model, data), more)
    assert "step" not in vars(model.decoder.pipe.scheduler)  # type: ignore[attr-defined]


def test_the_score_with_a_gradient_is_the_score(data: ArrayDataset, clip: Path) -> None:
    model, rng = TextImageModel(str(clip)), np.random.default_rng(0)
    made_, sources = ([rng.integers(0, 256, (32, 32, 3), np.uint8) for _ in range(3)] for _ in range(2))
    new, old = ["a red disc", "dots", "lines"], ["a blue disc", "lines", "dots"]
    images = torch.from_numpy(np.stack(made_)).permute(0, 3, 1, 2).float().div(255).requires_grad_()
    found = model.moves(sources, new, old)(images)
    assert np.allclose(found.detach().numpy(), model.directions(made_, sources, new, old), atol=1e-3)
    (gradient,) = torch.autograd.grad(found.sum(), images)
    assert gradient.flatten(1).norm(dim=1).gt(0).all()


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


@pytest.mark.parametrize(
    "guide", [{"draws": 3}, {"scale": 0.1}, {"clip": "somewhere"}, {"clip": "somewhere", "draws": 1}]
)
def test_both_or_neither(guide: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="expected clip, and a scale above 0 or at least 2 draws, got clip"):
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
    with pytest.raises(UsageError, match="expected a DDIMScheduler, got EulerDiscreteScheduler; set"):
        made(data, pipeline, {"scheduler": "EulerDiscreteScheduler"}, clip=str(clip), scale=0.1)
    other = save_pipeline("FluxKontextPipeline", tmp_path / "other")
    with pytest.raises(UsageError, match="expected a class of Stable Diffusion, got FluxKontextPipeline; set scale: 0"):
        made(data, other, clip=str(clip), scale=0.1)
