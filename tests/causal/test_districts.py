"""Hidden common causes: dependent noises in samples, cut by do(), and no part of a counterfactual."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kstest

from cfaug.causal import SCM, CausalGraph, do
from cfaug.causal.audit.confounding import normalised_mutual_information as nmi
from cfaug.causal.row_random import row_seeds
from cfaug.data import Attribute, Schema

N = 4000

#   hidden h:  y <-> a,  y <-> x        y 4 values, a 4 values, x continuous;   a -> c,   free alone


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    h = rng.integers(0, 4, N)
    keep = rng.random(N) < 0.9
    a = np.where(keep, h, rng.integers(0, 4, N))
    return pd.DataFrame(
        {
            "y": [f"y{v}" for v in h],
            "a": [f"a{v}" for v in a],
            "x": h + rng.normal(0, 0.5, N),
            "c": [f"c{int(v + (rng.random() < 0.2)) % 4}" for v in a],
            "free": [f"f{v}" for v in rng.integers(0, 3, N)],
        },
        index=[f"k{i}" for i in range(N)],
    )


@pytest.fixture(scope="module")
def scm(table: pd.DataFrame) -> SCM:
    schema = Schema([Attribute(n, "continuous" if n == "x" else "categorical") for n in table.columns])
    return SCM(CausalGraph("y <-> a; y <-> x; a -> c; free -> image; c -> image"), schema).fit(table)


def test_samples_keep_the_dependence_that_a_hidden_cause_makes(table: pd.DataFrame, scm: SCM) -> None:
    sample = scm.sample(N, seed=3)
    schema = scm.schema
    for a, b in (("y", "a"), ("y", "x"), ("a", "x"), ("a", "c")):
        real = nmi(table, schema, a, b)
        assert real > 0.3
        assert abs(nmi(sample, schema, a, b) - real) < 0.05, (a, b)
    assert nmi(sample, schema, "free", "y") < 0.005
    for name in ("y", "a", "c", "free"):
        shares = [t[name].value_counts(normalize=True).sort_index() for t in (table, sample)]
        assert (shares[0] - shares[1]).abs().max() < 0.03, name
    assert sample["x"].nunique() == N  # no row of the training table twice


def test_do_cuts_the_hidden_cause_of_what_it_sets_only(table: pd.DataFrame, scm: SCM) -> None:
    sample = scm.sample(N, 3, do(a="a1"))
    assert (sample["a"] == "a1").all()
    # p(y | do(a)) = p(y), though p(y = y1 | a = a1) is above 0.8
    assert (table["y"][table["a"] == "a1"] == "y1").mean() > 0.8
    assert abs((sample["y"] == "y1").mean() - (table["y"] == "y1").mean()) < 0.03
    assert nmi(sample, scm.schema, "y", "x") > 0.5  # their tie does not pass through a
    assert abs((sample["c"] == "c1").mean() - 0.8) < 0.05  # a's child follows a


def test_the_noises_of_the_bank_are_the_mechanisms_own(scm: SCM) -> None:
    seeds = row_seeds(5, pd.RangeIndex(N))
    for k, (name, law) in enumerate((("y", "gumbel_r"), ("a", "gumbel_r"), ("x", "norm"))):
        noise = scm.fitted.districts.draw(name, scm.mechanism(name), seeds, k)
        for column in noise.T:
            assert kstest(column, law).statistic < 0.035, name  # 4 000 draws of 4 000 rows
    assert "free" not in scm.fitted.districts
    assert "c" not in scm.fitted.districts


def test_a_counterfactual_keeps_the_hidden_cause_of_its_row(table: pd.DataFrame, scm: SCM) -> None:
    cf = scm.counterfactual(table, do(a="a1"), seed=0)
    factual = scm.schema.canonical(table)
    assert cf["y"].equals(factual["y"])
    assert cf["x"].equals(factual["x"])


def test_attributes_never_seen_together_stay_independent(table: pd.DataFrame) -> None:
    holes = table[["y", "a"]].copy()
    holes.iloc[: N // 2, 0] = None
    holes.iloc[N // 2 :, 1] = None
    scm = SCM(CausalGraph("y <-> a"), Schema([Attribute("y"), Attribute("a")])).fit(holes)
    assert nmi(scm.sample(N, 0), scm.schema, "y", "a") < 0.01
