"""Ranks of a launcher: together they do every shard once, whatever each of them sees as pending."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from helpers import engine_work
from helpers.engine_work import check_law
from hypothesis import given, settings
from hypothesis import strategies as st

from cfaug.errors import UsageError
from cfaug.offline.engines import local_rank, make_engine

HERE = Path(__file__).parent
VARIABLES = {"torchrun": ("RANK", "WORLD_SIZE"), "slurm": ("SLURM_PROCID", "SLURM_NTASKS")}
ALL = [*VARIABLES["torchrun"], *VARIABLES["slurm"], "LOCAL_RANK", "SLURM_LOCALID", "SLURM_JOB_ID", "SLURM_STEP_ID"]


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch) -> None:
    for name in ALL:
        monkeypatch.delenv(name, raising=False)


@given(
    st.sampled_from(list(VARIABLES)),
    st.integers(1, 5),
    st.lists(st.integers(0, 10**7), unique=True, max_size=30),
    st.data(),
)
@settings(max_examples=30, deadline=None)
def test_ranks_do_every_shard_exactly_once(name: str, world: int, shards: list[int], data: st.DataObject) -> None:
    kinds = {shard: data.draw(st.sampled_from(engine_work.IN_PROCESS)) for shard in shards}
    with pytest.MonkeyPatch.context() as patch:
        done: list[int] = []
        for rank in range(world):
            patch.setenv(VARIABLES[name][0], str(rank))
            patch.setenv(VARIABLES[name][1], str(world))
            engine = make_engine(name, 2)
            assert engine.shared
            # another rank may have committed some of the others' by the time that this one looks
            seen = [shard for shard in shards if shard % world == rank or data.draw(st.booleans())]
            part = [shard for shard in shards if shard % world == rank]
            check_law(engine, kinds, data.draw(st.permutations(seen)), part)
            done += part
        assert sorted(done) == sorted(shards)


@pytest.mark.parametrize("name", VARIABLES)
def test_without_a_launcher_it_says_how_to_start(monkeypatch, name: str) -> None:
    rank, world = VARIABLES[name]
    how = {"torchrun": "torchrun --nproc-per-node N -m cfaug generate", "slurm": "srun -n N cfaug generate"}[name]
    wrong = [{}, {rank: "0"}, {world: "2"}, {rank: "2", world: "2"}, {rank: "-1", world: "2"}, {rank: "0", world: "0"}]
    for variables in [*wrong, {rank: "one", world: "2"}, {rank: "0", world: "²"}]:
        with monkeypatch.context() as patch:
            for key, value in variables.items():
                patch.setenv(key, value)
            with pytest.raises(UsageError) as caught:
                make_engine(name, 1)
        assert how in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_batch_script_is_not_a_rank(monkeypatch) -> None:
    """It has the variables of rank 0, and would do one part of the shards and end well."""
    for key, value in {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "77"}.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(UsageError, match="the batch script itself"):
        make_engine("slurm", 1)
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    assert make_engine("slurm", 1).shared
    monkeypatch.delenv("SLURM_STEP_ID")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert make_engine("slurm", 1).shared


def test_the_local_rank(monkeypatch) -> None:
    assert local_rank() == 0
    monkeypatch.setenv("SLURM_LOCALID", "3")
    assert local_rank() == 3
    monkeypatch.setenv("LOCAL_RANK", "1")  # torchrun below srun: the inner launcher knows better
    assert local_rank() == 1
    monkeypatch.setenv("LOCAL_RANK", "gpu1")
    with pytest.raises(UsageError, match="LOCAL_RANK"):
        local_rank()


def test_options_are_refused(monkeypatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(UsageError, match="unknown option 'nodes' of engine torchrun"):
        make_engine("torchrun", 1, {"nodes": 2})


@pytest.mark.slow
def test_a_real_torchrun_of_two_ranks(tmp_path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        import json, os, pathlib, sys; sys.path.insert(0, {str(HERE.parent)!r})
        from helpers.engine_work import Work
        from cfaug.offline.engines import local_rank, make_engine
        done = [outcome.shard for outcome in make_engine("torchrun", 1).map(Work(), range(7))]
        pathlib.Path({str(tmp_path)!r}, f"rank-{{os.environ['RANK']}}.json").write_text(json.dumps([done, local_rank()]))
        """)
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(
        launch, capture_output=True, text=True, timeout=100, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert found == [[[0, 2, 4, 6], 0], [[1, 3, 5], 1]]
