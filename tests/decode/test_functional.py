"""Closed-form functions: shown, undone, drawn by the row's seed, and refused where there is no way back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from cfaug.causal import SCM, CausalGraph, do
from cfaug.config import DecoderConfig
from cfaug.data import ArrayDataset, Attribute, Schema
from cfaug.data.images import to_float, to_uint8
from cfaug.data.micro_batch import Sources
from cfaug.decode import CounterfactualModel, FunctionalDecoder
from cfaug.decode.functional.functions import NAMES, functions_of
from cfaug.decode.functional.stamps import Stamp, removed
from cfaug.errors import UsageError

BOX = {"stamp": {"text": ["H", "AP"], "box": True, "size": [14, 18], "places": [[0, 0, 0.6, 0.6]], "opacity": [0.9, 1]}}
MARKER = {"plain": [], "marked": BOX}


def schema() -> Schema:
    return Schema(
        [Attribute("finding"), Attribute("marker", values=("plain", "marked"))], target="finding", spurious=["marker"]
    )


def smooth(n: int, side: int = 48, channels: int = 1) -> np.ndarray:
    """Images that change slowly, as an x-ray does beside its bones."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] / side
    waves = [60 + 50 * np.sin(3 * x + a) * np.cos(2 * y + b) for a, b in rng.uniform(0, 6, (n, 2))]
    return np.repeat(np.round(waves).astype(np.uint8)[..., None], channels, 3)


@pytest.fixture(scope="module")
def data() -> ArrayDataset:
    images = smooth(8)
    marker = ["plain", "marked"] * 4
    stamp = functions_of(BOX, "x")[0]
    for i in range(1, 8, 2):
        images[i] = stamp.put(images[i], np.random.default_rng(i))
    table = pd.DataFrame({"finding": ["ill", "well"] * 4, "marker": marker}, index=[f"k{i}" for i in range(8)])
    return ArrayDataset(images, table, schema())


def decoder(functions: Any = None) -> FunctionalDecoder:
    return FunctionalDecoder(
        schema(), ["finding", "marker"], DecoderConfig(kind="functional", functions={"marker": functions or MARKER})
    )


def sources(data: ArrayDataset, seed: int = 0) -> Sources:
    images = to_float(torch.from_numpy(data.images).permute(0, 3, 1, 2))
    return Sources(images, data.table, list(data.table.index), [seed + i for i in range(len(data))])


def shown(decoder: FunctionalDecoder, data: ArrayDataset, value: str, seed: int = 0) -> np.ndarray:
    noise = decoder.abduct(sources(data, seed))
    made = decoder.predict(noise, data.table.assign(marker=value), [{"marker"}] * len(data))
    return to_uint8(made).permute(0, 2, 3, 1).numpy()


def test_a_stamp_is_found_where_it_was_put_and_taken_away() -> None:
    clean = smooth(12)
    stamp = Stamp(texts=("H", "AP"), box=True, size=(14, 18), opacity=(0.6, 1.0))
    for i, image in enumerate(clean):
        marked = stamp.put(image, np.random.default_rng(i))
        before = np.abs(marked.astype(int) - image).max()
        after = np.abs(removed(marked, stamp.find(marked)[0]).astype(int) - image)
        assert before > 60
        assert after.max() < 25, i


def test_a_picture_is_found_and_taken_away(tmp_path: Path) -> None:
    picture = np.zeros((12, 12, 4), np.uint8)
    picture[2:10, 5:7] = picture[5:7, 2:10] = (250, 40, 40, 255)
    Image.fromarray(picture).save(tmp_path / "cross.png")
    (function,) = functions_of({"stamp": {"image": str(tmp_path / "cross.png"), "size": 12, "opacity": 1}}, "x")
    for i, image in enumerate(smooth(6, channels=3)):
        marked = function.put(image, np.random.default_rng(i))
        again = function.undo(marked, None, np.random.default_rng(0))
        assert np.abs(marked.astype(int) - image).max() > 100
        assert np.abs(again.astype(int) - image).max() < 25


def test_stamps_are_taken_from_the_images_that_have_them(data: ArrayDataset, tmp_path: Path) -> None:
    settings = {"plain": [], "marked": {"stamp": {"text": "none", "box": True, "size": [14, 18], "taken": 4}}}
    one = decoder(settings).fit(data)
    (stamp,) = [stamp for *_, stamp in one._stamps()]
    assert len(stamp.examples) == 3  # of four, the least sure is left out
    marked = shown(one, data, "marked")[::2].astype(int)
    added = marked - smooth(8)[::2]
    assert (added.reshape(4, -1).max(1) > 60).all()
    scm = SCM(CausalGraph("finding <-> marker; finding -> image; marker -> image"), schema()).fit(data.table)
    CounterfactualModel(scm, one).save(tmp_path)
    again = CounterfactualModel.load(tmp_path).decoder
    assert again.digest == one.digest
    assert np.array_equal(shown(again, data, "marked"), shown(one, data, "marked"))  # type: ignore[arg-type]


