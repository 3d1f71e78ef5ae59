"""Counts of images that forked and spawned DataLoader workers share with the process that reads them."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from cfaug.learn.pixel_swap import PixelLookup

SETTLE = 0.05  # seconds in which two workers that would warn at the same moment notice one another


class SharedCounts:
    """``seen``, ``matched``, ``swapped``, added to by any number of processes that inherited or were sent the object.

    One row of shared memory a process, so no two of them write the same number and no lock is needed.
    """

    ROWS = 1021  # prime: processes that start one after another get rows of their own
    OWNER, SEEN, MATCHED, SWAPPED = range(4)

    _process: int
    _row: int

    def __init__(self) -> None:
        self._share(torch.zeros((self.ROWS + 1, 4), dtype=torch.int64))  # the last row: who gave the warning

    def add(self, matched: bool, swapped: bool) -> None:
        """One more image."""
        at = 4 * self._mine()
        self._numbers[at + self.SEEN] += 1
        self._numbers[at + self.MATCHED] += matched
        self._numbers[at + self.SWAPPED] += swapped

    def total(self, column: int) -> int:
        """The sum over all processes."""
        return int(self._table[: self.ROWS, column].sum())

    @property
    def warned(self) -> bool:
        """Whether some process has the warning."""
        return bool(self._table[self.ROWS, self.OWNER])

    def claim_warning(self) -> bool:
        """True in one process, once: the last that wrote its number while nobody had it yet."""
        if self.warned:
            return False
        self._table[self.ROWS, self.OWNER] = os.getpid()
        time.sleep(SETTLE)
        return int(self._table[self.ROWS, self.OWNER]) == os.getpid()

    def _mine(self) -> int:
        number = os.getpid()
        if number != self._process:
            owners = self._table[: self.ROWS, self.OWNER]
            at = number % self.ROWS
            for _ in range(self.ROWS):  # with more processes than rows the last ones share theirs
                if owners[at] in (0, number):
                    break
                at = (at + 1) % self.ROWS
            owners[at] = number
            self._process, self._row = number, at
        return self._row

    def _share(self, table: torch.Tensor) -> None:
        self._held = table if table.is_shared() else table.zero_().share_memory_()  # type: ignore[no-untyped-call]
        self._table: npt.NDArray[np.int64] = self._held.numpy()
        # the same memory, ten times as quick to count in
        self._numbers: memoryview = self._table.reshape(-1).data
        self._process, self._row = -1, -1

    def __getstate__(self) -> torch.Tensor:
        # sent to a worker it stays the same memory; pickled or copied in the ordinary way it does not, and is zeroed
        return self._held

    def __setstate__(self, table: torch.Tensor) -> None:
        self._share(table)


class Counting:
    """What a thing with a ``lookup`` has counted, in this process and in DataLoader workers."""

    lookup: PixelLookup

    @property
    def seen(self) -> int:
        """Images looked up."""
        return self.lookup.counts.total(SharedCounts.SEEN)

    @property
    def matched(self) -> int:
        """Images that the shards know."""
        return self.lookup.counts.total(SharedCounts.MATCHED)

    @property
    def swapped(self) -> int:
        """Images that were replaced."""
        return self.lookup.counts.total(SharedCounts.SWAPPED)
