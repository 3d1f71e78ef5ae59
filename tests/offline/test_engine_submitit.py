"""The submitit engine with submitit's own local executor: real jobs, requeued when preempted, cancelled when closed."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
from helpers import engine_work
from helpers.engine_work import OneSlow, Work, check_law
from helpers.processes import alive, marks, wait_until

from cfaug.errors import CfaugError
from cfaug.offline.engines import Engine, make_engine
from cfaug.offline.engines import submitit_engine as jobs


def engine(folder: Path, workers: int = 2, **options: object) -> Engine:
    return make_engine("submitit", workers, {"cluster": "local", "folder": str(folder), **options})


@pytest.mark.parametrize(
    "dead", ["exit", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("kill", "segfault"))]
)
def test_every_shard_has_one_outcome_whatever_kills_a_job(tmp_path, dead: str) -> None:
    """All kinds in one job, and a job that dies before it has finished a shard."""
    kinds = dict(enumerate([*engine_work.IN_PROCESS, dead]))
    check_law(engine(tmp_path, shards_per_job=len(engine_work.IN_PROCESS)), kinds, range(len(kinds)), range(len(kinds)))


@pytest.mark.slow
def test_a_killed_job_gives_all_its_shards_back(tmp_path) -> None:
    """What it has committed is found by whoever maps them again; its log stays, the model does not."""
    outcomes = list(engine(tmp_path, 1, shards_per_job=3).map(Work({2: "kill"}), [0, 1, 2, 3]))
    assert sorted(outcome.shard for outcome in outcomes) == [0, 1, 2, 3]
    done = {outcome.shard: outcome for outcome in outcomes}
    assert done[3].result == 9
    for shard in (0, 1, 2):
        assert done[shard].transient
        assert f"ended without shard {shard}" in str(done[shard].error)
    assert Path(str(done[2].error).split("log ")[1].split(")")[0]).exists()
    assert not list(tmp_path.rglob("work.pkl"))


def signal_at_second(place: Path) -> None:
    """SLURM's signal to the job when it has begun its second shard."""
    assert wait_until(lambda: [shard for shard, _ in marks(place)] == [0, 1])
    os.kill(marks(place)[0][1], signal.SIGUSR2)


# below ten minutes submitit takes every signal for the time limit, at which only what has checkpoint() is requeued
@pytest.mark.parametrize(
    "minutes", [pytest.param(240, id="preempted"), pytest.param(5, id="time-limit", marks=pytest.mark.slow)]
)
def test_a_job_is_requeued_and_goes_on_where_it_was(tmp_path, minutes: int) -> None:
    """SLURM's signal reaches the job in the middle of its second shard: the first one is not made again."""
    place = tmp_path / "marks"
    place.mkdir()
    options = {"shards_per_job": 3, "timeout_min": minutes}
    outcomes = engine(tmp_path / "jobs", 1, **options).map(Work(mark=str(place), pause=0.5), [0, 1, 2])
    signalled = threading.Thread(target=signal_at_second, args=(place,))
    signalled.start()
    found = list(outcomes)
    signalled.join()
    before = marks(place)[0][1]
    assert [(outcome.shard, outcome.error) for outcome in found] == [(0, None), (1, None), (2, None)]
    first = found[0]
    assert [shard for shard, _ in marks(place)] == [0, 1, 1, 2]
    assert {pid for _, pid in marks(place)[:2]} == {before}
    assert before not in {pid for _, pid in marks(place)[2:]}
    assert first.worker.endswith(f":{before}")


@pytest.mark.slow
def test_a_job_that_has_timed_out_too_often_gives_its_shards_back(tmp_path) -> None:
    """submitit raises into the middle of the work then: that is no error of the shard's."""
    place = tmp_path / "marks"
    place.mkdir()
    # below ten minutes submitit takes every signal for the time limit
    options = {"shards_per_job": 2, "timeout_min": 5, "max_num_timeout": 0}
    signalled = threading.Thread(target=signal_at_second, args=(place,))
    signalled.start()
    kept, lost = engine(tmp_path / "jobs", 1, **options).map(Work(mark=str(place), pause=0.5), [0, 1])
    signalled.join()
    assert kept.result == 0
    assert lost.shard == 1
    assert lost.transient
    assert "ended without shard 1" in str(lost.error)


