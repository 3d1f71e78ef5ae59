"""Missing attributes, filled in by abduction: a draw from p(missing | everything observed in the row).

Every row gets M completions: down the graph, a missing attribute is drawn from its mechanism given its parents, and each
observed attribute below weighs the completion by p(value | parents). One of the M is then drawn by weight: sampling
importance resampling (Rubin 1987), exact as M grows. Across "<->" the weight is agreement: the district's noises are drawn
together, and an observed member must come out (nearly) as observed.

    ESS = (sum w)^2 / sum w^2                                                        Kish's effective sample size, a row

A row's observed children may tell more than 128 draws from the prior can follow: one weight then outgrows the others. Rows
whose ESS is below ``ENOUGH`` go through ``ROUNDS`` more rounds. There the standard normal noises z of missing attributes
outside districts come from q, fitted to the round before, and the weight becomes

    log w = log p(observed | completion) + log phi(z) - log q(z),        q = 0.1 phi + 0.9 (mixture of 3 normals)

Population Monte Carlo (Cappe, Guillin, Marin and Robert 2004); the mixture is fitted by EM (Cappe et al. 2008) to the weights
raised to the power that keeps their ESS at ``TEMPERED``, so that one lucky completion is not taken for the posterior (tempering:
Neal 2001); the prior's tenth bounds the correction (Hesterberg 1995). A row keeps the round with the best ESS. A missing
category is, in a quarter of the completions of every round, any category, with the same kind of correction.

Exact as M grows: the values drawn, for whatever mechanisms, outside districts. Not exact: M is finite, with a bias of the order
of 1 / ESS; agreement in a district has a width (``KERNEL``); noises of districts, and those that are not normal, are always
drawn from their prior, only more of them (1 024); one of many narrow and far modes, or of hundreds of categories, may be lost
unnoticed. Rows whose best ESS stays below ``ROUGH`` are counted in one warning.

One draw, not a best guess: the distribution over rows is right, a single row's value need not be. It is right as far as
values are missing at random given what is observed; a value hidden because of what it is (the dark images have no
label) is not learned from others that are visible.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from cfaug.causal.discrete import DiscreteMechanism
from cfaug.causal.draws import Array, Seeds, fork, stream, uniforms
from cfaug.causal.mechanisms import Mechanism, has_normal_noise
from cfaug.causal.noise import Districts
from cfaug.causal.proposals import Mask, Proposal, effective_size, weights_of

log = logging.getLogger(__name__)

PARTICLES = 128
ROWS = 512  # at a time: 65 536 completions, and in every later round as many
ROUNDS = (
    256,
    256,
    1024,
    1024,
    1024,
    1024,
)  # completions a row; each round narrows q by about its completions over TEMPERED in volume
ENOUGH = 20.0  # effective completions: a row that has them takes no further round
ROUGH = 3.0  # with fewer, what was drawn is little more than the best of what was tried
SPREAD = 0.25  # share of the completions in which a missing category is any of them
KERNEL = 0.2  # of the standard normal noise: how near an observed continuous member of a district must come out
_NOT = np.log(1e-6)  # a completion that disagrees: it wins only where none agrees
_CHOICE, _ROUND, _COMPONENT, _CATEGORY = 2**34, 2**35, 2**36, 2**37


def impute(
    mechanisms: Mapping[str, Mechanism],
    districts: Districts,
    table: pd.DataFrame,
    seeds: Seeds,
    particles: int = PARTICLES,
) -> pd.DataFrame:
    """The table with no value missing; observed values are as they were, bit for bit.

    Warns of the rows that no completion tried agrees well with.

    Args:
        mechanisms: fitted, causes before effects, one for every column.
        table: canonical, B rows.
        seeds: (B,) the rows' own.
        particles: completions a row in the first round.
    """
    columns = {str(name): table[name].to_numpy(copy=True) for name in table.columns}
    todo = np.flatnonzero(table.isna().any(axis=1).to_numpy())
    rough = 0
    for start in range(0, len(todo), ROWS):
        rows = todo[start : start + ROWS]
        chosen, effective = _filled(mechanisms, districts, table.iloc[rows], seeds[rows], particles)
        rough += int((effective < ROUGH).sum())
        for name, values in chosen.items():
            columns[name][rows] = values
    if rough:
        log.warning(
            "impute: %d of %d rows: no completion tried agrees well with what the row has; their imputed values are rough",
            rough, len(todo),
        )  # fmt: skip
    return pd.DataFrame({n: pd.Series(v, table.index, dtype=table[n].dtype) for n, v in columns.items()})


def _filled(
    mechanisms: Mapping[str, Mechanism], districts: Districts, table: pd.DataFrame, seeds: Seeds, particles: int
) -> tuple[dict[str, npt.NDArray[np.generic]], Array]:
    """Per column the values (B,) of one completion a row, and the effective sample size (B,) it was drawn from."""
    told = _told(mechanisms, districts, table)
    free = [name for name, rows in told.items() if rows.any() and has_normal_noise(mechanisms[name])]
    masks = np.stack([told[name] for name in free], axis=1) if free else np.zeros((len(table), 0), dtype=np.bool_)
    columns = {str(name): table[name].to_numpy(copy=True) for name in table.columns}
    effective = np.full(len(table), -1.0)
    q = Proposal.prior(masks)
    for number, count in enumerate((particles, *ROUNDS)):
        low = effective < ENOUGH
        if number:  # where there is nothing to propose, the larger rounds are all alike: one of them is enough
            low &= masks.any(axis=1) | (number == 1 + ROUNDS.index(max(ROUNDS)))
        todo, size = np.flatnonzero(low), max(1, ROWS * PARTICLES // count)
        for rows in (todo[i : i + size] for i in range(0, len(todo), size)):
            own = fork(stream(seeds[rows], _ROUND + number) if number else seeds[rows], count)
            tried = _complete(
                mechanisms, districts, table.iloc[rows], own, {n: t[rows] for n, t in told.items()}, free, q[rows]
            )
            found = effective_size(np.where(tried.agrees, tried.scores, -np.inf))
            best = np.flatnonzero(found > effective[rows])
            at = best * count + _drawn(tried.scores[best], seeds[rows[best]])
            for name in columns:
                columns[name][rows[best]] = tried.table[name].to_numpy()[at]
            effective[rows[best]] = found[best]
            again = np.flatnonzero((effective[rows] < ENOUGH) & masks[rows].any(axis=1))
            if len(again) and number < len(ROUNDS):
                q.put(rows[again], Proposal.fit(tried.noise[again], tried.scores[again], masks[rows[again]]))
    return columns, effective


def _told(mechanisms: Mapping[str, Mechanism], districts: Districts, table: pd.DataFrame) -> dict[str, Mask]:
    """Where (B,) an attribute outside districts is missing and something below it is observed: where the prior may not do."""
    gone = {name: table[name].isna().to_numpy() for name in mechanisms}
    told = {name: np.zeros(len(table), dtype=np.bool_) for name in mechanisms}
    for name in reversed(list(mechanisms)):  # effects before causes
        told[name] &= gone[name]
        for parent in mechanisms[name].parents:
            told[parent] |= ~gone[name] | told[name]
    return {name: rows for name, rows in told.items() if name not in districts}


@dataclass(frozen=True)
class _Tried:
    """``count`` completions of each of B rows, those of one row side by side."""

    table: pd.DataFrame  # (B * count) rows
    scores: Array  # (B, count) log weights
    agrees: Mask  # (B, count): every observed member of a district came out as observed
    noise: Array  # (B, count, D) standard normal noises of the free attributes, 0 where an attribute is not


def _complete(
    mechanisms: Mapping[str, Mechanism],
    districts: Districts,
    table: pd.DataFrame,
    own: Seeds,
    told: Mapping[str, Mask],
    free: list[str],
    q: Proposal,
) -> _Tried:
    """Complete each row once for each of its seeds ``own`` (B * count,)."""
    n, count = len(table), len(own) // len(table)
    many = table.iloc[np.repeat(np.arange(n), count)].reset_index(drop=True)
    drawn = {name: many[name].isna().to_numpy() for name in table.columns}
    holed = {k: np.any([drawn[name] for name in names], axis=0) for k, names in enumerate(districts.members)}
    fresh = [mechanisms[name].draw(stream(own, k)) for k, name in enumerate(mechanisms) if name in free]
    noise = np.concatenate([np.zeros((n * count, 0)), *fresh], axis=1).reshape(n, count, len(free))
    noise = q.move(noise, uniforms(stream(own, _COMPONENT)).reshape(n, count))
    scores, agrees = q.correction(noise).reshape(-1), np.ones(n * count, dtype=np.bool_)
    for k, (name, mechanism) in enumerate(mechanisms.items()):
        here, parents = drawn[name], list(mechanism.parents)
        if here.any():
            at = own[here]
            own_noise = districts.draw(name, mechanism, at, k) if name in districts else mechanism.draw(stream(at, k))
            if name in free:
                proposed = np.repeat(q.masks[:, free.index(name)], count)[here]
                own_noise[proposed, 0] = noise.reshape(n * count, -1)[here, free.index(name)][proposed]
            above = many.loc[here, parents]
            values = mechanism.predict(own_noise, above)
            if isinstance(mechanism, DiscreteMechanism) and name in told:
                some = np.repeat(told[name], count)[here]
                values[some], more = _spread(mechanism, values[some], above[some], at[some], k)
                scores[np.flatnonzero(here)[some]] += more
            many.loc[here, name] = values
        # a score that is the same for all completions of a row decides nothing: ask only where something was drawn
        touched = np.any([np.zeros_like(here), *(drawn[p] for p in parents)], axis=0)
        if name in districts:
            touched = touched | next(holed[j] for j, names in enumerate(districts.members) if name in names)
        judged = touched & ~here
        if judged.any():
            given, above = many.loc[judged, name], many.loc[judged, parents]
            if name in districts:
                score = _agreement(mechanism, districts, given, above, own[judged], k)
                agrees[judged] &= score > _NOT
            else:
                score = mechanism.log_prob(given, above)
            scores[judged] += score
    return _Tried(many, scores.reshape(n, count), agrees.reshape(n, count), noise)


def _spread(
    mechanism: DiscreteMechanism,
    values: npt.NDArray[np.generic],
    parents: pd.DataFrame,
    seeds: Seeds,
    number: int,
) -> tuple[npt.NDArray[np.generic], Array]:
    """The values (B,) with one in ``1 / SPREAD`` replaced by any category, and the correction log p - log q (B,) for it.

    A rare category that the row's effects speak for has to be tried at all: no weight tells of what was never drawn.
    """
    if not len(values):
        return values, np.zeros(0)
    size = mechanism.conditional.size
    u = uniforms(stream(seeds, _CATEGORY + number))[:, 0]
    any_of = mechanism.conditional.texts((u / SPREAD * size).astype(np.int64).clip(max=size - 1))
    out = np.where(u < SPREAD, any_of, values)
    prior = mechanism.log_prob(pd.Series(out, parents.index), parents)
    return out, prior - np.logaddexp(np.log(1 - SPREAD) + prior, np.log(SPREAD / size))


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
    edges = np.cumsum(weights_of(scores), axis=1)
    u = uniforms(stream(seeds, _CHOICE)) * edges[:, -1:]
    chosen: npt.NDArray[np.int64] = (edges < u).sum(axis=1).clip(max=scores.shape[1] - 1)
    return chosen
