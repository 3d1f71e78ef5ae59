"""How a plan is drawn: which do() every source gets, by the plan's seed and nothing else.

    balance                within each target class every value equally often, or in the shares of `joint`
    uniform                every value drawn independently of everything
    every_value            every combination of values for every source
    flip                   a value other than the factual one
    counterfactual_pairs   as flip, each beside the null intervention with the same seed

A strategy chooses a value (as a code) for every slot; with n sources, slot t is intervention t // n of source t mod n. Then
`replicas` repeats every (source, do) with different seeds, `null_fraction` in [0, 1) of all rows become null interventions and
`invariant_fraction` hide attributes instead of changing them, both spread evenly over the sources, and :mod:`cfaug.offline.shard_layout` deals the rows to shards.

Sources may lack values, the target excepted; a value that no image of the table shows is never drawn. A balanced plan
promises balanced *requests*: the stages check whether the decoder obeys.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cfaug.causal.intervention import Value
from cfaug.causal.row_random import natural
from cfaug.data import Schema
from cfaug.data.schema import refuse_no_schema
from cfaug.errors import DataError, UsageError, near
from cfaug.offline.joint_shares import joint_codes
from cfaug.offline.plan import Plan, check_shape
from cfaug.offline.shard_layout import dealt

MOST_ROWS = 100_000_000
MOST_COMBINATIONS = 1000
QUANTILE_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)  # of a continuous attribute in every_value: the middles of its fifths

_PLAN = 0x504C414E  # sets the plan's draws apart: a table made by default_rng(seed) must not be what it is drawn from

Codes = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Choice:
    """An attribute that is intervened on.

    Attributes:
        levels: the values that occur in the table, sorted; codes count them.
        factual: (n,) code of each source; -1 where it is missing.
        continuous: whether the levels are numbers with a distribution, not categories.
    """

    name: str
    levels: list[Value]
    factual: Codes
    continuous: bool

    def quantile(self, at: npt.NDArray[np.float64]) -> Codes:
        """Codes of the quantiles in [0, 1]: the inverse of the empirical distribution function."""
        ranked = np.sort(self.factual[self.factual >= 0])
        found: Codes = ranked[np.clip(np.ceil(at * len(ranked)).astype(np.int64) - 1, 0, len(ranked) - 1)]
        return found


Draw = Callable[[Sequence[Choice], Codes, int, np.random.Generator], npt.NDArray[np.int64]]
"""(choices, (n,) target classes, interventions per source, generator) -> codes (A, n x interventions)."""


# --- the strategies
def balance(choices: Sequence[Choice], classes: Codes, per_image: int, rng: np.random.Generator) -> Codes:
    """Within each class every level equally often; of numbers, one draw from each equal slice of their distribution."""
    return np.stack([_even(choice, np.tile(classes, per_image), rng) for choice in choices])


def uniform(choices: Sequence[Choice], classes: Codes, per_image: int, rng: np.random.Generator) -> Codes:
    """Every level alike; of numbers, a draw from those in the table."""
    slots = len(classes) * per_image
    return np.stack([c.quantile(rng.random(slots)) if c.continuous else rng.integers(len(c.levels), size=slots) for c in choices])  # fmt: skip


def every_value(choices: Sequence[Choice], classes: Codes, per_image: int, rng: np.random.Generator) -> Codes:
    """Every combination of levels, the factual one included, once per source; `per_image` is how many there are."""
    each = np.array(list(itertools.product(*(range(len(choice.levels)) for choice in choices)))).T
    return np.repeat(each, len(classes), axis=1)


def flip(choices: Sequence[Choice], classes: Codes, per_image: int, rng: np.random.Generator) -> Codes:
    """A level other than the factual one, evenly within a class and a factual level; of numbers, the mirrored quantile.

    It breaks no confounding: where the factual value follows the target, its opposite does too.
    """
    found = []
    for choice in choices:
        if len(choice.levels) < 2:
            raise DataError(
                f"flip: expected two values of {choice.name!r} or more, got only {choice.levels[0]!r} in {len(classes)} rows; "
                "leave the attribute out"
            )
        own = np.tile(choice.factual, per_image)
        if choice.continuous:
            codes = _even(choice, np.tile(classes, per_image), rng)
            codes[own >= 0] = _mirrored(choice)[own[own >= 0]]
        else:
            codes = _even(choice, np.tile(classes, per_image) * (len(choice.levels) + 1) + own, rng, own)
        found.append(codes)
    return np.stack(found)


STRATEGIES: Mapping[str, Draw] = {
    "balance": balance, "uniform": uniform, "every_value": every_value, "flip": flip, "counterfactual_pairs": flip,
}  # fmt: skip


def _even(choice: Choice, strata: Codes, rng: np.random.Generator, own: Codes | None = None) -> Codes:
    """Codes (slots,) evenly within each stratum: counts differ by at most one, and chance says which.

    With `own` (slots,), which is one code in all of a stratum, that code is left out.
    """
    codes = np.empty(len(strata), dtype=np.int64)
    for mine in _members(strata):
        place = rng.permutation(len(mine))
        if choice.continuous:
            codes[mine] = choice.quantile((place + rng.random(len(mine))) / len(mine))
            continue
        allowed = rng.permutation(len(choice.levels))
        if own is not None:
            allowed = allowed[allowed != own[mine[0]]]
        codes[mine] = allowed[place % len(allowed)]
    return codes


def _members(strata: Codes) -> Iterator[npt.NDArray[np.intp]]:
    """The slots of each stratum."""
    order = np.argsort(strata, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(strata[order])) + 1)


def _mirrored(choice: Choice) -> Codes:
    """(levels,) code of the mirror image of each level, which is a different level.

    Rank r becomes N - 1 - r (ties have their middle rank). A level that would be its own mirror image becomes the next
    larger one, or the next smaller one where there is none.
    """
    ranked = np.sort(choice.factual[choice.factual >= 0])
    level = np.arange(len(choice.levels))
    left, right = (np.searchsorted(ranked, level, side=side) for side in ("left", "right"))  # type: ignore[call-overload]
    to: Codes = ranked[len(ranked) - 1 - (left + right - 1) // 2]
    return np.where(to != level, to, np.where(level + 1 < len(level), level + 1, level - 1))


# --- a plan of them
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
    is allowed and kept. With `joint` (see :mod:`cfaug.offline.joint_shares`) the attributes it names come in those shares
    instead: in a class of m interventions every count differs from share m by less than one. A class of one image gets
    one value, at random; replicas count as one.

    `seed`, a whole number in [0, 2**64), fixes everything. :class:`UsageError` for wrong settings, :class:`DataError` for
    an empty table and an attribute without any value.
    """
    return make_plan(
        "balance", table, schema, per_image, null_fraction, seed, samples_per_shard, split, attributes, replicas, joint
    )


