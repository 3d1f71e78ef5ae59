"""A base whose transform swaps already, wherever its RandomCounterfactual stands."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import albumentations
import datasets
import pytest
import torch
from helpers.coloured_shards import N
from PIL import Image
from torch.utils.data import Dataset, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from cfaug.data import ArrayDataset
from cfaug.errors import UsageError
from cfaug.learn import CounterfactualDataset, RandomCounterfactual
from cfaug.learn.albumentations import RandomCounterfactual as Twin
from cfaug.learn.albumentations import SeededAugmentation
from cfaug.learn.inner import has_swap


class Pictures(Dataset[Any]):
    """PIL images and labels, through a transform."""

    def __init__(self, data: ArrayDataset, transform: Any = None) -> None:
        self.items, self.transform = [data[i] for i in range(len(data))], transform

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> tuple[Image.Image, Any]:
        image, label = self.items[i]
        return image if self.transform is None else self.transform(image), label


def test_a_base_that_swaps_in_its_transform_is_refused(tmp_path: Path, base: ArrayDataset, shards: Path) -> None:
    (tmp_path / "class").mkdir()
    for i in range(2):
        base[i][0].save(tmp_path / "class" / f"{i}.png")
    swap = RandomCounterfactual(shards)
    ways = [
        ImageFolder(str(tmp_path), v2.Compose([swap, v2.ToImage()])),
        Subset(ImageFolder(str(tmp_path), torch.nn.Sequential(v2.RandomApply(torch.nn.ModuleList([swap])))), [0]),
        SeededAugmentation(Pictures(base), albumentations.Compose([albumentations.OneOf([Twin(shards)])])),
    ]
    for way in ways:
        with pytest.raises(UsageError, match="images would be swapped twice"):
            CounterfactualDataset(way, shards)
    with pytest.raises(UsageError, match="images would be swapped twice"):
        CounterfactualDataset(Pictures(base), shards, transform=v2.Compose([swap]))


class Held:
    """What people write around a transform of another library."""

    def __init__(self, first: Any) -> None:
        self.first = first

    def __call__(self, image: Any) -> Any:
        return self.first(image)

    def twice(self, image: Any) -> Any:
        return self.first(self.first(image))


def swaps_by_a_global(image: Any) -> Any:
    return calls_a_global(image)


def calls_a_global(image: Any) -> Any:
    return GLOBAL[0](image)


class CallsAGlobal:
    def __call__(self, image: Any) -> Any:
        return next(GLOBAL[0](one) for one in [image])


GLOBAL: list[Any] = []


def test_a_swap_is_seen_behind_functions_and_classes(base: ArrayDataset, shards: Path, monkeypatch: Any) -> None:
    swap, tensor = RandomCounterfactual(shards), v2.PILToTensor()
    compose = albumentations.Compose([albumentations.OneOf([Twin(shards)])])
    around: Any = Held(None)
    around.first = Held(around)  # a circle
    monkeypatch.setattr(around.first, "other", swap, raising=False)
    plain: Any = Held(v2.Compose([tensor, v2.Lambda(lambda image: image.swap)]))
    plain.first.back = plain
    monkeypatch.setitem(globals(), "swap", swap)  # a name of an attribute, and of nothing that is called
    swapping = [
        lambda image: tensor(swap(image)), v2.Compose([v2.Lambda(lambda image: swap(image)), tensor]), Held(compose), Held(swap),
        v2.Compose([Held([tensor, (swap,)])]), Held({"train": swap, "val": tensor}), partial(lambda f, image: f(image), swap),
        partial(tensor, last=swap), Held(swap).twice, lambda image, f=swap: f(image), around, torch.nn.ModuleDict({"a": swap}),
        Held(compose.transforms[0].transforms),
    ]  # fmt: skip
    assert all(map(has_swap, swapping))
    others = [
        plain, tensor, None, Held(None), lambda image: image, "train", [], Held([swap] * 65),
        Held(Pictures(base)), RandomCounterfactual,
    ]  # fmt: skip
    assert not any(map(has_swap, others))
    globals_used = [swaps_by_a_global, CallsAGlobal(), lambda image: calls_a_global(image)]
    assert not any(map(has_swap, globals_used))
    monkeypatch.setitem(globals(), "GLOBAL", [swap])
    assert all(map(has_swap, globals_used))
    columns = datasets.Dataset.from_dict({"image": [base[0][0]]}).cast_column("image", datasets.Image())
    transformed = columns.with_transform(lambda batch: {"image": [swap(image) for image in batch["image"]]})
    for data in (Pictures(base, Held(compose)), transformed):
        with pytest.raises(UsageError, match="images would be swapped twice"):
            CounterfactualDataset(data, shards)
