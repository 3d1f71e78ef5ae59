"""A fitted SCM in its parts: what prediction and storage need of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from cfaug.causal.graph import CausalGraph
from cfaug.causal.marginals import Marginal
from cfaug.causal.mechanisms.protocol import Mechanism
from cfaug.causal.noise import Districts
from cfaug.causal.row_random import Array, Seeds, stream
from cfaug.data.schema import Schema


@dataclass(frozen=True)
class FittedSCM:
    """The fitted parts; every mapping goes by attribute, causes before effects."""

    graph: CausalGraph
    schema: Schema
    mechanisms: Mapping[str, Mechanism]
    marginals: Mapping[str, Marginal]
    districts: Districts
    """The joint noise of attributes with a hidden common cause."""
    rows: Mapping[str, int]
    """Attribute -> number of rows that its mechanism was fitted on."""

    @property
    def order(self) -> tuple[str, ...]:
        """Every attribute, causes before effects."""
        return tuple(self.mechanisms)

    def abduct(self, factual: pd.DataFrame, seeds: Seeds, needed: Collection[str]) -> dict[str, Array]:
        """The noise (B, K) of the attributes ``needed`` in a canonical table, NaN where it cannot be known."""
        noise: dict[str, Array] = {}
        for k, (name, mechanism) in enumerate(self.mechanisms.items()):
            if name not in needed:
                continue
            known = complete(factual, name, mechanism.parents)
            parents = factual[list(mechanism.parents)]
            noise[name] = np.full((len(known), mechanism.width), np.nan)
            noise[name][known] = mechanism.abduct(factual[name][known], parents[known], stream(seeds[known], k))
        return noise


def complete(table: pd.DataFrame, name: str, parents: Sequence[str]) -> npt.NDArray[np.bool_]:
    """(B,): the rows in which an attribute and all its parents have a value."""
    here: npt.NDArray[np.bool_] = np.all(table[[name, *parents]].notna().to_numpy(), axis=1)
    return here
