"""What every strategy starts from: checked settings, the sources of a table, the levels of its attributes, the classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from cfaug.causal.row_random import natural
from cfaug.data import Schema
from cfaug.data.schema import refuse_no_schema
from cfaug.errors import DataError, UsageError
from cfaug.offline.plan.drawn import DrawnRows, Levels
from cfaug.offline.plan.permutation import Whole
from cfaug.offline.plan.plan import Plan, refuse_wrong_shape
from cfaug.offline.plan.values import Column, Strata, key_of

_STRATEGY = 0x9A7  # the purposes of a strategy's draws; apart from those of drawn.py and of the models


@dataclass(frozen=True)
class Settings:
    """The arguments that all strategies share; :class:`UsageError` in one line for one that is none."""

    strategy: str
    per_image: int
    null_fraction: float
    seed: int
    samples_per_shard: int
    split: str
    replicas: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", natural(self.seed))
        refuse_wrong_shape(self.split, self.samples_per_shard)
        for name in ("per_image", "replicas"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise UsageError(f"expected {name} of at least 1, got {getattr(self, name)!r}")
        share = self.null_fraction
        if not isinstance(share, float | int | np.number) or isinstance(share, bool) or not 0 <= share < 1:
            raise UsageError(f"expected null_fraction in [0, 1), got {share!r}")


@dataclass(frozen=True, eq=False)
class PlanTable:
    """The sources and their attributes: `table` is canonical, `levels` are those intervened on, sorted by name."""

    settings: Settings
    schema: Schema
    table: pd.DataFrame
    levels: tuple[Levels, ...]
    class_of: Whole  # (n,)
    class_names: tuple[str, ...]

    @staticmethod
    def make(
        table: pd.DataFrame, schema: Schema, settings: Settings, attributes: Sequence[str] | None = None
    ) -> PlanTable:
        """:class:`UsageError` for attributes that are none, :class:`DataError` for a table that has nothing to draw from."""
        refuse_no_schema(schema)
        if schema.target is None:
            raise UsageError("expected a schema with a target, got none: name the attribute that is the label")
        names = schema.spurious if attributes is None else [attributes] if isinstance(attributes, str) else attributes
        if not names:
            raise UsageError("expected at least one attribute to intervene on, got none: name the spurious attributes")
        if schema.target in names:
            raise UsageError(
                f"expected attributes other than the target, got {schema.target!r}: the label must be kept"
            )
        if len(set(names)) != len(names):
            raise UsageError(f"expected every attribute once, got {', '.join(names)}: name each once")
        for name in names:
            schema[name]
        if len(table) == 0:
            raise DataError(
                f"expected sources in the {settings.split} split, got an empty table: check the split column"
            )
        if not table.index.is_unique:
            twice = table.index[table.index.duplicated()][0]
            raise DataError(
                f"expected every source once in the table's index, got {twice!r} twice: give each row its own key"
            )
        schema = schema.fit(table, schema.names)
        table = schema.canonical(table)
        codes, classes = pd.factorize(table[schema.target])
        levels = tuple(_levels(schema, table, name) for name in sorted(names))
        return PlanTable(settings, schema, table, levels, codes.astype(np.int64), tuple(map(str, classes)))

    @property
    def names(self) -> tuple[str, ...]:
        """The attributes intervened on, sorted."""
        return tuple(level.name for level in self.levels)

    def continuous(self, name: str) -> bool:
        """Whether an attribute is."""
        return self.schema[name].kind == "continuous"

    def purpose(self, number: int) -> int:
        """The number of one of the strategy's draws, for ``stream``."""
        return _STRATEGY + number

    def classes(self, per_source: int, within: Whole | None = None) -> Callable[[int], Strata]:
        """The strata of the target, or of target and `within` (n,) codes from -1 up, for the draw of a number."""
        of = self.class_of
        if within is not None:
            of = pd.factorize(of * (int(within.max()) + 2) + within + 1)[0].astype(np.int64)
        strata = Strata.make(of, per_source, key_of(self.settings.seed))
        return lambda number: strata.keyed(key_of(self.settings.seed, self.purpose(number)))

    def plan(
        self,
        levels: Sequence[Levels],
        columns: Sequence[Column],
        per_source: int,
        more: Mapping[str, Any] | None = None,
        paired: bool = False,
    ) -> Plan:
        """The plan whose attributes have `levels`, chosen by `columns`, in `per_source` interventions of every source."""
        own = self.settings
        real = len(self.table) * per_source * own.replicas
        present = self.table.notna().to_numpy()
        rows = DrawnRows(
            keys=tuple(map(str, self.table.index)),
            present=None if present.all() else present,
            levels=tuple(levels),
            columns=tuple(columns),
            per_source=per_source,
            replicas=own.replicas,
            nulls=round(own.null_fraction / (1 - own.null_fraction) * real),
            seed=own.seed,
            split=own.split,
            samples_per_shard=own.samples_per_shard,
            paired=paired,
        )
        settings = {
            "strategy": own.strategy, "per_image": own.per_image, "null_fraction": float(own.null_fraction),
            "seed": own.seed, "attributes": list(self.names), "replicas": own.replicas, **(more or {}),
        }  # fmt: skip
        return Plan.drawn(rows, own.split, own.samples_per_shard, settings)


def _levels(schema: Schema, table: pd.DataFrame, name: str) -> Levels:
    seen = table[name].dropna()
    if seen.empty:
        raise DataError(
            f"column {name!r}: expected sources with a value to draw from, got none in {len(table)} rows; fill in some"
        )
    if schema[name].kind == "continuous":
        return Levels(name, np.sort(seen.to_numpy(dtype=np.float64)).tolist())
    # a value that no image here shows (a schema may know it from test rows) is nothing a decoder could have learned
    shown = set(seen)
    return Levels(name, [value for value in schema[name].categories if value in shown])
