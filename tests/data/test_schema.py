from __future__ import annotations

import json
import math
import pickle

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfaug.data import Attribute, Schema
from cfaug.errors import DataError, UsageError


def one_line(error: pytest.ExceptionInfo[BaseException], *words: str) -> None:
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text


@pytest.fixture
def schema() -> Schema:
    return Schema(
        [
            Attribute("species", values=["land", "water"]),
            Attribute("background"),
            Attribute("size", "ordinal", values=["s", "m", "l"]),
            Attribute("age", "continuous", unit="years"),
        ],
        target="species",
        spurious=["background"],
    )


@pytest.fixture
def table() -> pd.DataFrame:
    return pd.DataFrame(
        {"species": ["land", "water", "land"], "background": [10, 9, 10], "size": ["s", "l", "m"], "age": [1, 2, 6]},
        index=["a", "b", "c"],
    )


def test_fit_completes_a_schema(schema: Schema, table: pd.DataFrame) -> None:
    assert not schema.fitted
    fitted = schema.fit(table)
    assert fitted.fitted
    assert not schema.fitted
    assert fitted["background"].values == ("9", "10")  # numbers sort as numbers
    assert fitted["size"].values == ("s", "m", "l")  # what was given stays
    assert fitted["age"].mean == 3.0
    assert fitted["age"].std == pytest.approx(math.sqrt(14 / 3))
    assert (len(fitted), "age" in fitted, "agee" in fitted) == (4, True, False)
    assert fitted.names == tuple(a.name for a in fitted)


def test_encoding_has_the_documented_shape_and_blocks(schema: Schema, table: pd.DataFrame) -> None:
    fitted = schema.fit(table)
    x = fitted.encode(table)
    assert x.dtype == np.float32
    assert x.shape == (3, fitted.width()) == (3, 6)
    assert fitted.blocks() == {
        "species": slice(0, 2),
        "background": slice(2, 4),
        "size": slice(4, 5),
        "age": slice(5, 6),
    }
    assert x[:, :5].tolist() == [[1, 0, 0, 1, -1], [0, 1, 1, 0, 1], [1, 0, 0, 1, 0]]
    assert x[:, 5].mean() == pytest.approx(0, abs=1e-6)
    assert x[:, 5].std() == pytest.approx(1, abs=1e-6)
    assert fitted.encode(table, ["age", "species"]).shape == (3, 3)
    assert fitted.encode(table, []).shape == (3, 0)


def test_a_missing_category_is_a_zero_block_but_a_missing_number(schema: Schema, table: pd.DataFrame) -> None:
    fitted = schema.fit(table)
    holed = table.astype({"background": float}).copy()
    holed.loc["b", "background"] = math.nan
    x = fitted.encode(holed)
    assert x[1, 2:4].tolist() == [0, 0]
    assert x[0, 2:4].tolist() == [0, 1]  # 10.0 is still category "10"
    with pytest.raises(DataError) as e:
        fitted.encode(table.assign(age=[1, None, 2]))
    one_line(e, "'age'", "'b'", "no value")


def test_canonical_tables_hold_text_and_float64(schema: Schema, table: pd.DataFrame) -> None:
    canonical = schema.canonical(table.assign(other=1))
    assert list(canonical) == list(schema.names)
    assert canonical["background"].tolist() == ["10", "9", "10"]
    assert canonical["age"].dtype == np.float64
    assert canonical.index.tolist() == ["a", "b", "c"]
    assert schema.canonical(canonical).equals(canonical)
    assert schema.canonical(table.reset_index(drop=True)).index.tolist() == ["0", "1", "2"]
    assert schema.canonical(pd.concat([table, table])).shape == (6, 4)  # a batch may hold a source twice


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"species": ["land", "sea", "land"]}, ("'species'", "'b'", "'sea'", "land, water")),
        ({"age": [1, "old", 3]}, ("'age'", "'b'", "'old'", "finite")),
        ({"age": [1, math.inf, 3]}, ("'age'", "'b'", "inf", "finite")),
        ({"age": [1, None, 3]}, ("'age'", "'b'", "no value")),
        ({"background": ["", "9", "10"]}, ("'background'", "'a'", "no value")),
    ],
)
def test_a_value_outside_the_schema_is_one_line(
    schema: Schema, table: pd.DataFrame, change: dict[str, list[object]], words: tuple[str, ...]
) -> None:
    fitted = schema.fit(table)
    with pytest.raises(DataError) as e:
        fitted.check(table.assign(**change))
    one_line(e, *words)


