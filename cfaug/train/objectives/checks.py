"""The door of the objectives: what came, made ready to compute with, or refused in one line.

Every whole-number dtype becomes int64 here, because torch indexes with nothing else: it refuses int8 and int16 and takes
uint8 for a MASK, without a word where the shapes fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cfaug.errors import UsageError, one_line
from cfaug.learn.checks import probability, whole

Integers: TypeAlias = Tensor | npt.NDArray[Any] | Sequence[int] | Sequence[Sequence[int]]


def as_columns(codes: Tensor) -> Tensor:
    """Group codes (B,) or (B, A) as (B, A)."""
    return codes if codes.ndim == 2 else codes[:, None]


def as_tensor(values: Any, name: str) -> Tensor:
    """A tensor as it is, an array or a list as a copy on the CPU; UsageError unless it holds numbers in equal rows."""
    if isinstance(values, Tensor):
        return values
    try:
        array = np.asarray(values)
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))  # a copy: torch warns of read-only arrays
    except (TypeError, ValueError, RuntimeError):
        came = type(values).__name__
        raise UsageError(
            f"{name}: expected numbers in a tensor, an array or a list with rows of one length, came {came}; convert it"
        ) from None


def as_codes(codes: Any, size: int | None = None, name: str = "codes", groups: int | None = None) -> Tensor:
    """Group codes as int64 (size,) or (size, A), each -1 or from 0 and below ``groups``; UsageError otherwise."""
    found = as_tensor(codes, name)
    if found.ndim not in (1, 2) or not found.numel() or (size is not None and len(found) != size):
        rows = "N" if size is None else size
        raise UsageError(
            f"{name}: expected shape ({rows},) or ({rows}, A), not empty, came {tuple(found.shape)}; one row a sample"
        )
    if found.dtype == torch.bool:  # a row of yes and no is not the number of a group
        raise UsageError(f"{name}: expected integer codes, came {found.dtype}; convert them with .long()")
    found, low, high = _int64(found, name, "codes")
    if low < -1:
        raise UsageError(f"{name}: expected codes from 0, or -1 for none, came {low}; check the codes")
    if groups is not None and high >= groups:
        raise UsageError(
            f"{name}: expected codes below the number of groups {groups}, came {high}; count the groups of all images"
        )
    return found


def as_targets(targets: Any, size: int | None = None, classes: int | None = None, name: str = "targets") -> Tensor:
    """Classes as int64 (size,), from 0 and below ``classes``; bool is 0 and 1. UsageError otherwise."""
    found = as_tensor(targets, name)
    if found.ndim != 1 or not len(found) or (size is not None and len(found) != size):
        rows = "N" if size is None else size
        raise UsageError(
            f"{name}: expected shape ({rows},), not empty, came {tuple(found.shape)}; one class a sample, as logits.argmax(1)"
        )
    found, low, high = _int64(found, name, "classes")
    if low < 0 or (classes is not None and high >= classes):
        upper = "up" if classes is None else f"to {classes - 1}"
        raise UsageError(
            f"{name}: expected classes from 0 {upper}, came {low if low < 0 else high}; check the class codes"
        )
    return found


def as_losses(losses: Tensor) -> Tensor:
    """Losses (B,) of the samples, at least float32; UsageError otherwise."""
    if not is_float(losses) or losses.ndim != 1 or not len(losses):
        raise UsageError(f"losses: expected float (B,), B > 0, came {kind(losses)}; pass reduction='none' to the loss")
    return at_least_single(losses)


def as_logits(logits: Tensor) -> Tensor:
    """Logits (B, K), at least float32; UsageError unless they are a float tensor that is not empty.

    One sample's (K,) and an image's (B, K, H, W) pass, as in torch's cross-entropy.
    """
    if not is_float(logits) or not logits.ndim or not logits.numel():
        raise UsageError(
            f"logits: expected float (B, K), B > 0, came {kind(logits)}; pass what the net gives for a batch with images"
        )
    return at_least_single(logits)


def is_float(values: Any) -> bool:
    """Whether they are a tensor of a floating dtype."""
    return isinstance(values, Tensor) and values.is_floating_point()


def kind(values: Any) -> str:
    """Dtype and shape of a tensor, the type of anything else, for an error."""
    return f"{values.dtype} {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__


def at_least_single(values: Tensor) -> Tensor:
    """float16 and bfloat16 as float32: their sums and squares overflow, or lose all but two digits."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def as_whole(name: str, value: Any, least: int, advice: str) -> int:
    """:func:`cfaug.learn.checks.whole`, whose UsageError says what to do."""
    with _advised(advice):
        return whole(name, value, least)


def as_probability(name: str, value: Any, advice: str) -> float:
    """:func:`cfaug.learn.checks.probability`, whose UsageError says what to do."""
    with _advised(advice):
        return probability(name, value)


def as_number(name: str, value: Any, low: float, advice: str, *, above: bool = False) -> float:
    """``value`` as a float; UsageError unless finite and at least ``low``, or ``above`` it."""
    try:
        number = float("nan") if isinstance(value, str) else float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        number = float("nan")
    if not low <= number < float("inf") or (above and number == low):
        bound = "above" if above else "of at least"
        raise UsageError(f"{name}: expected a number {bound} {low:g}, came {shown(value)}; {advice}")
    return number


def shown(value: Any) -> str:
    """The beginning of a value as Python writes it, for an error."""
    text = one_line(repr(value), 81)
    return text if len(text) <= 80 else f"{text[:80]}..."


@contextmanager
def _advised(advice: str) -> Iterator[None]:
    """A UsageError of the block in one line, with what to do behind it."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{one_line(error)}; {advice}") from None


def _int64(found: Tensor, name: str, what: str) -> tuple[Tensor, int, int]:
    """int64, lowest and highest; UsageError unless ``found`` (not empty) has a dtype of whole numbers that fit."""
    if found.is_floating_point() or found.is_complex():
        raise UsageError(
            f"{name}: expected integer {what}, came {found.dtype}; convert them with .long(), or take logits.argmax(1)"
        )
    numbers = found.long()
    low, high = torch.stack(torch.aminmax(numbers)).tolist()  # one wait for the device, not two
    if low < 0 and not found.dtype.is_signed:
        raise UsageError(f"{name}: expected {what} below 2^63, came {found.dtype} above; renumber them from 0")
    return numbers, low, high
