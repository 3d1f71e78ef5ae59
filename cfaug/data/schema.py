"""Attributes and their schema: the names, kinds, values and units of everything the graph talks about.

A *table* is a pandas DataFrame: one row per image, the index is the source key, one column per attribute.
Units live here and nowhere else: ``Schema.encode`` is the only place that standardises,

    continuous   (v - mean) / std
    ordinal      2 rank / (K - 1) - 1          in [-1, 1]
    categorical  one-hot over ``values``       in {0, 1}

and every other room works with values (tables) or with the encoding, never with a scale of its own.
It does not promise that an attribute means anything in the pixels: it knows columns only.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cfaug.data.attribute import IMAGE as IMAGE
from cfaug.data.attribute import Attribute as Attribute
from cfaug.data.attribute import codes_of, read_column, refuse, refuse_huge
from cfaug.data.table import keys, learned, refuse_no_table, spread, text_of, texts_of
from cfaug.errors import DataError, UsageError, near, one_line, shown


@dataclass(frozen=True)
class Schema:
    """The attributes of a data set, which of them is the target, and which are spurious. Immutable, and a value.

    Valid without statistics; ``fit`` returns a schema that has them.
    """

    attributes: tuple[Attribute, ...]
    target: str | None = None
    spurious: tuple[str, ...] = ()

    def __init__(
        self, attributes: Iterable[Attribute], target: str | None = None, spurious: Sequence[str] = ()
    ) -> None:
        items = tuple(attributes)
        wrong = next((a for a in items if not isinstance(a, Attribute)), None)
        if wrong is not None:
            raise UsageError(
                f"expected a list of Attribute(...) for a Schema, got {shown(wrong)}; wrap each name in Attribute(...)"
            )
        object.__setattr__(self, "attributes", items)
        object.__setattr__(self, "target", target)
        object.__setattr__(self, "spurious", (spurious,) if isinstance(spurious, str) else tuple(spurious))
        for kind, names in (("an attribute", self.names), ("a spurious attribute", self.spurious)):
            if len(set(names)) != len(names):
                raise UsageError(f"expected {kind} once, got one twice in {', '.join(names)}; list every name once")
        if target is not None and self[target].kind == "continuous":
            raise UsageError(
                f"expected a categorical or ordinal target, got {target!r}, which is continuous; bin its column"
            )
        for name in self.spurious:
            self[name]
            if name == target:
                raise UsageError(f"{name!r} is both the target and spurious; choose one")

    # --- looking things up
    @property
    def names(self) -> tuple[str, ...]:
        """All attribute names, in order."""
        return tuple(a.name for a in self.attributes)

    def __getitem__(self, name: str) -> Attribute:
        for attribute in self.attributes:
            if attribute.name == name:
                return attribute
        raise UsageError(f"expected an attribute of the schema, got {name!r}; {near(name, self.names)}")

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[Attribute]:
        return iter(self.attributes)

    def __len__(self) -> int:
        return len(self.attributes)

    @property
    def fitted(self) -> bool:
        """True when every attribute has its values or statistics."""
        return all(a.fitted for a in self.attributes)

    # --- learning values and statistics
    def fit(self, table: pd.DataFrame, missing: Collection[str] = ()) -> Schema:
        """A schema whose values, means and standard deviations come from ``table``; what was given stays.

        Cells may be missing as in ``check``; nothing is learned from those. The std of a constant column is 1, so that it
        encodes as zeros. The order of an ordinal's values is learned from numbers only. The log warns, once per process, of
        learned categories that look like a missing value ("NA") or like a different spelling of one category.
        Raises DataError as ``check`` does, for a column without any value to learn from, for an ordinal of words without
        ``values``, and for numbers whose mean or spread is beyond a float.
        """
        columns = self._checked(table, missing)
        if not len(table):
            raise DataError("expected a table to learn the schema from, got one without rows; give at least one row")
        fitted = []
        for a, values in zip(self.attributes, columns):
            present = values[~pd.isna(values)]
            if not a.fitted and not len(present):
                raise DataError(
                    f"column {a.name!r}: expected a value in at least one row, got none in {len(values)} rows; fill in some, "
                    "or leave the attribute out"
                )
            if a.kind == "continuous" and not a.fitted:
                mean, std = spread(present, a.name)
                fitted.append(replace(a, mean=mean if a.mean is None else a.mean, std=std if a.std is None else a.std))
            elif a.kind != "continuous" and a.values is None:
                fitted.append(replace(a, values=learned(pd.Series(present, dtype=object), a.name, a.kind == "ordinal")))
            else:
                fitted.append(a)
        return Schema(fitted, self.target, self.spurious)

    def check(self, table: pd.DataFrame, missing: Collection[str] = ()) -> None:
        """Raise DataError, naming column, row key, offending and expected values, for the first thing that is wrong.

        Wrong are: a missing column, a category outside ``values``, a number that is not finite, and a missing value. A value
        may be missing in the attributes ``missing``, but never in the target.
        """
        self._checked(table, missing)

    def _checked(self, table: pd.DataFrame, missing: Collection[str]) -> list[npt.NDArray[Any]]:
        """The canonical values of every column, after ``check``."""
        refuse_no_table(table)
        for name in missing:
            self[name]
        columns = [read_column(table, a) for a in self.attributes]
        for a, (raw, values) in zip(self.attributes, columns):
            absent = pd.isna(values)
            if a.kind == "continuous":
                bad = ~np.isfinite(values)
            else:
                bad = absent if a.values is None else codes_of(a, values) < 0
            refuse(a, raw, bad & ~absent if a.name in missing and a.name != self.target else bad)
        return [values for _, values in columns]

    def canonical(self, table: pd.DataFrame) -> pd.DataFrame:
        """Only the schema's columns: categories as text ("3", never 3 or 3.0; missing is None), numbers as float64.

        The index is kept, as text. A canonical table comes back as an equal copy. Raises DataError for a column that is
        missing or there twice, a text in a continuous one, and a cell that holds no single value; UsageError for anything but
        a DataFrame.
        """
        refuse_no_table(table)
        index = keys(table.index)
        out = {}
        for a in self.attributes:
            values = read_column(table, a)[1]
            out[a.name] = pd.Series(values, index=index, dtype=values.dtype)
        return pd.DataFrame(out, index=index)

    # --- the encoding
    def _select(self, names: Sequence[str] | None) -> tuple[Attribute, ...]:
        return self.attributes if names is None else tuple(self[n] for n in names)

    def encode(
        self, table: pd.DataFrame, names: Sequence[str] | None = None, missing: bool = False
    ) -> npt.NDArray[np.float32]:
        """The attributes ``names`` (default: all) of B rows as a float32 array (B, D), D = ``width(names)``.

        A missing categorical value encodes as a zero block (label unknown or dropped). A missing ordinal or continuous
        one is a DataError, since zero is a real value there; with ``missing`` it is a zero all the same, for a caller that
        encodes beside it what is present. A value outside the schema is always a DataError, and so is a number whose
        encoding float32 cannot hold: it would be an infinity, and everything that is computed from it NaN.
        """
        refuse_no_table(table)
        out = np.zeros((len(table), self.width(names)), dtype=np.float32)
        for a, where in zip(self._select(names), self.blocks(names).values()):
            raw, values = read_column(table, a)
            absent = pd.isna(values)
            if a.kind == "continuous":
                mean, std = a.scale
                refuse(a, raw, ~np.isfinite(values) & ~(absent & missing))
                with np.errstate(over="ignore"):
                    out[:, where.start] = np.where(absent, 0.0, (values - mean) / std)
                refuse_huge(a, raw, ~np.isfinite(out[:, where.start]))
                continue
            codes = codes_of(a, values)
            refuse(a, raw, (codes < 0) & ~(absent & (missing or a.kind == "categorical")))
            rows = np.flatnonzero(codes >= 0)
            if a.kind == "categorical":
                out[rows, where.start + codes[rows]] = 1.0
            else:
                out[rows, where.start] = 2.0 * codes[rows] / max(1, len(a.categories) - 1) - 1.0
        return out

    def blocks(self, names: Sequence[str] | None = None) -> dict[str, slice]:
        """Which columns of the encoding belong to which attribute."""
        out, start = {}, 0
        for a in self._select(names):
            out[a.name] = slice(start, start + a.width)
            start += a.width
        return out

    def width(self, names: Sequence[str] | None = None) -> int:
        """Number of columns of the encoding."""
        return sum(a.width for a in self._select(names))

    def index(self, name: str, series: Iterable[Any]) -> npt.NDArray[np.int64]:
        """int64 codes 0..K-1 of a categorical or ordinal column; DataError for a missing or unknown value."""
        a = self[name]
        column = series if isinstance(series, pd.Series) else pd.Series(list(series), dtype=object)
        codes = codes_of(a, texts_of(column, name))
        refuse(a, column, codes < 0)
        return codes

    def check_value(self, name: str, value: Any) -> str | float:
        """The canonical form of one value, text or float; UsageError (listing what is allowed) if it is not one."""
        a = self[name]
        if a.kind == "continuous":
            try:
                number = float(value)
            except (TypeError, ValueError):
                number = math.nan
            if not math.isfinite(number):
                raise UsageError(f"attribute {name!r} is continuous: expected a finite number, got {shown(value)}")
            return number
        text = text_of(value)
        if text is not None and text in a.categories:
            return text
        raise UsageError(f"attribute {name!r} has no value {shown(value)}; allowed: {', '.join(a.categories)}")

    # --- on disk
    def to_json(self) -> dict[str, Any]:
        """Plain data; ``from_json`` gives back an equal schema."""
        rows = [asdict(a) | {"values": None if a.values is None else list(a.values)} for a in self.attributes]
        return {"attributes": rows, "target": self.target, "spurious": list(self.spurious)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Schema:
        """The inverse of ``to_json``; UsageError when ``data`` is something else."""
        try:
            rows = [Attribute(**row) for row in data["attributes"]]
            return cls(rows, data.get("target"), data.get("spurious", ()))
        except (KeyError, TypeError) as error:
            raise UsageError(
                f"expected a schema written by cfaug, got something else ({one_line(error)}); fit the model again"
            ) from error

    @property
    def digest(self) -> str:
        """sha256 (hex) of the canonical JSON."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def refuse_no_schema(schema: object) -> None:
    """UsageError for anything but a Schema."""
    if not isinstance(schema, Schema):
        raise UsageError(f"expected a Schema([Attribute(...), ...]), got {shown(schema)}; declare the attributes")
