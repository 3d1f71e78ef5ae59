"""Same plan and model, same bytes: for any worker count, through crashes at every step, on a disk that fills up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny
from helpers.processes import alive, killed_at, wait_until

from cfaug.data import ArrayDataset, pixel_digest
from cfaug.data.micro_batch import Sources
from cfaug.errors import CfaugError, DataError, ShardError, StorageError, UsageError
from cfaug.offline import Plan, ShardReader, balance_groups, generate, verify
from cfaug.offline.commit import open_destination
from cfaug.offline.engines import Outcome, attempt
from cfaug.offline.progress import Progress

HERE = Path(__file__).parent


def a_plan(n: int = 24, **options: object) -> Plan:
    settings = {"null_fraction": 0.25, "samples_per_shard": 8, **options}
    return balance_groups(tiny.dataset(n).table, tiny.schema(), **settings)  # type: ignore[arg-type]


def on_shard(patch: pytest.MonkeyPatch, hook: Callable[[str], None]) -> None:
    """Call `hook` with the name of each shard that the run sees committed."""
    counted = Progress.shard

    def shard(self: Progress, name: str, *facts: Any) -> None:
        counted(self, name, *facts)
        hook(name)

    patch.setattr(Progress, "shard", shard)


def run(out: Path, plan: Plan | None = None, **options: object) -> object:
    settings = {"workers": 0, "batch_size": 5, "progress": False, **options}
    model = settings.pop("model", tiny.model())
    data = settings.pop("data", tiny.dataset())
    return generate(model, data, a_plan() if plan is None else plan, out, **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reference")
    run(out, model=tiny.model(batch=5))  # 8 rows a shard: the last batch has to be padded
    return out


def test_records_say_what_was_done(reference) -> None:
    plan, data = a_plan(), tiny.dataset()
    reader = ShardReader(reference)
    assert sorted(reader.keys) == sorted(row.key for row in plan)
    rows = {row.key: row for row in plan}
    model = tiny.model()
    for i in range(len(reader)):
        found, row = reader.sample(i), rows[reader.keys[i]]
        place = list(data.table.index).index(row.source_key)
        record, factual = found.record, dict(data.table.loc[row.source_key])
        assert record["do"] == dict(row.do.assignments)
        assert record["factual"] == factual
        assert record["attributes"] == {**factual, **row.do.assignments}
        assert (record["target"], record["split"], record["model"]) == (factual["digit"], "train", model.digest)
        assert (record["seed"], record["replica"], record["schema"]) == (row.seed, row.replica, 1)
        assert record["source_digest"] == pixel_digest(data.image(place))
        change = np.abs(found.image.astype(float) - data.image(place)).mean() / 255
        assert record["quality"]["change_l1"] == pytest.approx(change, abs=1e-6)
        if row.do.is_null:  # the tiny model reconstructs exactly, and uint8 -> [-1, 1] -> uint8 loses nothing
            np.testing.assert_array_equal(found.image, data.image(place))
    assert verify(reference, plan).ok


def test_gray_images_stay_gray(tmp_path) -> None:
    run(tmp_path, data=tiny.dataset(channels=1))
    assert ShardReader(tmp_path).image(0).shape == (8, 8, 1)


@pytest.mark.parametrize("workers", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3))])
def test_every_worker_count_gives_the_same_bytes(reference, tmp_path, workers: int) -> None:
    marks, out = tmp_path / "marks", tmp_path / "out"
    marks.mkdir()
    report = run(out, workers=workers, model=tiny.model(mark=str(marks), pause=0.05))
    assert (report.written, report.skipped, report.images) == (4, 0, 32)  # type: ignore[attr-defined]
    assert tiny.digests(out) == tiny.digests(reference)
    assert tiny.manifest_lines(out) == tiny.manifest_lines(reference)
    assert str(os.getpid()) not in {p.name.split("-")[0] for p in marks.iterdir()}


def test_the_callers_threads_come_back(tmp_path) -> None:
    torch.set_num_threads(2)
    try:
        run(tmp_path)  # the tiny model asserts that it sees one
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_samples_do_not_depend_on_their_neighbours(reference, tmp_path) -> None:
    """A plan of one shard of the larger plan gives that shard's bytes: a shard is a pure unit of work."""
    plan = a_plan()
    model, data = tiny.model(), tiny.dataset()
    part = Plan(plan.rows_of(2), samples_per_shard=8)
    generate(model, data, part, tmp_path, workers=0, batch_size=5, progress=False)
    name = "cf-train-000002.tar"
    assert (tmp_path / "shards" / name).read_bytes() == (reference / "shards" / name).read_bytes()


