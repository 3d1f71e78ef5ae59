"""From a method's name to what it trains on: the one place that says which images, which groups and which shares.

The control of reconstructions shows as many generated images as the mixture does (null_p = p + null_p of the mixture),
so that the two differ in the intervention alone. Group codes are read from attribute tables, never from pixels; in a
mixture a counterfactual counts in the group of its own attributes. Images are held in memory as uint8 where they fit, else decoded
whenever they are read, as they are where they are augmented at random.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from cfaug.data.datasets import AttributeDataset
from cfaug.data.groups import Grouper
from cfaug.data.loading import images_of, load_images
from cfaug.errors import UsageError
from cfaug.learn.dataset import CounterfactualDataset
from cfaug.offline.read import TRAIN, ShardReader
from cfaug.train.in_memory import materialise, origins_of, shown_origins
from cfaug.train.methods import method_named
from cfaug.train.objectives.weights import origin_weights
from cfaug.train.training_sets import MixedImages, StreamedImages, TensorImages, TrainingSet
from cfaug.train.validation import Validation

Grouping = Literal["cross", "each"]


@dataclass(frozen=True)
class Mixture:
    """Shares of the mixture: ``p`` counterfactuals, ``null_p`` reconstructions, the rest real images."""

    p: float = 0.5
    null_p: float = 0.0


@dataclass(frozen=True)
class Memory:
    """Images of up to ``gigabytes`` are held; what is larger is read by ``workers`` processes."""

    gigabytes: float = 2.0
    workers: int = 0


def target_tensor(dataset: AttributeDataset) -> Tensor:
    """Target codes (N,) int64."""
    if dataset.schema.target is None:
        raise UsageError("training expected a data set with a target, got a schema without one; name the target")
    return torch.from_numpy(
        np.asarray(dataset.schema.index(dataset.schema.target, dataset.table[dataset.schema.target]))
    )


def group_codes(table: pd.DataFrame, grouper: Grouper, grouping: Grouping = "cross") -> npt.NDArray[np.int64]:
    """Codes of the groups that occur: (N,) of the full cross, or (N, A), one column per spurious attribute ("each").

    -1 is no group: the row lacks the attribute (in the cross: any of them). Training tables only.
    """
    if grouping == "cross":
        return np.asarray(pd.factorize(grouper.cross(table, missing=True), sort=True)[0], dtype=np.int64)
    if grouping != "each":
        raise UsageError(f"train.groups: expected 'cross' or 'each', got {grouping!r}")
    labels = grouper.labels(table, missing=True)
    columns, offset = [], 0
    for name in labels:
        codes, values = pd.factorize(labels[name], sort=True)
        columns.append(np.where(codes < 0, -1, codes + offset))
        offset += len(values)
    return np.stack(columns, axis=1).astype(np.int64)


def level_codes(table: pd.DataFrame, grouper: Grouper) -> npt.NDArray[np.int64]:
    """(N, A): the level of each spurious attribute by its place among all levels, the same in every table; -1 where it is missing."""
    columns = []
    for name in grouper.spurious:
        place = {level: code for code, level in enumerate(grouper.level_names(name))}
        columns.append([place.get(level, -1) for level in grouper.levels(table, name, missing=True)])
    return np.array(columns, dtype=np.int64).T.copy()


def validation_set(dataset: AttributeDataset, grouper: Grouper, memory: Memory | None = None) -> Validation:
    """The validation split, with every group that could occur (so that empty ones are warned about)."""
    memory = memory or Memory()
    return Validation(
        images_of(dataset, None, memory.gigabytes, memory.workers),
        target_tensor(dataset),
        grouper.labels(dataset.table),
        grouper.all_names,
        torch.from_numpy(level_codes(dataset.table, grouper)),
    )


class TrainingSets:
    """What every method of a table trains on; each image and each sample is decoded once, at its first use, where they fit in memory.

    ``dataset`` is the train split; ``shards`` are needed by methods with generated images, ``oracle`` (images
    without confounding) by the oracle. ``augment``: makes an albumentations transform of uint8 images (H, W, C), drawn anew from
    (seed, epoch, index). Raises UsageError for a split other than train.
    """

    def __init__(
        self,
        dataset: AttributeDataset,
        grouper: Grouper,
        shards: str | Path | ShardReader | None = None,
        grouping: Grouping = "cross",
        oracle: AttributeDataset | None = None,
        memory: Memory | None = None,
        augment: Callable[[], Any] | None = None,
    ) -> None:
        if dataset.split != TRAIN:
            raise UsageError(
                f"training expected split {TRAIN!r}, got {dataset.split!r}; validation and test never train"
            )
        self.shards = shards if shards is None or isinstance(shards, ShardReader) else ShardReader(shards)
        self.memory, self.augment = memory or Memory(), augment
        self._sources = {"real": dataset, "oracle": oracle}
        self._shown = len(dataset)
        self._codes = partial(group_codes, grouper=grouper, grouping=grouping)
        self._levels = partial(level_codes, grouper=grouper)
        self._images: dict[str, TensorImages | StreamedImages] = {}
        self._mixed: MixedImages | None = None
        self._generated: pd.DataFrame | None = None

    def of(self, method: str, mixture: Mixture | None = None, seed: int = 0) -> TrainingSet:
        """The images of one method; ``seed`` draws the mixture. UsageError for what is missing."""
        chosen, mixture = method_named(method), mixture or Mixture()
        if chosen.data in self._sources:
            return self._real(method, chosen.data, seed)
        p, null_p = {
            "mixed": (mixture.p, mixture.null_p),
            "pairs": (1.0, 0.0),
            "counterfactual": (1.0, 0.0),
            "null": (0.0, min(1.0, mixture.p + mixture.null_p)),
        }[chosen.data]
        return self._drawn(method, p, null_p, seed, paired=chosen.data == "pairs")

    def synthetic(self, method: str, seed: int = 0) -> TrainingSet | None:
        """The counterfactuals alone, for a method that shows them first or fits its last layer on them; None for any other."""
        chosen = method_named(method)
        wanted = chosen.fake_first or (chosen.last_layer and chosen.needs_shards)
        return self._drawn(method, 1.0, 0.0, seed, paired=False) if wanted else None

    def _drawn(self, method: str, p: float, null_p: float, seed: int, paired: bool) -> TrainingSet:
        base, shards = self._source(method, "real"), self._shards_for(method)
        if self.augment is None and self._fits(base, len(shards)):
            drawn = CounterfactualDataset(base, shards, p=p, null_p=null_p, seed=seed)
            self._mixed = materialise(drawn, self._codes, held=self._mixed, levels=self._levels, paired=paired)
            self._images.pop("real", None)  # from now on a view of the pool, which begins with the real images
            return self._mixed
        readable = self._readable(base)
        # of a pair both images get one crop and one flip, which only the base of the mixture can do
        readable = self._augmented(readable, seed) if paired else readable
        shown = CounterfactualDataset(
            readable, shards, p=p, null_p=null_p, seed=seed, key=base.key, policy="pairs" if paired else "replace"
        )
        if self._generated is None:
            self._generated = pd.DataFrame([shards.record(i)["attributes"] for i in range(len(shards))])
        table = pd.concat([base.table, self._generated], ignore_index=True)
        codes, levels = torch.from_numpy(self._codes(table)), torch.from_numpy(self._levels(table))
        balance = origin_weights(codes, origins_of(len(base), shards.nulls), shown_origins(shown))

        def rows(epoch: int) -> Tensor:
            own = shown.draws(epoch)[1]
            return torch.from_numpy(np.where(own < 0, np.arange(len(own)), len(base) + own))

        return StreamedImages(
            shown if paired else self._augmented(shown, seed), target_tensor(base), lambda e: codes[rows(e)], int(codes.max()) + 1,
            self.memory.workers, lambda e: levels[rows(e)], lambda e: balance[rows(e)],
        )  # fmt: skip

    def _real(self, method: str, kind: str, seed: int) -> TrainingSet:
        source = self._source(method, kind)
        if kind in self._images and self.augment is None:
            return self._images[kind]
        codes = torch.from_numpy(self._codes(source.table))
        levels = torch.from_numpy(self._levels(source.table))
        if self.augment is None and self._fits(source):
            pool = self._mixed.pool if self._mixed is not None and kind == "real" else None
            images = load_images(source, progress=False) if pool is None else pool[: len(source)]
            self._images[kind] = TensorImages(images, target_tensor(source), codes, attributes=levels)
        else:
            shown = self._augmented(self._readable(source), seed)
            self._images[kind] = StreamedImages(shown, target_tensor(source), codes, 0, self.memory.workers, levels)
        # an oracle of more images takes no more steps than any other method
        self._images[kind].shown = min(len(source), self._shown)
        return self._images[kind]

    def _source(self, method: str, kind: str) -> AttributeDataset:
        source = self._sources[kind]
        if source is None:
            raise UsageError(
                f"method {method}: expected oracle=, the data set without confounding; leave the oracle out"
            )
        return source

    def _shards_for(self, method: str) -> ShardReader:
        if self.shards is None:
            raise UsageError(
                f"method {method}: expected shards with generated images, got none; run the generate stage"
            )
        return self.shards

    def _fits(self, dataset: AttributeDataset, more: int = 0) -> bool:
        return (len(dataset) + more) * dataset.image(0).nbytes <= self.memory.gigabytes * 1e9

    def _readable(self, dataset: AttributeDataset) -> Any:
        """The data set with images as uint8 tensors (C, H, W), or untransformed where they are augmented afterwards."""
        shown: Any = copy.copy(dataset)
        shown.transform = None if self.augment is not None else _as_tensor
        return shown

    def _augmented(self, dataset: Any, seed: int) -> Any:
        if self.augment is None:
            return dataset
        from cfaug.learn.albumentations import SeededAugmentation

        return SeededAugmentation(dataset, self.augment(), seed)


def _as_tensor(picture: Any) -> Tensor:
    from torchvision.transforms.v2.functional import pil_to_tensor

    made: Tensor = pil_to_tensor(picture)
    return made


def standard_augmentation(size: tuple[int, int]) -> Any:
    """A random resized crop (scale 0.7 to 1, ratio 3/4 to 4/3) and a horizontal flip, as tensors (C, H, W) of the images' size."""
    import albumentations as A

    return A.Compose([A.RandomResizedCrop(size, scale=(0.7, 1.0)), A.HorizontalFlip(p=0.5), A.ToTensorV2()])


def training_set(
    method: str,
    dataset: AttributeDataset,
    grouper: Grouper,
    shards: str | Path | ShardReader | None = None,
    mixture: Mixture | None = None,
    seed: int = 0,
    grouping: Grouping = "cross",
    oracle: AttributeDataset | None = None,
) -> TrainingSet:
    """What ``method`` alone trains on: one set of ``TrainingSets``, whose arguments and errors these are."""
    return TrainingSets(dataset, grouper, shards, grouping, oracle).of(method, mixture, seed)
