"""The structural causal model of the attributes: abduct, act, predict, on tables.

    noise = scm.abduct(table)             the exogenous noise that explains each row
    acted = scm.act(do(background="water"))
    table_cf = acted.predict(noise)       the same noise, the new mechanisms

A value that is missing in a row leaves the noise of that attribute, and of its children, unknown in that row; what
would have to be computed from it is missing in the counterfactual too, and never guessed.

Attributes absent from the graph are isolated roots: they stay as they are. A value is recomputed only in rows where
a parent's value differs from the factual one, so non-descendants, and everything under do(), stay bit for bit what they
were. Row i's draws depend on its seed and the attribute alone, never on the batch it sits in.

What it does not do: "<->" is not fitted as dependent noise. Each node's noise is abducted from its own value, so
a counterfactual already conditions on what the hidden cause did to that row; but ``sample`` draws the noises
independently, and so loses the dependence that a "<->" stands for.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cfaug.causal import storage
from cfaug.causal.draws import Array, natural, row_seeds, stream
from cfaug.causal.flows import ContinuousMechanism
from cfaug.causal.graph import CausalGraph
from cfaug.causal.intervention import Intervention, do
from cfaug.causal.mechanisms import CategoricalMechanism, Mechanism
from cfaug.data.attributes import IMAGE, Schema
from cfaug.errors import CfaugError, DataError, ShardError, UsageError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Noise:
    """What abduction found: per attribute the noise (B, K), and the factual rows it belongs to.

    The noise is NaN where it cannot be known: the attribute or a parent of it has no value in that row.
    """

    values: Mapping[str, Array]
    factual: pd.DataFrame

    def __len__(self) -> int:
        return len(self.factual)


class SCM:
    """A causal graph with one mechanism per attribute.

    Raises UsageError when the graph names an attribute the schema lacks. Unusable before ``fit`` (UsageError).
    """

    def __init__(self, graph: CausalGraph, schema: Schema) -> None:
        graph.check(schema)
        self.graph, self.schema = graph, schema
        self._mechanisms: dict[str, Mechanism] = {}
        # every attribute of the schema, causes first, those the graph does not know last
        order = [n for n in graph.topological_order() if n != IMAGE]
        self.order: tuple[str, ...] = (*order, *(n for n in schema.names if n not in graph))

    def parents(self, name: str) -> tuple[str, ...]:
        """The parents of an attribute; none when the graph does not know it."""
        return self.graph.parents(name) if name in self.graph else ()

    def _new(self, name: str) -> Mechanism:
        kind = ContinuousMechanism if self.schema[name].kind == "continuous" else CategoricalMechanism
        return kind(self.schema, name, self.parents(name))

    def fit(self, table: pd.DataFrame, seed: int = 0, weights: Array | None = None) -> SCM:
        """Standardise the schema and fit every mechanism to ``table`` (optionally weighted rows); returns self.

        A mechanism learns from the rows that have the attribute and all its parents; the log says from how many where it
        is not all of them. That is unbiased when what is missing does not depend on the attribute given its parents.
        Raises DataError for a missing column, a missing target, a value outside the schema, or an attribute without a
        single such row.
        """
        schema = self.schema.fit(table, self.schema.names)
        table = schema.canonical(table)
        weights = None if weights is None else np.asarray(weights, dtype=np.float64)
        self.schema = schema
        for k, name in enumerate(self.order):
            mechanism = self._new(name)
            # one stream a node: adding rows to one mechanism's training must not change another's start
            child = int(np.random.SeedSequence([seed, k]).generate_state(1)[0])
            rows = _complete(table, name, mechanism.parents)
            if not rows.all():
                _tell(name, mechanism.parents, rows)
            w = None if weights is None else weights[rows]
            self._mechanisms[name] = mechanism.fit(table[name][rows], table[list(mechanism.parents)][rows], w, child)
        return self

    def mechanism(self, name: str) -> Mechanism:
        """The fitted mechanism of one attribute; UsageError before ``fit``."""
        self.schema[name]
        if name not in self._mechanisms:
            raise UsageError("this SCM is not fitted; call scm.fit(table) first")
        return self._mechanisms[name]

    # --- the three verbs
    def abduct(self, table: pd.DataFrame, seed: int | Sequence[int] = 0) -> Noise:
        """The noise of B rows, given all their attributes jointly; NaN for an attribute that is missing or has a parent
        missing in that row (the target must be there).

        ``seed`` is one number (each row then draws by the number and its key) or B numbers, one a row.
        """
        self.mechanism(self.order[0])
        self.schema.check(table, self.schema.names)
        factual = self.schema.canonical(table)
        rows = row_seeds(seed, factual.index)
        noise = {}
        for k, name in enumerate(self.order):
            mechanism = self.mechanism(name)
            known = _complete(factual, name, mechanism.parents)
            seeds = stream(rows[known], k)
            found = mechanism.abduct(factual[name][known], factual[list(mechanism.parents)][known], seeds)
            noise[name] = np.full((len(known), found.shape[1]), np.nan)
            noise[name][known] = found
        return Noise(noise, factual)

    def act(self, intervention: Intervention | Sequence[Intervention]) -> ActedSCM:
        """This model under do(...), one for all rows or one a row; UsageError for what the schema does not allow."""
        self.mechanism(self.order[0])
        many = [intervention] if isinstance(intervention, Intervention) else list(intervention)
        checked = {one: one.check(self.schema) for one in many}  # a plan repeats few distinct interventions
        return ActedSCM(self, tuple(checked[one] for one in many), isinstance(intervention, Intervention))

    def predict(self, noise: Noise) -> pd.DataFrame:
        """The rows under do(): the factual table."""
        return self.act(do()).predict(noise)

    def counterfactual(
        self,
        table: pd.DataFrame,
        intervention: Intervention | Sequence[Intervention],
        seed: int | Sequence[int] = 0,
    ) -> pd.DataFrame:
        """abduct, act, predict: what each row's attributes would have been."""
        return self.act(intervention).predict(self.abduct(table, seed))

    def sample(self, n: int, seed: int = 0, intervention: Intervention | None = None) -> pd.DataFrame:
        """n fresh rows under ``intervention`` (default do()): interventional samples, *not* counterfactuals."""
        fixed = (intervention or do()).check(self.schema).assignments
        out = pd.DataFrame(index=pd.Index([f"sample-{i:06d}" for i in range(n)], dtype=object))
        rows = row_seeds(natural(seed), out.index)
        for k, name in enumerate(self.order):
            mechanism = self.mechanism(name)
            if name in fixed:
                out[name] = pd.Series([fixed[name]] * n, index=out.index, dtype=self._dtype(name))
            else:
                out[name] = mechanism.sample(out[list(mechanism.parents)], stream(rows, k))
        return self.schema.canonical(out)

    def _dtype(self, name: str) -> Any:
        return np.float64 if self.schema[name].kind == "continuous" else object

    # --- on disk
    def _content(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        states = {name: self.mechanism(name).state() for name in self.order}
        arrays = {f"{name}/{key}": a for name, (_, found) in states.items() for key, a in found.items()}
        data = {"graph": self.graph.to_json(), "schema": self.schema.to_json()}
        return data | {"mechanisms": {name: state for name, (state, _) in states.items()}}, arrays

    @property
    def digest(self) -> str:
        """sha256 (hex) of graph, schema and every fitted number."""
        return storage.digest(*self._content())

    def save(self, directory: str | Path) -> None:
        """Write ``scm.json`` (and ``scm.safetensors`` when there are flows) into ``directory``."""
        storage.save(Path(directory), *self._content())

    @classmethod
    def load(cls, directory: str | Path) -> SCM:
        """Read what ``save`` wrote; ShardError when it is missing, corrupt, or not what its digest says."""
        data, arrays = storage.load(Path(directory))
        try:
            scm = cls(CausalGraph.from_json(data["graph"]), Schema.from_json(data["schema"]))
            for name in scm.order:
                own = {k.removeprefix(f"{name}/"): a for k, a in arrays.items() if k.startswith(f"{name}/")}
                scm._mechanisms[name] = scm._new(name).restore(data["mechanisms"][name], own)
        except (KeyError, TypeError, ValueError, CfaugError) as error:
            raise ShardError(f"{directory}: not an SCM this version can read ({error}); fit the model again") from error
        return scm


@dataclass(frozen=True)
class ActedSCM:
    """An SCM under interventions; ``predict`` is all it does."""

    scm: SCM
    interventions: tuple[Intervention, ...]
    shared: bool  # one intervention for every row

    def predict(self, noise: Noise) -> pd.DataFrame:
        """The counterfactual rows of ``noise``: same columns, index and order as its factual table.

        A missing value stays missing unless it is intervened on. An attribute that has to be computed anew, but whose
        noise or parents are not known, becomes missing: what it would have been, nobody can say.
        """
        n = len(noise)
        if not self.shared and len(self.interventions) != n:
            raise UsageError(f"expected one intervention a row, got {len(self.interventions)} for {n} rows")
        rows = [self.interventions[0].assignments] * n if self.shared else [i.assignments for i in self.interventions]
        columns: dict[str, npt.NDArray[Any]] = {}
        changed: dict[str, npt.NDArray[np.bool_]] = {}
        for name in self.scm.order:
            factual = noise.factual[name].to_numpy()
            values = factual.copy()
            mechanism = self.scm.mechanism(name)
            fixed = np.array([name in r for r in rows], dtype=bool)
            moved = np.zeros(n, dtype=bool)
            for parent in mechanism.parents:
                moved |= changed[parent]
            moved &= ~fixed
            if moved.any():
                known = moved & ~np.isnan(noise.values[name]).any(axis=1)
                for parent in mechanism.parents:
                    known &= np.asarray(pd.notna(columns[parent]), dtype=np.bool_)
                values[moved] = None
                if known.any():
                    parents = pd.DataFrame({p: columns[p][known] for p in mechanism.parents})
                    values[known] = mechanism.predict(noise.values[name][known], parents)
            for i in np.flatnonzero(fixed):
                values[i] = rows[i][name]
            # NaN differs from NaN, but a value that was and is missing has not changed; unless it had to be computed
            # anew: then it may well have, and its own children cannot stay what they were
            absent = np.asarray(pd.isna(values) & pd.isna(factual), dtype=np.bool_)
            columns[name] = values
            changed[name] = np.asarray(np.where(absent, moved, values != factual), dtype=np.bool_)
        index = noise.factual.index
        names = self.scm.schema.names
        return pd.DataFrame(
            {c: pd.Series(columns[c], index=index, dtype=self.scm._dtype(c)) for c in names}, index=index
        )


def _complete(table: pd.DataFrame, name: str, parents: Sequence[str]) -> npt.NDArray[np.bool_]:
    """(B,): the rows in which an attribute and all its parents have a value."""
    here: npt.NDArray[np.bool_] = np.all(table[[name, *parents]].notna().to_numpy(), axis=1)
    return here


def _tell(name: str, parents: Sequence[str], rows: npt.NDArray[np.bool_]) -> None:
    what = f"{name} and its parents {', '.join(parents)}" if parents else name
    if not rows.any():
        raise DataError(
            f"expected rows that have {what}, got none among {len(rows)}; fill in some of the missing values"
        )
    log.warning("%s: learned from the %d of %d rows that have %s", name, rows.sum(), len(rows), what)
