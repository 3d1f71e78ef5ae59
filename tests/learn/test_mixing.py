"""The draw depends on (seed, epoch, index) alone; the label and the types are the base's; nothing crosses the split."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.coloured_shards import N, source
from PIL import Image
from torch.utils.data import DataLoader, Subset, TensorDataset
from torchvision.transforms import v2

from cfaug.data import ArrayDataset
from cfaug.errors import DataError, UsageError
from cfaug.learn import CounterfactualDataset
from cfaug.offline.read import ShardReader
from cfaug.train.in_memory import _same_shape


def pixel(item: tuple) -> int:
    image = item[0]
    return int(np.asarray(image).flat[0]) if isinstance(image, Image.Image) else int(image.flatten()[0])


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


def test_draw_is_a_pure_function_and_moves_with_seed_and_epoch(base: ArrayDataset, shards: Path) -> None:
    first, again = (CounterfactualDataset(base, shards, p=0.5, seed=1) for _ in range(2))
    for epoch in (5, 0, 5):
        assert np.array_equal(first.draws(epoch)[1], again.draws(epoch)[1])
    assert not np.array_equal(first.draws(0)[1], first.draws(1)[1])
    assert not np.array_equal(first.draws(0)[1], CounterfactualDataset(base, shards, seed=2).draws(0)[1])
    assert first.provenance(3, epoch=9) == again.provenance(3, epoch=9)


def rows_of(loader: DataLoader) -> list[int]:
    return torch.cat([images.flatten(1)[:, 0] for images, _ in loader]).tolist()


@pytest.mark.parametrize(("workers", "start"), [(1, "fork"), (2, "spawn")])
def test_worker_count_changes_nothing_and_epochs_reach_persistent_workers(
    shards: Path, workers: int, start: str
) -> None:
    mixed = CounterfactualDataset(source(transform=v2.PILToTensor()), shards, p=0.5)
    context = multiprocessing.get_context(start)
    loader = DataLoader(mixed, 8, num_workers=workers, persistent_workers=True, multiprocessing_context=context)
    alone = CounterfactualDataset(source(transform=v2.PILToTensor()), shards, p=0.5)
    for epoch in (0, 1):
        mixed.set_epoch(epoch)
        alone.set_epoch(epoch)
        assert rows_of(loader) == rows_of(DataLoader(alone, 8))


def test_transform_of_the_base_is_applied_after_the_swap(shards: Path) -> None:
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
    fast = mixed.materialise(groups=lambda table: (table["colour"] == "red").to_numpy().astype(np.int64))
    for epoch in (0, 3):
        mixed.set_epoch(epoch)
        images, targets, groups = next(iter(fast.batches(epoch, [torch.arange(N)])))
        assert groups is not None
        for i in range(N):
            assert np.array_equal(images[i].permute(1, 2, 0).numpy(), np.asarray(mixed[i][0]))
            assert int(groups[i]) == (mixed.attributes(i)["colour"] == "red")
            assert int(targets[i]) == mixed[i][1]


def test_attributes_below_a_subset_and_grey_samples_in_memory(base: ArrayDataset, shards: Path) -> None:
    part = CounterfactualDataset(Subset(base, [7, 2]), shards, p=0.0)
    assert [part.attributes(i) for i in range(2)] == [dict(base.table.iloc[i]) for i in (7, 2)]
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3, 1)
    made = _same_shape(grey, np.zeros((2, 3, 3), np.uint8), "here")
    assert np.array_equal(made, np.broadcast_to(grey, (2, 3, 3)))
    with pytest.raises(DataError, match="here: expected an image of shape"):
        _same_shape(grey, np.zeros((3, 2, 3), np.uint8), "here")


def test_a_source_without_samples_stays_real_and_is_told(
    base: ArrayDataset, make: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    mixed = CounterfactualDataset(base, make(base, every=2), p=1.0)
    assert [mixed.provenance(i).kind for i in range(4)] == ["counterfactual", "real"] * 2
    assert "20 of 40 images have no counterfactual sample" in caplog.text


def test_pickles_and_copies(base: ArrayDataset, shards: Path) -> None:
    mixed = CounterfactualDataset(base, shards, p=0.5)
    for twin in (pickle.loads(pickle.dumps(mixed)), copy.deepcopy(mixed)):
        assert np.array_equal(twin.draws(2)[1], mixed.draws(2)[1])


@pytest.mark.parametrize(
    ("p", "null_p", "says"), [(1.5, 0, "p: expected"), (0.5, -0.1, "null_p"), (0.7, 0.7, "at most 1")]
)
def test_bad_probabilities(base: ArrayDataset, shards: Path, p: float, null_p: float, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        CounterfactualDataset(base, shards, p=p, null_p=null_p)


def test_a_sample_of_another_split_is_refused_by_name(make: Callable[..., Path]) -> None:
    test_images = source("test")
    with pytest.raises(DataError, match=r"sample 'test-000000-0' of split 'test'"):
        CounterfactualDataset(source(), make(test_images))


def test_nothing_matches_says_why(base: ArrayDataset, shards: Path) -> None:
    with pytest.raises(DataError, match="first key is 'x0', the shards' first source key 'train-00'"):
        CounterfactualDataset(base, shards, key=lambda i: f"x{i}")
    with pytest.raises(DataError, match="no image has the pixels"):
        CounterfactualDataset(Triples(source(seed=9)), shards)


def test_other_pixels_under_the_same_keys_are_refused(shards: Path) -> None:
    with pytest.raises(DataError, match="'train-00' differs from the source"):
        CounterfactualDataset(source(seed=9), shards)


def test_no_sample_of_the_kind_asked_for(base: ArrayDataset, make: Callable[..., Path]) -> None:
    directory = make(base, kinds=("cf",))
    with pytest.raises(DataError, match="expected null samples"):
        CounterfactualDataset(base, directory, p=0.5, null_p=0.5)


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


def test_a_reader_is_accepted(base: ArrayDataset, shards: Path) -> None:
    assert len(CounterfactualDataset(base, ShardReader(shards))) == N
