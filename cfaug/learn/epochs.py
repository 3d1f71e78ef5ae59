"""The epoch that a training loop sets and every worker sees, and a word to the loop that forgets to."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cfaug.errors import UsageError
from cfaug.learn.checks import whole

log = logging.getLogger(__name__)

EPOCH, SET, SERVED, TOLD, FIRST, RANKS = range(6)
# times as many items as there are, all in one epoch: one pass may be a look at the data, this is training
FORGOTTEN = 3
LAST = (1 << 63) - 1


def _ranks() -> int:
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if there else 1


class Epochs:
    """``epoch`` and ``set_epoch`` of whatever draws anew every epoch: in shared memory, so that a worker which was started once
    (``persistent_workers=True``), by fork or by spawn, sees the epoch that is set later. A pickled copy has its own.

    Whoever never sets it sees the same draw in every epoch, and nothing fails: then there is one warning.
    """

    def __init__(self) -> None:
        self._clock = torch.zeros(6, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._view: npt.NDArray[np.int64] | None = None

    def __getstate__(self) -> dict[str, Any]:
        self._shared()[RANKS] = _ranks()  # a spawned worker has no process group to ask
        return {**self.__dict__, "_view": None}

    @property
    def epoch(self) -> int:
        """The epoch whose draw is shown."""
        return int(self._shared()[EPOCH])

    def set_epoch(self, epoch: int) -> None:
        """Show epoch ``epoch``'s draw from now on, in every worker; UsageError below 0 and from 2 ** 63 on."""
        number, shared = whole("epoch", epoch), self._shared()
        if number > LAST:
            raise UsageError(f"epoch: expected at most {LAST}, came {number}; number the epochs from 0")
        shared[EPOCH], shared[SET] = number, 1

    def _serve(self, items: int, length: int) -> None:
        """``items`` more of ``length`` were given out. The count is shared and unlocked: what it loses does not matter here.

        Of several ranks each is taken to be given its share.
        """
        shared = self._shared()
        if shared[SET] or shared[TOLD]:
            return
        shared[SERVED] += items * max(_ranks(), int(shared[RANKS]))
        if shared[SERVED] > FORGOTTEN * length:
            shared[TOLD] = 1
            log.warning(
                "%s has shown its %d items %d times and set_epoch was never called: every epoch shows the same draw; call "
                "set_epoch(epoch) at the head of each", type(self).__name__, length, FORGOTTEN,
            )  # fmt: skip

    def _serve_one(self, mark: int) -> None:
        """An item of a stream without length was given out; ``mark``, 64 bits, names it. The first one is waited for."""
        shared = self._shared()
        if shared[SET] or shared[TOLD]:
            return
        mark = (mark & (1 << 63) - 1) or 1
        shared[FIRST] = shared[FIRST] or mark
        shared[SERVED] += shared[FIRST] == mark
        if shared[SERVED] > FORGOTTEN:
            shared[TOLD] = 1
            log.warning(
                "%s has been given one image %d times and set_epoch was never called: if these are epochs, every one shows the "
                "same draw; call set_epoch(epoch) at the head of each", type(self).__name__, FORGOTTEN + 1,
            )  # fmt: skip

    def _shared(self) -> npt.NDArray[np.int64]:
        if self._view is None:
            self._view = self._clock.numpy()
        return self._view
