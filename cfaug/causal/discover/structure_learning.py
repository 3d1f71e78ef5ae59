"""Four ways from a table to edges between its columns; :mod:`cfaug.causal.discover.discovery` asks them and reports.

``pc``     constraints; no hidden common causes (Spirtes, Glymour & Scheines, 2000; maxP colliders, Ramsey, 2016)
``fci``    constraints; hidden common causes allowed (Zhang, 2008, doi:10.1016/j.artint.2008.08.001)
``ges``    greedy search for the best score; no hidden common causes (Chickering, 2002)
``dagma``  one smooth optimisation over linear models (Bello et al., NeurIPS 2022, arXiv 2209.08037)

The first three are causal-learn's, with the test of :mod:`cfaug.causal.audit.independence` in place of its own, none of which is
right for mixed columns. The score is BIC of Gaussian models over the same features,

    score(v | Z) = -n/2 (log det S_vZ - log det S_Z) - log(n)/2 p_v p_Z

with S the covariance of the features and p their numbers (degenerate Gaussian: Andrews, Ramsey & Cooper, 2019;
with polynomials: Ramsey, Andrews & Spirtes, 2025). It gives equivalent graphs the same score, as GES needs.

DAGMA sees standardised numbers, and of a discrete column its K - 1 indicators, whitened together; edges inside one column
are excluded, and the strength of a -> b is the Frobenius norm of their block of weights. Lost by this: a curve, an
interaction, and the noise variances, from which alone such methods learn directions in linear data (Reisach, Seiler &
Weichwald, 2021, arXiv 2102.13647). Unstandardised they would read directions from the units. So its skeleton is
worth more than its arrows.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import networkx as nx
import numpy as np
import numpy.typing as npt
import pandas as pd

from cfaug.causal.audit.independence import IndependenceTest, column_of
from cfaug.causal.discover.background_knowledge import Background
from cfaug.data.schema import Schema
from cfaug.errors import UsageError

Array = npt.NDArray[np.float64]
Proposal = tuple[str, str, str]
"""(a, kind, b), kind one of "->", "--", "<->", "o->", "o-o", "-o"; the two ends of an unoriented one in the order of names."""

_SURE = 1e9
"""What a required or excluded edge is worth to the score: more than any data."""
WEAKEST = 0.1
"""DAGMA: strengths below are no edge; in standard deviations of the effect for one of the cause."""


def need(package: str) -> None:
    """UsageError with the line to type when an optional package is not installed."""
    if find_spec(package) is None:
        raise UsageError(f'discovery needs the package {package}, which is not here; pip install "cfaug[discover]"')


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Both packages print and draw bars of their own, whatever they are told."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


# --- constraints


def _register() -> str:
    """Make our test known to causal-learn; returns the name it has there."""
    from causallearn.utils.cit import CIT_Base, register_ci_test

    class MixedTest(CIT_Base):  # type: ignore[misc]
        """``tests`` answers; ``known`` (pair of names -> p) answers first."""

        def __init__(self, data: Array, tests: IndependenceTest, known: dict[frozenset[str], float], **_: Any) -> None:
            super().__init__(data)
            self.method = "cfaug"
            self.tests, self.known = tests, known

        def __call__(self, X: int, Y: int, condition_set: Sequence[int] | None = None) -> float:
            names = self.tests.names
            a, b, given = names[int(X)], names[int(Y)], tuple(sorted({int(i) for i in condition_set or ()}))
            if (p := self.known.get(frozenset((a, b)))) is not None:
                return p
            key = f"{min(a, b)}\t{max(a, b)}\t{given}"
            if key not in self.pvalue_cache:
                self.pvalue_cache[key] = self.tests.test(a, b, [names[i] for i in given]).p_value
            return float(self.pvalue_cache[key])

    register_ci_test("cfaug", MixedTest)
    return "cfaug"


def _known(names: Sequence[str], knowledge: Background) -> dict[frozenset[str], float]:
    """What a test need not be asked: a required edge is never removed, one forbidden in both directions always."""
    sure = {frozenset(edge): 0.0 for edge in knowledge.required}
    for i, a in enumerate(names):
        for b in names[:i]:
            if knowledge.forbids(a, b) and knowledge.forbids(b, a):
                sure[frozenset((a, b))] = 1.0
    return sure


def _told(names: Sequence[str], knowledge: Background, forbidden: bool) -> Any:
    from causallearn.graph.GraphNode import GraphNode
    from causallearn.utils.PCUtils.BackgroundKnowledge import BackgroundKnowledge

    told, nodes = BackgroundKnowledge(), {name: GraphNode(name) for name in names}
    for a, b in knowledge.required:
        told.add_required_by_node(nodes[a], nodes[b])
        told.add_forbidden_by_node(nodes[b], nodes[a])
    for a in names:
        for b in names:
            if forbidden and a != b and knowledge.forbids(a, b):
                told.add_forbidden_by_node(nodes[a], nodes[b])
    return told


_LEFT = {-1: "-", 1: "<", 2: "o"}
_RIGHT = {-1: "-", 1: ">", 2: "o"}


def _edges(matrix: npt.NDArray[np.int_], names: Sequence[str]) -> list[Proposal]:
    """causal-learn's matrix as edges: entry (i, j) is the mark that the edge of i and j has at i."""
    found: list[Proposal] = []
    for i in range(len(names)):
        for j in range(i + 1, len(names)):
            if matrix[i, j] or matrix[j, i]:
                left, right, a, b = int(matrix[i, j]), int(matrix[j, i]), names[i], names[j]
                if (left == 1 and right != 1) or (left == 2 and right == -1):
                    left, right, a, b = right, left, b, a
                middle = "" if left == -1 or right == -1 else "-"
                found.append((a, f"{_LEFT[left]}{middle}{_RIGHT[right]}", b))
    return found


