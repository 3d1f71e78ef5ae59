"""A target joint distribution of attributes, as a recipe writes it, checked and turned into counts.

    joint: [{place: land, share: 0.7}, {place: water, share: 0.3}]            shares of each target class
    joint: [{species: gull, place: land, share: 0.5}, ...]                    shares that differ from class to class

A class with m interventions gets floor(share m) of a cell, and what is left goes to the largest remainders (Hamilton's
method), so every count differs from share m by less than one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cfaug.data import Schema
from cfaug.errors import DataError, UsageError, near, shown
from cfaug.offline.plan.permutation import Whole

SHARE = "share"
TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class Joint:
    """Cells of `names` (without the target): `values` of each and `shares` (classes, cells), summing to 1 over the cells."""

    names: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]
    shares: npt.NDArray[np.float64]

    def bounds(self, slots: Whole) -> Whole:
        """(classes, cells) cumulated counts for classes of (classes,) slots: largest remainders, earlier cells first."""
        wanted = self.shares * slots[:, None]
        counts = np.floor(wanted).astype(np.int64)
        order = np.argsort(counts - wanted, axis=1, kind="stable")
        more = np.arange(counts.shape[1]) < (slots - counts.sum(axis=1))[:, None]
        np.put_along_axis(counts, order, np.take_along_axis(counts, order, axis=1) + more, axis=1)
        return np.cumsum(counts, axis=1)


def parse_joint(
    joint: Sequence[Mapping[str, Any]],
    schema: Schema,
    names: Sequence[str],
    shown_values: Mapping[str, Sequence[str]],
    classes: Sequence[str],
) -> Joint:
    """The cells of `joint`; `names` are intervened on, `shown_values` those that the table has, `classes` its target's.

    :class:`UsageError` in one line for cells that do not name the same attributes, names and values that are none, and
    shares that are not positive or do not sum to 1 (in each class where the cells name the target); :class:`DataError`
    for a value that no image shows.
    """
    cells = _cells(joint)
    target = str(schema.target)
    over = tuple(name for name in cells[0] if name != SHARE)
    allowed = {name: list(values) for name, values in shown_values.items()} | {target: list(classes)}
    for cell in cells:
        if set(cell) != {*over, SHARE}:
            raise UsageError(
                f"expected every cell of joint to name {', '.join([*over, SHARE])}, got {shown(dict(cell))}: name the same in all"
            )
        for name in over:
            _check_name(name, target, names, schema)
            if schema.check_value(name, cell[name]) not in allowed[name]:
                raise DataError(
                    f"joint: no image shows {name}={cell[name]}, so no decoder can have learned it; expected one of "
                    f"{', '.join(allowed[name][:20])}"
                )
    own = tuple(name for name in over if name != target)
    if not own:
        raise UsageError(f"expected joint to name an attribute to intervene on, got {', '.join(over) or 'none'} only")
    groups = [str(schema.check_value(target, cell[target])) if target in over else None for cell in cells]
    values = [tuple(str(schema.check_value(name, cell[name])) for name in own) for cell in cells]
    if len(set(zip(groups, values))) != len(cells):
        raise UsageError("expected every cell of joint once, got one twice: add their shares up")
    distinct = tuple(dict.fromkeys(values))
    shares = np.zeros((len(classes), len(distinct)))
    for group, value, cell in zip(groups, values, cells):
        mine = slice(None) if group is None else list(classes).index(group)
        shares[mine, distinct.index(value)] = float(cell[SHARE])
    sums = shares.sum(axis=1)
    wrong = int(np.abs(sums - 1).argmax())
    if abs(sums[wrong] - 1) > TOLERANCE:
        where = f" in class {classes[wrong]!r}" if target in over else ""
        raise UsageError(f"expected the shares of joint to sum to 1{where}, got {sums[wrong]:g}: correct them")
    return Joint(own, distinct, shares / sums[:, None])


def _cells(joint: object) -> list[Mapping[str, Any]]:
    example = "write [{place: land, share: 0.7}, {place: water, share: 0.3}]"
    if isinstance(joint, str | Mapping) or not isinstance(joint, Sequence) or not joint:
        raise UsageError(f"expected joint as a list of cells with shares, got {shown(joint)}: {example}")
    for cell in joint:
        if not isinstance(cell, Mapping) or SHARE not in cell:
            raise UsageError(f"expected a cell of joint as values with a share, got {shown(cell)}: {example}")
        share = cell[SHARE]
        number = isinstance(share, int | float | np.number) and not isinstance(share, bool)
        if not number or not 0 < share <= 1 + TOLERANCE:
            raise UsageError(
                f"expected shares of joint above 0 and up to 1, got {shown(share)}: leave out what has none"
            )
    return list(joint)


def _check_name(name: str, target: str, names: Sequence[str], schema: Schema) -> None:
    if name == target:
        return
    if name not in schema:
        raise UsageError(f"joint: unknown attribute {name!r}; {near(name, schema.names)}")
    if schema[name].kind == "continuous":
        raise UsageError(f"joint: {name!r} is continuous, expected attributes with values: leave it out")
    if name not in names:
        raise UsageError(f"joint: {name!r} is not intervened on, only {', '.join(names)}: add it to attributes")
