"""What a graph implies holds in its own population, is tested at the promised rate of false alarms, and wrong graphs fail."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cfaug.causal import CausalGraph
from cfaug.causal.audit.falsification import falsify, holm, implied
from cfaug.data import Attribute, Schema

NAMES = "abcde"


def graph_of(code: Sequence[int], names: str) -> CausalGraph:
    """One digit a pair: 0 nothing, 1 ->, 2 <->, 3 both; arrows forward in the alphabet."""
    pieces = list(names)
    for (a, b), digit in zip(combinations(names, 2), code):
        pieces += [f"{a} -> {b}"] * (digit % 2) + [f"{a} <-> {b}"] * (digit // 2)
    return CausalGraph("; ".join(pieces))


@st.composite
def graphs(draw: st.DrawFn) -> CausalGraph:
    names = NAMES[: draw(st.integers(2, 5))]
    digits = st.sampled_from([0, 0, 0, 1, 1, 2, 3])
    return graph_of([draw(digits) for _ in combinations(names, 2)], names)


def covariance(graph: CausalGraph, rng: np.random.Generator) -> np.ndarray:
    """The exact covariance of a linear-Gaussian model of ``graph``: (I - B)^-1 (D + L L') (I - B)^-T, L the hidden causes."""
    index = {n: i for i, n in enumerate(graph.attributes)}
    weights, hidden = np.zeros((len(index),) * 2), np.zeros((len(index), len(graph.bidirected)))
    for a, b in graph.edges:
        weights[index[b], index[a]] = rng.choice([-1, 1]) * rng.uniform(0.5, 1.5)
    for k, pair in enumerate(graph.bidirected):
        for name in pair:
            hidden[index[name], k] = rng.choice([-1, 1]) * rng.uniform(0.5, 1.5)
    total = np.linalg.inv(np.eye(len(index)) - weights)
    noise = np.diag(rng.uniform(0.5, 1.5, len(index))) + hidden @ hidden.T
    return np.asarray(total @ noise @ total.T)


def partial_correlation(cov: np.ndarray, graph: CausalGraph, a: str, b: str, given: Sequence[str]) -> float:
    at = [graph.attributes.index(n) for n in (a, b, *given)]
    precision = np.linalg.inv(cov[np.ix_(at, at)])
    return float(-precision[0, 1] / np.sqrt(precision[0, 0] * precision[1, 1]))


@settings(deadline=None, max_examples=60)
@given(graphs(), st.integers(0, 2**32))
def test_implied_independences_are_those_of_linear_models(graph: CausalGraph, seed: int) -> None:
    rng = np.random.default_rng(seed)
    models = [covariance(graph, rng) for _ in range(3)]
    claims = set(implied(graph, graph.attributes).claims)
    for a, b in combinations(graph.attributes, 2):
        others = [n for n in graph.attributes if n not in (a, b)]
        for given_ in chain.from_iterable(combinations(others, k) for k in range(len(others) + 1)):
            largest = max(abs(partial_correlation(cov, graph, a, b, given_)) for cov in models)
            # three models at once: that all of them happen to cancel along two paths is beyond chance
            assert ((a, b, given_) in claims) == (largest < 1e-9)


@settings(deadline=None, max_examples=60)
@given(graphs())
def test_the_short_list_has_one_minimal_separator_per_pair(graph: CausalGraph) -> None:
    everything = implied(graph, graph.attributes)
    assert everything.complete
    pairs = {(a, b) for a, b, _ in everything.claims}
    short = implied(graph, graph.attributes, most=1) if len(everything.claims) > 1 else everything
    assert short.complete == (len(everything.claims) <= 1)
    assert set(short.claims) <= set(everything.claims)
    # `most` cuts the short list too; a limit just below the full one shows all of it
    if len(everything.claims) > max(1, len(pairs)):
        short = implied(graph, graph.attributes, most=len(everything.claims) - 1)
        assert not short.complete
        assert {(a, b) for a, b, _ in short.claims} == pairs
        for a, b, given_ in short.claims:
            assert not any((a, b, tuple(n for n in given_ if n != left)) in everything.claims for left in given_)
    joined = {frozenset(p) for p in (*graph.edges, *graph.bidirected)}
    for a, b in combinations(graph.attributes, 2):
        assert ((a, b) in everything.silent) == (frozenset((a, b)) not in joined and (a, b) not in pairs)


def test_known_graphs() -> None:
    def claims(text: str) -> list[Any]:
        return list(implied(CausalGraph(text), CausalGraph(text).attributes).claims)

    assert claims("a -> b -> c; c -> image") == [("a", "c", ("b",))]
    assert claims("a -> c; b -> c") == [("a", "b", ())]
    assert claims("a -> b; a -> image; b -> image") == []
    verma = implied(CausalGraph("a -> b -> c -> d; b <-> d"), "abcd")
    assert verma.claims == (("a", "c", ("b",)),)
    assert verma.silent == (("a", "d"),)
    # among some attributes only: what separates must be observed
    assert implied(CausalGraph("a -> b -> c"), "ac") == implied(CausalGraph("a -> b -> c"), ["c", "a"])
    assert implied(CausalGraph("a -> b -> c"), "ac").silent == (("a", "c"),)


def test_forty_attributes_are_listed_in_no_time() -> None:
    found = implied(CausalGraph("; ".join(f"a{i:02d}" for i in range(40))), [f"a{i:02d}" for i in range(40)])
    assert len(found.claims) == 40 * 39 / 2
    assert not found.complete


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.5]).tolist() == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([0.6, 0.7]).tolist() == [1.0, 1.0]
    assert holm([]).shape == (0,)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.5))
