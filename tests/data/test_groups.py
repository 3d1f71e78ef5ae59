from __future__ import annotations

import json

import pandas as pd
import pytest

from cfaug.data import Attribute, Grouper, Schema
from cfaug.errors import DataError, UsageError

SCHEMA = Schema(
    [
        Attribute("digit", values=("0", "1")),
        Attribute("colour", values=("red", "blue")),
        Attribute("age", "continuous"),
    ],
    target="digit",
    spurious=["colour", "age"],
)
TABLE = pd.DataFrame({"digit": [0, 1] * 4, "colour": ["red"] * 8, "age": range(8)})


def test_groups_are_target_by_one_spurious_attribute_at_a_time() -> None:
    g = Grouper.fit(TABLE, SCHEMA)
    labels = g.labels(TABLE)
    assert list(labels) == ["colour", "age"]
    assert labels["colour"].iloc[:2].tolist() == ["digit=0,colour=red", "digit=1,colour=red"]
    assert labels["age"].tolist() == [f"digit={i % 2},age=q{i // 2 + 1}" for i in range(8)]
    assert g.cross(TABLE).iloc[3] == "digit=1,colour=red,age=q2"
    assert g.names("colour") == tuple(f"digit={d},colour={c}" for d in "01" for c in ("red", "blue"))  # empty ones too
    assert len(g.all_names) == 4 + 8


def test_quartiles_are_those_of_the_training_table() -> None:
    g = Grouper.fit(TABLE, SCHEMA)
    test = pd.DataFrame({"digit": [0, 0, 0], "colour": ["blue"] * 3, "age": [-100, 2, 100]})
    assert g.levels(test, "age").tolist() == ["q1", "q2", "q4"]
    again = Grouper.from_json(json.loads(json.dumps(g.to_json())))
    assert again == g
    assert again.labels(test).equals(g.labels(test))


def test_groups_need_target_and_spurious_and_known_values() -> None:
    with pytest.raises(UsageError, match="target and at least one spurious"):
        Grouper.fit(TABLE, Schema(SCHEMA.attributes, target="digit"))
    g = Grouper.fit(TABLE, SCHEMA)
    with pytest.raises(DataError, match="'green'"):
        g.labels(TABLE.assign(colour="green"))
    with pytest.raises(UsageError, match="did you mean colour"):
        g.names("color")


def test_a_value_on_a_quartile_belongs_below_it() -> None:
    nine = pd.DataFrame({"digit": 0, "colour": "red", "age": range(9)})  # quartiles exactly 2, 4, 6
    assert Grouper.fit(nine, SCHEMA).levels(nine, "age").tolist() == ["q1"] * 3 + ["q2"] * 2 + ["q3"] * 2 + ["q4"] * 2


def test_a_training_row_without_a_value_is_in_no_group_where_that_is_allowed() -> None:
    holes = TABLE.assign(colour=[None, *["red"] * 7], age=[0.0, float("nan"), *range(2, 8)])
    g = Grouper.fit(holes, SCHEMA)
    assert dict(g.edges)["age"] == tuple(holes["age"].dropna().quantile([0.25, 0.5, 0.75]))
    labels = g.labels(holes, missing=True)
    assert labels["colour"].tolist() == [None, *g.labels(TABLE)["colour"][1:]]
    assert labels["age"].isna().tolist() == [False, True, *[False] * 6]
    assert g.cross(holes, missing=True).isna().tolist() == [True, True, *[False] * 6]
    assert g.cross(holes, missing=True)[2:].tolist() == g.cross(holes[2:]).tolist()
    for use in (g.labels, g.cross):
        with pytest.raises(DataError, match="'colour', row '0': expected one of red, blue, got no value; fill it in"):
            use(holes)
    with pytest.raises(DataError, match=r"'age'.*none in 8 rows"):
        Grouper.fit(TABLE.assign(age=None), Schema([*list(SCHEMA)[:2], Attribute("age", "continuous", None, "", 0, 1)],
                                                   "digit", ["age"]))  # fmt: skip
