from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import f_oneway

from cfaug.causal import CausalGraph, confounding, cramers_v, diagnose, normalised_mutual_information
from cfaug.causal.audit.back_doors import back_doors, safe_interventions
from cfaug.causal.audit.confounding import (
    Dependence,
    conditional,
    contingency,
    correlation,
    dependence,
    effective_sample_size,
)
from cfaug.data import Attribute, Schema, open_source
from cfaug.errors import DataError, UsageError

SCHEMA = Schema(
    [Attribute("y", values=("0", "1")), Attribute("a", values=("r", "g")), Attribute("t", "continuous")],
    target="y",
    spurious=["a", "t"],
)


def table(pairs: list[tuple[int, str]]) -> pd.DataFrame:
    return pd.DataFrame(pairs, columns=["y", "a"]).assign(t=np.arange(len(pairs), dtype=float))


def test_dependence_is_zero_if_independent_and_one_if_equal() -> None:
    even = table([(0, "r"), (0, "g"), (1, "r"), (1, "g")] * 5)
    same = table([(0, "r"), (1, "g")] * 10)
    for measure in (normalised_mutual_information, cramers_v):
        assert measure(even, SCHEMA, "y", "a") == pytest.approx(0, abs=1e-9)
        assert measure(same, SCHEMA, "y", "a") == pytest.approx(1)
        assert measure(table([(0, "r")] * 8), SCHEMA, "y", "a") == 0.0
        assert measure(same, SCHEMA, "a", "t") == measure(same, SCHEMA, "t", "a")


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


def test_figures_are_of_the_rows_that_have_both_values() -> None:
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
    assert expected["missing"] == {}
    assert not any("no value" in line or "in no group" in line for line in expected["text"])
    with pytest.raises(DataError, match="both 'y' and 'a', got none in 16 rows"):
        cramers_v(t.assign(a=None), SCHEMA, "y", "a")
    with pytest.raises(DataError, match="'y', row '0'"):
        confounding(t.assign(y=[None, *t["y"][1:]]), SCHEMA)


# --- known truth
def counts_of(rows: int, columns: int, seed: int, n: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return contingency(rng.integers(0, rows, n), rng.integers(0, columns, n))


def test_mutual_information_of_two_by_two_is_the_closed_form() -> None:
    # p(y = a) = q: I = log 2 - H(q)
    for q in (0.5, 0.75, 0.99):
        counts = np.array([[q, 1 - q], [1 - q, q]]) * 1000
        found = dependence(counts)
        expected = np.log(2) + q * np.log(q) + (1 - q) * np.log(1 - q)
        assert found.mutual_information == pytest.approx(expected, abs=1e-12)
        assert found.cramers_v == pytest.approx(2 * q - 1, abs=1e-12)
        assert found.nmi == pytest.approx(expected / np.log(2), abs=1e-12)


def test_the_chance_level_is_what_shuffled_rows_show() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 4, 60), rng.integers(0, 3, 60)
    shuffled = [dependence(contingency(x, rng.permutation(y))) for _ in range(400)]
    assert np.mean([d.mutual_information for d in shuffled]) == pytest.approx(shuffled[0].chance, rel=0.06)
    assert np.mean([d.p_value for d in shuffled]) == pytest.approx(0.5, abs=0.05)
    assert np.mean([d.p_value < 0.01 for d in shuffled]) < 0.03
    # Cramer's V is far from 0 there, its correction is not
    assert np.mean([d.cramers_v for d in shuffled]) > 0.15
    assert np.mean([d.cramers_v_corrected for d in shuffled]) < np.mean([d.cramers_v for d in shuffled]) / 2


def test_corrected_v_is_bergsmas_formula() -> None:
    counts = np.array([[6.0, 2.0], [1.0, 7.0]])
    phi2 = 6.349206349206349 / 16  # 16 (6 * 7 - 2 * 1)^2 / (8 * 8 * 7 * 9)
    expected = np.sqrt((phi2 - 1 / 15) / (1 - 1 / 15))
    assert dependence(counts).cramers_v_corrected == pytest.approx(expected, abs=1e-12)


