"""The epoch that a training loop sets and every worker sees."""

from __future__ import annotations

import torch

from cfaug.errors import UsageError


class Epochs:
    """``epoch`` and ``set_epoch`` of whatever draws anew every epoch: in shared memory, so that a worker which was started once
    (``persistent_workers=True``), by fork or by spawn, sees the epoch that is set later. A pickled copy has its own."""

    def __init__(self) -> None:
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    @property
    def epoch(self) -> int:
        """The epoch whose draw is shown."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Show epoch ``epoch``'s draw from now on, in every worker; UsageError below 0."""
        if isinstance(epoch, bool) or int(epoch) != epoch or epoch < 0:
            raise UsageError(f"epoch: expected a whole number of at least 0, came {epoch!r}")
        self._epoch.fill_(int(epoch))
