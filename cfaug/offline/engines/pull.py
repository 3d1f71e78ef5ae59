"""Workers that each hold the work and pull one shard after the other: the loop of the engines local and ray.

A worker gets its next shard when it has finished one, so a fast worker does more of them, and one that is not ready yet (a
cluster without room) holds no shard up. A worker that dies costs the shard that it had: the outcome of that shard says how the
worker ended, a new worker takes its place, and the others do not notice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Sequence
from typing import Any, Protocol

from cfaug.errors import CfaugError
from cfaug.offline.engines.protocol import ADVICE, Outcome

STARTS = 3  # deaths in a row of workers that have never been ready: more of them would end the same


class Died(Exception):
    """A worker has ended; the text says how, and `worker` which one it was, where that is known (``host:pid``)."""

    def __init__(self, how: str, worker: str = "") -> None:
        super().__init__(how)
        self.worker = worker


class Crew(Protocol):
    """Where workers come from. A future is whatever :meth:`done` and :meth:`result` understand."""

    def start(self) -> tuple[Any, Any]:
        """A new worker, and the future of its being ready."""
        ...

    def ask(self, worker: Any, shard: int) -> Any:
        """The future of the shard's outcome."""
        ...

    def done(self, futures: Iterable[Any]) -> Iterable[Any]:
        """Those that have come true, after waiting for one of them for a while."""
        ...

    def result(self, worker: Any, future: Any) -> Any:
        """What the future holds; :class:`Died` where its worker has ended."""
        ...

    def stop(self, worker: Any) -> None:
        """End the worker at once, in the middle of a shard or not: what it has not committed does not exist."""
        ...


def pull(crew: Crew, shards: Sequence[int], workers: int) -> Generator[Outcome[Any], None, None]:
    """Yield an outcome for every shard. CfaugError where workers end before they are ready, again and again."""
    queue, unready = deque(shards), 0
    asked: dict[Any, tuple[Any, int | None]] = {}  # future -> its worker and shard; None: it gets ready
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
                        told = CfaugError(f"worker process died ({death}) at shard {shard}: {ADVICE}")
                        outcome = Outcome(shard, error=told, transient=True, worker=death.worker)
                    elif (unready := unready + 1) >= STARTS:
                        raise CfaugError(
                            f"worker processes end before they can start, {STARTS} in a row ({death}): a script needs "
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
