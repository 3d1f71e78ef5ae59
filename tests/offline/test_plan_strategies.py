"""What each strategy promises, as laws over odd tables: missing values, classes of one image, one-valued attributes, n = 1."""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from cfaug.causal.intervention import do
from cfaug.data import Attribute, Schema
from cfaug.errors import DataError, UsageError
from cfaug.offline import Plan, PlanRow, balance_groups, make_plan
from cfaug.offline.shard_layout import showing
from cfaug.offline.strategies import MOST_ROWS, STRATEGIES

SCHEMA = Schema(
    [Attribute("y"), Attribute("place"), Attribute("kind", "ordinal", ("low", "mid", "top")), Attribute("size", "continuous")],
    "y",
    ["place", "kind", "size"],
)  # fmt: skip


@st.composite
def tables(draw: st.DrawFn, least_values: int = 1) -> pd.DataFrame:
    """1 to 30 rows, one to three classes; attributes with holes, with `least_values` values or more."""
    n = draw(st.integers(least_values, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    holes = draw(st.sampled_from([0.0, 0.4]))
    columns: dict[str, Any] = {"y": rng.choice(list("abc")[: draw(st.integers(1, 3))], n)}
    for name, values in (("place", ["land", "sea", "sky"]), ("kind", ["low", "mid", "top"])):
        columns[name] = rng.choice(values[: draw(st.integers(least_values, 3))], n).astype(object)
    columns["size"] = rng.integers(0, 6, n).astype(float) if draw(st.booleans()) else rng.normal(size=n)
    table = pd.DataFrame(columns, index=[f"s{i}" for i in range(n)])
    for name, first in (("place", ["land", "sea"]), ("kind", ["low", "mid"]), ("size", [100.0, 101.0])):
        table.loc[rng.random(n) < holes, name] = np.nan if name == "size" else None
        table.loc[table.index[:least_values], name] = first[:least_values]
    return table


common = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32),
        "samples_per_shard": st.integers(2, 25),
        "replicas": st.integers(1, 3),
        "per_image": st.integers(1, 4),
    }
)


