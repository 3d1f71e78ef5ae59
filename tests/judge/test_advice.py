"""The advice after a table, in regimes whose answer is known: trained heads on features that are made for each."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from cfaug.data import Attribute, Grouper, Schema
from cfaug.errors import DataError
from cfaug.judge.accuracy import result_row
from cfaug.judge.advice import Advice, advise, effective_size
from cfaug.train import Validation
from cfaug.train.epochs import TrainSettings
from cfaug.train.heads import train_head
from cfaug.train.method_data import group_codes, level_codes
from cfaug.train.training_sets import MixedImages

SCHEMA = Schema([Attribute("y", values=("0", "1")), Attribute("a", values=("0", "1"))], "y", ["a"])


def split(sizes: list[int], seed: int, noise: float = 0.0, clean: bool = True) -> tuple[torch.Tensor, pd.DataFrame]:
    """Features whose first four show the class faintly and the fifth the attribute plainly; sizes of the groups 00, 01, 10, 11."""
    rng = np.random.default_rng(seed)
    y, a = np.repeat([0, 0, 1, 1], sizes), np.repeat([0, 1, 0, 1], sizes)
    x = rng.normal(size=(len(y), 12)).astype(np.float32)
    x[:, :4] += 1.3 * (2 * y[:, None] - 1)
    x[:, 4] += 5.0 * (2 * a - 1)
    said = np.where(rng.random(len(y)) < noise, 1 - y, y)
    table = pd.DataFrame({"y": said.astype(str), "a": a.astype(str)}, index=[f"{seed}-{i}" for i in range(len(y))])
    return torch.from_numpy(x), SCHEMA.canonical(table)


def advice(
    sizes: list[int], noise: float = 0.0, methods: tuple[str, ...] = ("erm", "group_resampling", "dfr")
) -> Advice:
    train, val, test, oracle = (
        split(s, i, noise) for i, s in enumerate((sizes, [60] * 4, [400] * 4, [sum(sizes) // 4] * 4))
    )
    grouper = Grouper.fit(train[1], SCHEMA)

    def part(data: tuple[torch.Tensor, pd.DataFrame]) -> MixedImages:
        targets = torch.from_numpy(SCHEMA.index("y", data[1]["y"]))
        codes, levels = torch.from_numpy(group_codes(data[1], grouper)), torch.from_numpy(level_codes(data[1], grouper))
        return MixedImages(data[0], targets, None, codes, None, levels)

    seen = part(val)
    validation = Validation(val[0], seen.targets, grouper.labels(val[1]), grouper.all_names, seen.attributes(0))
    rows = []
    for method in (*methods, "oracle"):
        head = train_head(
            method, part(oracle if method == "oracle" else train), validation, TrainSettings(), 0, ("0", "1")
        )
        rows.append(
            result_row(
                recipe="r", method=method, seed=0, targets=SCHEMA.index("y", test[1]["y"]), predictions=head.predict(test[0]).numpy(),
                table=test[1], grouper=grouper, train_table=train[1], train_seconds=0.1, selection=head.selection,
            )
        )  # fmt: skip
    labels = grouper.labels(train[1])["a"]
    return advise(rows, {name: int((labels == name).sum()) for name in grouper.all_names})


def test_balanced_groups_need_nothing() -> None:
    found = advice([250, 250, 250, 250])
    assert found.method == "erm"
    assert "no method against shortcuts is needed" in found.reasons[0]


def test_a_rare_group_needs_a_weighting() -> None:
    found = advice([480, 20, 20, 480])
    assert found.method in ("group_resampling", "dfr")
    assert "without generated images" in found.reasons[0]


def test_an_empty_group_needs_counterfactuals() -> None:
    found = advice([500, 0, 100, 400], methods=("erm", "group_resampling"))
    assert found.method == "cfaug"
    assert "y=0,a=1" in found.reasons[0]


def test_label_noise_is_told_from_a_shortcut() -> None:
    found = advice([250, 250, 250, 250], noise=0.35)
    assert found.method == "erm"
    assert "look at labels" in found.reasons[0]


def test_effective_size_is_kishs() -> None:
    assert effective_size([50, 50]) == pytest.approx(100)
    assert effective_size([99, 1, 0]) == pytest.approx(4 / (1 / 99 + 1))


def test_without_plain_training_there_is_no_advice() -> None:
    with pytest.raises(DataError, match="rows of erm"):
        advise([], {"y=0,a=0": 1})
