"""Confounding, measured: how much an attribute and the target say about each other in a table.

    I(Y; A) = sum p(y, a) log p(y, a) / (p(y) p(a))   in nats; NMI = I / sqrt(H(Y) H(A)) in [0, 1]
    chance   = E[I] when one column is shuffled        (Vinh, Epps & Bailey 2010), about (r - 1)(c - 1) / 2n
    V        = sqrt(chi2 / (n (min(r, c) - 1)))        in [0, 1]; V~ the same without its bias (Bergsma 2013)
    eta      = sqrt(SS between targets / SS in all)    in [0, 1], for a continuous attribute, without quartiles
    I(Y; A | Z) = sum_z n_z / n I(Y; A | Z = z)        likewise, minus the chance level of every stratum

Dependence between factors as the measure of confounding: Reddy et al., arXiv 2305.18183. Mutual information and V use
the quartiles of a continuous attribute. In few rows independent columns seem dependent, so every figure stands beside the level
that chance would show and a p-value, from chi2 (n - 1) / n against chi-square. Rows that lack a value of the pair are left out.
Nothing here says anything about pixels, and dependence is not causation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from cfaug.data.groups import quarter, quartiles
from cfaug.data.schema import Schema
from cfaug.errors import DataError, UsageError

Codes = npt.NDArray[np.int64]
Array = npt.NDArray[np.float64]
# Up to this n min(r, c) the expected information is summed exactly, which takes 20 ms. Beyond it the sum is about df / 2n,
# unless a level has few rows.
EXACT_WORK = 200_000
STRATUM = 5  # rows that a stratum needs: the usual rule for chi-square tables


# --- columns as codes
def coded(
    table: pd.DataFrame, schema: Schema, quartiles_of: pd.DataFrame | None = None
) -> tuple[pd.DataFrame, dict[str, Codes]]:
    """The canonical columns, and each as level codes (n,): 0..K-1, quartiles for a continuous one, -1 without a value.

    The quartiles are those of ``table``, or of the canonical table ``quartiles_of``.
    Raises DataError for a column without any value and a value outside the schema.
    """
    own = schema.fit(table, schema.names)
    columns, codes = own.canonical(table), {}
    for name in own.names:
        if own[name].kind == "continuous":
            cuts = (columns if quartiles_of is None else quartiles_of)[name]
            codes[name] = quarter(columns[name].to_numpy(dtype=float), quartiles(cuts.to_numpy(dtype=float)))
        else:
            levels = pd.Index(own[name].categories, dtype=object)
            codes[name] = levels.get_indexer(pd.Index(columns[name], dtype=object)).astype(np.int64)
    return columns, codes


def _pair(table: pd.DataFrame, schema: Schema, a: str, b: str) -> Array:
    """The contingency table of two attributes in the rows that have both; DataError when no row has both."""
    own = Schema([schema[name] for name in dict.fromkeys((a, b))], schema.target if schema.target in (a, b) else None)
    _, codes = coded(table, own)
    counts = contingency(codes[a], codes[b])
    if not counts.size:
        raise DataError(f"expected rows that have both {a!r} and {b!r}, got none in {len(table)} rows; fill in some")
    return counts


def contingency(x: Codes, y: Codes) -> Array:
    """(r, c): the number of rows of every pair of levels that occur; rows with a code of -1 are left out."""
    from scipy.stats.contingency import crosstab

    both = (x >= 0) & (y >= 0)
    return crosstab(x[both], y[both]).count.astype(np.float64) if both.any() else np.zeros((0, 0))


# --- measures of a contingency table
@dataclass(frozen=True)
class Dependence:
    """How two discrete columns depend on each other. ``n``: rows, or the effective number of weighted ones.

    ``mutual_information`` and ``chance`` (the average over ``n`` independent rows) are in nats, the other measures in [0, 1];
    0 and a p-value of 1 when a column is constant or no row has both.
    """

    n: float
    mutual_information: float = 0.0
    nmi: float = 0.0
    chance: float = 0.0
    nmi_chance: float = 0.0
    cramers_v: float = 0.0
    cramers_v_corrected: float = 0.0
    p_value: float = 1.0


def dependence(counts: Array, n: float | None = None) -> Dependence:
    """Every measure of a contingency table (r, c), r and c without empty levels.

    ``n`` is the effective sample size where ``counts`` are sums of unequal weights; the chance level is then
    (r - 1)(c - 1) / 2n, else that of shuffled rows exactly (up to some ten thousand of them).
    """
    from scipy import stats

    total = float(counts.sum())
    size = total if n is None else float(n)
    if min(counts.shape) < 2:
        return Dependence(size)
    r, c = counts.shape
    information, hx, hy = _information(counts), _entropy(counts.sum(1)), _entropy(counts.sum(0))
    chance = _chance(counts) if n is None else min((r - 1) * (c - 1) / (2 * size), hx, hy)
    # computed from shares, so that the scale of the weights does not matter
    phi2 = float(stats.chi2_contingency(counts, correction=False).statistic) / total
    scale = np.sqrt(hx * hy)
    return Dependence(
        n=size,
        mutual_information=information,
        nmi=float(np.clip(information / scale, 0.0, 1.0)),
        chance=chance,
        nmi_chance=float(np.clip(chance / scale, 0.0, 1.0)),
        cramers_v=float(min(1.0, np.sqrt(phi2 / (min(r, c) - 1)))),
        cramers_v_corrected=_corrected_v(phi2, r, c, size),
        p_value=float(stats.chi2.sf(max(size - 1, 0.0) * phi2, (r - 1) * (c - 1))),
    )


def _information(counts: Array) -> float:
    from scipy.stats import entropy

    # not scikit-learn's mutual_info_score(contingency=): it cuts weighted counts down to whole numbers
    product = np.outer(counts.sum(1), counts.sum(0))
    return max(0.0, float(entropy(counts.ravel(), product.ravel())))


def _entropy(counts: Array) -> float:
    from scipy.stats import entropy

    return float(entropy(counts))


def _chance(counts: Array) -> float:
    n, (r, c) = float(counts.sum()), counts.shape
    if n * min(r, c) > EXACT_WORK:
        return float((r - 1) * (c - 1) / (2 * n))
    from sklearn.metrics.cluster import expected_mutual_information

    return max(0.0, float(expected_mutual_information(counts, int(n))))


def _corrected_v(phi2: float, r: int, c: int, n: float) -> float:
    """Cramer's V without the bias of few rows, W. Bergsma, J. Korean Stat. Soc. 42 (2013)."""
    if n <= 1:
        return 0.0
    excess = max(0.0, phi2 - (r - 1) * (c - 1) / (n - 1))
    room = min(r - (r - 1) ** 2 / (n - 1), c - (c - 1) ** 2 / (n - 1)) - 1
    return float(min(1.0, np.sqrt(excess / room))) if room > 0 else 0.0


