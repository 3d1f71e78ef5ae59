from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cfaug.causal import SCM, CausalGraph, Intervention, confounding, diagnose, do
from cfaug.causal.audit.plan_effect import forecast
from cfaug.data import Attribute, Schema
from cfaug.judge.report import ReportData, render_report
from cfaug.offline import balance_groups

Acts = list[tuple[str, Intervention]]
GRAPH = CausalGraph("y <-> a; y -> image; a -> image")
SCHEMA = Schema([Attribute("y"), Attribute("a")], "y", ["a"])
VALUES = "rgbw"


def world(n: int = 1000, rho: float = 0.9, seed: int = 0) -> pd.DataFrame:
    """Four classes; a follows y in a share rho of the rows."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, n)
    a = np.where(rng.random(n) < rho, y, rng.integers(0, 4, n))
    return pd.DataFrame({"y": y, "a": [VALUES[i] for i in a]}, index=[f"k{i}" for i in range(n)])


def fitted(table: pd.DataFrame, graph: CausalGraph = GRAPH, schema: Schema = SCHEMA) -> SCM:
    return SCM(graph, schema).fit(table)


class Copying(SCM):
    """An SCM whose mechanisms are known exactly: ``effect`` is a function of its cause ``a``, and of nothing else."""

    def __init__(self, graph: CausalGraph, schema: Schema, effect: str, of: Mapping[str, str]) -> None:
        super().__init__(graph, schema)
        self.effect, self.of = effect, of

    def counterfactual(
        self, table: pd.DataFrame, intervention: Intervention | Sequence[Intervention], seed: Any = 0
    ) -> pd.DataFrame:
        assert not isinstance(intervention, Intervention)
        rows = []
        for row, act in zip(self.schema.canonical(table).to_dict("records"), intervention):
            follows = {self.effect: self.of[str(act.assignments["a"])]} if "a" in act.assignments else {}
            rows.append(row | follows | dict(act.assignments))
        return pd.DataFrame(rows, index=table.index)


def evenly(table: pd.DataFrame) -> Acts:
    return [(key, do(a=value)) for key in table.index for value in VALUES]


def copying_the_table(table: pd.DataFrame, seed: int = 1) -> Acts:
    """a' drawn from p(a | y)."""
    rng = np.random.default_rng(seed)
    by_class = {y: rows["a"].to_numpy() for y, rows in table.groupby("y")}
    return [(key, do(a=str(rng.choice(by_class[y])))) for key, y in table["y"].items()]


