"""A data set whose own code makes an item around another picture: a shallow copy of it, with something exchanged."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping
from typing import Any

from PIL import Image


class Seen(BaseException):
    """Leaves a ``__getitem__`` with what it was run for; no Exception, so that no data set handles it."""

    def __init__(self, what: Any) -> None:
        self.what = what


class Twin:
    """A shallow copy of a data set with other attributes, kept in step with what is set on the original.

    Only what has changed on the original is carried over: what the copy opened for itself (a file) it keeps. Containers
    that are empty are the copy's own: a data set that fills them as a cache would else show its user counterfactuals.
    AttributeError for a data set whose attributes cannot be set.
    """

    def __init__(self, original: Any, exchanged: Mapping[str, Any]) -> None:
        self.original = original
        self._copy = copy.copy(original)
        self._known = dict(getattr(original, "__dict__", {}))
        own = {name: copy.copy(value) for name, value in self._known.items() if _is_empty(value)}
        self._exchanged = frozenset([*exchanged, *own])
        for name, value in {**own, **exchanged}.items():
            setattr(self._copy, name, value)

    def __getitem__(self, i: int) -> Any:
        known = self._known
        for name, value in getattr(self.original, "__dict__", known).items():
            if known.get(name, known) is not value:
                known[name] = value
                if name not in self._exchanged:
                    setattr(self._copy, name, value)
        return self._copy[i]


def _is_empty(value: Any) -> bool:
    if not isinstance(value, (dict, list, set)):
        return False
    return not value or (isinstance(value, list) and value[0] is None and all(part is None for part in value))


class Held(threading.local):
    """The picture of the item in the making, one a thread, and what it has replaced so far."""

    picture: Image.Image | None = None
    looking = False
    lazy = False  # whether the image that was looked at last had not been decoded
    replaced: Any = None  # the image that made way for the picture, ...
    instead: Any = None  # ... and the picture in its type
    inner: int | None = None  # or the item of an inner data set that was swapped

    def make(self, twin: Twin, i: int, picture: Image.Image) -> Any:
        """Item i of the twin around ``picture``; ``replaced`` or ``inner`` say afterwards what made way for it."""
        self.picture, self.replaced, self.instead, self.inner = picture, None, None, None
        try:
            return twin[i]
        finally:
            self.picture = None

    def look(self, twin: Twin, i: int) -> Any:
        """What the twin would replace in item i: an image, or the index in an inner data set; None: nothing."""
        self.looking, self.lazy, self.inner = True, False, None
        try:
            twin[i]
        except Seen as seen:
            return seen.what
        finally:
            self.looking = False
        return None