def test_holm_rejects_what_closed_bonferroni_rejects(p: list[float], alpha: float) -> None:
    m = range(len(p))
    for i, corrected in enumerate(holm(p)):
        sets = [s for s in chain.from_iterable(combinations(m, k) for k in range(1, len(p) + 1)) if i in s]
        largest = max(min(1.0, len(s) * min(p[j] for j in s)) for s in sets)
        assert corrected == pytest.approx(largest)


# --- on data


def gaussian(graph: CausalGraph, n: int, rng: np.random.Generator) -> pd.DataFrame:
    draws = rng.multivariate_normal(np.zeros(len(graph.attributes)), covariance(graph, rng), n)
    return pd.DataFrame(draws, columns=list(graph.attributes), index=[f"k{i}" for i in range(n)])


def numbers(names: Sequence[str]) -> Schema:
    return Schema([Attribute(n, "continuous") for n in names])


@pytest.mark.parametrize("text", ["a; b; c; d", "a -> b -> c -> d; b -> d"])
def test_false_alarms_are_as_rare_as_promised(text: str) -> None:
    graph = CausalGraph(text)
    alarms = [
        falsify(gaussian(graph, 150, np.random.default_rng(seed)), numbers("abcd"), graph, alpha=0.2)["failed"] > 0
        for seed in range(24)
    ]
    # at alpha 0.2 at most 5 of 24 are expected; 11 or more would have a chance below 1 %
    assert sum(alarms) < 11


def mixed(n: int, rng: np.random.Generator) -> pd.DataFrame:
    """colour -> size <- age; size -> mark: two discrete and two continuous attributes."""
    colour, age = rng.integers(0, 3, n), rng.normal(0, 1, n)
    size = np.array([-1.0, 0.0, 1.0])[colour] + age + rng.normal(0, 1, n)
    mark = rng.random(n) < 1 / (1 + np.exp(-2 * size))
    words = np.array(["red", "lime", "blue"], dtype=object)[colour]
    columns = {"colour": words, "age": age, "size": size, "mark": np.where(mark, "yes", "no")}
    return pd.DataFrame(columns, index=[f"k{i}" for i in range(n)])


MIXED = Schema(
    [Attribute("colour"), Attribute("age", "continuous"), Attribute("size", "continuous"), Attribute("mark")]
)
RIGHT = "colour -> size; age -> size; size -> mark"


def test_the_right_graph_stands_and_wrong_ones_fail() -> None:
    table = mixed(1500, np.random.default_rng(3))
    right = falsify(table, MIXED, CausalGraph(RIGHT))
    assert right["failed"] == 0
    assert right["tested"] == 5
    missing_edge = falsify(table, MIXED, CausalGraph("colour; age -> size; size -> mark"))
    assert {"colour", "size"} == {missing_edge["tests"][0][k] for k in "ab"}
    assert missing_edge["tests"][0]["fails"]
    # size -> colour: colour and age are then independent given size, and dependent without; the data say the reverse
    turned = falsify(table, MIXED, CausalGraph("age -> size; size -> colour; size -> mark"))
    failing = [(t["a"], t["b"], t["given"]) for t in turned["tests"] if t["fails"]]
    assert ("age", "colour", ["size"]) in failing
    # colour is a cause of mark through size; a graph that leaves size out denies it
    alone = falsify(table, MIXED, CausalGraph("colour; mark"))
    assert alone["failed"] == 1