def real(plan: Plan) -> list[PlanRow]:
    return [row for row in plan if not row.do.is_null]


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
@settings(max_examples=10, deadline=None)
@given(table=tables(2), options=common, null_fraction=st.sampled_from([0.0, 0.3, 0.8]))
def test_what_all_strategies_promise(
    strategy: str, table: pd.DataFrame, options: dict[str, Any], null_fraction: float
) -> None:
    paired = strategy == "counterfactual_pairs"
    if strategy == "every_value":
        options = options | {
            "per_image": 1,
            "attributes": ["place", "kind"],
        }  # numbers would make a hundred rows a source
    nulls = {"null_fraction": 0.5 if paired else null_fraction}
    plan = make_plan(strategy, table, SCHEMA, **options, **nulls)
    rows, acts = list(plan), real(plan)
    shards = [list(mine) for _, mine in itertools.groupby(rows, lambda row: row.shard)]
    sizes = [len(mine) for mine in shards]
    assert [mine[0].shard for mine in shards] == list(plan.shards())
    replicas, n = options["replicas"], len(table)
    names = options.get("attributes", SCHEMA.spurious)
    # every source is served alike
    per_source = Counter(row.source_key for row in acts)
    assert set(per_source) == set(table.index)
    assert len(set(per_source.values())) == 1
    if strategy != "every_value":
        assert per_source["s0"] == options["per_image"] * replicas
    assert len(rows) - len(acts) == (len(acts) if paired else round(null_fraction / (1 - null_fraction) * len(acts)))
    silent = Counter(row.source_key for row in rows if row.do.is_null)
    assert max(silent.values(), default=0) - min(silent.get(key, 0) for key in table.index) <= 1
    # replicas: the same do, other seeds
    for count in Counter((row.source_key, row.do) for row in acts).values():
        assert count % replicas == 0
    seeds = Counter(row.seed for row in rows)
    assert set(seeds.values()) == {2 if paired else 1}
    # keys, replicas, shards
    assert len({(row.source_key, row.replica) for row in rows}) == len(rows) == len({row.key for row in rows})
    assert max(row.replica for row in rows) < -(-len(rows) // n)
    assert max(sizes) <= options["samples_per_shard"]
    assert max(sizes) - min(sizes) <= (2 if paired else 1)
    assert Plan(rows, samples_per_shard=options["samples_per_shard"]) == plan
    # values: all attributes at once, none that no image shows
    shown = {name: set(table[name].dropna()) for name in SCHEMA.spurious}
    for row in acts:
        assert set(row.do.assignments) == set(names)
        assert all(value in shown[name] for name, value in row.do.assignments.items())
    known = plan.summary
    assert (known.rows, known.nulls, known.sources) == (len(rows), len(rows) - len(acts), n)
    # a shard shows what its sources have, in five rows (pairs: in ten)
    canonical = SCHEMA.canonical(table)
    for mine in shards:
        sources = canonical.loc[[row.source_key for row in mine]]
        first = sources.iloc[:10:2] if paired else sources.iloc[:5]
        assert (first.notna().any() == sources.notna().any()).all()
        leading = mine[:10:2] if paired else mine[:5]
        assert any(not row.do.is_null for row in leading) or not any(not row.do.is_null for row in mine)


@settings(max_examples=15, deadline=None)
@given(table=tables(), options=common)
def test_balance_is_even_within_each_class(table: pd.DataFrame, options: dict[str, Any]) -> None:
    plan = balance_groups(table, SCHEMA, **options)
    for label in set(table["y"]):
        mine = [dict(row.do.assignments) for row in plan if table["y"][row.source_key] == label]
        for name in ("place", "kind"):
            counts = Counter(row[name] for row in mine)
            spread = [counts.get(value, 0) for value in set(table[name].dropna())]
            assert max(spread) - min(spread) <= options["replicas"]


@settings(max_examples=15, deadline=None)
@given(
    table=tables(2),
    options=common,
    weights=st.lists(st.floats(0.01, 1), min_size=4, max_size=4),
    by_class=st.booleans(),
)
def test_joint_shares_are_met_to_less_than_one(
    table: pd.DataFrame, options: dict[str, Any], weights: list[float], by_class: bool
) -> None:
    cells = list(itertools.product(["land", "sea"], ["low", "mid"]))
    classes = sorted(set(table["y"]))
    shares = {}
    for i, label in enumerate(classes):
        turned = weights[i:] + weights[:i] if by_class else weights
        shares[label] = {cell: w / sum(weights) for cell, w in zip(cells, turned)}
    joint: list[dict[str, Any]] = [
        {**({"y": label} if by_class else {}), "place": place, "kind": kind, "share": shares[label][place, kind]}
        for label in (classes if by_class else classes[:1])
        for place, kind in cells
    ]
    plan = balance_groups(table, SCHEMA, **options, joint=joint)
    for label in classes:
        mine = [row.do.assignments for row in plan if table["y"][row.source_key] == label]
        m = len(mine) / options["replicas"]
        counts = Counter((row["place"], row["kind"]) for row in mine)
        assert set(counts) <= set(cells)
        for cell in cells:
            assert abs(counts.get(cell, 0) / options["replicas"] - shares[label][cell] * m) < 1 + 1e-6
    assert plan.settings["joint"] == joint


def test_the_largest_remainders_get_what_is_left() -> None:
    table = pd.DataFrame({"y": ["a"] * 10 + ["b"] * 3, "place": ["land", "sea", "sky", "sea"] * 3 + ["sky"]})
    table.index = [f"s{i}" for i in range(13)]
    schema = Schema([Attribute("y"), Attribute("place")], "y", ["place"])
    joint = [{"place": p, "share": s} for p, s in (("land", 0.45), ("sea", 0.33), ("sky", 0.22))]
    plan = balance_groups(table, schema, joint=joint)
    counts = {
        label: Counter(r.do.assignments["place"] for r in plan if table["y"][r.source_key] == label) for label in "ab"
    }
    assert counts["a"] == {"land": 5, "sea": 3, "sky": 2}  # 4.5, 3.3, 2.2
    assert counts["b"] == {"land": 1, "sea": 1, "sky": 1}  # 1.35, 0.99, 0.66


@settings(max_examples=15, deadline=None)
@given(table=tables(2), options=common)
def test_flip_is_never_the_factual_value(table: pd.DataFrame, options: dict[str, Any]) -> None:
    plan = make_plan("flip", table, SCHEMA, **options)
    strata: dict[tuple[str, str, Any], Counter[Any]] = defaultdict(Counter)
    for row in plan:
        factual = table.loc[row.source_key]
        for name in ("place", "kind"):
            known = None if pd.isna(factual[name]) else factual[name]
            strata[name, factual["y"], known][row.do.assignments[name]] += 1
        if not pd.isna(factual["size"]):
            assert row.do.assignments["size"] != factual["size"]
    for (name, _, known), counts in strata.items():
        allowed = set(table[name].dropna()) - {known}
        assert set(counts) <= allowed
        spread = [counts.get(value, 0) for value in allowed]
        assert max(spread) - min(spread) <= options["replicas"]


def test_flip_mirrors_numbers() -> None:
    table = pd.DataFrame({"y": "a", "size": [3.0, 1.0, 2.0, 10.0, 5.0]}, index=list("pqrst"))
    schema = Schema([Attribute("y"), Attribute("size", "continuous")], "y", ["size"])
    found = {row.source_key: row.do.assignments["size"] for row in make_plan("flip", table, schema)}
    assert found == {"q": 10.0, "r": 5.0, "p": 5.0, "s": 1.0, "t": 2.0}  # the middle one has no mirror image: the next
    tied = table.assign(size=[0.0, 0.0, 0.0, 0.0, 1.0])
    assert {row.source_key: row.do.assignments["size"] for row in make_plan("flip", tied, schema)} == {
        "p": 1.0, "q": 1.0, "r": 1.0, "s": 1.0, "t": 0.0,
    }  # fmt: skip
    lost = table.assign(size=[3.0, 1.0, 2.0, np.nan, 5.0])
    assert {
        row.do.assignments["size"] for row in make_plan("flip", lost, schema, per_image=40) if row.source_key == "s"
    } == {
        1,
        2,
        3,
        5,
    }


@settings(max_examples=12, deadline=None)
@given(table=tables(2), options=common)
def test_pairs_share_source_seed_and_shard_and_are_adjacent(table: pd.DataFrame, options: dict[str, Any]) -> None:
    rows = list(make_plan("counterfactual_pairs", table, SCHEMA, **options))
    alone = Counter((row.source_key, row.do, row.seed) for row in make_plan("flip", table, SCHEMA, **options))
    for act, null in zip(rows[::2], rows[1::2], strict=True):
        assert null.do.is_null
        assert not act.do.is_null
        assert (act.source_key, act.seed, act.shard) == (null.source_key, null.seed, null.shard)
    assert alone == Counter((row.source_key, row.do, row.seed) for row in rows[::2])


@settings(max_examples=12, deadline=None)
@given(table=tables(), options=common)
def test_every_value_is_every_combination_once(table: pd.DataFrame, options: dict[str, Any]) -> None:
    del options["per_image"]
    plan = make_plan("every_value", table, SCHEMA, **options, attributes=["place", "kind"])
    values = [sorted(set(table[name].dropna())) for name in ("place", "kind")]
    wanted = {do(place=place, kind=kind) for place, kind in itertools.product(*values)}
    made = Counter((row.source_key, row.do) for row in plan)
    assert made == {(key, act): options["replicas"] for key in table.index for act in wanted}


def test_every_value_takes_a_few_quantiles_of_numbers() -> None:
    table = pd.DataFrame({"y": "a", "size": np.arange(100.0)}, index=[f"s{i}" for i in range(100)])
    schema = Schema([Attribute("y"), Attribute("size", "continuous")], "y", ["size"])
    plan = make_plan("every_value", table, schema)
    assert len(plan) == 500
    assert {row.do.assignments["size"] for row in plan} == {9.0, 29.0, 49.0, 69.0, 89.0}
    assert plan.summary.values["size"] == (9.0, 89.0)


def test_uniform_is_uniform_and_each_row_is_on_its_own() -> None:
    rng = np.random.default_rng(0)
    n = 3000
    y = rng.integers(0, 2, n)
    table = pd.DataFrame(
        {"y": y.astype(str), "place": np.where(rng.random(n) < 0.95, "land", "sea"), "kind": "low", "size": rng.normal(size=n)},
        index=[f"s{i}" for i in range(n)],
    )  # fmt: skip
    table.loc[table.index[:50], "kind"] = "top"
    plan = make_plan("uniform", table, SCHEMA, per_image=2, replicas=2)
    made = pd.DataFrame([dict(row.do.assignments) | {"y": table["y"][row.source_key]} for row in plan])
    for name, value in (("place", "sea"), ("kind", "top")):
        hits = made[name] == value
        assert abs(hits.mean() - 0.5) < 5 * 0.5 / np.sqrt(len(made) / 2)
        assert abs(hits[made["y"] == "1"].mean() - hits[made["y"] == "0"].mean()) < 0.08
    assert abs(np.corrcoef(made["place"] == "sea", made["kind"] == "top")[0, 1]) < 0.08
    assert abs((made["size"] < np.quantile(table["size"], 0.25)).mean() - 0.25) < 0.04


def test_the_shards_move_no_draw() -> None:
    table = tiny.dataset(50).table
    plans = [balance_groups(table, tiny.schema(), 2, 0.3, samples_per_shard=size) for size in (7, 1000)]
    drawn = [{(row.source_key, row.do, row.seed) for row in plan} for plan in plans]
    assert drawn[0] == drawn[1]
    assert [row.seed for row in plans[0]] != [row.seed for row in plans[1]]


def test_the_table_and_the_plan_may_have_one_seed() -> None:
    """NumPy's generator of the plan's seed may have made the target: the plan must not draw the same numbers again."""
    n = 2000
    for made in (np.random.default_rng(3), np.random.default_rng([3])):
        y = made.integers(2, size=n)
        table = pd.DataFrame(
            {"y": y.astype(str), "place": ["land", "sea"] * (n // 2)}, index=[f"s{i}" for i in range(n)]
        )
        schema = Schema([Attribute("y"), Attribute("place")], "y", ["place"])
        drawn = [
            (row.do.assignments["place"], table["y"][row.source_key])
            for row in make_plan("uniform", table, schema, seed=3)
        ]
        cells = Counter(drawn)
        assert max(abs(cells[p, t] - n / 4) for p in ("land", "sea") for t in "01") < 5 * np.sqrt(n / 4)


def test_odd_tables_are_planned_or_refused_in_one_line() -> None:
    one = pd.DataFrame({"y": ["a"], "place": ["sea"], "kind": ["mid"], "size": [2.0]}, index=["only"])
    for strategy in ("balance", "uniform", "every_value"):
        rows = list(make_plan(strategy, one, SCHEMA))
        assert [(row.source_key, dict(row.do.assignments)) for row in rows] == [
            ("only", {"place": "sea", "kind": "mid", "size": 2.0})
        ]
    for strategy in ("flip", "counterfactual_pairs"):
        nulls = 0.5 if strategy == "counterfactual_pairs" else 0.0
        with pytest.raises(DataError, match=r"flip: expected two values of 'kind' or more, got only 'mid' in 1 rows"):
            make_plan(strategy, one, SCHEMA, null_fraction=nulls)


def test_too_many_combinations_are_refused() -> None:
    n = 40
    table = pd.DataFrame({"y": "a", "p": range(n), "q": range(n)}, index=[f"s{i}" for i in range(n)])
    schema = Schema([Attribute("y"), Attribute("p"), Attribute("q")], "y", ["p", "q"])
    with pytest.raises(UsageError, match=r"at most 1000 combinations per source, got 1600 \(40 p x 40 q\)"):
        make_plan("every_value", table, schema)
    assert len(make_plan("every_value", table, schema, attributes="p")) == 1600


def test_an_empty_joint_and_no_attributes_are_those_of_a_recipe() -> None:
    table = pd.DataFrame({"y": list("ab"), "place": ["land", "sea"]}, index=list("pq"))
    schema = Schema([Attribute("y"), Attribute("place")], "y", ["place"])
    assert make_plan("balance", table, schema, attributes=[], joint=[]) == balance_groups(table, schema)


@settings(max_examples=30, deadline=None)
@given(
    classes=st.lists(st.sampled_from("012"), min_size=1, max_size=40),
    per_image=st.integers(1, 4),
    null_fraction=st.floats(0, 0.9),
    samples_per_shard=st.integers(1, 30),
    seed=st.integers(0, 2**32),
)
def test_balance_is_independent_of_the_target(
    classes: list[str], per_image: int, null_fraction: float, samples_per_shard: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    n = len(classes)
    table = pd.DataFrame(
        {
            "digit": classes,
            "colour": [tiny.COLOURS[int(c)] for c in classes],  # fully confounded
            "ground": rng.choice(["dark", "light"], n),
            "thickness": rng.normal(size=n),
        },
        index=[f"s{i}" for i in range(n)],
    )
    plan = balance_groups(table, tiny.schema(), per_image, null_fraction, seed, samples_per_shard)
    acts = real(plan)
    assert Counter(row.source_key for row in acts) == {key: per_image for key in table.index}
    assert len(plan) - len(acts) == round(null_fraction / (1 - null_fraction) * n * per_image)
    for label in set(classes):
        mine = [dict(row.do.assignments) for row in acts if table.digit[row.source_key] == label]
        for name in ("colour", "ground"):
            spread = [Counter(d[name] for d in mine).get(value, 0) for value in set(table[name])]
            assert sum(spread) == len(mine)  # a value without any image is nothing a decoder could have learned
            assert max(spread) - min(spread) <= 1
        # one draw in each of the equal slices of the marginal distribution: the ranks cannot clump
        ordered = np.sort(table.thickness.to_numpy())
        ranks = np.sort([np.searchsorted(ordered, d["thickness"], side="right") / n for d in mine])
        assert np.all(ranks >= np.arange(len(mine)) / len(mine) - 1e-9)
        assert np.all(ranks <= (np.arange(len(mine)) + 1) / len(mine) + 1 / n + 1e-9)
    for shard in plan.shards():
        flags = [row.do.is_null for row in plan.rows_of(shard)]
        assert not any(flags[: min(5, flags.count(False))])


def test_factual_values_would_fail_the_law_above() -> None:
    table = tiny.dataset().table
    counts = Counter(table.colour[table.digit == "0"])
    assert max(counts.values()) - min(counts.get(c, 0) for c in tiny.COLOURS) > 1


def test_attributes_are_independent_of_one_another() -> None:
    plan = balance_groups(tiny.dataset(3000).table, tiny.schema())
    frame = pd.DataFrame([{**row.do.assignments} for row in plan])
    cells = pd.crosstab(frame.colour, frame.ground).to_numpy()
    expected = len(plan) / cells.size
    assert np.abs(cells - expected).max() < 5 * np.sqrt(expected)
    assert abs(np.corrcoef(pd.factorize(frame.colour)[0], frame.thickness)[0, 1]) < 0.08


def test_the_seed_fixes_the_plan() -> None:
    table, schema = tiny.dataset().table, tiny.schema()
    first, again, other = (balance_groups(table, schema, 2, 0.25, seed) for seed in (3, np.int64(3), 4))  # type: ignore[arg-type]
    assert first == again != other
    assert {row.seed for row in first}.isdisjoint(row.seed for row in other)
    assert json.loads(json.dumps(again.settings))["seed"] == 3
    assert len(balance_groups(table, schema, seed=2**64 - 1)) == len(table)


def test_only_the_named_attributes_are_intervened_on() -> None:
    for names in (["ground"], "ground"):
        plan = balance_groups(tiny.dataset().table, tiny.schema(), attributes=names)  # type: ignore[arg-type]
        assert {tuple(row.do.assignments) for row in plan} == {("ground",)}


def test_sources_without_a_value_are_served_like_the_others() -> None:
    data = tiny.dataset(60)
    holes = data.table.copy()
    holes.loc[holes.index[::4], "colour"] = None
    holes.loc[holes.index[1::4], "thickness"] = np.nan
    plan = balance_groups(holes, data.schema, null_fraction=0.4, samples_per_shard=25)
    acts = real(plan)
    assert sorted(row.source_key for row in acts) == sorted(data.table.index)
    assert {row.do.assignments["thickness"] for row in acts} <= set(holes["thickness"].dropna())
    for colour in tiny.COLOURS:  # 20 sources per class, three colours: 6 or 7 of each
        assert 18 <= sum(row.do.assignments["colour"] == colour for row in acts) <= 21
    for shard in plan.shards():
        first = [row.source_key for row in plan.rows_of(shard)[:5]]
        assert holes.loc[first].notna().any().all()


def test_the_leading_rows_show_what_any_row_has() -> None:
    present = np.zeros((20, 3), dtype=bool)
    present[[7, 12, 19], [0, 1, 2]] = True
    present[18, [0, 1]] = True
    assert showing(present).tolist() == [18, 19]
    for same in (np.ones((20, 3), dtype=bool), np.zeros((20, 3), dtype=bool), present[:0]):
        assert showing(same).tolist() == []


def test_null_rows_are_mixed_into_every_shard() -> None:
    plan = balance_groups(tiny.dataset(300).table, tiny.schema(), null_fraction=0.6, samples_per_shard=50)
    for shard in plan.shards():
        nulls = [row.do.is_null for row in plan.rows_of(shard)]
        assert not any(nulls[:5])
        assert 28 <= sum(nulls) <= 32
        assert any(nulls[5:20])  # beyond the lead they do not come last


@pytest.mark.parametrize("strategy", ["balance", "uniform", "flip"])
def test_invariant_rows_hide_what_is_said_and_nothing_else(strategy: str, tmp_path: Path) -> None:
    table, schema = tiny.dataset(120).table, tiny.schema()
    plain = make_plan(strategy, table, schema, null_fraction=0.25)
    plan = make_plan(strategy, table, schema, null_fraction=0.25, invariant_fraction=0.25, hidden=["ground"])
    hiding = [row for row in plan if row.do == do(ground=None)]
    changing = [row for row in plan if not row.do.is_null and row.do != do(ground=None)]
    assert len(hiding) == len(plan) // 4
    assert len({row.source_key for row in hiding}) == len(hiding)
    assert len(changing) == len(real(plain))
    assert Counter(row.do for row in changing) == Counter(row.do for row in real(plain))
    assert all(value is not None for row in changing for value in row.do.assignments.values())
    plan.save(tmp_path)
    assert Plan.load(tmp_path) == plan
    assert plan.summary.values["ground"][-1] is None
    for shard in plan.shards():  # readers infer the fields from the first samples
        assert all(None not in row.do.assignments.values() and not row.do.is_null for row in plan.rows_of(shard)[:5])


def test_no_plan_of_invariant_rows_alone() -> None:
    for strategy, nulls, invariant in (
        ("balance", 0.5, 0.5),
        ("balance", 0.0, -0.1),
        ("counterfactual_pairs", 0.5, 0.1),
    ):
        with pytest.raises(UsageError, match="invariant_fraction"):
            make_plan(
                strategy,
                tiny.dataset().table,
                tiny.schema(),
                null_fraction=nulls,
                invariant_fraction=invariant,
                hidden=["ground"],
            )


def test_a_plan_beyond_memory_is_refused() -> None:
    with pytest.raises(UsageError, match=f"at most {MOST_ROWS:,} rows, got 24,000,000,000; lower per_image"):
        balance_groups(tiny.dataset().table, tiny.schema(), per_image=10**9)
