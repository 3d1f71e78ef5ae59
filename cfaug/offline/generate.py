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
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfaug.causal.graph import CausalGraph, refuse_if_ancestor, refuse_unconfirmed
from cfaug.data import AttributeDataset
from cfaug.errors import CfaugError, DataError, StorageError, UsageError
from cfaug.offline.commit import open_destination
from cfaug.offline.engines import Engine, Outcome, make_engine
from cfaug.offline.format import CARD, ManifestRow
from cfaug.offline.index import publish_index
from cfaug.offline.inspect.card import card
from cfaug.offline.make_shard import Environment, Gate, Model, ShardDone, ShardWork, canvas_of, environment_of
from cfaug.offline.plan import Plan, sources_digest
from cfaug.offline.progress import Progress
from cfaug.offline.storage import LocalStorage
from cfaug.offline.write_shard import field_of

log = logging.getLogger(__name__)

HOPELESS = 10
"""After so many failures in a row the others are not tried: the store is down, or the model broken."""


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
    on_shard: Callable[[ManifestRow], None] | None = None,
    image: str = "png",
    retries: int = 2,
    options: Mapping[str, Any] | None = None,
    log_to: str | Path | None = None,
    tensorboard: str | Path | None = None,
    gate: Gate | None = None,
) -> GenerateReport:
    """Make the images of `plan` and commit them to ``out/shards``; the same call again does what is missing.

    Args:
        dataset: the sources of the plan's split.
        out: a directory or a URL that fsspec reaches (``s3://BUCKET/RUN``).
        engine: local, torchrun, slurm, submitit or ray; `workers` processes of it (local: 0 is this one), `options` its own.
        batch_size: rows that go through the model at once; part of what the bytes depend on, like `image` (png, png-stored or webp).
        overwrite: drop what `out` has.
        on_shard: called with each manifest row that this process sees committed.
        retries: more attempts at a shard whose worker died or whose storage failed. What a message explains (a source that
            cannot be read, a model that returns NaN) is not tried again; the other shards are made, then it is listed.
        log_to: JSON lines, one an event: start, shard, retry, failed, finished.
        tensorboard: directory for the same figures.
        gate: filter of what is made (see :class:`~cfaug.offline.make_shard.Gate`); what it rejects is left out of its shard.

    A committed shard whose file is missing or of the wrong size is made again and must come out the same.

    :class:`UsageError` before anything is written: wrong split, an intervention outside the schema, on the target or on a
    cause of it, a graph with edges that nobody confirmed, shards of another run, another process writing.
    :class:`DataError` for a source the data set does not have. :class:`StorageError` at once for a full disk.
    :class:`CfaugError` lists the shards that failed, with the first reason; what is committed stays.
    """
    if type(batch_size) is not int or batch_size < 1:
        raise UsageError(f"expected batch_size of at least 1, got {batch_size!r}")
    field_of(image)  # refuses another one before anything is written
    if type(retries) is not int or retries < 0:
        raise UsageError(f"expected retries of 0 or more, got {retries!r}")
    if gate is not None and not isinstance(getattr(gate, "digest", None), str):
        raise UsageError(f"expected a gate with a digest (a text that names it), got {type(gate).__name__}: see Gate")
    runner = make_engine(engine, workers, options)
    if runner.shared and overwrite:
        raise UsageError(
            f"expected no --overwrite with the engine {engine}, whose processes would drop one another's shards: "
            "remove the shards first, or use another --out"
        )
    destination = open_destination(out)
    if destination.one_process and not (engine == "local" and workers == 0):
        raise UsageError(f"{destination.storage.url} lives in this process only: use engine local with workers=0")
    _check_sources(dataset, plan)
    _check_interventions(model, plan)
    environment = environment_of(model, batch_size, image, gate)
    work = ShardWork(model, dataset, plan, destination, batch_size, environment, image, gate)
    # asked of the work, which keeps it: neither it nor its workers hash the weights again
    identity: Environment = {"plan": plan.digest, "model": work.model_digest, **environment}
    seen = Progress(len(plan), 0, progress, _path(log_to), _path(tensorboard))  # here: TensorBoard may be missing
    started = time.perf_counter()
    with destination.session(identity, runner.shared, overwrite):
        before = destination.intact()
        todo = plan.missing(before)
        if not todo:  # a finished run is looked at often: nothing to show, nothing to log
            seen = Progress(len(plan), enabled=False)
        seen.done = sum(row.count for row in before.values())
        run = _Run(plan, runner, work, retries, seen, on_shard)
        with seen:
            seen.started(**identity, engine=engine, workers=workers, shards=len(todo))
            run.through(todo)
            complete = _publish(work, runner.shared)
            seen.finished(complete=complete)
    seconds = time.perf_counter() - started
    log.info("generated %d images in %d shards in %.1f s", run.images, run.written, seconds)
    return GenerateReport(
        destination.storage.url, len(plan.shards()), run.written, len(before), run.images, seconds,
        run.rejected, run.retried, complete,
    )  # fmt: skip


