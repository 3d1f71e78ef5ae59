"""Exogenous noise: what abduction found for each row, and the joint noise of attributes with a hidden common cause.

    a <-> b      (u_a, u_b) ~ P(u_a, u_b), not P(u_a) P(u_b)

A district is a set of attributes joined by "<->". Its joint noise is kept as the noises abducted from at most 10 000 training
rows: a row of this bank is one draw of all of them at once. Scalar normal noises of a draw are moved a little, z ->
sqrt(1 - h^2) z + h e with h = 0.1, which keeps N(0, 1) (smoothed bootstrap: Silverman and Young 1987).

Only sampling uses the bank. A counterfactual conditions on the noise abducted from its own row. do(a) replaces a's mechanism,
and so cuts "a <-> b": b keeps its marginal noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from cfaug.causal.mechanisms.protocol import Mechanism, has_normal_noise
from cfaug.causal.row_random import Array, Seeds, normals, stream, uniforms

Bank = npt.NDArray[np.float32]
BANK = 10_000
SMOOTH = 0.1
_PICK, _MOVE = 2**32, 2**33  # streams of their own: no node's number comes near


@dataclass(frozen=True)
class Noise:
    """What abduction found: per attribute the noise (B, K), and the factual rows it belongs to.

    The noise is NaN where it cannot be known: the attribute or one of its parents has no value in that row. ``seeds`` (B,) are
    the rows' own, from which ``resample()`` and ``uniform()`` draw.
    """

    values: Mapping[str, Array]
    factual: pd.DataFrame
    seeds: Seeds

    def __len__(self) -> int:
        return len(self.factual)

    def moved(self, table: pd.DataFrame) -> Noise:
        """The same noise in a different world: ``table`` is what ``predict`` gave for it, and the next do() starts from there."""
        return Noise(self.values, table, self.seeds)


class Districts:
    """The joint noise of every set of attributes that "<->" joins: name -> (M, K), row i of a district being one draw."""

    def __init__(self, members: Sequence[Sequence[str]], bank: Mapping[str, Bank]) -> None:
        self.members = tuple(tuple(m) for m in members if len(m) > 1)
        self.bank = dict(bank)
        self._of = {name: k for k, names in enumerate(self.members) for name in names}

    @classmethod
    def fit(
        cls,
        members: Sequence[Sequence[str]],
        mechanisms: Mapping[str, Mechanism],
        table: pd.DataFrame,
        seeds: Seeds,
        streams: Mapping[str, int],
        weights: Array | None = None,
    ) -> Districts:
        """Abduct the noises of each district from the rows that have all its members and their parents; drawn by weight."""
        bank: dict[str, Bank] = {}
        for names in (m for m in members if len(m) > 1):
            needed = list(dict.fromkeys([*names, *(p for n in names for p in mechanisms[n].parents)]))
            rows = np.flatnonzero(table[needed].notna().all(axis=1).to_numpy())
            if not len(rows):
                continue  # no row has them all: their noises stay independent
            if len(rows) > BANK or weights is not None:
                rng = np.random.default_rng(int(seeds[0]))
                p = None if weights is None else weights[rows] / weights[rows].sum()
                rows = np.sort(rng.choice(rows, size=min(BANK, len(rows)), replace=weights is not None, p=p))
            here = table.iloc[rows]
            for name in names:
                mechanism = mechanisms[name]
                own = stream(seeds[rows], streams[name])
                noise = mechanism.abduct(here[name], here[list(mechanism.parents)], own)
                bank[name] = noise.astype(np.float32)  # half the file; the noise of a draw needs no more
        return cls(members, bank)

    def __contains__(self, name: object) -> bool:
        return name in self.bank

    def picks(self, name: str, seeds: Seeds) -> npt.NDArray[np.int64]:
        """(B,): which row of the bank each row draws; the same for all members of one district."""
        u = uniforms(stream(seeds, _PICK + self._of[name]))[:, 0]
        return (u * len(self.bank[name])).astype(np.int64)

    def draw(self, name: str, mechanism: Mechanism, seeds: Seeds, number: int) -> Array:
        """(B, K) noise of one attribute, dependent on that of its district; ``number`` is the attribute's own stream."""
        noise: Array = self.bank[name][self.picks(name, seeds)].astype(np.float64)
        if has_normal_noise(mechanism):
            noise = np.sqrt(1 - SMOOTH**2) * noise + SMOOTH * normals(stream(seeds, _MOVE + number), noise.shape[1])
        return noise
