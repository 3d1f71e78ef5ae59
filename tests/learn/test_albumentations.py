"""The albumentations twin, and streams that DataLoader workers do not repeat (bare albumentations does)."""

from __future__ import annotations

import pickle
import random
from collections import Counter, namedtuple
from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
import pytest
import torch
from helpers.coloured_shards import N, source
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from cfaug.data import ArrayDataset
from cfaug.learn import CounterfactualDataset
from cfaug.learn.albumentations import RandomCounterfactual, SeededAugmentation, reseed

COUNTERFACTUALS = {1, 11}
Named = namedtuple("Named", "image target")


def drawn(image: Any) -> int:
    (value,) = np.unique(np.asarray(image)).tolist()
    return int(value)


class Shown(A.ImageOnlyTransform):  # type: ignore[misc]
    """Shows what a transform draws: the image becomes the eight bytes of one number of each generator."""

    def get_params(self) -> dict[str, Any]:
        return {"drawn": np.array([self.py_random.random(), self.random_generator.random()])}

    def apply(self, img: Any, *args: Any, drawn: Any = None, **params: Any) -> Any:
        return np.concatenate([img.reshape(-1)[:-16], drawn.view(np.uint8)]).reshape(img.shape)


class Applying(Dataset[Any]):
    """How people's data sets use albumentations."""

    def __init__(self, base: Any, transform: Any) -> None:
        self.base, self.transform = base, transform

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, i: int) -> Any:
        return self.transform(image=np.asarray(self.base[i][0]))["image"], i


def stream(data: Any, workers: int, epochs: int = 2, **kwargs: Any) -> dict[tuple[int, int], bytes]:
    """(epoch, index) -> the numbers drawn for it."""
    loader: DataLoader[Any] = DataLoader(data, batch_size=2, num_workers=workers, **kwargs)
    found = {}
    for epoch in range(epochs):
        if hasattr(data, "set_epoch"):
            data.set_epoch(epoch)
        for images, indices in loader:
            for image, i in zip(images.numpy(), indices.tolist(), strict=True):
                found[epoch, i] = image.reshape(-1)[-16:].tobytes()
    return found


@pytest.fixture
def numbered(base: ArrayDataset) -> list[tuple[Image.Image, int]]:
    return [(base[i][0], i) for i in range(N)]


def test_bare_albumentations_repeats_its_stream(numbered: Any) -> None:
    found = stream(Applying(numbered, A.Compose([Shown(p=1.0)], seed=0)), workers=2)
    # two workers and two epochs: every number four times
    assert set(Counter(found.values()).values()) == {4}


@pytest.mark.parametrize("inside", [False, True])
def test_repaired_streams(numbered: Any, inside: bool) -> None:
    compose = A.Compose([Shown(p=1.0)], seed=0)

    def data(seed: int = 0) -> SeededAugmentation:
        return SeededAugmentation(Applying(numbered, compose) if inside else numbered, compose, seed, inside=inside)

    found = stream(data(), workers=0)
    assert len(set(found.values())) == len(found) == 2 * N
    assert stream(data(), workers=2) == found
    assert stream(data(), workers=2, persistent_workers=True) == found
    assert not set(stream(data(1), workers=0).values()) & set(found.values())
    # the order in which samples are asked for does not matter
    backwards = data()
    assert [bytes(np.asarray(backwards[i][0]).reshape(-1)[-16:]) for i in (7, 3, -1)] == [
        found[0, 7], found[0, 3], found[0, N - 1],
    ]  # fmt: skip


@pytest.mark.slow
def test_spawned_persistent_workers(numbered: Any, shards: Path) -> None:
    def pipeline() -> tuple[RandomCounterfactual, SeededAugmentation]:
        swap = RandomCounterfactual(shards, p=0.5)
        return swap, SeededAugmentation(numbered, A.Compose([swap, Shown(p=1.0)]))

    (swap, data), (other, same) = pipeline(), pipeline()
    spawned = stream(data, workers=2, persistent_workers=True, multiprocessing_context="spawn")
    assert spawned == stream(same, workers=0)
    assert (swap.seen, swap.matched) == (2 * N, 2 * N)
    assert swap.swapped == other.swapped > 20


