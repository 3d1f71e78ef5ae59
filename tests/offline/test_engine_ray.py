"""The Ray engine on a real cluster of two CPUs: dead actors, more workers than room, late comers, quiet ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from helpers import engine_work
from helpers.engine_work import THREADS, OneSlow, OneStays, Work, check_law
from helpers.processes import alive, wait_until

from cfaug.errors import CfaugError, UsageError
from cfaug.offline.engines import Engine, Outcome, make_engine
from cfaug.offline.engines import ray_engine as rays

# A worker takes two of the four CPUs, so two find room; Ray would give each as many threads, if nobody said otherwise.
ROOM = {"num_cpus": 2}


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_prestart_worker_first_driver", "0")  # idle processes that none of our actors would take
        for name in THREADS:
            patch.setenv(name, "2")
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield
        ray.shutdown()


def ours(workers: int, options: dict[str, Any] | None = None) -> Engine:
    return make_engine("ray", workers, {**ROOM, **(options or {})})


def numbers(outcomes: list[Outcome[Any]]) -> set[int]:
    """The processes that answered."""
    return {int(outcome.worker.split(":")[1]) for outcome in outcomes if outcome.worker}


@pytest.mark.parametrize(
    "dead", ["kill", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("exit", "segfault"))]
)
def test_every_shard_has_one_outcome_whatever_kills_an_actor(dead: str) -> None:
    """Four actors are asked for and two find room: those that have no place hold no shard."""
    check_law(ours(4), dict(enumerate([*engine_work.IN_PROCESS, dead])), range(12), range(12))


@pytest.mark.slow
def test_actors_come_with_room_and_are_replaced_when_killed(tmp_path) -> None:
    import ray

    @ray.remote(num_cpus=2)
    class Squatter:
        def there(self) -> None: ...

    squatter = Squatter.remote()
    ray.get(squatter.there.remote())
    outcomes = ours(2).map(OneStays(pause=0.05, place=str(tmp_path)), range(800))
    found = [next(outcomes) for _ in range(3)]
    assert len(numbers(found)) == 1
    ray.kill(squatter)
    while len(numbers(found)) < 2:
        found.append(next(outcomes))
    victim, spared = numbers(found)
    os.kill(victim, signal.SIGKILL)
    while len(numbers(found)) < 3:  # until somebody has come in its place
        found.append(next(outcomes))
    assert len({outcome.shard for outcome in found}) == len(found)
    lost = [outcome for outcome in found if outcome.error is not None]
    assert len(lost) == 1
    assert lost[0].transient
    assert f") at shard {lost[0].shard}: " in str(lost[0].error)
    assert "\n" not in str(lost[0].error)
    assert sum(outcome.worker.endswith(f":{spared}") for outcome in found) > 1
    (tmp_path / "now").touch()
    while not (tmp_path / "stays").exists():
        found.append(next(outcomes))
    outcomes.close()  # while one is in the middle of a minute
    assert wait_until(lambda: not any(map(alive, numbers(found))))
    assert ray.is_initialized()


@pytest.mark.slow
def test_an_actor_pulls_its_next_shard_and_has_one_thread(tmp_path) -> None:
    outcomes = list(ours(2).map(OneSlow(str(tmp_path), others=9), range(10)))
    assert [outcome.error for outcome in outcomes] == [None] * 10
    assert sorted(Counter(outcome.result[0] for outcome in outcomes).values()) == [1, 9]
    assert [outcome.result[1] for outcome in outcomes] == [{"1"}] * 10


@pytest.mark.slow
def test_actors_that_cannot_start_are_not_replaced_for_ever(monkeypatch) -> None:
    monkeypatch.setattr(rays, "Holder", engine_work.DyingHolder)
    with pytest.raises(CfaugError, match="3 in a row") as caught:
        list(ours(2).map(Work(), range(50)))
    assert "\n" not in str(caught.value)


def test_a_cluster_without_room_is_mentioned(monkeypatch, caplog) -> None:
    monkeypatch.setattr(rays, "PATIENCE", 0.0)
    monkeypatch.setattr(rays, "LOOK", 0.1)
    monkeypatch.setattr(rays.log, "warning", _raise)
    with pytest.raises(InterruptedError, match="no room"):
        list(ours(1, {"resources": {"unobtainium": 1}}).map(Work(), [0]))


def _raise(message: str) -> None:
    raise InterruptedError(message)


def test_what_does_not_pickle_is_told_to_stay_in_process() -> None:
    import threading

    with pytest.raises(UsageError, match="workers=0"):
        list(ours(1).map(Work({0: threading.Lock()}), [0]))  # type: ignore[dict-item]


@pytest.mark.slow
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
                print(str(error).count("\\n"), "expected a Ray cluster at nonsense" in str(error))
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
