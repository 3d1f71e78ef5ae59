"""The structural causal model of the attributes: abduct, act, predict, on tables.

    noise = scm.abduct(table)             the exogenous noise that explains each row
    acted = scm.act(do(background="water"))
    table_cf = acted.predict(noise)       the same noise, the new mechanisms

A value that is missing in a row leaves the noise of that attribute, and of its children, unknown in that row; what
would have to be computed from it is missing in the counterfactual too, and never guessed.

Attributes absent from the graph are isolated roots: they stay as they are. A value is recomputed only in rows where
a parent's value differs from the factual one, so non-descendants, and everything under do(), stay bit for bit what they
were. Row i's draws depend on its seed and the attribute alone, never on the batch it sits in: discrete values are then the same in
any batch, and continuous ones to rounding (matrix products of another size round otherwise in the last digits). Tables are worked
through in chunks of rows, so that what is held beside the table and its counterfactual does not grow with them. Tables
that come back have the index of those that came; draws go by its text.

"a <-> b" makes the noises of a and b dependent in ``sample`` (:mod:`cfaug.causal.noise`). A counterfactual needs nothing of
it: its noise is abducted from the row itself. Whether it is *identified* is another question, which the assumption card
answers.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cfaug.causal import storage
from cfaug.causal.fit_warnings import complete, tell, warn
from cfaug.causal.graph import CausalGraph
from cfaug.causal.intervention import Intervention, do
from cfaug.causal.marginals import Marginal
from cfaug.causal.mechanisms import MECHANISMS, Mechanism, default_kind, mechanism_named, refuse_unsuited
from cfaug.causal.mechanisms.conditional import row_weights
from cfaug.causal.noise import Districts, Noise
from cfaug.causal.prediction import ActedSCM, dtype_of
from cfaug.causal.row_random import Array, Seeds, natural, row_seeds, stream
from cfaug.data.schema import Schema
from cfaug.errors import DataError, UsageError

log = logging.getLogger(__name__)

CHUNK = 65_536
"""Rows worked through at a time."""
_BANK = 2**31  # the stream of the districts' bank


class SCM:
    """A causal graph with one mechanism per attribute.

    Args:
        graph: over attributes of the schema; those it does not name are isolated.
        schema: kinds decide the mechanisms: categorical, ordinal, and a spline flow for continuous attributes.
        mechanisms: attribute -> another kind by name, or a mechanism of your own (``FunctionMechanism``).

    Raises:
        UsageError: the graph or ``mechanisms`` names what the schema lacks, or a mechanism does not fit its attribute.
    """

    def __init__(
        self, graph: CausalGraph, schema: Schema, mechanisms: Mapping[str, str | Mechanism] | None = None
    ) -> None:
        if not isinstance(graph, CausalGraph) or not isinstance(schema, Schema):
            raise UsageError(
                f"expected SCM(CausalGraph(...), Schema([...])), got {type(graph).__name__} and {type(schema).__name__}"
            )
        graph.check(schema)
        self.graph, self.schema = graph, schema
        self._given = schema  # fitting again starts from it, not from the first table's values
        self.rows: dict[str, int] = {}
        """Attribute -> rows its mechanism was fitted on."""
        self.districts = Districts((), {})
        """The joint noise of attributes with a hidden common cause."""
        self._asked = dict(mechanisms or {})
        self._mechanisms: dict[str, Mechanism] = {}
        self._marginals: dict[str, Marginal] = {}
        self._warned: set[str] = set()
        self._digest: str | None = None
        self.order: tuple[str, ...] = graph.attribute_order(schema)
        for name, asked in self._asked.items():
            attribute = schema[name]
            if isinstance(asked, str):  # made in fit, when the schema has its values
                refuse_unsuited(asked, attribute)
            elif hasattr(asked, "abduct"):
                self._new(name)
            else:
                raise UsageError(
                    f"the mechanism of {name!r} is a name ({', '.join(MECHANISMS)}) or a FunctionMechanism, got {asked!r}"
                )

    def parents(self, name: str) -> tuple[str, ...]:
        """The parents of an attribute; none when the graph does not know it."""
        return self.graph.parents(name) if name in self.graph else ()

    def _new(self, name: str) -> Mechanism:
        asked = self._asked.get(name, default_kind(self.schema[name]))
        if isinstance(asked, str):
            return mechanism_named(asked, self.schema, name, self.parents(name))
        if (asked.name, tuple(asked.parents)) != (name, self.parents(name)):
            raise UsageError(
                f"the mechanism given for {name!r} computes {asked.name!r} from {', '.join(asked.parents) or 'nothing'}, but the "
                f"graph says {name!r} from {', '.join(self.parents(name)) or 'nothing'}; make them agree"
            )
        return asked

    def fit(self, table: pd.DataFrame, seed: int = 0, weights: Array | None = None) -> SCM:
        """Standardise the schema and fit every mechanism to ``table`` (optionally weighted rows); returns self.

        A mechanism learns from the rows that have the attribute and all its parents; the log says from how many where it
        is not all of them, where they are fewer than the numbers to fit, and where a column has one value only. Fitting is
        unbiased when what is missing does not depend on the attribute given its parents.
        Raises DataError for a missing column, a missing target, a value outside the schema, or an attribute without a
        single such row.
        """
        natural(seed)
        schema = self._given.fit(table, self._given.names)
        table = schema.canonical(table)
        weights = None if weights is None else row_weights(weights, len(table), "the SCM")
        self.schema, self._warned = schema, set()
        for k, name in enumerate(self.order):
            mechanism = self._new(name)
            # one stream a node: adding rows to one mechanism's training must not change another's start
            child = int(np.random.SeedSequence([seed, k]).generate_state(1)[0])
            rows = complete(table, name, mechanism.parents)
            if not rows.all():
                tell(name, mechanism.parents, rows)
            w = None if weights is None else weights[rows]
            self._mechanisms[name] = mechanism.fit(table[name][rows], table[list(mechanism.parents)][rows], w, child)
            self.rows[name] = int(rows.sum())
            have = table[name].notna().to_numpy()
            own = None if weights is None else weights[have]
            self._marginals[name] = Marginal.fit(schema, name, table[name][have], own)
            warn(
                self._mechanisms[name],
                self._marginals[name],
                table[name][have] if own is None else table[name][have][own > 0],
            )
        streams = {name: k for k, name in enumerate(self.order)}
        seeds = stream(row_seeds(natural(seed), table.index), _BANK)
        self.districts = Districts.fit(self.graph.districts(), self._mechanisms, table, seeds, streams, weights)
        self._digest = None
        return self

    def mechanism(self, name: str) -> Mechanism:
        """The fitted mechanism of one attribute; UsageError before ``fit``."""
        self.schema[name]
        if name not in self._mechanisms:
            raise UsageError("this SCM is not fitted; call scm.fit(table) first")
        return self._mechanisms[name]

    def marginal(self, name: str) -> Marginal:
        """The distribution of one attribute among the rows the SCM was fitted on; UsageError before ``fit``."""
        self.mechanism(name)
        return self._marginals[name]

    # --- the three verbs
    def abduct(self, table: pd.DataFrame, seed: int | Sequence[int] | Seeds = 0) -> Noise:
        """The noise of B rows, given all their attributes jointly; NaN for an attribute that is missing or has a parent
        missing in that row (the target must be there).

        ``seed`` is one number (each row then draws by the number and its key) or B numbers, one a row.
        """
        return self._abduct(table, seed, self.order)

    def _abduct(self, table: pd.DataFrame, seed: int | Sequence[int] | Seeds, needed: Collection[str]) -> Noise:
        """``abduct`` of the attributes ``needed`` alone."""
        self.mechanism(self.order[0])
        self.schema.check(table, self.schema.names)
        factual = self.schema.canonical(table)
        rows = row_seeds(seed, factual.index)
        factual.index = table.index  # the caller's own, so that what comes back can stand beside what came
        noise = {}
        for k, name in enumerate(self.order):
            if name not in needed:
                continue
            mechanism = self.mechanism(name)
            known = complete(factual, name, mechanism.parents)
            found = mechanism.abduct(
                factual[name][known], factual[list(mechanism.parents)][known], stream(rows[known], k)
            )
            noise[name] = np.full((len(known), mechanism.width), np.nan)
            noise[name][known] = found
        return Noise(noise, factual, rows)

    def act(self, intervention: Intervention | Sequence[Intervention]) -> ActedSCM:
        """This model under do(...), one for all rows or one a row; UsageError for what the schema does not allow.

        Warns of values that no row of the table had on which this SCM was fitted.
        """
        self.mechanism(self.order[0])
        shared = isinstance(intervention, Intervention)
        many = _interventions(intervention)
        checked = {one: one.check(self.schema) for one in many}  # a plan repeats few distinct interventions
        self._warn_of_strange(checked.values())
        return ActedSCM(self, tuple(checked[one] for one in many), shared)

    def _warn_of_strange(self, interventions: Iterable[Intervention]) -> None:
        """Once an attribute: a plan may hold a hundred thousand values, and is worked through in many batches."""
        for one in interventions:
            for name, value in one.assignments.items():
                why = None if name in self._warned else self._marginals[name].strange(value)
                if why:
                    self._warned.add(name)
                    log.warning("do(%s=%s): %s; what follows from it is extrapolated", name, value, why)

    def predict(self, noise: Noise) -> pd.DataFrame:
        """The rows under do(): the factual table."""
        return self.act(do()).predict(noise)

    def counterfactual(
        self,
        table: pd.DataFrame,
        intervention: Intervention | Sequence[Intervention],
        seed: int | Sequence[int] | Seeds = 0,
        chunk: int = CHUNK,
    ) -> pd.DataFrame:
        """abduct, act, predict: what each row's attributes would have been.

        Worked through ``chunk`` rows at a time; their number changes nothing but the memory it takes.
        """
        if not isinstance(chunk, int) or chunk < 1:
            raise UsageError(f"expected chunks of at least 1 row, got {chunk!r}")
        acted = self.act(intervention)
        acted.check_length(len(table))
        seeds = row_seeds(seed, table.index) if isinstance(seed, Sequence | np.ndarray) else None
        needed = acted.recomputed()
        n, names = len(table), self.schema.names
        # filled in place: a list of parts and their concatenation would be held at once
        columns = {name: np.empty(n, dtype=dtype_of(self.schema[name])) for name in names}
        for start in range(0, max(1, n), chunk):
            here = slice(start, start + chunk)
            noise = self._abduct(table.iloc[here], seed if seeds is None else seeds[here], needed)
            part = acted[here].predict(noise)
            for name in names:
                columns[name][here] = part[name]
        index = table.index
        return pd.DataFrame({name: pd.Series(columns[name], index, columns[name].dtype) for name in names}, index=index)

    def stream(
        self,
        tables: Iterable[pd.DataFrame],
        intervention: Intervention,
        seed: int = 0,
    ) -> Iterator[pd.DataFrame]:
        """The counterfactuals of one table after the other: for more rows than memory holds.

        A row's answer is that of ``counterfactual`` on the whole, whatever table it comes in: draws belong to its key.
        """
        for table in tables:
            yield self.counterfactual(table, intervention, seed)

    def resolve(
        self,
        table: pd.DataFrame,
        intervention: Intervention | Sequence[Intervention],
        seed: int | Sequence[int] | Seeds = 0,
    ) -> list[Intervention]:
        """One intervention a row that sets what ``intervention`` comes to there: what a plan stores.

        Raises DataError where it comes to nothing, because the value that it changes is missing.
        """
        acted = self.act(intervention)
        table_cf = self.counterfactual(table, intervention, seed)
        found = []
        for i, key in enumerate(table_cf.index):
            values: dict[str, Any] = {name: table_cf[name].iat[i] for name in acted.at(i).names}
            absent = next((name for name, value in values.items() if pd.isna(value)), None)
            if absent is not None:
                raise DataError(
                    f"row {key!r}: {acted.at(i)} needs the value of {absent!r}, which is missing; fill it in"
                )
            found.append(do(values))
        return found

    def sample(self, n: int, seed: int = 0, intervention: Intervention | None = None) -> pd.DataFrame:
        """n fresh rows under ``intervention`` (default do()): interventional samples, *not* counterfactuals.

        Attributes that "<->" joins get dependent noises; one that do() sets keeps no tie to the others.
        """
        if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 0:
            raise UsageError(f"expected a whole number of rows to sample, got {n!r}")
        if intervention is not None and not isinstance(intervention, Intervention):
            raise UsageError(f"a sample is drawn under one do(...), got {intervention!r}")
        acted = self.act(intervention or do())
        index = pd.Index([f"sample-{i:06d}" for i in range(n)], dtype=object)
        rows = row_seeds(natural(seed), index)
        out = pd.DataFrame(index=index)
        for k, name in enumerate(self.order):
            mechanism, own = self.mechanism(name), stream(rows, k)
            tied = name in self.districts
            noise = self.districts.draw(name, mechanism, rows, k) if tied else mechanism.draw(own)
            out[name] = acted.applied(name, mechanism.predict(noise, out[list(mechanism.parents)]), rows)
        return self.schema.canonical(out)

    # --- on disk
    @property
    def digest(self) -> str:
        """sha256 (hex) of graph, schema and every fitted number."""
        if self._digest is None:  # asked for with every image that is written
            self._digest = storage.digest(*storage.content(self))
        return self._digest

    def save(self, directory: str | Path) -> None:
        """Write ``scm.json`` and ``scm.safetensors`` into ``directory``. The code of a FunctionMechanism is not saved."""
        storage.save(Path(directory), *storage.content(self))

    @classmethod
    def load(cls, directory: str | Path, mechanisms: Mapping[str, Mechanism] | None = None) -> SCM:
        """Read what ``save`` wrote; ``mechanisms`` are those of your own that were given to the saved SCM.

        Raises ShardError when it is missing, corrupt, or not what its digest says; UsageError when a mechanism of your own is
        not given, or is another version than the saved one.
        """
        saved = storage.read(Path(directory), dict(mechanisms or {}))
        scm = cls(saved.graph, saved.schema, mechanisms)
        scm._mechanisms, scm._marginals, scm.districts = saved.mechanisms, saved.marginals, saved.districts
        scm.rows = saved.rows
        return scm


def _interventions(given: Any) -> list[Intervention]:
    many = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    for one in many:
        if not isinstance(one, Intervention):
            raise UsageError(f"expected do(...), or a list with one for each row, got {one!r}")
    return many
