"""Which data sets say that they are validation or test: torchvision's own, and what people write."""

from __future__ import annotations

import ast
import enum
import inspect
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torchvision.datasets
from torch.utils.data import Dataset, StackDataset

from cfaug.errors import UsageError
from cfaug.learn.guard import refuse_split
from cfaug.learn.swap.metadata import inner_datasets
from cfaug.learn.swap.splits import FLAGS, REVERSED, SAYS, splits_of

TRAIN, VAL, TEST, TRAINVAL = ("train", True), ("val", False), ("test", False), ("trainval", True)
# class, attribute, (value, whether it may be trained on) of every value that torchvision's code lets through
TORCHVISIONS: list[tuple[str, str, list[tuple[Any, bool]]]] = [
    *[(name, "train", [(True, True), (False, False)]) for name in (
        "CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "KMNIST", "QMNIST", "EMNIST", "PhotoTour", "HMDB51", "UCF101", "Kitti",
    )],
    *[(name, "_split", [TRAIN, TEST]) for name in ("StanfordCars", "Food101", "FER2013", "GTSRB")],
    *[(name, "_split", [TRAIN, VAL, TEST]) for name in (
        "Flowers102", "DTD", "CLEVRClassification", "PCAM", "RenderedSST2",
    )],
    ("FGVCAircraft", "_split", [TRAIN, VAL, TRAINVAL, TEST]),
    ("OxfordIIITPet", "_split", [TRAINVAL, TEST]),
    ("Country211", "_split", [TRAIN, ("valid", False), TEST]),
    ("Imagenette", "_split", [TRAIN, VAL]),
    ("HMDB51", "fold", [(1, True), (3, True)]),
    ("UCF101", "fold", [(1, True), (3, True)]),
    ("EMNIST", "split", [(one, True) for one in ("byclass", "bymerge", "balanced", "letters", "digits", "mnist")]),
    ("QMNIST", "what", [TRAIN, TEST, ("test10k", False), ("test50k", False), ("nist", True)]),
    ("INaturalist", "version", [
        ("2017", True), ("2018", True), ("2019", True), ("2021_train", True), ("2021_train_mini", True), ("2021_valid", False),
    ]),
    ("LSUN", "classes", [
        (["kitchen_train", "tower_train"], True), (["kitchen_val", "tower_val"], False), (["test"], False),
        (["kitchen_train", "tower_val"], False),
    ]),
    ("Omniglot", "background", [(True, True), (False, False)]),
    ("MovingMNIST", "split", [(None, True), TRAIN, TEST]),
    ("STL10", "split", [TRAIN, ("train+unlabeled", True), ("unlabeled", True), TEST]),
    ("SVHN", "split", [TRAIN, TEST, ("extra", True)]),
    ("ImageNet", "split", [TRAIN, VAL]),
    ("CelebA", "split", [TRAIN, ("valid", False), TEST, ("all", True)]),
    ("WIDERFace", "split", [TRAIN, VAL, TEST]),
    ("Kinetics", "split", [TRAIN, VAL, TEST]),
    ("Places365", "split", [("train-standard", True), ("train-challenge", True), VAL, ("test", False)]),
    ("Middlebury2014Stereo", "split", [TRAIN, TEST, ("additional", True)]),
    ("Cityscapes", "split", [TRAIN, TEST, VAL, ("train_extra", True)]),
    ("Cityscapes", "mode", [("gtFine", True), ("gtCoarse", True)]),
    ("SBDataset", "image_set", [TRAIN, VAL, ("train_noval", True)]),
    ("SBDataset", "mode", [("segmentation", True), ("boundaries", True)]),
    *[(name, "image_set", [TRAIN, TRAINVAL, VAL, TEST]) for name in ("VOCSegmentation", "VOCDetection")],
    *[(name, "split", [("10fold", True), TRAIN, TEST]) for name in ("LFWPeople", "LFWPairs")],
    *[(name, "image_set", [("original", True), ("funneled", True), ("deepfunneled", True)]) for name in (
        "LFWPeople", "LFWPairs",
    )],
]  # fmt: skip
ROWS = [(name, attribute, value, may) for name, attribute, values in TORCHVISIONS for value, may in values]


def is_refused(dataset: Any) -> bool:
    try:
        refuse_split(dataset)
    except UsageError:
        return True
    return False


def test_torchvisions_own_are_refused_by_what_they_say() -> None:
    wrong = []
    for name, attribute, value, may in ROWS:
        kind = getattr(torchvision.datasets, name)
        dataset = kind.__new__(kind)  # as it is once its files are there
        setattr(dataset, attribute, value)
        if is_refused(dataset) == may:
            wrong.append((name, attribute, value))
    assert not wrong


def sets(kind: type) -> set[str]:
    """The attributes that a class, or one that it derives from, sets on its objects."""
    found: set[str] = set()
    for one in kind.__mro__:
        if one.__module__.startswith("torchvision.datasets"):
            for node in ast.walk(ast.parse(inspect.getsource(one))):
                targets = node.targets if isinstance(node, ast.Assign) else []
                found |= {t.attr for t in targets if isinstance(t, ast.Attribute) and ast.unparse(t.value) == "self"}
    return found


