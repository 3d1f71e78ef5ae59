"""What the wrapper must know of the data sets inside its base: which image stands where, who draws epochs, who swaps already."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn
from torch.utils.data import ConcatDataset, Subset
from torchvision.datasets import DatasetFolder

from cfaug.data.datasets import AttributeDataset
from cfaug.learn.bases.facts import inner_datasets as inner_datasets
from cfaug.learn.bases.facts import part_of
from cfaug.learn.counts import Counting


def tell_epoch(dataset: Any, epoch: int) -> None:
    """``set_epoch`` of every data set inside that has one (as ever, not of the copy that a persistent worker holds)."""
    for part in inner_datasets(dataset):
        if callable(getattr(part, "set_epoch", None)):
            part.set_epoch(epoch)


def swaps_already(dataset: Any) -> bool:
    """Whether a transform of the data set, or of one inside it, is a RandomCounterfactual (torchvision's or albumentations')."""
    return any(has_swap(value) for part in inner_datasets(dataset) for value in getattr(part, "__dict__", {}).values())


def has_swap(transform: Any, depth: int = 8) -> bool:
    """Whether a transform is a RandomCounterfactual, or is composed of one."""
    if isinstance(transform, Counting) or not callable(transform) or depth == 0:
        return isinstance(transform, Counting)
    # Compose and its like have ``transforms``, the pair that torchvision's data sets make of theirs ``transform``
    inside = getattr(transform, "transforms", None)
    below = [*inside] if isinstance(inside, Sequence | nn.ModuleList) else [getattr(transform, "transform", None)]
    below += transform.children() if isinstance(transform, nn.Sequential) else []
    return any(has_swap(one, depth - 1) for one in below)


def mark_of(dataset: Any, i: int) -> int | None:
    """32 bits of what names the image at index i (its path, its key), None where the data set has no such name.

    A data set whose list of files is shuffled after it was matched would show the counterfactual of one image with the label
    of another.
    """
    if isinstance(dataset, Subset):
        return mark_of(dataset.dataset, int(dataset.indices[i]))
    if isinstance(dataset, ConcatDataset):
        part, j = part_of(dataset, i)
        return mark_of(dataset.datasets[part], j)
    if isinstance(dataset, DatasetFolder):
        return zlib.crc32(str(dataset.samples[i][0]).encode()) if i < len(dataset.samples) else -1
    if isinstance(dataset, AttributeDataset):
        return zlib.crc32(dataset.key(i).encode())
    return None


def marks_of(dataset: Any) -> npt.NDArray[np.uint32] | None:
    """(N,) :func:`mark_of` every index; None where the data set has no names."""
    if not len(dataset) or mark_of(dataset, 0) is None:
        return None
    marks = [mark_of(dataset, i) for i in range(len(dataset))]
    return None if None in marks else np.array(marks, dtype=np.uint32)