def test_a_balanced_plan_breaks_dependence_and_fills_groups() -> None:
    t = world(400, rho=1.0)
    found = forecast(t, SCHEMA, fitted(t), evenly(t))
    a = found["spurious"]["a"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert a["factual"]["nmi"] == pytest.approx(1)
    assert a["counterfactual"]["nmi"] == pytest.approx(0, abs=1e-12)
    assert a["counterfactual"]["cramers_v"] == pytest.approx(0, abs=1e-12)
    assert a["broken"]
    sizes = t["y"].value_counts()
    assert a["groups"] == 16
    assert {g["name"]: g["n"] for g in a["filled"]} == {
        f"y={y},a={v}": sizes[y] for y in range(4) for i, v in enumerate(VALUES) if i != y
    }
    assert a["still_empty"] == []
    assert (a["smallest"]["factual"]["n"], a["smallest"]["counterfactual"]["n"]) == (0, sizes.min())
    assert found["unchanged"] == 400  # one of the four values is the row's own
    assert (found["rows"], found["interventions"], found["null"], found["sampled"]) == (1600, 1600, 0, None)
    assert not any("does not break" in w for w in found["warnings"])


def test_a_plan_drawn_from_the_table_itself_is_warned_about() -> None:
    t = world()
    found = forecast(t, SCHEMA, fitted(t), copying_the_table(t))
    a = found["spurious"]["a"]
    assert a["counterfactual"]["nmi"] == pytest.approx(a["factual"]["nmi"], abs=0.05)
    assert not a["broken"]
    assert any(w.startswith("a: the plan does not break its dependence on y: NMI 0.") for w in found["warnings"])
    assert "warning: a: the plan does not break" in " ".join(found["text"])


def test_a_plan_drawn_from_the_marginal_breaks_dependence() -> None:
    t = world()
    rng = np.random.default_rng(2)
    marginal = [(key, do(a=str(v))) for key, v in zip(t.index, rng.permutation(t["a"]))]
    found = forecast(t, SCHEMA, fitted(t), marginal)["spurious"]["a"]
    assert 0 < found["counterfactual"]["nmi"] < 4 * found["counterfactual"]["nmi_chance"]
    assert found["broken"]


@pytest.mark.parametrize("real", [0.0, 0.1, 0.5, 1.0])
def test_the_mixture_is_the_closed_form(real: float) -> None:
    """y = a in all real rows, in half of the counterfactuals: p(y = a) = q = r + (1 - r) / 2, I = log 2 - H(q)."""
    t = pd.DataFrame({"y": [0, 1] * 50, "a": ["r", "g"] * 50}, index=[f"k{i}" for i in range(100)])
    acts = [(key, do(a=v)) for key in t.index for v in "rg"] * 3 + [(key, do()) for key in t.index]
    q = real + (1 - real) / 2
    expected = np.log(2) + sum(p * np.log(p) for p in (q, 1 - q) if p > 0)
    for shares in ({"real": real, "counterfactual": 1 - real}, {"null": 3 * real, "counterfactual": 3 - 3 * real}):
        found = forecast(t, SCHEMA, fitted(t), acts, shares)
        mixture = found["spurious"]["a"]["mixture"]
        assert mixture["mutual_information"] == pytest.approx(expected, abs=1e-9)
        assert mixture["cramers_v"] == pytest.approx(2 * q - 1, abs=1e-9)
        assert sum(found["shares"].values()) == pytest.approx(1)
        parts = {"real": 100, "counterfactual": 600, "null": 100}
        kish = 1 / sum(s**2 / parts[p] for p, s in found["shares"].items())
        assert mixture["n"] == pytest.approx(kish)
        smallest = found["spurious"]["a"]["smallest"]["mixture"]
        assert smallest["share"] == pytest.approx((1 - real) / 4, abs=1e-12)


def test_without_shares_every_row_counts_once() -> None:
    t = world(200)
    acts = copying_the_table(t) + [(key, do()) for key in t.index[:50]]
    found = forecast(t, SCHEMA, fitted(t), acts)
    assert found["shares"] == {"real": 200 / 450, "counterfactual": 200 / 450, "null": 50 / 450}
    assert (found["interventions"], found["null"]) == (200, 50)
    rows = pd.concat([t, t.assign(a=[act.assignments["a"] for _, act in acts[:200]]), t[:50]], ignore_index=True)
    mixture = found["spurious"]["a"]["mixture"]
    assert mixture["nmi"] == pytest.approx(confounding(rows, SCHEMA)["a"], abs=1e-12)
    assert mixture["n"] == pytest.approx(450)
    assert found["spurious"]["a"]["factual"]["nmi"] == diagnose(t, SCHEMA)["spurious"]["a"]["nmi"]


def test_a_large_plan_is_sampled_alike_each_time_and_says_so() -> None:
    t = world(500)
    acts = evenly(t)
    scm = fitted(t)
    whole, part = forecast(t, SCHEMA, scm, acts), forecast(t, SCHEMA, scm, acts, most=800)
    assert part == forecast(t, SCHEMA, scm, acts, most=800)
    assert (whole["sampled"], part["sampled"]) == (None, 800)
    assert part["unchanged"] == pytest.approx(whole["unchanged"], rel=0.2)
    sizes = [f["spurious"]["a"]["smallest"]["counterfactual"]["n"] for f in (whole, part)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.5)
    assert part["spurious"]["a"]["mixture"]["n"] == pytest.approx(2500)
    assert "computed for 800 of them, drawn at random, counts scaled up" in part["text"][0]
    assert part["spurious"]["a"]["broken"]


def test_descendants_and_new_combinations_are_counted() -> None:
    """b copies a: do(a) moves it along; the image shows y and b, of which the table has equal pairs only."""
    t = world(200, rho=1.0)
    t["b"] = t["a"]
    schema = Schema([*SCHEMA, Attribute("b")], "y", ["a", "b"])
    graph = CausalGraph("y <-> a; a -> b; y -> image; b -> image")
    scm = Copying(graph, schema, "b", dict(zip(VALUES, VALUES)))
    found = forecast(t, schema, scm, evenly(t))
    assert found["recomputed"] == {"b": 600}
    assert found["spurious"]["b"]["broken"]
    new = found["new_combinations"]
    assert (new["attributes"], new["rows"], new["share"]) == (["y", "b"], 600, 0.75)
    assert sum(e["n"] for e in new["examples"]) <= 600
    first = new["examples"][0]
    y, b = (part.split("=")[1] for part in first["name"].split(","))
    assert (VALUES[int(y)] != b, first["n"]) == (True, t["y"].value_counts()[int(y)])
    assert "75 % of the counterfactual rows (600) are combinations of y, b that no training row has" in " ".join(
        found["warnings"]
    )
    # do(b) leaves a alone, and so a's dependence stands
    half = forecast(t, schema, scm, [(k, do(b=v)) for k in t.index for v in VALUES])
    assert half["recomputed"] == {}
    assert (half["spurious"]["a"]["broken"], half["spurious"]["b"]["broken"]) == (False, True)
    assert [w.split(":")[0] for w in half["warnings"] if "does not break" in w] == ["a"]


def test_a_plan_that_changes_the_label_is_warned_about() -> None:
    t = pd.DataFrame({"y": [0, 0, 0, 1] * 20, "a": list("rrrg") * 20}, index=[f"k{i}" for i in range(80)])
    scm = Copying(CausalGraph("a -> y; y -> image; a -> image"), SCHEMA, "y", {"r": "0", "g": "1"})
    found = forecast(t, SCHEMA, scm, [(key, do(a="r")) for key in t.index])
    assert (found["label_changed"], found["unchanged"]) == (20, 60)
    assert "20 of 80 counterfactual rows change y itself: their label would be wrong" in found["warnings"]


def test_continuous_combinations_go_by_the_tables_quartiles() -> None:
    t = pd.DataFrame({"y": [0] * 50 + [1] * 50, "a": list("rg") * 50, "size": np.arange(100.0)})
    t.index = pd.Index([f"k{i}" for i in range(100)])
    schema = Schema([*SCHEMA, Attribute("size", "continuous")], "y", ["a"])
    scm = Copying(CausalGraph("y -> image; size -> image; a"), schema, "a", {})
    found = forecast(t, schema, scm, [(key, do(size=90.0)) for key in t.index])
    new = found["new_combinations"]
    assert (new["attributes"], new["rows"], new["share"]) == (["y", "size"], 50, 0.5)
    assert new["examples"] == [{"name": "y=0,size=q4", "n": 50}]
    assert found["outside"] == {}


def test_values_beyond_the_table_and_rows_without_a_value() -> None:
    rng = np.random.default_rng(0)
    t = world(120).assign(size=rng.normal(size=120))
    t.loc[t.index[:30], "a"] = None
    schema = Schema([*SCHEMA, Attribute("size", "continuous")], "y", ["a", "size"])
    graph = CausalGraph("y <-> a; size; a -> image; y -> image; size -> image")
    scm = Copying(graph, schema, "a", dict(zip(VALUES, VALUES)))  # nothing follows from anything
    acts = [(key, do(size=99.0 if i < 20 else 0.0)) for i, key in enumerate(t.index)]
    found = forecast(t, schema, scm, acts)
    assert found["outside"] == {"size": 20}
    assert any(w.startswith("size: 20 of 120 counterfactual rows are outside its range") for w in found["warnings"])
    assert (found["spurious"]["a"]["counterfactual"]["n"], found["spurious"]["size"]["counterfactual"]["n"]) == (
        90,
        120,
    )
    # by the table's own quartiles: all rows but the first twenty are in the one of 0
    assert len(found["spurious"]["size"]["still_empty"]) == 0
    assert found["spurious"]["size"]["smallest"]["counterfactual"]["n"] == 0
    given = forecast(t, schema, scm, [(key, do(a="r")) for key in t.index])
    assert given["spurious"]["a"]["counterfactual"]["n"] == 120
    assert given["unchanged"] == int((t["a"] == "r").sum())


def test_values_moved_into_one_quartile_keep_their_dependence() -> None:
    rng = np.random.default_rng(0)
    t = pd.DataFrame({"y": np.arange(200) % 2, "size": np.arange(200) % 2 + rng.normal(size=200)})
    t.index = pd.Index([f"k{i}" for i in range(200)])
    schema = Schema([Attribute("y"), Attribute("size", "continuous")], "y", ["size"])
    scm = Copying(CausalGraph("y -> size; y -> image; size -> image"), schema, "size", {})
    shifted = forecast(t, schema, scm, [(key, do(size=float(v) + 50)) for key, v in t["size"].items()])
    size = shifted["spurious"]["size"]
    assert size["counterfactual"]["nmi"] == 0
    assert size["counterfactual"]["eta"] == pytest.approx(size["factual"]["eta"])
    assert not size["broken"]
    assert any("does not break" in w and ", eta 0." in w for w in shifted["warnings"])
    fair = forecast(t, schema, scm, [(key, do(size=float(v))) for key, v in zip(t.index, rng.permutation(t["size"]))])
    assert fair["spurious"]["size"]["broken"]


def test_the_plan_of_the_pipeline_is_forecast_and_shown() -> None:
    rng = np.random.default_rng(0)
    t = world(300).assign(size=rng.normal(size=300) + world(300)["y"].to_numpy())
    schema = Schema([*SCHEMA, Attribute("size", "continuous")], "y", ["a", "size"])
    graph = CausalGraph("y <-> a; y <-> size; y -> image; a -> image; size -> image")
    scm = Copying(graph, schema, "a", dict(zip(VALUES, VALUES)))
    plan = balance_groups(t, schema, per_image=4, null_fraction=0.2)
    shares = {"real": 0.1, "counterfactual": 0.8, "null": 0.1}
    found = forecast(t, schema, scm, [(row.source_key, row.do) for row in plan], shares)
    for name in ("a", "size"):
        row = found["spurious"][name]
        assert row["broken"]
        assert row["factual"]["nmi"] > 0.2 > 0.05 > row["mixture"]["nmi"] > row["counterfactual"]["nmi"]
    assert all(len(line) <= 160 for line in found["text"])
    page = render_report(ReportData(title="t", diagnosis=diagnose(t, schema, graph) | {"forecast": found}))
    assert "What the plan does about it" in page
    assert "&lt;-&gt;" in page
    assert "What the plan does about it" not in render_report(ReportData(title="t", diagnosis=diagnose(t, schema)))
    only_nulls = forecast(t, schema, scm, [(str(t.index[0]), do())])
    assert only_nulls["spurious"]["a"]["counterfactual"] is None
    assert render_report(ReportData(title="t", diagnosis=diagnose(t, schema) | {"forecast": only_nulls}))
    markup = diagnose(t.rename(columns={"a": "<b>"}), Schema([Attribute("y"), Attribute("<b>")], "y", ["<b>"]))
    assert "<b>" not in render_report(ReportData(title="t", diagnosis=markup))


def test_shares_without_rows_are_left_out_and_noted() -> None:
    t = world(40)
    scm, one = fitted(t), [("k0", do(a="r"))]
    almost = 1 - 0.9 - 0.1
    assert almost < 0
    assert forecast(t, SCHEMA, scm, one, {"real": almost, "counterfactual": 1.0})["shares"]["real"] == 0
    found = forecast(t, SCHEMA, scm, one, {"real": 0.4, "counterfactual": 0.5, "null": 0.1})
    assert found["shares"] == pytest.approx({"real": 4 / 9, "counterfactual": 5 / 9, "null": 0})
    assert found["warnings"][0] == "the training mixture wants 10% null rows, the plan has none: forecast without them"
