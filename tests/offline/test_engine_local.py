"""The local engine: exactly one outcome for each shard, through workers that die; and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from helpers import engine_work
from helpers.engine_work import OneSlow, OneThread, Unloadable, Unpicklable, Work, check_law
from helpers.processes import alive, marks, wait_until
from hypothesis import given, settings
from hypothesis import strategies as st

from cfaug.errors import CfaugError, UsageError
from cfaug.offline.engines import LocalEngine, local, make_engine

HERE = Path(__file__).parent
SHARDS = st.lists(st.integers(0, 1000), unique=True, max_size=6)


@given(SHARDS, st.data())
@settings(max_examples=60, deadline=None)
def test_every_shard_has_one_outcome_in_process(shards: list[int], data: st.DataObject) -> None:
    kinds = {shard: data.draw(st.sampled_from(engine_work.IN_PROCESS)) for shard in shards}
    check_law(make_engine("local", 0), kinds, shards, shards)


@pytest.mark.slow
@given(SHARDS, st.integers(1, 3), st.data())
@settings(max_examples=20, deadline=None)
def test_every_shard_has_one_outcome_in_workers(shards: list[int], workers: int, data: st.DataObject) -> None:
    kinds = {shard: data.draw(st.sampled_from(engine_work.KINDS)) for shard in shards}
    check_law(make_engine("local", workers), kinds, shards, shards)


@pytest.mark.slow
def test_every_kind_of_failure_comes_back_as_itself() -> None:
    """All kinds in one run: whatever a draw leaves out."""
    kinds = dict(enumerate(engine_work.KINDS))
    check_law(LocalEngine(2), kinds, range(len(kinds) + 3), range(len(kinds) + 3))


def test_a_dead_worker_costs_its_shard_and_says_how_it_ended(tmp_path) -> None:
    """Killed from outside in the middle of shard 1; the other worker's process does not change."""
    with closing(LocalEngine(2).map(Work(mark=str(tmp_path), pause=0.1), range(1000))) as outcomes:
        found = [next(outcomes)]
        while len({pid for _, pid in marks(tmp_path)}) < 2:  # shards are handed out while somebody asks for outcomes
            found.append(next(outcomes))
        spared = int(found[0].worker.split(":")[1])
        victim = next(pid for _, pid in marks(tmp_path) if pid != spared and alive(pid))
        os.kill(victim, signal.SIGKILL)
        while len({outcome.worker for outcome in found}) < 3:  # until somebody has come in its place
            found.append(next(outcomes))
    assert len({outcome.shard for outcome in found}) == len(found)
    lost = [outcome for outcome in found if outcome.error is not None]
    assert len(lost) == 1
    assert lost[0].transient
    assert lost[0].worker.endswith(f":{victim}")
    assert f"worker process died (exit code -9, SIGKILL) at shard {lost[0].shard}" in str(lost[0].error)
    later = {int(outcome.worker.split(":")[1]) for outcome in found} - {victim}
    assert spared in later
    assert len(later) == 2  # the spared one, and the one in the victim's place
    assert not any(alive(pid) for pid in later)


@pytest.mark.slow
def test_a_worker_pulls_its_next_shard_when_it_has_finished_one(tmp_path) -> None:
    outcomes = list(LocalEngine(2).map(OneSlow(str(tmp_path), others=9), range(10)))
    assert [outcome.error for outcome in outcomes] == [None] * 10
    done = Counter(outcome.result[0] for outcome in outcomes if outcome.result)
    assert sorted(done.values()) == [1, 9]


