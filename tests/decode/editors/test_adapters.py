"""Adapters: that they learn, that a single image's leave the pipeline as it was, and that the text encoder's is subtracted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.layered import scenes
from helpers.tiny_pipelines import save_pipeline
from PIL import Image

from cfaug.data import ArrayDataset
from cfaug.decode.editors import adapters, backends, open_pipeline
from cfaug.decode.editors.backends import CLASSES, Edit
from cfaug.decode.editors.words import Words
from cfaug.editor_config import EditorConfig, LoraConfig
from cfaug.errors import UsageError


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    place = save_pipeline("StableDiffusionImg2ImgPipeline", tmp_path_factory.mktemp("pipe") / "p")
    return open_pipeline.load(place, "StableDiffusionImg2ImgPipeline", EditorConfig(pipeline=str(place)), "cpu")


def edit() -> Edit:
    return Edit(Image.fromarray(scenes(2, side=32).images[0]), None, "a blue disc", "a red disc", 5)


def doubly(pipe: Any, **settings: Any) -> np.ndarray:
    own = {"steps": 3, "text_steps": 2, "rank": 2, "learning_rate": 1e-2, **settings}
    config = EditorConfig(steps=4, strength=0.5, abduction=own)  # type: ignore[arg-type]
    with torch.inference_mode():  # as generation calls it
        return adapters.doubly_abducted(pipe, CLASSES["StableDiffusionImg2ImgPipeline"], edit(), config)


def weights(pipe: Any) -> dict[str, torch.Tensor]:
    return {**pipe.unet.state_dict(), **{f"t.{k}": v for k, v in pipe.text_encoder.state_dict().items()}}


def test_the_pipeline_is_left_as_it_was(pipe: Any) -> None:
    before = {name: value.clone() for name, value in weights(pipe).items()}
    first, again = doubly(pipe), doubly(pipe)
    assert np.array_equal(first, again)
    after = weights(pipe)
    assert set(after) == set(before)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_each_abduction_changes_the_edit(pipe: Any) -> None:
    config = EditorConfig(steps=4, strength=0.5)
    with torch.no_grad():
        plain = backends.run(pipe, CLASSES["StableDiffusionImg2ImgPipeline"], [edit()], config)
    first, both = doubly(pipe, text_steps=0), doubly(pipe)
    assert np.abs(first - plain).max() > 1e-3
    assert np.abs(both - first).max() > 1e-4
    assert np.abs(doubly(pipe, strength=0.0) - both).max() > 1e-4  # subtracted, not merely there


def test_the_second_abduction_is_subtracted_and_the_first_is_not(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, set[float]] = {}

    def looked(own: Any, *_: Any) -> np.ndarray:
        for name in ("unet", "text_encoder"):
            parts = getattr(own, name).modules()
            found[name] = {v for part in parts if hasattr(part, "scaling") for v in dict(part.scaling).values()}
        return np.zeros((1, 32, 32, 3), np.float32)

    monkeypatch.setattr(backends, "run", looked)
    doubly(pipe, strength=0.5)
    assert found == {"unet": {1.0}, "text_encoder": {-0.5}}


def test_the_first_abduction_learns_the_image(pipe: Any) -> None:
    """The loss of the image under its own prompt falls."""
    with torch.inference_mode(False), torch.enable_grad(), adapters._trainable(pipe):
        latents = backends.latents_of(pipe, [edit().image]).detach()
        with torch.no_grad():
            said = adapters._embedded(pipe, ["a red disc"])

        def loss() -> float:
            with torch.no_grad():
                draws = [adapters._eps_loss(pipe, latents, said, torch.Generator().manual_seed(i)) for i in range(20)]
            return float(torch.stack(draws).mean())

        before = loss()
        try:
            adapters._add(pipe.unet, 4, adapters.ATTENTION, 0)
            adapters._fit_one(pipe, pipe.unet, latents, lambda: said, 60, 1e-2, 0)
            after = loss()
        finally:
            adapters._remove(pipe.unet)
    assert after < 0.95 * before


@pytest.mark.parametrize(
    "name", ["StableDiffusionXLPipeline", "FluxKontextPipeline", "StableDiffusionInstructPix2PixPipeline"]
)
def test_other_classes_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"adapters are trained for Stable Diffusion 1.x classes, got"):
        adapters.check_class(name)


def test_a_checkpoint_of_other_images_is_refused(tmp_path: Path) -> None:
    place = save_pipeline("StableDiffusionImg2ImgPipeline", tmp_path / "p")
    editor = EditorConfig(pipeline=str(place), lora=LoraConfig(steps=2, rank=2, batch_size=2, checkpoint_seconds=0.0))
    data = scenes(4, side=32)
    words = Words(data.schema, ("shape", "ground", "colour"), "a {colour} {shape} on {ground}", {}, False)

    def trained(images: np.ndarray) -> None:
        own = open_pipeline.load(place, "StableDiffusionImg2ImgPipeline", editor, "cpu")
        one = ArrayDataset(images, data.table, data.schema)
        adapters.train(own, words, editor, (32, 32), one, 0, False, tmp_path / "checkpoint")

    trained(data.images)
    with pytest.raises(UsageError, match="checkpoint"):
        trained(np.concatenate([data.images[:3], data.images[:1]]))  # the last image is another one


def test_a_saved_adapter_is_the_trained_one(tmp_path: Path, pipe: Any) -> None:
    from peft.utils import get_peft_model_state_dict

    place = save_pipeline("StableDiffusionImg2ImgPipeline", tmp_path / "p")
    fresh = open_pipeline.load(place, "StableDiffusionImg2ImgPipeline", EditorConfig(pipeline=str(place)), "cpu")
    adapters._add(fresh.unet, 2, adapters.ATTENTION, 3)
    own = {f"unet.{k}": torch.randn_like(v) for k, v in get_peft_model_state_dict(fresh.unet).items()}
    adapters._remove(fresh.unet)
    adapters.put_in(fresh, {**own, "token.<a-b>": torch.ones(8)})
    again = {f"unet.{k}": v for k, v in get_peft_model_state_dict(fresh.unet).items()}
    assert all(torch.equal(again[name], value) for name, value in own.items())
    assert torch.equal(fresh.text_encoder.get_input_embeddings().weight[-1], torch.ones(8))
    assert fresh.tokenizer("<a-b>", add_special_tokens=False)["input_ids"] == [len(fresh.tokenizer) - 1]
