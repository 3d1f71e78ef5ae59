"""One attribute (a column of the table and a node of the graph), and its values as they are read from a table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cfaug.data.table import column_of, numbers_of, text_of, texts_of
from cfaug.errors import DataError, UsageError, near, shown

KINDS = ("categorical", "ordinal", "continuous")
IMAGE = "image"  # the last node of every graph; never a column


@dataclass(frozen=True)
class Attribute:
    """One attribute: a column of the table and a node of the graph.

    ``values`` are the categories (as text) of a categorical, and the ascending ranks of an ordinal; ``mean`` and
    ``std`` (population, in ``unit``) are the standardisation of a continuous one. ``Schema.fit`` fills what is None. Raises UsageError for an unknown kind, an empty or reserved name ("image"), or repeated values.
    """

    name: str
    kind: str = "categorical"
    values: tuple[str, ...] | None = None
    unit: str = ""
    mean: float | None = None
    std: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise UsageError(f"expected a non-empty text as an attribute's name, got {self.name!r}; name its column")
        if self.name == IMAGE:
            raise UsageError(
                'expected an attribute, got "image", the name of the image itself; give the attribute a different name'
            )
        if self.kind not in KINDS:
            raise UsageError(
                f"attribute {self.name!r}: expected a kind among {', '.join(KINDS)}, got {self.kind!r}; {near(self.kind, KINDS)}"
            )
        if self.values is not None:
            if self.kind == "continuous":
                raise UsageError(
                    f"attribute {self.name!r} is continuous: expected no list of values, got one; remove values="
                )
            if isinstance(self.values, str):
                raise UsageError(
                    f"attribute {self.name!r}: expected a list of values, got the text {self.values!r}; put it in a list"
                )
            values = tuple(text_of(v) for v in self.values)
            if not values or None in values or len(set(values)) != len(values):
                raise UsageError(
                    f"attribute {self.name!r}: expected distinct values that are not empty, got {values}; list each once"
                )
            object.__setattr__(self, "values", values)
        for field in ("mean", "std"):
            number = getattr(self, field)
            if number is not None:
                if not math.isfinite(number) or (field == "std" and number <= 0):
                    raise UsageError(
                        f"attribute {self.name!r}: expected a finite {field} (std above 0), got {number!r}"
                    )
                object.__setattr__(self, field, float(number))

    @property
    def fitted(self) -> bool:
        """True when nothing is left to learn from a table."""
        return (self.mean is not None and self.std is not None) if self.kind == "continuous" else bool(self.values)

    @property
    def width(self) -> int:
        """Columns of the encoding."""
        return len(self.categories) if self.kind == "categorical" else 1

    @property
    def categories(self) -> tuple[str, ...]:
        """``values`` of a fitted categorical or ordinal attribute; UsageError before ``Schema.fit``."""
        if self.values is None:
            raise UsageError(f"attribute {self.name!r} has no values yet; call Schema.fit(table) first")
        return self.values

    @property
    def scale(self) -> tuple[float, float]:
        """(mean, std) of a fitted continuous attribute; UsageError before ``Schema.fit``."""
        if self.mean is None or self.std is None:
            raise UsageError(f"attribute {self.name!r} has no statistics yet; call Schema.fit(table) first")
        return self.mean, self.std


# --- a column of a table
def read_column(table: pd.DataFrame, a: Attribute) -> tuple[pd.Series, npt.NDArray[Any]]:
    """An attribute's column as it is, and its canonical values (n,): float64, or text with None where it is missing."""
    if a.name not in table.columns:
        raise DataError(f"expected a column {a.name!r} in the table; {near(a.name, map(str, table.columns))}")
    raw = column_of(table, a.name)
    if a.kind != "continuous":
        return raw, texts_of(raw, a.name)
    numbers, odd = numbers_of(raw, a.name)
    refuse(a, raw, odd)
    return raw, numbers


def codes_of(a: Attribute, values: npt.NDArray[np.object_]) -> npt.NDArray[np.int64]:
    """Places (n,) in the attribute's values; -1 for a value that is missing or unknown."""
    place: dict[object, int] = {value: k for k, value in enumerate(a.categories)}
    return np.fromiter((place.get(value, -1) for value in values), dtype=np.int64, count=len(values))


def refuse(a: Attribute, raw: pd.Series, bad: npt.NDArray[np.bool_]) -> None:
    """DataError naming the first row (n,) that is bad: what it holds, and what was expected."""
    if not bad.any():
        return
    row = int(np.argmax(bad))
    text = text_of(raw.iloc[row])
    got, cure = (
        ("no value", "fill it in or leave the row out (only training rows may lack values, and never the target's)")
        if text in (None, "")
        else (shown(text), "correct the table")
    )
    if a.kind == "continuous":
        expected = "a finite number"
    else:
        expected = f"one of {', '.join(a.values[:20])}" if a.values else "a value"
    raise DataError(f"column {a.name!r}, row {str(raw.index[row])!r}: expected {expected}, got {got}; {cure}")


def refuse_huge(a: Attribute, raw: pd.Series, bad: npt.NDArray[np.bool_]) -> None:
    """DataError naming the first row (n,) whose number cannot be encoded."""
    if bad.any():
        row = int(np.argmax(bad))
        mean, std = a.scale
        raise DataError(
            f"column {a.name!r}, row {str(raw.index[row])!r}: expected a number that can be standardised (mean {mean:g}, "
            f"std {std:g}) in 32 bits, got {float(raw.iloc[row]):g}; correct the table, or the value in do(...)"
        )
