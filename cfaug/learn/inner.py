"""What the wrapper must know of the data sets inside its base: who draws epochs, and whose transform swaps already."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dis import get_instructions
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch

from cfaug.learn.counts import Counting
from cfaug.learn.swap.metadata import inner_datasets, is_dataset

SEARCHED = 2000  # objects that are looked at below a transform, the nearest first
CALLS = ("__call__", "forward")  # what runs when an object is called
LONGEST = 64  # entries of a list or dict of transforms; longer ones are data


def tell_epoch(dataset: Any, epoch: int) -> None:
    """``set_epoch`` of every data set inside that has one (as ever, not of the copy that a persistent worker holds)."""
    for part in inner_datasets(dataset):
        if callable(getattr(part, "set_epoch", None)):
            part.set_epoch(epoch)


def swaps_already(dataset: Any) -> bool:
    """Whether a transform of the data set, or of one inside it, is a RandomCounterfactual (torchvision's or albumentations')."""
    return any(has_swap(value) for part in inner_datasets(dataset) for value in getattr(part, "__dict__", {}).values())


def has_swap(transform: Any) -> bool:
    """Whether a transform is a RandomCounterfactual, or reaches one.

    Followed are the attributes of whatever can be called, lists and dicts, and what a function (or ``__call__``) refers to:
    its closure, its defaults, and the global names in its code. Data sets are not followed. Not seen: one behind an object
    that cannot be called, in ``__slots__`` or on a class, or made anew at every call.
    """
    waiting, known = deque([transform]), [transform]  # kept: an id is given again once its object is gone
    seen = {id(transform)}
    while waiting:
        one = waiting.popleft()
        if isinstance(one, Counting):
            return True
        for value in _below(one):
            if id(value) not in seen and len(known) < SEARCHED and _is_followed(value):
                seen.add(id(value))
                known.append(value)
                waiting.append(value)
    return False


def _is_followed(value: Any) -> bool:
    if isinstance(value, type | ModuleType | torch.Tensor | np.ndarray) or is_dataset(value):
        return False
    if isinstance(value, list | tuple | set | frozenset | Mapping):
        return len(value) <= LONGEST
    return callable(value)


def _below(value: Any) -> Iterator[Any]:
    if not _is_followed(value):
        return
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        yield from value
    elif isinstance(value, MethodType):
        yield value.__func__
        yield value.__self__
        yield from () if is_dataset(value.__self__) else getattr(value.__self__, "__dict__", {}).values()
    elif isinstance(value, partial):
        yield from (value.func, value.args, value.keywords)
    else:
        yield from getattr(value, "__dict__", {}).values()
        functions = [value, *(getattr(type(value), name, None) for name in CALLS)]
        for function in functions:
            yield from _bound(function) if isinstance(function, FunctionType) else ()


def _bound(function: FunctionType) -> Iterator[Any]:
    """What a function refers to: cells, defaults, and globals (functions only of its own module: not all of a library)."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue
    yield from (function.__defaults__ or (), function.__kwdefaults__ or {})
    for name in _names(function.__code__):
        value = function.__globals__.get(name)
        if not isinstance(value, FunctionType) or value.__globals__ is function.__globals__:
            yield value


def _names(code: CodeType) -> Iterator[str]:
    yield from (str(one.argval) for one in get_instructions(code) if one.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner)
