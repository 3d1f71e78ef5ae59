"""Pretrained pipelines of real classes, tiny: what goes in with what, what stays, what is refused."""

from __future__ import annotations

import functools
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.layered import scenes
from helpers.tiny_pipelines import PIPELINES, save_pipeline

from cfaug.causal import SCM, CausalGraph, do
from cfaug.data import ArrayDataset
from cfaug.decode import CounterfactualModel, PretrainedDecoder
from cfaug.decode.diffusion.training import seed_of
from cfaug.decode.editors import backends
from cfaug.decode.editors.backends import CLASSES
from cfaug.decoder_config import DecoderConfig
from cfaug.editor_config import EditorConfig
from cfaug.errors import CfaugError, ShardError, UsageError

LAYERS = {"background": ["ground"], "foreground": ["colour"]}
GRAPH = CausalGraph("shape <-> ground; shape <-> colour; shape -> image; ground -> image; colour -> image")
SLOW = (
    "Qwen",
    "XLPipeline",
    "LEditsPPPipelineStableDiffusionXL",
    "XLImg2Img",
)  # with a megapixel inside, or a twin that is not slow
ACTS = [do(), do(ground="dots"), do(colour="red"), do(ground="lines", colour="blue")]


@pytest.fixture(scope="module")
def data() -> ArrayDataset:
    return scenes(8, side=32)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("pipelines")

    def save(name: str) -> Path:
        place = root / name
        return place if place.exists() else save_pipeline(name, place)

    return save


def made(data: ArrayDataset, place: Path, layers: Any = None, **editor: Any) -> CounterfactualModel:
    scm = SCM(GRAPH, data.schema).fit(data.table, seed=0)
    name = json.loads((place / "model_index.json").read_text())["_class_name"]
    least = {"size": CLASSES[name].least} if CLASSES[name].least > 32 else {}
    settings = {"template": "a {colour} {shape} on {ground}", "steps": 2, "batch": 2, **least, **editor}
    layers = (LAYERS if CLASSES[name].mask else {}) if layers is None else layers
    config = DecoderConfig(kind="pretrained", layers=layers, editor=EditorConfig(pipeline=str(place), **settings))
    return CounterfactualModel(scm, PretrainedDecoder(scm.schema, GRAPH.parents("image"), config).fit(data, 0, False))


def edited(model: CounterfactualModel, data: ArrayDataset, acts: Any = ACTS, seeds: Any = (1, 2, 3, 4)) -> torch.Tensor:
    n = len(acts)
    images = torch.from_numpy(data.images[:n]).permute(0, 3, 1, 2).float() / 127.5 - 1
    masks = torch.from_numpy(np.stack([data.mask(i) for i in range(n)])).float()[:, None] / 255
    noise = model.abduct(images, data.table.iloc[:n], list(seeds), masks=masks)
    found: torch.Tensor = model.act(list(acts)).predict(noise)[0]
    return found


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if any(part in n for part in SLOW) else []) for n in PIPELINES]
)
def test_every_class_edits_and_comes_back(name: str, data: ArrayDataset, saved: Any, tmp_path: Path) -> None:
    model = made(data, saved(name))
    first = edited(model, data)
    assert first.shape == (4, 3, 32, 32)
    assert first.abs().max() <= 1
    model.save(tmp_path / "model")
    again = pickle.loads(pickle.dumps(CounterfactualModel.load(tmp_path / "model")))
    assert again.digest == model.digest
    assert torch.equal(edited(again, data), first)  # the same bytes in another process
    capabilities = model.capabilities
    assert capabilities.null == "round_trip"
    assert capabilities.needs_masks == CLASSES[name].mask
    if CLASSES[name].draws:
        other = edited(again, data, ACTS[1:2], [99])
        assert not torch.equal(other[0], first[1])


def test_pixels_outside_the_region_are_the_sources(data: ArrayDataset, saved: Any) -> None:
    found = edited(made(data, saved("StableDiffusionInpaintPipeline")), data)
    pixels = found.add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).numpy()
    inside = np.stack([data.mask(i) for i in range(4)]) > 127
    changed = (pixels != data.images[:4]).any(3)
    assert not changed[1][inside[1]].any()  # the ground
    assert changed[1][~inside[1]].mean() > 0.5
    assert not changed[2][~inside[2]].any()  # the colour of the object
    assert changed[2][inside[2]].mean() > 0.5
    assert changed[3].mean() > 0.5  # both
    assert changed[0].mean() > 0.5  # a null intervention goes through the autoencoder