@pytest.mark.slow
def test_closing_the_iterator_cancels_the_jobs(tmp_path) -> None:
    place = tmp_path / "marks"
    place.mkdir()
    outcomes = engine(tmp_path / "jobs", 2, shards_per_job=2).map(engine_work.SlowOdd(mark=str(place)), [2, 4, 3, 5, 6])
    assert next(outcomes).shard in (2, 4)
    assert next(outcomes).shard in (2, 4)
    assert wait_until(lambda: 3 in {shard for shard, _ in marks(place)})  # in the middle of a minute
    outcomes.close()
    assert not any(alive(pid) for _, pid in marks(place))
    assert 6 not in {shard for shard, _ in marks(place)}


@pytest.mark.slow
def test_a_free_slot_takes_the_next_group(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    place = tmp_path / "marks"
    place.mkdir()
    found = []
    for outcome in engine(tmp_path / "jobs", 2, shards_per_job=1).map(OneSlow(str(place), others=2), range(3)):
        assert len(list(tmp_path.glob("jobs/*/*/*_submitted.pkl"))) <= 2 + len(found)
        found.append(outcome)
    assert sorted((outcome.shard, outcome.error) for outcome in found) == [(0, None), (1, None), (2, None)]
    processes, threads = zip(*(outcome.result for outcome in found))
    assert len(set(processes)) == 3  # the slow one's, beside two others
    assert threads == ({"1"},) * 3
    assert os.environ["OMP_NUM_THREADS"] == "2"


def test_the_debug_cluster_runs_here(tmp_path, capsys) -> None:
    outcomes = list(engine(tmp_path, 1, cluster="debug").map(Work({1: "data"}), [0, 1, 2]))
    assert {outcome.shard: outcome.result for outcome in outcomes} == {0: 0, 1: None, 2: 4}
    assert {outcome.worker.split(":")[1] for outcome in outcomes} == {str(os.getpid())}


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Path:
    """Stand-ins for SLURM's commands, there is none here: the script that sbatch is given, and what scancel is."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, body in {"sbatch": f'cp "$1" {tmp_path}/batch.sh; echo "Submitted batch job 77"', "srun": "", "sacct": "echo 'JobID|State|NodeList'; echo '77_[0-99]|CANCELLED|'", "scancel": f"echo $1 >> {tmp_path}/cancelled"}.items():  # fmt: skip
        (commands / name).write_text(f"#!/bin/sh\n{body}\n")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setattr(jobs, "GRACE", 0.0)
    monkeypatch.setattr(jobs, "LOOK", 0.1)
    return tmp_path


def test_slurm_gets_our_options_as_one_array(slurm) -> None:
    options = {"cluster": "auto", "partition": "gpu", "account": "lab", "qos": "low", "timeout_min": 90, "gpus_per_node": 1, "cpus_per_task": 4, "mem_gb": 16, "setup": ["module load cuda"], "shards_per_job": 2}  # fmt: skip
    outcomes = list(engine(slurm / "jobs", 3, **options).map(Work(), range(8)))
    assert sorted(outcome.shard for outcome in outcomes) == list(range(8))
    assert all(outcome.transient and "CANCELLED" in str(outcome.error) for outcome in outcomes)
    script = (slurm / "batch.sh").read_text()
    for line in ("partition=gpu", "account=lab", "qos=low", "time=90", "gpus-per-node=1", "cpus-per-task=4", "mem=16GB", "array=0-3%3"):  # fmt: skip
        assert f"#SBATCH --{line}\n" in script
    assert "\nmodule load cuda\n" in script


@pytest.mark.parametrize("options", [{}, {"shards_per_job": 1}])
def test_an_array_is_never_longer_than_slurm_takes(slurm, monkeypatch, options: dict) -> None:
    assert jobs.MAX_ARRAY <= 1000  # MaxArraySize is 1001 where nobody has set it
    monkeypatch.setattr(jobs, "MAX_ARRAY", 4)
    outcomes = list(engine(slurm / "jobs", 3, cluster="auto", **options).map(Work(), range(10)))
    assert sorted(outcome.shard for outcome in outcomes) == list(range(10))
    assert "#SBATCH --array=0-3%3\n" in (slurm / "batch.sh").read_text()


def test_what_cannot_be_submitted_is_one_line(tmp_path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(CfaugError, match=r"generate\.options\.folder") as caught:
        list(engine(file).map(Work(), [1]))
    assert "\n" not in str(caught.value)
