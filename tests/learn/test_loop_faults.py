"""What training loops get wrong without an error of their own: an order that changes, epochs that nobody sets, two draws for one pair."""

from __future__ import annotations

import logging
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import albumentations as A
import numpy as np
import pytest
import torch
from helpers.coloured_shards import N, source
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from cfaug.data import ArrayDataset
from cfaug.errors import DataError, UsageError
from cfaug.learn import CounterfactualDataset, CounterfactualStream, MixingCollate
from cfaug.learn import dataset as mixing
from cfaug.learn.albumentations import SeededAugmentation


class Ordered(Dataset[Any]):
    """Images in an order of its own, which it may change; they have no names."""

    def __init__(self, data: ArrayDataset, anew: bool = False) -> None:
        self.images, self.transform, self.anew = data.images, v2.PILToTensor(), anew
        self.order = np.arange(len(data))

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        at = int(self.order[i])
        torch.rand(1)  # whatever a data set draws
        return self.transform(Image.fromarray(self.images[at])), at % 2

    def set_epoch(self, epoch: int) -> None:
        if self.anew:
            self.order = np.random.default_rng(epoch).permutation(len(self))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_order_that_changes_after_wrapping_is_refused(base: ArrayDataset, shards: Path, workers: int) -> None:
    mixed = CounterfactualDataset(Ordered(base, anew=True), shards, p=1.0)
    mixed.set_epoch(1)  # reaches the base, which shuffles itself
    with pytest.raises(DataError, match="it was reordered since: wrap it again"):
        list(DataLoader(mixed, 8, num_workers=workers))


def test_an_order_that_stays_is_looked_at_once_an_epoch(
    base: ArrayDataset, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Ordered(base)
    mixed = CounterfactualDataset(data, shards, p=1.0)
    seen, picture = [], type(mixed.opened).picture
    monkeypatch.setattr(type(mixed.opened), "picture", lambda self, i: seen.append(i) or picture(self, i))
    after = []
    for epoch in range(3):
        mixed.set_epoch(epoch)
        torch.manual_seed(0)
        for i in range(N):
            mixed[i]
            after.append(float(torch.rand(1)))
    assert len(seen) == 3 * 8
    assert after[:N] == after[N : 2 * N] == after[2 * N :]
    torch.manual_seed(0)
    assert after[:N] == [float(torch.rand(2)[1]) for _ in range(N)]  # one draw an item, none for looking
    data.order = data.order[::-1]
    mixed[0]  # within an epoch nobody looks
    mixed.set_epoch(3)
    with pytest.raises(DataError, match="reordered since"):
        mixed[0]


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


def forgetful(kind: str, base: ArrayDataset, shards: Path) -> tuple[Any, Callable[[], Any]]:
    if kind == "albumentations":
        data = SeededAugmentation(base, A.Compose([A.HorizontalFlip()]))
        return data, lambda: [data[i] for i in range(N)]
    collate = MixingCollate(shards, transform=v2.PILToTensor())
    return collate, lambda: [collate([base[i] for i in range(first, first + 8)]) for first in range(0, N, 8)]


@pytest.mark.parametrize("kind", ["albumentations", "collate"])
def test_whoever_never_sets_the_epoch_is_told_once(
    kind: str, base: ArrayDataset, shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    thing, passed = forgetful(kind, base, shards)
    for _ in range(3):
        passed()
    assert caplog.text == ""  # three looks at the data are no training yet
    for _ in range(3):
        passed()
    assert caplog.text.count("set_epoch was never called") == 1
    assert type(thing).__name__ in caplog.text
    caplog.clear()
    thing, passed = forgetful(kind, base, shards)
    for epoch in range(6):
        thing.set_epoch(epoch)
        passed()
    assert caplog.text == ""


def test_forgetting_is_noticed_over_all_workers(base: ArrayDataset, shards: Path) -> None:
    collate = MixingCollate(shards, transform=v2.PILToTensor())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.getLogger("cfaug.learn.epochs"), "disabled", True)
        for _ in range(5):  # workers are new in every epoch, and remember nothing themselves
            list(DataLoader(base, 8, shuffle=True, num_workers=2, collate_fn=collate))
    assert collate._shared()[3]


class Sample(NamedTuple):
    image: Any
    label: int
    note: str


def test_mixing_keeps_named_tuples(base: ArrayDataset, shards: Path) -> None:
    samples = [Sample(base[i][0], i, f"note {i}") for i in range(8)]
    batch = MixingCollate(shards, p=1.0, transform=v2.PILToTensor())(samples)
    assert (type(batch).__name__, batch.label.tolist(), batch.note[3]) == ("Sample", list(range(8)), "note 3")
    assert set(batch.image.flatten(1)[:, 0].tolist()) <= {1, 11}


def test_what_counts_items_is_not_the_bases_under_append(base: ArrayDataset, shards: Path) -> None:
    import datasets

    rows = datasets.Dataset.from_dict({"image": [base[i][0] for i in range(N)], "label": [i % 2 for i in range(N)]})
    rows = rows.cast_column("image", datasets.Image())
    mixed = CounterfactualDataset(rows, shards, policy="append")
    for name in ("num_rows", "shape"):
        assert getattr(CounterfactualDataset(rows, shards), name) == getattr(rows, name)
        with pytest.raises(
            AttributeError, match=f"{name!r} of the base is of its 40 items, policy 'append' has {len(mixed)}"
        ):
            getattr(mixed, name)


def test_a_world_is_whole(shards: Path) -> None:
    for world, rank in ((1.5, 0), (0, 0), (2, 0.5), (True, 0)):
        with pytest.raises(UsageError, match="expected a whole number"):
            CounterfactualStream(shards, 8, classes=["a"], world=world, rank=rank)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="rank: expected 0 to world - 1"):
        CounterfactualStream(shards, 8, classes=["a"], world=2, rank=2)