def test_a_second_run_makes_only_what_is_lost(reference, tmp_path, monkeypatch) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    out = tmp_path / "out"
    run(out)
    report = run(out, model=tiny.model(mark=str(marks)))
    assert (report.written, report.skipped) == (0, 4)  # type: ignore[attr-defined]
    assert not list(marks.iterdir())
    tar = out / "shards" / "cf-train-000001.tar"
    tar.write_bytes(tar.read_bytes()[:512])
    (out / "shards" / "cf-train-000003.index.jsonl").unlink()
    seen: list[str] = []
    on_shard(monkeypatch, seen.append)
    run(out)
    assert seen == ["cf-train-000001.tar", "cf-train-000003.tar"]
    assert tiny.digests(out) == tiny.digests(reference)
    assert tiny.manifest_lines(out) == tiny.manifest_lines(reference)


@pytest.mark.parametrize("torn", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_crash_at_any_step_resumes_to_the_same_bytes(tmp_path, torn: bool) -> None:
    plan, reference = a_plan(6, samples_per_shard=4), tmp_path / "reference"
    run(reference, plan)
    truth = ShardReader(reference)
    records = {key: truth.record(i) for i, key in enumerate(truth.keys)}
    for step in range(100):
        out = tmp_path / str(step)
        status = killed_at(step, ("fsync", "replace", "write"), partial(run, out, plan), torn)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        if (out / "shards" / "manifest.jsonl").exists():
            if b"\n" in (out / "shards" / "manifest.jsonl").read_bytes():
                reader = ShardReader(out)
                assert all(reader.record(i) == records[key] for i, key in enumerate(reader.keys))
            else:
                with pytest.raises(ShardError, match="an empty one"):
                    ShardReader(out)
        run(out, plan)
        assert tiny.digests(out) == tiny.digests(reference)
        assert tiny.manifest_lines(out) == tiny.manifest_lines(reference)
    assert step > 15


@pytest.mark.slow
def test_a_killed_run_leaves_no_orphans_and_resumes(reference, tmp_path) -> None:
    marks, out = tmp_path / "marks", tmp_path / "out"
    marks.mkdir()
    code = f"""
        import pytest, sys; sys.path[:0] = [{str(HERE)!r}, {str(HERE.parent)!r}]
        import test_generate
        from helpers import tiny
        if __name__ == "__main__":
            test_generate.on_shard(pytest.MonkeyPatch(), lambda name: print(name, flush=True))
            test_generate.run({str(out)!r}, workers=2, model=tiny.model(mark={str(marks)!r}, pause=0.3))
    """
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(code))
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline()  # one shard is committed
    with pytest.raises(UsageError, match="another process"):
        run(out)
    process.kill()
    process.wait()
    workers = {int(p.name.split("-")[0]) for p in marks.iterdir()}
    assert workers
    assert wait_until(lambda: not any(map(alive, workers)))
    committed = len(ShardReader(out).manifest)
    report = run(out)
    assert (report.skipped, report.written) == (committed, 4 - committed)  # type: ignore[attr-defined]
    assert tiny.digests(out) == tiny.digests(reference)
    assert tiny.manifest_lines(out) == tiny.manifest_lines(reference)


def _kill_the_first(marks: Path) -> Callable[[str], None]:
    """A hook that kills the worker of the first shard, once it has begun its second."""
    victims: list[int] = []

    def kill(_: str) -> None:
        pids = {int(p.name.split("-")[0]) for p in marks.iterdir()}
        if not victims:
            victims.append(pids.pop())
            os.kill(victims[0], signal.SIGKILL)

    return kill


