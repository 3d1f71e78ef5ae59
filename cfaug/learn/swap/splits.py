"""Which split a data set says its images are of: by a name, by a flag, or as torchvision's do; below whatever holds it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum
from typing import Any

import numpy as np
from torchvision.datasets import LSUN, Omniglot

from cfaug.learn.swap.metadata import inner_datasets

# the names under which data sets say their split, ...
SAYS = (
    "split", "_split", "split_name", "split_type", "data_split", "image_set", "imageset", "set", "subset", "subset_name",
    "partition", "fold", "mode", "phase", "stage", "usage", "dataset_type", "version", "what",
)  # fmt: skip
# ... those of a flag that is off in validation and test, and of one that is on
FLAGS = ("train", "_train", "is_train", "training", "is_training")
REVERSED = ("test", "is_test", "is_val", "is_eval", "test_mode", "evaluate")
# whole words, so that "latest", "contest", "trainval" and "device" are none; what is written as one word is listed
EVALUATED = re.compile(
    r"\b(?<!\bno )(?<!\bnot )(?<!\bnon )(?<!\bminus )(?<!\bwithout )(?<!\bexcl )(?<!\bexcluding )"
    r"((mini|sub)?(val|dev)(s|set|split|data)?|valid\w*|devel\w*|test\w*|eval\w*|valtest|devtest|h(e|o)ld ?outs?)\b"
)
# one split of both, as "trainval" is; not "train+val", which asks for validation too
TRAINVAL = re.compile(r"(?<![a-z])train[_-]?val(?![a-z])", re.IGNORECASE)


def splits_of(dataset: Any) -> set[str]:
    """Every split that a data set says its images are of, in its own words; empty where it says none.

    It says so under the names of ``SAYS`` ("train", "test[:50%]", an Enum; of Hugging Face's "train+test" both), which may
    hold other words too ("RGB", "fine"), by one of ``FLAGS``, where False and 0 are "test", or by one of ``REVERSED``, whose
    name it is where True and 1. What is inside it (:func:`cfaug.learn.swap.metadata.inner_datasets`) is asked too.
    """
    return {said for one in inner_datasets(dataset) for said in _said(one)}


def _said(one: Any) -> Iterator[str]:
    for name in SAYS:
        text = _text(getattr(one, name, None))
        if name == "version" and re.search("train|val|test", text) is None:
            continue  # "1.0-dev" is no split
        yield from (part.strip() for part in text.split("+") if part.strip())
    for name in FLAGS:
        flag = _flag(getattr(one, name, None))
        if flag is not None:
            yield "train" if flag else "test"
    yield from (name for name in REVERSED if _flag(getattr(one, name, None)))
    if isinstance(one, LSUN):  # "kitchen_val"
        yield from (name.rpartition("_")[2] for name in getattr(one, "classes", ()))
    if isinstance(one, Omniglot):
        yield "background" if getattr(one, "background", True) else "evaluation"


def _flag(value: Any) -> bool | None:
    """A flag that a data set may have under some name; None for a method, a number, or nothing."""
    is_flag = isinstance(value, bool | np.bool_) or (isinstance(value, int | np.integer) and value in (0, 1))
    return bool(value) if is_flag else None


def _text(split: Any) -> str:
    """A split as text: of a path its last part that names one; nothing where it is no text, no Enum and no NamedSplit."""
    if isinstance(split, Enum):
        split = split.value if isinstance(split.value, str) else split.name
    if not isinstance(split, str) and type(split).__module__ != "datasets.splits":
        return ""
    parts = re.split(r"[/\\]", str(split))
    return next((part for part in reversed(parts) if is_evaluated(part) or "train" in part.lower()), str(split))


def is_evaluated(split: str) -> bool:
    """Whether the name of a split is one of validation, development or test: by a word of it, wherever that stands."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", TRAINVAL.sub("trainval", split))
    return EVALUATED.search(" ".join(words).lower()) is not None
