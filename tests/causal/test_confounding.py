from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from cfaug.causal import CausalGraph, confounding, cramers_v, diagnose, normalised_mutual_information
from cfaug.data import Attribute, Schema, open_source
from cfaug.errors import DataError, UsageError

SCHEMA = Schema(
    [Attribute("y", values=("0", "1")), Attribute("a", values=("r", "g")), Attribute("t", "continuous")],
    target="y",
    spurious=["a", "t"],
)


def table(pairs: list[tuple[int, str]]) -> pd.DataFrame:
    return pd.DataFrame(pairs, columns=["y", "a"]).assign(t=np.arange(len(pairs), dtype=float))


def test_it_is_zero_for_independent_and_one_for_equivalent() -> None:
    even = table([(0, "r"), (0, "g"), (1, "r"), (1, "g")] * 5)
    same = table([(0, "r"), (1, "g")] * 10)
    for measure in (normalised_mutual_information, cramers_v):
        assert measure(even, SCHEMA, "y", "a") == pytest.approx(0, abs=1e-9)
        assert measure(same, SCHEMA, "y", "a") == pytest.approx(1)
        assert measure(table([(0, "r")] * 8), SCHEMA, "y", "a") == 0.0
        assert measure(same, SCHEMA, "a", "t") == measure(same, SCHEMA, "t", "a")


def test_it_agrees_with_the_formula() -> None:
    t = table([(0, "r")] * 6 + [(0, "g")] * 2 + [(1, "r")] * 1 + [(1, "g")] * 7)
    p = np.array([[6, 2], [1, 7]]) / 16
    x, y = p.sum(1), p.sum(0)
    info = (p * np.log(p / np.outer(x, y))).sum()
    expected = info / np.sqrt((x * np.log(x)).sum() * (y * np.log(y)).sum())
    assert normalised_mutual_information(t, SCHEMA, "y", "a") == pytest.approx(expected)


def test_the_coloured_digits_are_confounded_in_training_only() -> None:
    train, test = open_source("digits", split="train"), open_source("digits", split="test")
    before, after = (confounding(d.table, d.schema) for d in (train, test))
    for name in ("foreground", "background"):
        assert before[name] > 0.6
        assert after[name] < 0.02


def test_diagnosis_is_plain_data_with_groups_and_paths() -> None:
    t = table([(0, "r")] * 5 + [(0, "g")] * 1 + [(1, "g")] * 6)
    found = diagnose(t, SCHEMA, CausalGraph("a -> y; t <-> y"))
    assert json.loads(json.dumps(found)) == found
    a = found["spurious"]["a"]
    assert a["smallest_group"] == {"name": "y=0,a=g", "n": 1}
    assert a["empty_groups"] == ["y=1,a=r"]
    assert (a["safe"], a["path"]) == (False, ["a", "y"])
    assert found["spurious"]["t"]["safe"]
    assert any("not safe" in line and "a -> y" in line for line in found["text"])
    assert diagnose(t, SCHEMA)["spurious"]["a"]["safe"]
    with pytest.raises(UsageError, match="target"):
        confounding(t, Schema(SCHEMA.attributes))


def test_figures_are_of_the_rows_that_have_both_values_and_say_how_many() -> None:
    t = table([(0, "r")] * 6 + [(0, "g")] * 2 + [(1, "r")] * 1 + [(1, "g")] * 7)
    holes = t.copy()
    holes["a"] = [None if i % 4 == 0 else a for i, a in enumerate(t["a"])]
    whole = holes.dropna()
    found, expected = diagnose(holes, SCHEMA), diagnose(whole, SCHEMA)
    assert json.loads(json.dumps(found)) == found
    assert (found["n"], found["missing"]) == (16, {"a": 4})
    assert found["spurious"]["a"] == expected["spurious"]["a"]
    assert (found["spurious"]["a"]["n"], found["spurious"]["t"]["n"]) == (12, 16)
    assert "a: 4 of 16 rows have no value (25 %)" in found["text"]
    assert any(line.endswith("of the 12 rows that have a, the others are in no group") for line in found["text"])
    assert (expected["missing"], len(expected["text"])) == ({}, 3)
    with pytest.raises(DataError, match="both 'y' and 'a', got none in 16 rows"):
        cramers_v(t.assign(a=None), SCHEMA, "y", "a")
    with pytest.raises(DataError, match="'y', row '0'"):
        confounding(t.assign(y=[None, *t["y"][1:]]), SCHEMA)