def test_a_missing_column_gets_near_names(schema: Schema, table: pd.DataFrame) -> None:
    with pytest.raises(DataError) as e:
        schema.fit(table.rename(columns={"background": "backgroud"}))
    one_line(e, "'background'", "backgroud")
    with pytest.raises(UsageError) as u:
        schema["backgruond"]
    one_line(u, "'backgruond'", "background")
    with pytest.raises(DataError, match="one without rows"):
        schema.fit(table.iloc[:0])


def test_check_value_accepts_the_tables_values_only(schema: Schema, table: pd.DataFrame) -> None:
    fitted = schema.fit(table)
    assert fitted.check_value("background", 9) == "9"
    assert fitted.check_value("background", np.float64(9)) == "9"
    assert fitted.check_value("age", "3") == 3.0
    for name, value, word in [("species", "sea", "land, water"), ("age", math.nan, "finite"), ("age", None, "finite")]:
        with pytest.raises(UsageError) as e:
            fitted.check_value(name, value)
        one_line(e, name, word)


def test_index_gives_codes_and_refuses_what_has_none(schema: Schema, table: pd.DataFrame) -> None:
    fitted = schema.fit(table)
    codes = fitted.index("species", table["species"])
    assert codes.dtype == np.int64
    assert codes.tolist() == [0, 1, 0]
    with pytest.raises(DataError):
        fitted.index("species", ["land", None])


def test_a_schema_is_a_value(schema: Schema, table: pd.DataFrame) -> None:
    fitted = schema.fit(table)
    again = Schema.from_json(json.loads(json.dumps(fitted.to_json())))
    assert again == fitted
    assert again.digest == fitted.digest != schema.digest
    assert hash(again) == hash(fitted)
    assert pickle.loads(pickle.dumps(fitted)) == fitted
    with pytest.raises(UsageError, match="a schema written by cfaug"):
        Schema.from_json({"attributes": [{"nome": "x"}]})


@given(st.lists(st.floats(-1e6, 1e6).map(lambda x: round(x, 3)), min_size=1, max_size=20))
def test_encode_standardises_whatever_the_numbers_are(numbers: list[float]) -> None:
    table = pd.DataFrame({"x": numbers})
    fitted = Schema([Attribute("x", "continuous")]).fit(table)
    x = fitted.encode(table)
    assert np.isfinite(x).all()
    assert abs(x.mean()) < 1e-3
    constant = max(numbers) - min(numbers) <= 1e-9 * max(map(abs, numbers))
    assert constant or x.std() == pytest.approx(1, abs=1e-3)


def test_cells_may_be_missing_but_never_in_the_target(schema: Schema, table: pd.DataFrame) -> None:
    holes = table.assign(
        background=[None, *table["background"].iloc[1:]],
        size=[*table["size"].iloc[:-1], ""],
        age=[float("nan"), *table["age"].iloc[1:]],
    )
    fitted = schema.fit(holes, missing=schema.names)
    assert fitted["background"].values == ("9", "10")
    assert fitted["age"].mean == pytest.approx(table["age"].iloc[1:].astype(float).mean())
    assert fitted["age"].std == pytest.approx(table["age"].iloc[1:].astype(float).std(ddof=0))
    fitted.check(holes, missing=("background", "size", "age"))
    with pytest.raises(DataError) as error:
        fitted.check(holes, missing=("size", "age"))
    one_line(error, "'background'", repr(str(holes.index[0])), "no value", "only training rows may lack values")
    with pytest.raises(DataError) as error:  # the target's cell counts, whoever asks
        schema.fit(holes.assign(species=[None, *table["species"].iloc[1:]]), missing=schema.names)
    one_line(error, "'species'", "no value", "never the target's")
    with pytest.raises(DataError) as error:  # what is there must still be right
        fitted.check(holes.assign(age=[float("inf"), *table["age"].iloc[1:]]), missing=schema.names)
    one_line(error, "'age'", "a finite number", "inf")


