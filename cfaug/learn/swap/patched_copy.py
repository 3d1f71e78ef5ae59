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

    The copy owns its containers: of every dict and list (of subclasses too) among its attributes it has a shallow copy,
    so that what it puts into a cache never reaches its user. Everything else is shared: arrays, files, mappings that are
    no dicts (h5py, zarr), and what lies deeper. Only what is set on the original is carried over, not what is changed
    inside a container there; what the copy opened for itself (a file) it keeps. A cache may so be filled twice, and a
    list costs 8 bytes an entry more; ``shared=True`` for a data set that is known to keep nothing. As safe in threads as
    the original. AttributeError or TypeError for a data set whose attributes cannot be set or copied.
    """

    def __init__(self, original: Any, exchanged: Mapping[str, Any], shared: bool = False) -> None:
        self.original, self._exchanged, self._shared = original, exchanged, shared
        self._copy = copy.copy(original)
        self._known: dict[str, Any] = {}
        for name, value in exchanged.items():
            setattr(self._copy, name, value)
        self._follow()

    def _follow(self) -> None:
        known = self._known
        for name, value in getattr(self.original, "__dict__", known).items():
            if known.get(name, known) is value:
                continue
            if name not in self._exchanged:
                own = isinstance(value, (dict, list)) and not self._shared
                setattr(self._copy, name, copy.copy(value) if own else value)
            known[name] = value

    def __getitem__(self, i: int) -> Any:
        self._follow()
        return self._copy[i]


class Held(threading.local):
    """The picture of the item in the making, one a thread, and what it has replaced so far."""

    picture: Image.Image | None = None
    looking = False
    trying = False  # a transform with a generator of its own is to draw nothing from it
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
        self.looking, self.inner = True, None
        try:
            twin[i]
        except Seen as seen:
            return seen.what
        finally:
            self.looking = False
        return None