@pytest.mark.parametrize("spawned", [False, True])
def test_a_rank_that_is_given_its_share_is_told_as_soon(
    spawned: bool, base: ArrayDataset, shards: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mixed = CounterfactualDataset(base, shards)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.distributed, "is_initialized", lambda: True)
        patch.setattr(torch.distributed, "get_world_size", lambda: 4)
        if spawned:  # what a worker is sent knows the ranks, which it cannot ask for
            mixed = pickle.loads(pickle.dumps(mixed))
        else:
            for _ in range(4):
                for i in range(N // 4):
                    mixed[i]
    for _ in range(4 * spawned):
        for i in range(N // 4):
            mixed[i]
    assert caplog.text.count("set_epoch was never called") == 1


def test_a_stream_in_a_loader_of_ones_own_is_told_too(shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    stream = CounterfactualStream(shards, 8, item=lambda sample: sample.key)
    for _ in range(5):
        list(stream.loader())
    assert caplog.text == ""  # its own loader counts the epochs
    stream = CounterfactualStream(shards, 8, item=lambda sample: sample.key)
    for _ in range(5):
        list(DataLoader(stream, batch_size=None))
    assert caplog.text.count("CounterfactualStream has shown") == 1


def test_an_order_that_changes_within_an_epoch_is_noticed_in_time(
    base: ArrayDataset, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixing, "LOOK_AGAIN", 10)
    data = Ordered(base)
    mixed = CounterfactualDataset(data, shards, p=1.0)
    for i in range(5):
        mixed[i]
    data.order = np.roll(data.order, 1)
    for i in range(5):
        mixed[i]
    with pytest.raises(DataError, match="reordered since"):
        mixed[5]


def test_what_does_not_fit_is_one_line(base: ArrayDataset, shards: Path) -> None:
    mixed = CounterfactualDataset(base, shards, policy="pairs")
    with pytest.raises(UsageError, match="epoch: expected at most"):
        mixed.set_epoch(1 << 63)
    with pytest.raises(UsageError, match=r"came one item in another \(policy 'pairs'"):
        SeededAugmentation(mixed, A.Compose([A.HorizontalFlip()]))[0]
    stream = CounterfactualStream(shards, 8, item=lambda sample: sample.key)
    for name in ("sampler", "batch_sampler"):
        with pytest.raises(UsageError, match=f"{name}: expected none in loader"):
            stream.loader(**{name: [1]})


class Drawn(A.ImageOnlyTransform):  # type: ignore[misc]
    """The image becomes the number that is drawn."""

    def get_params(self) -> dict[str, Any]:
        return {"number": self.py_random.random()}

    def apply(self, img: Any, *args: Any, number: float = 0.0, **params: Any) -> Any:
        return np.full((1, 1), number)


def test_albumentations_below_pairs_draw_once_a_pair(base: ArrayDataset, shards: Path) -> None:
    pairs = CounterfactualDataset(SeededAugmentation(base, A.Compose([Drawn(p=1.0)])), shards, policy="pairs")
    shown = [(float(one[0][0, 0]), float(other[0][0, 0])) for one, other in map(pairs.__getitem__, range(N))]
    assert all(one == other for one, other in shown)
    assert len(set(shown)) == N
