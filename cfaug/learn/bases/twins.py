"""A data set whose own code makes an item around another picture: a shallow copy of it, with something exchanged."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Mapping, MutableMapping
from typing import Any

from PIL import Image


class Seen(BaseException):
    """Leaves a ``__getitem__`` with what it was run for; no Exception, so that no data set handles it."""

    def __init__(self, what: Any) -> None:
        self.what = what


class _Written(list[Any]):
    """A list that knows where it was written to, and forgets it on demand."""

    written: dict[int, Any]

    def __setitem__(self, i: Any, value: Any) -> None:
        if isinstance(i, int):
            self.written.setdefault(i, self[i])
        super().__setitem__(i, value)

    def forget(self) -> None:
        for i, value in self.written.items():
            super().__setitem__(i, value)
        self.written = {}


class Twin:
    """A shallow copy of a data set with other attributes, kept in step with what is set on the original.

    Only what has changed on the original is carried over: what the copy opened for itself (a file) it keeps. What it
    puts into containers, as caches are filled, is taken out again after every item, else the data set would show its
    user counterfactuals: from a dict or list that grew, from the places of a list that were None, and, of an OrderedDict
    or a mapping of another kind, by giving the copy one of its own. Caches below other attributes are not found.
    AttributeError for a data set whose attributes cannot be set.
    """

    def __init__(self, original: Any, exchanged: Mapping[str, Any]) -> None:
        self.original, self._exchanged = original, exchanged
        self._copy = copy.copy(original)
        self._known: dict[str, Any] = {}
        self._growing: dict[str, Any] = {}
        self._renewed: dict[str, Any] = {}
        for name, value in exchanged.items():
            setattr(self._copy, name, value)
        self._follow()

    def _follow(self) -> None:
        known = self._known
        for name, value in getattr(self.original, "__dict__", known).items():
            if known.get(name, known) is value:
                continue
            known[name] = value
            self._growing.pop(name, None)
            self._renewed.pop(name, None)
            if name in self._exchanged:
                continue
            if isinstance(value, list) and type(value) is list and None in value:
                own = _Written(value)
                own.written = {}
                self._renewed[name] = value = own
            elif isinstance(value, MutableMapping) and (isinstance(value, OrderedDict) or not isinstance(value, dict)):
                self._renewed[name] = value = copy.copy(value)
            elif isinstance(value, (dict, list)):
                self._growing[name] = value
            setattr(self._copy, name, value)

    def __getitem__(self, i: int) -> Any:
        self._follow()
        before = [(container, len(container)) for container in self._growing.values()]
        try:
            return self._copy[i]
        finally:
            for container, length in before:
                if len(container) > length:
                    _shorten(container, length)
            for name, own in self._renewed.items():
                if isinstance(own, _Written):
                    own.forget()
                elif not _same_ends(own, self._known[name]):
                    self._renewed[name] = copy.copy(self._known[name])
                    setattr(self._copy, name, self._renewed[name])


def _shorten(container: Any, length: int) -> None:
    if isinstance(container, list):
        del container[length:]
    while len(container) > length:
        container.popitem()  # a dict's last


def _same_ends(one: Any, other: Any) -> bool:
    """Whether two ordered dicts have as many keys and the same last one; False for what has no order."""
    if not isinstance(one, OrderedDict) or len(one) != len(other):
        return False
    return not one or next(reversed(one)) is next(reversed(other))


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