class _Run:
    """The shards of one call on their way through the engine, and what became of them."""

    def __init__(
        self,
        plan: Plan,
        engine: Engine,
        work: ShardWork,
        retries: int,
        seen: Progress,
        on_shard: Callable[[ManifestRow], None] | None,
    ) -> None:
        self.plan, self.engine, self.work, self.retries = plan, engine, work, retries
        self.seen, self.on_shard = seen, on_shard
        self.written = self.images = self.rejected = self.retried = 0
        self.failed: dict[str, Exception] = {}
        self.again: dict[int, Exception] = {}
        self.in_a_row = 0

    def through(self, todo: list[int]) -> None:
        """Map `todo`, map again what failed for a reason that may pass, then raise for what is left."""
        left = list(todo)
        for attempt in range(1, self.retries + 2):
            if attempt > 1:
                self.retried += len(self.again)
                time.sleep(min(2.0 ** (attempt - 2), 30))  # a store that has just refused is not asked at once
            left = self._once(left, attempt)
            if not left or (self._hopeless() and not self.again):
                break
        self.failed |= {self.plan.shard_name(shard): error for shard, error in self.again.items()}
        if self.failed:
            raise self._listed(len(todo), len(set(left) - self.again.keys()))

    def _once(self, todo: list[int], attempt: int) -> list[int]:
        """One pass; returns the shards that are worth another: those that failed in passing, and those not tried."""
        self.again.clear()
        self.in_a_row = 0
        untried = dict.fromkeys(todo)
        with closing(self.engine.map(self.work, todo)) as outcomes:
            for outcome in outcomes:
                untried.pop(outcome.shard)
                self._see(outcome, attempt)
                if self._hopeless():
                    return [*self.again, *untried]
        return list(self.again)

    def _hopeless(self) -> bool:
        return self.in_a_row >= HOPELESS

    def _see(self, outcome: Outcome[ShardDone], attempt: int) -> None:
        name, error, done = self.plan.shard_name(outcome.shard), outcome.error, outcome.result
        if isinstance(error, UsageError) or (isinstance(error, StorageError) and error.full):
            raise error  # true for every shard: nothing is gained by trying the others
        if error is not None:
            self.in_a_row += 1
            if outcome.transient:
                self.again[outcome.shard] = error
            else:
                self.failed[name] = error
            tell = self.seen.retry if outcome.transient and attempt <= self.retries else self.seen.failed
            tell(name, str(error))
        elif done is not None:
            self.in_a_row = 0
            self.written += 1
            self.images += done.images
            self.rejected += done.rejected
            self.seen.shard(name, done.images, done.rejected, done.seconds, done.row.bytes, attempt, outcome.worker)
            if self.on_shard is not None:
                self.on_shard(done.row)

    def _listed(self, planned: int, untried: int) -> Exception:
        names, errors = list(self.failed), list(self.failed.values())
        if planned == 1:
            return errors[0]
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        kept = f"{self.written} others are committed and kept"
        if untried:
            kept += f", {untried} were not tried after {self.in_a_row} failures in a row"
        kinds = {type(error) for error in errors}
        kind = kinds.pop() if len(kinds) == 1 and issubclass(type(errors[0]), CfaugError) else CfaugError
        return kind(
            f"{len(names)} of {planned} shards failed ({shown}; {kept}, the same command again makes what is missing): {errors[0]}"
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
            f"expected {len(plan.shards())} shards at {destination.storage.url}, {len(missing)} of them are not there though workers "
            "have committed them: use a place that all workers share"
        )
    if missing:
        return False
    names = [plan.shard_name(number) for number in plan.shards()]
    padded = canvas_of(model) is not None
    text = card(plan, model.schema, padded=padded, image=field_of(work.image), example=rows[names[0]])
    destination.publish(names, {CARD: text.encode()}, rows)
    if isinstance(destination.storage, LocalStorage):
        with destination.staging():  # nobody sweeps up what is being written
            publish_index(destination.storage, sorted(rows.values(), key=lambda row: row.name))
    return True


def _path(place: str | Path | None) -> Path | None:
    return None if place is None else Path(place)


def _check_sources(dataset: AttributeDataset, plan: Plan) -> None:
    """UsageError for another split or an empty plan, DataError for a source that is not there."""
    if dataset.split != plan.split:
        raise UsageError(f"expected a data set of the plan's split {plan.split!r}, got {dataset.split!r}: plan for it")
    if not len(plan):
        raise UsageError("expected a plan with rows, got an empty one")
    known = {dataset.key(i) for i in range(len(dataset))}
    if sources_digest(known) == plan.summary.sources_sha256:
        return  # a plan for all of the data set need not be read row by row
    absent = next((row.source_key for row in plan if row.source_key not in known), None)
    if absent is not None:
        raise DataError(f"source {absent!r} of the plan is not in the data set: plan again")


def _check_interventions(model: Model, plan: Plan) -> None:
    """UsageError for a value that is none, a label that would have to change, and a graph nobody has confirmed."""
    schema, graph = model.schema, getattr(model, "graph", None)
    for name, values in plan.summary.values.items():
        for value in values:
            schema.check_value(name, value)
    names = sorted(plan.summary.names)
    if schema.target in names:
        raise UsageError(
            f"the plan sets the target {schema.target!r}, but training keeps a source's label: plan for other attributes"
        )
    if isinstance(graph, CausalGraph):
        refuse_unconfirmed(graph)
        if schema.target is not None:
            refuse_if_ancestor(graph, schema.target, names)
