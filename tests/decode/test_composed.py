"""Several mechanisms in one model: each answers for its attributes, in order, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.layered import scenes, schema

from cfaug.causal import SCM, CausalGraph, do
from cfaug.config import DecoderConfig
from cfaug.data import ArrayDataset
from cfaug.data.images import to_float, to_uint8
from cfaug.decode import ComposedDecoder, CounterfactualModel, DiffusionDecoder, FunctionalDecoder, LayeredDecoder, Part
from cfaug.errors import ShardError, UsageError

GRAPH = "shape <-> ground; shape <-> colour; shape -> image; ground -> image; colour -> image"


@pytest.fixture(scope="module")
def data() -> ArrayDataset:
    return scenes(side=24)


@pytest.fixture(scope="module")
def model(data: ArrayDataset) -> CounterfactualModel:
    layered = LayeredDecoder(schema(), ["shape", "ground"], layers={"background": ["ground"]}).fit(data, progress=False)
    frame = {"colour": {"red": [], "blue": {"frame": {"width": 2, "colour": [0, 0, 255]}}}}
    functional = FunctionalDecoder(
        schema(), ["shape", "colour"], DecoderConfig(kind="functional", functions=frame)
    ).fit(data)
    scm = SCM(CausalGraph(GRAPH), schema()).fit(data.table)
    return CounterfactualModel(scm, ComposedDecoder([Part(layered, ("ground",)), Part(functional, ("colour",))]))


def made(model: CounterfactualModel, data: ArrayDataset, **values: str) -> np.ndarray:
    assert data.masks is not None
    images = to_float(torch.from_numpy(data.images).permute(0, 3, 1, 2))
    masks = torch.from_numpy(data.masks)[:, None].float() / 255
    noise = model.abduct(images, data.table, range(len(data)), keys=list(data.table.index), masks=masks)
    return to_uint8(model.act(do(**values)).predict(noise)[0]).permute(0, 2, 3, 1).numpy()


def test_each_mechanism_changes_its_own(model: CounterfactualModel, data: ArrayDataset) -> None:
    assert np.array_equal(made(model, data), data.images)
    inner = (slice(None), slice(2, -2), slice(2, -2))
    grounds, frames, both = (
        made(model, data, ground="dots"),
        made(model, data, colour="blue"),
        made(model, data, ground="dots", colour="blue"),
    )
    red = (data.table["colour"] == "red").to_numpy()
    assert np.array_equal(frames[red][inner], data.images[red][inner])
    assert (frames[:, 0, 0] == (0, 0, 255)).all()
    assert np.array_equal(both[red][inner], grounds[red][inner])
    assert (both[:, 0, 0] == (0, 0, 255)).all()


def test_capabilities_add_up(model: CounterfactualModel) -> None:
    assert model.capabilities.needs_masks
    assert model.capabilities.null == "exact"
    assert model.decoder.parents == ("shape", "ground", "colour")


def test_files_are_marked_as_what_the_strongest_mechanism_makes(model: CounterfactualModel) -> None:
    layered, functional = (part.mechanism.capabilities.source_type for part in model.decoder.parts)  # type: ignore[attr-defined]
    assert (layered, functional) == ("compositeCapture", "algorithmicallyEnhanced")
    assert model.capabilities.source_type == "compositeCapture"
    diffusion = DiffusionDecoder(schema(), ["shape", "ground", "colour"])
    assert diffusion.capabilities.source_type == "trainedAlgorithmicMedia"
    redrawn = LayeredDecoder(
        schema(),
        ["shape", "colour"],
        DecoderConfig(kind="layered", layers={"foreground": ["colour"]}, composite={"redraw": "diffusion"}),  # type: ignore[arg-type]
    )
    assert redrawn.capabilities.source_type == "trainedAlgorithmicMedia"


def test_saved_and_loaded(model: CounterfactualModel, data: ArrayDataset, tmp_path: Path) -> None:
    model.save(tmp_path)
    again = CounterfactualModel.load(tmp_path)
    assert np.array_equal(
        made(again, data, ground="lines", colour="blue"), made(model, data, ground="lines", colour="blue")
    )
    assert again.digest == model.digest
    (tmp_path / "part-1" / "decoder.json").write_text("{}")
    with pytest.raises(ShardError, match="corrupt checkpoint"):
        CounterfactualModel.load(tmp_path)


def test_a_diffusion_decoder_sees_what_the_others_have_made(data: ArrayDataset) -> None:
    """An intervention on the ground alone does not pass through it; one on the colour starts from the new ground."""
    layered = LayeredDecoder(schema(), ["shape", "ground"], layers={"background": ["ground"]}).fit(data, progress=False)
    diffusion = DiffusionDecoder(
        schema(),
        ["shape", "ground", "colour"],
        channels=[8, 16],
        max_steps=3,
        batch_size=8,
        sampler="reversible_euler",
        steps=2,
    ).fit(data, progress=False)
    scm = SCM(CausalGraph(GRAPH), schema()).fit(data.table)
    alone = CounterfactualModel(scm, ComposedDecoder([Part(layered, ("ground",)), Part(diffusion, ("colour",))]))
    assert data.masks is not None
    on = data.masks == 255
    assert np.array_equal(made(alone, data, ground="dots")[on], data.images[on])
    assert not np.array_equal(made(alone, data, ground="dots", colour="blue")[on], data.images[on])


def test_an_attribute_in_two_mechanisms(data: ArrayDataset) -> None:
    layered = LayeredDecoder(schema(), ["shape", "ground"], layers={"background": ["ground"]}).fit(data, progress=False)
    with pytest.raises(UsageError, match="'ground' in two"):
        ComposedDecoder([Part(layered, ("ground",)), Part(layered, ("ground",))])
    with pytest.raises(UsageError, match="got none"):
        ComposedDecoder([])
