"""Nothing of validation or test reaches training: by the shards' splits, by what a base says of itself, by pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.coloured_shards import N, source
from torch.utils.data import ConcatDataset, Subset

from cfaug.data import ArrayDataset
from cfaug.errors import DataError, UsageError
from cfaug.learn import CounterfactualDataset, CounterfactualStream, MixingCollate, RandomCounterfactual
from cfaug.learn.albumentations import RandomCounterfactual as Twin
from cfaug.learn.guard import open_training_shards, probe_indices, refuse_split

REFUSED: list[dict[str, Any]] = [
    *({"split": said} for said in (
        "val", "valid", "validation", "VAL", "Test", " Test ", "test[:50%]", "train+val", "train+test", "dev", "development", "test10k",
        "val2017", "id_val", "ood_test", "holdout", "held-out", "lists/val.txt", "evaluation", "trainval_test",
    )),
    {"image_set": "val"}, {"_split": "test"}, {"train": False}, {"split": "train", "train": False},
]  # fmt: skip
ACCEPTED: list[dict[str, Any]] = [
    *({"split": said} for said in (
        "train", "TRAIN", "training", "trainval", "train[:50%]", "train+unlabeled", "latest", "contest", "devices", "value",
        "train_val", "train-val", "TrainVal", "train-standard", "train_extra", "10fold", "all", "extra", None, 0, 0.8,
    )),
    {"train": True}, {"train": 5}, {"image_set": "trainval"}, {"image_set": "train_noval"}, {"mode": "RGB"}, {},
]  # fmt: skip


class Around(torch.utils.data.Dataset[Any]):
    """A class of a user's own around a data set."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, i: int) -> Any:
        return self.inner[i]


def is_refused(dataset: Any) -> bool:
    try:
        refuse_split(dataset)
    except UsageError:
        return True
    return False


def test_a_split_is_known_by_a_word_of_its_name() -> None:
    assert not [said for said in REFUSED if not is_refused(SimpleNamespace(**said))]
    assert not [said for said in ACCEPTED if is_refused(SimpleNamespace(**said))]


def test_a_validation_split_is_refused_wherever_it_is(base: ArrayDataset, shards: Path) -> None:
    val = source("val")
    for inside in (val, Subset(val, range(9)), ConcatDataset([base, val]), Around(Subset(val, range(5)))):
        with pytest.raises(UsageError, match=r"^base: expected the train split, got split 'val'; .*guard=False"):
            CounterfactualDataset(inside, shards)
    loop = Around(val)
    val.back = loop  # type: ignore[attr-defined]  # a circle ends
    assert is_refused(loop)


def test_shards_of_a_different_split_are_refused_by_name(make: Callable[..., Path]) -> None:
    shards = make(source("test"))
    for entry in (open_training_shards, RandomCounterfactual, Twin, MixingCollate):
        with pytest.raises(DataError, match=r"got 'test-000000-0' of split 'test'"):
            entry(shards)
    assert len(open_training_shards(shards, guard=False)) == 3 * N
    assert CounterfactualDataset(source("test"), shards, p=1.0, guard=False).provenance(0).kind == "counterfactual"


def test_held_out_images_enter_by_no_way(base: ArrayDataset, shards: Path) -> None:
    def wrapped(shards: Any, **options: Any) -> Any:
        return CounterfactualDataset(base, shards, **options)

    def streamed(shards: Any, **options: Any) -> Any:
        return CounterfactualStream(shards, 4, classes=["0", "1"], **options)

    for entry in (RandomCounterfactual, Twin, MixingCollate, wrapped, streamed):
        entry(shards, held_out=[source("test", 9)])
        with pytest.raises(DataError, match=r"sample 'train-000005-\d', whose source is image 0 of held_out\[1\]"):
            entry(shards, held_out=[source("test", 9), Subset(base, [5])])


def test_a_held_out_image_is_known_by_every_pixel(base: ArrayDataset, shards: Path) -> None:
    changed = ArrayDataset(base.images[[7]].copy(), base.table.iloc[[7]], base.schema)
    with pytest.raises(DataError, match="held-out image"):
        open_training_shards(shards, guard=False, held_out=[changed])  # guard=False is of splits alone
    changed.images[0, 0, 0, 0] ^= 1
    open_training_shards(shards, held_out=[changed])


def test_held_out_images_of_a_different_size_warn(shards: Path, base: ArrayDataset, caplog: Any) -> None:
    open_training_shards(shards, held_out=(data for data in [source("test")]))
    assert not caplog.records
    open_training_shards(shards, held_out=[[(base[i][0].crop((1, 1, 7, 6)), 0) for i in range(N)]])
    assert "held_out[0] was not compared with anything: its images are 6 x 5 pixels" in caplog.text


def test_probed_indices_are_a_sample_of_all() -> None:
    for count in (0, 1, 5, 16, 17, 40, 1000, 2**40):
        looked = probe_indices(count, 16)
        assert looked == sorted(set(looked)) == probe_indices(count, 16)
        assert len(looked) == min(count, 16)
        if count:
            assert (looked[0], looked[-1]) == (0, count - 1)
    for step in (2, 3, 4, 8):  # interleaved data has no step in common with it
        counts = np.bincount(np.array(probe_indices(512, 256)) % step, minlength=step)
        assert (counts > 200 / step).all()
