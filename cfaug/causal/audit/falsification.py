"""Tests of a graph on a table: does every conditional independence that the graph implies hold among the attributes?

    a _||_ b | given   in every table that the graph can produce, whenever ``given`` m-separates a and b
    corrected p of the i-th smallest of m:  max over j <= i of min(1, (m - j + 1) p_(j))          Holm (1979)

The chance of even one false alarm is at most alpha, however the tests depend on each other. A failing test says that the
graph, or an assumption of the test, is wrong, but not which edge. Where no test fails, nothing is confirmed: a graph that implies
no independence is never contradicted, and a dependence that is too weak for n rows is missed. Not tested: what a graph says beyond
conditional independences (Verma and Pearl 1990), directions that leave every independence as it is, and the image.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cfaug.causal.audit.independence import FEWEST_ROWS, IndependenceTest
from cfaug.causal.graph import CausalGraph, refuse_no_graph
from cfaug.data.schema import Schema
from cfaug.data.table import refuse_no_table
from cfaug.errors import UsageError, shown

MOST_SAID = 8  # independences that hold, in the text
Claim = tuple[str, str, tuple[str, ...]]
"""(a, b, given): a and b are independent given these attributes."""


@dataclass(frozen=True)
class Implied:
    """What a graph implies among some attributes.

    ``claims`` are sorted by the size of ``given``; ``complete`` is False when only one minimal separator per pair is listed.
    ``silent`` are the pairs without an edge that no set of attributes separates.
    """

    claims: tuple[Claim, ...]
    complete: bool
    silent: tuple[tuple[str, str], ...]


def implied(graph: CausalGraph, names: Sequence[str], most: int = 1000) -> Implied:
    """The conditional independences that ``graph`` implies among the attributes ``names``.

    All pairs with all their separating subsets of the other names, when these are at most ``most``; otherwise one minimal
    separator per pair, and of those the first ``most``.
    Raises UsageError for a name that the graph does not have, ``most`` below 1, and for what is not a CausalGraph.
    """
    refuse_no_graph(graph)
    if isinstance(most, bool) or not isinstance(most, int | np.integer) or most < 1:
        raise UsageError(f"most: expected a whole number of tests from 1 up, got {shown(most)}; leave it at 1000")
    for name in names:
        graph.parents(name)
    names = [n for n in graph.attributes if n in set(names)]
    joined = {frozenset(pair) for pair in (*graph.edges, *graph.bidirected)}
    apart = [pair for pair in combinations(names, 2) if frozenset(pair) not in joined]
    separators = {(a, b): _minimal(graph, a, b, names) for a, b in apart}
    silent = tuple(pair for pair in apart if separators[pair] is None)
    open_pairs = [pair for pair in apart if separators[pair] is not None]
    # there are 2^(names - 2) candidates per pair; they are counted before any is enumerated
    if len(open_pairs) * 2 ** max(0, len(names) - 2) <= 8 * most:
        claims = list(islice(_all(graph, open_pairs, names), most + 1))
        if len(claims) <= most:
            return Implied(tuple(sorted(claims, key=_simple_first)), True, silent)
    few = sorted(((a, b, separators[a, b] or ()) for a, b in open_pairs), key=_simple_first)
    return Implied(tuple(few[:most]), False, silent)


def _simple_first(claim: Claim) -> tuple[int, Claim]:
    return len(claim[2]), claim


def _minimal(graph: CausalGraph, a: str, b: str, names: Sequence[str]) -> tuple[str, ...] | None:
    """A separator from which nothing can be left out, or None when there is no separator among ``names``.

    If any set separates, the ancestors of the two among ``names`` do. Sets of ancestors separate as vertices do in one undirected
    graph, so leaving out one at a time ends at a minimal set (van der Zander et al. 2014).
    """
    upstream = {*graph.ancestors(a), *graph.ancestors(b)}
    given = [n for n in names if n in upstream - {a, b}]
    if not graph.separated(a, b, given):
        return None
    for name in tuple(given):
        if graph.separated(a, b, fewer := [n for n in given if n != name]):
            given = fewer
    return tuple(given)


def _all(graph: CausalGraph, pairs: Iterable[tuple[str, str]], names: Sequence[str]) -> Iterator[Claim]:
    for a, b in pairs:
        others = [n for n in names if n not in (a, b)]
        for given in chain.from_iterable(combinations(others, k) for k in range(len(others) + 1)):
            if graph.separated(a, b, given):
                yield a, b, given


def holm(p_values: Sequence[float]) -> npt.NDArray[np.float64]:
    """p values (m,) corrected for all m tests by Holm's step-down (1979): in [0, 1], in the order given."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    out = np.empty_like(p)
    out[order] = np.minimum(1.0, stepped)
    return out


