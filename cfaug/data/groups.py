"""Groups: the target crossed with ONE spurious attribute at a time, read from the attribute table.

    group(row, a) = "digit=3,foreground=red"         a continuous attribute: "digit=3,thickness=q2"

A continuous spurious attribute is cut at the quartiles of the *training* table, and the cuts are kept, so
that a test row falls into the group a training row of the same value falls into. A group is never derived
from pixels. A training row without a value is in no group of that attribute (None, where the caller allows it with
``missing``): a guess would put a wrong image into a rare group. Group names say nothing about how many rows a group has;
accuracies carry their own n.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cfaug.data.schema import Schema
from cfaug.errors import DataError, UsageError, near, one_line

QUARTILES = ("q1", "q2", "q3", "q4")


def quartiles(values: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """The three quartiles of the values that are present; NaN where there are none."""
    known = values[~np.isnan(values)]
    first, second, third = np.quantile(known, [0.25, 0.5, 0.75]) if len(known) else (np.nan,) * 3
    return float(first), float(second), float(third)


def quarter(values: npt.NDArray[np.float64], cuts: Sequence[float]) -> npt.NDArray[np.int64]:
    """The quarter 0..3 that each value is in, -1 for NaN. A value equal to a quartile is in the lower quarter, everywhere."""
    found = np.searchsorted(np.asarray(cuts, dtype=float), values, side="left")
    return np.where(np.isnan(values), -1, np.minimum(found, len(cuts)))


@dataclass(frozen=True)
class Grouper:
    """Rows to groups. Made by ``Grouper.fit`` on the training table; a value that pickles and compares."""

    schema: Schema
    edges: tuple[tuple[str, tuple[float, float, float]], ...] = ()  # continuous spurious attribute, its quartiles

    @classmethod
    def fit(cls, table: pd.DataFrame, schema: Schema) -> Grouper:
        """Learn values and quartiles from the training ``table``; missing cells are left out.

        UsageError without target or spurious attribute.
        """
        if schema.target is None or not schema.spurious:
            raise UsageError(
                "expected a target and at least one spurious attribute for groups; name both in the Schema"
            )
        # only the columns that make groups: a different attribute may be absent from the table at hand
        own = Schema((schema[n] for n in (schema.target, *schema.spurious)), schema.target, schema.spurious)
        own = own.fit(table, own.names)
        columns, edges = own.canonical(table), []
        for name in own.spurious:
            if own[name].kind == "continuous":
                values = columns[name].dropna().to_numpy()
                if not len(values):
                    raise DataError(
                        f"column {name!r}: expected training rows with a value, got none in {len(columns)} rows; fill in some"
                    )
                edges.append((name, quartiles(values)))
        return cls(own, tuple(edges))

    @property
    def target(self) -> str:
        """The target's name."""
        return str(self.schema.target)

    @property
    def spurious(self) -> tuple[str, ...]:
        """The spurious attributes' names."""
        return self.schema.spurious

    def level_names(self, attribute: str) -> tuple[str, ...]:
        """The levels of a spurious attribute: its values, or q1..q4."""
        if attribute not in self.spurious:
            raise UsageError(f"expected a spurious attribute, got {attribute!r}; {near(attribute, self.spurious)}")
        return QUARTILES if attribute in dict(self.edges) else self.schema[attribute].categories

    def levels(self, table: pd.DataFrame, attribute: str, missing: bool = False) -> pd.Series:
        """The level of every row, as text; q1 holds the values up to and including the first quartile.

        A missing value is a DataError; with ``missing`` (for training tables) its level is None.
        """
        self.level_names(attribute)
        one = Schema([self.schema[attribute]])
        one.check(table, one.names if missing else ())
        column = one.canonical(table)[attribute]
        cuts = dict(self.edges).get(attribute)
        if cuts is None:
            return column
        found = np.array([*QUARTILES, None], dtype=object)[quarter(column.to_numpy(), cuts)]
        return pd.Series(found, index=column.index, name=attribute, dtype=object)

    def _targets(self, table: pd.DataFrame) -> pd.Series:
        one = Schema([self.schema[self.target]])
        one.check(table)
        return one.canonical(table)[self.target]

    def labels(self, table: pd.DataFrame, missing: bool = False) -> pd.DataFrame:
        """The group of every row: one column per spurious attribute, text such as "digit=3,foreground=red".

        With ``missing``, a row without a level is in no group of that attribute: None.
        """
        targets = self._targets(table)
        return pd.DataFrame(
            {
                name: pd.Series(
                    [
                        None if a is None else f"{self.target}={y},{name}={a}"
                        for y, a in zip(targets, self.levels(table, name, missing))
                    ],
                    index=targets.index,
                    dtype=object,
                )
                for name in self.spurious
            },
            index=targets.index,
        )

    def names(self, attribute: str) -> tuple[str, ...]:
        """ALL group names of one spurious attribute, the empty groups' names included."""
        levels = self.level_names(attribute)
        return tuple(f"{self.target}={y},{attribute}={a}" for y in self.schema[self.target].categories for a in levels)

    @property
    def all_names(self) -> tuple[str, ...]:
        """``names`` of every spurious attribute, one after the other."""
        return tuple(name for attribute in self.spurious for name in self.names(attribute))

    def cross(self, table: pd.DataFrame, missing: bool = False) -> pd.Series:
        """The target crossed with all spurious attributes at once: "digit=3,foreground=red,background=blue".

        With ``missing``, a row that lacks any of the levels is in no group: None.
        """
        targets = self._targets(table)
        levels = [self.levels(table, name, missing) for name in self.spurious]
        text = [
            None if None in row else ",".join([f"{self.target}={y}", *(f"{n}={a}" for n, a in zip(self.spurious, row))])
            for y, *row in zip(targets, *levels)
        ]
        return pd.Series(text, index=targets.index, name="group", dtype=object)

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``from_json`` gives back an equal Grouper."""
        return {"schema": self.schema.to_json(), "edges": {name: list(cuts) for name, cuts in self.edges}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Grouper:
        """The inverse of ``to_json``; UsageError when ``data`` is something else."""
        try:
            edges = tuple((str(n), (float(c[0]), float(c[1]), float(c[2]))) for n, c in data["edges"].items())
            return cls(Schema.from_json(data["schema"]), edges)
        except (KeyError, TypeError, IndexError) as error:
            raise UsageError(
                f"expected a Grouper written by cfaug, got something else ({one_line(error)}); fit it again"
            ) from error
