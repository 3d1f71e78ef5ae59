"""Columns of a table in their canonical form: categories as text, numbers as float64, keys as text.

    text(3) = text(3.0) = "3",   text(True) = "True",   text(None) = text(NaN) = None

The text of a cell depends on that cell alone: never on the column's other cells, on their order or on the column's dtype
(pandas treats True and 1 as equal, and would give both the text of the first). A cell that is not a single value (a list, a
complex number) is refused.
"""

from __future__ import annotations

import functools
import logging
import math
import unicodedata
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cfaug.errors import DataError, UsageError, shown

log = logging.getLogger(__name__)

_NO_CELL = (
    list, tuple, dict, set, frozenset, np.ndarray, pd.Series, pd.DataFrame, complex, np.complexfloating, bytes, bytearray,
)  # fmt: skip
# In a column of these kinds (``pandas.api.types.infer_dtype``) equal cells have the same text, and every cell is one value
_ALIKE = ("string", "integer", "floating", "mixed-integer-float", "boolean", "empty", "decimal")
_LOOKS_MISSING = frozenset({"NA", "N/A", "#N/A", "<NA>", "nan", "NaN", "NAN", "null", "NULL", "None"})


def text_of(value: Any) -> str | None:
    """The canonical text of one category: ``3``, ``3.0`` and ``np.int64(3)`` are all "3"; missing is None."""
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, float | np.floating):
        if math.isnan(value):
            return None
        # a column of integers with one hole arrives as floats: 3.0 must still be category "3"
        return str(int(value)) if float(value).is_integer() else repr(float(value))
    return str(value)


def keys(index: pd.Index) -> pd.Index:
    """The source keys as text; keys that are text already are not converted one by one."""
    whole = pd.api.types.infer_dtype(index, skipna=False) == "string"
    return pd.Index(index.astype(object) if whole else [str(k) for k in index], dtype=object, name=index.name)


def _is_number(text: str) -> bool:
    try:
        return not math.isnan(float(text))
    except ValueError:
        return False


def learned(column: pd.Series, name: str, ordinal: bool) -> tuple[str, ...]:
    """The distinct texts of a canonical column without holes, sorted: as numbers if all are, so that "10" comes after "9".

    The log warns, once per process, of texts that other programs write for a missing value, and of texts that look the same.
    Raises DataError for an ordinal of words: their order is not the alphabet's ("large" below "small").
    """
    unique = sorted(column.unique())
    words = [text for text in unique if not _is_number(text)]
    if ordinal and words:
        raise DataError(
            f"attribute {name!r} is ordinal and its values {'are' if words == unique else 'include'} words "
            f"({', '.join(words[:10])}{', ...' if len(words) > 10 else ''}): expected their order; give "
            "Attribute(..., values=[...]), or attributes.values in the recipe"
        )
    for text in sorted(_LOOKS_MISSING.intersection(words)):
        _say_once(
            f"column {name!r} holds the text {text!r} in {int((column == text).sum())} rows: a category, not a missing value; "
            "leave the cell empty if it is missing"
        )
    _tell_spellings(column, unique, name)
    return tuple(unique if words else sorted(unique, key=float))


def _tell_spellings(column: pd.Series, unique: list[str], name: str) -> None:
    """Warn of categories that differ in white space or in the Unicode form of a letter: they look the same and count as two."""
    alike: dict[str, list[str]] = {}
    for text in unique:
        alike.setdefault(" ".join(unicodedata.normalize("NFC", text).split()), []).append(text)
    for texts in alike.values():
        if len(texts) > 1:
            counts = column.value_counts()
            cells = [f"{text!a} ({counts[text]} rows)" for text in texts]
            _say_once(
                f"column {name!r}: {', '.join(cells)} differ in white space or in the Unicode form of a letter only, and count as "
                f"{len(texts)} categories; write them alike if they are one"
            )


@functools.lru_cache(maxsize=1024)
def _say_once(message: str) -> None:
    # a schema is fitted to one table many times; the log says it once
    log.warning(message)


