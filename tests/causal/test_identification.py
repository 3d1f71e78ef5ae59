"""What is called identifiable is decided by the data, and what is not is not: against models written out in numbers.

Effects: a discrete model with explicit hidden causes; p(v) and p(outcome | do) are functions of its parameters, and the effect is
a function of p(v) only if its gradient lies in the span of p(v)'s. Counterfactuals: linear-Gaussian models, in which
a mechanism is what the regression on the parents finds exactly if its noise is independent of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations, permutations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cfaug.causal import CausalGraph
from cfaug.causal.audit.identification import (
    STATUSES,
    hedge,
    identification,
    recomputed,
)


@dataclass(frozen=True)
class Kind:
    kind: str
    monotone: bool


FLOW, CATEGORICAL, ADDITIVE, GIVEN = (
    Kind("spline_flow", True),
    Kind("categorical", False),
    Kind("additive_noise", True),
    Kind("function", True),
)


def rows_of(text: str, default: Kind = FLOW, **kinds: Kind) -> Mapping[tuple[str, str], dict[str, object]]:
    graph = CausalGraph(text)
    found = identification(graph, {n: kinds.get(n, default) for n in graph.attributes})
    return {(row["do"], row["outcome"]): row for row in found}


# --- effects, against the rank of a written-out model


def unexplained(graph: CausalGraph, act: str, outcome: str, levels: int = 4) -> float:
    """The share in [0, 1] of the gradient of p(outcome | do(act)) that no change of p(v) accounts for, at random parameters.

    Binary attributes, hidden causes of four values.
    """
    nodes, hidden = graph.topological_order(), graph.bidirected
    letter = {n: chr(97 + i) for i, n in enumerate((*nodes, *hidden))}
    inputs = [(*graph.parents(n), *(pair for pair in hidden if n in pair)) for n in nodes]
    shapes = [tuple(2 if isinstance(i, str) else levels for i in names) for names in inputs]
    sizes = [int(np.prod(s)) for s in shapes] + [levels] * len(hidden)
    terms = ["".join(letter[i] for i in (*names, n)) for names, n in zip(inputs, nodes)] + [letter[h] for h in hidden]
    equation, everything = ",".join(terms) + "->", "".join(letter[n] for n in nodes)

    def observed_and_acted(parameters: torch.Tensor) -> torch.Tensor:
        parts = torch.split(parameters, sizes)
        ones = [torch.sigmoid(p.reshape(s)) for p, s in zip(parts, shapes)]
        tables = [torch.stack([1 - one, one], dim=-1) for one in ones] + [
            torch.softmax(p, 0) for p in parts[len(nodes) :]
        ]
        observed = torch.einsum(equation + everything, *tables)
        cut = nodes.index(act)
        tables[cut] = torch.ones_like(tables[cut])
        acted = torch.einsum(equation + letter[act] + letter[outcome], *tables)
        return torch.cat([observed.reshape(-1), acted[:, 1]])

    start = torch.randn(sum(sizes), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(observed_and_acted, start).numpy()
    data, effect = jacobian[:-2].T, jacobian[-2:].T
    rest = effect - data @ np.linalg.lstsq(data, effect, rcond=1e-10)[0]
    return float(np.linalg.norm(rest) / np.linalg.norm(effect))


def graph_of(arrows: tuple[int, ...], ties: tuple[int, ...], names: str) -> CausalGraph:
    pieces = list(names)
    for (a, b), arrow, tie in zip(combinations(names, 2), arrows, ties):
        pieces += [f"{a} -> {b}"] * arrow + [f"{a} <-> {b}"] * tie
    return CausalGraph("; ".join(pieces))


def test_every_effect_in_every_graph_of_three_attributes() -> None:
    counts = {True: 0, False: 0}
    for arrows, ties in product(product((0, 1), repeat=3), repeat=2):
        graph = graph_of(arrows, ties, "xyz")
        for act, outcome in permutations("xyz", 2):
            identified = hedge(graph, [act], [outcome]) is None
            share = unexplained(graph, act, outcome)
            assert share < 1e-9 if identified else share > 1e-3, (str(graph), act, outcome, share)
            counts[identified] += 1
    assert counts == {True: 325, False: 59}


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(*[st.sampled_from([0, 1, 1])] * 6),
    st.lists(st.integers(0, 5), max_size=4, unique=True),
    st.sampled_from(list(combinations("wxyz", 2))),
)
def test_effects_in_graphs_of_four_attributes(arrows: tuple[int, ...], tied: list[int], pair: tuple[str, str]) -> None:
    graph = graph_of(arrows, tuple(int(k in tied) for k in range(6)), "wxyz")
    identified = hedge(graph, [pair[0]], [pair[1]]) is None
    share = unexplained(graph, *pair)
    assert share < 1e-9 if identified else share > 1e-5


@pytest.mark.parametrize(
    ("text", "blocked"),
    [
        ("x -> y; x <-> y", ("x", "y")),  # bow arc
        ("x -> m -> y; x <-> y", None),  # front door
        ("w -> z -> x -> y; w <-> x; w <-> y", None),  # napkin
        ("z -> x -> y; x <-> y", ("x", "y")),  # instrument
        ("x -> y; x <-> m; m <-> y", None),  # M-graph
        ("c -> x -> y; c -> y", None),  # back door
        ("x -> m -> y; x <-> m", ("m", "x")),
        ("x -> m -> y; x <-> y; m <-> y", ("m", "x", "y")),
        ("x -> y; x <-> z; z -> y; z <-> y", ("x", "y", "z")),
        ("x -> y; y -> d; x <-> d", None),  # d is tied to x, and no ancestor of y
    ],
)
def test_effects_in_graphs_from_the_textbook(text: str, blocked: tuple[str, ...] | None) -> None:
    assert hedge(CausalGraph(text), ["x"], ["y"]) == blocked


def test_the_effect_on_everything_follows_tian_and_pearl() -> None:
    for arrows, ties in product(product((0, 1), repeat=3), repeat=2):
        graph = graph_of(arrows, ties, "xyz")
        for act in "xyz":
            reached, todo = set(), [act]
            while todo:
                node = todo.pop()
                reached.add(node)
                todo += [n for n in "xyz" if n not in reached and graph.confounded(node, n)]
            criterion = not reached & set(graph.children(act))
            assert (hedge(graph, [act], set("xyz") - {act}) is None) == criterion


def test_several_acts_at_once() -> None:
    graph = CausalGraph("x -> m -> y; x <-> m")
    assert hedge(graph, ["x", "m"], ["y"]) is None
    assert hedge(graph, ["x"], ["m", "y"]) == ("m", "x")


# --- counterfactuals


def slopes_of(graph: CausalGraph, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """True and fitted coefficients (attributes, attributes) of a linear-Gaussian model: row n regresses n on its parents."""
    at = {n: i for i, n in enumerate(graph.attributes)}
    rng, k = np.random.default_rng(seed), len(at)
    true, loads, fitted = np.zeros((k, k)), np.zeros((k, len(graph.bidirected))), np.zeros((k, k))
    for a, b in graph.edges:
        true[at[b], at[a]] = rng.choice([-1, 1]) * rng.uniform(0.5, 1.5)
    for column, pair in enumerate(graph.bidirected):
        for name in pair:
            loads[at[name], column] = rng.choice([-1, 1]) * rng.uniform(0.5, 1.5)
    total = np.linalg.inv(np.eye(k) - true)
    cov = total @ (np.diag(rng.uniform(0.5, 1.5, k)) + loads @ loads.T) @ total.T
    for name, i in at.items():
        if parents := [at[p] for p in graph.parents(name)]:
            fitted[i, parents] = np.linalg.solve(cov[np.ix_(parents, parents)], cov[parents, i])
    return true, fitted


def moved_wrongly(slopes: tuple[np.ndarray, np.ndarray], act: str, outcome: str) -> float:
    """How far true and fitted counterfactual part for each unit by which do(act) moves it: residuals stay, the rest is linear."""
    moved = []
    for matrix in slopes:
        cut = matrix.copy()
        names = "wxyz"[-len(cut) :]
        cut[names.index(act)] = 0.0
        moved.append(np.linalg.inv(np.eye(len(cut)) - cut)[names.index(outcome), names.index(act)])
    return float(abs(moved[0] - moved[1]))


@settings(deadline=None, max_examples=60)
@given(st.tuples(*[st.booleans()] * 6), st.tuples(*[st.sampled_from([0, 0, 1])] * 6), st.integers(0, 2**32))
def test_identified_rows_have_their_true_counterfactual(
    arrows: tuple[int, ...], ties: tuple[int, ...], seed: int
) -> None:
    graph = graph_of(arrows, ties, "wxyz")
    models = [slopes_of(graph, seed + k) for k in range(3)]
    for row in identification(graph, dict.fromkeys("wxyz", FLOW)):
        error = max(moved_wrongly(slopes, row["do"], row["outcome"]) for slopes in models)
        if row["status"] in ("identified", "unchanged"):
            assert error < 1e-9, (str(graph), row)


def test_what_is_not_identified_is_wrong_in_every_small_graph() -> None:
    counts = {True: 0, False: 0}
    for arrows, ties in product(product((0, 1), repeat=3), repeat=2):
        graph = graph_of(arrows, ties, "xyz")
        for row in identification(graph, dict.fromkeys("xyz", FLOW)):
            if row["status"] != "unchanged":
                # three models: that all of them happen to cancel is beyond chance
                wrong = max(moved_wrongly(slopes_of(graph, seed), row["do"], row["outcome"]) for seed in range(3))
                assert (row["status"] == "identified") == (wrong < 1e-9), (str(graph), row)
                counts[row["status"] == "identified"] += 1
    assert min(counts.values()) > 20


def test_known_counterfactuals() -> None:
    chain = rows_of("a -> b -> c; c -> image")
    assert chain["a", "c"]["status"] == "identified"
    assert chain["a", "c"]["path"] == ["a", "b", "c"]
    assert chain["a", "c"]["under"] == "b increases strictly in a scalar noise; c increases strictly in a scalar noise"
    assert chain["c", "a"]["status"] == "unchanged"
    assert chain["c", "a"]["path"] == []
    assert chain["a", "image"]["status"] == "not_identified"
    assert "Pan and Bareinboim" in str(chain["a", "image"]["under"])
    assert rows_of("a; b -> image")["a", "image"]["status"] == "unchanged"

    bow = rows_of("a -> b; a <-> b")["a", "b"]
    assert bow["status"] == "not_identified"
    assert "data and graph alone do not identify it" in str(bow["under"])
    assert bow["effect"] == {"identified": False, "blocked_by": ["a", "b"]}
    # the effect is identifiable here, and the counterfactual still not from y given its parents
    door = rows_of("x -> m -> y; x <-> y")
    assert door["x", "m"]["status"] == "identified"
    assert door["x", "y"]["effect"] == {"identified": True, "blocked_by": []}
    assert door["x", "y"]["status"] == "not_identified"
    assert "not shown to be identifiable" in str(door["x", "y"]["under"])
    # a hidden cause shared with something that is not upstream does no harm
    assert rows_of("t <-> a; a -> b; t -> image; b -> image")["a", "b"]["status"] == "identified"
    assert rows_of("t <-> a; a -> b")["a", "t"]["status"] == "unchanged"
    # nor with a parent that stays: within its values, ranks carry over; unless that parent is tied to what is moved
    beside = "a -> d; c -> d; c <-> d"
    assert rows_of(beside)["a", "d"]["status"] == "identified"
    assert rows_of(beside)["c", "d"]["status"] == "not_identified"
    assert rows_of(beside + "; a <-> c")["a", "d"]["status"] == "not_identified"
    # y tells its noise to z, whose parents include y's: the pair follows from x as one
    pair = "x -> y -> z; x -> z; y <-> z"
    assert rows_of(pair)["x", "z"]["status"] == "identified"
    assert rows_of(pair, y=CATEGORICAL)["x", "z"]["status"] == "not_identified"  # a category does not tell its noise
    assert rows_of(pair)["y", "z"]["status"] == "not_identified"
    assert rows_of("x -> y -> z; y <-> z")["x", "z"]["status"] == "not_identified"
    assert "not how d follows from a" in str(rows_of(beside + "; a <-> c")["a", "d"]["under"])


def test_the_weakest_mechanism_on_the_way_decides() -> None:
    text = "a -> b -> c"
    assert rows_of(text, b=CATEGORICAL)["a", "c"]["status"] == "convention"
    assert rows_of(text, b=CATEGORICAL)["b", "c"]["status"] == "identified"  # b is set, not recomputed
    assert rows_of(text, b=GIVEN)["a", "c"]["status"] == "assumed"
    assert rows_of(text, b=GIVEN, c=CATEGORICAL)["a", "c"]["status"] == "convention"
    added = rows_of(text, c=ADDITIVE)["a", "c"]
    assert added["status"] == "identified"
    assert "noise of c is added" in str(added["under"])
    tied = "a -> b -> c; a <-> c"
    assert rows_of(tied, c=GIVEN)["a", "c"]["status"] == "assumed"  # a given function needs no fit
    for kind in (FLOW, CATEGORICAL, ADDITIVE):
        assert rows_of(tied, c=kind)["a", "c"]["status"] == "not_identified"
    # what is beside the path does not matter
    assert rows_of("a -> c; b -> c; b <-> q; q -> b")["a", "c"]["status"] == "identified"


@settings(deadline=None, max_examples=60)
@given(st.tuples(*[st.booleans()] * 6), st.tuples(*[st.booleans()] * 6), st.data())
def test_rows_agree_with_the_graph(arrows: tuple[int, ...], ties: tuple[int, ...], data: st.DataObject) -> None:
    graph = graph_of(arrows, ties, "wxyz")
    kinds = {n: data.draw(st.sampled_from([FLOW, CATEGORICAL, ADDITIVE, GIVEN])) for n in "wxyz"}
    rows = identification(graph, kinds)
    assert len(rows) == 12
    for row in rows:
        descends = row["outcome"] in graph.descendants(row["do"])
        assert (row["status"] == "unchanged") == (not descends)
        assert (len(row["path"]) > 1) == descends
        on_the_way = recomputed(graph, row["do"], row["outcome"])
        assert set(row["path"][1:]) <= set(on_the_way)
        assert row["status"] in STATUSES
        # a counterfactual holds in every row, so its law is the effect: what is identified there must be identified here
        if row["status"] == "identified":
            assert row["effect"]["identified"]
