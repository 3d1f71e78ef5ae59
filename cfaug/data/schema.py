"""Attributes and their schema: the names, kinds, values and units of everything the graph talks about.

A *table* is a pandas DataFrame: one row an image, the index is the source key, one column an attribute.
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

from cfaug.data.table import column_of, keys, learned, numbers_of, refuse_no_table, spread, text_of, texts_of
from cfaug.errors import DataError, UsageError, near, shown

KINDS = ("categorical", "ordinal", "continuous")
IMAGE = "image"  # the last node of every graph; never a column


@dataclass(frozen=True)
class Attribute:
    """One attribute: a column of the table and a node of the graph.

    ``values`` are the categories (as text) of a categorical, and the ascending ranks of an ordinal; ``mean`` and
    ``std`` (population, in ``unit``) are the standardisation of a continuous one. What is None is filled by
    ``Schema.fit``. Raises UsageError for an unknown kind, an empty or reserved name ("image"), or repeated values.
    """

    name: str
    kind: str = "categorical"
    values: tuple[str, ...] | None = None
    unit: str = ""
    mean: float | None = None
    std: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise UsageError(f"an attribute needs a non-empty text as its name, got {self.name!r}")
        if self.name == IMAGE:
            raise UsageError('"image" is the name of the image itself; give the attribute another name')
        if self.kind not in KINDS:
            raise UsageError(f"attribute {self.name!r}: kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.values is not None:
            if self.kind == "continuous":
                raise UsageError(f"attribute {self.name!r} is continuous and has no list of values; remove values=")
            if isinstance(self.values, str):
                raise UsageError(f"attribute {self.name!r}: values must be a list, got the text {self.values!r}")
            values = tuple(text_of(v) for v in self.values)
            if not values or None in values or len(set(values)) != len(values):
                raise UsageError(f"attribute {self.name!r}: values must be distinct and not empty, got {values}")
            object.__setattr__(self, "values", values)
        for field in ("mean", "std"):
            number = getattr(self, field)
            if number is not None:
                if not math.isfinite(number) or (field == "std" and number <= 0):
                    raise UsageError(f"attribute {self.name!r}: {field} must be finite (std above 0), got {number!r}")
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
            raise UsageError(f"a Schema takes a list of Attribute(...), got {wrong!r}")
        object.__setattr__(self, "attributes", items)
        object.__setattr__(self, "target", target)
        object.__setattr__(self, "spurious", (spurious,) if isinstance(spurious, str) else tuple(spurious))
        for kind, names in (("an attribute", self.names), ("a spurious attribute", self.spurious)):
            if len(set(names)) != len(names):
                raise UsageError(f"{kind} is listed twice in {', '.join(names)}; list every name once")
        if target is not None and self[target].kind == "continuous":
            raise UsageError(f"the target {target!r} is continuous; it must be categorical or ordinal")
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
        raise UsageError(f"unknown attribute {name!r}; {near(name, self.names)}")

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

        Cells may be missing as in ``check``, and then nothing is learned from them. The std of a constant column is 1,
        so that it encodes as zeros. The order of an ordinal's values is learned from numbers only. The log warns, once a
        process, of learned categories that look like a missing value ("NA").
        Raises DataError as ``check`` does, for a column to learn from without any value, for an ordinal of words without
        ``values``, and for numbers whose mean or spread is beyond a float.
        """
        self.check(table, missing)
        columns = self.canonical(table)
        if not len(columns):
            raise DataError("cannot fit a schema to an empty table; give at least one row")
        fitted = []
        for a in self.attributes:
            column = columns[a.name].dropna()
            if column.empty and not a.fitted:
                raise DataError(
                    f"column {a.name!r}: expected a value in at least one row, got none in {len(columns)} rows; fill in some, "
                    "or leave the attribute out"
                )
            if a.kind == "continuous" and not a.fitted:
                mean, std = spread(column.to_numpy(), a.name)
                fitted.append(replace(a, mean=mean if a.mean is None else a.mean, std=std if a.std is None else a.std))
            elif a.kind != "continuous" and a.values is None:
                fitted.append(replace(a, values=learned(column, a.name, a.kind == "ordinal")))
            else:
                fitted.append(a)
        return Schema(fitted, self.target, self.spurious)

    def check(self, table: pd.DataFrame, missing: Collection[str] = ()) -> None:
        """Raise DataError, naming column, row key, offending and expected values, for the first thing that is wrong.

        Wrong are: a missing column, a category outside ``values``, a number that is not finite, and a missing value: except
        in the attributes ``missing``, of which the target is never one, whether it is named or not.
        """
        columns = self.canonical(table)
        for name in missing:
            self[name]
        for a in self.attributes:
            column = columns[a.name]
            if a.kind == "continuous":
                bad = ~np.isfinite(column.to_numpy())
            elif a.values is None:
                bad = column.isna().to_numpy()
            else:
                bad = ~column.isin(a.values).to_numpy()
            if a.name in missing and a.name != self.target:
                bad = bad & column.notna().to_numpy()
            self._refuse(column, bad, a, table)

    @staticmethod
    def _refuse(column: pd.Series, bad: npt.NDArray[np.bool_], a: Attribute, table: pd.DataFrame) -> None:
        if not bad.any():
            return
        row = int(np.argmax(bad))
        raw = table[a.name].iloc[row]
        absent = column.iloc[row] is None or text_of(raw) in (None, "")
        came, cure = (
            ("no value", "fill it in or leave the row out (only training rows may lack values, and never the target's)")
            if absent
            else (shown(text_of(raw)), "correct the table")
        )
        if a.kind == "continuous":
            expected = "a finite number"
        else:
            expected = f"one of {', '.join(a.values[:20])}" if a.values else "a value"
        raise DataError(f"column {a.name!r}, row {str(column.index[row])!r}: expected {expected}, got {came}; {cure}")

    @staticmethod
    def _refuse_huge(column: pd.Series, bad: npt.NDArray[np.bool_], a: Attribute) -> None:
        if bad.any():
            row = int(np.argmax(bad))
            mean, std = a.scale
            raise DataError(
                f"column {a.name!r}, row {str(column.index[row])!r}: expected a number that can be standardised (mean {mean:g}, "
                f"std {std:g}) in 32 bits, got {column.iloc[row]:g}; correct the table, or the value in do(...)"
            )

    def canonical(self, table: pd.DataFrame) -> pd.DataFrame:
        """Only the schema's columns: categories as text ("3", never 3 or 3.0; missing is None), numbers as float64.

        The index is kept, as text. Raises DataError for a column that is missing or there twice, a text in a continuous
        one, and a cell that holds no single value; UsageError for what is no DataFrame.
        """
        refuse_no_table(table)
        out: dict[str, Any] = {}
        index = keys(table.index)
        for a in self.attributes:
            if a.name not in table.columns:
                raise DataError(f"the table has no column {a.name!r}; {near(a.name, map(str, table.columns))}")
            column = column_of(table, a.name)
            if a.kind == "continuous":
                numbers, odd = numbers_of(column, a.name)
                self._refuse(column, odd, a, table)
                out[a.name] = pd.Series(numbers, index=index)
            else:
                out[a.name] = pd.Series(texts_of(column, a.name), index=index, dtype=object)
        return pd.DataFrame(out, index=index)

    # --- the encoding
    def _select(self, names: Sequence[str] | None) -> tuple[Attribute, ...]:
        return self.attributes if names is None else tuple(self[n] for n in names)

    def _table_codes(self, a: Attribute, column: pd.Series, missing: bool) -> npt.NDArray[np.int64]:
        codes: npt.NDArray[np.int64] = pd.Index(a.categories, dtype=object).get_indexer(pd.Index(column, dtype=object))
        absent = column.isna().to_numpy()
        self._refuse(column, (codes < 0) & ~absent if missing else codes < 0, a, column.to_frame(a.name))
        return codes.astype(np.int64)

    def encode(
        self, table: pd.DataFrame, names: Sequence[str] | None = None, missing: bool = False
    ) -> npt.NDArray[np.float32]:
        """The attributes ``names`` (default: all) of B rows as a float32 array (B, D), D = ``width(names)``.

        A missing categorical value encodes as a zero block (label unknown or dropped). A missing ordinal or continuous
        one is a DataError, since zero is a real value there; with ``missing`` it is a zero all the same, for a caller who
        encodes beside it what is present. A value outside the schema is always a DataError, and so is a number whose
        encoding float32 cannot hold: it would be an infinity, and all that is computed from it NaN.
        """
        chosen = self._select(names)
        columns = Schema(chosen).canonical(table)
        out = np.zeros((len(table), self.width(names)), dtype=np.float32)
        for a, where in zip(chosen, self.blocks(names).values()):
            column = columns[a.name]
            if a.kind == "categorical":
                codes = self._table_codes(a, column, missing=True)
                rows = np.flatnonzero(codes >= 0)
                out[rows, where.start + codes[rows]] = 1.0
            elif a.kind == "ordinal":
                ranks = self._table_codes(a, column, missing)
                scaled = 2.0 * ranks / max(1, len(a.categories) - 1) - 1.0
                out[:, where.start] = np.where(ranks >= 0, scaled, 0.0)
            else:
                mean, std = a.scale
                numbers = column.to_numpy()
                absent = np.isnan(numbers) & missing
                self._refuse(column, ~np.isfinite(numbers) & ~absent, a, table)
                with np.errstate(over="ignore"):
                    out[:, where.start] = np.where(absent, 0.0, (numbers - mean) / std)
                self._refuse_huge(column, ~np.isfinite(out[:, where.start]), a)
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
        column = Schema([a]).canonical(column.to_frame(name))[name]
        return self._table_codes(a, column, missing=False)

    def check_value(self, name: str, value: Any) -> str | float:
        """The canonical form of one value, text or float; UsageError (listing what is allowed) if it is not one."""
        a = self[name]
        if a.kind == "continuous":
            try:
                number = float(value)
            except (TypeError, ValueError):
                number = math.nan
            if not math.isfinite(number):
                raise UsageError(f"attribute {name!r} is continuous: expected a finite number, got {value!r}")
            return number
        text = text_of(value)
        if text is not None and text in a.categories:
            return text
        raise UsageError(f"attribute {name!r} has no value {value!r}; allowed: {', '.join(a.categories)}")

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
            raise UsageError(f"this is not a schema written by cfaug ({error}); fit the model again") from error

    @property
    def digest(self) -> str:
        """sha256 (hex) of the canonical JSON."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def refuse_no_schema(schema: object) -> None:
    """UsageError for what is no Schema."""
    if not isinstance(schema, Schema):
        raise UsageError(f"expected a Schema([Attribute(...), ...]), got {shown(schema)}; declare the attributes")