@pytest.mark.slow
def test_a_killed_worker_costs_its_shard_once(reference, tmp_path, monkeypatch) -> None:
    marks, out, log = tmp_path / "marks", tmp_path / "out", tmp_path / "stats.jsonl"
    marks.mkdir()
    model = tiny.model(mark=str(marks), pause=0.1)
    on_shard(monkeypatch, _kill_the_first(marks))
    report = run(out, workers=1, model=model, log_to=log)
    assert (report.written, report.retried, report.complete) == (4, 1, True)  # type: ignore[attr-defined]
    assert tiny.digests(out) == tiny.digests(reference)
    assert tiny.manifest_lines(out) == tiny.manifest_lines(reference)
    assert len({p.name.split("-")[0] for p in marks.iterdir()}) > 1
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [event["event"] for event in events].count("retry") == 1
    made = {event["name"]: event for event in events if event["event"] == "shard"}
    assert sorted(event["attempt"] for event in made.values()) == [1, 1, 1, 2]
    assert sum(event["images"] for event in made.values()) == 32


@pytest.mark.slow
def test_without_retries_a_killed_worker_is_listed(reference, tmp_path, monkeypatch) -> None:
    marks, out = tmp_path / "marks", tmp_path / "out"
    marks.mkdir()
    model = tiny.model(mark=str(marks), pause=0.1)
    on_shard(monkeypatch, _kill_the_first(marks))
    with pytest.raises(CfaugError, match=r"1 of 4 shards failed \(cf-train-\d+\.tar; 3 others are committed") as caught:
        run(out, workers=1, model=model, retries=0)
    assert "\n" not in str(caught.value)
    assert "SIGKILL" in str(caught.value) or "-9" in str(caught.value)
    assert verify(out).leftovers == ()
    assert run(out).skipped == 3  # type: ignore[attr-defined]
    assert tiny.digests(out) == tiny.digests(reference)


def test_what_a_message_explains_is_not_tried_again(reference, tmp_path) -> None:
    data, plan = tiny.dataset(), a_plan()
    bad, seen = plan.rows_of(1)[3].source_key, []
    hit = {n for n in plan.shards() if bad in {row.source_key for row in plan.rows_of(n)}}
    whole = data.image

    def image(i: int) -> np.ndarray:
        if data.key(i) == bad:
            seen.append(i)
            raise DataError(f"source {bad!r}: cannot be decoded")
        return whole(i)

    data.image = image  # type: ignore[method-assign]
    with pytest.raises(DataError, match="cannot be decoded") as caught:
        run(tmp_path, data=data)
    assert len(seen) == len(hit)
    assert f"{len(hit)} of 4 shards failed" in str(caught.value)
    assert len(ShardReader(tmp_path).manifest) == 4 - len(hit)
    run(tmp_path)
    assert tiny.digests(tmp_path) == tiny.digests(reference)


class Scripted:
    """An engine that fails shards as told, attempt by attempt, and otherwise does the work here."""

    shared = False

    def __init__(self, script: dict[int, list[Exception]], lose: bool = False) -> None:
        self.script, self.lose, self.calls = script, lose, []  # type: ignore[var-annotated]

    def map(self, work, shards):  # type: ignore[no-untyped-def]
        for shard in shards:
            self.calls.append(shard)
            errors = self.script.get(shard, [])
            if errors:
                error = errors.pop(0)
                yield Outcome(shard, error=error, transient=getattr(error, "transient", False))
            elif self.lose:
                with tempfile.TemporaryDirectory() as elsewhere:
                    yield attempt(replace(work, destination=open_destination(elsewhere)), shard)
            else:
                yield attempt(work, shard)


def scripted(monkeypatch: pytest.MonkeyPatch, out: Path, engine: Scripted, **options: object) -> object:
    module = sys.modules["cfaug.offline.generate"]  # the name of the function hides it
    monkeypatch.setattr(module, "make_engine", lambda *_: engine)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    return run(out, **options)


def passing(n: int = 1) -> list[Exception]:
    return [StorageError("the store did not answer", transient=True) for _ in range(n)]