def pc(table: pd.DataFrame, schema: Schema, alpha: float, knowledge: Background) -> list[Proposal]:
    """A completed partially directed graph: "->" in every graph of the equivalence class, "--" in both directions."""
    from causallearn.search.ConstraintBased.PC import pc as search

    tests, names = IndependenceTest(table, schema), schema.names
    with _silence():
        found = search(
            np.zeros((len(table), len(names))),
            alpha,
            _register(),
            uc_rule=1,  # maxP: a single wrong separating set turns no collider around
            uc_priority=3,
            background_knowledge=_told(names, knowledge, forbidden=True),
            show_progress=False,
            node_names=list(names),
            tests=tests,
            known=_known(names, knowledge),
        )
    return _edges(found.G.graph, names)


def fci(table: pd.DataFrame, schema: Schema, alpha: float, knowledge: Background) -> list[Proposal]:
    """A partial ancestral graph: "<->" hidden cause, "o->" the right end causes not the left, "o-o" nothing known.

    What is forbidden is applied afterwards: causal-learn would read "a is no cause of b" as "b is a cause of a", but
    a hidden cause is left. It then follows that the end at a is an arrow: a <-o b, or a <-> b.
    """
    from causallearn.search.ConstraintBased.FCI import fci as search

    tests, names = IndependenceTest(table, schema), schema.names
    with _silence():
        graph, _ = search(
            np.zeros((len(table), len(names))),
            _register(),
            alpha,
            background_knowledge=_told(names, knowledge, forbidden=False),
            show_progress=False,
            node_names=list(names),
            tests=tests,
            known=_known(names, knowledge),
        )
    matrix = np.array(graph.graph, dtype=np.int64)
    for i, a in enumerate(names):
        for j, b in enumerate(names):
            if i != j and matrix[i, j] and knowledge.forbids(a, b):
                matrix[i, j] = 1  # an arrow at a
    return _edges(matrix, names)


# --- score


class Score:
    """BIC of degenerate Gaussian models over the features, of the rows that have every value; larger is better."""

    def __init__(self, table: pd.DataFrame, schema: Schema) -> None:
        complete = schema.canonical(table).dropna()  # all of them: a covariance is cheap, however many rows there are
        features = [column_of(a, complete[a.name]).features for a in schema]
        wide = np.hstack(features)
        self.n, self.sizes = len(wide), [f.shape[1] for f in features]
        self._starts = np.cumsum([0, *self.sizes])
        self._covariance = np.corrcoef(wide.T) + 1e-6 * np.eye(wide.shape[1])

    def _volume(self, members: Sequence[int]) -> float:
        columns = [c for i in members for c in range(self._starts[i], self._starts[i + 1])]
        return float(np.linalg.slogdet(self._covariance[np.ix_(columns, columns)])[1]) if columns else 0.0

    def __call__(self, node: int, parents: Sequence[int]) -> float:
        """The score of column number ``node`` given the columns ``parents``."""
        gain = self._volume([node, *parents]) - self._volume(parents)
        numbers = self.sizes[node] * sum(self.sizes[i] for i in parents)
        return float(-self.n / 2 * gain - np.log(self.n) / 2 * numbers)


@contextlib.contextmanager
def _scored_by(score: Callable[[int, Sequence[int]], float]) -> Iterator[str]:
    """Lend ``score`` to causal-learn's GES under the name of one of its own: it takes scores by name only."""
    from causallearn.search.ScoreBased import GES

    lent = "local_score_BDeu"
    own = getattr(GES, lent)

    def local_score_mixed(data: Any, node: int, parents: Sequence[int], parameters: Any = None) -> float:
        return score(int(node), [int(i) for i in parents])

    setattr(GES, lent, local_score_mixed)
    try:
        yield lent
    finally:
        setattr(GES, lent, own)


