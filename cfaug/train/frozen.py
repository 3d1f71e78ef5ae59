"""What every method of a table trains on when the net is frozen: the features of the images in place of the images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cfaug.data.datasets import AttributeDataset
from cfaug.data.groups import Grouper
from cfaug.learn.dataset import CounterfactualDataset
from cfaug.offline.read import ShardReader
from cfaug.train.features import FeatureStore
from cfaug.train.in_memory import materialise
from cfaug.train.method_data import Grouping, TrainingSets, level_codes, target_tensor
from cfaug.train.training_sets import MixedImages, TrainingSet
from cfaug.train.validation import Validation


class FrozenSets(TrainingSets):
    """As :class:`TrainingSets`, of features (float32 (N, D)) that a store computes once; validation's too."""

    def __init__(
        self,
        store: FeatureStore,
        dataset: AttributeDataset,
        validation: AttributeDataset,
        grouper: Grouper,
        shards: str | Path | ShardReader | None = None,
        grouping: Grouping = "cross",
        oracle: AttributeDataset | None = None,
    ) -> None:
        super().__init__(dataset, grouper, shards, grouping, oracle)
        self.store = store
        self.validation = Validation(
            store.of_dataset(validation),
            target_tensor(validation),
            grouper.labels(validation.table),
            grouper.all_names,
            torch.from_numpy(level_codes(validation.table, grouper)),
        )
        self._features: dict[str, MixedImages] = {}

    def _real(self, method: str, kind: str, seed: int) -> TrainingSet:
        source = self._source(method, kind)
        if kind not in self._features:
            codes, levels = (torch.from_numpy(make(source.table)) for make in (self._codes, self._levels))
            features = self.store.of_dataset(source)
            self._features[kind] = MixedImages(features, target_tensor(source), None, codes, None, levels)
        return self._features[kind]

    def _drawn(self, method: str, p: float, null_p: float, seed: int, paired: bool) -> TrainingSet:
        base, shards = self._source(method, "real"), self._shards_for(method)
        drawn: Any = CounterfactualDataset(base, shards, p=p, null_p=null_p, seed=seed)

        def pool(used: npt.NDArray[np.int64]) -> Tensor:
            return torch.cat([self.store.of_dataset(base), self.store.of_samples(shards, used.tolist())])

        self._mixed = materialise(
            drawn, self._codes, held=self._mixed, levels=self._levels, paired=paired, pool_of=pool
        )
        return self._mixed
