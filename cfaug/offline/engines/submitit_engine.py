"""The engine of a SLURM cluster through submitit: the shards in small groups, one job of an array for each group.

There are more jobs than run at once, so a fast node does more of them. A job leaves each shard's outcome in a file as it
goes: the parent yields it at the next look, and a job that is preempted or reaches its time limit is requeued by
submitit and skips what it has outcomes for. Jobs outlive a parent that is killed; what they commit, the next run finds.
"""

from __future__ import annotations

import math
import os
import pickle
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from cfaug.data.files import expand
from cfaug.errors import CfaugError, StorageError, UsageError, one_line
from cfaug.offline.engines.protocol import Outcome, check_workers
from cfaug.offline.engines.worker import ADVICE, PackedWork, one_thread, pack

Result = TypeVar("Result")
CLUSTERS = ("auto", "local", "debug", "slurm")
FOLDER = "cfaug-jobs"  # below the working directory, which a cluster's nodes share far more often than /tmp
TIMEOUT_MIN = 240  # submitit's own default is 5 minutes, less than many a model takes to load
TIMEOUTS = 20  # each one found its job with more shards done than the one before
GROUPS_PER_SLOT = 4  # groups small enough that the slowest one is a quarter of a slot's work at the end
MAX_ARRAY = 1000  # jobs of one array; SLURM refuses more where its MaxArraySize is the default of 1001
GRACE = 15.0  # seconds until a file that another node wrote is seen here (NFS attribute caches live 3 to 60 s)
LOOK = 2.0  # seconds between two looks at what SLURM's jobs have left
_STRINGS = ("partition", "account", "qos")
_NUMBERS = {
    "timeout_min": 1, "gpus_per_node": 0, "cpus_per_task": 1, "slurm_array_parallelism": 1, "max_num_timeout": 0, "shards_per_job": 1,
}  # fmt: skip


