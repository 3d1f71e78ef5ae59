"""What was used last, made when it is missing: for threads at once, and for processes forked while they are at it."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Latest(Generic[K, V]):
    """The values of the keys that were asked for last, up to `most` of `weight` in all, and at least one.

    Threads that miss one key wait for the first of them; different keys are made side by side. What `make` raises goes to
    who asked, and the next one tries again. Not picklable: who holds one makes a new one from what it is.

    Args:
        most: the weights of what is kept, together.
        make: the value of a key; called without the lock.
        weight: of a key's value, the same each time; 1 by default.
    """

    def __init__(self, most: int, make: Callable[[K], V], weight: Callable[[K], int] = lambda key: 1) -> None:
        self._most, self._make, self._weight = most, make, weight
        self._held: OrderedDict[K, V] = OrderedDict()
        self._renew()
        _ALL.add(self)

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: K) -> V:
        """The value of `key`, made if it is not held."""
        with self.lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
            gate = self._gates.setdefault(key, threading.Lock())
        with gate:
            with self.lock:
                if key in self._held:  # made while this thread waited
                    self._held.move_to_end(key)
                    return self._held[key]
            made = self._make(key)
            with self.lock:
                self._gates.pop(key, None)
                if key not in self._held:
                    self._total += self._weight(key)
                self._held[key] = made
                while self._total > self._most and len(self._held) > 1:
                    self._total -= self._weight(self._held.popitem(last=False)[0])
        return made

    def _renew(self) -> None:
        """Locks that nobody holds, and the sum anew: a thread of the process forked from may have been in the middle."""
        self.lock = threading.Lock()
        self._gates: dict[K, threading.Lock] = {}
        self._total = sum(map(self._weight, self._held))


_ALL: weakref.WeakSet[Latest[Any, Any]] = weakref.WeakSet()


def _after_fork() -> None:
    for latest in list(_ALL):
        latest._renew()


os.register_at_fork(after_in_child=_after_fork)