def test_a_null_intervention_is_the_round_trip_of_the_autoencoder(data: ArrayDataset, saved: Any) -> None:
    model = made(data, saved("StableDiffusionInstructPix2PixPipeline"))
    pipe = model.decoder.pipe  # type: ignore[attr-defined]
    image = torch.from_numpy(data.images[:1]).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        back = pipe.vae.decode(pipe.vae.encode(image).latent_dist.mode()).sample.clamp(-1, 1)
    assert (edited(model, data, [do()], [1]) - back).abs().max() <= 1.01 / 127.5


def test_each_image_goes_with_its_prompt_mask_and_seed(
    data: ArrayDataset, saved: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made(data, saved("StableDiffusionInpaintPipeline"), batch=3)
    calls: list[Any] = []

    def recorded(pipe: Any, traits: Any, edits: Any, config: Any) -> Any:
        calls.append(list(edits))
        return np.zeros((len(edits), 32, 32, 3), np.float32)

    monkeypatch.setattr(backends, "run", recorded)
    # a micro-batch whose last row is padding, an intervention to the image's own value, and a null one
    acts = [do(), do(ground="dots"), do(colour="red"), do(ground=str(data.table["ground"].iloc[3]))]
    images = torch.from_numpy(data.images[[0, 1, 2, 3, 3, 3]]).permute(0, 3, 1, 2).float() / 127.5 - 1
    masks = torch.from_numpy(np.stack([data.mask(i) for i in (0, 1, 2, 3, 3, 3)])).float()[:, None] / 255
    table = pd.concat([data.table.iloc[:4], data.table.iloc[[3, 3]]])
    keys = [str(key) for key in table.index]
    table.index = pd.Index([f"row{i}" for i in range(6)])
    noise = model.abduct(images, table, [1, 2, 3, 4, 4, 4], keys=keys, masks=masks)
    model.act([*acts, acts[3], acts[3]]).predict(noise)
    assert [len(call) for call in calls] == [2, 1]  # grounds, then objects; and the padding is edited by none
    for edit, i in zip([*calls[0], *calls[1]], (1, 3, 2)):
        wanted = {**data.table.iloc[i].to_dict(), **acts[i].assignments}
        assert edit.prompt == f"a {wanted['colour']} {wanted['shape']} on {wanted['ground']}"
        own = data.table.iloc[i]
        assert edit.factual == f"a {own['colour']} {own['shape']} on {own['ground']}"
        assert edit.seed == (i + 1 if i != 2 else seed_of(i + 1, 1))
        assert np.array_equal(np.asarray(edit.image), data.images[i])
        inside = data.mask(i) > 127  # type: ignore[operator]
        assert np.array_equal(np.asarray(edit.region) > 0, inside if i == 2 else ~inside)


@pytest.mark.parametrize(
    "name", ["StableDiffusionInpaintPipeline", "StableDiffusionPipeline", "StableDiffusionInstructPix2PixPipeline"]
)
def test_a_batch_is_as_one_by_one(name: str, data: ArrayDataset, saved: Any) -> None:
    together = edited(made(data, saved(name), batch=4, guidance=3.0), data, ACTS[1:], [1, 2, 3])
    alone = edited(made(data, saved(name), batch=1, guidance=3.0), data, ACTS[1:], [1, 2, 3])
    assert (together - alone).abs().max() <= 2.01 / 127.5  # the arithmetic of a batch may round otherwise


def test_inversion_and_sampling_under_one_prompt_return_the_image(data: ArrayDataset, saved: Any) -> None:
    """The own value: what is inverted under the words of the image, and sampled under the same, is the round trip."""
    own = [do(ground=str(value)) for value in data.table["ground"].iloc[:2]]
    model = made(data, saved("StableDiffusionPipeline"), steps=20, guidance=1.0)
    with torch.inference_mode(False), torch.no_grad():  # an untrained net is too rough for steps that are not tiny
        for parameter in model.decoder.pipe.unet.conv_out.parameters():  # type: ignore[attr-defined]
            parameter.zero_()
    null, same = edited(model, data, [do(), do()], [1, 2]), edited(model, data, own, [1, 2])
    assert (null - same).abs().max() <= 2.01 / 127.5
    away = edited(made(data, saved("StableDiffusionImg2ImgPipeline"), strength=1.0), data, own, [1, 2])
    assert (null - away).abs().mean() > 0.1


def test_an_image_is_inverted_under_its_own_words(
    data: ArrayDataset, saved: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made(data, saved("StableDiffusionPipeline"), steps=2)
    kind, said = type(model.decoder.pipe), []  # type: ignore[attr-defined]
    call = kind.__call__

    @functools.wraps(call)
    def recorded(self: Any, *args: Any, **given: Any) -> Any:
        said.append((given["prompt"], type(self.scheduler).__name__))
        return call(self, *args, **given)

    monkeypatch.setattr(kind, "__call__", recorded)
    own = data.table.iloc[0]
    other = next(value for value in ("lines", "dots") if value != own["ground"])
    edited(model, data, [do(ground=other)], [1])
    words = [f"a {own['colour']} {own['shape']} on {ground}" for ground in (own["ground"], other)]
    assert said == [([words[0]], "DDIMInverseScheduler"), ([words[1]], "DDIMScheduler")]


def test_other_backends_of_the_same_parts(data: ArrayDataset, saved: Any) -> None:
    model = made(data, saved("StableDiffusionPipeline"), backend="image_to_image")
    assert type(model.decoder.pipe).__name__ == "StableDiffusionImg2ImgPipeline"  # type: ignore[attr-defined]
    with pytest.raises(
        UsageError,
        match=r"backend: expected inversion, image_to_image, inpaint, ledits of a StableDiffusionPipeline, got",
    ):
        made(data, saved("StableDiffusionPipeline"), backend="instruction")


def test_images_are_resized_on_their_way_in_and_out(data: ArrayDataset, saved: Any) -> None:
    small = scenes(8, side=30)
    place = saved("FluxKontextPipeline")
    with pytest.raises(
        UsageError, match=r"expected sides that are multiples of 4 and at least 1, got 30x30 px; set data.size"
    ):
        edited(made(small, place), small)
    assert edited(made(small, place, size=32), small).shape == (4, 3, 30, 30)


def test_settings_reach_the_pipeline(data: ArrayDataset, saved: Any) -> None:
    model = made(
        data,
        saved("StableDiffusionImg2ImgPipeline"),
        dtype="bfloat16",
        slicing=True,
        scheduler="EulerDiscreteScheduler",
    )
    pipe = model.decoder.pipe  # type: ignore[attr-defined]
    assert pipe.unet.dtype is torch.bfloat16
    assert type(pipe.scheduler).__name__ == "EulerDiscreteScheduler"
    assert edited(model, data).isfinite().all()


def damaged(place: Path, target: Path, **changes: Any) -> Path:
    """A copy of a pipeline, changed."""
    import shutil

    shutil.copytree(place, target)
    for name, content in changes.items():
        path = target / name.replace("__", "/").replace("_json", ".json").replace("_bin", ".bin").replace("_py", ".py")
        path.write_text(content)
    return target


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"model_index_json": "{}"}, "expected a pipeline of diffusers in bad, got no model_index.json that names one"),
        ({"model_index_json": '{"_class_name": "StableDiffusionInpaintPipelin"}'}, "expected a class that edits images, got StableDiffusionInpaintPipelin; did you mean"),
        ({"unet__weights_bin": "x"}, "expected safetensors, got unet/weights.bin, whose loading can run code"),
        ({"unet__mine_py": "x"}, "expected no code in bad, got unet/mine.py"),
    ],
)  # fmt: skip
def test_what_is_no_pipeline_is_refused(
    changes: Any, error: str, data: ArrayDataset, saved: Any, tmp_path: Path
) -> None:
    place = damaged(saved("StableDiffusionImg2ImgPipeline"), tmp_path / "bad", **changes)
    with pytest.raises(UsageError, match=error):
        PretrainedDecoder(
            data.schema,
            GRAPH.parents("image"),
            DecoderConfig(kind="pretrained", editor=EditorConfig(pipeline=str(place))),
        )


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        (
            {"pipeline": None},
            "editor.pipeline: expected a directory that a pipeline of diffusers was saved in, got none",
        ),
        ({"pipeline": "/nowhere/at/all"}, "expected a directory, got '/nowhere/at/all', which does not exist"),
        ({"pipeline": "some/model"}, "expected the 40 digits of a commit for some/model, got None"),
        (
            {"pipeline": "some/model", "revision": "a" * 40},
            "download it once where there is a network: hf download some/model --revision a",
        ),
        ({"options": {"strenth": 1}}, "editor.options: expected arguments of .*, got 'strenth'; did you mean strength"),
        ({"scheduler": "FlowScheduler"}, "editor.scheduler: expected one that suits"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: Any, error: str, data: ArrayDataset, saved: Any) -> None:
    editor = EditorConfig(**{"pipeline": str(saved("StableDiffusionImg2ImgPipeline")), **settings})
    with pytest.raises(UsageError, match=error):
        _ = PretrainedDecoder(data.schema, GRAPH.parents("image"), DecoderConfig(kind="pretrained", editor=editor)).pipe


