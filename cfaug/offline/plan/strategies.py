"""How a plan is drawn: which do() every source gets. All draw by `seed` and nothing else, and hold no row in memory.

    balance                within each target class every value equally often, or in the shares of `joint`
    uniform                every value drawn independently by the row's own seed
    every_value            every combination of values for every source
    flip                   another value than the factual one
    counterfactual_pairs   as flip, each beside the null intervention with the same seed

Common to all: sources may lack values, the target excepted, and are intervened on like the others; a value that no image
of the table shows is never drawn. `null_fraction` in [0, 1) of all rows are null interventions, spread evenly over the
sources. `replicas` repeats every (source, do) with other seeds; no two rows have one seed (pairs apart). Rows are shuffled
and dealt as :mod:`cfaug.offline.plan.drawn` says. The table is not what decoders do: a balanced plan promises balanced
*requests*, and whether an attribute may be intervened on at all is checked by the stages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from cfaug.data import Schema
from cfaug.errors import DataError, UsageError
from cfaug.offline.plan.drawn import Levels
from cfaug.offline.plan.joint import parse_joint
from cfaug.offline.plan.permutation import Whole
from cfaug.offline.plan.plan import Plan
from cfaug.offline.plan.table import PlanTable, Settings
from cfaug.offline.plan.values import Column, Digit, Evenly, Mirrored, Others, Shared, Stratified, Uniformly, mirrored

MOST_COMBINATIONS = 1000
QUANTILE_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)  # of a continuous attribute in every_value: the middles of its fifths


def balance_groups(
    table: pd.DataFrame,
    schema: Schema,
    per_image: int = 1,
    null_fraction: float = 0.0,
    seed: int = 0,
    samples_per_shard: int = 1000,
    split: str = "train",
    attributes: Sequence[str] | None = None,
    replicas: int = 1,
    joint: Sequence[Mapping[str, Any]] | None = None,
) -> Plan:
    """`per_image` interventions on every source, each on all `attributes` (default: the spurious ones) at once.

    Within each target class the values of each attribute are used evenly: their counts differ by at most one. Attributes
    are drawn independently of one another, so the mixed set has A independent of Y *in the table*. A continuous attribute
    takes one draw from each of m equal slices of its marginal distribution in `table`. do() equal to the factual values
    is allowed and kept. With `joint`, see :mod:`cfaug.offline.plan.joint`, the attributes it names come in those shares
    instead: in a class of m interventions every count differs from share m by less than one. A class of one image gets
    one value, at random; replicas count as one.

    `seed`, a whole number in [0, 2**64), fixes everything. :class:`UsageError` for settings that are none,
    :class:`DataError` for an empty table and an attribute without any value.
    """
    settings = Settings("balance", per_image, null_fraction, seed, samples_per_shard, split, replicas)
    base = PlanTable.make(table, schema, settings, attributes)
    strata = base.classes(per_image)
    columns: dict[str, Column] = {
        level.name: (Stratified if base.continuous(level.name) else Evenly)(strata(i), len(level.values))
        for i, level in enumerate(base.levels)
    }
    if joint is not None:
        shown = {level.name: level.values for level in base.levels if not base.continuous(level.name)}
        cells = parse_joint(joint, base.schema, base.names, shown, base.class_names)  # type: ignore[arg-type]
        shared = strata(len(base.levels))
        bounds = cells.bounds(shared.slots)
        for k, name in enumerate(cells.names):
            codes = np.array([list(shown[name]).index(value[k]) for value in cells.values], dtype=np.int64)
            columns[name] = Shared(shared, bounds, codes)
    more = {} if joint is None else {"joint": [dict(cell) for cell in joint]}
    return base.plan(base.levels, [columns[name] for name in base.names], per_image, more)


def uniform(
    table: pd.DataFrame,
    schema: Schema,
    per_image: int = 1,
    null_fraction: float = 0.0,
    seed: int = 0,
    samples_per_shard: int = 1000,
    split: str = "train",
    attributes: Sequence[str] | None = None,
    replicas: int = 1,
) -> Plan:
    """Every value of every attribute drawn independently and alike, by the row's own seed and from nothing else.

    A continuous attribute is drawn from the quantiles of its values in `table`. Counts are even in the long run only,
    which is the price of rows that do not know of one another: adding sources changes no draw. Replicas share the draw
    of the first. Arguments and errors as in :func:`balance_groups`.
    """
    settings = Settings("uniform", per_image, null_fraction, seed, samples_per_shard, split, replicas)
    base = PlanTable.make(table, schema, settings, attributes)
    columns = [Uniformly(len(level.values), base.purpose(i)) for i, level in enumerate(base.levels)]
    return base.plan(base.levels, columns, per_image)


def every_value(
    table: pd.DataFrame,
    schema: Schema,
    per_image: int = 1,
    null_fraction: float = 0.0,
    seed: int = 0,
    samples_per_shard: int = 1000,
    split: str = "train",
    attributes: Sequence[str] | None = None,
    replicas: int = 1,
) -> Plan:
    """For each source every combination of the attributes' values, the factual one included, once.

    A continuous attribute has the values at the quantiles 0.1, 0.3, 0.5, 0.7 and 0.9. `per_image` does not apply and is
    1. :class:`UsageError` for more than 1 000 combinations. Other arguments and errors as in :func:`balance_groups`.
    """
    if per_image != 1:
        raise UsageError(
            f"every_value makes every combination once: per_image does not apply, got {per_image!r}; leave it at 1, or set replicas"
        )
    settings = Settings("every_value", 1, null_fraction, seed, samples_per_shard, split, replicas)
    base = PlanTable.make(table, schema, settings, attributes)
    levels = [_few(level) if base.continuous(level.name) else level for level in base.levels]
    sizes = [len(level.values) for level in levels]
    total = math.prod(sizes)
    if total > MOST_COMBINATIONS:
        counts = " x ".join(f"{len(level.values)} {level.name}" for level in levels)
        raise UsageError(
            f"every_value: expected at most {MOST_COMBINATIONS} combinations per source, got {total} ({counts}): "
            "name fewer attributes, or use balance"
        )
    columns = [Digit(size, math.prod(sizes[:i])) for i, size in enumerate(sizes)]
    return base.plan(levels, columns, total)


def flip(
    table: pd.DataFrame,
    schema: Schema,
    per_image: int = 1,
    null_fraction: float = 0.0,
    seed: int = 0,
    samples_per_shard: int = 1000,
    split: str = "train",
    attributes: Sequence[str] | None = None,
    replicas: int = 1,
) -> Plan:
    """For each source values other than its factual ones, of all `attributes` at once.

    Of two values the other; of more, the others evenly among the sources of one class and one factual value (counts
    differ by at most one). A number becomes the one at the mirrored quantile; the one in the very middle, its own mirror
    image, becomes the next larger. A source without the factual value gets any value, evenly. It breaks no confounding:
    where the factual value follows the target, its opposite does. :class:`DataError` for an attribute with one value.
    Other arguments and errors as in :func:`balance_groups`.
    """
    settings = Settings("flip", per_image, null_fraction, seed, samples_per_shard, split, replicas)
    base = PlanTable.make(table, schema, settings, attributes)
    return base.plan(base.levels, _flipping(base, per_image), per_image)


def counterfactual_pairs(
    table: pd.DataFrame,
    schema: Schema,
    per_image: int = 1,
    null_fraction: float = 0.5,
    seed: int = 0,
    samples_per_shard: int = 1000,
    split: str = "train",
    attributes: Sequence[str] | None = None,
    replicas: int = 1,
) -> Plan:
    """Interventions as in :func:`flip`, each followed by the null intervention on the same source with the same seed.

    Both are in one shard (of at least 2 samples), side by side, so what differs between their images is the intervention
    alone and not the noise. `null_fraction` does not apply: it is a half. Other arguments and errors as in :func:`flip`.
    """
    if null_fraction != 0.5:
        raise UsageError(
            f"counterfactual_pairs has one null intervention for each real one: expected null_fraction 0.5, got {null_fraction!r}"
        )
    if samples_per_shard == 1:
        raise UsageError(
            "counterfactual_pairs keeps a pair in one shard: expected samples_per_shard of 2 or more, got 1"
        )
    settings = Settings("counterfactual_pairs", per_image, 0.0, seed, samples_per_shard, split, replicas)
    base = PlanTable.make(table, schema, settings, attributes)
    return base.plan(base.levels, _flipping(base, per_image), per_image, {"null_fraction": 0.5}, paired=True)


MAKERS: Mapping[str, Callable[..., Plan]] = {
    "balance": balance_groups, "uniform": uniform, "every_value": every_value, "flip": flip,
    "counterfactual_pairs": counterfactual_pairs,
}  # fmt: skip


def make_plan(strategy: str, table: pd.DataFrame, schema: Schema, **settings: Any) -> Plan:
    """The plan of a recipe: the strategy of that name with its keyword arguments.

    No `attributes` (None or an empty list) are the spurious ones; an empty `joint` is none. :class:`UsageError` for an
    unknown strategy, and for `joint` with another one than balance.
    """
    if strategy not in MAKERS:
        raise UsageError(f"expected a strategy among {', '.join(MAKERS)}, got {strategy!r}")
    given = {**settings, "attributes": settings.get("attributes") or None}
    joint = given.pop("joint", None) or None
    if joint is not None and strategy != "balance":
        raise UsageError(f"joint is for the strategy balance, got {strategy}: remove joint, or set strategy: balance")
    return MAKERS[strategy](table, schema, **given, **({} if joint is None else {"joint": joint}))


def _few(level: Levels) -> Levels:
    numbers = np.asarray(level.values, dtype=np.float64)
    return Levels(level.name, np.unique(np.quantile(numbers, QUANTILE_LEVELS, method="inverted_cdf")).tolist())


def _flipping(base: PlanTable, per_image: int) -> list[Column]:
    columns: list[Column] = []
    for i, level in enumerate(base.levels):
        if len(set(level.values)) < 2:
            raise DataError(
                f"flip: expected two values of {level.name!r} or more, got only {level.values[0]!r} in {len(base.table)} rows: "
                "leave the attribute out"
            )
        values = base.table[level.name]
        if base.continuous(level.name):
            to = mirrored(values.to_numpy(dtype=np.float64), np.asarray(level.values, dtype=np.float64))
            columns.append(Mirrored(to, Stratified(base.classes(per_image)(i), len(level.values))))
            continue
        factual: Whole = pd.Index(list(level.values), dtype=object).get_indexer(pd.Index(values, dtype=object))
        factual = factual.astype(np.int64)
        columns.append(Others(base.classes(per_image, factual)(i), factual, len(level.values)))
    return columns
