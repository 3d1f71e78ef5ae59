"""The labels of a base: where they are found, and whether they are the classes that the shards were made for.

A label is found without making the item where the data set stores it (``targets``, ``y_array``, the table of cfaug's data sets, a label column of
Hugging Face's; through Subset and ConcatDataset), else in the item. Labels are numbers, names, arrays of one, whole floats or one-hot
rows. What is no class (several numbers, fractions, captions, an index) is not compared, and a warning says so.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from math import isnan
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset, Subset
from torchvision.datasets import VisionDataset

from cfaug.data.datasets import AttributeDataset
from cfaug.errors import DataError, described, listed
from cfaug.learn.image_types import Place, is_image_like, places, shows_image, value_at
from cfaug.learn.swap.patched_copy import is_huggingface
from cfaug.learn.swap.swappable import Swappable, undrawn
from cfaug.offline.read import ShardReader

log = logging.getLogger(__name__)

NAMES = ("label", "labels", "target", "targets", "y", "class", "fine_label")
ALL_DIFFERENT = 16  # labels from which on all of them being different says that they are an index or a name
LONGEST = 200  # characters in the name of a class; longer texts are captions
NOISE = 0.1  # share of them that may disagree: labels are corrected, and some are wrong


class Labels:
    """The label of every item of a base; ``source`` says for an error where they come from."""

    def __init__(self, base: Swappable) -> None:
        self._base, self._stored, self.source = base, None, "nowhere"
        if not len(base):
            return
        with undrawn():
            item = base.item(0)
        image = next(places(item, is_image_like), (0,))  # an image that was flattened: the usual place
        place = label_place(item, image)
        stored, self.source = stored_labels(base.dataset)
        if stored is not None and place is not None and _same(stored[0], value_at(item, place)):
            self._stored = stored
            return
        self.source = "nowhere" if place is None else "item" + "".join(f"[{key!r}]" for key in place)
        self.hidden = place is None and image != () and len(value_at(item, image[:-1])) > 1

    def __getitem__(self, i: int) -> Any:
        """The label of item i, None where there is none."""
        if self._stored is not None:
            return scalar(self._stored[i])
        item = self._base.item(i)
        place = label_place(item, next(places(item, is_image_like), (0,)))
        return None if place is None else scalar(value_at(item, place))

    hidden = False
    """Whether the first item has more than an image, and no label is found in it."""


def stored_labels(dataset: Any) -> tuple[Any, str]:
    """(the label of every item as its data set stores it, where that is), None where it does not."""
    if isinstance(dataset, Subset):
        inner, source = stored_labels(dataset.dataset)
        return (None if inner is None else [inner[int(i)] for i in dataset.indices]), source
    if isinstance(dataset, ConcatDataset):
        parts = [stored_labels(part) for part in dataset.datasets]
        whole = None if any(part is None for part, _ in parts) else [label for part, _ in parts for label in part]
        return whole, listed(dict.fromkeys(source for _, source in parts))
    if is_huggingface(dataset):
        names = [*(n for n, f in dataset.features.items() if type(f).__name__ == "ClassLabel"), *NAMES]
        column = next((name for name in names if name in dataset.column_names), None)
        whole = None if column is None else dataset.select_columns(column).with_format(None)[:][column]
        return whole, f"column {column!r}"
    if isinstance(dataset, AttributeDataset):
        target = dataset.schema.target
        return (None if target is None else dataset.schema.index(target, dataset.table[target])), f"column {target!r}"
    joint = isinstance(dataset, VisionDataset) and dataset.transforms is not None
    if joint and not hasattr(dataset.transforms, "target_transform"):
        return None, ""  # it may change the label with the image
    name = "y_array" if hasattr(dataset, "y_array") else "targets"
    values, change = getattr(dataset, name, None), getattr(dataset, "target_transform", None)
    if not isinstance(values, Sequence | np.ndarray | torch.Tensor) or len(values) != len(dataset):
        return None, ""
    return (values if change is None else [change(scalar(value)) for value in values]), f".{name}"


def label_place(item: Any, image: Place) -> Place | None:
    """Where the label stands in an item: the entry named as labels are, or what follows the image.

    None for bare images, for mappings whose label has a different name and is not all that is left, and for masks.
    """
    if isinstance(item, Mapping):
        others = [name for name in item if name not in image]
        chosen = next((name for name in NAMES if name in item), others[0] if len(others) == 1 else None)
        return None if chosen is None or shows_image(item[chosen]) else (chosen,)
    for depth in range(len(image) - 1, -1, -1):
        container = value_at(item, image[:depth])
        after = container[image[depth] + 1 :] if isinstance(container, tuple | list) else ()
        if len(after) and not shows_image(after[0]):
            return (*image[:depth], image[depth] + 1)
    return None


def check_labels(labels: Labels, reader: ShardReader, images: Iterable[tuple[int, int]]) -> None:
    """Labels of the base and targets in records must correspond one to one, on ``images``: (index, row of one of its samples) each.

    A warning tells of up to a tenth that disagree (labels that somebody corrected), and of labels that are no classes or are not found
    beside other entries. DataError where more disagree: these are different classes.
    """
    pairs: Counter[tuple[Hashable, Any]] = Counter()
    seen: dict[tuple[Hashable, Any], str] = {}
    for label, target, row in _comparable(labels, reader, images):
        pairs[label, target] += 1
        seen.setdefault((label, target), reader.where(row))
    agreed: dict[Hashable, Any] = {}
    for label, target in [pair for pair, _ in pairs.most_common()]:
        if label not in agreed and target not in agreed.values():
            agreed[label] = target
    different = [pair for pair in pairs if pair not in agreed.items()]
    if not different:
        return
    odd = sum(pairs[pair] for pair in different)
    label, target = most = max(different, key=lambda pair: pairs[pair])
    usual = next(pair for pair in pairs if pair != most and (pair[0] == label or pair[1] == target))
    line = (
        f"expected one target per label and one label per target, got label {label!r} with target {target!r} ({seen[most]}) and label "
        f"{usual[0]!r} with target {usual[1]!r} ({seen[usual]})"
    )
    if odd <= NOISE * pairs.total():
        log.warning(
            "%s: %s; so in %d of %d images: the base's label counts", reader.directory, line, odd, pairs.total()
        )
        return
    raise DataError(
        f"{reader.directory}: {line}: these are not the classes that the shards were made for ({odd} of {pairs.total()} images "
        f"disagree, labels taken from {labels.source}); check_labels=False if these are no labels, or if you regrouped them on purpose"
    )


def _comparable(
    labels: Labels, reader: ShardReader, images: Iterable[tuple[int, int]]
) -> list[tuple[Hashable, Any, int]]:
    """(class, target, row) of every image that has both; empty, with a warning, where labels are no classes or are not found."""
    looked: list[tuple[Hashable, Any, int]] = []
    why = ""
    for i, row in images:
        label, target = labels[i], reader.record(row)["target"]
        if target is None or isinstance(target, float) or (isinstance(label, float) and isnan(label)):
            continue  # nothing to compare
        if label is None:
            why = "none is found in an item; call it 'label', or put it behind the image" if labels.hidden else ""
            continue
        known = class_in(label)
        if known is None:
            why, looked = f"that of image {i} is {described(label)}, which is no class", []
            break
        looked.append((known, target, row))
    if len(looked) >= ALL_DIFFERENT and len({label for label, _, _ in looked}) == len(looked):
        if len({target for _, target, _ in looked}) < len(looked):
            why = f"all {len(looked)} that were looked at are different, so they are no classes"
        looked = []
    if why and not looked:
        log.warning(
            "%s: the labels of the base (from %s) are not compared with the classes of the shards: %s; check_labels=False if "
            "that is right", reader.directory, labels.source, why,
        )  # fmt: skip
    return looked


def class_in(label: Any) -> Hashable | None:
    """The class that a label means: a number, a text, the only one of an array or list, a whole float, the place of the one in
    a one-hot row. None for a label that means none: other floats and rows, long texts, mappings."""
    label = scalar(label)
    if isinstance(label, torch.Tensor):
        label = label.detach().cpu()
        label = (label.float() if label.is_floating_point() else label).numpy()
    if isinstance(label, list | tuple):
        try:
            label = np.asarray(label)
        except (TypeError, ValueError, RuntimeError):  # of several lengths
            return None
    if isinstance(label, np.ndarray):
        row = label.reshape(-1)
        if row.size == 1:
            return class_in(row[0])
        one_row = max(label.shape, default=0) == row.size > 1 and row.dtype.kind in "biuf"
        return int(row.argmax()) if one_row and np.isin(row, (0, 1)).all() and row.sum() == 1 else None
    if isinstance(label, float):
        return int(label) if label.is_integer() else None
    return label if isinstance(label, int) or (isinstance(label, str) and len(label) <= LONGEST) else None


def scalar(value: Any) -> Any:
    """A tensor or array of one number as that number; anything else as it is."""
    if isinstance(value, torch.Tensor | np.ndarray | np.generic) and value.ndim == 0:
        return value.item()
    return value


def _same(one: Any, other: Any) -> bool:
    try:
        return bool(np.array_equal(np.asarray(one), np.asarray(other)))
    except (TypeError, ValueError, RuntimeError):
        return False
