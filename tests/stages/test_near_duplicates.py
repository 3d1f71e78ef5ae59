"""Near-duplicates are found by features, with a threshold from duplicates that are known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
import torchvision
from helpers.layered import schema
from scipy.ndimage import gaussian_filter

from cfaug.causal import CausalGraph
from cfaug.data import ArrayDataset, Grouper
from cfaug.stages.checked_inputs import Inputs
from cfaug.stages.near_duplicates import duplicate, duplicate_notes, near_duplicates
from cfaug.train.features import FeatureStore
from cfaug.train.models import build_model


def photographs(n: int, split: str, seed: int) -> ArrayDataset:
    """Smooth random images, no two alike."""
    rng = np.random.default_rng(seed)
    images = np.stack([gaussian_filter(rng.normal(size=(48, 48, 3)), (3, 3, 0)) for _ in range(n)])
    images = np.clip(128 + 400 * images, 0, 255).astype(np.uint8)

    table = pd.DataFrame(
        {"shape": ["disc", "square"] * (n // 2), "ground": ["lines", "dots"] * (n // 2), "colour": ["red", "blue"] * (n // 2)},
        index=[f"{split}{i}" for i in range(n)],
    )  # fmt: skip
    return ArrayDataset(images, table, schema().fit(table, list(table)), split)


def inputs(train: ArrayDataset, val: ArrayDataset, test: ArrayDataset) -> Inputs:
    graph = CausalGraph("shape -> image; ground -> image; colour -> image")
    return Inputs(train, val, test, None, graph, Grouper.fit(train.table, train.schema), "digest")


def test_copies_are_found_and_others_are_not(tmp_path) -> None:
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet18.pth")
    net = build_model("resnet18", 3, (48, 48), 2, 0, str(tmp_path / "resnet18.pth"), "imagenet")
    store = FeatureStore(None, net, (48, 48), progress=False)
    train, val, test = (
        photographs(n, split, i) for i, (n, split) in enumerate((((60), "train"), (20, "val"), (20, "test")))
    )
    clean = near_duplicates(inputs(train, val, test), store, 0)
    rng = np.random.default_rng(5)
    images = test.images.copy()
    for i in range(5):
        images[i] = duplicate(train.image(i), rng)
    found = near_duplicates(inputs(train, val, ArrayDataset(images, test.table, test.schema, "test")), store, 0)
    assert found["test"] >= clean["test"] + 4
    pairs = {tuple(pair[1:]) for pair in found["pairs"] if pair[0] == "test"}
    assert len(pairs & {(f"test{i}", f"train{i}") for i in range(5)}) >= 3
    assert duplicate_notes({"near_duplicates": found})[0].startswith("WARNING")
    assert duplicate_notes({}) == []


def test_a_duplicate_is_nearly_the_image() -> None:
    image = photographs(2, "train", 9).image(0)
    other = duplicate(image, np.random.default_rng(0))
    assert other.shape == image.shape
    assert 0 < np.abs(other.astype(int) - image).mean() < 20