@pytest.mark.slow
def test_workers_have_one_thread_each(monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    (outcome,) = LocalEngine(1).map(OneThread(), [0])
    assert outcome.result == ("1", 1)
    assert os.environ["OMP_NUM_THREADS"] == "2"


@pytest.mark.slow
def test_an_iterator_closed_early_stops_the_work_at_once(tmp_path) -> None:
    outcomes = LocalEngine(2).map(engine_work.SlowOdd(mark=str(tmp_path)), [3, 2])
    assert next(outcomes).shard == 2
    assert wait_until(lambda: len(marks(tmp_path)) == 2)
    started = time.monotonic()
    outcomes.close()
    assert time.monotonic() - started < 40  # shard 3 would take a minute
    assert not any(alive(pid) for _, pid in marks(tmp_path))


@pytest.mark.parametrize(
    "how", ["kill", *(pytest.param(how, marks=pytest.mark.slow) for how in ("terminate", "interrupt"))]
)
def test_workers_leave_with_their_parent_however_it_ends(tmp_path, how: str) -> None:
    script = tmp_path / "script.py"
    (tmp_path / "marks").mkdir()
    script.write_text(
        textwrap.dedent(f"""
        import sys; sys.path.insert(0, {str(HERE.parent)!r})
        from helpers.engine_work import SlowOdd
        from cfaug.offline.engines import LocalEngine
        if __name__ == "__main__":
            work = SlowOdd({{}}, {str(tmp_path / "marks")!r})
            outcomes = LocalEngine(2).map(work, range(2, 1000))
            print(next(outcomes).shard, flush=True)
            for outcome in outcomes: pass
        """)
    )
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    # a worker is in the middle of a shard of a minute: it reads no pipe of its own there
    assert wait_until(lambda: any(shard % 2 for shard, _ in marks(tmp_path / "marks")))
    if how == "kill":
        process.kill()
    if how == "terminate":
        process.terminate()
    if how == "interrupt":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    _, said = process.communicate(timeout=60)
    workers = {pid for _, pid in marks(tmp_path / "marks")}
    assert workers
    assert wait_until(lambda: not any(map(alive, workers)))
    if how == "interrupt":
        assert said.count(b"KeyboardInterrupt") == 1  # the parent's own


@pytest.mark.slow
def test_a_script_without_a_main_guard_ends_with_a_line(tmp_path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys, pathlib; sys.path.insert(0, {str(HERE.parent)!r})
        with open({str(tmp_path / "runs")!r}, "a") as file: file.write("x")
        from helpers.engine_work import Work
        from cfaug.offline.engines import LocalEngine
        work = Work({{99: "x" * (1 << 20)}})  # more than a pipe has room for, as a real model is
        list(LocalEngine(2).map(work, range(5)))
        """)
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "CfaugError: worker processes end before they can start, 3 in a row (exit code 1)" in last
    assert "`if __name__ == '__main__':`" in last
    assert len((tmp_path / "runs").read_text()) <= 6  # itself and its workers


@pytest.mark.slow
def test_workers_killed_before_they_start_end_the_run(monkeypatch) -> None:
    monkeypatch.setattr(local, "prepare", engine_work.killed_at_the_start)
    with pytest.raises(CfaugError, match=r"3 in a row \(exit code -9, SIGKILL\)"):
        list(LocalEngine(2).map(Work(), range(50)))


@pytest.mark.slow
def test_a_worker_that_is_killed_before_it_starts_costs_nothing(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(local, "prepare", engine_work.killed_at_the_first_start)
    monkeypatch.setenv("CFAUG_TEST_PLACE", str(tmp_path))
    outcomes = list(LocalEngine(2).map(Work(), range(5)))
    assert sorted(outcome.shard for outcome in outcomes) == list(range(5))
    assert all(outcome.error is None for outcome in outcomes)
    assert (tmp_path / "killed").exists()


@pytest.mark.slow
def test_what_does_not_load_in_a_worker_is_named_and_not_tried_again() -> None:
    outcomes = list(LocalEngine(1).map(Unloadable(), [3]))
    assert "tensors of another age" in str(outcomes[0].error)
    assert not outcomes[0].transient


@pytest.mark.slow
def test_a_result_that_does_not_pickle_is_an_error() -> None:
    (outcome,) = LocalEngine(1).map(Unpicklable(), [3])
    assert isinstance(outcome.error, CfaugError)
    assert "pickle" in str(outcome.error)


def test_what_does_not_pickle_is_told_to_stay_in_process() -> None:
    with pytest.raises(UsageError, match="workers=0") as caught:
        next(LocalEngine(1).map(lambda shard: shard, [0]))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_large_work_reaches_every_worker() -> None:
    """Larger than any pipe's buffer, and every worker gets all of it."""
    blob = "x" * (8 << 20)
    outcomes = list(LocalEngine(2).map(Work({99: blob}), range(6)))
    assert sorted(outcome.result for outcome in outcomes) == [n * n for n in range(6)]


@pytest.mark.parametrize("name", ["submitit", "ray"])
def test_a_missing_extra_is_named_with_the_pip_line(monkeypatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=rf'pip install "cfaug\[{name}\]"'):
        make_engine(name, 1)
