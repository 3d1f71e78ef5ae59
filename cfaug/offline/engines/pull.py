"""The loop of the engines local and ray: each worker holds the work and pulls one shard after the other.

A worker gets its next shard when it has finished one, so a fast worker makes more of them, and a worker that is not ready yet
(the cluster has no room) delays no shard. When a worker dies, only its current shard is lost. The outcome of that shard is
transient and says how the worker ended, and a new worker takes its place. Whether the shard is made again is decided in
:mod:`cfaug.offline.retry_shards`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Sequence
from typing import Any, Protocol

from cfaug.errors import CfaugError
from cfaug.offline.engines.protocol import ADVICE, Outcome

STARTS = 3  # after so many deaths in a row of workers that were never ready, no more are started


class Died(Exception):
    """A worker has ended. The text says how; `worker` is its ``host:pid``, or empty where that is not known."""

    def __init__(self, how: str, worker: str = "") -> None:
        super().__init__(how)
        self.worker = worker


class Crew(Protocol):
    """What starts, asks and stops workers. A future is an object that its :meth:`done` and :meth:`result` understand."""

    def start(self) -> tuple[Any, Any]:
        """A new worker, and the future that comes true when it is ready."""
        ...

    def ask(self, worker: Any, shard: int) -> Any:
        """The future of the shard's outcome."""
        ...

    def done(self, futures: Iterable[Any]) -> Iterable[Any]:
        """The futures that have come true, after waiting for one of them for a while."""
        ...

    def result(self, worker: Any, future: Any) -> Any:
        """The result of the future; :class:`Died` where its worker has ended."""
        ...

    def stop(self, worker: Any) -> None:
        """End the worker at once, also in the middle of a shard: what it has not committed does not exist."""
        ...


def pull(crew: Crew, shards: Sequence[int], workers: int) -> Generator[Outcome[Any], None, None]:
    """Yield an outcome for every shard. CfaugError where several workers in a row end before they are ready."""
    queue, unready = deque(shards), 0
    asked: dict[Any, tuple[Any, int | None]] = {}  # future -> its worker and shard; None: the worker is getting ready
    try:
        for _ in range(min(workers, len(queue))):
            worker, future = crew.start()
            asked[future] = worker, None
        while queue or any(shard is not None for _, shard in asked.values()):
            for future in crew.done(asked):
                worker, shard = asked.pop(future)
                outcome = None
                try:
                    outcome, unready = crew.result(worker, future), 0
                except Died as death:
                    crew.stop(worker)
                    worker = None
                    if shard is not None:
                        told = CfaugError(f"worker process died ({death}) at shard {shard}; {ADVICE}")
                        outcome = Outcome(shard, error=told, transient=True, worker=death.worker)
                    elif (unready := unready + 1) >= STARTS:
                        raise CfaugError(
                            f"worker processes end before they can start, {STARTS} in a row ({death}); a script needs "
                            "its call below `if __name__ == '__main__':`, and what it imports must be importable again; "
                            "or use fewer workers if memory ran out, or engine=local with workers=0"
                        ) from None
                if not queue:
                    if worker is not None:
                        crew.stop(worker)
                elif worker is None:
                    worker, future = crew.start()
                    asked[future] = worker, None
                else:
                    following = queue.popleft()
                    asked[crew.ask(worker, following)] = worker, following
                if shard is not None and outcome is not None:
                    yield outcome
    finally:
        for worker, _ in asked.values():
            crew.stop(worker)
