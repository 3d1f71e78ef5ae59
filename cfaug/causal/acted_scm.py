"""An SCM under interventions: the prediction step, over all rows at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cfaug.causal.fitted import FittedSCM
from cfaug.causal.intervention import HARD, Change, Intervention, Value
from cfaug.causal.marginals import Marginal
from cfaug.causal.noise import Noise
from cfaug.causal.row_random import Seeds, natural, row_seeds, stream, uniforms
from cfaug.data.attribute import Attribute
from cfaug.errors import UsageError

Mask = npt.NDArray[np.bool_]
Done = Mapping[Value | Change, npt.NDArray[np.int64]]  # what is done, and in which rows
_FRESH = 2**35  # the stream of resample() and uniform(), beside those of the nodes' noises


@dataclass(frozen=True)
class ActedSCM:
    """An SCM under one intervention for every row, or one per row; made by ``SCM.act``."""

    scm: FittedSCM
    interventions: tuple[Intervention, ...]
    shared: bool  # one intervention for every row

    def at(self, row: int) -> Intervention:
        """The intervention on one row."""
        return self.interventions[0 if self.shared else row]

    def __getitem__(self, rows: slice) -> ActedSCM:
        """The same for some of the rows."""
        return self if self.shared else ActedSCM(self.scm, self.interventions[rows], False)

    def check_length(self, rows: int) -> None:
        """UsageError unless there is an intervention for each of ``rows`` rows."""
        if not self.shared and len(self.interventions) != rows:
            raise UsageError(
                f"expected one intervention per row, got {len(self.interventions)} for {rows} rows; pass one do(...) for all"
            )

    def recomputed(self) -> set[str]:
        """The attributes whose mechanisms may have to answer anew; only their noise is needed."""
        graph = self.scm.graph
        touched = {name for one in set(self.interventions) for name in one.names}
        return {d for name in touched if name in graph for d in graph.descendants(name)} & set(self.scm.order)

    def predict(self, noise: Noise) -> pd.DataFrame:
        """The counterfactual rows of ``noise``: same columns, index and order as its factual table.

        A missing value stays missing unless it is intervened on. An attribute that has to be computed anew, but whose
        noise or parents are not known, becomes missing.
        """
        n = len(noise)
        self.check_length(n)
        columns: dict[str, npt.NDArray[Any]] = {}
        changed: dict[str, Mask] = {}
        for name in self.scm.order:
            factual = noise.factual[name].to_numpy()
            mechanism = self.scm.mechanisms[name]
            moved = np.zeros(n, dtype=bool)
            for parent in mechanism.parents:
                moved |= changed[parent]
            done = self._done(name, n)
            for what, rows in done.items():
                if not isinstance(what, Change) or what.kind in HARD:
                    moved[rows] = False  # the intervention cuts it from its causes
            values = factual
            if moved.any():
                values = factual.copy()
                known = moved & ~np.isnan(noise.values[name]).any(axis=1)
                for parent in mechanism.parents:
                    known &= np.asarray(pd.notna(columns[parent]), dtype=np.bool_)
                values[moved] = None
                if known.any():
                    parents = pd.DataFrame({p: columns[p][known] for p in mechanism.parents})
                    values[known] = mechanism.predict(noise.values[name][known], parents)
            if done:
                values = self._applied(name, values, noise.seeds, done)
            columns[name] = values
            changed[name] = np.zeros(n, dtype=bool) if values is factual else _changed(factual, values, moved)
        index, scm = noise.factual.index, self.scm
        return pd.DataFrame(
            {c: pd.Series(columns[c], index=index, dtype=dtype_of(scm.schema[c])) for c in scm.schema.names},
            index=index,
        )

    def sample(self, n: int, seed: int = 0) -> pd.DataFrame:
        """n fresh rows under the shared intervention: interventional samples, not counterfactuals."""
        scm, index = self.scm, pd.Index([f"sample-{i:06d}" for i in range(n)], dtype=object)
        seeds = row_seeds(natural(seed), index)
        out = pd.DataFrame(index=index)
        for k, (name, mechanism) in enumerate(scm.mechanisms.items()):
            tied = name in scm.districts
            noise = scm.districts.draw(name, mechanism, seeds, k) if tied else mechanism.draw(stream(seeds, k))
            values = mechanism.predict(noise, out[list(mechanism.parents)])
            out[name] = self._applied(name, values, seeds, self._done(name, n))
        return scm.schema.canonical(out)

    def _applied(self, name: str, values: npt.NDArray[Any], seeds: Seeds, done: Done) -> npt.NDArray[Any]:
        attribute, marginal = self.scm.schema[name], self.scm.marginals[name]
        out = np.array(values, dtype=dtype_of(attribute))
        for what, rows in done.items():
            if not isinstance(what, Change):
                out[rows] = what
            elif what.kind in HARD:
                number = _FRESH + self.scm.order.index(name)
                out[rows] = _drawn(what, marginal, stream(seeds[rows], number))
            else:
                known = rows[np.asarray(pd.notna(out[rows]), dtype=np.bool_)]
                out[known] = _moved(what, attribute, out[known])
        return out

    def _done(self, name: str, n: int) -> Done:
        """What is done to one attribute of n rows, by row numbers: a plan may set a different number in every row."""
        if self.shared:
            own = dict(self.interventions[0].items)
            return {own[name]: np.arange(n)} if name in own else {}
        places: dict[Value | Change, list[int]] = {}
        for i, one in enumerate(self.interventions):
            for key, what in one.items:
                if key == name:
                    places.setdefault(what, []).append(i)
        return {what: np.array(rows, dtype=np.int64) for what, rows in places.items()}


def _changed(factual: npt.NDArray[Any], values: npt.NDArray[Any], moved: Mask) -> Mask:
    """(B,): where a value is not what it was.

    A value that was and is missing has not changed, unless it had to be computed anew: then it may have, and its own children
    cannot stay what they were.
    """
    absent = np.asarray(pd.isna(values) & pd.isna(factual), dtype=np.bool_)
    return np.asarray(np.where(absent, moved, values != factual), dtype=np.bool_)


def _drawn(what: Change, marginal: Marginal, seeds: Seeds) -> npt.NDArray[Any]:
    u = uniforms(seeds)[:, 0]
    return marginal.resampled(u) if what.kind == "resample" else marginal.uniform(u)


def _moved(what: Change, attribute: Attribute, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """shift, scale or flip of values (B,) that are there."""
    if attribute.kind == "continuous":
        with np.errstate(over="ignore"):
            numbers = np.asarray(values + what.amount if what.kind == "shift" else values * what.amount)
        if not np.isfinite(numbers).all():
            raise UsageError(
                f"do({attribute.name}={what}): expected finite numbers, got {numbers[~np.isfinite(numbers)][0]}; choose a smaller amount"
            )
        return numbers
    texts = np.array(attribute.categories, dtype=object)
    ranks = pd.Index(texts).get_indexer(pd.Index(values, dtype=object))
    step = int(what.amount or 0)
    found: npt.NDArray[Any] = texts[1 - ranks if what.kind == "flip" else (ranks + step).clip(0, len(texts) - 1)]
    return found


def dtype_of(attribute: Attribute) -> Any:
    """How a column of values is held."""
    return np.float64 if attribute.kind == "continuous" else object
