"""From a method's name to what it trains on: the one place that says which images, which groups and which shares.

The control of reconstructions shows as many generated images as the mixture does (null_p = p + null_p of the mixture),
so that the two differ in the intervention alone. Group codes are read from attribute tables, never from pixels; in a
mixture a counterfactual counts in the group of its own attributes. Everything is held in memory as uint8.
What does not fit in memory is read by a StreamedImages over CounterfactualDataset.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from cfaug.data.datasets import AttributeDataset
from cfaug.data.groups import Grouper
from cfaug.data.loading import load_images
from cfaug.errors import UsageError
from cfaug.learn.dataset import CounterfactualDataset
from cfaug.offline.read import TRAIN, ShardReader
from cfaug.train.in_memory import materialise
from cfaug.train.methods import method_named
from cfaug.train.trainer import Validation
from cfaug.train.training_sets import MixedImages, TensorImages, TrainingSet

Grouping = Literal["cross", "each"]


@dataclass(frozen=True)
class Mixture:
    """Shares of the mixture: ``p`` counterfactuals, ``null_p`` reconstructions, the rest real images."""

    p: float = 0.5
    null_p: float = 0.0


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


def validation_set(dataset: AttributeDataset, grouper: Grouper) -> Validation:
    """The validation split, with every group that could occur (so that empty ones are warned about)."""
    return Validation(load_images(dataset), target_tensor(dataset), grouper.labels(dataset.table), grouper.all_names)


class TrainingSets:
    """What every method of a table trains on; each image and each sample is decoded once, at its first use.

    ``dataset`` is the train split; ``shards`` are needed by methods with generated images, ``oracle`` (the same sources
    without confounding) by the oracle. Raises UsageError for a split other than train.
    """

    def __init__(
        self,
        dataset: AttributeDataset,
        grouper: Grouper,
        shards: str | Path | ShardReader | None = None,
        grouping: Grouping = "cross",
        oracle: AttributeDataset | None = None,
    ) -> None:
        if dataset.split != TRAIN:
            raise UsageError(
                f"training expected split {TRAIN!r}, got {dataset.split!r}; validation and test never train"
            )
        self.shards = shards if shards is None or isinstance(shards, ShardReader) else ShardReader(shards)
        self._sources = {"real": dataset, "oracle": oracle}
        self._codes = partial(group_codes, grouper=grouper, grouping=grouping)
        self._images: dict[str, TensorImages] = {}
        self._mixed: MixedImages | None = None

    def of(self, method: str, mixture: Mixture | None = None, seed: int = 0) -> TrainingSet:
        """The images of one method; ``seed`` draws the mixture. UsageError for what is missing."""
        chosen, mixture = method_named(method), mixture or Mixture()
        if chosen.data in self._sources:
            return self._real(method, chosen.data)
        if self.shards is None:
            raise UsageError(
                f"method {method}: expected shards with generated images, got none; run the generate stage"
            )
        p, null_p = {
            "mixed": (mixture.p, mixture.null_p),
            "counterfactual": (1.0, 0.0),
            "null": (0.0, min(1.0, mixture.p + mixture.null_p)),
        }[chosen.data]
        drawn = CounterfactualDataset(self._sources["real"], self.shards, p=p, null_p=null_p, seed=seed)
        self._mixed = materialise(drawn, groups=self._codes, held=self._mixed)
        self._images.pop("real", None)  # from now on a view of the pool, which begins with the real images
        return self._mixed

    def _real(self, method: str, kind: str) -> TensorImages:
        source = self._sources[kind]
        if source is None:
            raise UsageError(
                f"method {method}: expected oracle=, the data set without confounding; leave the oracle out"
            )
        if kind not in self._images:
            codes = torch.from_numpy(self._codes(source.table))
            pool = self._mixed.pool if self._mixed is not None and kind == "real" else None
            images = load_images(source) if pool is None else pool[: len(source)]
            self._images[kind] = TensorImages(images, target_tensor(source), codes)
        return self._images[kind]


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
