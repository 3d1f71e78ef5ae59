"""The edges that PC, FCI and GES of causal-learn find between the columns of a table, with a test and a score for mixed columns.

``pc``     constraints; no hidden common causes (Spirtes, Glymour & Scheines, 2000; maxP colliders, Ramsey, 2016)
``fci``    constraints; hidden common causes allowed (Zhang, 2008, doi:10.1016/j.artint.2008.08.001)
``ges``    greedy search for the best score; no hidden common causes (Chickering, 2002)

The test is that of :mod:`cfaug.causal.audit.independence`. The score is the BIC of Gaussian models over the same features,

    score(v | Z) = -n/2 (log det S_vZ - log det S_Z) - log(n)/2 p_v p_Z

with S the covariance of the features and p their numbers (degenerate Gaussian: Andrews, Ramsey & Cooper, 2019; with
polynomials: Ramsey, Andrews & Spirtes, 2025). Equivalent graphs get the same score, as GES needs.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cfaug.causal.audit.independence import IndependenceTest, column_of
from cfaug.causal.discover.background_knowledge import Background
from cfaug.data.schema import Schema

Proposal = tuple[str, str, str]
"""(a, kind, b), kind one of "->", "--", "<->", "o->", "o-o", "-o"; the ends of an edge without direction are in the order of the names."""
_SURE = 1e9
"""What a required or excluded edge adds to the score: more than any data can."""


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Hide what causal-learn prints: it writes lines and progress bars even where it is told not to."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def _register() -> str:
    """Make our test known to causal-learn; returns the name that it has there."""
    from causallearn.utils.cit import CIT_Base, register_ci_test

    class MixedTest(CIT_Base):  # type: ignore[misc]
        """A question is answered by ``known`` (pair of names -> p) where it can be, otherwise by ``tests``."""

        def __init__(self, data: Any, tests: IndependenceTest, known: Mapping[frozenset[str], float], **_: Any) -> None:
            super().__init__(data)
            self.method, self.tests, self.known = "cfaug", tests, known

        def __call__(self, X: int, Y: int, condition_set: Sequence[int] | None = None) -> float:
            names = self.tests.names
            a, b = sorted((names[int(X)], names[int(Y)]))
            if (p := self.known.get(frozenset((a, b)))) is not None:
                return p
            given = tuple(sorted({names[int(i)] for i in condition_set or ()}))
            key = f"{a}\t{b}\t{given}"
            if key not in self.pvalue_cache:
                self.pvalue_cache[key] = self.tests.test(a, b, given).p_value
            return float(self.pvalue_cache[key])

    register_ci_test("cfaug", MixedTest)
    return "cfaug"


def _known(names: Sequence[str], knowledge: Background) -> dict[frozenset[str], float]:
    """The answers that need no test: a required edge is never removed (p = 0), and one that is forbidden both ways always is (p = 1)."""
    sure = {frozenset(edge): 0.0 for edge in knowledge.required}
    for i, a in enumerate(names):
        for b in names[:i]:
            if knowledge.forbids(a, b) and knowledge.forbids(b, a):
                sure[frozenset((a, b))] = 1.0
    return sure


def _translated(names: Sequence[str], knowledge: Background, forbidden: bool) -> Any:
    """The background knowledge in causal-learn's own form; ``forbidden`` says whether the forbidden edges are in it."""
    from causallearn.graph.GraphNode import GraphNode
    from causallearn.utils.PCUtils.BackgroundKnowledge import BackgroundKnowledge

    found, nodes = BackgroundKnowledge(), {name: GraphNode(name) for name in names}
    for a, b in knowledge.required:
        found.add_required_by_node(nodes[a], nodes[b])
        found.add_forbidden_by_node(nodes[b], nodes[a])
    for a in names:
        for b in names:
            if forbidden and a != b and knowledge.forbids(a, b):
                found.add_forbidden_by_node(nodes[a], nodes[b])
    return found


def edges_of(matrix: npt.NDArray[np.int_], names: Sequence[str]) -> list[Proposal]:
    """causal-learn's matrix as edges: entry (i, j) is the mark that the edge of i and j has at i (-1 tail, 1 arrow, 2 open)."""
    found: list[Proposal] = []
    for i, j in np.argwhere(np.triu((matrix != 0) | (matrix.T != 0), 1)).tolist():
        left, right, a, b = int(matrix[i, j]), int(matrix[j, i]), names[i], names[j]
        if (left == 1 and right != 1) or (left == 2 and right == -1):
            left, right, a, b = right, left, b, a
        middle = "" if left == -1 or right == -1 else "-"
        found.append((a, {-1: "-", 1: "<", 2: "o"}[left] + middle + {-1: "-", 1: ">", 2: "o"}[right], b))
    return found