def test_transforms_of_one_pipeline_do_not_draw_the_same_numbers() -> None:
    """With Compose.set_random_seed once a sample both flips fire or none; every pair has to occur."""
    image = np.arange(9, dtype=np.uint8).reshape(3, 3)
    flips = A.Compose([A.HorizontalFlip(p=0.5), A.Sequential([A.VerticalFlip(p=0.5)], p=1.0)])
    bare, found = set(), Counter()
    for i in range(400):
        flips.set_random_seed(i)
        bare.add(int(flips(image=image)["image"][0, 0]))
    assert bare == {0, 8}  # the fault that the repair must not have
    for i in range(400):
        reseed(flips, random.Random(), 0, 0, i)
        found[int(flips(image=image)["image"][0, 0])] += 1
    assert set(found) == {0, 2, 6, 8}
    assert min(found.values()) > 65  # 100 expected, four standard deviations are 35


def test_counterfactuals_inside(base: ArrayDataset, shards: Path) -> None:
    inner = CounterfactualDataset(base, shards, p=0.5)
    data = SeededAugmentation(inner, A.Compose([A.HorizontalFlip(p=0.5)]))
    plain = CounterfactualDataset(base, shards, p=0.5)
    for epoch in range(2):
        data.set_epoch(epoch)
        plain.set_epoch(epoch)
        for i in range(N):
            image, target = data[i]
            real, label = plain[i]
            assert target == label
            assert any(np.array_equal(image, side) for side in (np.asarray(real), np.asarray(real)[:, ::-1]))
    assert inner.epoch == 1


def test_items_keep_their_structure(base: ArrayDataset) -> None:
    flip = A.Compose([A.HorizontalFlip(p=1.0)])
    picture = base[0][0]
    flipped = np.asarray(picture)[:, ::-1]
    tensor = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    for item in ((picture, 3), [picture, 3], Named(picture, 3), (tensor, 3), (np.asarray(picture), 3, "text")):
        (made,) = SeededAugmentation([item], flip)
        assert type(made) is type(item)
        assert np.array_equal(made[0], flipped)
        assert list(made[1:]) == list(item[1:])
    assert np.array_equal(SeededAugmentation([picture], flip)[0], flipped)
    mask = np.arange(64, dtype=np.uint8).reshape(8, 8)
    out = SeededAugmentation([{"image": picture, "mask": Image.fromarray(mask), "label": 5}], flip)[0]
    assert np.array_equal(out["image"], flipped)
    assert np.array_equal(out["mask"], mask[:, ::-1])
    assert (out["label"], list(out)) == (5, ["image", "mask", "label"])
    out = SeededAugmentation([{"img": picture, "label": 5}], flip, image_key="img")[0]
    assert np.array_equal(out["img"], flipped)


def test_swaps_known_arrays_first_in_the_compose(base: ArrayDataset, shards: Path) -> None:
    swap = RandomCounterfactual(shards, p=1.0)
    compose = A.Compose([swap, A.HorizontalFlip(p=0.5)], seed=1)
    mask = np.ones((8, 8), np.uint8)
    made = [compose(image=base.image(i % N), mask=mask) for i in range(60)]
    assert {drawn(out["image"]) for out in made} == COUNTERFACTUALS
    assert np.array_equal(made[0]["mask"], mask)
    stranger = source(seed=5).image(0)
    assert np.array_equal(swap(image=stranger)["image"], stranger)
    assert (swap.seen, swap.matched, swap.swapped) == (61, 60, 60)
    real = RandomCounterfactual(shards, p=0.0)
    assert np.array_equal(real(image=base.image(0))["image"], base.image(0))
    assert (real.seen, real.matched, real.swapped) == (1, 1, 0)
    half = A.Compose([RandomCounterfactual(shards, p=0.5)], seed=1)
    share = np.mean([len(np.unique(half(image=base.image(i % N))["image"])) == 1 for i in range(400)])
    assert 0.4 < share < 0.6
    assert half.transforms[0].seen == 400


def test_grey_arrays_keep_their_shape(shards: Path, base: ArrayDataset, tmp_path: Path) -> None:
    from helpers.coloured_shards import write

    data = ArrayDataset(base.images[..., :1], base.table, base.schema, "train")
    swap = RandomCounterfactual(write(tmp_path, data), p=1.0)
    for image in (data.image(0), data.image(0)[..., 0]):
        made = swap(image=image)["image"]
        assert (made.shape, made.dtype) == (image.shape, np.uint8)
        assert drawn(made) in COUNTERFACTUALS


