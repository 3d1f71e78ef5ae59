"""Laws of the plan: a' independent of y by counting, every source served, everything fixed by the seed."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from cfaug.causal.intervention import do, uniform
from cfaug.data import Attribute, Schema
from cfaug.errors import DataError, UsageError
from cfaug.offline import Plan, PlanRow, balance_groups
from cfaug.offline.plan.drawn import DrawnRows, showing
from cfaug.offline.plan.rows import PlanSummary


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"per_image": 0}, "per_image"),
        ({"null_fraction": 1.0}, "null_fraction"),
        ({"samples_per_shard": 0}, "samples_per_shard"),
        ({"samples_per_shard": 100_001}, "samples_per_shard of 1 to 100000"),
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


def test_a_plan_holds_values_and_no_wishes() -> None:
    with pytest.raises(UsageError, match=r"plan row 'one': expected values in do, got do\(a=uniform\(\)\): resolve it"):
        Plan([PlanRow("one", "source", do(a=uniform()), 0, 0, 0)])


def drawn(
    n: int, nulls: int, samples_per_shard: int, present: np.ndarray | None = None, paired: bool = False
) -> DrawnRows:
    return DrawnRows(
        tuple(f"s{i}" for i in range(n)), present, (), (), 1, 1, nulls, 0, "train", samples_per_shard, paired
    )


@pytest.mark.parametrize("samples_per_shard", [1, 2, 3, 7, 10])
def test_dealing_loses_no_row_and_repeats_none(samples_per_shard: int) -> None:
    for real in range(1, 40, 5):
        for nulls in range(0, 40, 6):
            rows = drawn(real, nulls, samples_per_shard)
            units = rows._batch(rows.shards).seeds
            some = len(rows.shards) // 2  # looked at alone it is the same shard
            alone = rows._batch(range(some, some + 1)).seeds.tolist()
            assert units[rows._edge(some) : rows._edge(some + 1)].tolist() == alone
            assert len(units) == len(rows) == real + nulls
            assert len(set(units.tolist())) == len(units)  # seeds are a bijection of rows
            for i in range(len(rows)):
                shard, within = rows.shard_of(i)
                assert rows._edge(shard) + within == i
                assert i < rows._edge(shard + 1)


def test_the_leading_rows_show_every_attribute_of_a_shard() -> None:
    present = np.zeros((20, 3), dtype=bool)
    present[[7, 12, 19], [0, 1, 2]] = True
    present[18, [0, 1]] = True
    assert showing(present).tolist() == [18, 19]
    for same in (np.ones((20, 3), dtype=bool), np.zeros((20, 3), dtype=bool)):
        assert showing(same).tolist() == []
    assert showing(present[:0]).tolist() == []


@pytest.mark.parametrize("paired", [False, True])
def test_four_rows_show_what_a_shard_has_and_a_real_one_follows(paired: bool) -> None:
    """A null intervention may be the one that has it; a real row leads nevertheless."""
    sources = np.eye(40, 6, k=-34, dtype=bool)  # each of the last six has one attribute
    rows = drawn(40, 0 if paired else 20, 200, sources, paired)
    batch = rows._batch(range(1))
    step = 2 if paired else 1
    first = batch.sources[: 4 * step : step]
    assert len(set(sources[first].argmax(axis=1)[sources[first].any(axis=1)])) == 4
    assert not batch.null[4 * step]
    assert len(batch.seeds) == len(rows)


def test_no_shard_lacks_real_rows_that_lead_it() -> None:
    plan = balance_groups(tiny.dataset(300).table, tiny.schema(), null_fraction=0.6, samples_per_shard=50)
    for shard in plan.shards():
        nulls = [row.do.is_null for row in plan.rows_of(shard)]
        assert not any(nulls[:5])
        assert 28 <= sum(nulls) <= 32
        # and beyond the lead they are mixed: the nulls do not come last
        assert any(nulls[5:20])


def test_a_row_is_the_same_from_wherever_it_is_seen() -> None:
    holes = tiny.dataset(90).table
    holes.loc[holes.index[::7], "colour"] = None
    plan = balance_groups(holes, tiny.schema(), per_image=2, null_fraction=0.4, samples_per_shard=11)
    rows = list(plan)
    assert [plan[i] for i in range(len(plan))] == rows
    assert plan[-1] == rows[-1]
    assert [row for shard in plan.shards() for row in plan.rows_of(shard)] == rows
    listed = Plan(rows, samples_per_shard=11)
    assert [listed[i] for i in range(len(plan))] == list(listed) == rows
    with pytest.raises(IndexError):
        plan[len(plan)]
    with pytest.raises(UsageError, match="expected a shard of the plan"):
        plan.rows_of(len(plan.shards()))


def test_any_shard_of_twenty_billion_rows_is_there_at_once() -> None:
    """No number overflows, and nothing is as long as the plan."""
    plan = balance_groups(
        tiny.dataset(10).table, tiny.schema(), 10**9, null_fraction=0.5, attributes=["colour", "ground"]
    )
    assert len(plan) == 2 * 10**10
    shards = plan.shards()
    assert len(shards) == 2 * 10**7
    rows = [row for shard in (0, len(shards) // 2, len(shards) - 1) for row in plan.rows_of(shard)]
    assert [row.key for row in rows] == sorted(row.key for row in rows)
    assert rows[-1].key == "train-19999999999"
    assert plan[len(plan) // 2] == rows[1000]
    assert sum(row.do.is_null for row in rows) == 1500
    assert max(Counter(row.source_key for row in rows).values()) < 400
    assert max(row.replica for row in rows) < 2 * 10**9
    colours = Counter(row.do.assignments["colour"] for row in rows if not row.do.is_null)
    assert min(colours.values()) > 400
    assert len({row.seed for row in rows}) == len(rows)


def test_an_empty_plan_is_a_plan(tmp_path: Path) -> None:
    plan = Plan([])
    plan.save(tmp_path)
    assert Plan.load(tmp_path) == plan
    assert (len(plan), list(plan.shards()), list(plan), plan.summary.rows) == (0, [], [], 0)


def test_listed_rows_come_in_the_order_of_their_shards() -> None:
    rows = [PlanRow(f"k{i}", "s", do(), i, shard, i) for i, shard in enumerate([7, 2, 7, 2, 3])]
    plan = Plan(rows)
    assert [row.key for row in plan] == ["k1", "k3", "k4", "k0", "k2"]
    assert list(plan.shards()) == [2, 3, 7]
    assert plan == Plan(list(plan))
    assert plan != Plan(rows, split="val")
    assert plan != Plan(rows[:4])
    assert hash(plan) == hash(Plan(list(plan)))
    assert repr(plan).startswith("Plan(5 rows, 3 shards")


def test_the_summary_says_what_the_rows_are() -> None:
    rows = [
        PlanRow("a", "b.png", do(colour="red", size=2.5), 0, 0, 0),
        PlanRow("b", "a.png", do(size=-1, year=1999), 1, 4, 0),
        PlanRow("c", "b.png", do(), 2, 4, 1),
    ]
    known = Plan(rows).summary
    assert known == PlanSummary(
        3, 1, 2, 2, hashlib.sha256(b"a.png\nb.png\n").hexdigest(),
        ("colour", "size", "year"), {"colour": ("red",), "size": (-1.0, 2.5), "year": ("1999",)},
    )  # fmt: skip
    assert PlanSummary.from_json(json.loads(json.dumps(known.to_json()))) == known


def test_the_summary_of_a_drawn_plan_needs_no_row() -> None:
    plan = balance_groups(tiny.dataset(60).table, tiny.schema(), per_image=2, null_fraction=0.3)
    seen, known = PlanSummary.of(plan), plan.summary
    for name in ("rows", "nulls", "shards", "sources", "sources_sha256", "names"):
        assert getattr(known, name) == getattr(seen, name), name
    assert known.values["colour"] == seen.values["colour"] == tiny.COLOURS
    low, high = known.values["thickness"]
    assert low <= seen.values["thickness"][0] <= seen.values["thickness"][1] <= high


def test_a_sample_lies_evenly_over_the_plan() -> None:
    plan = balance_groups(tiny.dataset(900).table, tiny.schema(), null_fraction=0.25, samples_per_shard=30)
    assert plan.sample(5000) == list(plan)
    some = plan.sample(200)
    assert 150 <= len(some) <= 200
    assert len({row.shard for row in some}) >= 6
    assert max(row.shard for row in some) > 25


def test_a_shard_is_found_without_looking_through_all_of_them() -> None:
    """Where numbers are missing they are a list; a run asks it for each of a hundred thousand shards."""

    class Numbers(list[int]):
        def __contains__(self, number: object) -> bool:
            raise AssertionError("looks through them")

    plan = Plan([PlanRow(f"k{i}", "s", do({}), i, 3 * i, 0) for i in range(5)])
    plan._source.shards = Numbers(plan.shards())
    for i in (0, 1, 4):
        assert [row.key for row in plan.rows_of(3 * i)] == [f"k{i}"]
    for wrong in (-1, 1, 5, 13, 10**9):
        with pytest.raises(UsageError, match=rf"expected a shard of the plan \(0 to 12\), got {wrong}"):
            plan.rows_of(wrong)


def test_a_source_that_is_there_twice_is_named() -> None:
    table = tiny.dataset(6).table
    with pytest.raises(DataError, match=r"'source 0\.png' twice"):
        balance_groups(pd.concat([table, table]), tiny.schema())