def test_the_table_has_all_of_torchvisions_classes() -> None:
    there = {
        (name, attribute)
        for name in torchvision.datasets.__all__
        if inspect.isclass(kind := getattr(torchvision.datasets, name)) and issubclass(kind, Dataset)
        for attribute in {*SAYS, *FLAGS, *REVERSED, *({"classes"} if name == "LSUN" else {"background"})} & sets(kind)
    }
    listed = {(name, attribute) for name, attribute, _ in TORCHVISIONS}
    assert listed == there


class Split(enum.Enum):
    TRAIN = "train"
    VAL = "val"


class Named(str, enum.Enum):  # noqa: UP042 - what people wrote before there was a StrEnum
    TRAIN = "train"
    TEST = "test"


class Numbered(enum.Enum):
    TRAIN = 0
    VALID = 1


REFUSED: list[dict[str, Any]] = [
    *({"split": said} for said in (
        "id_val", "ood_test", "holdout", "held-out", "heldOut", "HoldOut", "valid", "validation", "VAL", "val2017", "test-dev",
        "OODTest", "valtest", "devtest", "train+val", "train+test", "train, val", "trainval_test", "train_test", "minival", "testset", "lists/val.txt", "evaluation", "dev", "development", "testA",
        Split.VAL, Named.TEST, Numbered.VALID,
    )),
    {"image_set": "val"}, {"mode": "val"}, {"mode": "eval"}, {"phase": "test"}, {"_split": "test"}, {"what": "test10k"}, {"fold": "test"},
    {"subset": "validation"}, {"split_name": "val"}, {"stage": "validate"}, {"split": " Test "}, {"split": np.str_("test")},
    *({name: no} for name in FLAGS for no in (False, np.False_, 0, np.int64(0))),
    *({name: yes} for name in REVERSED for yes in (True, np.True_, 1, np.int64(1))),
    {"version": "v1.0-test"}, {"usage": "test"}, {"data_split": "val"}, {"subset_name": "dev"}, {"split_type": "test"}, {"imageset": "val"},
    {"set": "test"}, {"dataset_type": "valid"}, {"is_train": True, "is_val": True},
    {"split": "train", "train": False},
]  # fmt: skip
ACCEPTED: list[dict[str, Any]] = [
    *({"split": said} for said in (
        "train", "TRAIN", "training", "trainval", "train_noval", "train_no_val", "train_without_val", "train-minus-minival", "train[:50%]", "train+unlabeled", "latest", "contest", "devices",
        "value", "invalidated", "train_val", "train-val", "TrainVal", "TRAIN_VAL", "train_val2018", "lists/train_val.txt", "not_test", "excl_val", "non-test", "train_excluding_val", "/data/test/train.txt", Split.TRAIN, Named.TRAIN, Numbered.TRAIN,
        {"train": [1], "val": [2]}, ["val"], np.array(["test"]), None, 0, 0.8, lambda: "val",
    )),
    {"mode": "train"}, {"mode": "RGB"}, {"mode": "fine"}, {"fold": 1}, {"partition": 1}, {"subset": [0, 1]}, {"stage": "fit"}, {"phase": "train"}, {"image_set": "train"},
    *({name: no} for name in REVERSED for no in (False, np.False_, 0, [], 1.0, np.ones(3), None, "no", lambda: True)),
    {"version": "1.0.dev0"}, {"version": "latest"}, {"version": "v1.0-trainval"}, {"usage": "train"}, {"set": {"test"}}, {"classes": ["test", "val"]},
    {"background": False}, *({name: yes} for name in FLAGS for yes in (True, np.True_, 1, [], 0.0, np.zeros(3), None, "train")),
]  # fmt: skip


def test_what_people_write_is_understood_and_other_words_are_no_split() -> None:
    assert not [said for said in REFUSED if not is_refused(SimpleNamespace(**said))]
    assert not [said for said in ACCEPTED if is_refused(SimpleNamespace(**said))]
    assert splits_of(SimpleNamespace(train=5, mode="RGB")) == {"RGB"}
    with pytest.raises(UsageError, match=r"^base: expected the train split, came split 'held\\nout'") as caught:
        refuse_split(SimpleNamespace(split="held\nout"))
    assert "\n" not in str(caught.value)


class One(Dataset[Any]):
    def __init__(self, **said: Any) -> None:
        vars(self).update(said)

    def __len__(self) -> int:
        return 2


def test_what_is_inside_is_asked_once_each() -> None:
    val = One(phase="val")
    held = One(inner=val)
    held.outer = val  # by another name too
    assert list(inner_datasets(held)) == [held, val]
    held.outer = One()  # nobody knows which of the two makes the items
    assert list(inner_datasets(held)) == [held]
    loop = One(inner=val)
    val.back = loop
    assert list(inner_datasets(loop)) == [loop, val]
    assert is_refused(loop)
    for stack in (StackDataset(One(), val), StackDataset(a=One(), b=val)):
        assert is_refused(stack)
    assert not is_refused(StackDataset(One(), One()))