def test_a_column_without_values_teaches_nothing(schema: Schema, table: pd.DataFrame) -> None:
    for name in ("background", "age"):
        with pytest.raises(DataError) as error:
            schema.fit(table.assign(**{name: None}), missing=schema.names)
        one_line(error, f"'{name}'", "at least one row", f"{len(table)} rows", "fill in")


def test_missing_values_are_zeros_where_that_is_said(schema: Schema, table: pd.DataFrame) -> None:
    fitted = schema.fit(table)
    holes = table.assign(size=[None, *table["size"].iloc[1:]], age=[None, *table["age"].iloc[1:]])
    for name in ("size", "age"):
        with pytest.raises(DataError):
            fitted.encode(holes, [name])
    code = fitted.encode(holes, missing=True)
    blocks = fitted.blocks()
    assert code[0, blocks["size"]] == 0
    assert code[0, blocks["age"]] == 0
    np.testing.assert_array_equal(code[1:], fitted.encode(table)[1:])
    with pytest.raises(DataError):
        fitted.encode(table.assign(size="xl"), missing=True)


# --- what comes in
def test_the_order_of_words_is_never_guessed() -> None:
    sizes = Schema([Attribute("size", "ordinal")])
    with pytest.raises(DataError) as error:
        sizes.fit(pd.DataFrame({"size": ["small", "large", "medium", "small"]}))
    one_line(error, "'size' is ordinal and its values are words (large, medium, small): expected their order")
    one_line(error, "Attribute(..., values=[...])", "attributes.values in the recipe")
    with pytest.raises(DataError, match=r"its values include words \(nan\)"):
        sizes.fit(pd.DataFrame({"size": ["1", "nan", "2"]}))
    assert sizes.fit(pd.DataFrame({"size": ["10", "9", "-1.5", None]}), ["size"])["size"].values == ("-1.5", "9", "10")
    given = Schema([Attribute("size", "ordinal", values=("small", "large"))])
    assert given.fit(pd.DataFrame({"size": ["small"]})) == given
    # a nan among numbers has no place among them: the order may not depend on where it stands
    assert {
        Schema([Attribute("c")]).fit(pd.DataFrame({"c": c}))["c"].values
        for c in (["2", "nan", "10"], ["nan", "10", "2"])
    } == {("10", "2", "nan")}


def test_a_number_that_float32_cannot_hold_is_refused(schema: Schema, table: pd.DataFrame) -> None:
    fitted = schema.fit(table)
    for number, shown in ((1e39, "1e\\+39"), (-1e300, "-1e\\+300")):
        huge = table.assign(age=[1.0, number, 2.0])
        fitted.check(huge)  # finite, and yet
        with pytest.raises(DataError, match=rf"^column 'age', row 'b': .* 32 bits, got {shown}; .*do\(\.\.\.\)$"):
            fitted.encode(huge)
    assert np.isfinite(fitted.encode(table.assign(age=1e30))).all()
    with pytest.raises(DataError, match=r"^column 'age': .* spread .* got -1e\+300 to 1e\+300; .*unit$") as error:
        schema.fit(table.assign(age=[-1e300, 0.0, 1e300]))
    one_line(error)


CELLS = [True, False, 1, 0, 1.0, 0.0, -0.0, 2.5, "1", "True", "", None, float("nan"), np.int8(1), np.True_, pd.NA]


