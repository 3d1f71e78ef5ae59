"""Accuracies worked out by hand, the results contract to the letter, and the table in the order it is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cfaug.data import Attribute, Grouper, Schema
from cfaug.errors import DataError, UsageError
from cfaug.judge import (
    adjusted_average_accuracy,
    attribute_gaps,
    average_accuracy,
    format_table,
    gap_closed,
    group_accuracy,
    read_results,
    result_row,
    summarise,
    worst_group_accuracy,
    write_results,
)

TARGETS = ["a", "a", "a", "a", "b", "b"]
SAID = ["a", "a", "b", "a", "b", "a"]
GROUPS = ["a,x", "a,x", "a,y", "a,y", "b,x", "b,x"]


def test_group_accuracy_by_hand() -> None:
    table = group_accuracy(TARGETS, SAID, GROUPS, names=["b,y", "a,x"])
    assert table == {
        "b,y": {"n": 0, "accuracy": None},
        "a,x": {"n": 2, "accuracy": 1.0},
        "a,y": {"n": 2, "accuracy": 0.5},
        "b,x": {"n": 2, "accuracy": 0.5},
    }
    assert average_accuracy(TARGETS, SAID) == pytest.approx(4 / 6)


def test_the_worst_group_is_not_empty_and_has_its_interval() -> None:
    table = {"empty": {"n": 0, "accuracy": None}, "bad": {"n": 10, "accuracy": 0.3}, "good": {"n": 5, "accuracy": 0.8}}
    worst = worst_group_accuracy(table)
    assert (worst.name, worst.n, worst.accuracy) == ("bad", 10, 0.3)
    # Wilson, z = 1.959964, n = 10, 3 hits: centre and half width by the formula
    z, n, p = 1.959963984540054, 10, 0.3
    centre, half = (
        (p + z * z / 2 / n) / (1 + z * z / n),
        z * np.sqrt(p * (1 - p) / n + z * z / 4 / n / n) / (1 + z * z / n),
    )
    assert worst.ci95 == pytest.approx((centre - half, centre + half), abs=1e-9)
    assert worst_group_accuracy(TARGETS, SAID, GROUPS).accuracy == 0.5
    tie = {"small": {"n": 2, "accuracy": 0.0}, "large": {"n": 9, "accuracy": 0.0}}
    assert worst_group_accuracy(tie).name == "large"


def test_several_spurious_attributes_are_several_columns() -> None:
    frame = pd.DataFrame({"fore": GROUPS, "back": ["a/1", "a/2", "a/1", "a/1", "b/1", "b/1"]})
    table = group_accuracy(TARGETS, SAID, frame)
    assert table["a/1"] == {"n": 3, "accuracy": pytest.approx(2 / 3)}
    assert sum(row["n"] for row in table.values()) == 12
    with pytest.raises(UsageError, match="in two columns"):
        group_accuracy(TARGETS, SAID, pd.DataFrame({"one": GROUPS, "two": GROUPS}))


def test_the_adjusted_average_weights_groups_as_in_training() -> None:
    groups = {"g1": {"n": 4, "accuracy": 1.0}, "g2": {"n": 4, "accuracy": 0.5}, "g3": {"n": 0, "accuracy": None}}
    train = pd.DataFrame({"fore": ["g1"] * 6 + ["g2"] * 2 + ["g3"] * 2})
    assert adjusted_average_accuracy(groups, train) == pytest.approx((6 * 1.0 + 2 * 0.5) / 8)
    groups |= {"h1": {"n": 1, "accuracy": 0.0}}
    train["back"] = "h1"
    assert adjusted_average_accuracy(groups, train) == pytest.approx((7 / 8 + 0.0) / 2)


def test_result_row_is_the_contract(rows: list[dict[str, Any]]) -> None:
    row = rows[0]
    assert list(row) == [
        "recipe", "method", "seed", "split", "n", "average_accuracy", "adjusted_average_accuracy",
        "worst_group_accuracy", "worst_group", "worst_group_ci95", "groups", "train_seconds", "selection",
    ]  # fmt: skip
    assert row["n"] == 1500
    assert len(row["groups"]) == 5 * 5 * 2
    assert row["groups"][row["worst_group"]]["accuracy"] == row["worst_group_accuracy"]
    low, high = row["worst_group_ci95"]
    assert low <= row["worst_group_accuracy"] <= high
    json.dumps(row, allow_nan=False)


def test_an_empty_group_is_listed_and_takes_no_part() -> None:
    schema = Schema([Attribute("y", values=("0", "1")), Attribute("c", values=("r", "b"))], "y", ["c"])
    train = pd.DataFrame({"y": list("0011"), "c": list("rbrb")}, index=list("abcd"))
    grouper, test = Grouper.fit(train, schema), train.iloc[:3]
    row = result_row(
        recipe="r", method="erm", seed=0, targets=[0, 0, 1], predictions=[0, 0, 1], table=test, grouper=grouper,
        train_table=train, train_seconds=1, selection="last epoch",
    )  # fmt: skip
    assert row["groups"]["y=1,c=b"] == {"n": 0, "accuracy": None}
    assert row["worst_group_accuracy"] == 1.0


def test_results_are_replaced_as_a_whole_and_read_back(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    path = tmp_path / "results.jsonl"
    write_results(path, rows[:1])
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_results(path, [*rows, {"accuracy": float("nan")}])
    assert len(read_results(path)) == 1
    write_results(path, rows)
    assert read_results(path) == rows
    path.write_text('{"recipe": "r"}\n')
    with pytest.raises(DataError, match="line 1: expected the field 'method'"):
        read_results(path)
    path.write_text("half a l")
    with pytest.raises(DataError, match="line 1: expected a JSON object"):
        read_results(path)
    with pytest.raises(DataError, match="run the train stage first"):
        read_results(tmp_path / "none.jsonl")


def test_summary_order_means_and_gap(rows: list[dict[str, Any]]) -> None:
    summaries = summarise(rows)
    assert [s.method for s in summaries] == ["erm", "group_resampling", "group_dro", "null_control", "cfaug", "oracle"]
    ours = summaries[4]
    values = [row["worst_group_accuracy"] for row in rows if row["method"] == "cfaug"]
    assert ours.worst == pytest.approx((np.mean(values), min(values), max(values)))
    assert ours.gap_closed == pytest.approx(gap_closed(ours.worst[0], summaries[0].worst[0], summaries[5].worst[0]))
    assert summaries[0].gap_closed is None
    assert gap_closed(0.5, 0.9, 0.9) is None
    text = format_table(rows).splitlines()
    assert text[1].startswith("erm ")
    assert text[-1].startswith("oracle ")
    gaps = attribute_gaps(rows, ["foreground", "background"])
    assert gaps["erm"]["foreground"] < gaps["erm"]["background"]
    assert format_table([]) == "no results yet"


def test_refusals() -> None:
    with pytest.raises(UsageError, match="one prediction per target"):
        group_accuracy(["a"], ["a", "b"], ["g"])
    with pytest.raises(UsageError, match="group labels"):
        group_accuracy(["a"], ["a"], ["g", "h"])
    with pytest.raises(DataError, match="at least one sample"):
        average_accuracy([], [])
    with pytest.raises(DataError, match="got none"):
        worst_group_accuracy({"g": {"n": 0, "accuracy": None}})
    with pytest.raises(UsageError, match="predictions and groups"):
        worst_group_accuracy(["a"])