def test_a_prompt_that_would_be_cut_is_refused(data: ArrayDataset, saved: Any) -> None:
    long = {"ground": {"dots": "many very small round dots " * 6}}
    model = made(data, saved("StableDiffusionImg2ImgPipeline"), words=long)
    with pytest.raises(UsageError, match=r"expected prompts of at most 77 tokens, got one of .* would be cut after"):
        model.decoder.check((32, 32), ["ground"])  # type: ignore[attr-defined]


def test_a_pipeline_that_in_paints_needs_layers(data: ArrayDataset, saved: Any) -> None:
    with pytest.raises(
        UsageError, match=r"decoder.layers: expected the layers of attributes for a pipeline that in-paints"
    ):
        made(data, saved("StableDiffusionInpaintPipeline"), layers={})


def test_another_pipeline_in_the_same_place_is_noticed(data: ArrayDataset, saved: Any, tmp_path: Path) -> None:
    place = damaged(saved("StableDiffusionImg2ImgPipeline"), tmp_path / "own")
    made(data, place).save(tmp_path / "model")
    weights = place / "unet" / "diffusion_pytorch_model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    with pytest.raises(ShardError, match=r"got another unet/diffusion_pytorch_model.safetensors"):
        CounterfactualModel.load(tmp_path / "model")
    weights.write_bytes(before)  # its time of change is new, its bytes are not
    CounterfactualModel.load(tmp_path / "model")
    place.rename(tmp_path / "moved")
    with pytest.raises(UsageError, match=r"expected the pipeline's directory, got .*own, which is not there"):
        CounterfactualModel.load(tmp_path / "model")