@dataclass(frozen=True)
class Correlation:
    """The correlation ratio of a continuous column over classes, in [0, 1]; ``chance``: sqrt(E[eta^2]) when shuffled."""

    eta: float = 0.0
    chance: float = 0.0
    p_value: float = 1.0


def correlation(values: Array, classes: Codes) -> Correlation:
    """eta of ``values`` (n,) over ``classes`` (n,), rows without a value (NaN, -1) left out; p of the F test of equal means.

    K. Pearson 1905; E[eta^2] = (k - 1) / (n - 1) over shuffles. All zero for a constant or a single class.
    """
    from scipy import stats

    both = np.isfinite(values) & (classes >= 0)
    values, (found, classes) = values[both], np.unique(classes[both], return_inverse=True)
    n, k = len(values), len(found)
    # the spread of a constant may be a rounding error; its range is exactly 0
    if k < 2 or np.ptp(values) == 0:
        return Correlation()
    sizes = np.bincount(classes)
    deviations = values - values.mean()
    between = float((np.bincount(classes, deviations) ** 2 / sizes).sum())
    whole = float((deviations**2).sum())
    eta2 = min(1.0, between / whole)
    chance = float(np.sqrt(min(1.0, (k - 1) / (n - 1))))
    if n <= k:
        return Correlation(float(np.sqrt(eta2)), chance)  # one row per class: no spread within, hence no test
    ratio = np.inf if eta2 == 1.0 else (eta2 / (k - 1)) / ((1.0 - eta2) / (n - k))
    return Correlation(float(np.sqrt(eta2)), chance, float(stats.f.sf(ratio, k - 1, n - k)))


@dataclass(frozen=True)
class Conditional:
    """I(Y; A | Z) in nats. ``value`` = ``raw`` - ``chance``, None (and ``why``) where the rows cannot tell."""

    value: float | None
    raw: float | None = None
    chance: float | None = None
    p_value: float | None = None
    n: int = 0
    strata: int = 0
    why: str | None = None


