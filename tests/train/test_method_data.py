"""Every method sees the images, shares and groups its definition says."""

from __future__ import annotations

import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.coloured_shards import N, source

from cfaug.data import ArrayDataset, Grouper
from cfaug.errors import UsageError
from cfaug.offline import ShardReader
from cfaug.train import METHODS, TrainSettings, train_classifier
from cfaug.train.method_data import (
    Memory,
    Mixture,
    TrainingSets,
    group_codes,
    standard_augmentation,
    training_set,
    validation_set,
)
from cfaug.train.training_sets import TrainingSet


@pytest.fixture
def grouper(base: ArrayDataset) -> Grouper:
    return Grouper.fit(base.table, base.schema)


def shown(source: TrainingSet, epochs: int = 50) -> np.ndarray:
    """First pixel of everything shown: 1 and 11 are counterfactuals, 21 a null, in the conftest's shards."""
    everything = torch.arange(len(source.targets))
    return np.concatenate(
        [next(iter(source.batches(e, [everything])))[0][:, 0, :2, :2].flatten(1).numpy() for e in range(epochs)]
    )


def shares(source: TrainingSet) -> tuple[float, float]:
    pixels = shown(source)
    flat = (pixels == pixels[:, :1]).all(1)
    return float((flat & np.isin(pixels[:, 0], (1, 11))).mean()), float((flat & (pixels[:, 0] == 21)).mean())


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("erm", (0, 0)), ("group_dro", (0, 0)), ("null_control", (0, 0.7)), ("counterfactuals_only", (1, 0)),
        ("cfaug", (0.6, 0.1)), ("oracle", (0, 0)),
    ],
)  # fmt: skip
def test_shares(base: ArrayDataset, shards: Path, grouper: Grouper, method: str, expected: tuple[float, float]) -> None:
    made = training_set(method, base, grouper, shards, Mixture(0.6, 0.1), oracle=source(seed=7))
    assert shares(made) == pytest.approx(expected, abs=0.04)
    assert made.targets.tolist() == [base[i][1] for i in range(N)]
    again = pickle.loads(pickle.dumps(made))
    assert np.array_equal(shown(again, 2), shown(made, 2))


