"""The engine of a SLURM cluster through submitit: the shards in small groups, one job of an array for each group.

There are more jobs than run at once, so a fast node does more of them. A job that is preempted or reaches its time limit is
requeued by submitit with what it has finished so far and goes on behind it. The outcomes of a group come when its job ends.
Jobs outlive a parent that is killed; what they commit, the next run finds.
"""

from __future__ import annotations

import math
import os
import sys
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from cfaug.data.files import expand
from cfaug.errors import CfaugError, StorageError, UsageError, one_line
from cfaug.offline.engines.protocol import ADVICE, Outcome, PackedWork, check_workers, one_thread, pack

Result = TypeVar("Result")
CLUSTERS = ("auto", "local", "debug", "slurm")
FOLDER = "cfaug-jobs"  # below the working directory, which a cluster's nodes share far more often than /tmp
TIMEOUT_MIN = 240  # submitit's own default is 5 minutes, less than many a model takes to load
TIMEOUTS = 20  # each one found its job with more shards done than the one before
GROUPS_PER_SLOT = 4  # groups small enough that the slowest one is a quarter of a slot's work at the end
MAX_ARRAY = 1000  # jobs of one array; SLURM refuses more where its MaxArraySize is the default of 1001
GRACE = 15.0  # seconds until a file that another node wrote is seen here (NFS attribute caches live 3 to 60 s)
LOOK = 2.0  # seconds between two looks at SLURM's jobs
_STRINGS = ("partition", "account", "qos")
_NUMBERS = {
    "timeout_min": 1, "gpus_per_node": 0, "cpus_per_task": 1, "slurm_array_parallelism": 1, "max_num_timeout": 0, "shards_per_job": 1,
}  # fmt: skip


class SubmititEngine:
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
        """Yield an outcome for every shard, group by group; closing the iterator cancels the jobs.

        Raises:
            UsageError: `work` cannot be pickled. CfaugError: jobs cannot be submitted.
            StorageError: the folder cannot be written.
        """
        # submitit's own: what a script defines itself is importable in no job, and goes by value
        import cloudpickle  # type: ignore[import-untyped]

        if not shards:
            return
        payload = pack(work, cloudpickle.dumps)
        # its own folder: local jobs are named by process numbers, which come again
        run = self.folder / f"run-{uuid.uuid4().hex}"
        try:
            run.mkdir(parents=True)
            (run / "work.pkl").write_bytes(payload)
        except OSError as error:
            raise StorageError(f"cannot write {run} ({error.strerror}); set generate.options.folder") from None
        executor = self._executor(run)
        size = self.shards_per_job or math.ceil(len(shards) / (self.workers * GROUPS_PER_SLOT))
        size = max(size, math.ceil(len(shards) / MAX_ARRAY))
        groups = [shards[start : start + size] for start in range(0, len(shards), size)]
        waiting = [Group(run / "work.pkl", tuple(group), list(sys.path)) for group in groups]
        running: list[Submitted] = []
        # SLURM gets all groups as one array and keeps the limit; elsewhere the limit is ours
        most = len(groups) if executor.cluster == "slurm" else self.workers
        try:
            while waiting or running:
                now, waiting = waiting[: most - len(running)], waiting[most - len(running) :]
                running += _submit(executor, now)
                for job in [job for job in running if job.over()]:
                    running.remove(job)
                    yield from job.outcomes()
                time.sleep(LOOK if executor.cluster == "slurm" else 0.1)
        finally:
            _cancel(running)
            (run / "work.pkl").unlink(missing_ok=True)  # the logs stay

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


