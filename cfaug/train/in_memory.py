"""A mixture held in memory: every image and every sample that can be drawn, once, as uint8."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from cfaug.errors import DataError, UsageError
from cfaug.learn.dataset import CounterfactualDataset, table_of
from cfaug.learn.image_types import as_pixels
from cfaug.learn.labels import Labels, class_in
from cfaug.train.training_sets import MixedImages

IN_PLACE = ("replace", "groups")  # policies under which position i always has the label of image i


def materialise(
    dataset: CounterfactualDataset,
    groups: Callable[[pd.DataFrame], npt.NDArray[np.int64]] | None = None,
    transform: Callable[[torch.Tensor], torch.Tensor] | None = None,
    held: MixedImages | None = None,
    levels: Callable[[pd.DataFrame], npt.NDArray[np.int64]] | None = None,
    paired: bool = False,
    pool_of: Callable[[npt.NDArray[np.int64]], torch.Tensor] | None = None,
) -> MixedImages:
    """The mixture held in memory as uint8: one copy of every image and of every sample that can be drawn.

    The draw of (seed, epoch, index) is that of ``dataset[i]``; the base's transform is NOT applied, ``transform`` (on uint8 batches) is.
    ``groups`` maps an attribute table to group codes; with it a drawn counterfactual counts in the group of its own attributes, and the
    base must be an AttributeDataset; ``levels`` maps it to codes of the spurious attributes. ``held`` is what a different mixture of
    the same base, shards and groups gave: its images are shared, not decoded again. ``paired``: the real image stands beside what is
    drawn. ``pool_of``: in place of images, what stands for all real ones and then for the samples of the rows that it is given.
    """
    if dataset.policy not in IN_PLACE:
        raise UsageError(
            f"materialise: expected policy {' or '.join(IN_PLACE)}, got {dataset.policy!r}; read it item by item"
        )
    if held is not None and isinstance(held.draw, _PoolDraw):
        return held.redrawn(replace(held.draw, dataset=dataset), transform, paired, shown_origins(dataset))
    base, reader, matches = dataset.opened, dataset.reader, dataset.matches
    spans = zip(matches.start.tolist(), matches.total.tolist())
    used = np.unique(np.concatenate([matches.rows[first : first + count] for first, count in spans])).astype(np.int64)
    pool = _pixels(dataset, used) if pool_of is None else pool_of(used)
    place = np.full(len(reader) + 1, -1, dtype=np.int64)
    place[used] = len(base) + np.arange(len(used))
    codes = attributes = None
    if groups is not None or levels is not None:
        drawn = pd.DataFrame([reader.record(row)["attributes"] for row in used.tolist()])
        table = pd.concat([table_of(dataset.base), drawn], ignore_index=True)
        codes = None if groups is None else torch.from_numpy(np.ascontiguousarray(groups(table)))
        attributes = None if levels is None else torch.from_numpy(levels(table))
    targets = torch.as_tensor(_targets(dataset), dtype=torch.int64)
    origins = torch.from_numpy(origins_of(len(base), reader.nulls[used]))
    draw = _PoolDraw(dataset, place)
    return MixedImages(pool, targets, draw, codes, transform, attributes, paired, origins, shown_origins(dataset))


def origins_of(real: int, nulls: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Origins of ``real`` images followed by samples: 0 real, 1 counterfactual, 2 reconstruction."""
    return np.concatenate([np.zeros(real, np.int64), np.where(nulls, 2, 1)])


def shown_origins(dataset: CounterfactualDataset) -> list[int]:
    """The origins that a mixture draws: of 0 real, 1 counterfactual, 2 reconstruction those with a share."""
    shares = (1 - dataset.p - dataset.null_p, dataset.p, dataset.null_p)
    return [origin for origin, share in enumerate(shares) if share > 1e-9]


def _pixels(dataset: CounterfactualDataset, used: npt.NDArray[np.int64]) -> torch.Tensor:
    base, reader = dataset.opened, dataset.reader
    real = np.stack([as_pixels(base.picture(i)) for i in range(len(base))])
    drawable = [_same_shape(reader.image(row), real[0], reader.where(row)) for row in used.tolist()]
    return torch.from_numpy(np.concatenate([real, np.stack(drawable)])).permute(0, 3, 1, 2).contiguous()


@dataclass(frozen=True)
class _PoolDraw:
    """epoch -> pool rows: the dataset's draw, with real images first in the pool; ``place`` maps shard rows to it."""

    dataset: CounterfactualDataset
    place: npt.NDArray[np.int64]

    def __call__(self, epoch: int) -> torch.Tensor:
        _, rows = self.dataset.draws(epoch)
        return torch.from_numpy(np.where(rows < 0, np.arange(len(rows)), self.place[rows]))


def _same_shape(pixels: npt.NDArray[np.uint8], factual: npt.NDArray[np.uint8], where: str) -> npt.NDArray[np.uint8]:
    if pixels.shape[2] == 1 and factual.shape[2] == 3:
        pixels = np.repeat(pixels, 3, axis=2)
    if pixels.shape != factual.shape:
        raise DataError(
            f"{where}: expected an image of shape {factual.shape} as its source has, got {pixels.shape}; generate again"
        )
    return pixels


def _targets(dataset: CounterfactualDataset) -> list[int]:
    found: list[int] = []
    labels = Labels(dataset.opened)
    for i in range(len(dataset.opened)):
        label = class_in(labels[i])
        if not isinstance(label, int):
            raise UsageError(f"materialise: expected a class number as the label of image {i}, got {label!r}")
        found.append(label)
    return found
