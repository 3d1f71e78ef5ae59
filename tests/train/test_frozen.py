"""A frozen net: features once, whatever happens to their file; and linear heads that do what the method says."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from cfaug.data import ArrayDataset, Attribute, Grouper, Schema
from cfaug.errors import DataError
from cfaug.train import METHODS, Validation
from cfaug.train.epochs import TrainSettings, balanced_subset
from cfaug.train.features import FeatureStore
from cfaug.train.heads import PENALTIES, Weighted, fit_logistic, is_deterministic, train_head
from cfaug.train.method_data import group_codes, level_codes
from cfaug.train.models import SmallCNN
from cfaug.train.training_sets import MixedImages

SCHEMA = Schema([Attribute("y", values=("0", "1")), Attribute("a", values=("0", "1"))], "y", ["a"])


@pytest.fixture
def images() -> ArrayDataset:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"y": ["0", "1"] * 20, "a": ["0", "0", "1", "1"] * 10}, index=[f"i{i}" for i in range(40)])
    return ArrayDataset(rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8), table, SCHEMA)


def store(place: Path | None, seed: int = 0) -> FeatureStore:
    torch.manual_seed(seed)
    return FeatureStore(place, SmallCNN(3, (8, 8), 2), (8, 8), progress=False)


# --- the store


def test_features_are_computed_once(images: ArrayDataset, tmp_path: Path) -> None:
    first = store(tmp_path)
    made = first.of_dataset(images)
    assert first.computed == 40
    again = store(tmp_path)
    assert torch.equal(again.of_dataset(images), made)
    assert again.computed == 0
    with torch.inference_mode():
        whole = torch.from_numpy(images.images).permute(0, 3, 1, 2).float() / 127.5 - 1
        assert torch.allclose(first.model.embed(whole), made, atol=1e-4)


def test_another_net_has_features_of_its_own(images: ArrayDataset, tmp_path: Path) -> None:
    store(tmp_path).of_dataset(images)
    other = store(tmp_path, seed=1)
    other.of_dataset(images)
    assert other.computed == 40


@pytest.mark.parametrize("damage", ["flip", "cut", "foreign", "no json", "pickled"])
def test_a_damaged_part_is_made_again_and_said(
    images: ArrayDataset, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = store(tmp_path)
    made = first.of_dataset(images)
    (array,), (entry,) = first.directory.glob("*.npy"), first.directory.glob("*.json")  # type: ignore[union-attr]
    content = bytearray(array.read_bytes())
    if damage == "flip":
        content[-3] ^= 4
        array.write_bytes(content)
    elif damage == "cut":
        array.write_bytes(content[:-8])
    elif damage == "foreign":
        entry.write_text(json.dumps({**json.loads(entry.read_text()), "net": "0" * 64}))
    elif damage == "pickled":
        with array.open("wb") as handle:
            np.save(handle, np.array([print], dtype=object), allow_pickle=True)
    else:
        entry.write_text("{")
    with caplog.at_level(logging.WARNING):
        again = store(tmp_path)
    assert "made again" in caplog.text
    assert torch.equal(again.of_dataset(images), made)
    assert again.computed == 40
    assert store(tmp_path).of_dataset(images).shape == made.shape


def test_equal_images_are_computed_once(tmp_path: Path, images: ArrayDataset) -> None:
    table = images.table.iloc[[0, 0]].set_axis(["one", "two"])
    twice = ArrayDataset(images.images[[0, 0]], table, SCHEMA)
    own = store(None)
    assert own.of_dataset(twice).shape == (2, own.width)
    assert own.computed == 1


# --- the heads


def spurious(n: int, rho: float, seed: int) -> tuple[torch.Tensor, pd.DataFrame]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    a = np.where(rng.random(n) < rho, y, 1 - y)
    x = rng.normal(size=(n, 10)).astype(np.float32)
    x[:, :3] += 0.8 * (2 * y[:, None] - 1)
    x[:, 4] += 6.0 * (2 * a - 1)
    return torch.from_numpy(x), pd.DataFrame({"y": y.astype(str), "a": a.astype(str)}, index=[str(i) for i in range(n)])


def part(features: torch.Tensor, table: pd.DataFrame, grouper: Grouper, paired: bool = False) -> MixedImages:
    codes, levels = torch.from_numpy(group_codes(table, grouper)), torch.from_numpy(level_codes(table, grouper))
    targets = torch.from_numpy(SCHEMA.index("y", table["y"]))
    draw = (lambda epoch: torch.arange(len(targets))) if paired else None
    return MixedImages(features, targets, draw, codes, None, levels, paired)


@pytest.fixture(scope="module")
def heads() -> dict[str, float]:
    """Method -> worst-group accuracy of its head on unconfounded test features."""
    train, val, test = spurious(600, 0.98, 0), spurious(300, 0.5, 1), spurious(2000, 0.5, 2)
    grouper = Grouper.fit(train[1], SCHEMA)
    seen = part(*val, grouper)
    validation = Validation(val[0], seen.targets, grouper.labels(val[1]), grouper.all_names, seen.attributes(0))
    swapped = train[0].clone()
    swapped[:, 4] = spurious(600, 0.5, 3)[0][:, 4]  # counterfactuals: the attribute drawn anew
    table = train[1].assign(a=np.where(swapped[:, 4] > 0, "1", "0"))
    groups = grouper.labels(test[1])["a"]
    y = SCHEMA.index("y", test[1]["y"])
    found = {}
    for name, method in METHODS.items():
        generated = method.needs_shards or method.data == "oracle"
        data = (
            part(swapped, table, grouper, method.data == "pairs")
            if generated and not method.fake_first
            else part(*train, grouper)
        )
        head = train_head(name, data, validation, TrainSettings(), 0, ("0", "1"), part(swapped, table, grouper))
        right = head.predict(test[0]).numpy() == y
        found[name] = float(min(right[groups == g].mean() for g in set(groups)))
    return found


def test_every_method_has_a_head(heads: dict[str, float]) -> None:
    assert set(heads) == set(METHODS)


@pytest.mark.parametrize(
    "method",
    ["group_resampling", "subg", "group_dro", "dfr", "cfaug", "counterfactuals_only", "cfaug+consistency", "oracle"],
)
def test_methods_beat_plain_training(heads: dict[str, float], method: str) -> None:
    assert heads[method] > heads["erm"] + 0.1


def test_a_head_is_scikit_learns() -> None:
    """Weights and standardisation folded in: the same decisions as the pipeline that they replace."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, table = spurious(300, 0.7, 0)
    y = SCHEMA.index("y", table["y"])
    weights = np.random.default_rng(0).uniform(0.1, 2.0, 300).astype(np.float32)
    (_, weight, bias), *_ = fit_logistic(Weighted(x, torch.from_numpy(y), torch.from_numpy(weights)), 2, [0.1])
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=1e-6, max_iter=1000))
    reference.fit(x.numpy(), y, logisticregression__sample_weight=weights)
    logits = x @ weight.T + bias
    assert np.allclose((logits[:, 1] - logits[:, 0]).numpy(), reference.decision_function(x.numpy()), atol=2e-2)


def test_one_class_alone_is_refused() -> None:
    with pytest.raises(DataError, match="two classes"):
        fit_logistic(Weighted(torch.randn(4, 3), torch.zeros(4, dtype=torch.int64), torch.ones(4)), 2, PENALTIES)


def test_a_subset_has_every_group_equally() -> None:
    codes = torch.tensor([[0], [0], [0], [1], [1], [2], [2], [2], [-1]])
    rows = balanced_subset(codes, torch.Generator().manual_seed(0))
    assert torch.bincount(codes[rows, 0]).tolist() == [2, 2, 2]
    assert 8 not in rows


def test_which_heads_no_seed_changes() -> None:
    assert is_deterministic("erm")
    assert is_deterministic("cfaug")
    assert not any(map(is_deterministic, ("subg", "group_dro", "dfr", "lisa", "ffr", "cfaug+consistency")))