def make_plan(
    strategy: str,
    table: pd.DataFrame,
    schema: Schema,
    per_image: int = 1,
    null_fraction: float | None = None,
    seed: int = 0,
    samples_per_shard: int = 1000,
    split: str = "train",
    attributes: Sequence[str] | None = None,
    replicas: int = 1,
    joint: Sequence[Mapping[str, Any]] | None = None,
    invariant_fraction: float = 0.0,
    hidden: Sequence[str] = (),
) -> Plan:
    """The plan of a recipe; arguments and errors are those of :func:`balance_groups`.

    No `attributes` (None or an empty list) are the spurious ones; an empty `joint` is not one. `null_fraction` None is 0,
    or a half for counterfactual_pairs, where it can be nothing else. `invariant_fraction` of all rows hide those of the
    `attributes` that are `hidden`, do(x=None), and leave the others alone: their label must not depend on what is not there.
    """
    if strategy not in STRATEGIES:
        raise UsageError(f"expected a strategy among {', '.join(STRATEGIES)}, got {strategy!r}; {near(strategy, STRATEGIES)}")  # fmt: skip
    paired = strategy == "counterfactual_pairs"
    nulls = (0.5 if paired else 0.0) if null_fraction is None else null_fraction
    _check(strategy, per_image, nulls, samples_per_shard, split, replicas, joint)
    if not invariant_fraction >= 0 or not nulls + invariant_fraction < 1 or (paired and invariant_fraction):
        raise UsageError(
            f"expected invariant_fraction of at least 0 and, with null_fraction, below 1{' (0 with pairs)' if paired else ''}, got "
            f"{invariant_fraction!r} and {nulls!r}; lower one"
        )
    schema, table, choices = _choices(table, schema, attributes, split)
    codes, class_names = pd.factorize(table[str(schema.target)])
    classes, each = codes.astype(np.int64), per_image
    if strategy == "every_value":
        choices = [_quantiles(choice) if choice.continuous else choice for choice in choices]
        each = _combinations(choices)
    if (rows := len(table) * each * replicas / (1 - nulls - invariant_fraction)) > MOST_ROWS:
        raise UsageError(
            f"expected a plan of at most {MOST_ROWS:,} rows, got {rows:,.0f}; lower per_image, or make several plans"
        )
    rng = np.random.default_rng([natural(seed), _PLAN])
    drawn = STRATEGIES[strategy](choices, classes, each, rng)
    if joint:
        categories = {choice.name: choice.levels for choice in choices if not choice.continuous}
        strata = list(_members(np.tile(classes, each)))  # in the order of the classes' codes
        shared = joint_codes(
            joint, schema, [c.name for c in choices], categories, list(map(str, class_names)), strata, rng
        )
        for line, choice in zip(drawn, choices):
            line[:] = shared.get(choice.name, line)
    present = table.notna().to_numpy()
    columns = dealt(
        {choice.name: choice.levels for choice in choices}, drawn, len(table), replicas, 0.0 if paired else nulls, samples_per_shard, paired,
        None if present.all() else present, rng, invariant_fraction, hidden,
    )  # fmt: skip
    settings = {
        "strategy": strategy, "per_image": per_image, "null_fraction": float(nulls), "seed": int(seed),
        "attributes": [choice.name for choice in choices], "replicas": replicas,
        **({"joint": [dict(cell) for cell in joint]} if joint else {}),
        **({"invariant_fraction": float(invariant_fraction), "hidden": sorted(hidden)} if invariant_fraction else {}),
    }  # fmt: skip
    columns = replace(columns, sources=tuple(map(str, table.index)))
    return Plan.of_columns(columns, split, samples_per_shard, settings)


