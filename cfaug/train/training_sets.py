"""Where a training batch comes from: images or a mixture in memory, or a map-style dataset read by a DataLoader.

A TrainingSet knows its targets and its group codes before any image is read, so a sampler can balance them; it is then
handed the epoch's batches as lists of positions. ``groups(epoch)`` may change from epoch to epoch, because a mixture
draws a different image, hence a different group, at the same position.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cfaug.errors import DataError
from cfaug.train.objectives.weights import origin_weights

Batch = tuple[Tensor, Tensor, Tensor | None]
"""images uint8 (B, C, H, W), pairs of them (B, 2, C, H, W), or features (B, D) or (B, 2, D); targets (B,) int64, group codes (B,) or
(B, A) int64 or None."""


@runtime_checkable
class TrainingSet(Protocol):
    """What ``train_classifier`` trains on."""

    targets: Tensor
    """(N,) int64 class codes"""
    shape: tuple[int, int, int]
    """channels, height, width"""
    group_count: int
    """number of group codes, 0 when there are none"""
    shown: int
    """positions of one epoch: N, or fewer where there are more images than others have"""

    def groups(self, epoch: int) -> Tensor | None:
        """Group codes (N,) or (N, A) of what the epoch shows at each position."""
        ...

    def attributes(self, epoch: int) -> Tensor | None:
        """Codes (N, A) of the spurious attributes alone, not crossed with the target, of what the epoch shows at each position."""
        ...

    def balance(self, epoch: int) -> Tensor | None:
        """Relative weights (N,) under which groups are even within each origin (see ``origin_weights``); None: all have one origin."""
        ...

    def batches(self, epoch: int, order: Sequence[Tensor]) -> Iterator[Batch]:
        """The epoch's batches; ``order`` is a sequence of int64 position tensors."""
        ...


def count_groups(codes: Tensor | None) -> int:
    """1 + the largest code (0 without codes)."""
    return 0 if codes is None or not codes.numel() else int(codes.max()) + 1


class MixedImages:
    """A mixture in memory: a pool of uint8 images (P, C, H, W) and, for every epoch, which pool row stands at each position.

    ``draw(epoch)`` returns pool rows (N,) int64 (None: row i at position i); ``pool_groups`` are the group codes of the pool's
    rows, (P,) or (P, A), so a drawn counterfactual counts in the group of its own attributes, and ``pool_attributes`` (P, A) those
    of the spurious attributes alone; ``pool_origins`` (P,) say where rows
    come from, and ``shown`` which origins are drawn. ``transform`` maps an image batch to an image batch (uint8 or float in [-1, 1]); nothing is
    added by default. ``paired``: every batch has row i of position i, the real image, beside what is drawn. A pool of features,
    float (P, D), is trained on in the same way.
    """

    def __init__(
        self,
        pool: Tensor,
        targets: Tensor,
        draw: Callable[[int], Tensor] | None,
        pool_groups: Tensor | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
        pool_attributes: Tensor | None = None,
        paired: bool = False,
        pool_origins: Tensor | None = None,
        shown: Collection[int] = (),
    ) -> None:
        self.pool, self.targets, self.draw, self.transform = pool, targets.long(), draw, transform
        self._groups = None if pool_groups is None else pool_groups.long()
        self._attributes, self._origins, self.paired = pool_attributes, pool_origins, paired
        self._drawn_origins = tuple(shown)
        self.shape = (int(pool.shape[1]), *(map(int, pool.shape[2:4]) if pool.ndim == 4 else (1, 1)))  # type: ignore[assignment]
        self.group_count, self.shown = count_groups(self._groups), len(self.targets)

    def redrawn(
        self,
        draw: Callable[[int], Tensor],
        transform: Callable[[Tensor], Tensor] | None = None,
        paired: bool = False,
        shown: Collection[int] = (),
    ) -> MixedImages:
        """The same pool, targets and groups under a different draw, of the origins ``shown``; nothing is copied."""
        return MixedImages(
            self.pool, self.targets, draw, self._groups, transform, self._attributes, paired, self._origins, shown
        )

    def __len__(self) -> int:
        return len(self.targets)

    def groups(self, epoch: int) -> Tensor | None:
        return self._drawn(self._groups, epoch)

    def attributes(self, epoch: int) -> Tensor | None:
        return self._drawn(self._attributes, epoch)

    @cached_property
    def pool_balance(self) -> Tensor | None:
        """Relative weights (P,) of the pool's rows (see ``origin_weights``); None without groups or origins."""
        if self._groups is None or self._origins is None:
            return None
        return origin_weights(self._groups, self._origins, self._drawn_origins)

    def balance(self, epoch: int) -> Tensor | None:
        return self._drawn(self.pool_balance, epoch)

    def _drawn(self, codes: Tensor | None, epoch: int) -> Tensor | None:
        return codes if codes is None or self.draw is None else codes[self.draw(epoch)]

    def batches(self, epoch: int, order: Sequence[Tensor]) -> Iterator[Batch]:
        rows = None if self.draw is None else self.draw(epoch)
        for positions in order:
            chosen = positions if rows is None else rows[positions]
            images = self.pool[chosen]
            images = images if self.transform is None else self.transform(images)
            if self.paired:
                images = torch.stack([self.pool[positions], images], dim=1)
            yield images, self.targets[positions], None if self._groups is None else self._groups[chosen]