def _options(table: pd.DataFrame, schema: Schema, knowledge: Background, forbidden: bool) -> dict[str, Any]:
    return {
        "background_knowledge": _translated(schema.names, knowledge, forbidden),
        "show_progress": False,
        "node_names": list(schema.names),
        "tests": IndependenceTest(table, schema),
        "known": _known(schema.names, knowledge),
    }


def pc(table: pd.DataFrame, schema: Schema, alpha: float, knowledge: Background) -> list[Proposal]:
    """A completed partially directed graph: "->" in every graph of the equivalence class, "--" in both directions."""
    from causallearn.search.ConstraintBased.PC import pc as search

    data, options = np.zeros((len(table), len(schema))), _options(table, schema, knowledge, forbidden=True)
    with silence():  # rule 1 is maxP, with which no single wrong separating set makes a collider
        found = search(data, alpha, _register(), uc_rule=1, uc_priority=3, **options)
    return edges_of(found.G.graph, schema.names)


def fci(table: pd.DataFrame, schema: Schema, alpha: float, knowledge: Background) -> list[Proposal]:
    """A partial ancestral graph: "<->" hidden cause, "o->" the right end does not cause the left, "o-o" nothing known.

    Forbidden edges are applied afterwards. causal-learn would read "a does not cause b" as "b causes a", although a hidden cause may
    join them; it only follows that the end at a is an arrow: a <-o b, or a <-> b.
    """
    from causallearn.search.ConstraintBased.FCI import fci as search

    data, options = np.zeros((len(table), len(schema))), _options(table, schema, knowledge, forbidden=False)
    with silence():
        graph, _ = search(data, _register(), alpha, **options)
    matrix = np.array(graph.graph, dtype=np.int64)
    for i, a in enumerate(schema.names):
        for j, b in enumerate(schema.names):
            if i != j and matrix[i, j] and knowledge.forbids(a, b):
                matrix[i, j] = 1  # an arrow at a
    return edges_of(matrix, schema.names)


class Score:
    """BIC of degenerate Gaussian models over the features, computed from the complete rows; larger is better."""

    def __init__(self, table: pd.DataFrame, schema: Schema) -> None:
        complete = schema.canonical(table).dropna()
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


def ges(table: pd.DataFrame, schema: Schema, alpha: float, knowledge: Background) -> list[Proposal]:
    """A completed partially directed graph, as ``pc`` gives it, from the complete rows. ``alpha`` is not used.

    Required edges, and pairs that are forbidden in both directions, change the score in the same way in both directions, so that
    equivalent graphs keep equal scores. Known directions overrule those that GES finds; then the rules of Meek (1995) are applied.
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

    with silence(), _scored_by(informed) as lent:
        found = search(np.zeros((score.n, len(names))), lent, node_names=list(names))
        graph = CausalGraph(len(names), list(names))
        graph.G = found["G"]
        for i, a in enumerate(names):
            for j, b in enumerate(names):
                against = knowledge.forbids(a, b) or (b, a) in knowledge.required
                if against and graph.G.graph[i, j] == -1 and graph.G.graph[j, i] == 1:
                    _undirect(graph.G, i, j)
        rules = _translated(names, knowledge, forbidden=True)
        orient_by_background_knowledge(graph, rules)
        graph = meek(graph, rules)
    return edges_of(graph.G.graph, names)


def _undirect(graph: Any, i: int, j: int) -> None:
    """Take the direction of the arrow from node i to node j."""
    from causallearn.graph.Edge import Edge
    from causallearn.graph.Endpoint import Endpoint

    a, b = graph.nodes[i], graph.nodes[j]
    graph.remove_edge(graph.get_edge(a, b))
    graph.add_edge(Edge(a, b, Endpoint.TAIL, Endpoint.TAIL))


SEARCHES: Mapping[str, Callable[[pd.DataFrame, Schema, float, Background], list[Proposal]]] = {
    "pc": pc,
    "fci": fci,
    "ges": ges,
}
