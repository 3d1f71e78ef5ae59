"""The plan: its rows, its digest, its shards, and the files it is saved to and loaded from."""

from __future__ import annotations

import hashlib
import json
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from cfaug.causal.intervention import do
from cfaug.errors import CfaugError, ShardError, UsageError
from cfaug.offline import Plan, PlanRow, balance_groups, make_plan
from cfaug.offline.format import canonical_json
from cfaug.offline.plan import PlanSummary
from cfaug.offline.storage import open_storage
from cfaug.offline.strategies import STRATEGIES


def a_plan(samples_per_shard: int = 10, **more: Any) -> Plan:
    options = {"per_image": 2, "null_fraction": 0.3, **more}
    return balance_groups(tiny.dataset().table, tiny.schema(), samples_per_shard=samples_per_shard, **options)


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cfaug.offline.plan_files.ROWS_PER_FILE", 20)


ROW_FIELDS = ("key", "source_key", "do", "seed", "shard", "replica")


def as_rows(content: bytes) -> list[PlanRow]:
    """What plain JSON reads from a plan's lines."""
    return [PlanRow(**{**line, "do": do(line["do"])}) for line in map(json.loads, content.splitlines())]


names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)
values = st.one_of(names, st.floats(allow_nan=False, allow_infinity=False))
rows = st.lists(
    st.builds(
        lambda source, act, seed, shard, replica: (source, do(act), seed, shard, replica),
        names, st.dictionaries(st.sampled_from(["a", 'b "c"', "é"]), values, max_size=3),
        st.integers(0, 2**53 - 1), st.integers(0, 9), st.integers(0, 2**31 - 1),
    ),
    max_size=30,
)  # fmt: skip


@given(rows=rows, split=st.sampled_from(["train", "val", "test"]))
@settings(max_examples=40, deadline=None)
def test_listed_rows_come_back_from_disk(rows: list[tuple[Any, ...]], split: str) -> None:
    listed = [PlanRow(f"k{i}", *fields) for i, fields in enumerate(rows)]
    plan = Plan(listed, split)
    assert list(plan) == sorted(listed, key=lambda row: row.shard)
    assert [row for shard in plan.shards() for row in plan.rows_of(shard)] == list(plan)
    assert [plan[i] for i in range(len(plan))] == list(plan)
    plan.save("memory://plans/listed")
    assert as_rows(open_storage("memory://plans/listed").read("plan-00000.jsonl") if rows else b"") == list(plan)
    loaded = Plan.load("memory://plans/listed")
    assert (list(loaded), loaded.split, loaded.shards()) == (list(plan), split, plan.shards())
    assert loaded == plan == Plan(list(loaded), split)
    assert loaded.summary == plan.summary


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_a_drawn_plan_comes_back_from_disk(strategy: str, tmp_path: Path) -> None:
    holes = tiny.dataset(40).table
    holes.loc[holes.index[::5], "ground"] = None
    holes.index = [*holes.index[:-2], 'a "quoted"\\ \u00fcber.png', '{"shard":7,"replica":1}']
    options: dict[str, Any] = {"samples_per_shard": 6, "replicas": 2, "seed": 5, "split": "val"}
    plan = make_plan(strategy, holes, tiny.schema(), **options, attributes=["ground", "thickness"])
    plan.save(tmp_path)
    loaded, listed = Plan.load(tmp_path), list(plan)
    assert list(loaded) == listed == as_rows(b"".join(path.read_bytes() for path in sorted(tmp_path.glob("*.jsonl"))))
    assert (loaded.settings, loaded.samples_per_shard, loaded.summary) == (plan.settings, 6, plan.summary)
    again = make_plan(strategy, holes, tiny.schema(), **options, attributes=["ground", "thickness"])
    same = (again, loaded, Plan(listed, "val", 6), pickle.loads(pickle.dumps(plan)), pickle.loads(pickle.dumps(loaded)))
    assert {held.digest for held in same} == {plan.digest}
    assert plan.digest not in (Plan(listed, "train", 6).digest, Plan(listed[:-1], "val", 6).digest)


