"""Imputation by abduction: draws from p(missing | observed), against Bayes' rule by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, kstest

from cfaug.causal import SCM, CausalGraph, do
from cfaug.data import Attribute, Schema
from cfaug.errors import DataError

N = 3000

#   a -> b -> d      a, b two values;  d = x continuous, mean 2 [b = 1];   p(b = 1 | a) = .2, .7


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    a = rng.random(N) < 0.4
    b = rng.random(N) < np.where(a, 0.7, 0.2)
    d = 2.0 * b + rng.normal(size=N)
    return pd.DataFrame({"a": a.astype(int), "b": b.astype(int), "d": d}, index=[f"k{i}" for i in range(N)])


@pytest.fixture(scope="module")
def scm(table: pd.DataFrame) -> SCM:
    schema = Schema([Attribute("a"), Attribute("b"), Attribute("d", "continuous")])
    return SCM(CausalGraph("a -> b; b -> d"), schema, {"d": "linear"}).fit(table)


def rows(a: str | None, b: str | None, d: float, n: int = 2000) -> pd.DataFrame:
    return pd.DataFrame({"a": [a] * n, "b": [b] * n, "d": [d] * n}, index=[f"q{i}" for i in range(n)])


def share(found: pd.Series, expected: float) -> None:
    hits = int((found == "1").sum())
    assert binomtest(hits, len(found), expected).pvalue > 1e-4, (hits / len(found), expected)


def test_a_missing_cause_is_drawn_by_bayes_rule(scm: SCM) -> None:
    def p(name: str, value: str, parents: dict[str, str]) -> float:
        table = pd.DataFrame({k: [v] for k, v in parents.items()}, index=["q"])
        return float(np.exp(scm.mechanism(name).log_prob(pd.Series([value], index=["q"]), table))[0])

    def density(d: float, b: str) -> float:
        table = pd.DataFrame({"b": [b]}, index=["q"])
        return float(np.exp(scm.mechanism("d").log_prob(pd.Series([d], index=["q"]), table))[0])

    for d in (0.0, 1.2, 2.5):
        # b from its parent and its child
        one, none = (p("b", v, {"a": "1"}) * density(d, v) for v in "10")
        share(scm.impute(rows("1", None, d), seed=4)["b"], one / (one + none))
        # a from its child alone: d is below b, and b is known
        one, none = (p("a", v, {}) * p("b", "1", {"a": v}) for v in "10")
        share(scm.impute(rows(None, "1", d), seed=5)["a"], one / (one + none))
        # both, from d: the sum over the four cases
        joint = {(a, b): p("a", a, {}) * p("b", b, {"a": a}) * density(d, b) for a in "01" for b in "01"}
        both = scm.impute(rows(None, None, d), seed=6)
        share(both["a"], (joint["1", "0"] + joint["1", "1"]) / sum(joint.values()))
        share(both["b"], (joint["0", "1"] + joint["1", "1"]) / sum(joint.values()))


def test_a_missing_effect_is_drawn_from_its_mechanism(scm: SCM) -> None:
    found = scm.impute(rows("1", "1", np.nan), seed=1)["d"]
    assert kstest(found, "norm", args=(2, 1)).pvalue > 1e-3


def test_observed_values_are_untouched_and_batches_do_not_matter(scm: SCM, table: pd.DataFrame) -> None:
    holes = scm.schema.canonical(table)
    rng = np.random.default_rng(1)
    holes = scm.schema.canonical(holes.mask(rng.random(holes.shape) < 0.3))
    whole = scm.impute(holes, seed=2)
    assert whole.notna().all(axis=None)
    for name in holes:
        there = holes[name].notna()
        assert whole[name][there].equals(holes[name][there])
    some = holes.iloc[100:140]
    pd.testing.assert_frame_equal(scm.impute(some, seed=2), whole.iloc[100:140], rtol=1e-12)
    assert scm.impute(table, seed=9).equals(scm.schema.canonical(table))


def test_what_was_filled_in_is_said_and_takes_part_in_the_counterfactual(scm: SCM) -> None:
    holes = rows(None, "1", 2.0, 50)
    noise = scm.abduct(holes, seed=3, impute=True)
    assert noise.imputed is not None
    assert noise.imputed["a"].all()
    assert not noise.imputed[["b", "d"]].any(axis=None)
    assert np.isfinite(noise.values["a"]).all()
    assert scm.abduct(holes, seed=3).imputed is None
    cf = scm.counterfactual(holes, do(a="0"), seed=3, impute=True)
    assert cf.notna().all(axis=None)
    left = scm.counterfactual(holes, do(a="0"), seed=3)
    assert left["b"].isna().all()  # a's own value is not known, so neither is whether b would move


def test_a_district_tells_about_its_missing_member() -> None:
    rng = np.random.default_rng(0)
    h = rng.integers(0, 3, N)
    a = np.where(rng.random(N) < 0.9, h, rng.integers(0, 3, N))
    table = pd.DataFrame({"y": h, "a": a, "x": h + rng.normal(0, 0.3, N)}, index=[f"k{i}" for i in range(N)])
    schema = Schema([Attribute("y"), Attribute("a"), Attribute("x", "continuous")])
    scm = SCM(CausalGraph("y <-> a; y <-> x"), schema).fit(table)
    holes = pd.DataFrame({"y": ["2"] * 500, "a": [None] * 500, "x": [2.0] * 500}, index=[f"q{i}" for i in range(500)])
    found = scm.impute(holes, seed=0)["a"]
    assert abs((found == "2").mean() - 0.933) < 0.05  # not the marginal third
    holes["a"], holes["y"], holes["x"] = "1", None, np.nan
    found = scm.impute(holes, seed=0)
    assert (found["y"] == "1").mean() > 0.85
    assert abs(found["x"].median() - 1) < 0.15


def test_the_target_is_never_filled_in(scm: SCM, table: pd.DataFrame) -> None:
    schema = Schema(scm.schema.attributes, target="b")
    own = SCM(CausalGraph("a -> b; b -> d"), schema, {"d": "linear"}).fit(table)
    with pytest.raises(DataError, match="never the target's"):
        own.impute(rows("1", None, 0.0, 3))