def test_what_fails_in_passing_is_tried_again(monkeypatch, reference, tmp_path) -> None:
    engine = Scripted({0: passing(), 1: [DataError("source 3.png: no image")], 3: passing(2)})
    with pytest.raises(DataError, match=r"1 of 4 shards failed \(cf-train-000001\.tar; 3 others .*3\.png"):
        scripted(monkeypatch, tmp_path, engine)
    assert engine.calls == [0, 1, 2, 3, 0, 3, 3]
    assert scripted(monkeypatch, tmp_path, Scripted({})).written == 1  # type: ignore[attr-defined]
    assert tiny.digests(tmp_path) == tiny.digests(reference)


def test_what_fails_to_the_end_is_listed(monkeypatch, tmp_path) -> None:
    engine = Scripted({0: passing(9), 2: [DataError("no image")]})
    with pytest.raises(
        CfaugError, match=r"2 of 4 shards failed \(cf-train-000002\.tar, cf-train-000000\.tar; 2 others"
    ):
        scripted(monkeypatch, tmp_path, engine, retries=1)
    assert engine.calls == [0, 1, 2, 3, 0]


def test_a_store_that_is_down_is_not_asked_for_every_shard(monkeypatch, tmp_path) -> None:
    engine = Scripted({shard: passing(9) for shard in range(3, 32)})
    with pytest.raises(StorageError, match=r"10 of 32 shards failed .*3 others.*, 19 were not tried after 10 failures"):
        scripted(monkeypatch, tmp_path, engine, plan=a_plan(samples_per_shard=1))
    assert engine.calls == [*range(13), *range(3, 13), *range(3, 13)]


def test_failures_with_successes_between_them_stop_nothing(monkeypatch, tmp_path) -> None:
    engine = Scripted({shard: [DataError("no image")] for shard in range(0, 32, 2)})
    with pytest.raises(DataError, match=r"16 of 32 shards failed .*; 16 others are committed and kept, the same"):
        scripted(monkeypatch, tmp_path, engine, plan=a_plan(samples_per_shard=1))
    assert engine.calls == list(range(32))


def test_a_store_that_comes_back_is_given_every_shard(monkeypatch, tmp_path) -> None:
    engine = Scripted({shard: passing() for shard in range(3, 13)})
    report = scripted(monkeypatch, tmp_path, engine, plan=a_plan(samples_per_shard=1))
    assert (report.written, report.retried) == (32, 10)  # type: ignore[attr-defined]


def test_a_bug_in_the_model_leaves_one_traceback(tmp_path, caplog) -> None:
    calls: list[int] = []

    class Buggy(tiny.TinyModel):
        def abduct(self, *_: object, **__: object) -> object:
            calls.append(1)
            raise TypeError("unhashable type")

    with pytest.raises(CfaugError, match=r"10 of 32 shards failed .*, 22 were not tried.*TypeError: unhashable"):
        run(tmp_path, plan=a_plan(samples_per_shard=1), model=Buggy(tiny.schema()), batch_size=1)
    assert len(calls) == 10
    assert sum("Traceback" in (record.exc_text or "") for record in caplog.records) <= 1


def test_shards_that_workers_committed_somewhere_else_are_missed(monkeypatch, tmp_path) -> None:
    with pytest.raises(StorageError, match=r"expected 4 shards at .*, got 0 though .*all workers share"):
        scripted(monkeypatch, tmp_path, Scripted({}, lose=True))


def test_the_models_weights_are_hashed_once(tmp_path) -> None:
    asked = []

    class Counting(tiny.TinyModel):
        @property
        def digest(self) -> str:  # type: ignore[override]
            asked.append(1)
            return "counted"

    model = Counting.__new__(Counting)
    for name, value in vars(tiny.model()).items():
        if name != "digest":
            object.__setattr__(model, name, value)
    run(tmp_path, model=model)
    assert len(asked) == 1


@dataclass(frozen=True)
class BrightGate:
    """Keeps images whose mean is at least `least`."""

    least: float

    @property
    def digest(self) -> str:
        return f"bright-{self.least}"

    def __call__(self, images: list, records: list, sources: Sources) -> list[bool]:
        assert len(images) == len(records) == len(sources) == len(sources.images)
        return [image.mean() >= self.least for image in images]


