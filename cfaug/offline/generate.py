"""Generation: plan + model + data set -> committed shards, with any engine, at any destination.

    check -> claim the destination -> shards that are missing -> make them -> manifest, card and index.npy

Every worker makes and commits its own shards (:mod:`cfaug.offline.make_shard`); which of them are tried again is decided in
:mod:`cfaug.offline.retry_shards`. The same bytes are promised only for the same environment (batch size, threads, device
type, dtype, versions), which the manifest records and a later run must match.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfaug.causal.graph import CausalGraph, refuse_if_ancestor, refuse_unconfirmed
from cfaug.causal.intervention import check_value
from cfaug.data import AttributeDataset
from cfaug.errors import DataError, StorageError, UsageError, described
from cfaug.offline.commit import open_destination
from cfaug.offline.engines import make_engine
from cfaug.offline.environment import Environment, canvas_of, environment_of, working_size_of
from cfaug.offline.format import CARD
from cfaug.offline.gate import Gate
from cfaug.offline.index import publish_index
from cfaug.offline.inspect.card import card
from cfaug.offline.make_shard import Model, ShardWork, is_imported
from cfaug.offline.plan import Plan
from cfaug.offline.progress import Progress
from cfaug.offline.retry_shards import make_and_retry
from cfaug.offline.write_shard import field_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GenerateReport:
    """What a run did: `shards` in the plan, of which `written` now and `skipped` (committed before); `images` made now.

    `retried` counts second and later attempts. `complete`: every shard of the plan is committed. With an engine whose
    processes share the plan (torchrun, slurm) it may be false, because a different process is still at work.
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
        retries: more attempts at a shard whose worker died or whose storage failed (:mod:`cfaug.offline.retry_shards`). A
            shard that fails for a reason of its own (a source that cannot be read, a model that returns NaN) is listed at
            the end, after the other shards are made.
        gate: a filter of the images (see :class:`~cfaug.offline.gate.Gate`); what it rejects is left out of its shard.
        log_to: JSON lines, one per event: start, shard, retry, failed, end.
        tensorboard: directory for the same figures.

    A committed shard whose file is missing or of the wrong size is made again and must come out the same.

    Raises:
        UsageError: before anything is written, for a wrong split, an intervention outside the schema, on the target or on a
            cause of it, a graph with unconfirmed edges, shards of a different run, or another process that writes.
        DataError: a source is not in the data set.
        StorageError: the disk is full; the run stops at once.
        CfaugError: some shards failed; the message lists them with the first reason, and what is committed stays.
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
        raise UsageError(
            f"expected a destination that all workers reach, got {destination.storage.url}, which is in this process only; use "
            "engine local with workers=0"
        )
    _check_sources(dataset, plan)
    _check_interventions(model, plan)
    environment = environment_of(model, batch_size, image, gate, working_size_of(dataset))
    work = ShardWork(model, dataset, plan, destination, batch_size, environment, image, gate)
    # the digest is asked of the work, which keeps it, so that the weights are hashed only once
    identity: Environment = {"plan": plan.digest, "model": work.model_digest, **environment}
    logs = (None if place is None else Path(place) for place in (log_to, tensorboard))
    seen = Progress(len(plan), 0, progress, *logs)  # made before the claim, because TensorBoard may be missing
    started = time.perf_counter()
    with destination.session(identity, runner.shared, overwrite):
        before = destination.intact()
        todo = plan.missing(before)
        if not todo:  # nothing is shown or logged when a finished run is started again
            seen = Progress(len(plan), enabled=False)
        seen.done = sum(row.count for row in before.values())
        with seen:
            seen.started(**identity, engine=engine, workers=workers, shards=len(todo))
            make_and_retry(runner, work, todo, retries, seen)
            complete = _publish(work, runner.shared)
            seen.finished(complete=complete)
    seconds = time.perf_counter() - started
    log.info("generated %d images in %d shards in %.1f s", seen.images, seen.shards, seconds)
    return GenerateReport(
        destination.storage.url, len(plan.shards()), seen.shards, len(before), seen.images, seconds,
        seen.rejected, seen.retried, complete,
    )  # fmt: skip


def _check_options(batch_size: object, image: str, retries: object, gate: object) -> None:
    """UsageError for the first option with a wrong value."""
    if type(batch_size) is not int or batch_size < 1:
        raise UsageError(f"expected batch_size of at least 1, got {batch_size!r}")
    field_of(image)
    if type(retries) is not int or retries < 0:
        raise UsageError(f"expected retries of 0 or more, got {retries!r}")
    if gate is not None and not isinstance(getattr(gate, "digest", None), str):
        raise UsageError(f"expected a gate with a digest (a text that names it), got {described(gate)}; see Gate")


def _publish(work: ShardWork, shared: bool) -> bool:
    """Write manifest, card and index.npy where every shard of the plan is committed, and return whether it is.

    :class:`StorageError` where shards are missing though no other process is at work: the workers wrote to different places.
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
    text = card(
        plan, model.schema, padded=padded, image=field_of(work.image), example=rows[names[0]], imported=is_imported(model)
    )  # fmt: skip
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
            check_value(schema, name, value)
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