def test_in_large_tables_the_chance_level_is_df_over_2n(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = counts_of(5, 4, 1, 20_000)
    exact = dependence(counts).chance
    # the function of that name hides the module from a dotted path
    monkeypatch.setattr(sys.modules["cfaug.causal.audit.confounding"], "EXACT_WORK", 0)
    assert dependence(counts).chance == 12 / 40_000 == pytest.approx(exact, rel=0.01)
    assert dependence(counts).chance != exact


def test_eta_of_a_known_construction() -> None:
    # class means -1 and 1, within a class -s and s: eta^2 = 1 / (1 + s^2)
    s = 3.0
    values = np.array([-1 - s, -1 + s, 1 - s, 1 + s] * 50) * 1e6 + 1e9
    classes = np.array([0, 0, 1, 1] * 50)
    found = correlation(values, classes)
    assert found.eta == pytest.approx(np.sqrt(1 / (1 + s**2)), abs=1e-9)
    assert found.p_value == pytest.approx(f_oneway(values[classes == 0], values[classes == 1]).pvalue, rel=1e-6)
    assert correlation(np.array([0.0, 0, 1, 1]), np.array([0, 0, 1, 1])).eta == 1.0
    assert correlation(np.array([0.0, 0, 1, 1]), np.array([0, 0, 1, 1])).p_value == 0.0
    assert correlation(np.full(9, 0.1 + 0.2), np.arange(9) % 3) == correlation(np.arange(9.0), np.zeros(9, dtype=int))
    rng = np.random.default_rng(3)
    shuffled = [correlation(rng.permutation(values), classes) for _ in range(400)]
    assert np.mean([c.eta**2 for c in shuffled]) == pytest.approx(found.chance**2, rel=0.2)
    # binning would hide how far off one value is: 100 rows 0..99 against one of 1000
    tail = np.append(np.arange(100.0), 1000.0)
    between, within = 100 / 101 * (1000 - 49.5) ** 2, (100**3 - 100) / 12
    assert correlation(tail, (tail > 500).astype(int)).eta == pytest.approx(np.sqrt(between / (between + within)))


def chain(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Y <- Z -> A: dependent, and independent given Z."""
    rng = np.random.default_rng(seed)
    z = rng.integers(0, 4, n)
    return np.where(rng.random(n) < 0.7, z, rng.integers(0, 4, n)), np.where(rng.random(n) < 0.7, z, 0), z


def test_given_the_common_cause_nothing_is_left() -> None:
    found = []
    for seed in range(30):
        y, a, z = chain(300, seed)
        alone, given_z = dependence(contingency(y, a)), conditional(y, a, [z])
        assert alone.p_value < 1e-6
        assert given_z.value is not None
        found.append(given_z)
    assert np.mean([c.raw for c in found]) > 0.015  # the plug-in figure would be read as dependence
    assert np.mean([c.value for c in found]) == pytest.approx(0, abs=0.003)
    assert np.mean([c.p_value for c in found]) == pytest.approx(0.5, abs=0.15)
    y, a, z = chain(20_000, 0)
    assert conditional(y, a, [z]).value == pytest.approx(0, abs=5e-4)
    # and what is there is found: Y given Z and a direct arrow
    direct = np.where(np.random.default_rng(9).random(20_000) < 0.3, y, a)
    assert conditional(y, direct, [z]).value > 0.05


def test_the_conditional_p_value_is_even_where_strata_are_small() -> None:
    rng = np.random.default_rng(0)
    z = np.repeat(np.arange(40), 6)
    p = [conditional(rng.integers(0, 2, 240), rng.integers(0, 2, 240), [z]).p_value for _ in range(25)]
    assert np.mean(p) == pytest.approx(0.5, abs=0.15)


def test_conditional_information_needs_enough_rows() -> None:
    rng = np.random.default_rng(0)
    x, y, few, many = (rng.integers(0, k, 400) for k in (2, 2, 3, 300))
    assert conditional(x, y, [few]).value is not None
    for others in ([many], [few, many], [many, few]):
        found = conditional(x, y, others)
        assert found.value is None
        assert "strata for 400 rows, most of them with fewer than 5" in found.why
    wide = conditional(*(rng.integers(0, 60, 400) for _ in range(2)), [few])
    assert wide.value is None
    assert "3 strata for 400 rows: chance alone shows" in wide.why
    assert conditional(x, y, []).why == "no other attribute"
    assert conditional(x, y, [np.full(400, -1)]).why == "no row has a value of every attribute"
    # what the strata determine leaves nothing to share, and that is known
    assert conditional(few, y, [few]).value == 0.0


def test_effective_sample_size_by_hand() -> None:
    assert effective_sample_size([1, 1, 1, 1]) == 4
    assert effective_sample_size([3, 1]) == pytest.approx(16 / 10)
    assert effective_sample_size([0, 0]) == 0
    t = table([(0, "r")] * 8 + [(0, "g")] * 2 + [(1, "g")] * 4)
    found = diagnose(t, SCHEMA)["spurious"]["a"]
    assert found["effective_sample_size"] == pytest.approx(9 / (1 / 8 + 1 / 2 + 1 / 4))
    assert found["rarest_groups"] == [
        {"name": f"y={y},a={a}", "n": n} for y, a, n in ((0, "g", 2), (1, "g", 4), (0, "r", 8))
    ]
    assert "balancing 14 rows leaves what 10 independent rows would tell" in " ".join(diagnose(t, SCHEMA)["text"])


# --- laws
small = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=2, max_size=60)


def figures(found: Dependence) -> dict[str, float]:
    # the square: next to 0, a root makes much of a rounding error
    return vars(found) | {"cramers_v_corrected": found.cramers_v_corrected**2}


@given(small, st.permutations(range(4)), st.permutations(range(3)))
@settings(deadline=None, max_examples=40)
def test_measures_are_bounded_and_ignore_order_and_names(
    pairs: list[tuple[int, int]], rename_x: list[int], rename_y: list[int]
) -> None:
    x, y = np.array(pairs).T
    found = dependence(contingency(x, y))
    assert found.n == len(pairs)
    for name in ("nmi", "nmi_chance", "cramers_v", "cramers_v_corrected", "p_value"):
        assert 0 <= getattr(found, name) <= 1
    assert found.mutual_information <= np.log(3) + 1e-12
    assert 0 <= found.chance <= np.log(3) + 1e-9
    turned = dependence(contingency(y, x))
    renamed = dependence(contingency(np.array(rename_x)[x], np.array(rename_y)[y]))
    assert figures(turned) == pytest.approx(figures(found), abs=1e-9)
    assert figures(renamed) == pytest.approx(figures(found), abs=1e-9)
    # rows of equal weights are rows; only the chance level of weights is an approximation
    weighted = dependence(0.25 * contingency(x, y), n=len(x))
    assert figures(replace(weighted, chance=found.chance, nmi_chance=found.nmi_chance)) == pytest.approx(
        figures(found), abs=1e-9
    )
    assert correlation(x.astype(float), y).eta == pytest.approx(correlation(-2.0 * x, y).eta, abs=1e-9)
    assert 0 <= correlation(x.astype(float), y).eta <= 1


@st.composite
def drawn_graphs(draw: st.DrawFn) -> CausalGraph:
    names = "abcdef"
    pieces = list(names)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            pieces += draw(st.sampled_from([[], [], [f"{a} -> {b}"], [f"{a} <-> {b}"]]))
    return CausalGraph("; ".join(pieces))


@given(drawn_graphs(), st.permutations("abcdef"))
@settings(deadline=None, max_examples=80)
def test_open_paths_exist_exactly_where_nothing_separates(graph: CausalGraph, names: list[str]) -> None:
    y, a = names[:2]
    paths = back_doors(graph, y, a, most=50)
    assert bool(paths or graph.directed_path(a, y)) == (not graph.separated(y, a))
    for path in paths:
        steps = path.split()
        assert (steps[0], steps[-1]) == (y, a)
        assert len(set(steps[::2])) == len(steps[::2])
        assert steps[-2] in ("->", "<->")  # through the back door
        for left, arrow, right in zip(steps[::2], steps[1::2], steps[2::2]):
            if arrow == "<->":
                assert (min(left, right), max(left, right)) in graph.bidirected
            else:
                assert ((left, right) if arrow == "->" else (right, left)) in graph.edges
        for before, after in zip(steps[1::2], steps[3::2]):
            assert not (before in ("->", "<->") and after in ("<-", "<->"))  # no collider
    assert [len(p.split()) for p in paths] == sorted(len(p.split()) for p in paths)


@pytest.mark.parametrize(
    ("graph", "paths"),
    [
        ("y <-> a", ["y <-> a"]),
        ("z -> y; z -> a", ["y <- z -> a"]),
        ("y -> a", ["y -> a"]),
        ("y -> m -> a", ["y -> m -> a"]),
        ("a -> y", []),
        ("a -> m -> y; a <-> m", ["y <- m <-> a"]),
        ("y -> c; a -> c", []),
        ("y -> c; a -> c; c -> d", []),
        ("y <-> m; m <-> a", []),  # m is a collider
        ("y <-> m; m -> a", ["y <-> m -> a"]),
        ("z -> w; w -> y; z -> a; y <-> a; u -> y; u -> a", ["y <-> a", "y <- u -> a", "y <- w <- z -> a"]),
        ("y <-> a; b -> y; b -> a; c -> y; c -> a; d -> y; d -> a", ["y <-> a", "y <- b -> a", "y <- c -> a"]),
        ("y -> image; a -> image", []),
    ],
)
def test_back_door_paths_of_drawn_graphs(graph: str, paths: list[str]) -> None:
    full = CausalGraph(f"{graph}; y; a")
    assert back_doors(full, "y", "a") == paths
    assert back_doors(full, "y", "a", most=1) == paths[:1]


def test_every_attribute_says_whether_intervening_is_safe() -> None:
    schema = Schema([Attribute(n) for n in ("y", "a", "b", "c", "d", "e")], "y", ["a"])
    graph = CausalGraph("c -> b -> y; y <-> a; a -> d; y -> image; a -> image; d; b -> image")
    found = safe_interventions(graph, schema, "y")
    assert json.loads(json.dumps(found)) == found
    assert {name: row["safe"] for name, row in found.items()} == {
        "y": False, "a": True, "b": False, "c": False, "d": True, "e": False,
    }  # fmt: skip
    assert found["c"]["path"] == ["c", "b", "y"]
    assert found["c"]["why"] == "the graph says c -> b -> y: the label would change"
    assert found["c"]["recomputed"] == ["b", "y"]
    assert (found["a"]["recomputed"], found["a"]["open_paths"]) == (["d"], ["y <-> a"])
    assert found["d"]["open_paths"] == ["y <-> a -> d"]
    assert "none to the image" in found["d"]["why"]
    assert "label itself" in found["y"]["why"]
    assert found["e"]["why"] == "e is not in the graph, which says nothing about it"


# --- the whole screen
def test_the_screen_is_narrow_aligned_and_has_every_attribute() -> None:
    rng = np.random.default_rng(0)
    cause = "z" * 130
    n = 400
    z = rng.integers(0, 2, n)
    columns = {"y": z ^ (rng.random(n) < 0.1), "a": z ^ (rng.random(n) < 0.1), "t": z + rng.normal(size=n)}
    columns |= {"constant": np.full(n, "x"), cause: z, "empty": [None] * n, "alone": rng.integers(0, 3, n)}
    t = pd.DataFrame(columns)
    kinds = {"t": "continuous"}
    schema = Schema([Attribute(c, kinds.get(c, "categorical")) for c in columns], "y", ["a"])
    graph = CausalGraph("z -> y; z -> a; t; constant; alone; empty".replace("z", cause))
    found = diagnose(t, schema, graph)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert all(len(line) <= 160 for line in found["text"])
    start = next(i for i, line in enumerate(found["text"]) if line.startswith("attribute "))
    _, *rows = found["text"][start : start + 7]
    names = ["a", "t", "constant", cause, "empty", "alone"]
    assert list(found["attributes"]) == names
    assert all(name.startswith(row.split()[0]) for name, row in zip(names, rows))
    assert {row.split()[1] for row in rows} == {"spurious", "other"}
    assert len({row.index(row.split()[1]) for row in rows}) == 1
    measured = found["attributes"]
    assert {name: row["dependent"] for name, row in measured.items()} == {
        "a": True, "t": True, "constant": False, cause: True, "empty": False, "alone": False,
    }  # fmt: skip
    for name in ("constant", "empty"):
        figures = [measured[name][key] for key in ("mutual_information", "nmi", "chance", "cramers_v", "p_value")]
        assert figures == [0, 0, 0, 0, 1]
    assert measured["t"]["eta"] > 0.3
    assert measured["a"]["eta"] is None
    assert measured["a"]["conditional"]["value"] == pytest.approx(0, abs=0.03)
    assert measured["a"]["conditional"]["given"] == ["t", "constant", cause, "alone"]
    assert f"confounded through y <- {cause} -> a; do(a) cuts it" in " ".join(" ".join(found["text"]).split())


def test_dependence_that_the_graph_has_no_way_for_is_remarked() -> None:
    t = table([(0, "r"), (1, "g")] * 20)
    lonely = " ".join(diagnose(t, SCHEMA, CausalGraph("y -> image; a -> image; t"))["text"])
    assert "a: depends on y, yet the graph has no open path between them" in lonely
    assert "no way" not in " ".join(diagnose(t, SCHEMA, CausalGraph("y <-> a; t"))["text"])


def test_an_attribute_that_depends_on_nothing_is_no_shortcut() -> None:
    graph = CausalGraph("y <-> a; t")
    even = " ".join(diagnose(table([(0, "r"), (0, "g"), (1, "r"), (1, "g")] * 20), SCHEMA, graph)["text"])
    assert "a: no dependence on y beyond chance in this table" in even
    assert "beyond chance" not in " ".join(diagnose(table([(0, "r"), (1, "g")] * 20), SCHEMA, graph)["text"])


def test_a_constant_target_or_attribute_is_all_zeros() -> None:
    for pairs in ([(0, "r")] * 6, [(0, "r"), (0, "g")] * 3, [(0, "g"), (1, "g")] * 3):
        found = diagnose(table(pairs), SCHEMA)
        a = found["attributes"]["a"]
        assert (a["nmi"], a["cramers_v"], a["cramers_v_corrected"], a["chance"], a["p_value"]) == (0, 0, 0, 0, 1)
        assert not a["dependent"]


def test_few_independent_rows_are_not_called_a_shortcut() -> None:
    """Ten digits and ten colours in 200 rows: an NMI near 0.1 is what chance shows."""
    schema = Schema([Attribute("y"), Attribute("a"), Attribute("t", "continuous")], "y", ["a", "t"])
    called = []
    for seed in range(15):
        rng = np.random.default_rng(seed)
        y, a = rng.integers(0, 10, (2, 200))
        found = diagnose(pd.DataFrame({"y": y, "a": a, "t": rng.normal(size=200)}), schema)["attributes"]
        assert found["a"]["nmi"] == pytest.approx(found["a"]["nmi_chance"], abs=0.06)
        assert found["a"]["nmi"] > 0.05
        called += [found["a"]["dependent"], found["t"]["dependent"]]
    assert sum(called) <= 2  # 30 tests at 0.01
