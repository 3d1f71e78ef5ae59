"""The draw depends on (seed, epoch, index) alone; the label and the types are the base's; what is wrong is one line."""

from __future__ import annotations

import copy
import logging
import multiprocessing
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from helpers.coloured_shards import N, source, write
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Dataset, DistributedSampler, Subset, TensorDataset
from torchvision.transforms import v2

from cfaug.data import ArrayDataset
from cfaug.errors import ShardError, UsageError
from cfaug.learn import CounterfactualDataset, RandomCounterfactual
from cfaug.learn.albumentations import RandomCounterfactual as Twin
from cfaug.learn.albumentations import SeededAugmentation
from cfaug.train.in_memory import materialise


def test_p_zero_is_the_base_untouched(base: ArrayDataset, shards: Path) -> None:
    mixed = CounterfactualDataset(base, shards, p=0.0)
    for i in range(N):
        image, target = mixed[i]
        assert np.array_equal(np.asarray(image), base.image(i))
        assert target == base[i][1]


def test_each_kind_is_what_its_provenance_says(base: ArrayDataset, shards: Path) -> None:
    mixed = CounterfactualDataset(base, shards, p=0.4, null_p=0.3, seed=3)
    seen = set()
    for i in range(N):
        draw, image = mixed.provenance(i), np.asarray(mixed[i][0])
        seen.add(draw.kind)
        if draw.kind == "real":
            assert draw.row is None
            assert np.array_equal(image, base.image(i))
            assert mixed.attributes(i) == dict(base.table.iloc[i])
        else:
            assert draw.row is not None
            record = mixed.reader.record(draw.row)
            assert record["source_key"] == base.key(i)  # the same source, never another image
            assert (record["do"] == {}) == (draw.kind == "null")
            assert np.array_equal(image, mixed.reader.image(draw.row))
            assert mixed.attributes(i) == record["attributes"]
        assert mixed[i][1] == base[i][1]
    assert seen == {"real", "counterfactual", "null"}


def test_fractions_are_those_asked_for(base: ArrayDataset, shards: Path) -> None:
    mixed = CounterfactualDataset(base, shards, p=0.5, null_p=0.2)
    kinds = np.concatenate([mixed.draws(epoch)[0] for epoch in range(200)])
    share = np.bincount(kinds, minlength=3) / len(kinds)
    assert share == pytest.approx([0.3, 0.5, 0.2], abs=0.02)
    rows = np.concatenate(
        [mixed.draws(epoch)[1][kinds_ == 1] for epoch in range(200) for kinds_ in [mixed.draws(epoch)[0]]]
    )
    replicas = np.bincount(rows % 3, minlength=3) / len(rows)
    assert replicas == pytest.approx([0.5, 0.5, 0.0], abs=0.03)  # uniform over its counterfactuals


def test_the_draw_is_a_function_of_seed_epoch_and_index(base: ArrayDataset, shards: Path) -> None:
    first, again = (CounterfactualDataset(base, shards, p=0.5, seed=1) for _ in range(2))
    for epoch in (5, 0, 5):
        assert np.array_equal(first.draws(epoch)[1], again.draws(epoch)[1])
    assert not np.array_equal(first.draws(0)[1], first.draws(1)[1])
    assert not np.array_equal(first.draws(0)[1], CounterfactualDataset(base, shards, seed=2).draws(0)[1])
    assert first.provenance(3, epoch=9) == again.provenance(3, epoch=9)


def rows_of(loader: DataLoader) -> list[int]:
    return torch.cat([images.flatten(1)[:, 0] for images, _ in loader]).tolist()


@pytest.mark.parametrize(("workers", "start"), [(2, "fork"), (1, "spawn")])
def test_workers_change_nothing_and_see_the_epoch(shards: Path, workers: int, start: str) -> None:
    mixed = CounterfactualDataset(source(transform=v2.PILToTensor()), shards, p=0.5)
    context = multiprocessing.get_context(start)
    loader = DataLoader(mixed, 8, num_workers=workers, persistent_workers=True, multiprocessing_context=context)
    alone = CounterfactualDataset(source(transform=v2.PILToTensor()), shards, p=0.5)
    for epoch in (0, 1):
        mixed.set_epoch(epoch)
        alone.set_epoch(epoch)
        assert rows_of(loader) == rows_of(DataLoader(alone, 8))


def test_ranks_draw_what_one_process_draws(shards: Path) -> None:
    alone = CounterfactualDataset(source(transform=v2.PILToTensor()), shards, p=0.5)
    for epoch in (0, 1):
        indices: list[int] = []
        rows: list[int] = []
        for rank in (0, 1):
            own = CounterfactualDataset(source(transform=v2.PILToTensor()), shards, p=0.5)
            sampler: DistributedSampler[Any] = DistributedSampler(own, num_replicas=2, rank=rank)
            for epochs in (own, sampler):
                epochs.set_epoch(epoch)
            indices += sampler
            rows += rows_of(DataLoader(own, 8, sampler=sampler))
        alone.set_epoch(epoch)
        assert sorted(indices) == list(range(N))
        assert [row for _, row in sorted(zip(indices, rows))] == rows_of(DataLoader(alone, 8))


