"""Conditional independence of mixed columns: is ``a`` independent of ``b`` given ``Z``, whatever their kinds?

Every column becomes features f: K - 1 indicators of a discrete one, the first three Legendre polynomials of its ranks for a
continuous one. They are regressed on a basis of Z (its features, cubic splines, products of pairs), discrete columns by
multinomial logistic regression, continuous ones by least squares. With residuals r,

    S = sum_i r_a,i (x) r_b,i        C = sum_i E[r_a r_a' | z_i] (x) E[r_b r_b' | z_i]        T = S' C^-1 S

and T is chi-square with (features of a)(features of b) degrees of freedom under independence (Tsagris et al. 2018,
doi:10.1007/s41060-018-0097-y; in the symmetric form of Shah & Peters 2020, doi:10.1214/19-AOS1857). Without Z and with two
discrete columns T is Pearson's chi-square exactly. A question is answered from at most ``MOST_ROWS`` rows.

Not found: a dependence whose sign depends on Z and averages out, and one that three polynomials do not see. Derivation: ``docs/concepts/mixed-independence-test.md``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pandas as pd

from cfaug.data.attribute import Attribute
from cfaug.data.schema import Schema
from cfaug.errors import UsageError, near

Array = npt.NDArray[np.float64]

MOST_LEVELS = 12
"""Levels of a discrete column that are tested separately, at most; all rarer levels together count as one."""
RARE = 5
"""A level with fewer rows than this is merged with the other rare levels."""
ROWS_PER_COLUMN = 25
"""Products of pairs are added to the basis of Z only while it has at least this many rows per column."""
FEWEST_ROWS = 5
"""With fewer rows per column of the basis and degree of freedom, nothing can be said (p = 1)."""
MOST_ROWS = 20_000
"""A question is answered from at most this many rows: they find a partial correlation of 0.04 in 99 of 100 cases, at level 0.05."""
SEED = 20_000
"""The seed of the draw of those rows. It is fixed, so that an answer can be repeated."""
RIDGE = 1.0
"""The penalty of the logistic regression, in rows. It keeps the weights finite where Z determines a discrete column."""


@dataclass(frozen=True)
class Independence:
    """The answer to one question: ``p_value`` in [0, 1], T, its degrees of freedom, and the number of rows it is computed from."""

    p_value: float
    statistic: float
    dof: float
    n: int


@dataclass(frozen=True)
class Column:
    """One column of N rows as the regressions use it; a row without a value is all zeros.

    ``features`` (N, P) is what is tested; ``present`` (N,). As a condition it contributes ``fine`` (N, M) to the regressions
    of continuous columns and ``coarse`` (N, L) to those of discrete ones. P = 0 for a constant column.
    """

    discrete: bool
    features: Array
    fine: Array
    coarse: Array
    present: npt.NDArray[np.bool_]


def _indicators(codes: npt.NDArray[np.int64], order: Sequence[int]) -> Array:
    """One column for each level in ``order``; any other level is the zero row."""
    same: npt.NDArray[np.bool_] = codes[:, None] == np.asarray(order, dtype=np.int64)[None, :]
    return same.astype(np.float64)


def _discrete(texts: pd.Series) -> Column:
    codes, _ = pd.factorize(texts, use_na_sentinel=True)
    codes = codes.astype(np.int64)
    present = codes >= 0
    counts = np.bincount(codes[present])
    order = [int(k) for k in np.argsort(-counts, kind="stable") if counts[k] >= RARE]
    rest = int(counts.sum() - counts[order].sum())
    # The rare levels together are one more level. It is the reference where it has rows; otherwise the commonest level is.
    chosen = order if rest >= RARE else order[1:]
    tested = order[: MOST_LEVELS - 1] if len(order) >= MOST_LEVELS else chosen
    return Column(True, _indicators(codes, tested), _indicators(codes, chosen), _indicators(codes, chosen), present)


def _continuous(values: Array) -> Column:
    from scipy.special import ndtri
    from scipy.stats import rankdata
    from sklearn.preprocessing import SplineTransformer

    present = np.isfinite(values)
    n, found = len(values), int(present.sum())
    if len(np.unique(values[present])) < 3:  # one or two values are levels, not a scale
        return _discrete(pd.Series(np.where(present, values, np.nan)))
    share = (rankdata(values[present]) - 0.5) / found  # in (0, 1); ties share their mean rank
    t = 2 * share - 1
    legendre = np.stack([3**0.5 * t, 5**0.5 * (3 * t**2 - 1) / 2, 7**0.5 * (5 * t**3 - 3 * t) / 2], axis=1)

    def splines(knots: int) -> Array:
        found: Array = SplineTransformer(n_knots=knots, include_bias=False).fit_transform(ndtri(share)[:, None])
        return found

    def spread(part: Array) -> Array:
        out = np.zeros((n, part.shape[1]))
        out[present] = part
        return out

    features = spread(legendre)
    # 14 knots at 500 rows, 25 at 5 000, evenly spaced. A wiggle in the tails that both a and b follow would otherwise be missed
    # by the regressions and taken for a dependence of a and b.
    fine = spread(splines(int(np.clip(round(3 * found**0.25), 4, 40))))
    coarse = spread(splines(int(np.clip(round(found**0.25), 4, 10))))
    # The polynomials are in the basis as well, so that a column that follows z closely is fitted exactly.
    return Column(False, features, np.hstack([features, fine]), np.hstack([features, coarse]), present)


def column_of(attribute: Attribute, values: pd.Series) -> Column:
    """The column of one attribute, of canonical ``values``; an ordinal of more than five ranks enters by its ranks."""
    if attribute.kind == "continuous":
        return _continuous(values.to_numpy(dtype=np.float64))
    if attribute.kind == "ordinal" and values.nunique() > 5:
        ranks = pd.Index(attribute.values or sorted(set(values.dropna()))).get_indexer(pd.Index(values))
        return _continuous(np.where(ranks < 0, np.nan, ranks.astype(np.float64)))
    return _discrete(values)


def _drawn(canonical: pd.DataFrame) -> pd.DataFrame:
    """The rows in a random order, without those that no question can need.

    A question uses the first ``MOST_ROWS`` rows that have its values: a random sample of all rows that do. It therefore never needs
    more than the first ``MOST_ROWS`` of each pattern of missing values. A few labels among a million rows are all kept.
    """
    order = np.random.default_rng(SEED).permutation(len(canonical))
    pattern = canonical.isna().groupby(list(canonical.columns), sort=False).ngroup().to_numpy()[order]
    before = pd.Series(pattern).groupby(pattern).cumcount().to_numpy()
    return canonical.iloc[order[before < MOST_ROWS]]


class IndependenceTest:
    """Tests many questions about one table; whatever does not depend on the question is computed once.

    Args:
        table: one row per image; values may be missing, the target's too.
        schema: names and kinds of the columns.

    ``sampled`` says in words that a table of more than ``MOST_ROWS`` rows is sampled; it is empty for a smaller one.

    Raises:
        DataError: as ``Schema.check`` does: a missing column, an infinite number, a category outside the schema's values.
    """

    def __init__(self, table: pd.DataFrame, schema: Schema) -> None:
        # checked without a target, because here the target may lack values as well
        Schema(schema.attributes).check(table, schema.names)
        canonical = schema.canonical(table)
        self.names = schema.names
        self.sampled = ""
        if len(canonical) > MOST_ROWS:
            most, rows = (f"{k:,}".replace(",", " ") for k in (MOST_ROWS, len(canonical)))
            self.sampled = f"tested on a random sample of {most} of {rows} rows"
            if canonical.isna().any(axis=None):
                self.sampled = f"each test is on a random sample of at most {most} of the rows, {rows} in all, that have its values"
            canonical = _drawn(canonical)
        self._columns = {a.name: column_of(a, canonical[a.name]) for a in schema}
        self._bases: dict[tuple[frozenset[str], frozenset[str], bool], Array] = {}
        self._residuals: dict[tuple[str, frozenset[str], frozenset[str]], tuple[Array, Array]] = {}

    def column(self, name: str) -> Column:
        """The column ``name``; UsageError for an unknown one."""
        if name not in self._columns:
            raise UsageError(f"expected an attribute of the table, got {name!r}; {near(name, self.names)}")
        return self._columns[name]

    def test(self, a: str, b: str, given: Sequence[str] = ()) -> Independence:
        """Whether ``a`` and ``b`` are independent given ``given``, in the rows that have values of all of these.

        ``p_value`` 1 and ``dof`` 0 when ``a`` or ``b`` is constant there or follows from the condition, or when
        there are too few rows; ``n`` is at most ``MOST_ROWS``. UsageError for an unknown name, or one that is asked about and given at once.
        """
        from scipy.stats import chi2, f

        both = (self.column(a), self.column(b))
        members = frozenset(given)
        if a == b or members & {a, b}:
            raise UsageError(
                f"expected different attributes, got {a!r} and {b!r} given {', '.join(given) or 'nothing'}; name each one once"
            )
        holes = frozenset(n for n in (a, b, *members) if not self.column(n).present.all())
        dof, n = both[0].features.shape[1] * both[1].features.shape[1], len(both[0].present[self._rows(holes)])
        if dof == 0 or n < FEWEST_ROWS * (1 + dof):
            return Independence(1.0, 0.0, 0.0, n)
        m = self._basis(members, holes, not (both[0].discrete and both[1].discrete)).shape[1]
        if n < FEWEST_ROWS * (m + dof):
            return Independence(1.0, 0.0, 0.0, n)
        (x, xx), (y, yy) = self._fit(a, members, holes), self._fit(b, members, holes)
        p, q = x.shape[1], y.shape[1]
        total = (x.T @ y).ravel()
        spread = (xx.T @ yy).reshape(p, p, q, q).transpose(0, 2, 1, 3).reshape(p * q, p * q)
        size = np.sqrt(np.clip(np.diag(spread), 0.0, None))
        # a feature that the condition determines has no residual left, so there is nothing to test in it
        kept = size > 1e-4 * np.sqrt(n)
        scaled = spread[np.ix_(kept, kept)] / np.outer(size[kept], size[kept])
        weights, axes = np.linalg.eigh(scaled)
        good = weights > 1e-8 * len(weights)
        rank = int(good.sum())
        if not rank:
            return Independence(1.0, 0.0, 0.0, n)
        statistic = float((((axes.T @ (total[kept] / size[kept]))[good] ** 2) / weights[good]).sum())
        if both[0].discrete and both[1].discrete:
            return Independence(float(chi2.sf(statistic, rank)), statistic, float(rank), n)
        if not (both[0].discrete or both[1].discrete):
            statistic *= 1 - m / n  # the regressions have taken degrees of freedom from both residuals
        # C is estimated from the same rows, hence an F distribution (Hotelling, 1931); chi-square is its limit for many rows
        ratio = statistic * (n - rank) / (rank * (n - 1))
        return Independence(float(f.sf(ratio, rank, n - rank)), statistic, float(rank), n)

    def _rows(self, holes: frozenset[str]) -> npt.NDArray[np.int64] | slice:
        if not holes:
            return slice(MOST_ROWS)
        there = np.logical_and.reduce([self._columns[name].present for name in sorted(holes)])
        return np.flatnonzero(there)[:MOST_ROWS]  # _drawn has put the rows in a random order

    def _basis(self, members: frozenset[str], holes: frozenset[str], fine: bool) -> Array:
        """Orthogonal columns (B, M) of mean square 1 that span the basis of the condition, the constant among them."""
        key = (members, holes, fine)
        if key not in self._bases:
            rows = self._rows(holes)
            columns = [self._columns[name] for name in sorted(members)]
            own = [(c.fine if fine else c.coarse)[rows] for c in columns]
            n = len(next(iter(self._columns.values())).present[rows])
            parts = [np.ones((n, 1)), *own]
            room = n / ROWS_PER_COLUMN - sum(part.shape[1] for part in parts)
            for i, j in combinations(range(len(columns)), 2):
                # With a discrete column: one curve per level. Of two continuous columns only the polynomials are multiplied,
                # because all products would be hundreds of columns.
                left, right = (
                    own[k] if columns[i].discrete or columns[j].discrete else columns[k].features[rows] for k in (i, j)
                )
                if (width := left.shape[1] * right.shape[1]) <= room:
                    parts.append((left[:, :, None] * right[:, None, :]).reshape(n, width))
                    room -= width
            wide = np.hstack(parts)
            wide = wide / np.sqrt((wide**2).mean(0) + 1e-12)
            weights, axes = np.linalg.eigh(wide.T @ wide / max(n, 1))
            good = weights > 1e-10 * len(weights)
            self._bases[key] = wide @ (axes[:, good] / np.sqrt(weights[good]))
        return self._bases[key]

    def _fit(self, name: str, members: frozenset[str], holes: frozenset[str]) -> tuple[Array, Array]:
        """Residuals (B, P) of a column's features on the basis, and their conditional second moments (B, P * P)."""
        key = (name, members, holes)
        if key not in self._residuals:
            column = self._columns[name]
            features = column.features[self._rows(holes)]
            basis = self._basis(members, holes, not column.discrete)
            if column.discrete:
                chances = multinomial_chances(features, basis)
                residuals = features - chances
                moments = -chances[:, :, None] * chances[:, None, :]
                each = np.arange(chances.shape[1])
                moments[:, each, each] += chances
            else:
                residuals = features - basis @ (basis.T @ features / len(basis))
                moments = residuals[:, :, None] * residuals[:, None, :]
            self._residuals[key] = residuals, moments.reshape(len(residuals), -1)
        return self._residuals[key]


