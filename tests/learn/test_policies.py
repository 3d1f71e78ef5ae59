"""The policies through the wrapper: what stands where, in which structure, and what a checkpoint holds."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset as Table
from datasets import Image as Picture
from helpers.coloured_shards import N, source
from torch.utils.data import DataLoader, Subset
from torchvision.transforms import v2

from cfaug.data import ArrayDataset, pixel_digest
from cfaug.errors import UsageError
from cfaug.learn import CounterfactualDataset
from cfaug.learn import dataset as mixing
from cfaug.learn.epochs import FORGOTTEN, TOLD
from cfaug.learn.match import Matches
from cfaug.learn.policy_groups import _options
from cfaug.offline import write_shard
from cfaug.offline.read import Sample


def same(one: Any, other: Any) -> bool:
    return one[1] == other[1] and np.array_equal(np.asarray(one[0]), np.asarray(other[0]))


def test_append_keeps_every_real_image_and_adds_what_was_asked_for(base: ArrayDataset, shards: Path) -> None:
    mixed = CounterfactualDataset(base, shards, p=0.5, null_p=1.0, policy="append")
    assert len(mixed) == N + N // 2 + N
    assert all(same(mixed[i], base[i]) for i in range(N))
    for i in range(N, len(mixed)):
        draw = mixed.provenance(i)
        assert draw.kind == ("counterfactual" if i < N + N // 2 else "null")
        assert draw.row is not None
        assert mixed.reader.record(draw.row)["source_key"] == base.key(draw.source)
        assert np.array_equal(np.asarray(mixed[i][0]), mixed.reader.image(draw.row))
        assert mixed[i][1] == base[draw.source][1]  # the label of its own source
    assert same(mixed[-1], mixed[len(mixed) - 1])
    with pytest.raises(IndexError):
        mixed[len(mixed)]


def test_pairs_show_the_factual_beside_its_counterfactual(base: ArrayDataset, shards: Path) -> None:
    mixed = CounterfactualDataset(base, shards, policy="pairs")
    assert len(mixed) == N
    for i in range(N):
        factual, counterfactual = mixed[i]
        row = mixed.provenance(i).row
        assert same(factual, base[i])
        assert row is not None
        assert counterfactual[1] == factual[1]
        assert np.array_equal(np.asarray(counterfactual[0]), mixed.reader.image(row))
    tensors = CounterfactualDataset(source(transform=v2.PILToTensor()), shards, policy="pairs", null_p=0.3)
    (images, targets), (images_cf, targets_cf) = next(iter(DataLoader(tensors, 8)))
    assert images.shape == images_cf.shape == (8, 3, 8, 8)
    assert targets.tolist() == targets_cf.tolist()
    assert {tensors.provenance(i).kind for i in range(N)} == {"counterfactual", "null"}


def confounded(directory: Path, n: int = 400, every: int = 1) -> ArrayDataset:
    """Colour follows the digit in nine of ten images; every image (or every n-th) has counterfactuals of both colours and two
    nulls. Thickness follows the digit too, and is 4.5 more in the counterfactual of digit 0, 4.5 less in that of 1."""
    from cfaug.data import Attribute, Schema

    rng = np.random.default_rng(0)
    digit = rng.integers(0, 2, n)
    colour = np.where(rng.random(n) < 0.9, digit, 1 - digit)
    table = pd.DataFrame(
        {
            "digit": digit.astype(str),
            "colour": np.array(["red", "blue"])[colour],
            "thickness": 5 * digit + rng.normal(size=n),
        },
        index=pd.Index([f"k{i:03d}" for i in range(n)], dtype=object),
    )
    schema = Schema(
        [Attribute("digit"), Attribute("colour"), Attribute("thickness", "continuous")], "digit", ["colour"]
    )
    schema = schema.fit(table)
    data = ArrayDataset(rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8), table, schema)
    samples = []
    for i in range(0, n, every):
        factual = {name: value if isinstance(value, str) else float(value) for name, value in table.iloc[i].items()}
        other = {"thickness": float(factual["thickness"] + (4.5 if factual["digit"] == "0" else -4.5))}
        interventions = ({"colour": "red"}, {"colour": "blue"}, {}, {}) if directory.name != "thick" else (other, {})
        for r, do in enumerate(interventions):
            key = f"train-{i:06d}-{r}"
            record = {
                "schema": 1, "key": key, "source_key": data.key(i), "source_digest": pixel_digest(data.image(i)),
                "split": "train", "do": do, "attributes": {**factual, **do}, "factual": factual,
                "target": factual["digit"], "seed": i, "replica": r, "model": "m" * 64, "quality": {"change_l1": 0.0},
            }  # fmt: skip
            samples.append(Sample(key, np.full((8, 8, 3), r, np.uint8), record))
    write_shard(directory, "cf-train-000000.tar", samples, "p" * 64, "m" * 64)
    return data


def dependence(mixed: CounterfactualDataset, data: ArrayDataset, epochs: int = 20) -> float:
    """Largest difference between the share of red in a class and in all, over what some epochs show."""
    shown = pd.DataFrame(
        [(data.table["digit"].iloc[i], mixed.attributes(i, epoch)["colour"]) for epoch in range(epochs) for i in range(len(data))],
        columns=["digit", "colour"],
    )  # fmt: skip
    red = shown["colour"] == "red"
    return float((red.groupby(shown["digit"]).mean() - red.mean()).abs().max())


def test_groups_make_target_and_attribute_independent(tmp_path: Path) -> None:
    data = confounded(tmp_path)
    balanced = CounterfactualDataset(data, tmp_path, policy="groups", null_p=0.5)
    mixture = CounterfactualDataset(data, tmp_path, p=0.5)
    assert dependence(mixture, data, 5) > 0.15  # half of the images still follow the shortcut
    assert dependence(balanced, data) < 0.02  # 0.006 is one standard deviation of so many draws
    kinds = np.concatenate([balanced.draws(epoch)[0] for epoch in range(20)])
    share = np.bincount(kinds, minlength=3) / len(kinds)
    assert share[0] == pytest.approx(share[2], abs=0.02)  # half of the real images come as reconstructions
    assert share[1] > 0.2
    fast = balanced.materialise()
    images, _, _ = next(iter(fast.batches(0, [torch.arange(20)])))
    assert all(np.array_equal(images[i].permute(1, 2, 0).numpy(), np.asarray(balanced[i][0])) for i in range(20))


def test_every_null_intervention_of_a_source_is_shown(tmp_path: Path) -> None:
    balanced = CounterfactualDataset(confounded(tmp_path, n=40), tmp_path, policy="groups", null_p=0.6)
    shown = np.concatenate([balanced.draws(epoch)[1] for epoch in range(100)])
    often = np.bincount(shown[shown >= 0] % 4, minlength=4)  # rows 2 and 3 of every source
    assert often[2] == pytest.approx(often[3], rel=0.1)


def test_quartiles_are_those_of_the_real_images() -> None:
    """Thickness 0 to 7 in eight images, and a hundred more in the counterfactual of each."""

    def record(row: int) -> dict[str, Any]:
        changed = {"thickness": 100.0 + row}
        return {"do": changed, "target": "0", "attributes": changed, "factual": {"thickness": float(row)}}

    reader: Any = SimpleNamespace(record=record, by_key=SimpleNamespace(rows=np.arange(8, dtype=np.uint32)))
    ones = np.ones(8, dtype=np.int32)
    options, _, cells = _options(Matches(reader, "by_key", np.arange(8, dtype=np.uint32), ones, 0 * ones))
    assert cells[options["row"].to_numpy() < 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert cells[options["row"].to_numpy() >= 0].tolist() == [3] * 8


def test_groups_balance_a_continuous_attribute_by_its_quartiles(tmp_path: Path) -> None:
    data = confounded(tmp_path / "thick")
    balanced = CounterfactualDataset(data, tmp_path / "thick", policy="groups")
    edges = np.quantile(data.table["thickness"], [0.25, 0.5, 0.75])
    table = pd.DataFrame(
        [(data.table["digit"].iloc[i], np.searchsorted(edges, balanced.attributes(i, epoch)["thickness"]))
         for epoch in range(10) for i in range(len(data))],
        columns=["digit", "quartile"],
    )  # fmt: skip
    shares = pd.crosstab(table["digit"], table["quartile"], normalize="index")
    assert shares.shape == (2, 4)
    assert float((shares.loc["0"] - shares.loc["1"]).abs().max()) < 0.06
    assert float(np.abs(shares.to_numpy() - 0.25).max()) < 0.06


def test_groups_say_when_some_images_have_no_counterfactual(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    CounterfactualDataset(confounded(tmp_path, n=40, every=2), tmp_path, policy="groups")
    assert "20 of 40 images have no counterfactual sample: they stay real, and their attributes follow" in caplog.text


def test_what_is_set_on_the_wrapper_reaches_the_base(shards: Path) -> None:
    mixed = CounterfactualDataset(source(transform=v2.PILToTensor()), shards, p=0.5)
    mixed.transform = v2.Compose([v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)])
    assert {mixed[i][0].dtype for i in range(N)} == {torch.float32}  # real and swapped alike
    mixed.note = "mine"
    assert not hasattr(mixed.base, "note")
    assert mixed.note == "mine"


def test_groups_warn_where_a_class_cannot_reach_a_value(
    base: ArrayDataset, make: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    # do(colour=red) only: class 1 has blue images that can turn red, class 0 has none that are blue
    CounterfactualDataset(base, make(base, kinds=("cf",)), policy="groups")
    assert "target and attributes stay dependent" in caplog.text


def test_large_datasets_draw_item_by_item_and_show_the_same(
    base: ArrayDataset, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for policy in ("replace", "append", "pairs", "groups"):
        small = CounterfactualDataset(base, shards, policy=policy, null_p=0.2)
        large = CounterfactualDataset(base, shards, policy=policy, null_p=0.2)
        for epoch in (0, 1):
            expected = [small.provenance(i, epoch) for i in range(len(small))]
            with monkeypatch.context() as patched:
                patched.setattr(mixing, "DRAWN_TOGETHER", 0)
                assert [large.provenance(i, epoch) for i in range(len(large))] == expected
                assert large.provenance(-1, epoch) == small.provenance(-1, epoch) == expected[-1]
    assert large._drawn is None  # nothing of the epoch's size was made


def test_a_checkpoint_continues_in_its_epoch_and_nowhere_else(base: ArrayDataset, shards: Path) -> None:
    mixed = CounterfactualDataset(base, shards, p=0.5, seed=3)
    mixed.set_epoch(7)
    state = pickle.loads(pickle.dumps(mixed.state_dict()))
    again = CounterfactualDataset(base, shards, p=0.5, seed=3)
    again.load_state_dict(state)
    assert again.epoch == 7
    assert np.array_equal(again.draws(again.epoch)[1], mixed.draws(7)[1])
    for other in ({"p": 0.4}, {"seed": 4}, {"null_p": 0.1}, {"policy": "append"}):
        arguments: dict[str, Any] = {"p": 0.5, "seed": 3, **other}
        with pytest.raises(UsageError, match=f"expected {next(iter(other))}="):
            CounterfactualDataset(base, shards, **arguments).load_state_dict(state)
    with pytest.raises(UsageError, match="the shards are others"):
        again.load_state_dict({**state, "shards": "0" * 64})
    with pytest.raises(UsageError, match="state: expected epoch, seed"):
        again.load_state_dict({"epoch": 1})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"policy": "swap"}, "policy: expected one of replace, append, pairs, groups, came 'swap'"),
        ({"policy": "groups", "p": 0.5}, "p: expected none with policy 'groups'"),
        ({"p": "half"}, "p: expected a probability"),
        ({"p": True}, "p: expected a probability"),
        ({"p": float("nan")}, "p: expected a probability"),
        ({"seed": -1}, "seed: expected a whole number"),
        ({"seed": 1.5}, "seed: expected a whole number"),
    ],
)
def test_arguments_that_cannot_be(base: ArrayDataset, shards: Path, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        CounterfactualDataset(base, shards, **arguments)


def test_an_epoch_below_zero_is_refused(base: ArrayDataset, shards: Path) -> None:
    with pytest.raises(UsageError, match="epoch: expected"):
        CounterfactualDataset(base, shards).set_epoch(-1)


def test_materialise_needs_fixed_labels(base: ArrayDataset, shards: Path) -> None:
    with pytest.raises(UsageError, match="materialise: expected policy replace or groups"):
        CounterfactualDataset(base, shards, policy="append").materialise()


def test_the_wrapper_answers_for_its_base(base: ArrayDataset, shards: Path) -> None:
    mixed = CounterfactualDataset(base, shards)
    assert mixed.schema is base.schema
    with pytest.raises(AttributeError, match="nothing_of_this"):
        _ = mixed.nothing_of_this
    base.weights = np.ones(N)  # type: ignore[attr-defined]
    assert len(mixed.weights) == N
    longer = CounterfactualDataset(base, shards, policy="append")
    for name in ("weights", "table", "key", "image", "images"):
        with pytest.raises(AttributeError, match="policy 'append' has"):
            getattr(longer, name)
    assert longer.schema is base.schema
    del base.weights  # type: ignore[attr-defined]


def test_batches_are_asked_of_a_base_that_reads_batches(shards: Path) -> None:
    asked: list[list[int]] = []

    class Batched(ArrayDataset):
        def __getitems__(self, indices: list[int]) -> list[Any]:
            asked.append(list(indices))
            return [self[i] for i in indices]

    plain = source(transform=v2.PILToTensor())
    batched = Batched(plain.images, plain.table, plain.schema, transform=v2.PILToTensor())
    ours = CounterfactualDataset(batched, shards, p=0.5)
    theirs = CounterfactualDataset(plain, shards, p=0.5)
    for (images, targets), (expected, labels) in zip(DataLoader(ours, 8), DataLoader(theirs, 8), strict=True):
        assert torch.equal(images, expected)
        assert torch.equal(targets, labels)
    assert len(asked) == 5
    assert sorted(i for batch in asked for i in batch) == [i for i in range(N) if ours.provenance(i).kind == "real"]


def test_a_batch_without_a_real_image_asks_the_base_for_none(shards: Path) -> None:
    class Stacking(ArrayDataset):
        def __getitems__(self, indices: list[int]) -> list[Any]:
            together = torch.stack([torch.from_numpy(self.image(i)) for i in indices])  # fails on nothing
            return [(image.permute(2, 0, 1), self[i][1]) for image, i in zip(together, indices)]

    plain = source(transform=v2.PILToTensor())
    mixed = CounterfactualDataset(
        Stacking(plain.images, plain.table, plain.schema, transform=plain.transform), shards, p=1.0
    )
    assert sum(len(images) for images, _ in DataLoader(mixed, 4)) == N


def test_the_epoch_reaches_a_base_that_has_one(shards: Path) -> None:
    class Curriculum(ArrayDataset):
        epoch = -1

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

    plain = source()
    base = Curriculum(plain.images, plain.table, plain.schema)
    mixed = CounterfactualDataset(Subset(base, range(10)), shards)
    mixed.set_epoch(4)
    assert base.epoch == 4
    mixed.load_state_dict({**mixed.state_dict(), "epoch": 9})
    assert mixed.epoch == base.epoch == 9


def test_methods_that_would_drop_the_counterfactuals_are_refused(base: ArrayDataset, shards: Path) -> None:
    table = Table.from_dict({"image": [base[i][0] for i in range(N)], "label": [base[i][1] for i in range(N)]})
    mixed = CounterfactualDataset(table.cast_column("image", Picture()), shards, p=1.0)
    assert set(mixed[0]) == {"image", "label"}
    assert mixed.column_names == ["image", "label"]
    for name in ("shuffle", "filter", "with_transform", "train_test_split"):
        with pytest.raises(AttributeError, match="makes one without counterfactuals: call it before wrapping"):
            getattr(mixed, name)
    mixed.set_transform(lambda batch: {"label": batch["label"]})
    assert set(mixed.base[0]) == {"label"}


def test_an_index_is_one_number(base: ArrayDataset, shards: Path) -> None:
    mixed = CounterfactualDataset(base, shards)
    assert mixed[np.int64(3)][1] == mixed[torch.tensor(3)][1] == base[3][1]
    for wrong in (slice(0, 3), "label", 1.0, [1, 2]):
        with pytest.raises(TypeError, match="expected the index of one item"):
            mixed[wrong]  # type: ignore[index]
    assert "policy='replace', p=0.5" in repr(mixed)
    assert "40 of 40 images have samples" in repr(mixed)


def test_quiet_when_everything_matches(base: ArrayDataset, shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        CounterfactualDataset(base, shards, p=0.5, null_p=0.2)
    assert caplog.text == ""


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loop_that_never_sets_the_epoch_is_told_once(
    shards: Path, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    data = source(transform=v2.PILToTensor())
    for forgets, p in ((True, 0.5), (False, 0.5), (False, 0.0)):
        caplog.clear()
        # torch's Subset reads batches
        mixed = CounterfactualDataset(data if workers else Subset(data, range(N)), shards, p=p)
        for epoch in range(6):
            if not forgets and p:
                mixed.set_epoch(epoch)
            list(DataLoader(mixed, 8, num_workers=workers))
            assert bool(mixed._shared()[TOLD]) == (forgets and epoch >= FORGOTTEN)  # by the items, not by the batches
        assert bool(mixed._shared()[TOLD]) == forgets  # in whichever process
        if not workers:
            assert caplog.text.count("set_epoch was never called") == forgets