class TensorImages(MixedImages):
    """Images in memory: uint8 (N, C, H, W), targets (N,) and optional group codes (N,) or (N, A); ``transform`` as above."""

    def __init__(
        self,
        images: Tensor,
        targets: Tensor,
        groups: Tensor | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
        attributes: Tensor | None = None,
    ) -> None:
        if images.ndim != 4 or images.dtype != torch.uint8:
            raise DataError(
                f"images: expected uint8 (N, C, H, W), got {images.dtype} {tuple(images.shape)}; convert them"
            )
        if len(images) != len(targets) or (groups is not None and len(groups) != len(images)):
            raise DataError(
                f"targets and groups: expected {len(images)} of each, one per image, got a different number; drop or add some"
            )
        super().__init__(images, targets, None, groups, transform, attributes)
        self.images = images


@dataclass(frozen=True)
class _Ordered:
    """A batch sampler over batches that are decided beforehand."""

    order: Sequence[Tensor]

    def __iter__(self) -> Iterator[list[int]]:
        return (positions.tolist() for positions in self.order)

    def __len__(self) -> int:
        return len(self.order)


class StreamedImages:
    """A map-style dataset of (uint8 image (C, H, W), target[, group code]) that does not fit in memory, or changes at every look.

    Targets and group codes are given separately, so that sampling reads no image; ``groups``, ``attributes`` and ``balance`` may be functions of
    the epoch, for a mixture whose drawn images change group. ``workers`` DataLoader processes read; the dataset's ``set_epoch``
    is called when it has one. An item of a paired mixture is ((image, target), (image, target)).
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        targets: Tensor,
        groups: Tensor | Callable[[int], Tensor] | None = None,
        group_count: int = 0,
        workers: int = 0,
        attributes: Tensor | Callable[[int], Tensor] | None = None,
        balance: Callable[[int], Tensor] | None = None,
    ) -> None:
        self._balance = balance
        self.dataset, self.targets, self.workers = dataset, targets.long(), workers
        self._groups, self._attributes = groups, attributes
        first = dataset[0][0] if len(self.targets) else torch.zeros(3, 8, 8)
        first = first[0] if isinstance(first, tuple | list) else first
        if not isinstance(first, Tensor) or first.ndim != 3:
            raise DataError(f"training images: expected a tensor (C, H, W), got {type(first).__name__}; transform them")
        self.shape = (int(first.shape[0]), int(first.shape[1]), int(first.shape[2]))
        self.group_count, self.shown = group_count or count_groups(self.groups(0)), len(self.targets)

    @classmethod
    def from_dataset(cls, dataset: Dataset[Any], workers: int = 0) -> StreamedImages:
        """Targets and groups are read once: from ``.targets`` / ``.groups`` where it has them, else from every item."""
        if hasattr(dataset, "targets"):
            groups = getattr(dataset, "groups", None)
            coded_groups = None if groups is None else torch.as_tensor(groups)
            return cls(dataset, torch.as_tensor(dataset.targets), coded_groups, workers=workers)
        items = [dataset[i][1:] for i in range(len(dataset))]  # type: ignore[arg-type]
        targets = torch.tensor([int(item[0]) for item in items], dtype=torch.int64)
        coded = bool(items) and len(items[0]) > 1
        groups = torch.stack([torch.as_tensor(item[1]) for item in items]) if coded else None
        return cls(dataset, targets, groups, workers=workers)

    def __len__(self) -> int:
        return len(self.targets)

    def groups(self, epoch: int) -> Tensor | None:
        codes = self._groups(epoch) if callable(self._groups) else self._groups
        return None if codes is None else codes.long()

    def attributes(self, epoch: int) -> Tensor | None:
        return self._attributes(epoch) if callable(self._attributes) else self._attributes

    def balance(self, epoch: int) -> Tensor | None:
        return None if self._balance is None else self._balance(epoch)

    def batches(self, epoch: int, order: Sequence[Tensor]) -> Iterator[Batch]:
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)
        codes = self.groups(epoch)
        loader = DataLoader(self.dataset, batch_sampler=_Ordered(order), num_workers=self.workers)
        for positions, item in zip(order, loader):
            images = item[0] if isinstance(item[0], Tensor) else torch.stack([item[0][0], item[1][0]], dim=1)
            yield images, self.targets[positions], None if codes is None else codes[positions]