def multinomial_chances(indicators: Array, basis: Array, steps: int = 25) -> Array:
    """Probabilities (B, P) of P levels beside the reference one, by at most ``steps`` of Newton's method.

    ``indicators`` (B, P) have at most one 1 per row; ``basis`` (B, M) are orthogonal columns of mean square 1.
    """
    (n, p), m = indicators.shape, basis.shape[1]
    if m == 1:  # the constant alone
        return np.broadcast_to(indicators.mean(0), indicators.shape).copy()
    beta = np.zeros((m, p))
    beta[:, :] = basis.T @ np.broadcast_to(
        np.log((indicators.mean(0) + 1e-3) / (1 - indicators.sum(1).mean() + 1e-3)), (n, p)
    )
    beta /= n  # the constant is in the span of the basis: this starts from the shares of the levels

    def chances_of(b: Array) -> tuple[Array, float]:
        z = basis @ b
        top = np.maximum(z.max(1), 0.0)
        e = np.exp(z - top[:, None])
        bottom = e.sum(1) + np.exp(-top)
        value = (indicators * z).sum() - (np.log(bottom) + top).sum() - RIDGE / 2 * (b**2).sum()
        return e / bottom[:, None], float(value)

    chances, value = chances_of(beta)
    light = basis.astype(np.float32)  # for the curvature only: it sets the pace, the slope sets the place
    for _ in range(steps):
        slope = basis.T @ (indicators - chances) - RIDGE * beta
        curve = np.empty((p, m, p, m))
        for k in range(p):
            for j in range(k + 1):
                weight = (chances[:, k] * ((k == j) - chances[:, j])).astype(np.float32)
                curve[k, :, j, :] = curve[j, :, k, :] = light.T @ (light * weight[:, None])
        flat = curve.reshape(p * m, p * m)
        flat[np.diag_indices(p * m)] += RIDGE
        step = np.linalg.solve(flat, slope.T.ravel()).reshape(p, m).T
        gain, length = float((slope * step).sum()), 1.0
        if gain < 1e-6:  # twice the log-likelihood that is still to be had
            break
        while length > 1e-3:
            moved, reached = chances_of(beta + length * step)
            if reached >= value:
                break
            length /= 2
        beta, chances, value = beta + length * step, moved, reached
    return chances


def independence(table: pd.DataFrame, schema: Schema, a: str, b: str, given: Sequence[str] = ()) -> Independence:
    """One question about one table; see :meth:`IndependenceTest.test`, and that class for many questions."""
    names = dict.fromkeys((a, b, *given))
    return IndependenceTest(table, Schema([schema[name] for name in names])).test(a, b, given)
