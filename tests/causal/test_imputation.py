"""Imputation by abduction: draws from p(missing | observed), against Bayes' rule by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, kstest, norm

from cfaug.causal import SCM, CausalGraph, do
from cfaug.causal.draws import row_seeds
from cfaug.causal.imputation import impute
from cfaug.causal.mechanisms import CategoricalMechanism, FunctionMechanism, Mechanism
from cfaug.causal.noise import Districts
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
    found = scm.impute(holes, seed=0)
    assert abs((found["a"] == "2").mean() - 0.933) < 0.05  # not the marginal third
    holes["a"], holes["y"], holes["x"] = "1", None, np.nan
    found = scm.impute(holes, seed=0)
    assert (found["y"] == "1").mean() > 0.85
    assert abs(found["x"].median() - 1) < 0.15


def test_the_target_is_never_filled_in(table: pd.DataFrame) -> None:
    own = SCM(CausalGraph("a -> b"), Schema([Attribute("a"), Attribute("b")], target="b")).fit(table[["a", "b"]])
    with pytest.raises(DataError, match="never the target's"):
        own.impute(rows("1", None, 0.0, 3)[["a", "b"]])


#   v missing, N(0, 1);   w1 .. wk = v + spread e_i observed:   v | w ~ N(sum w / (k + spread^2), spread^2 / (k + spread^2))


def straight(name: str, parents: Sequence[str] = (), spread: float = 1.0, slope: float = 1.0) -> FunctionMechanism:
    def expected(table: pd.DataFrame) -> Any:
        return slope * table[list(parents)].to_numpy(dtype=np.float64).sum(axis=1)

    def noise(values: pd.Series, table: pd.DataFrame) -> Any:
        return ((values.to_numpy(dtype=np.float64) - expected(table)) / spread)[:, None]

    return FunctionMechanism(
        name,
        parents,
        predict=lambda u, table: expected(table) + spread * u[:, 0],
        abduct=noise,
        log_prob=lambda values, table: norm.logpdf(noise(values, table)[:, 0]) - np.log(spread),
        version="1",
        monotone=True,
    )


def filled(mechanisms: Sequence[Mechanism], table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    named = {m.name: m for m in mechanisms}
    return impute(named, Districts((), {}), table[list(named)], row_seeds(seed, table.index))


def children(count: int, spread: float, n: int) -> tuple[list[Mechanism], pd.DataFrame]:
    rng = np.random.default_rng(count)
    v = rng.normal(size=n)
    columns = {f"w{i}": v + spread * rng.normal(size=n) for i in range(count)}
    index = pd.Index([f"q{i}" for i in range(n)])
    return [straight("v"), *(straight(w, ["v"], spread) for w in columns)], pd.DataFrame(
        {"v": np.nan, **columns}, index
    )


def standard_normal(z: Any) -> None:
    z = np.asarray(z, dtype=np.float64)
    assert kstest(z, "norm").pvalue > 1e-3
    assert abs(z.mean()) < 4 / np.sqrt(len(z))
    assert abs(z.std() - 1) < 0.05


@pytest.mark.parametrize(("count", "spread"), [(1, 0.01), (1, 0.05), (1, 0.3), (5, 0.3), (5, 0.01)])
def test_an_informative_child_keeps_its_noise_and_the_closed_form(
    count: int, spread: float, caplog: pytest.LogCaptureFixture
) -> None:
    mechanisms, table = children(count, spread, 2000)
    found = filled(mechanisms, table)
    for m in mechanisms[1:]:
        standard_normal(m.abduct(found[m.name], found[["v"]], np.zeros(len(found), dtype=np.uint64)))
    w = table.drop(columns="v")
    mean, variance = w.sum(axis=1) / (count + spread**2), spread**2 / (count + spread**2)
    standard_normal((found["v"] - mean) / np.sqrt(variance))
    assert "rough" not in caplog.text


def test_two_missing_causes_of_one_child_lie_on_its_ridge() -> None:
    #   a, b missing;  w = a + b + 0.02 e:   a - b ~ N(0, 2) whatever w is, a + b | w as above with variance 2
    rng = np.random.default_rng(0)
    w = np.sqrt(2) * rng.normal(size=1500) + 0.02 * rng.normal(size=1500)
    table = pd.DataFrame({"a": np.nan, "b": np.nan, "w": w}, index=[f"q{i}" for i in range(len(w))])
    found = filled([straight("a"), straight("b"), straight("w", ["a", "b"], 0.02)], table)
    standard_normal((found["a"] - found["b"]) / np.sqrt(2))
    precision = 1 / 2 + 1 / 0.02**2
    standard_normal((found["a"] + found["b"] - w / 0.02**2 / precision) * np.sqrt(precision))


def category(values: Sequence[str], shares: Sequence[float]) -> CategoricalMechanism:
    schema = Schema([Attribute("c", values=tuple(values))])
    counts = np.round(np.array(shares) * 10_000).astype(int)
    column = pd.DataFrame({"c": np.repeat(list(values), counts)})
    table = schema.canonical(column.set_index(column.index.map("k{}".format)))
    return CategoricalMechanism(schema, "c").fit(table["c"], table[[]])


def shifted(parents: Sequence[str], spread: float) -> FunctionMechanism:
    """w = (c is the last category) * 3 + the other parents + spread e"""
    plain = straight("w", [p for p in parents if p != "c"], spread)

    def moved(table: pd.DataFrame) -> Any:
        return 3.0 * (table["c"] == "z").to_numpy()

    return FunctionMechanism(
        "w",
        parents,
        predict=lambda u, table: plain.predict(u, table) + moved(table),
        abduct=lambda values, table: plain.abduct(values - moved(table), table, np.zeros(0, dtype=np.uint64)),
        log_prob=lambda values, table: plain.log_prob(values - moved(table), table),
        version="1",
        monotone=True,
    )


def test_a_category_and_a_number_hidden_behind_one_informative_child() -> None:
    #   c -> w <- v, both missing: two narrow modes, v = w and v = w - 3
    mechanisms: list[Mechanism] = [category("az", [0.6, 0.4]), straight("v"), shifted(["c", "v"], 0.02)]
    w = 1.2
    table = pd.DataFrame({"c": None, "v": np.nan, "w": w}, index=[f"q{i}" for i in range(1000)])
    found = filled(mechanisms, table)
    odds = 0.4 * norm.pdf(w - 3, scale=np.hypot(1, 0.02)) / (0.6 * norm.pdf(w, scale=np.hypot(1, 0.02)))
    assert abs((found["c"] == "z").mean() - odds / (1 + odds)) < 0.05
    precision = 1 + 1 / 0.02**2
    left = w - 3.0 * (found["c"] == "z")
    standard_normal((found["v"] - left / 0.02**2 / precision) * np.sqrt(precision))


def test_a_rare_category_is_tried_when_its_child_speaks_for_it() -> None:
    #   p(c = z) = 0.001: 128 draws from the prior seldom hold one, and no weight tells what is not among them
    mechanisms: list[Mechanism] = [category("abz", [0.5, 0.499, 0.001]), shifted(["c"], 0.05)]
    table = pd.DataFrame({"c": None, "w": 3.0}, index=[f"q{i}" for i in range(300)])
    assert (filled(mechanisms, table)["c"] == "z").all()
    # and no more often than it should be where the child says little
    mechanisms = [category("abz", [0.5, 0.4, 0.1]), shifted(["c"], 3.0)]
    table = pd.DataFrame({"c": None, "w": 1.5}, index=[f"q{i}" for i in range(4000)])
    hits = int((filled(mechanisms, table)["c"] == "z").sum())
    assert binomtest(hits, 4000, 0.1).pvalue > 1e-3


def test_rows_that_no_completion_agrees_with_are_counted_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    mechanisms, table = children(1, 0.01, 40)
    table.loc[["q3", "q7"], "w0"] = 1000.0  # no v that is N(0, 1) comes near
    table.loc["q9", "v"] = 0.0  # nothing missing: not counted
    filled(mechanisms, table)
    assert [r.getMessage() for r in caplog.records] == [
        "impute: 2 of 39 rows: no completion tried agrees well with what the row has; their imputed values are rough"
    ]


def test_an_impossible_row_is_filled_in_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    never = FunctionMechanism(
        "w",
        ["c"],
        predict=lambda u, table: np.zeros(len(u)),
        abduct=lambda values, table: values.to_numpy(dtype=np.float64)[:, None],
        log_prob=lambda values, table: np.where(values == 0, 0.0, -np.inf),
        version="1",
    )
    table = pd.DataFrame({"c": [None, None], "w": [1.0, 0.0]}, index=["q0", "q1"])
    mechanisms: list[Mechanism] = [category("az", [0.5, 0.5]), never]
    assert filled(mechanisms, table).notna().all(axis=None)
    assert "impute: 1 of 2 rows" in caplog.text


def test_later_rounds_do_not_depend_on_the_batch_or_its_order() -> None:
    mechanisms = [straight("a"), straight("b"), straight("w", ["a", "b"], 0.02), straight("x", ["b"], 0.1)]
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(700, 4)), columns=list("abwx"), index=[f"q{i}" for i in range(700)])
    table[["a", "b"]] = table[["a", "b"]].mask(rng.random((700, 2)) < 0.6)  # rows lack a, b, or both
    whole = filled(mechanisms, table)
    for some in (table.iloc[::-1], table.iloc[100:130], table[table["b"].notna()]):
        pd.testing.assert_frame_equal(filled(mechanisms, some), whole.loc[some.index], rtol=1e-12)
