"""What stands at an index: the draw, apart from the deed of reading it.

At index i in epoch e two numbers u, v ~ U[0, 1) depend on (seed, e, i) alone: row i of default_rng([seed, e]).random((N, 2)),
which can be read from any row on. For N sources:

    replace   u < p                 a counterfactual of source i (number floor(v * how many it has))
              p <= u < p + null_p   a null intervention of it
              else                  the real image; the real fraction is 1 - p - null_p
    append    i < N                 the real image
              then                  p * M counterfactuals, M the sources that have some, and null_p * M' null interventions:
                                    the j-th of m is of source floor((j + u) / m * M), which spreads them evenly
    pairs     the real image and beside it what ``replace`` draws at i

A source without samples of the drawn kind shows its real image. ``cfaug.learn.policy_groups`` has the fourth policy, groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from cfaug.learn.match import Matches

Kind = Literal["real", "counterfactual", "null"]
KINDS: tuple[Kind, ...] = ("real", "counterfactual", "null")
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Draw:
    """What stands at an index: the real image (``row`` None), or row ``row`` of the shards; ``source`` is the base's index."""

    kind: Kind
    row: int | None = None
    source: int = -1


class Drawn(NamedTuple):
    """Many draws, (M,) each: the base's index, 0 real | 1 counterfactual | 2 null, and the shards' row (-1: real)."""

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
        generator.bit_generator.advance(2 * first)  # type: ignore[attr-defined]  # one step a number, two a row
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
