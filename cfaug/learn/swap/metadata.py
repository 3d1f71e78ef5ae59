"""What a data set knows of its items without opening an image: source keys, labels, the data sets inside.

Looked for in places that are public: ``key(i)`` and ``schema`` of cfaug's data sets, ``samples`` and ``root`` of
torchvision's folders, ``targets``, WILDS' ``y_array``, columns of HF data sets; below a Subset.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterator, Mapping, Sequence
from sys import modules
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset, Dataset, StackDataset, Subset
from torchvision.datasets import DatasetFolder, VisionDataset

from cfaug.data import ArrayDataset, FolderDataset
from cfaug.learn.swap.images import Place, is_image_like, places, value_at

LABELS = ("label", "labels", "target", "targets", "y", "class", "fine_label")
UNKNOWN: Any = object()


def is_wilds(dataset: Any) -> bool:
    """Whether a data set has what WILDS' data sets have (Koh et al., WILDS, 2021), which need not be installed."""
    return callable(getattr(dataset, "get_input", None)) and all(
        hasattr(dataset, name) for name in ("y_array", "metadata_array", "__getitem__", "__len__")
    )


def keys_of(dataset: Any) -> Sequence[str] | None:
    """The source keys a data set knows, one an item, or None; no item is made."""
    if callable(getattr(dataset, "key", None)):
        return [str(dataset.key(i)) for i in range(len(dataset))]
    if isinstance(dataset, DatasetFolder):
        return _relative([path for path, _ in dataset.samples], os.path.expanduser(os.fspath(dataset.root)))
    if isinstance(dataset, Subset):
        inner = keys_of(dataset.dataset)
        return None if inner is None else [inner[int(i)] for i in dataset.indices]
    return None


def sources_of(dataset: Any) -> frozenset[Any]:
    """What tells apart the images of data sets that share keys: the folder they come from, or else the object."""
    root = dataset.root if isinstance(dataset, (DatasetFolder, FolderDataset)) else None
    return frozenset([id(dataset) if root is None else os.path.realpath(root)])


def _relative(paths: list[str], root: str) -> list[str]:
    # a path at a time through os.path.relpath would take seconds for a million files
    start = os.path.join(root, "")
    known = [path[len(start) :] if path.startswith(start) else os.path.relpath(path, root) for path in map(str, paths)]
    return known if os.sep == "/" else [path.replace(os.sep, "/") for path in known]


def inner_datasets(dataset: Any) -> Iterator[Any]:
    """The data set itself and every one that it is made of, each once.

    Those are all of a ConcatDataset and of a StackDataset, and the one of whatever else holds exactly one (a Subset, a class
    of a user's own).
    """
    asked: dict[int, Any] = {}
    waiting = [dataset]
    while waiting:
        one = waiting.pop()
        if id(one) in asked:
            continue
        asked[id(one)] = one  # kept: an id is given again once its object is gone
        yield one
        if isinstance(one, ConcatDataset):
            waiting += one.datasets
        elif isinstance(one, StackDataset):
            waiting += stacked(one).values()
        else:
            held = {id(value): value for value in held_datasets(one).values()}  # one may have two names
            waiting += held.values() if len(held) == 1 else ()


def stacked(dataset: StackDataset[Any]) -> dict[Any, Any]:
    """The data sets of a StackDataset by what its items have them under: an index or a key."""
    parts = dataset.datasets
    return dict(parts) if isinstance(parts, dict) else dict(enumerate(parts))


def part_of(dataset: ConcatDataset[Any], i: int) -> tuple[int, int]:
    """Which part of a ConcatDataset item i is of, and which item of that part, >= 0; i may count from the end."""
    i = range(len(dataset))[i]
    part = bisect.bisect_right(dataset.cumulative_sizes, i)
    return part, i - (dataset.cumulative_sizes[part - 1] if part else 0)


def held_datasets(dataset: Any) -> dict[str, Any]:
    """The attributes of a data set that are map-style data sets themselves, by name."""
    return {name: value for name, value in getattr(dataset, "__dict__", {}).items() if is_dataset(value)}


def is_dataset(value: Any) -> bool:
    """Whether a value is a map-style data set of a kind that is known: torch's, Hugging Face's, WILDS', cfaug's."""
    if isinstance(value, type):
        return False
    huggingface = modules.get("datasets")
    known = isinstance(value, (Dataset, ArrayDataset, FolderDataset)) or (
        huggingface is not None and isinstance(value, huggingface.Dataset)
    )
    return known or is_wilds(value)


def stored_label(dataset: Any, i: int) -> Any:
    """The label of item i as the data set stores it, after its ``target_transform``; UNKNOWN where it does not."""
    if isinstance(dataset, VisionDataset) and _joint(dataset):
        return UNKNOWN  # may change the label with the image
    if getattr(dataset, "do_transform_y", False):
        return UNKNOWN
    inner, indices = getattr(dataset, "dataset", None), getattr(dataset, "indices", None)
    if inner is not None and hasattr(dataset, "y_array") and hasattr(inner, "y_array") and indices is not None:
        return scalar(inner.y_array[indices[i]])  # a WILDS subset's own y_array is made anew each time
    values = getattr(dataset, "y_array", getattr(dataset, "targets", None))
    if isinstance(values, (Sequence, np.ndarray, torch.Tensor)) and len(values) == len(dataset):
        label = scalar(values[i])
        change = getattr(dataset, "target_transform", None)
        return label if change is None else change(label)
    return UNKNOWN


def _joint(dataset: VisionDataset[Any]) -> bool:
    return getattr(dataset, "transforms", None) is not None and not hasattr(dataset.transforms, "target_transform")


def label_in(item: Any, image: Place) -> Any:
    """The label in an item whose image stands at ``image`` (:func:`label_place`); None where there is none."""
    place = label_place(item, image)
    return None if place is None else scalar(value_at(item, place))


def label_place(item: Any, image: Place) -> Place | None:
    """Where the label stands in an item: the entry named as labels are, or what follows the image.

    None for bare images, for mappings whose label has another name and is not all that is left, and for masks.
    """
    if isinstance(item, Mapping):
        others = [name for name in item if name not in image]
        chosen = next((name for name in LABELS if name in item), others[0] if len(others) == 1 else None)
        return None if chosen is None or shows_image(item[chosen]) else (chosen,)
    for depth in range(len(image) - 1, -1, -1):
        container = value_at(item, image[:depth])
        after = container[image[depth] + 1 :] if isinstance(container, (tuple, list)) else ()
        if len(after) and not shows_image(after[0]):
            return (*image[:depth], image[depth] + 1)
    return None


def entries_beside(item: Any, image: Place) -> list[Place]:
    """Where everything stands that an item has beside its image, at any depth above the image."""
    found: list[Place] = []
    for depth, key in enumerate(image):
        container = value_at(item, image[:depth])
        keys: list[Any] = list(container) if isinstance(container, Mapping) else []
        if isinstance(container, tuple | list):
            keys = [*range(len(container))]
        found += [(*image[:depth], other) for other in keys if other != key]
    return found


def shows_image(value: Any) -> bool:
    """Whether an image stands anywhere in a value."""
    return any(True for _ in places(value, is_image_like))


def scalar(value: Any) -> Any:
    """A tensor or array of one number as that number; anything else as it is."""
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)) and value.ndim == 0:
        return value.item()
    return value
