"""Generation: plan + model + data set -> committed shards, by any engine, at any destination.

    for outcome in engine.map(work, shards that are missing):  count it, or try again, or list it

Every worker commits its own shards (see :mod:`cfaug.offline.make_shard`); what is here decides what is missing, looks at what
came back and says so. It promises the same bytes only for the same environment (batch size, threads, device type, dtype,
versions), which the manifest records and a later run must match.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfaug.causal.graph import CausalGraph, refuse_if_ancestor, refuse_unconfirmed
from cfaug.data import AttributeDataset
from cfaug.errors import CfaugError, DataError, StorageError, UsageError, described, listed
from cfaug.offline.commit import open_destination
from cfaug.offline.engines import Engine, Outcome, make_engine
from cfaug.offline.format import CARD
from cfaug.offline.gate import Gate
from cfaug.offline.index import publish_index
from cfaug.offline.inspect.card import card
from cfaug.offline.make_shard import Environment, Model, ShardDone, ShardWork, canvas_of, environment_of
from cfaug.offline.plan import Plan
from cfaug.offline.progress import Progress
from cfaug.offline.write_shard import field_of

log = logging.getLogger(__name__)

HOPELESS = 10
"""After so many failures in a row the other shards are not tried: the store is down, or the model broken."""


@dataclass(frozen=True)
class GenerateReport:
    """What a run did: `shards` in the plan, of which `written` now and `skipped` (committed before); `images` made now.

    `retried` counts second and later attempts. `complete`: every shard of the plan is committed; with an engine whose
    processes share the plan (torchrun, slurm) the others may still be at work.
    """

    directory: str
    shards: int
    written: int
    skipped: int
    images: int
    seconds: float
    rejected: int = 0
    retried: int = 0
    complete: bool = True

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds if self.seconds else math.nan


def generate(
    model: Model,
    dataset: AttributeDataset,
    plan: Plan,
    out: str | Path,
    engine: str = "local",
    workers: int = 2,
    batch_size: int = 64,
    progress: bool = True,
    overwrite: bool = False,
    image: str = "png",
    retries: int = 2,
    options: Mapping[str, Any] | None = None,
    gate: Gate | None = None,
    log_to: str | Path | None = None,
    tensorboard: str | Path | None = None,
) -> GenerateReport:
    """Make the images of `plan` and commit them to ``out/shards``; the same call again makes what is missing.

    Args:
        dataset: the sources of the plan's split.
        out: a directory or a URL that fsspec reaches (``s3://BUCKET/RUN``).
        engine: local, torchrun, slurm, submitit or ray; `workers` processes of it (local: 0 is this one), `options` its own.
        batch_size: rows that go through the model at once; part of what the bytes depend on, like `image` (png, png-stored or webp).
        overwrite: drop what `out` has.
        retries: more attempts at a shard whose worker died or whose storage failed. What a message explains (a source that
            cannot be read, a model that returns NaN) is not tried again; the other shards are made, then it is listed.
        gate: filter of what is made (see :class:`~cfaug.offline.gate.Gate`); what it rejects is left out of its shard.
        log_to: JSON lines, one per event: start, shard, retry, failed, end.
        tensorboard: directory for the same figures.

    A committed shard whose file is missing or of the wrong size is made again and must come out the same.

    Raises:
        UsageError: before anything is written: a wrong split, an intervention outside the schema, on the target or on a
            cause of it, a graph with unconfirmed edges, shards of a different run, another process that writes.
        DataError: a source that the data set does not have.
        StorageError: at once for a full disk.
        CfaugError: it lists the shards that failed, with the first reason; what is committed stays.
    """
    _check_options(batch_size, image, retries, gate)
    runner = make_engine(engine, workers, options)
    if runner.shared and overwrite:
        raise UsageError(
            f"expected no --overwrite with the engine {engine}, whose processes would drop one another's shards; "
            "remove the shards first, or use a different --out"
        )
    destination = open_destination(out)
    if destination.one_process and not (engine == "local" and workers == 0):
        raise UsageError(f"{destination.storage.url} lives in this process only; use engine local with workers=0")
    _check_sources(dataset, plan)
    _check_interventions(model, plan)
    environment = environment_of(model, batch_size, image, gate)
    work = ShardWork(model, dataset, plan, destination, batch_size, environment, image, gate)
    # asked of the work, which keeps it: neither it nor its workers hash the weights again
    identity: Environment = {"plan": plan.digest, "model": work.model_digest, **environment}
    logs = (None if place is None else Path(place) for place in (log_to, tensorboard))
    seen = Progress(len(plan), 0, progress, *logs)  # here: TensorBoard may be missing
    started = time.perf_counter()
    with destination.session(identity, runner.shared, overwrite):
        before = destination.intact()
        todo = plan.missing(before)
        if not todo:  # a finished run is looked at often: nothing to show, nothing to log
            seen = Progress(len(plan), enabled=False)
        seen.done = sum(row.count for row in before.values())
        with seen:
            seen.started(**identity, engine=engine, workers=workers, shards=len(todo))
            _through(plan, runner, work, todo, retries, seen)
            complete = _publish(work, runner.shared)
            seen.finished(complete=complete)
    seconds = time.perf_counter() - started
    log.info("generated %d images in %d shards in %.1f s", seen.images, seen.shards, seconds)
    return GenerateReport(
        destination.storage.url, len(plan.shards()), seen.shards, len(before), seen.images, seconds,
        seen.rejected, seen.retried, complete,
    )  # fmt: skip


def _check_options(batch_size: object, image: str, retries: object, gate: object) -> None:
    """UsageError for the first option that cannot be meant."""
    if type(batch_size) is not int or batch_size < 1:
        raise UsageError(f"expected batch_size of at least 1, got {batch_size!r}")
    field_of(image)
    if type(retries) is not int or retries < 0:
        raise UsageError(f"expected retries of 0 or more, got {retries!r}")
    if gate is not None and not isinstance(getattr(gate, "digest", None), str):
        raise UsageError(f"expected a gate with a digest (a text that names it), got {described(gate)}; see Gate")


def _through(plan: Plan, engine: Engine, work: ShardWork, todo: list[int], retries: int, seen: Progress) -> None:
    """Map `todo`, map again what failed for a reason that may pass, then raise for what is left."""
    failed: dict[int, Exception] = {}  # for good
    left, in_a_row = todo, 0
    for attempt in range(1, retries + 2):
        if attempt > 1:
            time.sleep(min(2.0 ** (attempt - 2), 30))  # a store that has just refused is not asked at once
            left = _still_missing(plan, work, left, attempt, seen)
        again: dict[int, Exception] = {}
        untried, in_a_row = dict.fromkeys(left), 0
        with closing(engine.map(work, left)) as outcomes:
            for outcome in outcomes:
                del untried[outcome.shard]
                if outcome.error is None:
                    in_a_row = 0
                    _count(plan, outcome, attempt, seen)
                    continue
                in_a_row += 1
                (again if outcome.transient else failed)[outcome.shard] = outcome.error
                tell = seen.retry if outcome.transient and attempt <= retries else seen.failed
                tell(plan.shard_name(outcome.shard), str(outcome.error))
                if isinstance(outcome.error, UsageError) or getattr(outcome.error, "full", False):
                    raise outcome.error  # true for every shard: nothing is gained by trying the rest
                if in_a_row >= HOPELESS:
                    break
        left = [*again, *untried]
        if not left or (in_a_row >= HOPELESS and not again):
            break
    failed |= again
    if failed:
        names = [plan.shard_name(shard) for shard in failed]
        raise _listed(names, list(failed.values()), len(todo), seen.shards, len(untried), in_a_row)


def _still_missing(plan: Plan, work: ShardWork, left: list[int], attempt: int, seen: Progress) -> list[int]:
    """`left` without the shards that a job committed before it died, which nobody has reported."""
    there = work.destination.intact()
    names = {shard: plan.shard_name(shard) for shard in left}
    for name in names.values():
        if name in there:
            seen.shard(name, there[name].count, 0, 0.0, there[name].bytes, attempt)
    return [shard for shard, name in names.items() if name not in there]


def _count(plan: Plan, outcome: Outcome[ShardDone], attempt: int, seen: Progress) -> None:
    if (done := outcome.result) is not None:
        name = plan.shard_name(outcome.shard)
        seen.shard(name, done.images, done.rejected, done.seconds, done.row.bytes, attempt, outcome.worker)


def _listed(
    names: list[str], errors: list[Exception], planned: int, written: int, untried: int, in_a_row: int
) -> Exception:
    """The one error of a run in which some shards failed: the first reason, of the common kind if there is one."""
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


def _publish(work: ShardWork, shared: bool) -> bool:
    """Whether every shard of the plan is committed; if so the manifest, the card and index.npy are written.

    :class:`StorageError` where some are not and nobody else is at work: workers wrote to a place of their own.
    """
    plan, model, destination = work.plan, work.model, work.destination
    rows = destination.committed()
    missing = plan.missing(rows)
    if missing and not shared:
        raise StorageError(
            f"expected {len(plan.shards())} shards at {destination.storage.url}, got {len(plan.shards()) - len(missing)} though workers "
            "have committed them all; use a place that all workers share"
        )
    if missing:
        return False
    names = [plan.shard_name(number) for number in plan.shards()]
    padded = canvas_of(model) is not None
    text = card(plan, model.schema, padded=padded, image=field_of(work.image), example=rows[names[0]])
    destination.publish(names, {CARD: text.encode()}, rows)
    publish_index(destination.storage, sorted(rows.values(), key=lambda row: row.name))
    return True


def _check_sources(dataset: AttributeDataset, plan: Plan) -> None:
    """UsageError for a different split or an empty plan, DataError for a source that is not there."""
    if dataset.split != plan.split:
        raise UsageError(f"expected a data set of the plan's split {plan.split!r}, got {dataset.split!r}; plan for it")
    if not len(plan):
        raise UsageError("expected a plan with rows, got an empty one; plan again")
    known = {dataset.key(i) for i in range(len(dataset))}
    absent = next((key for key in plan.sources if key not in known), None)
    if absent is not None:
        raise DataError(f"source {absent!r} of the plan is not in the data set; plan again")


def _check_interventions(model: Model, plan: Plan) -> None:
    """UsageError for an unknown value, a label that would have to change, and a graph that nobody has confirmed."""
    schema, graph = model.schema, getattr(model, "graph", None)
    for name, values in plan.summary.values.items():
        for value in values:
            schema.check_value(name, value)
    names = sorted(plan.summary.names)
    if schema.target in names:
        raise UsageError(
            f"expected a plan for attributes other than the target, got {schema.target!r}: training keeps a source's label; "
            "plan again without it"
        )
    if isinstance(graph, CausalGraph):
        refuse_unconfirmed(graph)
        if schema.target is not None:
            refuse_if_ancestor(graph, schema.target, names)
