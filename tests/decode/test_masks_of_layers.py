"""Masks from every source, kept by the image's digest, and how their quality is told."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from helpers.layered import scenes, schema
from onnx import TensorProto, helper

from cfaug.data import ArrayDataset
from cfaug.data.micro_batch import Sources
from cfaug.decode import MaskedDataset
from cfaug.decode.layered.bank import make_bank
from cfaug.decode.layered.mask_gate import ObjectFound
from cfaug.decode.layered.mask_quality import overlap, quality
from cfaug.decode.layered.mask_sources import (
    CalledMasks,
    GrabCut,
    OnnxMasks,
    Threshold,
    by_threshold,
    mask_source,
)
from cfaug.decoder_config import CompositeConfig
from cfaug.errors import UsageError
from cfaug.offline.gate import Candidates


def net(path: Path, side: int | str = 16, channels: int = 3) -> str:
    """An ONNX net whose map is the first channel of its input."""
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels, side, side])
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, side, side])
    first = helper.make_tensor("first", TensorProto.INT64, [1], [0])
    graph = helper.make_graph(
        [helper.make_node("Gather", ["x", "first"], ["y"], axis=1)], "g", [given], [made], [first]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 10
    onnx.save(model, path)
    return str(path)


def red(side: int = 32) -> tuple[np.ndarray, np.ndarray]:
    image, inside = np.full((side, side, 3), (20, 120, 40), np.uint8), np.zeros((side, side), bool)
    inside[8:22, 10:24] = True
    image[inside] = (230, 30, 30)
    return image, inside


@pytest.mark.parametrize("source", [GrabCut(), Threshold(), Threshold(level=20)], ids=lambda s: s.digest.split()[0])
def test_an_object_on_a_plain_ground_is_found(source: Any) -> None:
    image, inside = red()
    mask = source.mask(image, None)
    assert mask.dtype == np.uint8
    assert overlap(mask, np.where(inside, 255, 0).astype(np.uint8)) > 0.9
    assert np.array_equal(mask, source.mask(image, None))


def test_an_image_without_an_object_has_an_empty_mask() -> None:
    flat = np.full((16, 16, 3), 90, np.uint8)
    for source in (GrabCut(), Threshold()):
        assert not source.mask(flat, None).any()


def test_grabcut_starts_from_an_attribution_where_there_is_one() -> None:
    image, inside = red()
    image[2:7, 2:7] = (230, 230, 30)
    heat = np.zeros((32, 32), np.float32)
    heat[2:7, 2:7] = 1
    mask = GrabCut(heat=lambda _: heat, name="corner").mask(image, None)
    assert (mask[3:6, 3:6] == 255).all()
    assert mask[inside].mean() < 50
    assert by_threshold(np.zeros((4, 4))).sum() == 0


def test_a_net_in_an_onnx_file(tmp_path: Path) -> None:
    image, inside = red(64)
    source = OnnxMasks(net(tmp_path / "net.onnx"), mean=0, scale=255)
    assert source.side == 16
    assert overlap(source.mask(image, None), np.where(inside, 255, 0).astype(np.uint8)) > 0.6
    free = OnnxMasks(net(tmp_path / "free.onnx", "s"), size=32)
    assert free.side == 32
    assert free.digest != source.digest


@pytest.mark.parametrize(
    ("make", "settings", "said"),
    [
        (lambda p: net(p), {"size": 32}, "takes 16 px"),
        (lambda p: net(p, "s"), {}, "of any size; say"),
        (lambda p: net(p, channels=1), {}, r"input x \[1, 1, 16, 16\]"),
        (lambda p: p.write_bytes(b"no net"), {}, "cannot be read as ONNX"),
        (lambda p: None, {}, "cannot be read"),
    ],
)
def test_onnx_files_of_another_kind(tmp_path: Path, make: Any, settings: dict[str, int], said: str) -> None:
    make(tmp_path / "net.onnx")
    with pytest.raises(UsageError, match=said):
        _ = OnnxMasks(str(tmp_path / "net.onnx"), **settings).side


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"from": "sam"}, "expected one of given"),
        ({"from": "given", "path": "x"}, "unknown setting 'decoder.mask.path'"),
        ({"from": "grabcut", "margin": "wide"}, "a number"),
        ({"from": "grabcut", "margin": 0.7}, r"\[0, 0.5\)"),
        ({"from": "grabcut", "prior": "edges"}, "centre, attribution"),
        ({"from": "onnx"}, "expected an ONNX file"),
        ({"from": "attribution"}, "needs a trained classifier"),
    ],
)
def test_settings_that_name_no_source(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        mask_source(settings)


class Counted:
    """A source that counts how often it is asked."""

    digest = "counted"
    calls = 0

    def mask(self, image: np.ndarray, given: np.ndarray | None) -> np.ndarray:
        type(self).calls += 1
        return np.where(image[..., 0] > 128, 255, 0).astype(np.uint8)


def test_a_mask_is_made_once_and_again_where_its_file_is_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = scenes(6)
    Counted.calls = 0
    MaskedDataset(data, Counted(), tmp_path).make(2, progress=False)
    assert Counted.calls == 6 or Counted.calls == 7  # the first is asked for before the others
    first = Counted.calls
    again = MaskedDataset(data, Counted(), tmp_path)
    masks = [again.mask(i) for i in range(6)]
    assert Counted.calls == first
    for file in tmp_path.iterdir():
        file.write_bytes(b"damaged")
    with caplog.at_level(logging.WARNING):
        third = MaskedDataset(data, Counted(), tmp_path)
        assert all(np.array_equal(third.mask(i), masks[i]) for i in range(6))
    assert "made again" in caplog.text
    assert Counted.calls == first + 6


def test_a_masked_data_set_is_the_data_set_otherwise(tmp_path: Path) -> None:
    data = scenes(6)
    made = MaskedDataset(data, CalledMasks(lambda image: image[..., 0] > 150, "red"), tmp_path)
    assert len(made) == 6
    assert made.key(3) == data.key(3)
    assert made.schema is data.schema
    assert np.array_equal(made.image(2), data.image(2))
    assert made.mask(2).max() == 255
    wrong = MaskedDataset(data, CalledMasks(lambda image: image[:3, :3, 0]))
    with pytest.raises(UsageError, match="as its image is"):
        wrong.mask(0)


def test_quality_names_the_masks_that_failed() -> None:
    good = np.zeros((20, 20), np.uint8)
    good[5:15, 5:15] = 255
    empty, full = np.zeros_like(good), np.full_like(good, 255)
    other = good.copy()
    other[:, :10] = 0
    found = quality([good, empty, good, full], [good, good, other, good])
    assert found.worst(2) == [3, 1]
    assert found.worst(3)[2] == 2
    said = found.summary()
    assert (said["empty"], said["full"]) == (1, 1)
    assert found.agreement is not None
    assert found.agreement[0] == 1
    assert ArrayDataset(np.zeros((1, 4, 4, 3), np.uint8), scenes(2).table[:1], schema()).mask(0) is None


def test_no_composite_of_an_image_whose_object_was_not_found() -> None:
    masks = torch.zeros(3, 1, 20, 20)
    masks[0, :, 5:15, 5:15], masks[2] = 1, 1
    sources = Sources(torch.zeros(3, 3, 20, 20), scenes(4).table.iloc[:3], ["a", "b", "c"], [0, 1, 2], masks)
    seen = Candidates([], [], sources)
    assert (ObjectFound().margins(seen) >= 0).tolist() == [True, False, False]


def test_an_image_whose_object_was_not_found_lends_no_background() -> None:
    data = scenes(12)
    assert data.masks is not None
    masks = data.masks.copy()
    masks[:4] = 0
    blind = ArrayDataset(data.images, data.table, schema(), masks=masks)
    bank = make_bank("background", ["ground"], blind, blind.table, CompositeConfig(), 0, False)
    assert not set(bank.keys) & {data.key(i) for i in range(4)}