def conditional(x: Codes, y: Codes, others: Sequence[Codes]) -> Conditional:
    """The information that x and y share within the strata of ``others``, in the rows that have all of these values.

    The chance level, n_z / n E[I_z] when x is shuffled within every stratum, is subtracted; it tends to the sum of
    df_z / 2n. p: sum of (n_z - 1) / n_z chi2_z against chi-square with the sum of df_z. No value is given when fewer than half the
    rows are in strata of at least five, or when chance alone would show more than half of what could be there at all.
    """
    from scipy import stats

    if not others:
        return Conditional(None, why="no other attribute")
    rows = np.all(np.stack([x, y, *others]) >= 0, axis=0)
    n = int(rows.sum())
    if not n:
        return Conditional(None, why="no row has a value of every attribute")
    strata = np.zeros(n, dtype=np.int64)
    for codes in others:
        merged = strata * (int(codes.max()) + 1) + codes[rows]
        strata = np.unique(merged, return_inverse=True)[1].astype(np.int64)
        sizes = np.bincount(strata)
        # crossing one more attribute only makes strata smaller, so that forty attributes need not all be crossed
        if 2 * sizes[sizes >= STRATUM].sum() < n:
            many = f"{len(sizes)} strata for {n} rows, most of them with fewer than {STRATUM}"
            return Conditional(None, n=n, strata=len(sizes), why=many)
    raw = chance = statistic = room_x = room_y = 0.0
    dof = 0
    order = np.argsort(strata, kind="stable")
    for part in np.split(order, np.cumsum(np.bincount(strata))[:-1]):
        counts = contingency(x[rows][part], y[rows][part])
        share = len(part) / n
        room_x += share * _entropy(counts.sum(1))
        room_y += share * _entropy(counts.sum(0))
        if min(counts.shape) < 2:
            continue
        raw += share * _information(counts)
        chance += share * _chance(counts)
        statistic += (len(part) - 1) / len(part) * float(stats.chi2_contingency(counts, correction=False).statistic)
        dof += (counts.shape[0] - 1) * (counts.shape[1] - 1)
    p = float(stats.chi2.sf(statistic, dof)) if dof else 1.0
    found = len(np.bincount(strata))
    if chance > 0.5 * min(room_x, room_y):
        why = f"{found} strata for {n} rows: chance alone shows {chance:.2f} of at most {min(room_x, room_y):.2f} nats"
        return Conditional(None, raw, chance, None, n, found, why)
    return Conditional(raw - chance, raw, chance, p, n, found)


def effective_sample_size(weights: npt.ArrayLike) -> float:
    """(sum w)^2 / sum w^2: how many equally weighted rows carry the same information (Kish 1965); 0 when all weights are 0."""
    w = np.asarray(weights, dtype=np.float64)
    return float(w.sum() ** 2 / (w**2).sum()) if (w > 0).any() else 0.0


# --- measures of two attributes of a table
def normalised_mutual_information(table: pd.DataFrame, schema: Schema, a: str, b: str) -> float:
    """NMI of two attributes in [0, 1]: 0 independent (or one is constant), 1 each determines the other."""
    return dependence(_pair(table, schema, a, b)).nmi


def cramers_v(table: pd.DataFrame, schema: Schema, a: str, b: str) -> float:
    """Cramer's V of two attributes in [0, 1]; 0 when one is constant."""
    return dependence(_pair(table, schema, a, b)).cramers_v


def target_of(schema: Schema) -> str:
    """The target; UsageError without it or without a spurious attribute."""
    if schema.target is None or not schema.spurious:
        raise UsageError(
            "schema: expected a target and at least one spurious attribute, got one without; name both in the Schema"
        )
    return schema.target


def confounding(table: pd.DataFrame, schema: Schema) -> dict[str, float]:
    """NMI between the target and each spurious attribute."""
    target = target_of(schema)
    return {name: normalised_mutual_information(table, schema, target, name) for name in schema.spurious}


def missing_counts(table: pd.DataFrame, schema: Schema) -> dict[str, int]:
    """Attribute -> rows without a value; only the attributes that lack any."""
    counts = schema.canonical(table).isna().sum()
    return {str(name): int(n) for name, n in counts.items() if n}