def _check(
    strategy: str, per_image: object, nulls: object, samples_per_shard: object, split: object, replicas: object, joint: object
) -> None:  # fmt: skip
    check_shape(split, samples_per_shard)
    for name, value in (("per_image", per_image), ("replicas", replicas)):
        if type(value) is not int or value < 1:
            raise UsageError(f"expected {name} of at least 1, got {value!r}")
    if not isinstance(nulls, float | int | np.number) or isinstance(nulls, bool) or not 0 <= nulls < 1:
        raise UsageError(f"expected null_fraction in [0, 1), got {nulls!r}")
    if joint and strategy != "balance":
        raise UsageError(
            f"expected joint with the strategy balance only, got {strategy}; remove joint, or set strategy: balance"
        )
    if strategy == "every_value" and per_image != 1:
        raise UsageError(
            f"every_value makes every combination once: expected per_image 1, got {per_image}; leave it out, or set replicas"
        )
    if strategy == "counterfactual_pairs" and nulls != 0.5:
        raise UsageError(
            "counterfactual_pairs has one null intervention for each real one: "
            f"expected null_fraction 0.5, got {nulls!r}; leave it out"
        )
    if strategy == "counterfactual_pairs" and samples_per_shard == 1:
        raise UsageError(
            "counterfactual_pairs keeps a pair in one shard: expected samples_per_shard of 2 or more, got 1; raise it"
        )


def _choices(
    table: pd.DataFrame, schema: Schema, attributes: Sequence[str] | None, split: str
) -> tuple[Schema, pd.DataFrame, list[Choice]]:
    """The fitted schema, the canonical table and what is drawn, sorted by name."""
    refuse_no_schema(schema)
    if schema.target is None:
        raise UsageError("expected a schema with a target, got none; name the attribute that is the label")
    names = [attributes] if isinstance(attributes, str) else list(attributes or schema.spurious)
    if not names:
        raise UsageError("expected at least one attribute to intervene on, got none; name the spurious attributes")
    if schema.target in names:
        raise UsageError(f"expected attributes other than the target, got {schema.target!r}; the label must be kept")
    if len(set(names)) != len(names):
        raise UsageError(f"expected every attribute once, got {', '.join(names)}; name each once")
    for name in names:
        schema[name]
    if len(table) == 0:
        raise DataError(f"expected sources in the {split} split, got an empty table; check the split column")
    if not table.index.is_unique:
        twice = table.index[table.index.duplicated()][0]
        raise DataError(
            f"expected every source once in the table's index, got {twice!r} twice; give each row its own key"
        )
    schema = schema.fit(table, schema.names)
    table = schema.canonical(table)
    return schema, table, [_choice(schema, table[name], name) for name in sorted(names)]


def _choice(schema: Schema, column: pd.Series, name: str) -> Choice:
    known = column.dropna()
    if known.empty:
        raise DataError(
            f"column {name!r}: expected sources with a value to draw from, got none in {len(column)} rows; fill in some"
        )
    # a value that no image here shows (a schema may know it from test rows) is nothing a decoder could have learned
    shown = set(known)
    continuous = schema[name].kind == "continuous"
    levels: list[Value] = []
    levels += sorted(map(float, shown)) if continuous else [v for v in schema[name].categories if v in shown]
    found = pd.Index(levels, dtype=float if continuous else object).get_indexer(pd.Index(column))
    found[column.isna().to_numpy()] = -1
    return Choice(name, levels, found.astype(np.int64), continuous)


def _quantiles(choice: Choice) -> Choice:
    codes = np.unique(choice.quantile(np.array(QUANTILE_LEVELS)))
    return replace(choice, levels=[choice.levels[code] for code in codes.tolist()])


def _combinations(choices: Sequence[Choice]) -> int:
    total = math.prod(len(choice.levels) for choice in choices)
    if total > MOST_COMBINATIONS:
        counts = " x ".join(f"{len(choice.levels)} {choice.name}" for choice in choices)
        raise UsageError(
            f"every_value: expected at most {MOST_COMBINATIONS} combinations per source, got {total} ({counts}); "
            "name fewer attributes, or use balance"
        )
    return total