def ges(table: pd.DataFrame, schema: Schema, knowledge: Background) -> list[Proposal]:
    """A completed partially directed graph, as of ``pc``; of the rows that have every value.

    Required edges, and pairs that are forbidden in both directions, enter the score, in both directions alike, so that equivalent
    graphs keep equal scores. Directions that are known are laid on what GES finds, against its own where they disagree,
    and followed up by the rules of Meek (1995).
    """
    from causallearn.graph.GraphClass import CausalGraph
    from causallearn.search.ScoreBased.GES import ges as search
    from causallearn.utils.PCUtils.BackgroundKnowledgeOrientUtils import orient_by_background_knowledge
    from causallearn.utils.PCUtils.Meek import meek

    names, score = schema.names, Score(table, schema)
    known = _known(names, knowledge)

    def informed(node: int, parents: Sequence[int]) -> float:
        answers = [known.get(frozenset((names[node], names[p]))) for p in parents]
        return score(node, parents) + _SURE * (answers.count(0.0) - answers.count(1.0))

    with _silence(), _scored_by(informed) as lent:
        found = search(np.zeros((score.n, len(names))), lent, node_names=list(names))
        graph = CausalGraph(len(names), list(names))
        graph.G = found["G"]
        _loosen(graph.G, knowledge)
        told = _told(names, knowledge, forbidden=True)
        orient_by_background_knowledge(graph, told)
        graph = meek(graph, told)
    return _edges(graph.G.graph, names)


def _loosen(graph: Any, knowledge: Background) -> None:
    """Take the direction of every arrow that the knowledge forbids: what is known goes before what a score prefers."""
    from causallearn.graph.Edge import Edge
    from causallearn.graph.Endpoint import Endpoint

    for edge in list(graph.get_graph_edges()):
        a, b = edge.get_node1(), edge.get_node2()
        if edge.get_endpoint1() == Endpoint.ARROW:
            a, b = b, a
        against = knowledge.forbids(a.get_name(), b.get_name()) or (b.get_name(), a.get_name()) in knowledge.required
        if against and graph.is_directed_from_to(a, b):
            graph.remove_edge(edge)
            graph.add_edge(Edge(a, b, Endpoint.TAIL, Endpoint.TAIL))


# --- smooth optimisation


def _standardised(table: pd.DataFrame, schema: Schema) -> tuple[Array, list[slice]]:
    """(B, D) columns of variance 1, uncorrelated within each attribute, and the columns of each."""
    complete = schema.canonical(table).dropna()
    fitted = Schema(schema.attributes).fit(complete)
    parts, blocks, start = [], [], 0
    for name in schema.names:
        own = fitted.encode(complete, [name]).astype(np.float64)
        own = own - own.mean(0)
        weights, axes = np.linalg.eigh(own.T @ own / len(own))
        own = own @ (axes[:, weights > 1e-9] / np.sqrt(weights[weights > 1e-9]))
        parts.append(own)
        blocks.append(slice(start, start := start + own.shape[1]))
    return np.hstack(parts), blocks


def strengths(table: pd.DataFrame, schema: Schema, knowledge: Background) -> Array:
    """(N, N) non-negative strengths of the edges from row to column, by linear DAGMA; may still hold a weak cycle."""
    from dagma.linear import DagmaLinear

    names = schema.names
    columns, blocks = _standardised(table, schema)
    excluded = tuple(
        (i, j)
        for a, rows in zip(names, blocks)
        for b, cols in zip(names, blocks)
        if a == b or knowledge.forbids(a, b) or (b, a) in knowledge.required
        for i in range(rows.start, rows.stop)
        for j in range(cols.start, cols.stop)
        if i != j
    )
    with _silence():
        weights = DagmaLinear(loss_type="l2").fit(
            columns.copy(),
            lambda1=0.02,
            w_threshold=0.0,
            s=[1.0, 0.9, 0.8, 0.7, 0.6],  # a new list: dagma writes into its default
            warm_iter=5_000,  # of thousands: columns in the dozens converge in these
            max_iter=10_000,
            lr=1e-3,
            exclude_edges=excluded or None,
        )
    return np.array([[np.linalg.norm(weights[rows, cols]) for cols in blocks] for rows in blocks])


def dagma(table: pd.DataFrame, schema: Schema, knowledge: Background) -> list[Proposal]:
    """A directed acyclic graph: strengths of at least ``WEAKEST``; the weakest edge of every cycle is left out."""
    names, found = schema.names, strengths(table, schema, knowledge)
    sure = {(names.index(a), names.index(b)) for a, b in knowledge.required}
    graph: Any = nx.DiGraph()
    graph.add_nodes_from(range(len(names)))
    graph.add_edges_from(sure)
    order = np.dstack(np.unravel_index(np.argsort(-found, axis=None), found.shape))[0]
    for i, j in order.tolist():
        if found[i, j] >= WEAKEST and i != j and not nx.has_path(graph, j, i):
            graph.add_edge(i, j)
    return [(names[i], "->", names[j]) for i, j in sorted(graph.edges)]
