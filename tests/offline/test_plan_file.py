"""The plan on disk and at a URL: format 2, parts of whole shards, each checked when it is read."""

from __future__ import annotations

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
from cfaug.errors import CfaugError, ShardError
from cfaug.offline import Plan, PlanRow, balance_groups
from cfaug.offline.plan.file import load_header
from cfaug.offline.plan.rows import runs
from cfaug.offline.plan.strategies import MAKERS, counterfactual_pairs
from cfaug.offline.storage import open_storage


def a_plan(samples_per_shard: int = 10, **more: Any) -> Plan:
    options = {"per_image": 2, "null_fraction": 0.3, **more}
    return balance_groups(tiny.dataset().table, tiny.schema(), samples_per_shard=samples_per_shard, **options)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cfaug.offline.plan.plan.ROWS_PER_PART", 20)


@pytest.mark.usefixtures("small_parts")
def test_save_and_load_give_the_same_plan(tmp_path: Path) -> None:
    plan = a_plan()
    plan.save(tmp_path / "plan")
    assert sorted(p.name for p in (tmp_path / "plan").iterdir()) == [
        *(f"plan-{k:05d}.jsonl" for k in range(-(-len(plan) // 20))),
        "plan.json",
    ]
    loaded = Plan.load(tmp_path / "plan")
    assert loaded == plan == a_plan() == Plan(list(loaded), samples_per_shard=10)
    assert list(loaded) == list(plan)
    assert [loaded[i] for i in range(len(plan))] == list(plan)
    assert [loaded.rows_of(k) for k in reversed(loaded.shards())] == [plan.rows_of(k) for k in reversed(plan.shards())]
    assert (loaded.digest, loaded.settings, loaded.samples_per_shard) == (plan.digest, plan.settings, 10)
    assert loaded.summary == plan.summary
    loaded.save(tmp_path / "plan")  # onto itself: nothing is lost
    loaded.save(tmp_path / "copy")
    for path in (tmp_path / "plan").iterdir():
        assert path.read_bytes() == (tmp_path / "copy" / path.name).read_bytes()
    Plan(list(plan)[:5]).save(tmp_path / "plan")  # fewer parts: the old ones go
    assert len(Plan.load(tmp_path / "plan")) == 5
    assert len(list((tmp_path / "plan").iterdir())) == 2


@pytest.mark.usefixtures("small_parts")
def test_the_header_tells_the_parts(tmp_path: Path) -> None:
    plan = a_plan()
    plan.save(tmp_path)
    header = json.loads((tmp_path / "plan.json").read_text())
    assert header["format"] == 2
    assert (header["rows"], header["shards"]) == (len(plan), len(plan.shards()))
    first = 0
    for part in header["parts"]:
        content = (tmp_path / part["name"]).read_bytes()
        assert part["bytes"] == len(content)
        shards = [json.loads(line)["shard"] for line in content.splitlines()]
        assert sorted(set(shards)) == list(range(first, first + part["shards"]))
        first += part["shards"]
    assert first == len(plan.shards())


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("strategy", sorted(MAKERS))
def test_one_plan_has_one_digest_however_it_is_held(strategy: str, tmp_path: Path) -> None:
    holes = tiny.dataset(40).table
    holes.loc[holes.index[::5], "ground"] = None
    holes.index = [*holes.index[:-2], 'a "quoted"\\ \u00fcber.png', '{"shard":7,"replica":1}']
    options = {"samples_per_shard": 6, "replicas": 2, "seed": 5, "split": "val"}
    plan = MAKERS[strategy](holes, tiny.schema(), **options, attributes=["ground", "thickness"])
    plan.save(tmp_path)
    loaded = Plan.load(tmp_path)
    rows = list(plan)
    assert list(loaded) == rows
    for held in (plan, loaded):  # a shard looked at alone
        assert [row for shard in held.shards() for row in held.rows_of(shard)] == rows
    digests = {
        MAKERS[strategy](holes, tiny.schema(), **options, attributes=["ground", "thickness"]).digest,
        plan.digest, loaded.digest, Plan(rows, "val", 6).digest, pickle.loads(pickle.dumps(plan)).digest,
    }  # fmt: skip
    assert len(digests) == 1
    assert Plan(rows, "train", 6).digest not in digests
    assert Plan(rows[:-1], "val", 6).digest not in digests
    assert plan == loaded
    assert len({plan, loaded, Plan(rows, "val", 6)}) == 1


def test_a_plan_with_gaps_is_saved_by_its_shards(tmp_path: Path) -> None:
    rows = [PlanRow(f"k{s}-{i}", "s", do(a="x"), i, s, i) for s in (3, 4, 9, 120) for i in range(3)]
    plan = Plan(rows, samples_per_shard=1000)
    plan.save(tmp_path)
    loaded = Plan.load(tmp_path)
    assert list(loaded.shards()) == [3, 4, 9, 120]
    assert list(loaded) == rows
    assert loaded[7] == rows[7]
    assert loaded == plan


@given(shards=st.sets(st.integers(0, 60)), most=st.integers(1, 12))
@settings(max_examples=200, deadline=None)
def test_runs_are_consecutive_whole_and_the_same_for_a_range(shards: set[int], most: int) -> None:
    found = list(runs(sorted(shards), most))
    assert [n for run in found for n in run] == sorted(shards)
    assert all(run.start // most == (run.stop - 1) // most for run in found)
    whole = range(min(shards, default=0), max(shards, default=-1) + 1)
    assert list(runs(whole, most)) == list(runs(list(whole), most))


def test_a_plan_lives_at_a_url() -> None:
    plan = a_plan()
    plan.save("memory://plans/one")
    loaded = Plan.load("memory://plans/one")
    assert loaded == plan
    assert list(loaded) == list(plan)
    again = pickle.loads(pickle.dumps(loaded))
    assert again.rows_of(3) == plan.rows_of(3)
    open_storage("memory://plans/one").remove("plan-00000.jsonl")
    with pytest.raises(
        ShardError, match=r"memory://plans/one/plan-00000\.jsonl: cannot read it: no such file: plan first"
    ):
        list(Plan.load("memory://plans/one"))
    with pytest.raises(ShardError, match=r"plan\.json: cannot read it: no such file: plan first"):
        Plan.load("memory://plans/none")


def test_a_loaded_plan_is_small_to_send_and_its_last_part_stays_behind(tmp_path: Path) -> None:
    plan = balance_groups(tiny.dataset(5000, size=1).table, tiny.schema(), per_image=4)
    plan.save(tmp_path)
    loaded = Plan.load(tmp_path)
    loaded.rows_of(1)
    assert len(pickle.dumps(loaded)) < 4000
    assert pickle.loads(pickle.dumps(loaded)).rows_of(2) == plan.rows_of(2)


@pytest.mark.usefixtures("small_parts")
def test_every_flipped_bit_of_a_part_is_seen_when_it_is_read(tmp_path: Path) -> None:
    a_plan().save(tmp_path)
    first = a_plan().rows_of(0)
    part = tmp_path / "plan-00001.jsonl"
    whole = part.read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(whole), 100):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(rng.integers(8))
        part.write_bytes(damaged)
        loaded = Plan.load(tmp_path)
        assert loaded.rows_of(0) == first  # another part: not concerned
        for look in (Plan.check, list, lambda plan: plan.rows_of(2), lambda plan: plan[25]):
            with pytest.raises(ShardError, match=r"plan-00001\.jsonl: the part does not have the digest") as caught:
                look(loaded)
            assert "\n" not in str(caught.value)
    for content in (whole[:-40], whole + b"\n", b"", whole[:-1]):
        part.write_bytes(content)
        with pytest.raises(ShardError, match="digest"):
            list(Plan.load(tmp_path))
    part.unlink()
    with pytest.raises(ShardError, match="plan first"):
        Plan.load(tmp_path).check()


def test_every_changed_byte_of_the_header_is_seen(tmp_path: Path) -> None:
    a_plan().save(tmp_path)
    header = tmp_path / "plan.json"
    head = header.read_bytes()
    rng = np.random.default_rng(1)
    for position in rng.integers(0, len(head), 150):
        damaged = bytearray(head)
        damaged[position] = int(rng.integers(33, 127))
        header.write_bytes(damaged)
        try:
            fields = json.loads(damaged)
        except ValueError:
            fields = None
        if fields == json.loads(head):  # the same byte, or white space
            continue
        with pytest.raises(ShardError) as caught:
            Plan.load(tmp_path)
        assert "\n" not in str(caught.value)
    header.write_bytes(head[:50])
    with pytest.raises(ShardError, match="damaged"):
        Plan.load(tmp_path)
    for text in ("[]", "3", '"plan"', "null", "[" * 100_000):
        header.write_text(text)
        with pytest.raises(ShardError, match="damaged"):
            Plan.load(tmp_path)
    header.unlink()
    with pytest.raises(ShardError, match="plan first"):
        Plan.load(tmp_path)


@pytest.mark.parametrize("number", [1, 3, "2", None])
def test_another_format_is_refused_in_one_line(number: object, tmp_path: Path) -> None:
    a_plan().save(tmp_path)
    header = tmp_path / "plan.json"
    header.write_text(json.dumps({**json.loads(header.read_text()), "format": number}))
    with pytest.raises(ShardError, match=r"plan format .*, this cfaug reads 2: plan again") as caught:
        Plan.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_part_outside_the_place_is_never_read(tmp_path: Path) -> None:
    """Whoever forges the digests too still reads nothing elsewhere."""
    import hashlib

    from cfaug.offline.plan.file import _header_digest

    a_plan().save(tmp_path / "plan")
    path = tmp_path / "plan" / "plan.json"
    header = json.loads(path.read_text())
    (tmp_path / "outside.jsonl").write_bytes((tmp_path / "plan" / "plan-00000.jsonl").read_bytes())
    assert hashlib.sha256((tmp_path / "outside.jsonl").read_bytes()).hexdigest() == header["parts"][0]["sha256"]
    header["parts"][0]["name"] = "../outside.jsonl"
    header["sha256"] = _header_digest(header)
    path.write_text(json.dumps(header))
    with pytest.raises(ShardError):
        Plan.load(tmp_path / "plan")


def test_a_plan_that_stops_half_way_is_no_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cfaug.offline.plan.plan.ROWS_PER_PART", 20)
    plan = a_plan()
    plan.save(tmp_path)
    written: list[str] = []

    def full(self: Any, name: str, content: bytes) -> None:
        written.append(name)
        if len(written) == 3:
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


def test_memory_does_not_grow_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cfaug.offline.plan.plan.ROWS_PER_PART", 2000)
    table = tiny.dataset(100, size=1).table
    peaks = []
    for per_image in (40, 400):  # 4 000 and 40 000 rows
        plan = balance_groups(table, tiny.schema(), per_image, samples_per_shard=100, attributes=["colour", "ground"])
        tracemalloc.start()
        plan.save(tmp_path)
        loaded = Plan.load(tmp_path)
        for shard in list(loaded.shards())[1::7]:
            loaded.rows_of(shard)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


def test_the_pair_of_a_row_is_in_the_same_part(tmp_path: Path) -> None:
    plan = counterfactual_pairs(tiny.dataset(50).table, tiny.schema(), samples_per_shard=7)
    plan.save(tmp_path)
    parts = load_header(open_storage(tmp_path))["parts"]
    assert sum(part.rows for part in parts) == 100
    assert max(len(plan.rows_of(k)) for k in plan.shards()) == 6
