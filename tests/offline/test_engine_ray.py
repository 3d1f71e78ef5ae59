"""The Ray engine on a real cluster of two CPUs: dead actors, more workers than room, late comers, quiet ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import engine_work
import pytest
from engine_work import OneSlow, OneThread, Unloadable, Work, check_law

from cfaug.errors import CfaugError, UsageError
from cfaug.offline.engines import make_engine, rays

HERE = Path(__file__).parent


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield
        ray.shutdown()


def marks(place: Path) -> list[tuple[int, int]]:
    return [tuple(map(int, path.name.split("-"))) for path in place.iterdir()]  # type: ignore[misc]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def wait_until(true, seconds: float = 20.0) -> bool:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(true())


def test_every_shard_has_one_outcome_whatever_becomes_of_its_actor() -> None:
    """Four actors are asked for and two find room: those that have no place hold no shard."""
    kinds = {n: kind for n, kind in enumerate(engine_work.KINDS) if kind != "segfault"}
    check_law(make_engine("ray", 4), kinds, range(13), range(13))


def test_an_actor_that_finds_room_later_gets_work(tmp_path) -> None:
    """One CPU is taken when the run starts and is given back in the middle of it."""
    import ray

    @ray.remote(num_cpus=1)
    class Squatter:
        def there(self) -> None: ...

    squatter = Squatter.remote()
    ray.get(squatter.there.remote())
    outcomes = make_engine("ray", 2).map(Work(mark=str(tmp_path), pause=0.2), range(60))
    found = [next(outcomes) for _ in range(3)]
    assert len({outcome.worker for outcome in found}) == 1
    ray.kill(squatter)
    for outcome in outcomes:
        found.append(outcome)
        if len({outcome.worker for outcome in found}) == 2:
            break
    outcomes.close()
    assert len({outcome.worker for outcome in found}) == 2


def test_a_killed_actor_costs_its_shard_only(tmp_path) -> None:
    outcomes = make_engine("ray", 2).map(Work(mark=str(tmp_path), pause=0.1), range(200))
    found = [next(outcomes)]
    while len({outcome.worker for outcome in found}) < 2:
        found.append(next(outcomes))
    victim, spared = (int(worker.split(":")[1]) for worker in {outcome.worker for outcome in found})
    os.kill(victim, signal.SIGKILL)
    while len({outcome.worker for outcome in found if outcome.worker}) < 3:  # until somebody has come in its place
        found.append(next(outcomes))
    outcomes.close()
    assert len({outcome.shard for outcome in found}) == len(found)
    lost = [outcome for outcome in found if outcome.error is not None]
    assert len(lost) == 1
    assert lost[0].transient
    assert f"worker process died at shard {lost[0].shard} (" in str(lost[0].error)
    assert "\n" not in str(lost[0].error)
    workers = {int(outcome.worker.split(":")[1]) for outcome in found if outcome.worker}
    assert sum(outcome.worker.endswith(f":{spared}") for outcome in found) > 1
    assert wait_until(lambda: not any(map(alive, workers)))


def test_an_actor_pulls_its_next_shard_when_it_has_finished_one(tmp_path) -> None:
    outcomes = list(make_engine("ray", 2).map(OneSlow(str(tmp_path), others=9), range(10)))
    assert [outcome.error for outcome in outcomes] == [None] * 10
    assert sorted(Counter(outcome.result for outcome in outcomes).values()) == [1, 9]


def test_closing_the_iterator_ends_the_actors_and_not_the_session(tmp_path) -> None:
    import ray

    outcomes = make_engine("ray", 2).map(engine_work.SlowOdd(mark=str(tmp_path)), [3, 2])
    assert next(outcomes).shard == 2
    assert wait_until(lambda: len(marks(tmp_path)) == 2)
    outcomes.close()
    assert wait_until(lambda: not any(alive(pid) for _, pid in marks(tmp_path)))
    assert ray.is_initialized()


def test_actors_have_one_thread_each_however_many_cpus_they_take() -> None:
    (outcome,) = make_engine("ray", 1, {"num_cpus": 2}).map(OneThread(), [0])
    assert outcome.result == ("1", 1)


def test_what_does_not_load_in_an_actor_is_named() -> None:
    (outcome,) = make_engine("ray", 1).map(Unloadable(), [3])
    assert "tensors of another age" in str(outcome.error)
    assert not outcome.transient


def test_actors_that_cannot_start_are_not_replaced_for_ever(monkeypatch) -> None:
    monkeypatch.setattr(rays, "Holder", engine_work.DyingHolder)
    with pytest.raises(CfaugError, match=rf"{rays.STARTS} in a row") as caught:
        list(make_engine("ray", 2).map(Work(), range(50)))
    assert "\n" not in str(caught.value)


def test_a_cluster_without_room_is_mentioned(monkeypatch, caplog) -> None:
    monkeypatch.setattr(rays, "PATIENCE", 0.0)
    monkeypatch.setattr(rays, "LOOK", 0.1)
    monkeypatch.setattr(rays.log, "warning", _raise)
    with pytest.raises(InterruptedError, match="no room"):
        list(make_engine("ray", 1, {"resources": {"unobtainium": 1}}).map(Work(), [0]))


def _raise(message: str) -> None:
    raise InterruptedError(message)


@pytest.mark.parametrize(
    ("workers", "options", "named"),
    [
        (0, {}, "workers of 1 or more"),
        (1, {"num_cpus": -1}, "num_cpus"),
        (1, {"num_gpus": "all"}, "num_gpus"),
        (1, {"resources": ["tpu"]}, "resources"),
        (1, {"runtime_env": "env.yaml"}, "runtime_env"),
        (1, {"address": ""}, "address"),
    ],
)
def test_wrong_options_are_named_at_once(workers: int, options: dict, named: str) -> None:
    with pytest.raises(UsageError, match=named) as caught:
        make_engine("ray", workers, options)
    assert "\n" not in str(caught.value)


def test_what_does_not_pickle_is_told_to_stay_in_process() -> None:
    import threading

    with pytest.raises(UsageError, match="workers=0"):
        list(make_engine("ray", 1).map(Work({0: threading.Lock()}), [0]))  # type: ignore[dict-item]


def test_a_session_of_our_own_is_started_quietly_and_ended(tmp_path) -> None:
    """In a process of its own; what the script itself defines goes by value. A wrong address is one line."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import sys
        from cfaug.errors import UsageError
        from cfaug.offline.engines import make_engine
        class Mine:
            def __call__(self, shard): print("noise"); return shard + 1
        if __name__ == "__main__":
            try:
                list(make_engine("ray", 1, {"address": "nonsense"}).map(Mine(), [1]))
            except UsageError as error:
                print(str(error).count("\\n"), "no Ray cluster at nonsense" in str(error))
            print([outcome.result for outcome in make_engine("ray", 1).map(Mine(), [1, 2])])
            import ray
            print(ray.is_initialized())
        """)
    )
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=100, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["0 True", "[2, 3]", "False"]
    assert "Traceback" not in done.stderr