def test_draws_from_albumentations_generators(base: ArrayDataset, shards: Path) -> None:
    def run(compose: Any) -> list[int]:
        compose.set_random_seed(3)
        return [int(compose(image=base.image(i))["image"].sum()) for i in range(20)]

    compose = A.Compose([RandomCounterfactual(shards, p=0.5)])
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert run(compose) == run(compose) == run(pickle.loads(pickle.dumps(compose)))
    assert torch.equal(torch.get_rng_state(), before)
    # an unknown image leaves the stream where a known one would
    swap, after = RandomCounterfactual(shards, p=0.5), []
    for image in (base.image(0), source(seed=5).image(0)):
        swap.set_random_seed(3)
        swap(image=image)
        after.append(swap.py_random.random())
    assert after[0] == after[1]


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_saved_and_restored(base: ArrayDataset, shards: Path, tmp_path: Path, form: Any) -> None:
    compose = A.Compose([RandomCounterfactual(shards, p=0.25), A.HorizontalFlip(p=0.5)], seed=0)
    A.save(compose, tmp_path / "saved", data_format=form)
    for restored in (A.load(tmp_path / "saved", data_format=form), A.from_dict(A.to_dict(compose))):
        twin = restored.transforms[0]
        assert (type(twin), twin.p, twin.guard, twin.shards) == (RandomCounterfactual, 0.25, True, str(shards))
        assert len(twin.lookup.reader) == 3 * N
        assert A.to_dict(restored)["transform"]["transforms"] == A.to_dict(compose)["transform"]["transforms"]
        shown = [twin(image=base.image(i))["image"] for i in range(N)]
        assert 2 < sum(len(np.unique(image)) == 1 for image in shown) < 20
    assert f"RandomCounterfactual(p=0.25, guard=True, null_p=0.0, shards='{shards}')" in repr(compose)


def test_replayed(base: ArrayDataset, shards: Path) -> None:
    compose = A.ReplayCompose([RandomCounterfactual(shards, p=0.5), A.HorizontalFlip(p=0.5)])
    for i in range(8):
        compose.set_random_seed(i)
        out = compose(image=base.image(i))
        again = A.ReplayCompose.replay(out["replay"], image=base.image(i))
        assert np.array_equal(again["image"], out["image"])


@pytest.mark.parametrize("workers", [0, 2])
def test_counts_in_workers(numbered: Any, shards: Path, workers: int) -> None:
    swap = RandomCounterfactual(shards, p=0.5)
    data = SeededAugmentation(numbered, A.Compose([swap]))
    images = np.concatenate([images for images, _ in DataLoader(data, batch_size=4, num_workers=workers)])
    truth = sum(len(np.unique(image)) == 1 for image in images)
    assert (swap.seen, swap.matched, swap.swapped) == (N, N, truth)
    assert 5 < truth < 35


def values(images: Any) -> list[int]:
    """The value of each image that is constant, 0 for the others."""
    return [int(image[0, 0, 0]) if len(np.unique(image)) == 1 else 0 for image in images]


def test_nulls_are_drawn_with_their_share(base: ArrayDataset, shards: Path) -> None:
    swap = RandomCounterfactual(shards, p=0.4, null_p=0.3)
    swap.set_random_seed(0)
    kinds = np.array(values(swap(image=base.image(i % N))["image"] for i in range(800)))
    share = [np.isin(kinds, kind).mean() for kind in ([1, 11], [21], [0])]
    # 800 draws: four standard errors
    assert np.abs(np.array(share) - [0.4, 0.3, 0.3]).max() < 4 * np.sqrt(0.25 / 800)
    assert (swap.seen, swap.matched, swap.swapped) == (800, 800, int((kinds > 0).sum()))


class Drawn(A.ImageOnlyTransform):  # type: ignore[misc]
    """The image becomes the number that is drawn."""

    def get_params(self) -> dict[str, Any]:
        return {"number": self.py_random.random()}

    def apply(self, img: Any, *args: Any, number: float = 0.0, **params: Any) -> Any:
        return np.full((1, 1), number)


def test_pairs_around_it_draw_once_per_pair(base: ArrayDataset, shards: Path) -> None:
    pairs = CounterfactualDataset(SeededAugmentation(base, A.Compose([Drawn(p=1.0)])), shards, policy="pairs")
    shown = [(float(one[0][0, 0]), float(other[0][0, 0])) for one, other in map(pairs.__getitem__, range(N))]
    assert all(one == other for one, other in shown)
    assert len(set(shown)) == N