def test_the_files_are_lines_of_rows(tmp_path: Path) -> None:
    plan = a_plan()
    plan.save(tmp_path)
    content = (tmp_path / "plan-00000.jsonl").read_bytes()
    assert [list(json.loads(line)) for line in content.splitlines()] == [list(ROW_FIELDS)] * len(plan)
    assert as_rows(content) == list(plan)
    header = json.loads((tmp_path / "plan.json").read_text())
    assert (header["format"], header["rows"], header["shards"]) == (4, len(plan), len(plan.shards()))
    assert (header["digest"], header["settings"]) == (plan.digest, plan.settings)


@pytest.mark.usefixtures("small_files")
def test_saving_replaces_what_is_there(tmp_path: Path) -> None:
    plan = a_plan()
    plan.save(tmp_path)
    loaded = Plan.load(tmp_path)
    loaded.save(tmp_path)  # onto itself
    assert Plan.load(tmp_path) == plan
    Plan(list(plan)[:5]).save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "plan-00000.jsonl", "plan-00000.npy", "plan-values.json", "plan.json",
    ]  # fmt: skip
    assert len(Plan.load(tmp_path)) == 5


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("name", ["plan-00001.jsonl", "plan-00001.npy", "plan-values.json"])
def test_every_flipped_bit_of_the_rows_is_seen(name: str, tmp_path: Path) -> None:
    a_plan().save(tmp_path)
    file = tmp_path / name
    whole, rng = file.read_bytes(), np.random.default_rng(0)
    contents = [whole[:-40], whole + b"\n", b"", whole[:-1], whole + whole]
    for position in rng.integers(0, len(whole), 60):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(rng.integers(8))
        contents.append(bytes(damaged))
    for content in contents:
        file.write_bytes(content)
        with pytest.raises(ShardError, match="plan again") as caught:
            Plan.load(tmp_path)
        assert "\n" not in str(caught.value)
    file.unlink()
    with pytest.raises(ShardError, match=rf"{name}: cannot read it: .*; plan first"):
        Plan.load(tmp_path)


def test_arrays_that_are_not_the_lines_are_told_apart(tmp_path: Path) -> None:
    """Whoever changes the arrays and all digests has a plan that opens, but its lines are those of a different one."""
    plan, changed = a_plan(), a_plan(seed=7)
    plan.save(tmp_path / "one")
    changed.save(tmp_path / "two")
    one, two = (json.loads((tmp_path / name / "plan.json").read_text()) for name in ("one", "two"))
    header = {**{name: value for name, value in one.items() if name != "sha256"}, "arrays": two["arrays"]}
    header["sha256"] = hashlib.sha256(canonical_json(header)).hexdigest()
    (tmp_path / "one" / "plan.json").write_text(json.dumps(header))
    for name in two["arrays"]:
        (tmp_path / "one" / name).write_bytes((tmp_path / "two" / name).read_bytes())
    loaded = Plan.load(tmp_path / "one")
    assert loaded.digest == plan.digest
    assert loaded.recomputed_digest() == changed.digest != plan.digest