def spread(values: npt.NDArray[np.float64], name: str) -> tuple[float, float]:
    """(mean, population std) of (n,) finite numbers; 1 for the std of a constant column.

    Raises DataError where a float cannot hold them.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        mean, std = float(values.mean()), float(values.std())
    if not (math.isfinite(mean) and math.isfinite(std)):
        raise DataError(
            f"column {name!r}: expected numbers whose spread a float can hold, got {values.min():g} to {values.max():g}; "
            "correct the table, or give the column in a different unit"
        )
    # a constant column has a rounding error for a std, not always an exact zero
    return mean, std if std > 1e-12 * abs(mean) else 1.0


def column_of(table: Any, name: str) -> pd.Series:
    """One column of a table that has it. Raises DataError when it has several of that name."""
    column: Any = table[name]
    if isinstance(column, pd.DataFrame):
        raise DataError(
            f"expected one column {name!r} in the table, got {column.shape[1]} of that name; keep or rename one of them"
        )
    found: pd.Series = column
    return found


def refuse_no_table(table: object) -> None:
    """UsageError for anything but a DataFrame."""
    if not isinstance(table, pd.DataFrame):
        raise UsageError(
            f"expected a table as a pandas DataFrame, one row per image, got a {type(table).__name__}; make one with pd.DataFrame(...)"
        )


def _refuse_no_cell(column: pd.Series, name: str) -> None:
    for row, value in enumerate(column):
        if isinstance(value, _NO_CELL):
            raise DataError(
                f"column {name!r}, row {str(column.index[row])!r}: expected one text or number in each cell, got the "
                f"{type(value).__name__} {shown(value)}; correct the table"
            )


def _factors(column: pd.Series) -> tuple[npt.NDArray[np.intp], Any] | None:
    """Codes and unique cells of a column whose equal cells have the same text; None for any other."""
    try:
        codes, uniques = pd.factorize(column.astype(object), use_na_sentinel=True)
    except TypeError:  # a list has no hash
        return None
    # nothing but a text equals a text, so the uniques tell; a 1 among them may stand for cells that are True
    if pd.api.types.infer_dtype(uniques) == "string" or pd.api.types.infer_dtype(column, skipna=True) in _ALIKE:
        return codes, uniques
    return None


def texts_of(column: pd.Series, name: str) -> npt.NDArray[np.object_]:
    """(n,) the canonical text of every cell, None where it is missing or empty. Raises DataError for a cell that is no value."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        known = texts_of(pd.Series(column.cat.categories), name)
        return _taken(known, column.cat.codes.to_numpy())
    cells = column.to_numpy(dtype=object, copy=True)
    # text and holes, as in a canonical table: no cell needs converting
    if pd.api.types.infer_dtype(cells, skipna=True) in ("string", "empty"):
        cells[pd.isna(cells)] = None
        cells[cells == ""] = None  # an empty cell of a CSV file is a missing value
        return cells
    if (factors := _factors(column)) is not None:
        codes, uniques = factors
        return _taken(map(text_of, uniques), codes)
    _refuse_no_cell(column, name)
    return _taken(map(text_of, column), np.arange(len(column)))


def _taken(texts: Iterable[str | None], codes: npt.NDArray[Any]) -> npt.NDArray[np.object_]:
    """The text of each code; of code -1, and of an empty text, None."""
    known = np.array([*texts, None], dtype=object)
    known[known == ""] = None
    found: npt.NDArray[np.object_] = known[codes]
    return found


def numbers_of(column: pd.Series, name: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """(n,) numbers, NaN where missing, and (n,) which cells hold a text instead. Raises DataError for a cell that is no value."""
    kind = column.dtype
    if isinstance(kind, np.dtype) and kind.kind in "fiub":
        return column.to_numpy(dtype=np.float64, copy=True), np.zeros(len(column), dtype=np.bool_)
    if pd.api.types.infer_dtype(column, skipna=True) not in _ALIKE:
        _refuse_no_cell(column, name)
    cells = column.astype(object)
    try:
        found = pd.to_numeric(cells, errors="coerce").to_numpy(dtype=np.float64)
    except OverflowError:  # a whole number beyond any float
        found = np.array([_number(v) for v in cells], dtype=np.float64)
    odd = np.isnan(found)
    where = np.flatnonzero(odd)
    # text is wrong; a missing number is for Schema.check to judge
    odd[where] = [text_of(v) not in (None, "") for v in cells.iloc[where]]
    return found, odd


def _number(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf
    except (TypeError, ValueError):
        return math.nan
