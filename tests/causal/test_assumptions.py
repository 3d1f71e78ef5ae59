"""The card says what was assumed of the graph, the mechanisms and the rows, and nothing that is not so."""

from __future__ import annotations

import json
import logging
import re

import numpy as np
import pandas as pd
import pytest

from cfaug.causal import SCM, CausalGraph, FunctionMechanism, Mechanism
from cfaug.causal.audit.assumptions import assumption_card, effect_words, summary
from cfaug.causal.audit.identification import identification
from cfaug.data import Attribute, Schema
from cfaug.errors import UsageError

TEXT = "species <-> background; size -> background; size -> image; background -> image; species -> image"


def table(n: int = 120) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    size = rng.normal(0, 1, n)
    columns = {
        "species": np.where(rng.random(n) < 0.5, "land", "water"),
        "background": np.where(size + rng.normal(0, 1, n) > 0, "lake", "forest"),
        "size": size,
        "weather": np.where(rng.random(n) < 0.5, "sun", "rain"),
    }
    out = pd.DataFrame(columns, index=[f"k{i}" for i in range(n)]).astype({"background": object})
    out.iloc[:20, out.columns.get_loc("size")] = np.nan
    out.iloc[10:25, out.columns.get_loc("background")] = None
    return out


def model(text: str = TEXT) -> SCM:
    attributes = [Attribute("species"), Attribute("background"), Attribute("size", "continuous"), Attribute("weather")]
    size = FunctionMechanism(
        "size",
        version="1",
        predict=lambda noise, parents: noise[:, 0],
        abduct=lambda values, parents: values.to_numpy()[:, None],
    )
    mechanisms: dict[str, str | Mechanism] = {"size": size}  # a flow would take seconds to fit
    return SCM(CausalGraph(text), Schema(attributes, "species", ["background", "weather"]), mechanisms)


@pytest.fixture(scope="module")
def fitted() -> SCM:
    return model().fit(table())


def test_every_field_of_a_real_model(fitted: SCM) -> None:
    card = assumption_card(fitted, table())
    assert json.loads(json.dumps(card)) == card
    assert card["graph"] == str(fitted.graph)
    assert CausalGraph(card["graph"]) == fitted.graph
    assert card["edges"] == [list(e) for e in fitted.graph.edges]
    assert card["hidden"]["pairs"] == [["background", "species"]]
    assert card["unconfirmed"] == []
    assert card["outside"] == ["weather"]
    assert set(card["mechanisms"]) == {"species", "background", "size", "weather"}
    for name, one in card["mechanisms"].items():
        mechanism = fitted.mechanism(name)
        assert one["kind"] == mechanism.kind
        assert one["convention"] == mechanism.convention
        assert one["parents"] == list(mechanism.parents)
        assert one["parameters"] == mechanism.parameters
        assert (one["parameters"] > 0) == (one["kind"] == "categorical")
    # rows 0..19 lack size and 10..24 the background, which needs both
    assert {n: m["rows"] for n, m in card["mechanisms"].items()} == {
        "species": 120, "background": 95, "size": 100, "weather": 120,
    }  # fmt: skip
    assert card["missing"]["counts"] == {"background": 15, "size": 20}
    assert card["label"]["spurious"] == {
        "background": {"safe": True, "path": None},
        "weather": {"safe": True, "path": None},
    }
    rows = {(r["do"], r["outcome"]): r["status"] for r in card["identification"]}
    assert rows["size", "background"] == "convention"
    assert rows["background", "species"] == "unchanged"
    assert rows["background", "image"] == "not_identified"
    assert [g["pairs"] for g in card["summary"]] == [[["size", "background"]]]


def test_the_markdown_says_everything_once(fitted: SCM) -> None:
    card = assumption_card(fitted, table())
    text = card["text"]
    assert len(text.split()) < 600  # one page
    for one in card["conventions"]:
        assert text.count(one["convention"].replace("|", "\\|")) + text.count(one["convention"]) >= 1
        assert text.count(one["convention"]) <= 1
    for word in (
        "`background <-> species`",
        "weather",
        "background in 15 rows",
        "do(background): yes",
        "Pan and Bareinboim",
    ):
        assert word in text
    # a bar in a text, as in p(a | b), would split a cell: every row of a table has as many as its head
    cells = [len(re.split(r"(?<!\\)\|", line)) - 2 for line in text.splitlines() if line.startswith("|")]
    assert cells == [5] * 6 + [4] * 3


def test_without_a_table_there_are_no_counts(fitted: SCM) -> None:
    card = assumption_card(fitted)
    assert card["mechanisms"]["background"]["rows"] == 95  # the fit knows it
    assert card["missing"]["counts"] == {}
    assert "Missing values" not in card["text"]


def test_an_unsafe_act_and_an_unconfirmed_arrow_are_said_aloud(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    scm = model("background -> species; size ->? background; species -> image").fit(table())
    card = assumption_card(scm, table())
    assert card["unconfirmed"] == ["size ->? background"]
    assert card["label"]["spurious"]["background"] == {"safe": False, "path": ["background", "species"]}
    assert "do(background): NO, background -> species" in card["text"]
    assert "not confirmed: `size ->? background`" in card["text"]


def test_a_graph_without_arrows_needs_no_table() -> None:
    scm = SCM(CausalGraph("species -> image; weather -> image"), Schema([Attribute("species"), Attribute("weather")]))
    card = assumption_card(scm.fit(table()[["species", "weather"]]))
    assert card["summary"] == []
    assert card["label"] is None  # there is no target
    assert "No attribute follows from a different one" in card["text"]


def test_an_unfitted_model_has_no_card() -> None:
    with pytest.raises(UsageError, match="not fitted"):
        assumption_card(model())


def test_the_summary_joins_rows_of_one_reason() -> None:
    class Flow:
        kind, monotone = "spline_flow", True

    names = "xmy"
    groups = summary(identification(CausalGraph("x -> m -> y; x <-> y"), dict.fromkeys(names, Flow())))
    assert [(g["status"], g["pairs"]) for g in groups] == [
        ("identified", [["x", "m"]]),
        ("not_identified", [["m", "y"], ["x", "y"]]),
    ]
    assert [effect_words(g) for g in groups] == ["yes", "yes"]
    bow = summary(identification(CausalGraph("x -> m; x <-> m"), dict.fromkeys("xm", Flow())))
    assert [effect_words(g) for g in bow] == ["no"]
    assert effect_words({"pairs": [["a", "b"], ["c", "b"]], "effects": [["c", "b"]]}) == "only b under do(c)"