def test_one_set_of_images_serves_every_method_and_seed(
    base: ArrayDataset, shards: Path, grouper: Grouper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shared pool shows exactly what a set made for one method alone shows, and nothing is decoded twice."""
    read: list[int] = []
    image = ShardReader.image

    def counting(self: ShardReader, row: int) -> np.ndarray:
        read.append(row)
        return image(self, row)

    todo = [(m, s) for s in (0, 1) for m in ("erm", "group_dro", "null_control", "counterfactuals_only", "cfaug", "oracle")]  # fmt: skip
    oracle, mixture = source(seed=7), Mixture(0.6, 0.1)
    alone = [training_set(m, base, grouper, shards, mixture, s, oracle=oracle) for m, s in todo]
    monkeypatch.setattr(ShardReader, "image", counting)
    sets = TrainingSets(base, grouper, shards, oracle=oracle)
    shared = [sets.of(m, mixture, s) for m, s in todo]
    assert read
    assert len(read) == len(set(read))
    order = [torch.arange(N)]
    for ours, theirs in zip(shared, alone, strict=True):
        assert torch.equal(ours.targets, theirs.targets)
        for epoch in (0, 3):
            (a,), (b,) = ours.batches(epoch, order), theirs.batches(epoch, order)
            assert torch.equal(a[0], b[0])
            assert a[2] is not None
            assert b[2] is not None
            assert torch.equal(a[2], b[2])
    first, second = (next(iter(shared[i].batches(0, order)))[0] for i in (4, 10))
    assert not torch.equal(first, second)  # cfaug under two seeds


def test_groups_of_a_mixture_follow_the_drawn_attributes(base: ArrayDataset, shards: Path, grouper: Grouper) -> None:
    made = training_set("counterfactuals_only", base, grouper, shards)
    images, _, groups = next(iter(made.batches(0, [torch.arange(N)])))
    assert groups is not None
    blue = images[:, 0, 0, 0] == 11  # replica 1 is do(colour=blue), replica 0 do(colour=red)
    names = [f"digit={base.table['digit'].iloc[i]},colour={'blue' if b else 'red'}" for i, b in enumerate(blue)]
    pairs = set(zip(names, groups.tolist()))
    assert len(pairs) == len({name for name, _ in pairs}) == len({code for _, code in pairs}) == 4


def test_each_gives_a_column_per_attribute(base: ArrayDataset, grouper: Grouper) -> None:
    each = group_codes(base.table, grouper, "each")
    assert each.shape == (N, 1)
    assert set(group_codes(base.table, grouper)) == {0, 1, 2}  # digit 0 is always red here
    with pytest.raises(UsageError, match="'cross' or 'each'"):
        group_codes(base.table, grouper, "pairs")  # type: ignore[arg-type]


def test_images_without_a_value_train_in_no_group(base: ArrayDataset, shards: Path) -> None:
    table = base.table.assign(colour=[None, None, *base.table["colour"][2:]])
    partial = ArrayDataset(base.images, table, base.schema)
    grouper = Grouper.fit(table, base.schema)
    for grouping in ("cross", "each"):
        codes = group_codes(table, grouper, grouping)
        assert (codes[:2] == -1).all()
        assert (codes[2:] >= 0).all()
    for method in ("group_resampling", "group_dro", "cfaug+group_dro"):
        made = training_set(method, partial, grouper, shards, grouping="each")
        assert len(made.targets) == N
        robust = {"adjustment": 1.0}
        settings = TrainSettings(
            epochs=1, batch_size=16, method_settings={"group_dro": robust, "cfaug+group_dro": robust}
        )
        run = train_classifier(method, made, validation_set(source("val"), grouper), settings, classes=["0", "1"])
        assert run.history[0]["loss"] > 0


def test_within_each_origin_a_mixture_shows_groups_evenly(base: ArrayDataset, shards: Path, grouper: Grouper) -> None:
    """Held in memory and read from the shards alike; a real set has one origin and no weights."""
    held = training_set("cfaug", base, grouper, shards, Mixture(0.6, 0.0))
    read = TrainingSets(base, grouper, shards, memory=Memory(0.0, 0)).of("cfaug", Mixture(0.6, 0.0))
    for epoch in range(3):
        weights, again = held.balance(epoch), read.balance(epoch)
        assert weights is not None
        assert again is not None
        assert torch.equal(weights, again)
    assert training_set("erm", base, grouper).balance(0) is None


def test_trains_end_to_end(base: ArrayDataset, shards: Path, grouper: Grouper) -> None:
    settings = TrainSettings(epochs=2, batch_size=16, method_settings={"dfr": {"c": 1.0}, "cfaug+dfr": {"c": 1.0}})
    sets = TrainingSets(base, grouper, shards, oracle=source(seed=7))
    validation = validation_set(source("val"), grouper)
    for method in METHODS:
        run = train_classifier(
            method, sets.of(method), validation, settings, classes=["0", "1"], synthetic=sets.synthetic(method)
        )
        assert run.best_epoch in (0, 1)


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("method", ["erm", "cfaug", "cfaug+consistency"])
def test_what_is_not_held_is_read_and_augmented(
    base: ArrayDataset, shards: Path, grouper: Grouper, method: str, augment: bool
) -> None:
    """Pairs too; the same look gives the same images."""
    size = base.images.shape[1:3]
    make = partial(standard_augmentation, size) if augment else None
    sets = TrainingSets(base, grouper, shards, memory=Memory(0.0, 0), augment=make)
    made = sets.of(method, Mixture(0.5, 0.1), seed=2)
    ((images, targets, _),) = made.batches(0, [torch.arange(N)])
    pairs = (2,) if method == "cfaug+consistency" else ()
    assert images.shape == (N, *pairs, 3, *size)
    assert targets.tolist() == [base[i][1] for i in range(N)]
    ((again, _, _),) = made.batches(0, [torch.arange(N)])
    assert torch.equal(images, again)