def test_too_little_memory_says_what_helps(data: ArrayDataset, saved: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model = made(data, saved("StableDiffusionImg2ImgPipeline"))
    monkeypatch.setattr(backends, "run", full)
    with pytest.raises(
        (CfaugError, MemoryError), match=r"set decoder.editor.batch: 1, dtype: bfloat16, slicing: true, then offload"
    ):
        edited(model, data)


def test_each_pass_says_what_it_draws(data: ArrayDataset, saved: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(data, saved("StableDiffusionInpaintPipeline"), template=None)
    calls: list[Any] = []
    monkeypatch.setattr(backends, "run", lambda *given: calls.append(given[2][0]) or np.zeros((1, 32, 32, 3)))
    edited(model, data, [do(ground="dots", colour="blue")], [7])
    own = data.table.iloc[0]
    assert [(call.factual, call.prompt) for call in calls] == [(own["ground"], "dots"), (own["colour"], "blue")]


def test_the_object_is_drawn_in_the_new_ground(data: ArrayDataset, saved: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of do(ground, colour) the second pass sees what the first has drawn, and the outline stays where it was."""
    model = made(data, saved("StableDiffusionInpaintPipeline"))
    calls: list[Any] = []

    def grey(pipe: Any, traits: Any, edits: Any, config: Any) -> Any:
        calls.append(edits[0])
        return np.full((1, 32, 32, 3), 0.2 * len(calls), np.float32)

    monkeypatch.setattr(backends, "run", grey)
    found = edited(model, data, [do(ground="dots", colour="blue")], [7])[0]
    inside = data.mask(0) > 127  # type: ignore[operator]
    first, second = (np.asarray(call.image) for call in calls)
    assert np.array_equal(first, data.images[0])
    assert (second[~inside] == 51).all()
    assert np.array_equal(second[inside], data.images[0][inside])
    assert calls[0].seed != calls[1].seed
    own = data.table.iloc[0]
    assert calls[0].factual == f"a {own['colour']} {own['shape']} on {own['ground']}"
    assert calls[0].prompt == calls[1].factual == f"a {own['colour']} {own['shape']} on dots"  # what this pass draws
    assert calls[1].prompt == f"a blue {own['shape']} on dots"
    pixels = found.add(1).mul(127.5).round().byte().permute(1, 2, 0).numpy()
    assert (pixels[~inside] == 51).all()
    assert (pixels[inside] == 102).all()
