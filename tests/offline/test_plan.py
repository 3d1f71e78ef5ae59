"""Laws of the plan: a' independent of y by counting, every source served, everything fixed by the seed."""

from __future__ import annotations

import json
import time
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from cfaug.causal.intervention import do, uniform
from cfaug.data import Attribute, Schema
from cfaug.errors import DataError, ShardError, UsageError
from cfaug.offline import Plan, PlanRow, balance_groups
from cfaug.offline.plan import _deal, _showing


@settings(max_examples=60, deadline=None)
@given(
    classes=st.lists(st.sampled_from("012"), min_size=1, max_size=40),
    per_image=st.integers(1, 4),
    null_fraction=st.floats(0, 0.9),
    samples_per_shard=st.integers(1, 30),
    seed=st.integers(0, 2**32),
)
def test_values_are_independent_of_the_target_and_every_source_is_served(
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
    real = [row for row in plan if not row.do.is_null]
    nulls = [row for row in plan if row.do.is_null]

    assert Counter(row.source_key for row in real) == {key: per_image for key in table.index}
    assert len(nulls) == round(null_fraction / (1 - null_fraction) * n * per_image)
    per_source = Counter(row.source_key for row in nulls)
    assert max(per_source.values(), default=0) - min(per_source.get(k, 0) for k in table.index) <= 1
    for label in set(classes):
        mine = [dict(row.do.assignments) for row in real if table.digit[row.source_key] == label]
        for name in ("colour", "ground"):
            counts = Counter(d[name] for d in mine)
            seen = set(table[name])
            assert set(counts) <= seen  # a value without any image is nothing a decoder could have learned
            spread = [counts.get(v, 0) for v in seen]
            assert max(spread) - min(spread) <= 1
        # one draw in each of the equal slices of the marginal distribution: the ranks cannot clump
        ordered = np.sort(table.thickness.to_numpy())
        ranks = np.sort([np.searchsorted(ordered, d["thickness"], side="right") / n for d in mine])
        assert np.all(ranks >= np.arange(len(mine)) / len(mine) - 1e-9)
        assert np.all(ranks <= (np.arange(len(mine)) + 1) / len(mine) + 1 / n + 1e-9)
    assert len({row.key for row in plan}) == len({(r.source_key, r.replica) for r in plan}) == len(plan)
    sizes = [len(plan.rows_of(k)) for k in plan.shards()]
    assert max(sizes) <= samples_per_shard
    assert max(sizes) - min(sizes) <= 1
    for k in plan.shards():
        flags = [row.do.is_null for row in plan.rows_of(k)]
        assert not any(flags[: min(5, flags.count(False))])


@pytest.mark.parametrize("samples_per_shard", [1, 2, 3, 7, 10])
def test_dealing_loses_no_row_and_repeats_none(samples_per_shard: int) -> None:
    rng = np.random.default_rng(0)
    for real in range(1, 40, 3):
        for nulls in range(0, 40, 2):
            order, shard_of = _deal(real, nulls, samples_per_shard, rng)
            assert sorted(order) == list(range(real + nulls))
            assert len(shard_of) == real + nulls


def test_a_correlated_draw_is_seen_by_the_law() -> None:
    """The law above can fail: the factual colours, one per class, do not have equal counts within a class."""
    table = tiny.dataset().table
    counts = Counter(table.colour[table.digit == "0"])
    assert max(counts.values()) - min(counts.get(c, 0) for c in tiny.COLOURS) > 1


def test_attributes_are_independent_of_one_another() -> None:
    table = tiny.dataset(3000).table
    plan = balance_groups(table, tiny.schema())
    frame = pd.DataFrame([{**row.do.assignments} for row in plan])
    cells = pd.crosstab(frame.colour, frame.ground).to_numpy()
    expected = len(plan) / cells.size
    assert np.abs(cells - expected).max() < 5 * np.sqrt(expected)
    assert abs(np.corrcoef(pd.factorize(frame.colour)[0], frame.thickness)[0, 1]) < 0.08


def test_seed_fixes_the_plan_and_only_the_seed_changes_it() -> None:
    table = tiny.dataset().table
    first = balance_groups(table, tiny.schema(), per_image=2, null_fraction=0.25, seed=3)
    again = balance_groups(table, tiny.schema(), per_image=2, null_fraction=0.25, seed=3)
    other = balance_groups(table, tiny.schema(), per_image=2, null_fraction=0.25, seed=4)
    assert first == again
    assert first.digest == again.digest != other.digest
    assert {row.seed for row in first}.isdisjoint(row.seed for row in other)


def test_only_the_named_attributes_are_intervened_on() -> None:
    plan = balance_groups(tiny.dataset().table, tiny.schema(), attributes=["ground"])
    assert {tuple(row.do.assignments) for row in plan} == {("ground",)}


def test_one_name_needs_no_list_and_a_numpy_seed_is_a_seed() -> None:
    table, schema = tiny.dataset().table, tiny.schema()
    plan = balance_groups(table, schema, attributes="ground", seed=np.int64(7))  # type: ignore[arg-type]
    assert plan == balance_groups(table, schema, attributes=["ground"], seed=7)
    assert json.loads(json.dumps(plan.settings))["seed"] == 7
    assert len(balance_groups(table, schema, seed=2**64 - 1)) == len(table)


def test_save_and_load_give_the_same_plan(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("cfaug.offline.plan.ROWS_PER_PART", 20)
    plan = balance_groups(tiny.dataset().table, tiny.schema(), per_image=2, null_fraction=0.3, samples_per_shard=10)
    plan.save(tmp_path / "plan")
    assert sorted(p.name for p in (tmp_path / "plan").iterdir()) == [
        *(f"plan-{k:05d}.jsonl" for k in range(-(-len(plan) // 20))),
        "plan.json",
    ]
    loaded = Plan.load(tmp_path / "plan")
    assert loaded == plan
    assert (loaded.digest, loaded.settings, loaded.samples_per_shard) == (plan.digest, plan.settings, 10)
    Plan(plan.rows[:5]).save(tmp_path / "plan")  # fewer parts: the old ones go
    assert len(Plan.load(tmp_path / "plan")) == 5
    assert len(list((tmp_path / "plan").iterdir())) == 2


def test_a_damaged_plan_is_refused(tmp_path) -> None:
    plan = balance_groups(tiny.dataset().table, tiny.schema())
    plan.save(tmp_path)
    part, header = tmp_path / "plan-00000.jsonl", tmp_path / "plan.json"
    whole, head = part.read_bytes(), header.read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(whole), 100):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(rng.integers(8))
        part.write_bytes(damaged)
        with pytest.raises(ShardError):
            Plan.load(tmp_path)
    part.write_bytes(whole[:-40])
    with pytest.raises(ShardError, match="digest"):
        Plan.load(tmp_path)
    part.unlink()
    with pytest.raises(ShardError, match="plan first"):
        Plan.load(tmp_path)
    part.write_bytes(whole)
    header.write_text(json.dumps({**json.loads(head), "format": 2}))
    with pytest.raises(ShardError, match="upgrade"):
        Plan.load(tmp_path)
    header.write_bytes(head[:50])
    with pytest.raises(ShardError, match="damaged"):
        Plan.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"per_image": 0}, "per_image"),
        ({"null_fraction": 1.0}, "null_fraction"),
        ({"samples_per_shard": 0}, "samples_per_shard"),
        ({"split": "tset"}, "split"),
        ({"attributes": ["digit"]}, "target"),
        ({"attributes": ["colur"]}, "colur"),
        ({"attributes": []}, "at least one attribute"),
        ({"schema": Schema([Attribute("colour")])}, "target"),
        ({"schema": ["digit"]}, r"expected a Schema\("),
        ({"null_fraction": "half"}, "null_fraction"),
        *(
            ({"seed": s}, r"a seed is a whole number from 0 to 2\*\*64 - 1, got ")
            for s in (-1, 1.5, "x", None, True, 2**64)
        ),
    ],
)
def test_wrong_use_is_one_line(change: dict, message: str) -> None:
    options = {"table": tiny.dataset().table, "schema": tiny.schema(), **change}
    with pytest.raises(UsageError, match=message) as caught:
        balance_groups(**options)
    assert "\n" not in str(caught.value)


