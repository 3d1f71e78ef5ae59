"""The engine of a Ray cluster: actors that each hold the work and pull one shard after the other.

`workers` is how many actors are asked for. An actor that the cluster has no room for yet waits without a shard and starts to
pull when a node joins. The loop is that of :mod:`cfaug.offline.engines.pull`, because ``ray.util.ActorPool`` would give a
dead actor its next task, and plain tasks would leave the model in the memory of the cluster's idle workers.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, ClassVar, TypeVar

from cfaug.errors import UsageError, one_line
from cfaug.offline.engines.protocol import ONE_THREAD, Outcome, PackedWork, check_workers, pack
from cfaug.offline.engines.pull import Died, pull

log = logging.getLogger(__name__)
Result = TypeVar("Result")
LOOK = 5.0  # the most seconds that one wait for an outcome lasts
PATIENCE = 30.0  # seconds between two log lines which say that no actor has found room


class RayEngine:
    """At most `workers` actors at once.

    Args:
        workers: at least 1; there may be more than the cluster has room for.
        address: the cluster's (``auto``, ``ray://host:10001``); None takes RAY_ADDRESS, or starts a cluster on this machine
            and ends it afterwards. A session that is already connected is used and left as it is.
        num_cpus, num_gpus, resources: what one actor takes, by Ray's names (a fraction of a GPU is possible).
        runtime_env: Ray's description of the actors' environment (working_dir, pip, env_vars ...).

    Raises:
        UsageError: ray is not installed, or an option has a wrong value.
    """

    shared = False
    options: ClassVar[tuple[str, ...]] = ("address", "num_cpus", "num_gpus", "resources", "runtime_env")

    def __init__(
        self,
        workers: int,
        address: str | None = None,
        num_cpus: float = 1,
        num_gpus: float = 0,
        resources: Mapping[str, float] | None = None,
        runtime_env: Mapping[str, Any] | None = None,
    ) -> None:
        try:
            import ray  # noqa: F401
        except ImportError:
            raise UsageError('engine ray needs the package ray: pip install "cfaug[ray]"') from None
        check_workers(workers, 1, "ray")
        if address is not None and not (isinstance(address, str) and address):
            raise UsageError(f"expected an address such as auto or ray://host:10001 for engine ray, got {address!r}")
        for name, value in {"num_cpus": num_cpus, "num_gpus": num_gpus, **_table("resources", resources)}.items():
            if type(value) not in (int, float) or not 0 <= value < math.inf:
                raise UsageError(f"expected a number of 0 or more for option {name} of engine ray, got {value!r}")
        environment = _table("runtime_env", runtime_env)
        variables = {**ONE_THREAD, **_table("runtime_env env_vars", environment.get("env_vars"))}
        self.workers, self.address = workers, address
        self.actor_options: dict[str, Any] = {
            "num_cpus": num_cpus,
            "num_gpus": num_gpus,
            "resources": dict(resources or {}),
            "runtime_env": {**environment, "env_vars": variables},
            "max_restarts": 0,  # a restart by Ray would run the same shard again unseen; the caller counts retries
            "max_task_retries": 0,
        }

    def map(self, work: Callable[[int], Result], shards: Sequence[int]) -> Generator[Outcome[Result], None, None]:
        """Yield an outcome for every shard.

        Raises:
            UsageError: `work` cannot be pickled, or there is no cluster at the address.
            CfaugError: several actors in a row ended before they were ready.
        """
        import ray
        from ray import cloudpickle

        if not shards:
            return
        payload = pack(work, cloudpickle.dumps)
        started = not ray.is_initialized()
        if started:
            _connect(self.address)
        try:
            yield from pull(Actors(ray.put(payload), self.actor_options), shards, self.workers)
        finally:
            if started:
                ray.shutdown()


class Actors:
    """Ray's actors as a :class:`~cfaug.offline.engines.pull.Crew`."""

    def __init__(self, payload: Any, options: Mapping[str, Any]) -> None:
        import ray

        self._payload = payload
        self._new: Any = ray.remote(Holder).options(**options)
        self._anyone, self._said = False, time.monotonic()

    def start(self) -> tuple[Any, Any]:
        actor = self._new.remote(self._payload, sys.path)
        return actor, actor.ready.remote()

    def ask(self, worker: Any, shard: int) -> Any:
        return worker.make.remote(shard)

    def done(self, futures: Iterable[Any]) -> Iterable[Any]:
        import ray

        done, _ = ray.wait(list(futures), num_returns=1, timeout=LOOK)
        self._anyone = self._anyone or bool(done)
        if not self._anyone and time.monotonic() - self._said > PATIENCE:
            self._said = time.monotonic()
            log.warning(
                "no Ray actor has started yet: the cluster has no room for one with these num_cpus and num_gpus"
            )
        return list(done)

    def result(self, worker: Any, future: Any) -> Any:
        import ray

        try:
            return ray.get(future)
        except (
            ray.exceptions.RayError
        ) as error:  # also for a node that was lost, and for a network that did not come back
            raise Died(one_line(f"{type(error).__name__}: {error}")) from None

    def stop(self, worker: Any) -> None:
        import ray

        with suppress(Exception):  # it may have ended by itself
            ray.kill(worker)


class Holder:
    """The actor. It holds the work, unpickled once."""

    def __init__(self, payload: bytes, path: Sequence[str]) -> None:
        self._work = PackedWork(payload, path)

    def ready(self) -> None:
        """It returns once the actor has a place in the cluster and has the work."""

    def make(self, shard: int) -> Outcome[Any]:
        return self._work(shard)


def _connect(address: str | None) -> None:
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a run reports to nobody
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None and not os.environ.get("RAY_ADDRESS"):
        quiet["include_dashboard"] = False
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise UsageError(
            f"expected a Ray cluster at {address or 'this machine'}, got none ({one_line(error)}); check generate.options.address"
        ) from None


def _table(name: str, value: Any) -> dict[str, Any]:
    if value is not None and not isinstance(value, Mapping):
        raise UsageError(f"expected a mapping for option {name} of engine ray, got {value!r}")
    return dict(value or {})
