"""A data set whose own code makes an item around another picture: a shallow copy of it, with something exchanged."""

from __future__ import annotations

import copy
import threading
from typing import Any

from PIL import Image


class Seen(BaseException):
    """Leaves a ``__getitem__`` with what it was run for; no Exception, so that no data set handles it."""

    def __init__(self, what: Any) -> None:
        self.what = what


class Twin:
    """A shallow copy of a data set with other attributes, kept in step with what is set on the original.

    Only what has changed on the original is carried over: what the copy opened for itself (a file) it keeps.
    """

    def __init__(self, original: Any, **changed: Any) -> None:
        self.original, self._changed = original, frozenset(changed)
        self._copy = copy.copy(original)
        for name, value in changed.items():
            setattr(self._copy, name, value)
        self._known = dict(getattr(original, "__dict__", {}))

    def __getitem__(self, i: int) -> Any:
        known = self._known
        for name, value in getattr(self.original, "__dict__", known).items():
            if known.get(name, known) is not value:
                known[name] = value
                if name not in self._changed:
                    setattr(self._copy, name, value)
        return self._copy[i]


class Held(threading.local):
    """The picture of the item in the making, one a thread, and what it has replaced so far."""

    picture: Image.Image | None = None
    looking = False
    lazy = False  # whether what was looked at last had not been decoded
    replaced: Any = None

    def make(self, twin: Twin, i: int, picture: Image.Image) -> Any:
        """Item i of the twin around ``picture``; ``replaced`` says afterwards what made way for it."""
        self.picture, self.replaced = picture, None
        try:
            return twin[i]
        finally:
            self.picture = None

    def look(self, twin: Twin, i: int) -> Any:
        """What the twin would replace in item i; None when it replaces nothing."""
        self.looking = True
        try:
            twin[i]
        except Seen as seen:
            return seen.what
        finally:
            self.looking = False
        return None
