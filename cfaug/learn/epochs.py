"""The epoch that a training loop sets and every worker sees, and what a checkpoint says of it."""

from __future__ import annotations

import logging
import operator
from collections.abc import Mapping
from typing import Any

import torch

from cfaug.errors import UsageError, shown

log = logging.getLogger(__name__)

EPOCH, SET, SERVED = range(3)
FORGOTTEN = (
    3  # times as many items as there are, all in one epoch: one pass may be a look at the data, this is training
)
LAST = (1 << 63) - 1


class Epochs:
    """``epoch`` and ``set_epoch`` of an object that draws anew every epoch.

    The epoch is in shared memory, so that a worker which was started once (``persistent_workers=True``), by fork or by spawn, sees
    an epoch that is set later. A pickled copy has its own.
    """

    def __init__(self) -> None:
        self._clock = torch.zeros(3, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._numbers: memoryview | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_numbers": None}

    @property
    def epoch(self) -> int:
        """The epoch whose draw is shown."""
        return int(self._shared()[EPOCH])

    def set_epoch(self, epoch: int) -> None:
        """Show epoch ``epoch``'s draw from now on, in every worker; UsageError below 0 and from 2 ** 63 on."""
        number, shared = whole("epoch", epoch), self._shared()
        if number > LAST:
            raise UsageError(f"epoch: expected at most {LAST}, got {number}; number the epochs from 0")
        shared[EPOCH], shared[SET] = number, 1

    def _serve(self, items: int, length: int) -> None:
        """Count items given out. The count is shared and unlocked: losing a few does not matter here."""
        shared = self._shared()
        if shared[SET]:
            return
        before = shared[SERVED]
        shared[SERVED] = before + items
        if before <= FORGOTTEN * length < before + items:
            log.warning(
                "%s has shown its %d items %d times and set_epoch was never called: every epoch shows the same draw; call "
                "set_epoch(epoch) at the head of each", type(self).__name__, length, FORGOTTEN,
            )  # fmt: skip

    def _shared(self) -> memoryview:
        if self._numbers is None:
            self._numbers = self._clock.numpy().data
        return self._numbers


def tell_epoch(parts: Any, epoch: int) -> None:
    """``set_epoch`` of each data set in ``parts`` that has it."""
    for part in parts:
        if callable(getattr(part, "set_epoch", None)):
            part.set_epoch(epoch)


def whole(name: str, value: Any, least: int = 0) -> int:
    """`value` as an int (of 2.0 too, numpy's and torch's numbers too); UsageError unless it is whole and at least `least`."""
    try:
        number = int(value) if isinstance(value, float) and value.is_integer() else operator.index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or number < least:
        raise UsageError(f"{name}: expected a whole number of at least {least}, got {shown(value)}")
    return number


def same_state(state: Any, mine: Mapping[str, Any], free: str) -> None:
    """UsageError unless a checkpoint has the names of ``mine``, and but for ``free`` the same values."""
    if not isinstance(state, Mapping) or set(state) != set(mine):
        raise UsageError(f"state: expected {', '.join(mine)}, got {shown(state)}; pass what state_dict() gave")
    for name, own in mine.items():
        if name != free and state[name] != own:
            raise UsageError(
                f"state: expected {name}={shown(own)}, got {shown(state[name])}, so the draws would differ; build the data set as it "
                "was, or start anew"
            )
