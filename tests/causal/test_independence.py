"""The test is calibrated where a linear one is not, and sees what it should."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from scipy.stats import binomtest, chi2_contingency, kstest, norm

from cfaug.causal.audit.independence import MOST_ROWS, Independence, IndependenceTest, independence
from cfaug.data import Attribute, Schema
from cfaug.errors import DataError

Array = npt.NDArray[np.float64]
KINDS = {"continuous": 0, "binary": 2, "four levels": 4}
PAIRS = [  # each unordered pair of kinds once
    (a, b) for i, a in enumerate(KINDS) for b in list(KINDS)[i:]
]


def curve(z: Array) -> Array:
    """What z does to both columns: no straight line comes near it."""
    return np.sin(2 * z) + z**2 / 2 - 0.5


def column(kind: str, centre: Array, rng: np.random.Generator, wide: Array | float = 1.0) -> npt.NDArray[np.object_]:
    """A column about ``centre`` with heavy or skewed noise, or levels whose log-odds follow ``centre``."""
    levels = KINDS[kind]
    if levels:
        scores = np.outer(centre, np.arange(levels) - levels / 2) / 2 + rng.gumbel(size=(len(centre), levels))
        return scores.argmax(1).astype(str).astype(object)
    noise = rng.standard_t(3, len(centre)) if rng.random() < 0.5 else rng.exponential(1, len(centre)) - 1
    return (centre + wide * noise).astype(object)


def schema(**kinds: str) -> Schema:
    return Schema([Attribute(n, "continuous" if k == "continuous" else "categorical") for n, k in kinds.items()])


def worlds(
    a: str, b: str, condition: str, n: int, many: int, effect: float = 0.0
) -> Iterator[tuple[pd.DataFrame, Schema]]:
    """Tables of x and y that both follow z, and nothing else unless ``effect`` puts a part of x into y."""
    for seed in range(many):
        rng = np.random.default_rng([seed, 11])
        z = rng.standard_normal(n)
        if condition == "discrete":
            z = np.round(np.clip(z, -1.5, 1.5))
        shape = np.zeros(n) if condition == "nothing" else 1.5 * curve(z)
        x = column(a, shape, rng)
        push = np.unique(x, return_inverse=True)[1] - 0.5 if KINDS[a] else x.astype(float)
        y = column(b, shape + effect * push, rng)
        z_kind = "levels" if condition == "discrete" else "continuous"
        yield pd.DataFrame({"x": x, "y": y, "z": z}), schema(x=a, y=b, z=z_kind)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "condition", ["continuous", pytest.param("nothing", marks=SLOW), pytest.param("discrete", marks=SLOW)]
)
@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_p_values_are_uniform_when_nothing_depends(a: str, b: str, condition: str) -> None:
    given = [] if condition == "nothing" else ["z"]
    p = [independence(t, s, "x", "y", given).p_value for t, s in worlds(a, b, condition, 800, 40)]
    assert kstest(p, "uniform").pvalue > 1e-3
    assert binomtest(int(np.sum(np.array(p) < 0.05)), 40, 0.05, "greater").pvalue > 1e-3


def test_a_linear_test_rejects_in_those_tables() -> None:
    """So the one above is worth something: a partial correlation takes the curve for dependence."""
    wrong = 0
    for t, _ in worlds("continuous", "continuous", "continuous", 1000, 20):
        x, y, z = (t[n].to_numpy(float) for n in "xyz")
        design = np.stack([np.ones_like(z), z], axis=1)
        r, s = (v - design @ np.linalg.lstsq(design, v, rcond=None)[0] for v in (x, y))
        wrong += 2 * norm.sf(abs(np.arctanh(np.corrcoef(r, s)[0, 1])) * np.sqrt(1000 - 4)) < 0.05
    assert wrong == 20


def test_noise_that_shrinks_with_the_condition_is_no_dependence() -> None:
    p = []
    for seed in range(30):
        rng = np.random.default_rng([seed, 5])
        z = rng.standard_normal(2000)
        x, y = (column("continuous", 3 * np.abs(z), rng, 3 * np.exp(-2 * np.abs(z))) for _ in range(2))
        table = pd.DataFrame({"x": x, "y": y, "z": z})
        p.append(independence(table, schema(x="continuous", y="continuous", z="continuous"), "x", "y", ["z"]).p_value)
    assert kstest(p, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("condition", ["nothing", "continuous", "discrete"])
@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_dependence_is_seen(a: str, b: str, condition: str) -> None:
    given = [] if condition == "nothing" else ["z"]
    effect = 0.8
    p = [independence(t, s, "x", "y", given).p_value for t, s in worlds(a, b, condition, 1500, 3, effect)]
    assert np.median(p) < 1e-3


def test_a_dependence_without_slope_is_seen() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(1000)
    s = schema(x="continuous", y="continuous")
    assert independence(pd.DataFrame({"x": x, "y": x**2 + rng.standard_normal(1000)}), s, "x", "y").p_value < 1e-6
    louder = pd.DataFrame({"x": x, "y": rng.standard_normal(1000) * np.exp(x / 2)})
    assert independence(louder, s, "x", "y").p_value < 1e-6


def test_a_collider_opens_and_a_chain_closes() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal(3000), rng.choice(["u", "v"], 3000)
    c = a + (b == "u") + 0.5 * rng.standard_normal(3000)
    d = np.where(c + 0.3 * rng.standard_normal(3000) > 0, "high", "low")
    test = IndependenceTest(
        pd.DataFrame({"a": a, "b": b, "c": c, "d": d}), schema(a="continuous", b="2", c="continuous", d="2")
    )
    assert test.test("a", "b").p_value > 0.01
    assert test.test("a", "b", ["c"]).p_value < 1e-6
    assert test.test("a", "b", ["d"]).p_value < 1e-6
    assert test.test("a", "d").p_value < 1e-6
    assert test.test("a", "d", ["c"]).p_value > 0.01


@settings(max_examples=25, deadline=None)
@drawn(st.integers(0, 10**6), st.integers(2, 5), st.integers(2, 4))
def test_without_a_condition_it_is_pearsons_chi_square(seed: int, rows: int, columns: int) -> None:
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"a": rng.integers(0, rows, 300), "b": rng.integers(0, columns, 300)})
    found = independence(table, schema(a="k", b="k"), "a", "b")
    expected = chi2_contingency(pd.crosstab(table["a"], table["b"]), correction=False)
    assert found.dof == expected.dof
    assert found.statistic == pytest.approx(expected.statistic, rel=1e-8)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-6)
    assert found.n == 300


@settings(max_examples=15, deadline=None)
@drawn(st.integers(0, 10**6), st.sampled_from(PAIRS))
def test_order_and_scale_do_not_matter(seed: int, kinds: tuple[str, str]) -> None:
    rng = np.random.default_rng(seed)
    z, w = rng.standard_normal(400), rng.integers(0, 3, 400)
    table = pd.DataFrame({"x": column(kinds[0], z, rng), "y": column(kinds[1], z * w, rng), "z": z, "w": w})
    s = schema(x=kinds[0], y=kinds[1], z="continuous", w="k")
    found = independence(table, s, "x", "y", ["z", "w"])
    assert independence(table, s, "y", "x", ["w", "z"]).p_value == pytest.approx(found.p_value, rel=1e-6, abs=1e-12)
    other = table.assign(z=np.exp(3 * z))
    if kinds[0] == "continuous":
        other["x"] = table["x"].astype(float) ** 3
    assert independence(other, s, "x", "y", ["z", "w"]).p_value == pytest.approx(found.p_value, rel=1e-6, abs=1e-12)


def test_rows_that_lack_a_named_value_are_left_out() -> None:
    table, s = next(worlds("continuous", "binary", "continuous", 600, 1, 0.1))
    rng = np.random.default_rng(1)
    table.loc[rng.random(600) < 0.3, "y"] = None
    table["other"] = np.where(rng.random(600) < 0.5, np.nan, 1.0)
    wide = Schema([*s, Attribute("other", "continuous")])
    test = IndependenceTest(table, wide)
    assert test.test("x", "y", ["z"]).n == table["y"].notna().sum()
    assert test.test("x", "z").n == 600  # other questions keep their rows
    # ranks of x and z are of all rows that have them, so the two answers are close and not the same
    alone = independence(table.dropna(subset=["y"]), s, "x", "y", ["z"])
    assert test.test("x", "y", ["z"]).p_value == pytest.approx(alone.p_value, abs=0.05)


def test_what_says_nothing_is_independent_of_everything() -> None:
    rng = np.random.default_rng(0)
    z = rng.standard_normal(500)
    table = pd.DataFrame({"a": z, "k": 1.0, "c": "x", "z": z + 3.0, "s": np.where(z > 0, "+", "-"), "y": z})
    table["y"] += rng.standard_normal(500)
    test = IndependenceTest(table, schema(a="continuous", k="continuous", c="k", z="continuous", s="k", y="continuous"))
    for name in "kc":
        assert test.test("y", name).p_value == 1
        assert test.test("y", name, ["z"]).p_value == 1
        assert test.test("y", "a", [name]).p_value == pytest.approx(test.test("y", "a").p_value, rel=1e-6)
    assert test.test("a", "y", ["z"]).p_value == 1  # a is z on another scale
    assert test.test("s", "y", ["z"]).p_value > 0.01  # a threshold of z: separable, and the regression stays finite
    few = IndependenceTest(table.head(20), schema(a="continuous", y="continuous", z="continuous"))
    assert few.test("a", "y", ["z"]) == Independence(1.0, 0.0, 0.0, 20)  # no degree of freedom: not asked
    some = IndependenceTest(table.head(60), schema(a="continuous", y="continuous", z="continuous"))
    assert some.test("a", "y").dof == 9
    assert some.test("a", "y", ["z"]) == Independence(
        1.0, 0.0, 0.0, 60
    )  # enough without the condition, too few with it
    balanced = pd.DataFrame({"c": list("xxyy") * 10, "s": list("+-") * 20})
    assert independence(balanced, schema(c="k", s="k"), "c", "s") == Independence(1.0, 0.0, 1.0, 40)  # asked, and it is


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["continuous", "categorical", "ordinal"])
def test_an_attribute_without_any_value_says_nothing(kind: str) -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"a": rng.standard_normal(300), "b": rng.choice(list("pq"), 300), "e": np.full(300, np.nan)})
    s = Schema([Attribute("a", "continuous"), Attribute("b"), Attribute("e", kind)], target="b")
    test = IndependenceTest(table, s)
    for a, b, given in (("a", "e", ()), ("e", "b", ("a",)), ("a", "b", ("e",))):
        assert test.test(a, b, given) == Independence(1.0, 0.0, 0.0, 0)
    assert test.test("a", "b").n == 300
    table["b"] = table["b"].where(table.index < 150)
    table["a"] = table["a"].where(table.index >= 150)  # no row has both
    assert IndependenceTest(table, s).test("a", "b") == Independence(1.0, 0.0, 0.0, 0)


def test_values_outside_the_schema_are_refused_missing_ones_not() -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"x": rng.standard_normal(90), "y": rng.choice(list("pq"), 90).astype(object)})
    s = Schema([Attribute("x", "continuous"), Attribute("y", values=("p", "q"))], target="y")
    for name, wrong in (("x", np.inf), ("y", "r")):
        holed = table.copy()
        holed.loc[7, name] = None  # the target's as well: only a fit needs it
        assert IndependenceTest(holed, s).test("x", "y").n == 89
        holed.loc[7, name] = wrong
        with pytest.raises(DataError, match=f"column '{name}', row '7': expected "):
            IndependenceTest(holed, s)


# --- the sample of a large table


def test_a_large_table_is_sampled_at_random_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the first 20 000 rows x and y are the same thing, in the other 80 000 nothing joins them."""
    rng = np.random.default_rng(0)
    n = 5 * MOST_ROWS
    x, y = rng.standard_normal(n), rng.standard_normal(n)
    table = pd.DataFrame({"x": x, "y": np.where(np.arange(n) < MOST_ROWS, x, y), "z": rng.choice(list("pqr"), n)})
    s = schema(x="continuous", y="continuous", z="k")
    test = IndependenceTest(table, s)
    assert test.sampled == "tested on a random sample of 20 000 of 100 000 rows"
    found = test.test("x", "y")
    assert found.n == MOST_ROWS
    assert test.test("x", "z").n == MOST_ROWS
    assert IndependenceTest(table, s).test("x", "y") == found  # the same rows again
    assert IndependenceTest(table.head(MOST_ROWS), s).sampled == ""
    monkeypatch.setattr("cfaug.causal.audit.independence.MOST_ROWS", n)
    whole = IndependenceTest(table, s)
    assert (whole.test("x", "y").n, whole.sampled) == (n, "")
    assert found.statistic / MOST_ROWS == pytest.approx(whole.test("x", "y").statistic / n, rel=0.15)