def test_a_result_is_plain_sorted_and_says_what_it_does_not_say() -> None:
    import json

    table = mixed(600, np.random.default_rng(0))
    table.loc[table.index[:100], "age"] = np.nan
    found = falsify(table, MIXED, CausalGraph("colour -> size; size -> mark; age"))
    assert json.loads(json.dumps(found)) == found
    assert [t["p"] for t in found["tests"]] == sorted(t["p"] for t in found["tests"])
    assert [t["fails"] for t in found["tests"]] == sorted((t["fails"] for t in found["tests"]), reverse=True)
    for test in found["tests"]:
        uses_age = "age" in (test["a"], test["b"], *test["given"])
        assert test["n"] == (500 if uses_age else 600)
        assert test["p_corrected"] >= test["p"]
    text = "\n".join(found["text"])
    assert "500 to 600 rows" in text
    assert "look for a missing edge" in text
    assert "does not confirm" in "\n".join(falsify(table, MIXED, CausalGraph(RIGHT))["text"])
    nothing = falsify(table, MIXED, CausalGraph("colour -> size"))
    assert nothing["text"] == ["the graph implies no independence among its attributes: the data cannot contradict it"]
    assert nothing["detectable"] is None
    hidden = "colour -> age; age -> size; size -> mark; age <-> mark"
    assert "Verma" in "\n".join(falsify(table, MIXED, CausalGraph(hidden))["text"])


def test_what_is_called_detectable_is_found_four_times_in_five() -> None:
    graph, rng, found = CausalGraph("a; b"), np.random.default_rng(1), 0
    r = falsify(gaussian(graph, 300, rng), numbers("ab"), graph)["detectable"]
    for _ in range(60):
        draws = rng.multivariate_normal([0, 0], [[1, r], [r, 1]], 300)
        found += falsify(pd.DataFrame(draws, columns=["a", "b"]), numbers("ab"), graph)["failed"]
    assert 38 <= found <= 57  # 48 expected, standard deviation 3


def test_what_cannot_be_tested_is_not_counted_and_said() -> None:
    table = mixed(400, np.random.default_rng(2))
    table["mark"] = "yes"
    schema = Schema([*MIXED.attributes[:3], Attribute("mark", values=("no", "yes"))])
    found = falsify(table, schema, CausalGraph("mark; colour; age -> size"))
    assert found["undecided"] == sum("mark" in (t["a"], t["b"]) for t in found["tests"]) > 0
    assert found["tested"] + found["undecided"] == len(found["tests"])
    tested = [t for t in found["tests"] if t["decided"]]
    smallest = tested[0]
    assert smallest["p_corrected"] == pytest.approx(min(1.0, len(tested) * smallest["p"]))
    assert "could not be tested" in "\n".join(found["text"])
    cells = pd.DataFrame([(a, b) for a in "pq" for b in "rs"] * 50, columns=["a", "b"])
    balanced = falsify(cells, Schema([Attribute("a"), Attribute("b")]), CausalGraph("a; b"))
    assert balanced["tests"][0]["p"] == 1.0
    assert balanced["tested"] == 1  # a table without any dependence was tested, and passed
    few = falsify(table[:12], MIXED, CausalGraph("colour; age"))
    assert few["tested"] == 0
    assert few["detectable"] is None
    assert not any("confirm" in line for line in few["text"])


def test_a_large_table_is_tested_on_a_sample_and_says_so() -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({name: rng.normal(size=30_000) for name in "ab"})
    found = falsify(table, Schema([Attribute(name, "continuous") for name in "ab"]), CausalGraph("a; b"))
    assert found["n"] == 30_000
    assert [t["n"] for t in found["tests"]] == [20_000]
    assert "tested on a random sample of 20 000 of 30 000 rows" in found["text"]
