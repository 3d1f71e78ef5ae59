"""The structural causal model of the attributes: abduct, act, predict, on tables.

    noise = scm.abduct(table)             the exogenous noise that explains each row
    acted = scm.act(do(background="water"))
    table_cf = acted.predict(noise)       the same noise, the new mechanisms

A value is recomputed only in rows where a parent's value differs from the factual one, so non-descendants, attributes that
the graph does not name, and everything under do() stay bit for bit what they were. A value that is missing in a row leaves the
noise of that attribute, and of its children, unknown in that row; what would have to be computed from it is missing in the
counterfactual too, and never guessed. A row's draws depend on its seed and the attribute alone, never on the batch: discrete
values are the same in any batch, and continuous ones to rounding. A table that comes back has the index of the one that was
given; draws go by the text of its keys.

"a <-> b" makes the noises of a and b dependent in ``sample`` (:mod:`cfaug.causal.noise`). Whether a counterfactual is
*identified* is a different question, which the assumption card answers.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cfaug.causal import save_scm
from cfaug.causal.acted_scm import ActedSCM, dtype_of
from cfaug.causal.fit_warnings import tell, warn
from cfaug.causal.fitted import FittedSCM, complete
from cfaug.causal.graph import CausalGraph
from cfaug.causal.intervention import Intervention, do
from cfaug.causal.marginals import Marginal
from cfaug.causal.mechanisms.conditional import row_weights
from cfaug.causal.mechanisms.protocol import Mechanism
from cfaug.causal.mechanisms.registry import MECHANISMS, default_kind, mechanism_named, refuse_unsuited
from cfaug.causal.noise import Districts, Noise
from cfaug.causal.row_random import Array, Seeds, natural, row_seeds, stream
from cfaug.data.schema import Schema
from cfaug.errors import UsageError, shown

log = logging.getLogger(__name__)

CHUNK = 65_536
"""Rows worked through at a time."""
_BANK = 2**31  # the stream of the districts' bank


class SCM:
    """A causal graph with one mechanism per attribute.

    Args:
        graph: over attributes of the schema; those that it does not name are isolated.
        schema: kinds decide the mechanisms: categorical, ordinal, and a spline flow for continuous attributes.
        mechanisms: attribute -> a different kind by name, or a mechanism of your own (``FunctionMechanism``).

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
        self.graph = graph
        self.order: tuple[str, ...] = graph.attribute_order(schema)
        self._given = schema  # fitting again starts from it, not from the first table's values
        self._asked = dict(mechanisms or {})
        self._fitted: FittedSCM | None = None
        self._warned: set[str] = set()
        self._digest: str | None = None
        for name, asked in self._asked.items():
            attribute = schema[name]
            if isinstance(asked, str):  # made in fit, when the schema has its values
                refuse_unsuited(asked, attribute)
            elif hasattr(asked, "abduct"):
                self._new(name, schema)
            else:
                raise UsageError(
                    f"mechanism of {name!r}: expected a name ({', '.join(MECHANISMS)}) or a FunctionMechanism, got {shown(asked)}"
                )

    @property
    def schema(self) -> Schema:
        """The schema, with values and statistics after ``fit``."""
        return self._given if self._fitted is None else self._fitted.schema

    @property
    def fitted(self) -> FittedSCM:
        """The fitted parts; UsageError before ``fit``."""
        if self._fitted is None:
            raise UsageError("expected a fitted SCM, got one that is not fitted; call scm.fit(table) first")
        return self._fitted

    def _new(self, name: str, schema: Schema) -> Mechanism:
        asked = self._asked.get(name, default_kind(schema[name]))
        parents = self.graph.parents(name) if name in self.graph else ()
        if isinstance(asked, str):
            return mechanism_named(asked, schema, name, parents)
        if (asked.name, tuple(asked.parents)) != (name, parents):
            raise UsageError(
                f"mechanism of {name!r}: expected one that computes {name!r} from {', '.join(parents) or 'nothing'}, as the graph "
                f"says, got {asked.name!r} from {', '.join(asked.parents) or 'nothing'}; make them agree"
            )
        return asked

    def fit(self, table: pd.DataFrame, seed: int = 0, weights: Array | None = None) -> SCM:
        """Standardise the schema and fit every mechanism to ``table`` (optionally weighted rows); returns self.

        A mechanism learns from the rows that have the attribute and all its parents. This is unbiased when what is missing does
        not depend on the attribute given its parents. The log warns where these are not all rows, where they are fewer than the
        numbers to fit, and where a column has only one value.
        Raises DataError for a missing column, a missing target, a value outside the schema, or an attribute without a
        single such row.
        """
        natural(seed)
        schema = self._given.fit(table, self._given.names)
        table = schema.canonical(table)
        weights = None if weights is None else row_weights(weights, len(table), "the SCM")
        mechanisms: dict[str, Mechanism] = {}
        marginals: dict[str, Marginal] = {}
        learned: dict[str, int] = {}
        for k, name in enumerate(self.order):
            mechanism = self._new(name, schema)
            # one stream per node: adding rows to one mechanism's training must not change where a different one starts
            child = int(np.random.SeedSequence([seed, k]).generate_state(1)[0])
            rows = complete(table, name, mechanism.parents)
            if not rows.all():
                tell(name, mechanism.parents, rows)
            w = None if weights is None else weights[rows]
            mechanisms[name] = mechanism.fit(table[name][rows], table[list(mechanism.parents)][rows], w, child)
            learned[name] = int(rows.sum())
            have = table[name].notna().to_numpy()
            values, own = table[name][have], None if weights is None else weights[have]
            marginals[name] = Marginal.fit(schema, name, values, own)
            warn(mechanisms[name], marginals[name], values if own is None else values[own > 0])
        streams = {name: k for k, name in enumerate(self.order)}
        seeds = stream(row_seeds(natural(seed), table.index), _BANK)
        districts = Districts.fit(self.graph.districts(), mechanisms, table, seeds, streams, weights)
        self._fitted = FittedSCM(self.graph, schema, mechanisms, marginals, districts, learned)
        self._warned, self._digest = set(), None
        return self

    def mechanism(self, name: str) -> Mechanism:
        """The fitted mechanism of one attribute; UsageError before ``fit``."""
        self.schema[name]
        return self.fitted.mechanisms[name]

    # --- the three verbs
    def abduct(self, table: pd.DataFrame, seed: int | Sequence[int] | Seeds = 0) -> Noise:
        """The noise of B rows, given all their attributes jointly.

        The noise is NaN where the attribute or one of its parents is missing in that row; the target must be there. ``seed`` is
        one number (each row then draws by the number and its key) or B numbers, one per row.
        """
        return self._abduct(table, seed, self.order)

    def _abduct(self, table: pd.DataFrame, seed: int | Sequence[int] | Seeds, needed: Collection[str]) -> Noise:
        factual = _checked(self.fitted.schema, table)
        seeds = row_seeds(seed, factual.index)
        noise = self.fitted.abduct(factual, seeds, needed)
        factual.index = table.index  # the caller's own, so that the result can stand beside the table
        return Noise(noise, factual, seeds)

    def act(self, intervention: Intervention | Sequence[Intervention]) -> ActedSCM:
        """This model under do(...), one for all rows or one per row; UsageError for what the schema does not allow.

        The log warns, once per attribute, of values that no row of the fitted table had.
        """
        fitted, shared = self.fitted, isinstance(intervention, Intervention)
        many = _interventions(intervention)
        checked = {one: one.check(fitted.schema) for one in many}  # a plan repeats few distinct interventions
        self._warn_of_strange(checked.values())
        return ActedSCM(fitted, tuple(checked[one] for one in many), shared)

    def _warn_of_strange(self, interventions: Iterable[Intervention]) -> None:
        for one in interventions:
            for name, value in one.assignments.items():
                why = None if name in self._warned else self.fitted.marginals[name].strange(value)
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

        The table is worked through ``chunk`` rows at a time; their number changes nothing but the memory that it takes.
        """
        if not isinstance(chunk, int) or chunk < 1:
            raise UsageError(f"expected chunks of at least 1 row, got {chunk!r}; leave it out")
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

    def sample(self, n: int, seed: int = 0, intervention: Intervention | None = None) -> pd.DataFrame:
        """n fresh rows under ``intervention`` (default do()): interventional samples, *not* counterfactuals.

        Attributes that "<->" joins get dependent noises; one that do() sets keeps no tie to the others.
        """
        if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 0:
            raise UsageError(f"expected a whole number of rows to sample, got {n!r}")
        if intervention is not None and not isinstance(intervention, Intervention):
            raise UsageError(f"expected one do(...) to sample under, got {shown(intervention)}")
        return self.act(intervention or do()).sample(n, seed)

    # --- on disk
    @property
    def digest(self) -> str:
        """sha256 (hex) of graph, schema and every fitted number."""
        if self._digest is None:  # asked for with every image that is written
            self._digest = save_scm.digest(*save_scm.content(self.fitted))
        return self._digest

    def save(self, directory: str | Path) -> None:
        """Write ``scm.json`` and ``scm.safetensors`` into ``directory``. The code of a FunctionMechanism is not saved."""
        save_scm.save(Path(directory), *save_scm.content(self.fitted))

    @classmethod
    def load(cls, directory: str | Path, mechanisms: Mapping[str, Mechanism] | None = None) -> SCM:
        """Read what ``save`` wrote; ``mechanisms`` are those of your own that were given to the saved SCM.

        Raises ShardError when the files are missing, corrupt, or not what their digest says; UsageError when a mechanism of your
        own is not given, or has a different version than the saved one.
        """
        fitted = save_scm.read(Path(directory), dict(mechanisms or {}))
        scm = cls(fitted.graph, fitted.schema, mechanisms)
        scm._fitted = fitted
        return scm


def _checked(schema: Schema, table: pd.DataFrame) -> pd.DataFrame:
    """The canonical table, which the mechanisms then trust; DataError as ``Schema.check``, where values may be missing."""
    columns = schema.canonical(table)
    for a in schema:
        column = columns[a.name]
        good = np.isfinite(column) if a.kind == "continuous" else column.isin(a.categories)
        if not (good | (column.isna() & (a.name != schema.target))).all():
            schema.check(table, schema.names)  # finds the cell and raises
    return columns


def _interventions(given: Any) -> list[Intervention]:
    many = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    for one in many:
        if not isinstance(one, Intervention):
            raise UsageError(f"expected do(...), or a list with one per row, got {shown(one)}")
    return many