def test_a_gate_leaves_images_out_and_is_part_of_the_run(reference, tmp_path) -> None:
    whole = ShardReader(reference)
    least = float(np.median([whole.image(i).mean() for i in range(len(whole))]))
    report = run(tmp_path, gate=BrightGate(least), log_to=tmp_path / "stats.jsonl")
    kept = [key for i, key in enumerate(whole.keys) if whole.image(i).mean() >= least]
    assert ShardReader(tmp_path).keys == kept
    assert (report.images, report.rejected) == (len(kept), 32 - len(kept))  # type: ignore[attr-defined]
    assert verify(tmp_path, a_plan()).ok
    with pytest.raises(UsageError, match="gate"):
        run(tmp_path)
    with pytest.raises(CfaugError, match="expected the gate to keep an image, got all 8 rejected"):
        run(tmp_path / "none", gate=BrightGate(300))


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_full_disk_is_one_line_and_nothing_is_half_written(reference, small_disk, workers: int) -> None:
    with pytest.raises(CfaugError, match=r"cf-train-\d+\.tar in .*disk is full.*run the same command again") as caught:
        run(small_disk, workers=workers)
    assert "\n" not in str(caught.value)
    report = verify(small_disk)
    assert all("expected a finished run" in problem for problem in report.problems), str(report)
    assert report.leftovers == ()
    assert 0 < report.counts["shards"] < 4
    subprocess.run(["mount", "-o", "remount,size=1m", str(small_disk)], check=True)
    assert run(small_disk).skipped == report.counts["shards"]  # type: ignore[attr-defined]
    assert tiny.digests(small_disk) == tiny.digests(reference)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"plan": a_plan(seed=1)}, "plan="),
        ({"model": tiny.model(digest="other")}, "model=tiny-model-1"),
        ({"batch_size": 4}, "batch_size=5"),
        ({"image": "webp"}, "image=png"),
    ],
)
def test_another_runs_directory_is_refused_unless_overwritten(reference, tmp_path, change: dict, named: str) -> None:
    run(tmp_path)
    with pytest.raises(UsageError, match=named) as caught:
        run(tmp_path, **change)
    assert "--overwrite" in str(caught.value)
    assert tiny.digests(tmp_path) == tiny.digests(reference)
    run(tmp_path, overwrite=True, **change)
    assert verify(tmp_path).ok


def test_overwriting_leaves_nothing_of_the_old_run(reference, tmp_path) -> None:
    run(tmp_path)
    run(tmp_path, plan=a_plan(n=6), overwrite=True)  # fewer shards: the old ones go
    assert verify(tmp_path, a_plan(n=6)).ok
    (tmp_path / "shards" / "manifest.jsonl").write_bytes(b"damaged\n")
    with pytest.raises(ShardError):
        run(tmp_path)
    run(tmp_path, overwrite=True)
    assert tiny.digests(tmp_path) == tiny.digests(reference)


@pytest.mark.parametrize(
    ("broken", "message"), [("nan", "non-finite pixels for plan row"), ("shape", "keep the source's shape")]
)
def test_a_broken_model_is_named_and_nothing_is_left(tmp_path, broken: str, message: str) -> None:
    with pytest.raises(CfaugError, match=message):
        run(tmp_path, model=tiny.model(broken=broken), batch_size=8)
    assert [p.name for p in (tmp_path / "shards").iterdir() if p.name not in (".lock", "RUN.json")] == []


@pytest.mark.parametrize(("workers", "batch", "cure"), [
    (0, 8, "set generate.batch_size=4, with a new --out, or with --overwrite"),
    (0, 1, "make the images smaller"),
    pytest.param(1, 8, "set generate.batch_size=4, with a new --out, or with --overwrite", marks=pytest.mark.slow),
])  # fmt: skip
def test_too_little_memory_names_a_batch_size(tmp_path, workers: int, batch: int, cure: str) -> None:
    with pytest.raises(CfaugError, match=f"with generate.batch_size {batch}; {cure}$") as caught:
        run(tmp_path, model=tiny.model(broken="memory"), workers=workers, batch_size=batch)
    assert "\n" not in str(caught.value)
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".tar", ".partial")]


def test_a_random_model_is_found_out_on_resume(tmp_path) -> None:
    run(tmp_path, model=tiny.model(broken="random"))
    (tmp_path / "shards" / "cf-train-000000.tar").unlink()
    with pytest.raises(ShardError, match="not deterministic"):
        run(tmp_path, model=tiny.model(broken="random"))


