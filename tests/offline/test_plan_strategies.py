"""What each strategy promises, as laws over odd tables: missing values, classes of one image, one-valued attributes, n = 1."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cfaug.causal.intervention import do
from cfaug.config import STRATEGIES
from cfaug.data import Attribute, Schema
from cfaug.errors import DataError, UsageError
from cfaug.offline import Plan, PlanRow, balance_groups
from cfaug.offline.plan.strategies import MAKERS, counterfactual_pairs, every_value, flip, make_plan, uniform

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


def test_every_name_of_a_recipe_is_a_strategy() -> None:
    assert tuple(MAKERS) == STRATEGIES


@pytest.mark.parametrize("strategy", STRATEGIES)
@settings(max_examples=15, deadline=None)
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


@settings(max_examples=40, deadline=None)
@given(table=tables(), options=common)
def test_balance_is_even_within_each_class(table: pd.DataFrame, options: dict[str, Any]) -> None:
    plan = balance_groups(table, SCHEMA, **options)
    for label in set(table["y"]):
        mine = [dict(row.do.assignments) for row in plan if table["y"][row.source_key] == label]
        for name in ("place", "kind"):
            counts = Counter(row[name] for row in mine)
            spread = [counts.get(value, 0) for value in set(table[name].dropna())]
            assert max(spread) - min(spread) <= options["replicas"]


@settings(max_examples=40, deadline=None)
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


@settings(max_examples=40, deadline=None)
@given(table=tables(2), options=common)
def test_flip_is_never_the_factual_value(table: pd.DataFrame, options: dict[str, Any]) -> None:
    plan = flip(table, SCHEMA, **options)
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
    found = {row.source_key: row.do.assignments["size"] for row in flip(table, schema)}
    assert found == {"q": 10.0, "r": 5.0, "p": 5.0, "s": 1.0, "t": 2.0}  # the middle one has no mirror image: the next
    tied = table.assign(size=[0.0, 0.0, 0.0, 0.0, 1.0])
    assert {row.source_key: row.do.assignments["size"] for row in flip(tied, schema)} == {
        "p": 1.0, "q": 1.0, "r": 1.0, "s": 1.0, "t": 0.0,
    }  # fmt: skip
    lost = table.assign(size=[3.0, 1.0, 2.0, np.nan, 5.0])
    assert {row.do.assignments["size"] for row in flip(lost, schema, per_image=40) if row.source_key == "s"} == {
        1,
        2,
        3,
        5,
    }


@settings(max_examples=30, deadline=None)
@given(table=tables(2), options=common)
def test_pairs_share_source_seed_and_shard_and_are_adjacent(table: pd.DataFrame, options: dict[str, Any]) -> None:
    rows = list(counterfactual_pairs(table, SCHEMA, **options))
    alone = Counter((row.source_key, row.do, row.seed) for row in flip(table, SCHEMA, **options))
    for act, null in zip(rows[::2], rows[1::2], strict=True):
        assert null.do.is_null
        assert not act.do.is_null
        assert (act.source_key, act.seed, act.shard) == (null.source_key, null.seed, null.shard)
    assert alone == Counter((row.source_key, row.do, row.seed) for row in rows[::2])


@settings(max_examples=30, deadline=None)
@given(table=tables(), options=common)
def test_every_value_is_every_combination_once(table: pd.DataFrame, options: dict[str, Any]) -> None:
    del options["per_image"]
    plan = every_value(table, SCHEMA, **options, attributes=["place", "kind"])
    values = [sorted(set(table[name].dropna())) for name in ("place", "kind")]
    wanted = {do(place=place, kind=kind) for place, kind in itertools.product(*values)}
    made = Counter((row.source_key, row.do) for row in plan)
    assert made == {(key, act): options["replicas"] for key in table.index for act in wanted}


def test_every_value_takes_a_few_quantiles_of_numbers() -> None:
    table = pd.DataFrame({"y": "a", "size": np.arange(100.0)}, index=[f"s{i}" for i in range(100)])
    schema = Schema([Attribute("y"), Attribute("size", "continuous")], "y", ["size"])
    plan = every_value(table, schema)
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
    plan = uniform(table, SCHEMA, per_image=2, replicas=2)
    made = pd.DataFrame([dict(row.do.assignments) | {"y": table["y"][row.source_key]} for row in plan])
    for name, value in (("place", "sea"), ("kind", "top")):
        hits = made[name] == value
        assert abs(hits.mean() - 0.5) < 5 * 0.5 / np.sqrt(len(made) / 2)
        assert abs(hits[made["y"] == "1"].mean() - hits[made["y"] == "0"].mean()) < 0.08
    assert abs(np.corrcoef(made["place"] == "sea", made["kind"] == "top")[0, 1]) < 0.08
    assert abs((made["size"] < np.quantile(table["size"], 0.25)).mean() - 0.25) < 0.04
    by_seed = {row.seed: row.do for row in uniform(table, SCHEMA)}
    other = {row.seed: row.do for row in uniform(table, SCHEMA, samples_per_shard=7, null_fraction=0.5) if row.do.items}
    assert by_seed == other  # neither shards nor null rows move a draw


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


JOINT = [{"place": "land", "share": 0.5}, {"place": "sea", "share": 0.5}]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"strategy": "blance"}, UsageError, "expected a strategy among balance, uniform, every_value, flip"),
        ({"strategy": "flip", "joint": JOINT}, UsageError, "joint is for the strategy balance, got flip"),
        ({"strategy": "every_value", "per_image": 2}, UsageError, "per_image does not apply, got 2"),
        ({"strategy": "counterfactual_pairs", "null_fraction": 0.2}, UsageError, "expected null_fraction 0.5, got 0.2"),
        ({"strategy": "counterfactual_pairs", "samples_per_shard": 1}, UsageError, "samples_per_shard of 2 or more"),
        ({"replicas": 0}, UsageError, "expected replicas of at least 1, got 0"),
        ({"replicas": True}, UsageError, "expected replicas of at least 1, got True"),
        ({"attributes": ["place", "place"]}, UsageError, "expected every attribute once, got place, place"),
        ({"joint": JOINT[:1]}, UsageError, "shares of joint to sum to 1, got 0.5"),
        ({"joint": [*JOINT, {"place": "sky", "share": 2e-6}]}, UsageError, "sum to 1"),
        ({"joint": [{"place": "land", "share": 0}, JOINT[1]]}, UsageError, "above 0 and up to 1, got 0"),
        ({"joint": [{"place": "land", "share": -0.5}, JOINT[1]]}, UsageError, "above 0 and up to 1, got -0.5"),
        ({"joint": [{"place": "land", "share": float("nan")}]}, UsageError, "above 0 and up to 1, got nan"),
        ({"joint": [{"place": "land", "share": "half"}]}, UsageError, "above 0 and up to 1, got 'half'"),
        ({"joint": [JOINT[0], JOINT[0]]}, UsageError, "every cell of joint once"),
        ({"joint": [{"place": "land", "kind": "low", "share": 0.5}, JOINT[1]]}, UsageError, "to name place, kind, share"),
        ({"joint": [{"plcae": "land", "share": 1}]}, UsageError, "joint: unknown attribute 'plcae'; did you mean place"),
        ({"joint": [{"place": "moon", "share": 1}]}, UsageError, "attribute 'place' has no value 'moon'; allowed: "),
        ({"joint": [{"kind": "top", "share": 1}]}, DataError, "joint: no image shows kind=top"),
        ({"joint": [{"size": 1.0, "share": 1}]}, UsageError, "joint: 'size' is continuous"),
        ({"joint": [{"y": "a", "share": 1}]}, UsageError, "expected joint to name an attribute to intervene on, got y"),
        ({"joint": [{"y": "a", "place": "sea", "share": 1}]}, UsageError, "sum to 1 in class 'b', got 0"),
        ({"joint": JOINT, "attributes": ["kind"]}, UsageError, "joint: 'place' is not intervened on, only kind"),
        ({"joint": {"place": "sea", "share": 1}}, UsageError, r"expected joint as a list of cells"),
        ({"joint": ["place"]}, UsageError, "expected a cell of joint as values with a share, got 'place'"),
        ({"joint": [{"share": 1}]}, UsageError, "expected joint to name an attribute to intervene on, got none"),
    ],
)  # fmt: skip
def test_wrong_use_is_one_line(options: dict[str, Any], error: type[Exception], message: str) -> None:
    table = pd.DataFrame(
        {"y": list("aabb"), "place": ["land", "sea", "sky", "sea"], "kind": ["low", "mid"] * 2, "size": [1.0, 2, 3, 4]},
        index=list("pqrs"),
    )
    with pytest.raises(error, match=message) as caught:
        make_plan(**{"strategy": "balance", **options}, table=table, schema=SCHEMA)
    assert "\n" not in str(caught.value)


def test_too_many_combinations_are_refused() -> None:
    n = 40
    table = pd.DataFrame({"y": "a", "p": range(n), "q": range(n)}, index=[f"s{i}" for i in range(n)])
    schema = Schema([Attribute("y"), Attribute("p"), Attribute("q")], "y", ["p", "q"])
    with pytest.raises(UsageError, match=r"at most 1000 combinations per source, got 1600 \(40 p x 40 q\)"):
        every_value(table, schema)
    assert len(every_value(table, schema, attributes="p")) == 1600


def test_an_empty_joint_and_no_attributes_are_those_of_a_recipe() -> None:
    table = pd.DataFrame({"y": list("ab"), "place": ["land", "sea"]}, index=list("pq"))
    schema = Schema([Attribute("y"), Attribute("place")], "y", ["place"])
    assert make_plan("balance", table, schema, attributes=[], joint=[]) == balance_groups(table, schema)