def test_the_bases_transform_is_applied_after_the_swap(shards: Path) -> None:
    seen: list[tuple[int, int, int]] = []

    def transform(image: Image.Image) -> torch.Tensor:
        assert isinstance(image, Image.Image)
        seen.append(np.asarray(image)[0, 0].tolist())
        return v2.functional.pil_to_tensor(image).float() / 255

    mixed = CounterfactualDataset(source(transform=transform), shards, p=1.0)
    item = mixed[0]
    assert item[0].dtype == torch.float32
    assert item[0].shape == (3, 8, 8)
    assert seen[-1] in ([1, 1, 1], [11, 11, 11])


class Triples:
    """A base of uint8 tensors, three fields a sample, no key: matched by its pixels."""

    def __init__(self, data: ArrayDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int, str]:
        return torch.from_numpy(self.data.image(i)).permute(2, 0, 1), self.data[i][1], f"note {i}"


def test_other_bases_keep_their_structure(base: ArrayDataset, shards: Path) -> None:
    mixed = CounterfactualDataset(Triples(base), shards, p=1.0)
    image, target, note = mixed[5]
    assert image.dtype == torch.uint8
    assert image.shape == (3, 8, 8)
    assert (target, note) == (base[5][1], "note 5")
    part = CounterfactualDataset(Subset(base, [7, 3]), shards, p=1.0)
    assert part.reader.record(part.provenance(1).row or 0)["source_key"] == base.key(3)
    assert isinstance(part[1][0], Image.Image)


def test_materialised_mixture_shows_the_same(base: ArrayDataset, shards: Path) -> None:
    mixed = CounterfactualDataset(base, shards, p=0.5, null_p=0.2, seed=4)
    fast = materialise(mixed, groups=lambda table: (table["colour"] == "red").to_numpy().astype(np.int64))
    for epoch in (0, 3):
        mixed.set_epoch(epoch)
        images, targets, groups = next(iter(fast.batches(epoch, [torch.arange(N)])))
        assert groups is not None
        for i in range(N):
            assert np.array_equal(images[i].permute(1, 2, 0).numpy(), np.asarray(mixed[i][0]))
            assert int(groups[i]) == (mixed.attributes(i)["colour"] == "red")
            assert int(targets[i]) == mixed[i][1]


def test_a_source_without_samples_stays_real(
    base: ArrayDataset, make: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    mixed = CounterfactualDataset(base, make(base, every=2), p=1.0)
    assert [mixed.provenance(i).kind for i in range(4)] == ["counterfactual", "real"] * 2
    assert "20 of 40 images have no counterfactual sample" in caplog.text


def test_pickles_and_copies(base: ArrayDataset, shards: Path) -> None:
    mixed = CounterfactualDataset(base, shards, p=0.5)
    for twin in (pickle.loads(pickle.dumps(mixed)), copy.deepcopy(mixed)):
        assert np.array_equal(twin.draws(2)[1], mixed.draws(2)[1])


def test_bases_that_cannot_be_wrapped(base: ArrayDataset, shards: Path) -> None:
    with pytest.raises(UsageError, match="iterables have no index"):
        CounterfactualDataset(iter([1]), shards)
    floats = TensorDataset(torch.rand(N, 3, 8, 8), torch.arange(N) % 2)
    with pytest.raises(UsageError, match="pass transform="):
        CounterfactualDataset(floats, shards, key=base.key)
    given = CounterfactualDataset(
        floats,
        shards,
        p=1.0,
        key=base.key,
        transform=v2.Compose([v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]),
    )
    assert given[0][0].dtype == torch.float32


def test_a_checkpoint_continues_in_its_epoch(base: ArrayDataset, shards: Path) -> None:
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
    with pytest.raises(UsageError, match="expected shards="):
        again.load_state_dict({**state, "shards": "0" * 64})
    with pytest.raises(UsageError, match="state: expected epoch, seed"):
        again.load_state_dict({"epoch": 1})


def test_materialise_needs_fixed_labels(base: ArrayDataset, shards: Path) -> None:
    with pytest.raises(UsageError, match="materialise: expected policy replace or groups"):
        materialise(CounterfactualDataset(base, shards, policy="append"))


def test_a_base_that_reads_batches_goes_on_doing_so(shards: Path) -> None:
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


def test_no_empty_batch_is_asked_of_the_base(shards: Path) -> None:
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


def test_a_shard_that_goes_away_is_one_line(tmp_path: Path) -> None:
    data = source(transform=v2.PILToTensor())
    mixed = CounterfactualDataset(data, write(tmp_path / "shards", data), p=1.0)
    (tmp_path / "shards" / "cf-train-000000.tar").unlink()
    expected = mixed[0]  # this process has the shard open: it goes on with the bytes it knows
    elsewhere = pickle.loads(pickle.dumps(mixed))  # a worker that is spawned has not
    with pytest.raises(ShardError, match=r"cf-train-000000\.tar, sample 'train-00000.-.'") as told:
        elsewhere[0]
    assert "\n" not in str(told.value)
    with pytest.raises(ShardError, match=r"cf-train-000000\.tar"):
        list(DataLoader(elsewhere, 8, num_workers=1))
    assert torch.equal(mixed[0][0], expected[0])


def numbers(image: torch.Tensor) -> Any:
    """What a transform drew, in the image's place."""
    drawn = [float(torch.rand(1)), float(np.random.random()), random.random()]
    return torch.cat([image.flatten()[:1].float(), torch.tensor(drawn)])


def test_both_of_a_pair_are_transformed_alike(shards: Path) -> None:
    mixed = CounterfactualDataset(
        source(transform=v2.Compose([v2.PILToTensor(), numbers])), shards, policy="pairs", null_p=0.2
    )
    pairs = [mixed[i] for i in range(N)]
    assert all(torch.equal(one[0][1:], other[0][1:]) for one, other in pairs)
    assert len({tuple(one[0][1:].tolist()) for one, _ in pairs}) == N  # and each pair otherwise
    assert all(float(other[0][0]) in (1, 11, 21) for _, other in pairs)


class Around(Dataset[Any]):
    """A class of a user's own around a data set."""

    def __init__(self, inner: Any, transform: Any = None) -> None:
        self.inner, self.transform = inner, transform

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, i: int) -> Any:
        image, label = self.inner[i]
        return (image if self.transform is None else self.transform(image)), label