def test_sources_of_another_size_are_named(tmp_path) -> None:
    data = tiny.dataset()
    whole = data.image
    data.image = lambda i: whole(i)[:-1] if i == 7 else whole(i)  # type: ignore[method-assign]
    with pytest.raises(DataError, match=r"source 7\.png"):
        run(tmp_path, data=data, batch_size=32)


class Stop(Exception):
    pass


def interrupted(out: Path) -> None:
    """A run that ends after its first shard."""

    def stop(_: str) -> None:
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        on_shard(patch, stop)
        with pytest.raises(Stop):
            run(out)


def test_verify_knows_what_is_missing(tmp_path) -> None:
    plan = a_plan()
    plan.save(tmp_path / "plan")
    interrupted(tmp_path)
    assert verify(tmp_path).problems == (
        "expected 4 shards, got 3 that are missing (cf-train-000001.tar); generate again",
    )
    run(tmp_path)
    assert verify(tmp_path).ok
    a_plan(seed=9).save(tmp_path / "plan")
    assert "a different plan" in verify(tmp_path).problems[0]


def test_verify_without_a_plan_says_what_it_does_not_know(tmp_path) -> None:
    for place in (tmp_path / "run", "memory://half-finished"):
        interrupted(place)  # type: ignore[arg-type]
        report = verify(place)
        assert not report.ok
        assert "missing shards cannot be seen" in str(report)
        assert "expected a finished run, got 1 committed shards so far" in str(report)
        run(place)  # type: ignore[arg-type]
        report = verify(place)
        assert (report.ok, report.notes) == (True, ())


class Masked(ArrayDataset):
    """The tiny data set with a mask for each image: white from row i mod 8 on."""

    def mask(self, i: int, /) -> np.ndarray:
        mask = np.zeros(self.image(i).shape[:2], dtype=np.uint8)
        mask[i % 8 :] = 255
        return mask


def masked() -> Masked:
    plain = tiny.dataset()
    return Masked(plain.images, plain.table, plain.schema)


def test_keys_and_masks_reach_the_model_and_the_gate(tmp_path) -> None:
    data, seen = masked(), []

    class Looking(tiny.TinyModel):
        def abduct(self, images: torch.Tensor, attributes: Any, seed: Any, *, keys: Any, masks: Any) -> Any:
            for image, row, key, mask in zip(images, attributes.to_dict("records"), keys, masks, strict=True):
                i = [data.key(k) for k in range(len(data))].index(key)
                assert torch.equal(mask[0], torch.from_numpy(data.mask(i) / 255).float())
                assert torch.equal(
                    ((image + 1) * 127.5).round().byte().permute(1, 2, 0), torch.from_numpy(data.image(i))
                )
                assert row["digit"] == data.table["digit"].iloc[i]
                seen.append(key)
            return super().abduct(images, attributes, seed)

    class Judging(BrightGate):
        def __call__(self, images: list, records: list, sources: Sources) -> list[bool]:
            assert sources.masks is not None
            assert [record["source_key"] for record in records] == list(sources.keys)
            assert [record["seed"] for record in records] == list(sources.seeds)
            assert len(images) == len(sources.masks) == len(sources.images)
            return [True] * len(images)

    run(tmp_path, data=data, model=Looking(tiny.schema()), gate=Judging(0.0))
    assert set(seen) == {row.source_key for row in a_plan()}


def test_a_mask_that_does_not_fit_is_named(tmp_path) -> None:
    data = masked()
    whole = data.mask
    data.mask = lambda i: None if i == 7 else whole(i)  # type: ignore[method-assign, assignment]
    with pytest.raises(DataError, match=r"source 'source 7\.png': expected a uint8 mask of 8x8, .* got none; correct"):
        run(tmp_path, data=data)


def test_a_source_is_hashed_once(monkeypatch, tmp_path) -> None:
    hashed = []
    monkeypatch.setattr("cfaug.offline.make_shard.pixel_digest", lambda image: hashed.append(1) or pixel_digest(image))
    run(tmp_path, plan=a_plan(per_image=3))
    assert len(hashed) == len(tiny.dataset())
