"""A shallow copy of a data set whose own code makes an item around a different picture, because a hook puts it there.

The hook stands in the copy for the data set's ``transform`` (or ``transforms``), for the ``loader`` of an ImageFolder, or for the image column
of a Hugging Face data set; data sets inside the data set (Subset, ConcatDataset, a wrapper of the user's own) are copied likewise. The user's
object is never modified.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping
from sys import modules
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset
from torchvision.datasets import DatasetFolder
from torchvision.datasets.folder import default_loader, pil_loader

from cfaug.data.datasets import AttributeDataset
from cfaug.errors import UsageError
from cfaug.learn.image_types import carried, image_place, in_mode, is_plain, like, value_at, with_value

TRANSFORMS = ("transform", "transforms")
Hooks = Callable[[Any], Mapping[str, Any]]
"""From a data set to the attributes that its copy has in place of its own."""


class Seen(BaseException):
    """Leaves a ``__getitem__`` with the image it was run for; not an Exception, so that no data set handles it."""

    def __init__(self, image: Any) -> None:
        self.image = image


class Held(threading.local):
    """The picture of the item in the making, one per thread, and what it has replaced so far."""

    picture: Image.Image | None = None
    looking = False
    trying = False  # a transform with a generator of its own is to draw nothing from it
    hook: Any = None  # the hook that placed the picture; no other one does so in the same item ...
    source: Any = None  # ... and the file or row it did so for: a second one in the same item is left as it is
    replaced: Any = None  # the image that made way for the picture ...
    instead: Any = None  # ... and the picture in its form

    def make(self, dataset: PatchedCopy, i: int, picture: Image.Image) -> Any:
        """Item i around ``picture``; ``hook`` says afterwards which hook placed it, if any."""
        self.picture, self.hook, self.source, self.replaced, self.instead = picture, None, None, None, None
        try:
            return dataset[i]
        finally:
            self.picture = None

    def look(self, dataset: PatchedCopy, i: int) -> Any:
        """The image of item i that a hook would replace, None where no hook is given one."""
        self.looking, self.hook, self.source = True, None, None
        try:
            dataset[i]
        except Seen as seen:
            return seen.image
        finally:
            self.looking = False
        return None

    def place(self, hook: Any, factual: Any) -> Any:
        """What the hook hands on in place of an image: the picture in its form. Raises Seen when only a look is wanted."""
        if self.looking:
            if isinstance(factual, Image.Image):
                factual.load()  # its file may be closed on the way out
            raise Seen(factual)
        if self.hook is hook and not _same(self.replaced, factual):
            raise UsageError(
                "base: expected one image per item, its transform or loader is given several; open it without them, and "
                "apply them after the swap"
            )
        assert self.picture is not None
        self.hook, self.replaced = hook, factual
        self.instead = like(self.picture, factual, lambda: "a counterfactual")
        return self.instead

    def idle(self, hook: Any, source: Any = None) -> bool:
        """Whether the hook only passes on: no swap is going on, or one took place in a data set inside, or for a different source."""
        if self.picture is None and not self.looking:
            return True
        return self.hook is not None and (self.hook is not hook or self.source != source)


class TransformHook:
    """Stands for a data set's transform: puts the held picture where the image is, then applies the transform."""

    def __init__(self, held: Held, owner: Any, name: str, image_key: Any) -> None:
        self._held, self._owner, self._name, self._image_key = held, owner, name, image_key

    def __call__(self, *args: Any, **named: Any) -> Any:
        transform = getattr(self._owner, self._name)
        place = None if self._held.idle(self) else self._place(args, named)
        if place is not None:
            made = self._held.place(self, value_at((args, named), place))
            args, named = with_value((args, named), place, made)
        return (_copied(transform) if self._held.trying else transform)(*args, **named)

    def _place(self, args: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Any, ...] | None:
        if args and is_plain(args[0]):  # torchvision's order: the image, then its target
            return (0, 0)
        if "image" in named and is_plain(named["image"]):  # as albumentations' transforms are called
            return (1, "image")
        if len(args) == 1 and not named and self._image_key is not None:
            inner = image_place(args[0], self._image_key)
            return None if inner is None else (0, 0, *inner)
        return image_place((args, named))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(getattr(self._owner, self._name), name)


class LoaderHook:
    """Stands for the loader of an ImageFolder: of a file that the default loader would make RGB only the header is read."""

    def __init__(self, held: Held, owner: DatasetFolder) -> None:
        self._held, self._owner = held, owner

    def __call__(self, path: str) -> Any:
        loader, held = self._owner.loader, self._held
        if held.idle(self, path):
            return loader(path)
        held.source = path
        if held.looking or loader not in (default_loader, pil_loader):
            return held.place(self, loader(path))
        assert held.picture is not None
        held.hook, made = self, in_mode(held.picture, "RGB")
        with Image.open(path) as header:  # what it says of a rotation stays in the image that the loader makes of it
            made.info.update(carried(header))
        return made


