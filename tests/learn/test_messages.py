"""What a user can get wrong is one line that says what was expected, what came, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import albumentations
import datasets
import numpy as np
import pytest
import torch
from helpers.base_cases import SAMPLE_IMAGES, columns
from helpers.coloured_shards import N, source
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from cfaug.data import ArrayDataset
from cfaug.errors import CfaugError
from cfaug.learn import CounterfactualDataset, CounterfactualStream, MixingCollate, RandomCounterfactual
from cfaug.learn.albumentations import RandomCounterfactual as Twin
from cfaug.learn.albumentations import SeededAugmentation
from cfaug.learn.swap import open_base


class Endless(Dataset[Any]):
    def __len__(self) -> int:
        raise TypeError("no\nlen")

    def __getitem__(self, i: int) -> Any:
        return i


class Streamed(IterableDataset[Any]):
    def __iter__(self) -> Iterator[int]:
        return iter(())


def two_columns() -> Any:
    return columns(SAMPLE_IMAGES).add_column("other", [None] * 8).cast_column("other", datasets.Image())


FLIP = albumentations.Compose([albumentations.HorizontalFlip()])
BASES: list[tuple[Callable[[], Any], str]] = [
    (lambda: Streamed(), "base: expected a data set with len() and [i], got Streamed; iterables have no index"),
    (lambda: iter([1]), "iterables have no index"),
    (lambda: ImageFolder, "got the class ImageFolder itself; make one: ImageFolder(...)"),
    (lambda: Endless(), "got Endless, whose len() fails (TypeError: no len); give it a length"),
    (lambda: datasets.DatasetDict(train=columns(SAMPLE_IMAGES)), "got DatasetDict of train; choose one"),
    (lambda: [("a word", 1)], "base: expected items with an image (PIL, or uint8), got tuple at 0 without one"),
    (lambda: [{"a": source().images[0], "b": source().images[1]}], "got images at 'a', 'b'; say which by image_key="),
    (two_columns, "expected one image column, got image, other; say which by image_key="),
    (lambda: columns(SAMPLE_IMAGES).with_format("pandas"), "of format 'pandas', whose items are tables; take .with_format(None)"),
    (lambda: TensorDataset(torch.rand(4, 3, 8, 8)), "by a transform that it hides: pass transform="),
]  # fmt: skip


@pytest.mark.parametrize(("make", "says"), BASES)
def test_a_base_that_cannot_be_used_says_why(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(CfaugError) as caught:
        open_base(make())
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def wrapped(**options: Any) -> Callable[[Any, Any], Any]:
    return lambda base, shards: CounterfactualDataset(base, shards, **options)


def streamed(batch_size: Any = 4, **options: Any) -> Callable[[Any, Any], Any]:
    return lambda base, shards: CounterfactualStream(shards, batch_size, **options)


def collated(samples: Callable[[Any], list[Any]], **options: Any) -> Callable[[Any, Any], Any]:
    return lambda base, shards: MixingCollate(shards, **options)(samples(base))


def swapped(image: Any) -> Callable[[Any, Any], Any]:
    return lambda base, shards: RandomCounterfactual(shards)(image)


CALLS: list[tuple[Callable[[Any, Any], Any], str]] = [
    (wrapped(policy="swap"), "policy: expected one of replace, append, pairs, groups, got 'swap'"),
    (wrapped(policy="groups", p=0.5), "p: expected None with policy 'groups', got 0.5"),
    *((lambda base, shards, p=p: CounterfactualDataset(base, shards, p=p), "p: expected a probability from 0 to 1, got")
      for p in ("half", True, float("nan"), -0.1, 1.5, [0.5])),
    *((lambda base, shards, entry=entry: entry(shards, p=1.5), "p: expected a probability from 0 to 1, got 1.5")
      for entry in (RandomCounterfactual, Twin, MixingCollate)),
    (wrapped(p=0.7, null_p=0.7), "p + null_p: expected at most 1 (the rest is the real fraction), got 0.7 + 0.7"),
    *((wrapped(seed=seed), "seed: expected a whole number of at least 0, got") for seed in (-1, 1.5, "a", None, True)),
    (wrapped(key=["a"]), "key: expected a function from an index to a source key, got list"),
    (wrapped(key=lambda i: f"x{i}"), "got none for 40 of 40: the base's first key is 'x0', the shards' first source key 'train-00'"),
    (lambda base, shards: CounterfactualDataset(Subset(base, []), shards), "base: expected images, got an empty data set"),
    (lambda base, shards: CounterfactualDataset(base, shards).set_epoch(-1), "epoch: expected a whole number of at least 0"),
    (lambda base, shards: CounterfactualDataset(base, shards).set_epoch(1 << 63), "epoch: expected at most"),
    (lambda base, shards: CounterfactualDataset(base, shards).load_state_dict({"epoch": 1}), "state: expected epoch, seed"),
    (wrapped(held_out=source("test")), "held_out: expected data sets in a list, got one ArrayDataset"),
    (wrapped(held_out={"val": 1}), "held_out: expected data sets in a list, got dict"),
    (wrapped(held_out=["D/test"]), "held_out[0]: expected"),
    (streamed(), "classes: expected the class names in the order of their codes"),
    (streamed(classes="01"), "classes: expected a list of different names"),
    (streamed(classes=["0", "0"]), "classes: expected a list of different names"),
    (streamed(classes=["0", "1"], kinds="null"), 'kinds: expected "counterfactual" or "null" or both, in a list'),
    (streamed(0, classes=["0", "1"]), "batch_size: expected a whole number of at least 1, got 0"),
    (swapped(torch.rand(3, 8, 8)), "put RandomCounterfactual first in the Compose, before ToDtype, ToTensor or Normalize"),
    (swapped(np.zeros((8, 8, 3), np.float32)), "put RandomCounterfactual first in the Compose"),
    (swapped("a/path.png"), "expected an image (PIL, uint8 tensor CHW or uint8 array HWC)"),
    (lambda base, shards: Twin(shards, p=1.0)(image=np.zeros((8, 8, 3), np.float32)), "before ToDtype"),
    (collated(lambda base: [base[0]]), "transform: expected one that makes tensors of PIL images, got None"),
    (collated(lambda base: [{"a": 1, "b": "text"}]), "got none among a, b; pass image_key="),
    (collated(lambda base: [{"left": base[0][0], "right": base[1][0]}]), "got left, right; pass image_key="),
    (collated(lambda base: [{"left": base[0][0]}], image_key="x"), "image_key: expected one of left, got 'x'"),
    (collated(lambda base: [(torch.rand(3, 8, 8), 1)]), "give MixingCollate the transform"),
    (collated(lambda base: [base[0][0]], transform=v2.PILToTensor(), then=lambda *_: _), "then: expected samples of an image and a label"),
    (lambda base, shards: SeededAugmentation(iter([1]), FLIP), "base: expected a data set with len() and [i]"),
    (lambda base, shards: SeededAugmentation(base, lambda image: image), "transform: expected an albumentations transform"),
    (lambda base, shards: SeededAugmentation([(base[0][0], np.zeros((8, 8)))], FLIP)[0], "a second one or a mask"),
    (lambda base, shards: SeededAugmentation([{"img": base[0][0]}], FLIP)[0], "base: expected items with 'image', got img"),
    (lambda base, shards: SeededAugmentation(CounterfactualDataset(base, shards, policy="pairs"), FLIP)[0], "(policy 'pairs'?)"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "says"), CALLS)
def test_a_call_that_cannot_be_says_why(base: ArrayDataset, shards: Path, call: Any, says: str) -> None:
    with pytest.raises(CfaugError) as caught:
        call(base, shards)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_shards_without_a_kind_say_so(base: ArrayDataset, make: Callable[..., Path]) -> None:
    only = make(base, kinds=("cf",))
    for call in (wrapped(p=0.5, null_p=0.5), lambda base, shards: RandomCounterfactual(shards, p=0.2, null_p=0.2)):
        with pytest.raises(CfaugError, match="expected null samples, it has none; plan them"):
            call(base, only)
    assert len(CounterfactualDataset(base, only)) == N