class Group:
    """What a job does: one shard of its group after the other. The pickle names the work's file, which all jobs share."""

    def __init__(self, work: Path, shards: tuple[int, ...], path: list[str]) -> None:
        self.work, self.shards, self.path = work, shards, path
        self.done: dict[int, Outcome[Any]] = {}

    def __call__(self) -> list[Outcome[Any]]:
        """The outcomes of the group; fewer when submitit ends the job for good."""
        from submitit.core.utils import UncompletedJobError

        work = PackedWork(self.work.read_bytes(), self.path)
        for shard in self.shards:
            if shard not in self.done:
                outcome = work(shard)
                if isinstance(outcome.error, CfaugError) and str(outcome.error).startswith(
                    UncompletedJobError.__name__
                ):
                    break  # raised by submitit's signal handler into the middle of the work: no time is left
                self.done[shard] = outcome
        return list(self.done.values())

    def checkpoint(self) -> Any:
        """What submitit requeues on preemption or at the time limit: the same again, without what is done."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class Submitted:
    """A submitted job as the parent sees it."""

    def __init__(self, job: Any, group: Group, cluster: str) -> None:
        self.job, self.group, self.cluster = job, group, cluster
        self._ended: float | None = None

    def over(self) -> bool:
        """Whether its result is there, or it ended without one and the file systems had their time."""
        if self.cluster == "debug":
            return True  # it runs when it is asked for its result
        if not self.job.done():
            return False
        self._ended = self._ended or time.monotonic()
        grace = GRACE if self.cluster == "slurm" else 0
        return self.job.paths.result_pickle.exists() or time.monotonic() - self._ended >= grace

    def outcomes(self) -> Iterator[Outcome[Any]]:
        """What the result holds, and a transient error for each shard that has no outcome."""
        left, reason = set(self.group.shards), f"state {self.job.state}"
        if self.cluster == "debug" or self.job.paths.result_pickle.exists():
            try:
                for outcome in self.job.result():
                    left.discard(outcome.shard)
                    yield outcome
            except Exception as error:  # submitit's, with the job's traceback as text: its last line is the reason
                lines = [line for line in str(error).splitlines() if "Error:" in line]
                reason = one_line(lines[-1]) if lines else reason
        for shard in sorted(left):
            told = (
                f"job {self.job.job_id} ended without shard {shard} ({reason}, log {self.job.paths.stderr}); {ADVICE}"
            )
            yield Outcome(shard, error=CfaugError(told), transient=True, worker=f"job {self.job.job_id}")


def _submit(executor: Any, groups: list[Group]) -> list[Submitted]:
    if not groups:
        return []
    try:
        with one_thread():  # sbatch and the local executor hand our environment on
            jobs = executor.submit_array(groups)
    except Exception as error:  # sbatch's refusal comes as whatever submitit makes of it
        raise CfaugError(f"jobs cannot be submitted ({one_line(error)}); check generate.options") from None
    return [Submitted(job, group, executor.cluster) for job, group in zip(jobs, groups)]


def _cancel(running: list[Submitted]) -> None:
    """Local jobs get Ctrl-C, and SIGKILL a second later: be there until they are gone."""
    for submitted in running:
        with suppress(Exception):  # it may have ended by itself
            submitted.job.cancel(check=False)
    deadline = time.monotonic() + 10
    while any(one.cluster == "local" and not one.job.done() for one in running) and time.monotonic() < deadline:
        time.sleep(0.05)


def _check(options: dict[str, Any]) -> None:
    for name, value in options.items():
        if name in _NUMBERS:
            fine, wanted = type(value) is int and value >= _NUMBERS[name], f"a whole number of {_NUMBERS[name]} or more"
        elif name == "mem_gb":
            fine, wanted = type(value) in (int, float) and 0 < value < math.inf, "gigabytes above 0"
        elif name == "cluster":
            fine, wanted = value in CLUSTERS, f"one of {', '.join(CLUSTERS)}"
        elif name == "setup":
            fine = isinstance(value, list | tuple) and all(isinstance(line, str) for line in value)
            wanted = "a list of shell commands"
        else:
            fine, wanted = isinstance(value, str | os.PathLike) and bool(str(value)), "a text"
        if not fine:
            raise UsageError(f"expected {wanted} for option {name} of engine submitit, got {value!r}")