def is_plain_folder(dataset: Any) -> bool:
    """Whether a data set makes its items as torchvision's folders do."""
    # a class of the user's own making may keep what the loader gave: it must not be given anything else
    return isinstance(dataset, DatasetFolder) and type(dataset).__getitem__ is DatasetFolder.__getitem__


class PatchedCopy:
    """A shallow copy of a data set with hooks, and such copies of the data sets inside, kept in step with what is set on the original.

    The copy owns its containers: of every dict and list among its attributes it has a shallow copy, so that what it puts into
    a cache never reaches its user (a list costs 8 bytes per entry more). Everything else is shared. Only what is set on the
    original is carried over, not what is changed inside a container there. As safe in threads as the original. AttributeError
    or TypeError for a data set whose attributes cannot be set or copied.

    Args:
        original: the data set.
        hooks: gives the attributes of its copy, and of the copies of the data sets inside.
        inside: whether the data sets inside are copied too.
    """

    def __init__(self, original: Any, hooks: Hooks, inside: bool = True) -> None:
        self.original, self._copy = original, copy.copy(original)
        self._shared = (
            is_plain_folder(original) or isinstance(original, Subset | ConcatDataset) or is_huggingface(original)
        )
        self._inside: list[PatchedCopy] = []
        self.hooks = hooks(original)
        self._exchanged = {**(self._patched_parts(hooks) if inside else {}), **self.hooks}
        for name, value in self._exchanged.items():
            setattr(self._copy, name, value)
        self._known: dict[str, Any] = {}
        self._follow()

    def _patched_parts(self, hooks: Hooks) -> dict[str, Any]:
        done: dict[int, Any] = {}

        def patched(part: Any) -> Any:
            if id(part) not in done:
                self._inside.append(PatchedCopy(part, hooks))
                done[id(part)] = self._inside[-1]._copy
            return done[id(part)]

        original = self.original
        if isinstance(original, ConcatDataset):
            return {"datasets": [patched(part) for part in original.datasets]}
        return {name: patched(part) for name, part in held_datasets(original).items()}

    def _follow(self) -> None:
        known, exchanged = self._known, self._exchanged
        for name, value in getattr(self.original, "__dict__", known).items():
            if known.get(name, known) is value:
                continue
            if name not in exchanged:
                own = isinstance(value, dict | list) and not self._shared
                setattr(self._copy, name, copy.copy(value) if own else value)
            known[name] = value
        for part in self._inside:
            part._follow()

    def __getitem__(self, i: int) -> Any:
        self._follow()
        return self._copy[i]


def transform_hooks(dataset: Any, held: Held, image_key: Any) -> dict[str, Any]:
    """A hook for each transform that a data set has, or for the loader of an ImageFolder."""
    if is_plain_folder(dataset):
        return {"loader": LoaderHook(held, dataset)}
    applied = [name for name in TRANSFORMS if callable(getattr(dataset, name, None))]
    return {name: TransformHook(held, dataset, name, image_key) for name in applied}


def inner_datasets(dataset: Any) -> Iterator[Any]:
    """The data set itself and every one that it is made of, each once."""
    asked: dict[int, Any] = {}  # kept: an id is given again once its object is gone
    waiting = [dataset]
    while waiting:
        one = waiting.pop()
        if id(one) in asked:
            continue
        asked[id(one)] = one
        yield one
        if isinstance(one, ConcatDataset):
            waiting += one.datasets
        else:
            waiting += held_datasets(one).values()


def held_datasets(dataset: Any) -> dict[str, Any]:
    """The one data set that is held by a Subset or a class of the user's own, under each name it has; empty where there are several."""
    if isinstance(dataset, Subset):
        return {"dataset": dataset.dataset}
    found = {name: value for name, value in getattr(dataset, "__dict__", {}).items() if is_dataset(value)}
    return found if len({id(value) for value in found.values()}) == 1 else {}


def is_dataset(value: Any) -> bool:
    """Whether a value is a map-style data set: torch's, Hugging Face's, cfaug's, or WILDS' (which needs not be installed)."""
    if isinstance(value, type):
        return False
    wilds = callable(getattr(value, "get_input", None)) and hasattr(value, "y_array")
    return isinstance(value, Dataset | AttributeDataset) or is_huggingface(value) or wilds


def is_huggingface(value: Any) -> bool:
    """Whether a value is a ``datasets.Dataset``, found out without importing the library."""
    library = modules.get("datasets")
    return library is not None and isinstance(value, library.Dataset)


def _copied(transform: Any) -> Any:
    try:
        return copy.deepcopy(transform)
    except Exception:  # whatever a user's class raises: nothing is promised of its generator then
        return transform


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    return type(one) is type(other) and np.array_equal(np.asarray(one), np.asarray(other))
