"""Which image an index shows in an epoch: the real one, a counterfactual or a null intervention. Nothing here reads an image.

At index i in epoch e two numbers u, v ~ U[0, 1) depend on (seed, e, i) alone: row i of default_rng([seed, e]).random((N, 2)),
which can be read from any row on. For N sources:

    replace   u < p                 a counterfactual of source i (number floor(v * how many it has))
              p <= u < p + null_p   a null intervention of it
              else                  the real image; the real fraction is 1 - p - null_p
    append    i < N                 the real image
              then                  p * M counterfactuals, M the sources that have some, and null_p * M' null interventions:
                                    the j-th of m is of source floor((j + u) / m * M), which spreads them evenly
    pairs     the real image and beside it what ``replace`` draws at i
    groups    target and intervened attributes are independent in what is shown (:class:`Independent`)

A source without samples of the drawn kind shows its real image.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, NamedTuple, Protocol, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
from tqdm.auto import tqdm

from cfaug.data.groups import quarter, quartiles
from cfaug.errors import DataError, UsageError, near, shown
from cfaug.learn.guard import PATIENCE
from cfaug.learn.match import Matches

log = logging.getLogger(__name__)

PolicyName = Literal["replace", "append", "pairs", "groups"]
POLICIES: tuple[str, ...] = get_args(PolicyName)
Kind = Literal["real", "counterfactual", "null"]
KINDS: tuple[Kind, ...] = ("real", "counterfactual", "null")
Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

ROUNDS, LOOK = 1000, 25  # iterations of the fit at most, and after how many it ends unless it still gets better
ENOUGH = 1e-4  # of a class: closer than the draw of an epoch is to its expectation
TELL = 0.05  # difference of shares from which on there is a warning; one counterfactual per image and 500 per class have 0.02


def probability(name: str, value: Any) -> float:
    """`value` as a float; UsageError unless it is a number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0.0 <= float(value) <= 1.0:
        raise UsageError(f"{name}: expected a probability from 0 to 1, got {shown(value)}")
    return float(value)


def shares(p: Any, null_p: Any) -> tuple[float, float]:
    """Both as floats; UsageError unless they are probabilities, together at most 1."""
    p, null_p = probability("p", p), probability("null_p", null_p)
    if p + null_p > 1.0 + 1e-9:
        raise UsageError(f"p + null_p: expected at most 1 (the rest is the real fraction), got {p} + {null_p}")
    return p, null_p


def policy_shares(p: Any, null_p: Any, policy: str = "replace") -> tuple[float, float]:
    """p (or the policy's default) and null_p; UsageError as of :func:`shares`, or where p has no meaning.

    Of ``append`` each is a share of its own, so together they may be above 1.
    """
    if policy not in POLICIES:
        raise UsageError(f"policy: expected one of {', '.join(POLICIES)}, got {policy!r}; {near(policy, POLICIES)}")
    null_p = probability("null_p", null_p)
    if policy == "groups":
        if p is not None:
            raise UsageError(
                f"p: expected None with policy 'groups', got {p}; leave it out, it follows from the attributes"
            )
        return 0.0, null_p
    chosen = p if p is not None else 1.0 - null_p if policy == "pairs" else 0.5
    return (probability("p", chosen), null_p) if policy == "append" else shares(chosen, null_p)


@dataclass(frozen=True)
class Draw:
    """What stands at an index: the real image (``row`` None), or row ``row`` of the shards; ``source`` is the base's index."""

    kind: Kind
    row: int | None = None
    source: int = -1


class Drawn(NamedTuple):
    """Many draws, (M,) each: the index in the base, 0 real | 1 counterfactual | 2 null, and the row of the shards (-1: real)."""

    sources: Int64s
    kinds: npt.NDArray[np.int8]
    rows: Int64s


class Policy(Protocol):
    """How many items a mixture has, and what the ``count`` from index ``first`` on are in an epoch."""

    length: int

    def draw(self, epoch: int, first: int, count: int) -> Drawn: ...


