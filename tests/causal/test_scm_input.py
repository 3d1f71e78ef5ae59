"""What an SCM refuses, in one line, and what it warns of, with numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cfaug.causal import SCM, CausalGraph, do, scale, shift
from cfaug.data import Attribute, Schema
from cfaug.errors import CfaugError

N = 60
SCHEMA = Schema([Attribute("a"), Attribute("x", "continuous")])
GRAPH = CausalGraph("a -> x")


def rows(n: int = N) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 2, n)
    return pd.DataFrame({"a": np.array(["r", "g"])[a], "x": a + rng.normal(size=n), "note": "free"})


@pytest.fixture(scope="module")
def scm() -> SCM:
    return SCM(GRAPH, SCHEMA, {"x": "linear"}).fit(rows())


WRONG: list[tuple[Callable[[SCM], Any], str]] = [
    (lambda scm: SCM("a -> x", SCHEMA), "got str and Schema"),  # type: ignore[arg-type]
    (lambda scm: SCM(GRAPH, ["a", "x"]), "got CausalGraph and list"),  # type: ignore[arg-type]
    (lambda scm: SCM(GRAPH, SCHEMA, {"x": 42}), "a name (categorical, ordinal"),  # type: ignore[dict-item]
    (lambda scm: scm.act("a=r"), "got 'a=r'"),  # type: ignore[arg-type]
    (lambda scm: scm.act({"a": "r"}), "got {'a': 'r'}"),  # type: ignore[arg-type]
    (lambda scm: scm.act(None), "got None"),  # type: ignore[arg-type]
    (lambda scm: scm.act([do(), "a=r"]), "got 'a=r'"),  # type: ignore[list-item]
    (lambda scm: scm.sample(2, intervention=[do()]), "under one do(...)"),  # type: ignore[arg-type]
    (lambda scm: scm.sample(1.5), "whole number of rows"),  # type: ignore[arg-type]
    (lambda scm: scm.sample(-1), "whole number of rows"),
    (lambda scm: scm.counterfactual(rows(), do(), chunk=10.5), "chunks of at least 1 row"),  # type: ignore[arg-type]
    (lambda scm: SCM(GRAPH, SCHEMA).fit(rows(), seed=-1), "a seed is a whole number"),
    (lambda scm: SCM(GRAPH, SCHEMA).fit(rows(), seed=1.5), "a seed is a whole number"),  # type: ignore[arg-type]
    (lambda scm: SCM(GRAPH, SCHEMA).fit(rows(), weights=np.ones(3)), "expected 60 weights"),
    (lambda scm: SCM(GRAPH, SCHEMA).fit(rows(), weights=-np.ones(N)), "expected 60 weights"),
    (lambda scm: scm.counterfactual(rows(), do(x=scale(1e308))), "do(x=scale(1e+308)): expected finite numbers, got"),
    (lambda scm: scm.counterfactual(rows(), do(x=shift(1e308), a="r")), None),
]


@pytest.mark.parametrize("case", range(len(WRONG)))
def test_wrong_use_is_one_line(scm: SCM, case: int) -> None:
    call, word = WRONG[case]
    if word is None:  # large, but a number
        assert np.isfinite(call(scm)["x"]).all()
        return
    with pytest.raises(CfaugError) as e:
        call(scm)
    assert word in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "index", [pd.RangeIndex(7, 7 + N), pd.Index([float(i) for i in range(N)]), pd.Index(["k"] * N)]
)
def test_what_comes_back_stands_beside_what_came(scm: SCM, index: pd.Index) -> None:
    table = rows().set_index(index)
    for chunk in (10, 1000):
        assert scm.counterfactual(table, do(a="r"), chunk=chunk).index.equals(index)
    holes = table.assign(x=table["x"].where(np.arange(N) % 3 > 0))
    assert scm.impute(holes).index.equals(index)
    assert list(scm.impute(holes).columns) == ["a", "x"]
    noise = scm.abduct(table)
    assert scm.act(do(a="r")).predict(noise).index.equals(index)
    if index.is_unique:
        table["cf"] = scm.counterfactual(table, do(a="r"))["x"]
        assert table["cf"].notna().all()
    # the draws go by the key's text, whatever type it has
    texts = rows().set_index(index.map(str))
    assert (scm.impute(holes).to_numpy() == scm.impute(texts.assign(x=holes["x"].to_numpy())).to_numpy()).all()


def test_fitting_again_forgets_the_first_table(scm: SCM) -> None:
    other = rows()
    other["x"] = 100 * other["x"] + 50
    other.loc[0, "a"] = "new"
    twice = SCM(GRAPH, SCHEMA, {"x": "linear"}).fit(rows()).fit(other)
    assert twice.digest == SCM(GRAPH, SCHEMA, {"x": "linear"}).fit(other).digest


def test_levels_that_pass_for_numbers_and_weights_of_zero_are_told_apart(caplog: pytest.LogCaptureFixture) -> None:
    table = pd.DataFrame({"a": ["r"] * 10 + ["g"] * 40, "x": [1.0, 2.0] * 25})
    schema = Schema([Attribute("a", values=("r", "g", "b", "y")), SCHEMA["x"]])
    weights = np.repeat([0.0, 1.0], [10, 40])
    SCM(GRAPH, schema, {"x": "linear"}).fit(table, weights=weights)
    said = [r.getMessage() for r in caplog.records]
    assert "a has one value in all 40 rows: nothing says what another value of it would do" in said
    assert "a=r (and 2 more values): no row to learn from; it gets a small probability" in said
    assert any(line.startswith("x is continuous but has 2 different values in 40 rows") for line in said)
