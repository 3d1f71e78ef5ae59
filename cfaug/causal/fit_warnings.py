"""What a fit logs about its own limits, with numbers: rows that lack a value, few rows, few values, values never seen."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from cfaug.causal.marginals import Marginal
from cfaug.causal.mechanisms.protocol import Mechanism
from cfaug.errors import DataError

log = logging.getLogger(__name__)

FEW_VALUES = 5
"""Different numbers up to which a continuous column looks like levels."""


def tell(name: str, parents: Sequence[str], rows: npt.NDArray[np.bool_]) -> None:
    """Log from how many rows (B,) a mechanism learns; DataError when there is no such row."""
    what = f"{name} and its parents {', '.join(parents)}" if parents else name
    if not rows.any():
        raise DataError(
            f"expected rows that have {what}, got none among {len(rows)}; fill in some of the missing values"
        )
    log.warning("%s: learned from the %d of %d rows that have %s", name, rows.sum(), len(rows), what)


def warn(mechanism: Mechanism, marginal: Marginal, values: pd.Series) -> None:
    """Log what a fit to these values cannot know, with numbers."""
    name, rows, distinct = mechanism.name, len(values), values.nunique()
    if marginal.constant:
        log.warning("%s has one value in all %d rows: nothing says what a different value of it would do", name, rows)
    elif rows < mechanism.parameters:
        log.warning(
            "%s: %d rows for %d parameters given %s; held-out rows decide how much is learned, so expect a rough mechanism, or choose a simpler "
            "one (mechanisms={%r: ...})",
            name, rows, mechanism.parameters, ", ".join(mechanism.parents) or "no parents", name,
        )  # fmt: skip
    if marginal.attribute.kind == "continuous" and 2 <= distinct <= FEW_VALUES < rows / 4:
        log.warning(
            "%s is continuous but has %d different values in %d rows: counterfactuals will fall between them; make it ordinal or "
            "categorical",
            name, distinct, rows,
        )  # fmt: skip
    unseen = [v for v in marginal.attribute.values or () if v not in marginal.seen]
    if unseen:
        more = f" (and {len(unseen) - 1} more values)" if len(unseen) > 1 else ""
        log.warning("%s=%s%s: no row to learn from; it gets a small probability", name, unseen[0], more)