@dataclass(frozen=True)
class Uniforms:
    """u and v of every index and epoch."""

    seed: int

    def __call__(self, epoch: int, first: int, count: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Rows first .. first + count of the epoch's numbers."""
        generator = np.random.default_rng([self.seed, epoch])
        generator.bit_generator.advance(2 * first)  # type: ignore[attr-defined]  # one step per number, two per row
        u, v = generator.random((count, 2)).T
        return u, v


class Replace:
    """Every index its own source; also what stands beside the real image of ``pairs``."""

    def __init__(self, matches: Matches, uniforms: Uniforms, p: float, null_p: float) -> None:
        self.matches, self.uniforms, self.p, self.null_p = matches, uniforms, p, null_p
        self.length = len(matches.start)

    def draw(self, epoch: int, first: int, count: int) -> Drawn:
        sources = np.arange(first, first + count)
        u, v = self.uniforms(epoch, first, count)
        counterfactual, null = (self.matches.pick(kind, sources, v) for kind in ("counterfactual", "null"))
        kinds = np.where(u < self.p, 1, np.where(u < self.p + self.null_p, 2, 0))
        rows = np.where(kinds == 1, counterfactual, np.where(kinds == 2, null, -1))
        return Drawn(sources, np.where(rows < 0, 0, kinds).astype(np.int8), rows)


class Append:
    """All real images, then as many generated ones as p and null_p say, their sources spread evenly."""

    def __init__(self, matches: Matches, uniforms: Uniforms, p: float, null_p: float) -> None:
        self.matches, self.uniforms = matches, uniforms
        self._real = len(matches.start)
        self._having = tuple(np.flatnonzero(count) for count in (matches.counterfactuals, matches.nulls))
        self._added = tuple(round(share * len(having)) for share, having in zip((p, null_p), self._having))
        self.length = self._real + sum(self._added)

    def draw(self, epoch: int, first: int, count: int) -> Drawn:
        index = np.arange(first, first + count)
        u, v = self.uniforms(epoch, first, count)
        sources, rows = index.copy(), np.full(count, -1, dtype=np.int64)
        kinds = np.zeros(count, dtype=np.int8)
        begin = self._real
        for code, (added, having) in enumerate(zip(self._added, self._having), 1):
            here = np.flatnonzero((begin <= index) & (index < begin + added))
            if len(here):
                place = ((index[here] - begin + u[here]) / added * len(having)).astype(np.int64)
                sources[here] = having[np.minimum(place, len(having) - 1)]
                rows[here] = self.matches.pick("null" if code == 2 else "counterfactual", sources[here], v[here])
                kinds[here] = code
            begin += added
        return Drawn(sources, kinds, rows)


class Independent:
    """The policy ``groups``: one option per source and epoch, so that the target and the intervened attributes are independent.

    Source i, of class y_i, can be shown as its real image or as one of its counterfactuals, each of which stands in a cell a of
    the intervened attributes (continuous ones by quartiles of the real images). The probabilities w(i, o) of its options o solve

        sum_o w(i, o) = 1                                       every source is shown once per epoch
        sum_{i: y_i = y} sum_{o: a(o) = a} w(i, o) = n_y q(a)   in every class the cells have the same shares q

    by iterative proportional fitting (Deming & Stephan 1940) from equal weights of the cells that a source can reach; q is the
    share of the cells among the real images. Where no solution exists (a class that cannot reach a cell) the fit ends
    nearby, and a warning says how far off. ``null_p`` of the draws of a real image show its null intervention instead. Sources
    without counterfactuals stay real and keep their dependence. Not promised: that attributes nobody intervened on become
    independent of the target. Every record is read once at opening, about 50 microseconds each.
    """

    def __init__(self, matches: Matches, uniforms: Uniforms, null_p: float) -> None:
        self.matches, self.uniforms, self.null_p = matches, uniforms, null_p
        self.length = len(matches.start)
        self._having, owner, self._rows, classes, cells = _options(matches)
        weights, self.residual = fit_independent(owner, classes, cells)
        if self.residual > TELL:
            log.warning(
                "groups: target and attributes stay dependent, a cell's share in a class is off by up to %.2f: plan "
                "more counterfactuals per image, or every value", self.residual,
            )  # fmt: skip
        self._edges = np.concatenate([[0], np.cumsum(np.bincount(owner))])
        self._cumulative = np.cumsum(weights)  # every source's weights sum to one: those of source k end at k + 1

    def draw(self, epoch: int, first: int, count: int) -> Drawn:
        sources = np.arange(first, first + count)
        u, v = self.uniforms(epoch, first, count)
        rows = np.full(count, -1, dtype=np.int64)
        there = np.flatnonzero(np.isin(sources, self._having))
        mine = np.searchsorted(self._having, sources[there])
        option = np.searchsorted(self._cumulative, mine + u[there], side="right")
        rows[there] = self._rows[np.clip(option, self._edges[mine], self._edges[mine + 1] - 1)]
        kinds = np.where(rows >= 0, 1, 0).astype(np.int8)
        if self.null_p:
            null = np.where((rows < 0) & (v < self.null_p), self.matches.pick("null", sources, v / self.null_p), -1)
            kinds, rows = np.where(null >= 0, 2, kinds).astype(np.int8), np.where(null >= 0, null, rows)
        return Drawn(sources, kinds, rows)


def fit_independent(source: npt.NDArray[np.int64], classes: Any, cells: Any) -> tuple[Floats, float]:
    """Weights (M,) of M options, and the largest difference between a cell's share in a class and its q.

    ``source`` (M,) numbers 0.., ascending; ``classes`` (sources,) codes; ``cells`` (M,) codes; the first option of a source
    is its real image.
    """
    real = np.concatenate([[True], source[1:] != source[:-1]])
    amount = int(cells.max()) + 1
    share = np.bincount(cells[real], minlength=amount) / int(real.sum())
    sizes = np.bincount(classes)
    group = classes[source] * amount + cells
    wanted = (sizes[:, None] * share[None, :]).reshape(-1)
    _, same, count = np.unique(source * amount + cells, return_inverse=True, return_counts=True)
    weights = 1.0 / count[same]
    residual, before = 1.0, np.inf
    for number in range(ROUNDS):
        weights = weights / np.bincount(source, weights)[source]
        shown = np.bincount(group, weights, minlength=len(wanted))
        residual = float((np.abs(shown - wanted) / np.repeat(sizes, amount).clip(min=1)).max())
        if residual < ENOUGH or (number % LOOK == LOOK - 1 and residual > 0.99 * before):
            break
        before = residual if number % LOOK == LOOK - 1 else before
        weights = weights * np.divide(wanted, shown, out=np.ones_like(wanted), where=shown > 0)[group]
        weights = np.maximum(weights, 1e-200)  # where there is no solution they fade: never to 0 / 0
    return weights / np.bincount(source, weights)[source], residual


def _options(matches: Matches) -> tuple[Int64s, Int64s, Int64s, Int64s, Int64s]:
    """The K sources that have counterfactuals; of each of M options its source's number (0..K-1) and its row (-1 is the real image,
    the first option of every source); the class of each source (K,); the cell of each option (M,)."""
    reader, sources = matches.reader, np.flatnonzero(matches.counterfactuals)
    if not len(sources):
        raise DataError(f"{reader.directory}: expected counterfactuals for policy 'groups', got none; plan them")
    many = matches.counterfactuals[sources].astype(np.int64) + 1
    owner, real = np.repeat(np.arange(len(sources)), many), np.cumsum(many) - many
    inside = np.arange(len(owner)) - real[owner]
    places = matches.start[sources].astype(np.int64)[owner] + inside - 1
    rows = np.where(inside == 0, -1, matches.rows[np.maximum(places, 0)].astype(np.int64))
    cells: dict[str, npt.NDArray[np.object_]] = defaultdict(lambda: np.empty(len(rows), dtype=object))
    targets, named, seen = np.empty(len(sources), dtype=object), dict[str, None](), dict[Any, Any]()
    # in the order of the shards, so that each index is read once; a value is held once however many images have it
    order = np.argsort(rows)[len(sources) :]
    for option in tqdm(order.tolist(), desc="reading attributes", delay=PATIENCE, leave=False):
        record, source = reader.record(int(rows[option])), int(owner[option])
        named.update(dict.fromkeys(record["do"]))
        targets[source] = record["target"]
        for place, values in ((option, record["attributes"]), (int(real[source]), record["factual"])):
            for name, value in values.items():
                cells[name][place] = seen.setdefault(value, value)
    table = pd.DataFrame({name: pd.Series(cells[name]).infer_objects() for name in named})
    for name in table:
        if pd.api.types.is_numeric_dtype(table[name]):
            values = table[name].to_numpy(dtype=float)
            table[name] = quarter(values, quartiles(values[real]))
    codes = np.asarray(table.groupby(list(table), sort=True, dropna=False).ngroup(), dtype=np.int64)
    return sources, owner, rows, np.asarray(pd.factorize(pd.Series(targets), sort=True)[0], dtype=np.int64), codes