def test_both_directions_and_the_factual_value(data: ArrayDataset) -> None:
    marked, plain = shown(decoder(), data, "marked"), shown(decoder(), data, "plain")
    clean = smooth(8)
    assert (np.abs(marked.astype(int) - clean).reshape(8, -1).max(1) > 60).all()
    assert (np.abs(plain.astype(int) - clean).reshape(8, -1).max(1) < 25).all()
    # a plain image made plain has the traces of a stamp that was taken away: they do not tell which images had one
    traces = np.abs(plain[::2].astype(int) - data.images[::2]).reshape(4, -1)
    assert (traces.max(1) > 0).all()


def test_null_is_exact_and_the_draw_is_the_rows_own(data: ArrayDataset) -> None:
    one = decoder()
    noise = one.abduct(sources(data))
    assert np.array_equal(
        to_uint8(one.predict(noise, data.table, [set()] * 8)).permute(0, 2, 3, 1).numpy(), data.images
    )
    assert np.array_equal(shown(one, data, "marked"), shown(one, data, "marked"))
    assert not np.array_equal(shown(one, data, "marked"), shown(one, data, "marked", seed=50))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("stamp", "remove_mask")])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_named_function_keeps_the_shape_and_its_draw(name: str, channels: int) -> None:
    image = smooth(1, channels=channels)[0] + np.random.default_rng(0).integers(0, 60, (48, 48, channels)).astype(
        np.uint8
    )
    (function,) = functions_of([name], "x")
    made = [function.put(image, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert made[0].shape == image.shape
    assert made[0].dtype == np.uint8
    assert np.array_equal(made[0], made[1])
    if not (channels == 1 and name in ("grey", "hue", "saturation")):
        assert not np.array_equal(made[0], image)


def test_what_cannot_be_undone_is_refused_before_anything_is_made(data: ArrayDataset) -> None:
    one = decoder({"plain": [], "marked": {"blur": [1, 2]}}).fit(data)
    with pytest.raises(UsageError, match=r"marker\.marked: expected functions that can be undone"):
        one.check_plan(["marker"], data.table)
    with pytest.raises(UsageError, match="cannot be undone"):
        shown(one, data, "plain")
    one.check_plan(["marker"], data.table[data.table["marker"] == "plain"])
    decoder().check_plan(["marker"], data.table)


def test_a_saved_model_needs_its_stamps_no_more(data: ArrayDataset, tmp_path: Path) -> None:
    file = tmp_path / "cross.png"
    Image.fromarray(np.full((6, 6, 4), 255, np.uint8)).save(file)
    one = decoder({"plain": [], "marked": {"stamp": {"image": str(file), "size": 8}}}).fit(data)
    scm = SCM(CausalGraph("finding <-> marker; finding -> image; marker -> image"), schema()).fit(data.table)
    model = CounterfactualModel(scm, one)
    model.save(tmp_path / "model")
    file.unlink()
    again = CounterfactualModel.load(tmp_path / "model")
    assert again.digest == model.digest
    x = sources(data)
    made = [m.act(do(marker="marked")).predict(m.abduct(x.images, x.table, 5))[0] for m in (model, again)]
    assert torch.equal(*made)


def test_a_python_function(data: ArrayDataset, tmp_path: Path) -> None:
    def darker(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return image // 2

    one = FunctionalDecoder(schema(), ["finding", "marker"], functions={"marker": {"plain": [], "marked": darker}}).fit(
        data
    )
    assert np.array_equal(
        shown(one, data.__class__(data.images[::2], data.table[::2], schema()), "marked"), data.images[::2] // 2
    )
    with pytest.raises(UsageError, match="cannot be saved"):
        one.save(tmp_path)
    wrong = FunctionalDecoder(
        schema(), ["finding", "marker"], functions={"marker": {"plain": [], "marked": lambda image, rng: image[:4]}}
    )
    with pytest.raises(UsageError, match="as its image is"):
        shown(wrong, data, "marked")


@pytest.mark.parametrize(
    ("functions", "said"),
    [
        ({"plain": []}, "none for 'marked'"),
        ({"plain": [], "marked": [], "blue": []}, "got 'blue'"),
        ({"plain": [], "marked": ["sharpen"]}, "unknown function"),
        ({"plain": [], "marked": {"stamp": {"text": "R", "angle": 3}}}, "stamp.angle"),
        ({"plain": [], "marked": {"stamp": {}}}, "expected a text"),
        ({"plain": [], "marked": {"stamp": "none.png"}}, "cannot be read as PNG"),
        ({"plain": [], "marked": {"stamp": {"text": "R", "size": [30, 10]}}}, "size"),
        ({"plain": [], "marked": {"stamp": {"text": "R", "places": [[0.5, 0, 0.2, 1]]}}}, "places"),
        ({"plain": [], "marked": {"jpeg": [0, 200]}}, "between 1 and 100"),
        ({"plain": [], "marked": {"frame": {"width": 0}}}, "width"),
    ],
)
def test_settings_that_do_not_fit(functions: dict[str, Any], said: str, data: ArrayDataset) -> None:
    with pytest.raises(UsageError, match=said) as error:
        shown(decoder(functions), data, "marked")
    assert "\n" not in str(error.value)
