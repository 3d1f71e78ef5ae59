"""What the training room refuses, each in one line: the call, and a fragment of what it says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.coloured_shards import source

from cfaug.data import Grouper
from cfaug.errors import CfaugError
from cfaug.train import SmallCNN, TensorImages, TrainSettings, Validation, train_classifier, training_set
from cfaug.train.objectives import (
    GroupDRO,
    LastLayer,
    class_weights,
    dfr,
    erm_loss,
    group_weights,
    jtt_weights,
    lisa_mix,
    paired_consistency_loss,
)

IMAGES = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
Y, A = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1])
X: Any = torch.rand(4, 3, generator=torch.Generator().manual_seed(0))
TRAIN, VAL = TensorImages(IMAGES, Y, A), Validation(IMAGES, Y, ["a", "b", "a", "b"])
SHORT = TrainSettings(epochs=1)
BASE = source()
GROUPER = Grouper.fit(BASE.table, BASE.schema)
LAYER = LastLayer(torch.ones(2, 3), torch.ones(2), 1.0)

REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "unknown method": (lambda: train_classifier("groupdro", TRAIN, VAL, SHORT), "did you mean group_dro"),
    "unknown model": (lambda: train_classifier("erm", TRAIN, VAL, TrainSettings(model="smallcnn"), classes=2), "did you mean small_cnn"),
    "no groups": (lambda: train_classifier("group_dro", TensorImages(IMAGES, Y), VAL, SHORT, classes=2), "group codes"),
    "no images": (lambda: train_classifier("erm", TensorImages(IMAGES[:0], Y[:0]), VAL, SHORT, classes=2), "got none"),
    "empty class": (lambda: train_classifier("erm", TRAIN, VAL, SHORT, classes=["dog", "bird", "cat"]), "none of 'cat'"),
    "float images": (lambda: TensorImages(IMAGES.float(), Y), "uint8"),
    "lengths": (lambda: TensorImages(IMAGES, Y[:2]), "expected 4 of each"),
    "settings": (lambda: TrainSettings(lr=0), "train.lr: expected a number above 0, got 0"),
    "optimizer": (lambda: TrainSettings(optimizer="adam"), "did you mean adamw"),
    "small images": (lambda: SmallCNN(3, (2, 2), 2), "at least 4x4"),
    "no shards": (lambda: training_set("cfaug", BASE, GROUPER), "run the generate stage"),
    "no oracle": (lambda: training_set("oracle", BASE, GROUPER), "oracle="),
    "test split": (lambda: training_set("erm", source("val"), GROUPER), "validation and test never train"),
    "float codes": (lambda: GroupDRO(2)(X[:, 0], X[:, 0]), "codes: expected whole numbers"),
    "codes beyond": (lambda: GroupDRO(2)(X[:, 0], A + 1), "below the number of groups 2, got 2"),
    "codes below": (lambda: group_weights([0, -2]), "at least -1, got -2"),
    "mean loss": (lambda: GroupDRO(2)(X.mean(), A), "losses: expected a float tensor (B)"),
    "counts": (lambda: GroupDRO(2, adjustment=1.0), "expected the group counts with adjustment"),
    "counts of others": (lambda: GroupDRO(2, adjustment=1.0, counts=[1, 2, 3]), "expected shape (2,), got (3,)"),
    "state of others": (lambda: GroupDRO(2).load_state_dict(GroupDRO(3).state_dict()), "of 2 groups, got shape (3,)"),
    "no images to weigh": (lambda: class_weights([]), "whole numbers"),
    "other predictions": (lambda: jtt_weights([0, 1], [0]), "targets: expected shape (2,)"),
    "upweight": (lambda: jtt_weights(Y, Y, upweight=0.5), "at least 1, got 0.5"),
    "empty batch": (lambda: erm_loss(X[:0], Y[:0]), "B > 0"),
    "other pairs": (lambda: paired_consistency_loss(X, X[:2], Y), "same pair"),
    "byte images": (lambda: lisa_mix(X.byte(), Y, A, 2), "images: expected a float tensor"),
    "other attributes": (lambda: lisa_mix(X, Y, A[:2], 2), "attributes: expected shape (4,) or (4, A)"),
    "features of one": (lambda: dfr(X[0], Y, A), "float (N, D)"),
    "broken features": (lambda: dfr(X * float("nan"), Y, A), "finite"),
    "small groups": (lambda: dfr(X, Y, A), "two or more images of every group"),
    "no groups known": (lambda: dfr(X, Y, torch.full((4,), -1)), "images with a group"),
    "other layer": (lambda: LAYER.write_into(torch.nn.Linear(5, 2)), "weight (2, 3), got weight (2, 5)"),
    "no bias": (lambda: LAYER.write_into(torch.nn.Linear(3, 2, bias=False)), "without bias"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_use_is_one_line(case: str) -> None:
    call, fragment = REFUSED[case]
    with pytest.raises(CfaugError) as error:
        call()
    assert fragment in str(error.value)
    assert "\n" not in str(error.value)
