"""A target joint distribution of attributes, as a recipe writes it, checked and dealt out.

    joint: [{place: land, share: 0.7}, {place: water, share: 0.3}]            shares of each target class
    joint: [{species: gull, place: land, share: 0.5}, ...]                    shares that differ from class to class

A class with m interventions gets floor(share m) of a cell, and what is left goes to the largest remainders (Hamilton's
method), so every count differs from share m by less than one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cfaug.causal.intervention import Value
from cfaug.data import Schema
from cfaug.errors import DataError, UsageError, listed, near, shown

SHARE = "share"
TOLERANCE = 1e-6


def joint_codes(
    joint: Sequence[Mapping[str, Any]],
    schema: Schema,
    names: Sequence[str],
    levels: Mapping[str, Sequence[Value]],
    classes: Sequence[str],
    strata: Sequence[npt.NDArray[np.intp]],
    rng: np.random.Generator,
) -> dict[str, npt.NDArray[np.int64]]:
    """Attribute -> codes (slots,) of its `levels`, for the attributes that `joint` names.

    Args:
        names: the attributes that are intervened on.
        levels: of those that have categories, the values that the table shows.
        classes: the target's values; `strata`: the slots of each.

    Raises:
        UsageError: cells that do not name the same attributes, unknown names and values, shares that are not positive or
            do not sum to 1 (in each class where the cells name the target).
        DataError: a value that no image shows.
    """
    cells, over = _checked(joint, schema, names, levels, classes)
    target = str(schema.target)
    own = [name for name in over if name != target]
    groups = [cell.get(target) for cell in cells]
    values = [tuple(cell[name] for name in own) for cell in cells]
    if len(set(zip(groups, values))) != len(cells):
        raise UsageError("expected every cell of joint once, got one twice; add their shares up")
    distinct = list(dict.fromkeys(values))
    shares = np.zeros((len(classes), len(distinct)))
    for group, value, cell in zip(groups, values, cells):
        shares[slice(None) if group is None else classes.index(group), distinct.index(value)] = cell[SHARE]
    sums = shares.sum(axis=1)
    wrong = int(np.abs(sums - 1).argmax())
    if abs(sums[wrong] - 1) > TOLERANCE:
        where = f" in class {classes[wrong]!r}" if target in over else ""
        raise UsageError(f"expected the shares of joint to sum to 1{where}, got {sums[wrong]:g}; correct them")
    chosen = np.empty(sum(map(len, strata)), dtype=np.int64)
    for mine, share in zip(strata, shares / sums[:, None]):
        chosen[rng.permutation(mine)] = np.repeat(np.arange(len(distinct)), largest_remainders(share, len(mine)))
    codes = {name: np.array([levels[name].index(value[k]) for value in distinct]) for k, name in enumerate(own)}
    return {name: code[chosen] for name, code in codes.items()}


def largest_remainders(shares: npt.NDArray[np.float64], total: int) -> npt.NDArray[np.int64]:
    """(cells,) counts that sum to `total`, each less than one from its share of it; earlier cells first among equals."""
    wanted = shares * total
    counts = np.floor(wanted).astype(np.int64)
    counts[np.argsort(counts - wanted, kind="stable")[: total - counts.sum()]] += 1
    return counts


def _checked(
    joint: object,
    schema: Schema,
    names: Sequence[str],
    levels: Mapping[str, Sequence[Value]],
    classes: Sequence[str],
) -> tuple[list[dict[str, Any]], list[str]]:
    """The cells with canonical values, and the attributes that all of them name."""
    target = str(schema.target)
    given = _cells(joint)
    over = [name for name in given[0] if name != SHARE]
    for name in (name for name in over if name != target):
        if name not in schema:
            raise UsageError(f"joint: unknown attribute {name!r}; {near(name, schema.names)}")
        if schema[name].kind == "continuous":
            raise UsageError(f"joint: expected attributes with categories, got the continuous {name!r}; leave it out")
        if name not in names:
            raise UsageError(f"joint: expected attributes among {', '.join(names)}, got {name!r}; add it to attributes")
    if not set(over) - {target}:
        raise UsageError(f"expected joint to name an attribute to intervene on, got {listed(over) or 'none'}; add one")
    allowed = {**levels, target: classes}
    cells = []
    for cell in given:
        if set(cell) != {*over, SHARE}:
            raise UsageError(
                f"expected every cell of joint to name {', '.join([*over, SHARE])}, got {shown(dict(cell))}; name the same in all"
            )
        values = {name: str(schema.check_value(name, cell[name])) for name in over}
        for name, value in values.items():
            if value not in allowed[name]:
                raise DataError(
                    f"joint: no image shows {name}={value}, so no decoder can have learned it; expected one of "
                    f"{listed(allowed[name], 20)}"
                )
        cells.append({**values, SHARE: float(cell[SHARE])})
    return cells, over


def _cells(joint: object) -> list[Mapping[str, Any]]:
    example = "write [{place: land, share: 0.7}, {place: water, share: 0.3}]"
    if isinstance(joint, str | Mapping) or not isinstance(joint, Sequence) or not joint:
        raise UsageError(f"expected joint as a list of cells with shares, got {shown(joint)}; {example}")
    for cell in joint:
        if not isinstance(cell, Mapping) or SHARE not in cell:
            raise UsageError(f"expected a cell of joint as values with a share, got {shown(cell)}; {example}")
        share = cell[SHARE]
        number = isinstance(share, int | float | np.number) and not isinstance(share, bool)
        if not number or not 0 < share <= 1 + TOLERANCE:
            raise UsageError(
                f"expected shares of joint above 0 and up to 1, got {shown(share)}; leave out a cell without a share"
            )
    return list(joint)