def test_an_empty_split_is_named() -> None:
    with pytest.raises(DataError, match="train split"):
        balance_groups(tiny.dataset().table.iloc[:0], tiny.schema())


@pytest.mark.parametrize("row", [("a.b", 0), ("a/b", 0), ("", 0), ("a" * 96, 0), ("a", -1), ("a", 2**53)])
def test_rows_that_cannot_be_stored_are_refused(row: tuple[str, int]) -> None:
    with pytest.raises(UsageError):
        Plan([PlanRow(row[0], "s", do(), row[1], 0, 0)])


def test_repeated_keys_and_oversized_shards_are_refused() -> None:
    rows = [PlanRow("a", "s", do(), 0, 0, 0), PlanRow("b", "s", do(), 0, 0, 1)]
    with pytest.raises(UsageError, match="'a'"):
        Plan([rows[0], rows[0]])
    with pytest.raises(UsageError, match="at most 1"):
        Plan(rows, samples_per_shard=1)


def test_a_hundred_thousand_rows_are_quick(tmp_path) -> None:
    table = tiny.dataset(50_000, size=1).table
    start = time.perf_counter()
    plan = balance_groups(table, tiny.schema(), null_fraction=0.5, attributes=["colour", "ground"])
    plan.save(tmp_path)
    assert Plan.load(tmp_path).digest == plan.digest
    assert len(plan) == 100_000
    assert time.perf_counter() - start < 20  # about 3 s alone on one core; the bound is against quadratic slips


