"""Whether a base shows at each index the image that was there when it was wrapped.

Else the counterfactual of one image would stand under the label of another. Data sets that name their images (a path, a
key) are asked for the name of each that is swapped (:func:`mark_of`); of others a few images are looked
at, once an epoch in every process.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import ConcatDataset, Subset
from torchvision.datasets import DatasetFolder

from cfaug.data.datasets import AttributeDataset
from cfaug.errors import DataError, UsageError
from cfaug.learn.image_types import recognisable
from cfaug.learn.match import Matches
from cfaug.learn.spread import spread
from cfaug.learn.swap import Swappable
from cfaug.learn.swap.base import undrawn
from cfaug.learn.swap.metadata import part_of

LOOKED_AT = 8  # images of those that have samples: a permutation leaves none of a thousand in place, mostly


def refuse_moved(base: Swappable, matches: Matches) -> None:
    """DataError when one of LOOKED_AT images is not the source of its samples. No generator is advanced.

    Not noticed: two images that changed places, and data sets which show no untransformed pixels.
    """
    matched = np.flatnonzero(matches.total)
    with undrawn():
        for i in matched[spread(len(matched), LOOKED_AT)].tolist():
            try:
                image = recognisable(base.picture(i))
            except UsageError:
                return
            if image is None or not matches.reader.confirms(int(matches.rows[matches.start[i]]), image):
                raise reordered(i)


def reordered(i: int) -> DataError:
    """The error of a base whose image i is another than when it was wrapped."""
    return DataError(
        f"base: expected at index {i} the image that was there when it was wrapped, came another; it was reordered since: "
        "wrap it again"
    )


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