def test_a_few_labels_in_a_large_table_are_all_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """400 labels among 30 000 rows; a sample of the rows alone would leave 13 of them."""
    monkeypatch.setattr("cfaug.causal.audit.independence.MOST_ROWS", 1000)
    rng = np.random.default_rng(0)
    n = 30_000
    x, z = rng.standard_normal(n), rng.standard_normal(n)
    labelled = rng.permutation(n)[:400]
    y = pd.Series(np.full(n, None), dtype=object)
    y[labelled] = np.where(x[labelled] + rng.standard_normal(400) > 0, "p", "q")
    table = pd.DataFrame({"x": x, "y": y, "z": np.where(rng.random(n) < 0.2, np.nan, z)})
    test = IndependenceTest(table, schema(x="continuous", y="k", z="continuous"))
    assert test.test("x", "y").n == 400
    assert test.test("x", "y").p_value < 1e-6
    assert test.test("x", "y", ["z"]).n == int((table["y"].notna() & table["z"].notna()).sum())
    assert test.test("x", "z").n == 1000
    assert (
        test.sampled
        == "each test is on a random sample of at most 1 000 of the rows, 30 000 in all, that have its values"
    )


def test_a_sampled_question_is_of_all_rows_that_can_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """x is large where y is missing; a question about x alone with z must see both kinds of row in their true shares."""
    monkeypatch.setattr("cfaug.causal.audit.independence.MOST_ROWS", 1000)
    rng = np.random.default_rng(0)
    n = 40_000
    absent = rng.random(n) < 0.05
    z = rng.standard_normal(n)
    z[rng.random(n) < 0.01] = np.nan
    table = pd.DataFrame({"x": np.where(absent, "big", "small"), "y": np.where(absent, np.nan, 1.0 + z), "z": z})
    test = IndependenceTest(table, schema(x="k", y="continuous", z="continuous"))
    column, there = test.column("x"), np.flatnonzero(test.column("z").present)[:1000]
    assert test.test("x", "z").n == 1000
    share = column.features[there].mean()
    assert min(share, 1 - share) == pytest.approx(0.05, abs=0.025)


def test_rare_and_many_levels_do_not_upset_it() -> None:
    p = []
    for seed in range(40):
        rng = np.random.default_rng([seed, 2])
        shares = 0.75 ** np.arange(30)
        table = pd.DataFrame({n: rng.choice(30, 800, p=shares / shares.sum()) for n in "ab"})
        p.append(independence(table, schema(a="k", b="k"), "a", "b").p_value)
    assert kstest(p, "uniform").pvalue > 1e-3


def test_ordinal_columns_of_many_ranks_enter_by_their_order() -> None:
    rng = np.random.default_rng(0)
    rank = rng.integers(0, 9, 2000)
    table = pd.DataFrame({"r": rank, "x": 0.15 * rank + rng.standard_normal(2000)})
    ordinal = Schema([Attribute("r", "ordinal", values=tuple(map(str, range(9)))), Attribute("x", "continuous")])
    found = independence(table, ordinal, "r", "x")
    assert found.p_value < 1e-6
    assert found.dof == 9  # three polynomials each