def test_sources_without_a_value_are_intervened_on_like_the_others() -> None:
    data = tiny.dataset(60)
    holes = data.table.copy()
    holes.loc[holes.index[::4], "colour"] = None
    holes.loc[holes.index[1::4], "thickness"] = np.nan
    plan = balance_groups(holes, data.schema, null_fraction=0.4, samples_per_shard=25)
    real = [row for row in plan if not row.do.is_null]
    assert sorted(row.source_key for row in real) == sorted(data.table.index)
    thicknesses = {row.do.assignments["thickness"] for row in real}
    assert thicknesses <= set(holes["thickness"].dropna())
    for colour in tiny.COLOURS:  # 20 sources a class, three colours: 6 or 7 of each
        assert 18 <= sum(row.do.assignments["colour"] == colour for row in real) <= 21
    for shard in plan.shards():
        first = [row.source_key for row in plan.rows_of(shard)[:5]]
        assert holes.loc[first].notna().any().all()
    with pytest.raises(DataError, match="'colour': expected sources with a value to draw from, got none in 60"):
        balance_groups(holes.assign(colour=None), data.schema)


def test_the_leading_rows_show_every_attribute_of_a_shard() -> None:
    rows = np.arange(10, 30)
    present = np.zeros((30, 3), dtype=bool)
    present[[17, 22, 29], [0, 1, 2]] = True
    present[28, [0, 1]] = True
    assert _showing(rows, present).tolist() == [28, 29]
    for same in (np.ones((30, 3), dtype=bool), np.zeros((30, 3), dtype=bool)):
        assert _showing(rows, same).tolist() == []
    assert _showing(rows[:0], present).tolist() == []
    # a null intervention may be the one that has it; a real row leads nevertheless
    one = np.eye(40, 6, k=-30, dtype=bool)
    order, _ = _deal(30, 10, 40, np.random.default_rng(0), one)
    assert set(order[:4]) < set(range(30, 36))
    assert order[4] < 30
    assert sorted(order) == list(range(40))


def test_a_plan_holds_values_and_no_wishes() -> None:
    with pytest.raises(UsageError, match=r"plan row 'one': expected values in do, got do\(a=uniform\(\)\): resolve it"):
        Plan([PlanRow("one", "source", do(a=uniform()), 0, 0, 0)])
