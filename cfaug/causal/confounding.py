"""Confounding, measured: how much a spurious attribute and the target say about one another in a table.

    NMI(Y, A) = I(Y; A) / sqrt(H(Y) H(A))          in [0, 1]
    Cramer's V = sqrt(chi2 / (n (min(r, c) - 1)))  in [0, 1]

Dependence between factors as the measure of confounding: Reddy et al., arXiv 2305.18183. Continuous attributes enter
by quartiles. Both are plug-in estimates: in n rows two independent attributes of r and c
values still show about (r - 1)(c - 1) / (2 n) nats. Neither says anything about pixels: a table that looks balanced
does not prove that the images are. Both are of the rows that have both values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cfaug.causal.graph import CausalGraph
from cfaug.data.attributes import Schema
from cfaug.data.groups import Grouper
from cfaug.errors import DataError, UsageError


def _pairs(table: pd.DataFrame, schema: Schema, a: str, b: str) -> tuple[npt.NDArray[np.int64], ...]:
    """The level codes of both attributes, in the rows that have both; DataError when there is none."""
    own = Schema([schema[name] for name in dict.fromkeys((a, b))], schema.target if schema.target in (a, b) else None)
    own = own.fit(table, own.names)
    columns = own.canonical(table).dropna()
    if columns.empty:
        raise DataError(f"expected rows that have both {a!r} and {b!r}, got none in {len(table)} rows; fill in some")
    return _levels(columns, own, a), _levels(columns, own, b)


def _levels(columns: pd.DataFrame, own: Schema, name: str) -> npt.NDArray[np.int64]:
    if own[name].kind != "continuous":
        return own.index(name, columns[name])
    values = columns[name].to_numpy()
    return np.searchsorted(np.quantile(values, [0.25, 0.5, 0.75]), values, side="left").astype(np.int64)


def normalised_mutual_information(table: pd.DataFrame, schema: Schema, a: str, b: str) -> float:
    """NMI of two attributes in [0, 1]: 0 independent (or one is constant), 1 each determines the other."""
    from sklearn.metrics import normalized_mutual_info_score

    x, y = _pairs(table, schema, a, b)
    if len(np.unique(x)) < 2 or len(np.unique(y)) < 2:
        return 0.0  # a constant says nothing; scikit-learn would call two constants a perfect match
    return float(np.clip(normalized_mutual_info_score(x, y, average_method="geometric"), 0.0, 1.0))


def cramers_v(table: pd.DataFrame, schema: Schema, a: str, b: str) -> float:
    """Cramer's V of two attributes in [0, 1]; 0 when one is constant."""
    x, y = _pairs(table, schema, a, b)
    counts = pd.crosstab(x, y).to_numpy(dtype=np.float64)
    if min(counts.shape) < 2:
        return 0.0
    expected = counts.sum(1, keepdims=True) * counts.sum(0, keepdims=True) / counts.sum()
    chi2 = float(((counts - expected) ** 2 / expected).sum())
    return float(min(1.0, np.sqrt(chi2 / (counts.sum() * (min(counts.shape) - 1)))))


def _target(schema: Schema) -> str:
    if schema.target is None or not schema.spurious:
        raise UsageError("confounding needs a target and at least one spurious attribute; name both in the Schema")
    return schema.target


def confounding(table: pd.DataFrame, schema: Schema) -> dict[str, float]:
    """NMI between the target and each spurious attribute."""
    target = _target(schema)
    return {name: normalised_mutual_information(table, schema, target, name) for name in schema.spurious}


def missing_counts(table: pd.DataFrame, schema: Schema) -> dict[str, int]:
    """Attribute -> rows without a value; only the attributes that lack any."""
    counts = schema.canonical(table).isna().sum()
    return {str(name): int(n) for name, n in counts.items() if n}


def diagnose(table: pd.DataFrame, schema: Schema, graph: CausalGraph | None = None) -> dict[str, Any]:
    """What stands between this table and a fair classifier, as plain data.

    ``{"n", "missing": {name: rows without it}, "target", "spurious": {name: {"n", "nmi", "cramers_v", "groups",
    "smallest_group": {"name", "n"}, "empty_groups": [...], "safe": bool, "path": [...] | None}}, "text": [lines]}``.
    ``safe`` is False when the graph makes the attribute an ancestor of the target (``path``), so that an intervention on it could not keep the label.
    ``smallest_group`` is the smallest group that has any rows; ``n`` of an attribute are the rows that have it, which
    alone its figures and groups are of.
    """
    target = _target(schema)
    if graph is not None:
        graph.check(schema)
    grouper = Grouper.fit(table, schema)
    labels = grouper.labels(table, missing=True)
    found: dict[str, Any] = {}
    lines = [f"{len(table)} rows, target {target} ({len(grouper.schema[target].categories)} values)"]
    missing = missing_counts(table, schema)
    for name, n in missing.items():
        lines.append(f"{name}: {n} of {len(table)} rows have no value ({100 * n / len(table):.0f} %)")
    for name in schema.spurious:
        sizes = labels[name].value_counts().reindex(list(grouper.names(name)), fill_value=0)
        filled = sizes[sizes > 0]
        empty = [str(g) for g in sizes.index[sizes == 0]]
        path = None
        if graph is not None and name in graph and target in graph:
            path = graph.directed_path(name, target)
        n = int(labels[name].notna().sum())
        row = {
            "n": n,
            "nmi": normalised_mutual_information(table, schema, target, name),
            "cramers_v": cramers_v(table, schema, target, name),
            "groups": len(sizes),
            "smallest_group": {"name": str(filled.idxmin()), "n": int(filled.min())},
            "empty_groups": empty,
            "safe": path is None,
            "path": path,
        }
        found[name] = row
        lines.append(
            f"{name}: normalised mutual information with {target} {row['nmi']:.3f}, Cramer's V {row['cramers_v']:.3f}; "
            f"{len(sizes)} groups, smallest {filled.idxmin()} (n = {filled.min()}), {len(empty)} empty"
            f"{'' if n == len(table) else f'; of the {n} rows that have {name}, the others are in no group'}"
        )
        if path:
            lines.append(f"{name}: not safe to intervene on, the graph says {' -> '.join(path)}")
    return {"n": len(table), "missing": missing, "target": target, "spurious": found, "text": lines}
