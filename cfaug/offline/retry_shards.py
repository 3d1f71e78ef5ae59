"""Which shards are made again: those of workers that died and of stores that did not answer, up to `retries` times.

    engine.map(work, shards) -> outcomes        made: count it; transient: make it again; else: give the shard up, try the others

An engine retries nothing. It only says of each failure whether trying again may help (``Outcome.transient``): a killed
worker's shard comes back so from :mod:`cfaug.offline.engines.pull`, a store's time-out from
:func:`~cfaug.offline.os_errors.is_transient`. A bad source or a NaN comes out the same every time and is not made again.
"""

from __future__ import annotations

import time
from contextlib import closing

from cfaug.errors import CfaugError, UsageError, listed
from cfaug.offline.engines import Engine
from cfaug.offline.make_shard import ShardWork
from cfaug.offline.progress import Progress

HOPELESS = 10
"""After so many failures in a row the other shards are not tried: the store is down, or the model broken."""
LONGEST_WAIT = 30.0  # seconds before an attempt; the waits are 1, 2, 4, ...


def make_and_retry(engine: Engine, work: ShardWork, shards: list[int], retries: int, progress: Progress) -> None:
    """Make and commit `shards`, each in at most ``1 + retries`` attempts; every outcome goes to `progress`.

    Raises:
        UsageError, StorageError: at once, for what is true of every shard (wrong settings, a full disk).
        CfaugError: after all others were made: the shards that failed, with the first reason.
    """
    given_up: dict[int, Exception] = {}
    left = shards
    for attempt in range(1, retries + 2):
        if attempt > 1:
            time.sleep(min(2.0 ** (attempt - 2), LONGEST_WAIT))  # a store that has just refused is not asked at once
            left = _not_committed(work, left, attempt, progress)
        again: dict[int, Exception] = {}
        untried, in_a_row = dict.fromkeys(left), 0
        with closing(engine.map(work, left)) as outcomes:
            for outcome in outcomes:
                shard, error, name = outcome.shard, outcome.error, work.plan.shard_name(outcome.shard)
                del untried[shard]
                if error is None:
                    in_a_row = 0
                    if (done := outcome.result) is not None:
                        progress.shard(
                            name,
                            done.images,
                            done.rejected,
                            done.seconds,
                            done.row.bytes,
                            attempt,
                            outcome.worker,
                            done.reasons,
                        )
                    continue
                in_a_row += 1
                if outcome.transient:
                    again[shard] = error
                else:
                    given_up[shard] = error
                log = progress.retry if outcome.transient and attempt <= retries else progress.failed
                log(name, str(error))
                if isinstance(error, UsageError) or getattr(error, "full", False):
                    raise error  # it is true of every shard: nothing is gained by trying the others
                if in_a_row >= HOPELESS:
                    break
        left = [*again, *untried]
        if not left or (in_a_row >= HOPELESS and not again):
            break
    given_up |= again
    if given_up:
        names = [work.plan.shard_name(shard) for shard in given_up]
        raise _summed_up(names, list(given_up.values()), len(shards), progress.shards, len(untried), in_a_row)


def _not_committed(work: ShardWork, shards: list[int], attempt: int, progress: Progress) -> list[int]:
    """`shards` without those that a worker committed before it died: they are counted, nobody has reported them."""
    committed = work.destination.intact()
    names = {shard: work.plan.shard_name(shard) for shard in shards}
    for name in names.values():
        if name in committed:
            progress.shard(name, committed[name].count, 0, 0.0, committed[name].bytes, attempt)
    return [shard for shard, name in names.items() if name not in committed]


def _summed_up(
    names: list[str], errors: list[Exception], planned: int, written: int, untried: int, in_a_row: int
) -> Exception:
    """The one error of a run in which some shards failed: the first reason, of the errors' common type if there is one."""
    if planned == 1:
        return errors[0]
    kept = f"{written} others are committed and kept"
    if untried:
        kept += f", {untried} were not tried after {in_a_row} failures in a row"
    kinds = {type(error) for error in errors}
    kind = kinds.pop() if len(kinds) == 1 and isinstance(errors[0], CfaugError) else CfaugError
    return kind(
        f"{len(names)} of {planned} shards failed ({listed(names)}; {kept}, the same command again makes what is missing): "
        f"{errors[0]}"
    )