def test_a_wrapped_base_is_not_wrapped_again(base: ArrayDataset, shards: Path) -> None:
    wrapped = CounterfactualDataset(base, shards)
    for again in (wrapped, Subset(wrapped, [0, 1]), ConcatDataset([wrapped, wrapped]), Around(Subset(wrapped, [0]))):
        with pytest.raises(UsageError, match="wrapped already"):
            CounterfactualDataset(again, shards)


def test_a_base_that_swaps_in_its_transform_is_refused(base: ArrayDataset, shards: Path) -> None:
    import albumentations as A

    swap = RandomCounterfactual(shards)
    inside = source(transform=v2.Compose([v2.Compose([swap]), v2.PILToTensor()]))
    albumented = SeededAugmentation(base, A.Compose([A.OneOf([Twin(shards)])]))
    for dataset in (Around(base, swap), inside, Subset(Around(inside), [0]), albumented):
        with pytest.raises(UsageError, match="images would be swapped twice"):
            CounterfactualDataset(dataset, shards)
    with pytest.raises(UsageError, match="images would be swapped twice"):
        CounterfactualDataset(base, shards, transform=v2.Compose([swap]))
    CounterfactualDataset(Around(base, v2.Compose([v2.PILToTensor()])), shards)


def test_values_of_the_base_are_read_and_methods_are_not(base: ArrayDataset, shards: Path) -> None:
    mixed = CounterfactualDataset(base, shards)
    assert mixed.schema is base.schema
    assert mixed.images is base.images
    longer = CounterfactualDataset(base, shards, policy="append")
    with pytest.raises(AttributeError, match="one value for each of its 40 items, not for 60"):
        _ = longer.images
    with pytest.raises(AttributeError, match="nothing_of_this"):
        _ = mixed.nothing_of_this
    rows = datasets.Dataset.from_dict({"image": [base[i][0] for i in range(N)], "label": [i % 2 for i in range(N)]})
    mixed = CounterfactualDataset(rows.cast_column("image", datasets.Image()), shards, p=1.0)
    assert (set(mixed[0]), mixed.column_names) == ({"image", "label"}, ["image", "label"])
    with pytest.raises(AttributeError, match=r"knows no counterfactuals: call .base.shuffle"):
        mixed.shuffle()


def test_attributes_are_set_on_the_base(shards: Path) -> None:
    mixed = CounterfactualDataset(source(transform=v2.PILToTensor()), shards, p=0.5)
    with pytest.raises(AttributeError, match=r"'transform' is an attribute of the base: set .base.transform"):
        mixed.transform = None
    mixed.base.transform = v2.Compose([v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)])
    assert {mixed[i][0].dtype for i in range(N)} == {torch.float32}  # real and swapped alike
    mixed.note = "mine"
    assert not hasattr(mixed.base, "note")


def test_a_loop_that_never_sets_the_epoch_is_told_once(shards: Path, caplog: Any) -> None:
    data = source(transform=v2.PILToTensor())
    for forgets, p in ((True, 0.5), (False, 0.5), (False, 0.0)):
        caplog.clear()
        mixed = CounterfactualDataset(Subset(data, range(N)), shards, p=p)
        for epoch in range(6):
            if not forgets and p:
                mixed.set_epoch(epoch)
            if epoch == 3:
                assert caplog.text == ""  # three looks at the data are no training yet
            list(DataLoader(mixed, 8))
        assert caplog.text.count("set_epoch was never called") == forgets


def test_the_epoch_reaches_a_mixture_inside(base: ArrayDataset, shards: Path) -> None:
    mixed = CounterfactualDataset(base, shards)
    deep = ConcatDataset([base, Subset(Subset(mixed, range(10)), range(5))])
    SeededAugmentation(deep, Twin(shards)).set_epoch(4)
    assert mixed.epoch == 4
