"""A user's program as ``mypy --strict`` sees it: the example of ARCHITECTURE, with types. It is read by mypy and never run."""

from __future__ import annotations

from pathlib import Path
from typing import assert_type

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch.utils.data import Dataset

from cfaug import (
    SCM,
    Attribute,
    CausalGraph,
    CounterfactualDataset,
    Grouper,
    Plan,
    RandomCounterfactual,
    Schema,
    do,
    group_accuracy,
    worst_group_accuracy,
)
from cfaug.data import AttributeDataset, FolderDataset, duplicates_across_splits, open_source, pixel_digest
from cfaug.decode import CounterfactualModel, DiffusionDecoder
from cfaug.offline import balance_groups, generate, verify
from cfaug.train import TensorImages, TrainSettings, Validation, train_classifier
from cfaug.train.objectives import GroupDRO, erm_loss, lisa_mix


class Own:
    """A data set of the user's own: it need not inherit from anything."""

    schema = Schema([Attribute("species", values=("land", "water"))], target="species")
    table = pd.DataFrame({"species": ["land"]}, index=["a.png"])
    split = "train"

    def __len__(self) -> int:
        return 1

    def key(self, i: int, /) -> str:
        return "a.png"

    def image(self, i: int, /) -> npt.NDArray[np.uint8]:
        return np.zeros((8, 8, 3), np.uint8)

    def mask(self, i: int, /) -> npt.NDArray[np.uint8] | None:
        return None

    def __getitem__(self, i: int, /) -> tuple[npt.NDArray[np.uint8], int]:
        return self.image(i), 0


def generation(root: Path) -> None:
    dataset = FolderDataset(root, split="train", target="species", spurious=["background"])
    graph = CausalGraph("species <-> background; species -> image; background -> image")
    scm = SCM(graph, dataset.schema).fit(dataset.table, seed=0)
    assert_type(scm.counterfactual(dataset.table, do(background="water"), seed=0), pd.DataFrame)
    decoder = DiffusionDecoder(dataset.schema, parents=graph.parents("image")).fit(dataset, seed=0)
    model = CounterfactualModel(scm, decoder)
    model.save("model/")
    plan: Plan = balance_groups(dataset.table, dataset.schema, per_image=1, null_fraction=0.5, seed=0)
    generate(CounterfactualModel.load("model/"), dataset, plan, out="OUT", engine="local", workers=2)
    verify("OUT")
    splits: list[AttributeDataset] = [dataset, Own(), open_source("folder", root, "test", target="species")]
    for one, other in duplicates_across_splits(splits):
        assert_type((one, other), tuple[tuple[str, str], tuple[str, str]])
    assert_type(pixel_digest(dataset.image(0)), str)


def training(base: Dataset[tuple[torch.Tensor, int]], table: pd.DataFrame, schema: Schema) -> torch.Tensor:
    train = CounterfactualDataset(base, "OUT/shards", p=0.5, seed=0)
    train.set_epoch(1)
    RandomCounterfactual("OUT/shards", p=0.5)
    groups = Grouper.fit(table, schema).labels(table)
    found = group_accuracy(["land"], ["land"], groups)
    assert_type(worst_group_accuracy(found).accuracy, float)
    images, targets = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.long)
    run = train_classifier("erm", TensorImages(images, targets), Validation(images, targets, groups), TrainSettings())
    logits = run.model(images.float())
    mixed, soft = lisa_mix(images.float(), targets, targets, 2)
    return erm_loss(logits, soft) + GroupDRO(2)(mixed.flatten(1).sum(1), targets)
