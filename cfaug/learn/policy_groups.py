"""The policy ``groups``: draws under which the target and the spurious attributes are independent.

Source i, of class y_i, can be shown as its real image or as one of its counterfactuals, each of which stands in a cell a of
the intervened attributes. The probabilities w(i, o) of its options o solve

    sum_o w(i, o) = 1                                   every source is shown once an epoch
    sum_{i: y_i = y} sum_{o: a(o) = a} w(i, o) = n_y q(a)   in every class the cells have the same shares q

by iterative proportional fitting (Deming & Stephan 1940) from equal weights of the cells that a source can reach; q is the
share of the cells among the real images (do(a) drawn from the marginal, not given the class). Continuous attributes count
by quartiles. Where no solution exists (a class that cannot reach a cell) the fit ends nearby, and a warning says how far off.
The real image is shown where it is drawn; ``null_p`` of these draws show its null intervention instead. The sums are over sources
that have counterfactuals: an image without any stays real, and keeps its dependence (counted in a warning).
Not promised: that attributes nobody intervened on become independent of the target. Every record is read once at opening,
about 50 microseconds each: meant for up to some million samples.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from tqdm.auto import tqdm

from cfaug.data.groups import quarter, quartiles
from cfaug.errors import DataError
from cfaug.learn.guard import PATIENCE
from cfaug.learn.match import Matches
from cfaug.learn.policies import Drawn, Uniforms

log = logging.getLogger(__name__)

ROUNDS, LOOK = 1000, 25  # at most so many; every so many is looked whether it still gets better
ENOUGH = 1e-4  # of a class: closer than the draw of an epoch is to its expectation
TELL = (
    0.05  # difference of shares from which on the user is told; one counterfactual an image and 500 a class have 0.02
)
Floats = npt.NDArray[np.float64]


class Independent:
    """One option of every source an epoch, with the probabilities above. Reads the record of every sample once."""

    def __init__(self, matches: Matches, uniforms: Uniforms, null_p: float) -> None:
        self.matches, self.uniforms, self.null_p = matches, uniforms, null_p
        self.length = len(matches.start)
        options, classes, cells = _options(matches)
        self._having = np.unique(options["source"].to_numpy())
        ordinal = np.searchsorted(self._having, options["source"].to_numpy())
        weights, self.residual = fit_independent(ordinal, classes, cells)
        if self.residual > TELL:
            log.warning(
                "groups: target and attributes stay dependent, a cell's share in a class is off by up to %.2f: plan "
                "more counterfactuals an image, or every value", self.residual,
            )  # fmt: skip
        self._rows: npt.NDArray[np.int64] = options["row"].to_numpy(dtype=np.int64)
        self._edges = np.concatenate([[0], np.cumsum(np.bincount(ordinal))])
        self._cumulative = np.cumsum(weights)  # every source's weights sum to one: those of source k end at k + 1

    def draw(self, epoch: int, first: int, count: int) -> Drawn:
        sources = np.arange(first, first + count)
        u, v = self.uniforms(epoch, first, count)
        rows = np.full(count, -1, dtype=np.int64)
        ordinal = np.searchsorted(self._having, sources)
        there = np.flatnonzero(
            (ordinal < len(self._having)) & (self._having[np.minimum(ordinal, len(self._having) - 1)] == sources)
        )
        mine = ordinal[there]
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


def _options(matches: Matches) -> tuple[pd.DataFrame, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """A row an option (source, row; -1 is the real image), the class of every source that has options, every option's cell."""
    reader, count = matches.reader, matches.counterfactuals.astype(np.int64)
    sources = np.flatnonzero(count)
    if not len(sources):
        raise DataError(f"{reader.directory}: expected counterfactuals for policy 'groups', came none; plan them")
    ends = np.cumsum(count[sources] + 1)
    real = ends - count[sources] - 1  # the first option of every source
    rows = np.full(int(ends[-1]), -1, dtype=np.int64)
    inside = np.arange(int(ends[-1])) - np.repeat(real, count[sources] + 1)
    made = np.flatnonzero(inside)
    starts = np.repeat(matches.start[sources].astype(np.int64), count[sources] + 1)
    rows[made] = matches.rows[(starts + inside - 1)[made]]
    owner = np.repeat(np.arange(len(sources)), count[sources] + 1)
    cells: dict[str, npt.NDArray[np.object_]] = {}
    targets, named, seen = np.empty(len(sources), dtype=object), dict[str, None](), dict[Any, Any]()
    # in the order of the shards, so that each index is read once; a value is held once however many images have it
    for option in tqdm(made[np.argsort(rows[made])].tolist(), desc="reading attributes", delay=PATIENCE, leave=False):
        record = reader.record(int(rows[option]))
        source = int(owner[option])
        named.update(dict.fromkeys(record["do"]))
        targets[source] = record["target"]
        for place, values in ((option, record["attributes"]), (int(real[source]), record["factual"])):
            for name, value in values.items():
                if name not in cells:
                    cells[name] = np.empty(len(rows), dtype=object)
                cells[name][place] = seen.setdefault(value, value)
    table = pd.DataFrame({name: pd.Series(cells[name]).infer_objects() for name in named})
    for name in table:
        if pd.api.types.is_numeric_dtype(table[name]):
            values = table[name].to_numpy(dtype=float)
            table[name] = quarter(values, quartiles(values[real]))
    codes = table.groupby(list(table), sort=True, dropna=False).ngroup().to_numpy(dtype=np.int64)
    shown = pd.DataFrame({"source": np.repeat(sources, count[sources] + 1), "row": rows})
    return shown, np.asarray(pd.factorize(pd.Series(targets), sort=True)[0], dtype=np.int64), np.asarray(codes)