@pytest.mark.parametrize("wrong", ["source", "codes", "seed", "shard"])
def test_numbers_that_no_plan_has_are_refused(wrong: str, tmp_path: Path) -> None:
    """The digests are right: only the bounds of the numbers say that no plan has them."""
    a_plan().save(tmp_path)
    header, file = json.loads((tmp_path / "plan.json").read_text()), tmp_path / "plan-00000.npy"
    rows = np.load(file)
    rows[wrong][3] = {"source": 10**6, "codes": 99, "seed": 2**53, "shard": -1}[wrong]
    np.save(file, rows)
    header["arrays"][file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    del header["sha256"]
    (tmp_path / "plan.json").write_text(
        json.dumps({**header, "sha256": hashlib.sha256(canonical_json(header)).hexdigest()})
    )
    with pytest.raises(ShardError, match=r"plan\.json: the plan is damaged .*; plan again"):
        Plan.load(tmp_path)


def test_every_changed_byte_of_the_header_is_seen(tmp_path: Path) -> None:
    a_plan().save(tmp_path)
    header = tmp_path / "plan.json"
    head, rng = header.read_bytes(), np.random.default_rng(1)
    contents: list[bytes] = [head[:50], b"[]", b"3", b'"plan"', b"null", b"[" * 100_000]
    for position in rng.integers(0, len(head), 150):
        damaged = bytearray(head)
        damaged[position] = int(rng.integers(33, 127))
        contents.append(bytes(damaged))
    for content in contents:
        try:
            same = json.loads(content) == json.loads(head)  # the same byte, or white space
        except (ValueError, RecursionError):
            same = False
        header.write_bytes(content)
        if not same:
            with pytest.raises(ShardError) as caught:
                Plan.load(tmp_path)
            assert "\n" not in str(caught.value)


def test_a_plan_that_stops_half_way_is_not_a_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cfaug.offline.plan_files.ROWS_PER_FILE", 20)
    plan, written = a_plan(), []
    plan.save(tmp_path)

    def full(self: Any, name: str, content: bytes) -> None:
        written.append(name)
        if len(written) == 4:
            raise OSError(28, "No space left on device")
        (self.path / name).write_bytes(content)

    with monkeypatch.context() as patch:
        patch.setattr("cfaug.offline.storage.LocalStorage.write", full)
        with pytest.raises(CfaugError, match="the disk is full") as caught:
            plan.save(tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ShardError, match="plan first"):
        Plan.load(tmp_path)
    plan.save(tmp_path)
    assert Plan.load(tmp_path) == plan


def test_an_empty_plan_is_a_plan(tmp_path: Path) -> None:
    plan = Plan([])
    plan.save(tmp_path)
    assert Plan.load(tmp_path) == plan
    assert (len(plan), plan.shards(), list(plan), plan.summary.rows) == (0, [], [], 0)


def test_a_shard_is_found_where_numbers_are_missing() -> None:
    plan = Plan([PlanRow(f"k{s}-{i}", "s", do(a="x"), i, s, i) for s in (120, 3, 9, 4) for i in range(3)])
    assert plan.shards() == [3, 4, 9, 120]
    assert [row.key for row in plan.rows_of(9)] == ["k9-0", "k9-1", "k9-2"]
    assert plan.missing({"cf-train-000004.tar"}) == [3, 9, 120]
    for wrong in (-1, 5, 121, 10**9):
        with pytest.raises(UsageError, match=rf"expected a shard of the plan \(0 to 120\), got {wrong}"):
            plan.rows_of(wrong)
    with pytest.raises(IndexError):
        plan[12]
    assert plan[-1] == plan.rows_of(120)[2]


def test_the_summary_says_what_the_rows_are() -> None:
    rows = [
        PlanRow("a", "b.png", do(colour="red", size=2.5), 0, 0, 0),
        PlanRow("b", "a.png", do(size=-1.0, year=1999), 1, 4, 0),
        PlanRow("c", "b.png", do(), 2, 4, 1),
    ]
    assert Plan(rows).summary == PlanSummary(
        3, 1, 2, 2, hashlib.sha256(b"a.png\nb.png\n").hexdigest(),
        ("colour", "size", "year"), {"colour": ("red",), "size": (-1.0, 2.5), "year": (1999,)},
    )  # fmt: skip


def test_a_sample_lies_evenly_over_the_plan() -> None:
    plan = balance_groups(tiny.dataset(900).table, tiny.schema(), null_fraction=0.25, samples_per_shard=30)
    assert plan.sample(5000) == list(plan)
    some = plan.sample(200)
    assert 150 <= len(some) <= 200
    assert len({row.shard for row in some}) >= 6
    assert max(row.shard for row in some) > 25


def test_a_plan_is_small_in_memory_and_to_send(tmp_path: Path) -> None:
    """Ten million rows must stay below 1 GB: about 26 bytes per row, and no object of Python's for any of them."""
    table = tiny.dataset(100, size=1).table
    plan = balance_groups(table, tiny.schema(), 150, samples_per_shard=1000, attributes=["colour", "ground"])
    plan.save(tmp_path)
    tracemalloc.start()
    loaded = Plan.load(tmp_path)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 35 * len(loaded)
    assert len(pickle.dumps(loaded)) < 35 * len(loaded)