@given(st.lists(st.sampled_from(range(len(CELLS))), max_size=8))
def test_the_text_of_a_cell_does_not_depend_on_the_others(which: list[int]) -> None:
    alone = ["True", "False", "1", "0", "1", "0", "0", "2.5", "1", "True", None, None, None, "1", "True", None]
    column = pd.Series([CELLS[i] for i in which], dtype=object)
    assert Schema([Attribute("c")]).canonical(column.to_frame("c"))["c"].tolist() == [alone[i] for i in which]


def test_the_text_of_a_cell_does_not_depend_on_the_dtype() -> None:
    one = Schema([Attribute("c")])
    for column in (
        pd.Series([1, None, 10], dtype="Int64"),
        pd.Series([1.0, None, 10.0]),
        pd.Series([1, None, 10], dtype="category"),
        pd.Series(["1", None, "10"], dtype="str"),
        pd.Series(["1", "", "10"], dtype="category"),
        pd.Series([1, None, "10"], dtype=object),
    ):
        assert one.canonical(column.to_frame("c"))["c"].tolist() == ["1", None, "10"]
    assert one.canonical(pd.DataFrame({"c": [True, False]}))["c"].tolist() == ["True", "False"]


def test_canonical_numbers_are_the_tables_own_copy() -> None:
    table = pd.DataFrame({"x": [1.0, 2.0]})
    canonical = Schema([Attribute("x", "continuous")]).canonical(table)
    canonical.loc["0", "x"] = 9.0
    assert table["x"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("kind", ["categorical", "continuous"])
@pytest.mark.parametrize("cell", [[1, 2], (1, 2), {"a": 1}, {1}, 1 + 2j, b"1", np.zeros(2)], ids=repr)
def test_a_cell_is_one_value(kind: str, cell: object) -> None:
    column = pd.Series([1.0, None, cell], index=["a", "b", "c"], dtype=object)
    with pytest.raises(DataError) as error:
        Schema([Attribute("v", kind)]).canonical(column.to_frame("v"))
    one_line(error, "column 'v', row 'c'", "one text or number", type(cell).__name__, "correct the table")


def test_what_is_no_table_is_refused(schema: Schema, table: pd.DataFrame) -> None:
    fitted = schema.fit(table)
    for wrong in ([1, 2], table.to_dict(), table.to_numpy(), table["age"], None):
        for use in (fitted.fit, fitted.check, fitted.canonical, fitted.encode):
            with pytest.raises(UsageError) as u:
                use(wrong)  # type: ignore[operator]
            one_line(u, "pandas DataFrame", f"got a {type(wrong).__name__}", "pd.DataFrame(")
    twice = pd.concat([table, table[["age"]]], axis=1)
    with pytest.raises(DataError) as error:
        fitted.check(twice)
    one_line(error, "one column 'age'", "got 2 of that name", "rename")
    complex_numbers = table.assign(age=table["age"].to_numpy() + 1j)
    with pytest.raises(DataError, match="got the complex"):
        fitted.check(complex_numbers)
    with pytest.raises(DataError) as error:  # whole numbers have no end, floats have
        fitted.check(table.assign(age=pd.Series([1, 10**400, 2], index=table.index, dtype=object)))
    one_line(error, "'age', row 'b'", "a finite number", "...")
    assert len(str(error.value)) < 200


def test_categories_that_look_like_holes_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    table = pd.DataFrame({"miss": ["NA", "a", "b"] * 6, "lost": ["null"] * 18, "fine": ["none", "", "na"] * 6})
    schema = Schema([Attribute("miss"), Attribute("lost", values=("null",)), Attribute("fine")])
    for _ in range(3):
        fitted = schema.fit(table, ["fine"])
    assert fitted["miss"].values == ("NA", "a", "b")  # only told: a country code may be NA
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        (
            "WARNING",
            "column 'miss' holds the text 'NA' in 6 rows: a category, not a missing value; leave the cell empty if it is "
            "missing",
        )
    ]
