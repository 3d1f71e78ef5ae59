"""Missing attributes, filled in by abduction: a draw from p(missing | everything observed in the row).

Every row gets M completions: down the graph, a missing attribute is drawn from its mechanism given its parents, and each
observed attribute below weighs the completion by p(value | parents). One of the M is then drawn by weight: sampling
importance resampling (Rubin 1987), exact as M grows. Across "<->" the weight is agreement: the district's noises are drawn
together, and an observed member must come out (nearly) as observed.

One draw, not a best guess: the distribution over rows is right, a single row's value need not be. It is right as far as
values are missing at random given what is observed; a value hidden because of what it is (the dark images have no
label) is not learned from others that are visible.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd

from cfaug.causal.draws import Array, Seeds, fork, stream, uniforms
from cfaug.causal.mechanisms import Mechanism
from cfaug.causal.noise import Districts

PARTICLES = 128
ROWS = 512  # at a time: 65 536 completions
KERNEL = 0.2  # of the standard normal noise: how near an observed continuous member of a district must come out
_NOT = np.log(1e-6)  # a completion that disagrees: it wins only where none agrees
_CHOICE = 2**34


def impute(
    mechanisms: Mapping[str, Mechanism],
    districts: Districts,
    table: pd.DataFrame,
    seeds: Seeds,
    particles: int = PARTICLES,
) -> pd.DataFrame:
    """The table with no value missing; observed values are as they were, bit for bit.

    Args:
        mechanisms: fitted, causes before effects, one for every column.
        table: canonical, B rows.
        seeds: (B,) the rows' own.
    """
    columns = {str(name): table[name].to_numpy(copy=True) for name in table.columns}
    todo = np.flatnonzero(table.isna().any(axis=1).to_numpy())
    for start in range(0, len(todo), ROWS):
        rows = todo[start : start + ROWS]
        chosen = _complete(mechanisms, districts, table.iloc[rows], seeds[rows], particles)
        for name in chosen:
            columns[str(name)][rows] = chosen[name].to_numpy()
    return pd.DataFrame({n: pd.Series(v, table.index, dtype=table[n].dtype) for n, v in columns.items()})


def _complete(
    mechanisms: Mapping[str, Mechanism], districts: Districts, table: pd.DataFrame, seeds: Seeds, particles: int
) -> pd.DataFrame:
    n = len(table)
    own = fork(seeds, particles)
    many = table.iloc[np.repeat(np.arange(n), particles)].reset_index(drop=True)
    drawn = {name: many[name].isna().to_numpy() for name in table.columns}
    holed = {k: np.any([drawn[name] for name in names], axis=0) for k, names in enumerate(districts.members)}
    scores = np.zeros(n * particles)
    for k, (name, mechanism) in enumerate(mechanisms.items()):
        here, parents = drawn[name], list(mechanism.parents)
        if here.any():
            at = own[here]
            noise = districts.draw(name, mechanism, at, k) if name in districts else mechanism.draw(stream(at, k))
            many.loc[here, name] = mechanism.predict(noise, many.loc[here, parents])
        # a score that is the same for all completions of a row decides nothing: ask only where something was drawn
        touched = np.any([np.zeros_like(here), *(drawn[p] for p in parents)], axis=0)
        if name in districts:
            touched = touched | next(holed[j] for j, names in enumerate(districts.members) if name in names)
        judged = touched & ~here
        if judged.any():
            values, above = many.loc[judged, name], many.loc[judged, parents]
            if name in districts:
                scores[judged] += _agreement(mechanism, districts, values, above, own[judged], k)
            else:
                scores[judged] += mechanism.log_prob(values, above)
    best = _drawn(scores.reshape(n, particles), seeds)
    return many.iloc[np.arange(n) * particles + best].set_index(table.index)


def _agreement(
    mechanism: Mechanism, districts: Districts, values: pd.Series, parents: pd.DataFrame, seeds: Seeds, number: int
) -> Array:
    """How well the district's drawn noise explains an observed member: a log weight (B,)."""
    noise = districts.draw(mechanism.name, mechanism, seeds, number)
    if mechanism.monotone:
        found = mechanism.abduct(values, parents, seeds)
        near: Array = -0.5 * ((found - noise)[:, 0] / KERNEL) ** 2
        return np.maximum(near, _NOT)
    same = mechanism.predict(noise, parents) == values.to_numpy()
    return np.where(same, 0.0, _NOT)


def _drawn(scores: Array, seeds: Seeds) -> npt.NDArray[np.int64]:
    """(B,): one completion a row, with probability proportional to exp(score)."""
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    edges = np.cumsum(weights, axis=1)
    u = uniforms(stream(seeds, _CHOICE)) * edges[:, -1:]
    chosen: npt.NDArray[np.int64] = (edges < u).sum(axis=1).clip(max=scores.shape[1] - 1)
    return chosen