class JobEngine:
    """At most `workers` jobs at once of a SLURM array (cluster=slurm), or as processes of this machine (cluster=local).

    Args:
        workers: jobs at once, at least 1; `slurm_array_parallelism` overrides it.
        options: see `options`; `folder` (shared with the nodes, default ``./cfaug-jobs``) holds the jobs' logs,
            `shards_per_job` is the size of a group (default: four groups for each of the `workers`); groups are
            larger where there would be more than a thousand of them.

    Raises:
        UsageError: submitit is not installed, or an option has a wrong value.
    """

    shared = False
    options: ClassVar[tuple[str, ...]] = (*_STRINGS, *_NUMBERS, "mem_gb", "cluster", "folder", "setup")

    def __init__(self, workers: int, **options: Any) -> None:
        try:
            import submitit  # noqa: F401
        except ImportError:
            raise UsageError('engine submitit needs the package submitit: pip install "cfaug[submitit]"') from None
        check_workers(workers, 1, "submitit")
        _check(options)
        self.workers: int = options.pop("slurm_array_parallelism", workers)
        self.cluster: str = options.pop("cluster", "auto")
        self.folder = expand(options.pop("folder", FOLDER)).absolute()
        self.shards_per_job: int | None = options.pop("shards_per_job", None)
        self.timeouts: int = options.pop("max_num_timeout", TIMEOUTS)
        self.given = options

    def map(self, work: Callable[[int], Result], shards: Sequence[int]) -> Generator[Outcome[Result], None, None]:
        """Yield an outcome for every shard, as the jobs leave them; closing the iterator cancels the jobs.

        Raises:
            UsageError: `work` cannot be pickled. CfaugError: jobs cannot be submitted.
            StorageError: the folder cannot be written.
        """
        # submitit's own: what a script defines itself is importable in no job, and goes by value
        import cloudpickle  # type: ignore[import-untyped]

        if not shards:
            return
        payload = pack(work, cloudpickle.dumps)
        run = (
            self.folder / f"run-{uuid.uuid4().hex}"
        )  # its own: local jobs are named by process numbers, which come again
        try:
            run.mkdir(parents=True)
            (run / "work.pkl").write_bytes(payload)
        except OSError as error:
            raise StorageError(f"cannot write {run} ({error.strerror}): set generate.options.folder") from None
        executor = self._executor(run)
        size = self.shards_per_job or math.ceil(len(shards) / (self.workers * GROUPS_PER_SLOT))
        size = max(size, math.ceil(len(shards) / MAX_ARRAY))
        groups = [shards[start : start + size] for start in range(0, len(shards), size)]
        waiting = [_Job(run, number, tuple(group), list(sys.path)) for number, group in enumerate(groups)]
        running: list[_Submitted] = []
        try:
            while waiting or running:
                running += self._submit(executor, waiting, len(running))
                for job in list(running):
                    yield from job.outcomes()
                    if job.over():
                        yield from job.rest()
                        running.remove(job)
                time.sleep(LOOK if executor.cluster == "slurm" else 0.1)
        finally:
            for job in running:
                job.cancel()
            _wait(running)
            (run / "work.pkl").unlink(missing_ok=True)
            shutil.rmtree(run / "outcomes", ignore_errors=True)  # the logs stay

    def _executor(self, run: Path) -> Any:
        import submitit

        names = {name: f"slurm_{name}" for name in _STRINGS}
        given = {names.get(name, name): value for name, value in self.given.items() if name != "setup"}
        setup = self.given.get("setup")
        try:
            executor = submitit.AutoExecutor(
                run / "%j",
                cluster=None if self.cluster == "auto" else self.cluster,
                slurm_max_num_timeout=self.timeouts,
                local_max_num_timeout=self.timeouts,
            )
            executor.update_parameters(
                **{"timeout_min": TIMEOUT_MIN, "name": "cfaug", **given},
                slurm_array_parallelism=self.workers,
                **({} if setup is None else {"slurm_setup": setup, "local_setup": setup}),
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise UsageError(f"engine submitit cannot use cluster {self.cluster}: {one_line(error)}") from None
        return executor

    def _submit(self, executor: Any, waiting: list[_Job], running: int) -> list[_Submitted]:
        """SLURM gets all groups as one array and keeps the limit; elsewhere the limit is ours."""
        count = len(waiting) if executor.cluster == "slurm" else min(len(waiting), self.workers - running)
        if not count:
            return []
        now, waiting[:] = waiting[:count], waiting[count:]
        try:
            with one_thread():  # sbatch and the local executor hand our environment on
                jobs = executor.submit_array(now)
        except Exception as error:  # sbatch's refusal comes as whatever submitit makes of it
            raise CfaugError(
                f"jobs cannot be submitted ({one_line(error)}): check the options of generate.options"
            ) from None
        return [_Submitted(job, ours, executor.cluster) for job, ours in zip(jobs, now)]


class _Job:
    """What a job does: each shard of its group that has no outcome yet. The pickle names the work's file, one for all."""

    def __init__(self, run: Path, number: int, shards: tuple[int, ...], path: list[str]) -> None:
        self.run, self.number, self.shards, self.path = run, number, shards, path

    def __call__(self) -> list[Outcome[Any]]:
        """The outcomes of the group; fewer when submitit ends the job for good."""
        from submitit.core.utils import UncompletedJobError

        work = PackedWork((self.run / "work.pkl").read_bytes(), self.path)
        self.place.mkdir(parents=True, exist_ok=True)
        done = self.outcomes()
        for shard in self.shards:
            if shard in done:
                continue
            outcome = work(shard)
            if isinstance(outcome.error, CfaugError) and str(outcome.error).startswith(UncompletedJobError.__name__):
                break  # raised by submitit's signal handler into the middle of the work: no time is left
            done[shard] = outcome
            partial = self.place / f"{shard}.partial"
            partial.write_bytes(pickle.dumps(outcome))
            os.replace(partial, self.place / f"{shard}.pkl")
        return list(done.values())

    def checkpoint(self) -> Any:
        """What submitit requeues on preemption or at the time limit: the same again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    @property
    def place(self) -> Path:
        return self.run / "outcomes" / str(self.number)

    def outcomes(self) -> dict[int, Outcome[Any]]:
        """Shard -> what a job of this group has left so far."""
        found = {}
        for shard in self.shards:
            with suppress(FileNotFoundError):
                found[shard] = pickle.loads((self.place / f"{shard}.pkl").read_bytes())
        return found


class _Submitted:
    """A submitted job as the parent sees it."""

    def __init__(self, job: Any, ours: _Job, cluster: str) -> None:
        self.job, self._ours, self._cluster = job, ours, cluster
        self._left = set(ours.shards)
        self._ended: float | None = None

    def outcomes(self) -> Iterator[Outcome[Any]]:
        """Those that came since the last look."""
        try:
            present = {entry.name for entry in os.scandir(self._ours.place)}
        except FileNotFoundError:
            return
        for shard in sorted(self._left):
            if f"{shard}.pkl" in present:
                yield from self._new(pickle.loads((self._ours.place / f"{shard}.pkl").read_bytes()))

    def over(self) -> bool:
        """Whether no more will come: its result is there, or it ended without one and the file systems had their time."""
        if not self._left:
            return True
        if self._cluster == "debug":
            return True  # runs when it is asked for its result
        if not self.job.done():
            return False
        if self.job.paths.result_pickle.exists():
            return True
        self._ended = self._ended or time.monotonic()
        return time.monotonic() - self._ended > (GRACE if self._cluster == "slurm" else 0)

    def rest(self) -> Iterator[Outcome[Any]]:
        """After the end: what the result holds, and a transient error for each shard that has no outcome."""
        if not self._left:
            return
        reason = f"state {self.job.state}"
        if self._cluster == "debug" or self.job.paths.result_pickle.exists():
            try:
                for outcome in self.job.result():
                    yield from self._new(outcome)
            except Exception as error:  # submitit's, with the job's traceback as text: its last line is the reason
                lines = [line for line in str(error).splitlines() if line.strip()]
                reason = next((line for line in reversed(lines) if "Error:" in line), reason).strip()[:300]
        yield from self.outcomes()
        for shard in sorted(self._left):
            told = (
                f"job {self.job.job_id} ended without shard {shard} ({reason}, log {self.job.paths.stderr}): {ADVICE}"
            )
            yield Outcome(shard, error=CfaugError(told), transient=True, worker=f"job {self.job.job_id}")

    def cancel(self) -> None:
        with suppress(Exception):  # it may have ended by itself
            self.job.cancel(check=False)

    def gone(self) -> bool:
        return self._cluster != "local" or bool(self.job.done())

    def _new(self, outcome: Outcome[Any]) -> Iterator[Outcome[Any]]:
        if outcome.shard in self._left:
            self._left.remove(outcome.shard)
            yield outcome


def _wait(jobs: list[_Submitted]) -> None:
    """Local jobs get Ctrl-C, and SIGKILL a second later: be there when they are gone."""
    deadline = time.monotonic() + 10
    while not all(job.gone() for job in jobs) and time.monotonic() < deadline:
        time.sleep(0.05)


def _check(options: dict[str, Any]) -> None:
    for name, value in options.items():
        said = f"option {name} of engine submitit"
        if name in _NUMBERS and (type(value) is not int or value < _NUMBERS[name]):
            raise UsageError(f"expected a whole number of {_NUMBERS[name]} or more for {said}, got {value!r}")
        if name == "mem_gb" and (type(value) not in (int, float) or not 0 < value < math.inf):
            raise UsageError(f"expected gigabytes above 0 for {said}, got {value!r}")
        if name == "cluster" and value not in CLUSTERS:
            raise UsageError(f"expected one of {', '.join(CLUSTERS)} for {said}, got {value!r}")
        if name in (*_STRINGS, "folder") and not (isinstance(value, str | os.PathLike) and str(value)):
            raise UsageError(f"expected a text for {said}, got {value!r}")
        if name == "setup" and not (isinstance(value, list | tuple) and all(isinstance(v, str) for v in value)):
            raise UsageError(f"expected a list of shell commands for {said}, got {value!r}")