def falsify(
    table: pd.DataFrame, schema: Schema, graph: CausalGraph, alpha: float = 0.05, most: int = 1000
) -> dict[str, Any]:
    """Test on ``table`` what ``graph`` implies, as plain data.

    ``{"n", "alpha", "correction": "holm", "tests": [{"a", "b", "given", "p", "p_corrected", "fails", "n", "decided"}], "failed",
    "tested", "undecided", "complete", "detectable", "silent", "sampled", "text": [lines]}``; tests by p, so failing ones come
    first. ``n`` of a test are the rows that have all its attributes, at most 20 000 of them (``sampled`` says so in words). A test
    is not ``decided`` (p = 1, not counted by the correction) when an attribute is constant in its rows, or follows from the
    condition, or the rows are too few; ``tested`` are the others. ``detectable``: the smallest partial correlation that every
    decided test finds with 80 % power at level alpha / tested; None if no test was decided. Attributes that the graph does not name are not tested.
    Raises UsageError for an ``alpha`` outside (0, 1), a graph that does not fit the schema, and what is not a table, schema or
    graph.
    """
    if isinstance(alpha, bool) or not isinstance(alpha, float | int | np.number) or not 0 < alpha < 1:
        raise UsageError(f"alpha: expected a number between 0 and 1, got {shown(alpha)}; 0.05 is usual")
    refuse_no_table(table)
    refuse_no_graph(graph)
    graph.check(schema)
    names = graph.attributes
    found = implied(graph, names, most)
    tests: list[dict[str, Any]] = []
    shapes: set[tuple[int, float]] = set()
    sampled = ""
    if found.claims:
        run = IndependenceTest(table, Schema([schema[n] for n in names]))
        sampled = run.sampled
        for a, b, given in found.claims:
            one = run.test(a, b, given)
            # a statistic of exactly 0 means that nothing was tested, unless there are rows enough: then the table is balanced
            decided = one.dof > 0 and (one.statistic > 0 or one.n >= FEWEST_ROWS * (one.dof + 1 + len(given)))
            shapes |= {(one.n, one.dof)} if decided else set()
            tests.append(
                {"a": a, "b": b, "given": list(given), "p": float(one.p_value), "n": one.n, "decided": decided}
            )
    for test in tests:
        test |= {"p_corrected": 1.0, "fails": False}
    decided_tests = [t for t in tests if t["decided"]]
    for test, corrected in zip(decided_tests, holm([t["p"] for t in decided_tests])):
        test |= {"p_corrected": float(corrected), "fails": bool(corrected <= alpha)}
    tests.sort(key=lambda t: (t["p"], not t["decided"], len(t["given"])))
    tested, failed = len(decided_tests), sum(t["fails"] for t in tests)
    out: dict[str, Any] = {"n": len(table), "alpha": alpha, "correction": "holm", "tests": tests, "failed": failed}
    out |= {"tested": tested, "undecided": len(tests) - tested, "complete": found.complete}
    out["detectable"] = max(detectable(n, dof, alpha / tested) for n, dof in shapes) if shapes else None
    out["silent"] = [list(pair) for pair in found.silent]
    out["sampled"] = sampled
    return out | {"text": _text(out)}


def detectable(n: int, dof: float, alpha: float) -> float:
    """The correlation r in [0, 1] that a test of ``dof`` degrees of freedom in ``n`` rows finds four times in five.

    The power of a chi-square statistic with noncentrality n r^2, all of the dependence being in what the test looks at; what
    the condition's regressions cost in rows is left out, so with many conditions r is too small.
    """
    from scipy.optimize import brentq
    from scipy.stats import chi2, ncx2

    threshold = chi2.isf(alpha, dof)
    noncentrality = brentq(lambda x: ncx2.sf(threshold, dof, x) - 0.8, 1e-6, 1e6)
    return min(1.0, math.sqrt(float(noncentrality) / n))


def claim_text(test: dict[str, Any]) -> str:
    """A test's claim in words: "a and b are independent given c"."""
    given = f" given {', '.join(test['given'])}" if test["given"] else ""
    return f"{test['a']} and {test['b']} are independent{given}"


def _text(found: dict[str, Any]) -> list[str]:
    tests, failed, tested = found["tests"], found["failed"], found["tested"]
    if not tests:
        lines = ["the graph implies no independence among its attributes: the data cannot contradict it"]
    else:
        which = "" if found["complete"] else " (too many to test all: one separating set per pair)"
        lines = [
            f"the graph implies {len(tests)} independence{'s' * (len(tests) > 1)}{which}; of {tested} tested, "
            f"{failed or 'none'} fail{'s' * (failed < 2)} at alpha {found['alpha']:g} with Holm's correction"
        ]
        lines += [
            f"holds: {claim_text(t)} (p {t['p']:.2g}, n {t['n']})" for t in tests if t["decided"] and not t["fails"]
        ][:MOST_SAID]
        pairs: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for test in (t for t in tests if t["decided"]):
            pairs.setdefault((test["a"], test["b"]), []).append(test)
        for same in (p for p in pairs.values() if p[0]["fails"]):
            worst, fails = same[0], sum(t["fails"] for t in same)
            lines.append(
                f"fails: {claim_text(worst)} (p {worst['p']:.2g}, corrected {worst['p_corrected']:.2g}, n {worst['n']}); "
                f"{fails} of the {len(same)} sets said to separate them {'does' if fails == 1 else 'do'} not"
            )
        if failed:
            lines.append(
                f"there the graph is wrong (chance alone does this to at most {100 * found['alpha']:g} % of right graphs): "
                "look for a missing edge, a missing <-> or a reversed arrow"
            )
        elif tested:
            lines.append("that none fails does not confirm the graph: different graphs imply the same, or less")
        if found["undecided"]:
            lines.append(f"{found['undecided']} could not be tested: too few rows, or an attribute is constant in them")
    if tested:
        lines += [found["sampled"]] if found["sampled"] else []
        rows = [t["n"] for t in tests if t["decided"]]
        n = f"{min(rows)}" if min(rows) == max(rows) else f"{min(rows)} to {max(rows)}"
        lines.append(
            f"each test has {n} rows; a dependence weaker than a partial correlation of about {found['detectable']:.2f} may be missed"
        )
    for a, b in found["silent"]:
        lines.append(
            f"not testable: {a} and {b} have no edge, but no set of attributes separates them (hidden causes); what the graph "
            "says of them, if anything, is a Verma constraint"
        )
    return lines
