"""Layers: what is not redrawn stays bit by bit, a draw is the row's own, and donors have the wanted values."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.layered import scenes, schema
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cfaug.causal import SCM, CausalGraph, do
from cfaug.data import ArrayDataset
from cfaug.data.images import to_float, to_uint8
from cfaug.data.micro_batch import Sources
from cfaug.decode import CounterfactualModel, LayeredDecoder
from cfaug.decode.layered import compositing
from cfaug.errors import CfaugError, DataError, UsageError

GRAPH = "shape <-> ground; shape <-> colour; shape -> image; ground -> image; colour -> image"
PARENTS = ("shape", "ground", "colour")
LAYERS = {"background": ["ground"], "foreground": ["colour"]}


@pytest.fixture(scope="module")
def data() -> ArrayDataset:
    return scenes()


@pytest.fixture(scope="module")
def decoder(data: ArrayDataset) -> LayeredDecoder:
    return LayeredDecoder(schema(), PARENTS, layers=LAYERS).fit(data, progress=False)


def batch(data: ArrayDataset, rows: list[int], seeds: list[int] | None = None) -> Sources:
    images = torch.from_numpy(data.images[rows]).permute(0, 3, 1, 2)
    assert data.masks is not None
    masks = torch.from_numpy(data.masks[rows])[:, None].float() / 255
    keys = [data.key(i) for i in rows]
    return Sources(to_float(images), data.table.iloc[rows], keys, seeds or [7 + i for i in rows], masks)


def pixels(images: torch.Tensor) -> np.ndarray:
    return to_uint8(images).permute(0, 2, 3, 1).numpy()


def asked(table: pd.DataFrame, **values: str) -> pd.DataFrame:
    return table.assign(**values)


# -- the equation of layers ------------------------------------------------------------------------------------------

images_and_masks = arrays.arrays(np.uint8, (2, 6, 7, 3)), arrays.arrays(np.uint8, (6, 7))


@given(*images_and_masks)
def test_a_pixel_that_is_all_object_or_all_background_is_a_copy(both: np.ndarray, mask: np.ndarray) -> None:
    image, background = both
    made = compositing.on_background(image, mask, background)
    sure, clear = mask >= compositing.SURE, mask == 0
    assert np.array_equal(made[sure], image[sure])
    assert np.array_equal(made[clear], background[clear])


@given(*images_and_masks)
def test_the_rim_lies_between_the_two_layers(both: np.ndarray, mask: np.ndarray) -> None:
    image, background = both
    colours = compositing.object_colours(image, mask)
    made = compositing.blended(colours, background, mask).astype(int)
    low, high = np.minimum(colours, background), np.maximum(colours, background)
    assert ((made >= low) & (made <= high)).all()


def test_the_old_background_does_not_shine_through_the_rim() -> None:
    image, mask = np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9), np.uint8)
    mask[2:7, 2:7], mask[3:6, 3:6] = 128, 255
    image[:], image[3:6, 3:6] = (0, 255, 0), (255, 0, 0)
    image[mask == 128] = (127, 128, 0)  # what a camera sees of a red object before green
    made = compositing.on_background(image, mask, np.zeros_like(image))
    assert made[..., 1].max() == 0


@given(arrays.arrays(np.uint8, (8, 8, 3)), arrays.arrays(np.bool_, (8, 8)), st.sampled_from(sorted(compositing.FILLS)))
def test_a_filling_changes_the_hole_alone(image: np.ndarray, hole: np.ndarray, fill: str) -> None:
    made = compositing.FILLS[fill](image, hole)
    assert made.shape == image.shape
    assert made.dtype == np.uint8
    assert np.array_equal(made[~hole], image[~hole])


def test_a_texture_is_filled_with_its_own_grain() -> None:
    image = np.indices((32, 32)).sum(0) % 4 < 2
    image = np.repeat(np.where(image, 220, 30).astype(np.uint8)[..., None], 3, 2)
    hole = np.zeros((32, 32), bool)
    hole[12:18, 12:18] = True
    assert np.array_equal(compositing.patched(image, hole, most=4096), image)
    assert np.abs(compositing.filled(image, hole).astype(int) - image).max() > 50


def test_a_feather_fades_inwards_only() -> None:
    mask = np.zeros((20, 20), np.uint8)
    mask[4:16, 4:16] = 255
    soft = compositing.softened(mask, 2.0)
    assert soft[10, 10] == 255
    assert 0 < soft[4, 10] < 255
    assert not soft[mask == 0].any()
    assert np.array_equal(compositing.softened(mask, 0), mask)


# -- the mechanism ---------------------------------------------------------------------------------------------------


def test_a_null_intervention_returns_the_image_bit_by_bit(data: ArrayDataset, decoder: LayeredDecoder) -> None:
    rows = list(range(8))
    made = decoder.predict(decoder.abduct(batch(data, rows)), data.table.iloc[rows], [set()] * 8)
    assert np.array_equal(pixels(made), data.images[rows])


def test_a_new_background_leaves_the_object_and_a_new_colour_the_background(
    data: ArrayDataset, decoder: LayeredDecoder
) -> None:
    rows = list(range(8))
    noise, table = decoder.abduct(batch(data, rows)), data.table.iloc[rows]
    assert data.masks is not None
    on = data.masks[rows] >= compositing.SURE
    made = pixels(decoder.predict(noise, asked(table, ground="dots"), [{"ground"}] * 8))
    assert np.array_equal(made[on], data.images[rows][on])
    assert not np.array_equal(made[~on], data.images[rows][~on])
    made = pixels(decoder.predict(noise, asked(table, colour="blue"), [{"colour"}] * 8))
    assert np.array_equal(made[data.masks[rows] == 0], data.images[rows][data.masks[rows] == 0])
    assert (made[on].mean(0)[2] > made[on].mean(0)[0] + 100).all()


@pytest.mark.parametrize("redraw", ["transfer", "surface"])
def test_both_ways_to_redraw_give_the_wanted_colour(data: ArrayDataset, redraw: str) -> None:
    composite = {"redraw": redraw, "fill": "nearest"}
    decoder = LayeredDecoder(schema(), PARENTS, layers=LAYERS, composite=composite).fit(data, progress=False)
    rows = [i for i in range(len(data)) if data.table["colour"].iloc[i] == "red"][:4]
    made = pixels(
        decoder.predict(
            decoder.abduct(batch(data, rows)), asked(data.table.iloc[rows], colour="blue"), [{"colour"}] * 4
        )
    )
    assert data.masks is not None
    on = made[data.masks[rows] >= compositing.SURE].mean(0)
    assert on[2] > 180
    assert on[0] < 90


def test_a_diffusion_decoder_of_objects_alone(data: ArrayDataset, tmp_path: Path) -> None:
    """The background stays; the decoder knows neither the target nor the ground."""
    settings = {"channels": [8, 16], "max_steps": 3, "batch_size": 8, "sampler": "reversible_euler", "steps": 2}
    decoder = LayeredDecoder(schema(), PARENTS, layers=LAYERS, composite={"redraw": "diffusion"}, **settings).fit(
        data, progress=False
    )
    assert decoder._objects is not None
    assert decoder._objects.decoder.parents == ("colour",)
    assert decoder.report is not None
    rows = list(range(6))
    assert data.masks is not None
    outside, on = data.masks[rows] == 0, data.masks[rows] == 255
    names = [{"colour"}] * 6
    table = asked(data.table.iloc[rows], colour="blue")
    made = decoder.predict(decoder.abduct(batch(data, rows)), table, names)
    assert np.array_equal(pixels(made)[outside], data.images[rows][outside])
    assert not np.array_equal(pixels(made)[on], data.images[rows][on])
    decoder.save(tmp_path)
    again = LayeredDecoder.load(tmp_path)
    assert again.digest == decoder.digest
    assert torch.equal(again.predict(again.abduct(batch(data, rows)), table, names), made)


def test_the_draw_is_the_rows_own(data: ArrayDataset, decoder: LayeredDecoder) -> None:
    rows = [3, 1, 5]
    table, names = asked(data.table, ground="lines"), [{"ground"}]
    together = pixels(decoder.predict(decoder.abduct(batch(data, rows, [9, 4, 9])), table.iloc[rows], names * 3))
    for place, (i, seed) in enumerate(zip(rows, [9, 4, 9])):
        alone = decoder.predict(decoder.abduct(batch(data, [i], [seed])), table.iloc[[i]], names)
        assert np.array_equal(pixels(alone)[0], together[place])
    other = pixels(decoder.predict(decoder.abduct(batch(data, rows, [10, 5, 11])), table.iloc[rows], names * 3))
    assert not np.array_equal(other, together)


def test_donors_have_the_wanted_value_and_are_other_images(data: ArrayDataset, decoder: LayeredDecoder) -> None:
    bank = decoder._banks["background"]
    assert data.masks is not None
    for i in range(len(data)):
        for seed in range(5):
            donor = bank.donor({"ground": "dots"}, data.key(i), data.masks[i], 0.0, "random", 1, seed)
            assert bank.values["ground"][donor] == "dots"
            assert bank.keys[donor] != data.key(i)


def test_the_covering_partner_shows_least_of_its_hole(data: ArrayDataset, decoder: LayeredDecoder) -> None:
    bank = decoder._banks["background"]
    assert data.masks is not None
    mask = data.masks[0]
    places = bank.with_values({"ground": "lines"})
    shown = [(bank.holes[place] & (mask < compositing.SURE)).sum() for place in places]
    donors = {bank.donor({"ground": "lines"}, "none", mask, 0.0, "cover", len(places), seed) for seed in range(5)}
    assert {(bank.holes[donor] & (mask < compositing.SURE)).sum() for donor in donors} == {min(shown)}


def test_one_value_for_all_redraws_the_factual_one_too(data: ArrayDataset, decoder: LayeredDecoder) -> None:
    """A composite with the same value is a kind of sample of its own; do() alone is none."""
    scm = SCM(CausalGraph(GRAPH), schema()).fit(data.table)
    model = CounterfactualModel(scm, decoder)
    rows = list(range(6))
    sources = batch(data, rows)
    noise = model.abduct(sources.images, sources.table, keys=sources.keys, masks=sources.masks)
    own = [do(ground=str(value)) for value in sources.table["ground"]]
    made, table = model.act(own).predict(noise)
    assert table["ground"].tolist() == sources.table["ground"].tolist()
    assert (pixels(made) != data.images[rows]).reshape(6, -1).any(1).all()
    assert np.array_equal(pixels(model.act(do()).predict(noise)[0]), data.images[rows])


def test_a_hidden_background_shows_nothing_of_itself(data: ArrayDataset, decoder: LayeredDecoder) -> None:
    model = CounterfactualModel(SCM(CausalGraph(GRAPH), schema()).fit(data.table), decoder)
    rows = list(range(6))
    sources = batch(data, rows)
    noise = model.abduct(sources.images, sources.table, [3, 3, 4, 5, 6, 7], keys=sources.keys, masks=sources.masks)
    made, table = model.act(do(ground=None)).predict(noise)
    assert table["ground"].isna().all()
    assert table[["shape", "colour"]].equals(sources.table[["shape", "colour"]])
    assert data.masks is not None
    grounds = []
    for i, image in enumerate(pixels(made)):
        mask = data.masks[rows[i]]
        assert np.array_equal(image[mask == 255], data.images[rows[i]][mask == 255])
        assert len(np.unique(image[mask == 0], axis=0)) == 1
        grounds.append(tuple(image[mask == 0][0]))
    assert grounds[0] == grounds[1]  # of the row's seed alone
    assert len(set(grounds)) == 5
    both = pixels(model.act(do(ground=None, colour="blue")).predict(noise)[0])
    assert [tuple(one[data.masks[row] == 0][0]) for one, row in zip(both, rows)] == grounds
    with pytest.raises(
        UsageError, match=r"do\(colour=None\): expected an attribute that this decoder can hide \(ground\)"
    ):
        model.act(do(colour=None))
    with pytest.raises(UsageError, match="attribute 'shape' has no value"):
        model.act(do(shape=None))


def test_what_others_follow_from_is_not_hidden(data: ArrayDataset) -> None:
    graph = GRAPH + "; ground -> colour"
    found = LayeredDecoder(schema(), PARENTS, layers=LAYERS).fit(data, progress=False)
    model = CounterfactualModel(SCM(CausalGraph(graph), schema()).fit(data.table), found)
    with pytest.raises(UsageError, match="causes the image alone, got one that causes colour"):
        model.act(do(ground=None))


def test_the_target_is_never_looked_at(data: ArrayDataset, decoder: LayeredDecoder) -> None:
    rows, names = list(range(8)), [{"ground", "colour"}] * 8
    table = asked(data.table.iloc[rows], ground="dots", colour="blue")
    sources = batch(data, rows)
    made = decoder.predict(decoder.abduct(sources), table, names)
    swapped = table.assign(shape=["square" if v == "disc" else "disc" for v in table["shape"]])
    assert torch.equal(decoder.predict(decoder.abduct(sources), swapped, names), made)


def test_saved_and_loaded_it_makes_the_same(data: ArrayDataset, decoder: LayeredDecoder, tmp_path: Path) -> None:
    scm = SCM(CausalGraph(GRAPH), schema()).fit(data.table)
    model = CounterfactualModel(scm, decoder)
    model.save(tmp_path)
    again = CounterfactualModel.load(tmp_path)
    assert again.digest == model.digest
    rows = [0, 1, 2]
    sources = batch(data, rows)
    made = [
        one.act(do(ground="dots", colour="red")).predict(
            one.abduct(sources.images, sources.table, 3, masks=sources.masks)
        )[0]
        for one in (model, again)
    ]
    assert torch.equal(*made)


def test_the_bank_keeps_at_most_so_many_of_a_value(data: ArrayDataset) -> None:
    decoder = LayeredDecoder(schema(), PARENTS, layers=LAYERS, composite={"bank": 3}).fit(data, progress=False)
    values, counts = np.unique(decoder._banks["background"].values["ground"].astype(str), return_counts=True)
    assert values.tolist() == ["dots", "lines"]
    assert counts.tolist() == [3, 3]


# -- what it says ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ({"sky": ["ground"]}, "got 'sky'"),
        ({"background": ["ground", "colour"], "foreground": ["colour"]}, "'colour' is in two layers"),
        ({"background": ["ground"]}, "write for example layers: {background: [ground, colour]}"),
        ({"background": ["shape", "ground"], "foreground": ["colour"]}, "'shape' is the target"),
        ({"background": ["place"]}, "got 'place'"),
    ],
)
def test_layers_that_cannot_be(layers: dict[str, list[str]], said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        LayeredDecoder(schema(), PARENTS, layers=layers)


def test_a_mask_that_covers_all_or_nothing_leaves_no_layer(data: ArrayDataset) -> None:
    full = ArrayDataset(data.images, data.table, schema(), masks=np.full(data.images.shape[:3], 255, np.uint8))
    with pytest.raises(DataError, match="masks cover all or nothing"):
        LayeredDecoder(schema(), PARENTS, layers=LAYERS).fit(full, progress=False)
    none = ArrayDataset(data.images, data.table, schema(), masks=np.zeros(data.images.shape[:3], np.uint8))
    with pytest.raises(DataError, match="masks cover all or nothing"):
        LayeredDecoder(schema(), PARENTS, layers=LAYERS).fit(none, progress=False)


def test_a_value_that_no_training_image_has(data: ArrayDataset, decoder: LayeredDecoder) -> None:
    table = data.table.iloc[[0]].assign(ground=pd.Series(["sea"], index=data.table.index[[0]], dtype=object))
    with pytest.raises(CfaugError, match="ground=sea"):
        decoder.predict(decoder.abduct(batch(data, [0])), table, [{"ground"}])


def test_no_masks_other_sizes_and_a_strength(data: ArrayDataset, decoder: LayeredDecoder) -> None:
    sources = batch(data, [0])
    with pytest.raises(UsageError, match="expected masks"):
        decoder.abduct(Sources(sources.images, sources.table, sources.keys, sources.seeds))
    small = Sources(sources.images[..., :8, :8], sources.table, sources.keys, sources.seeds, sources.masks)
    with pytest.raises(UsageError, match="24x24 px"):
        decoder.abduct(small)
    with pytest.raises(UsageError, match="no strength"):
        decoder.predict(decoder.abduct(sources), sources.table, [set()], 2.0)
    with pytest.raises(UsageError, match="lives in no layer"):
        decoder.predict(decoder.abduct(sources), sources.table, [{"shape"}])
    with pytest.raises(UsageError, match="no bank yet"):
        LayeredDecoder(schema(), PARENTS, layers=LAYERS).abduct(sources)
