"""Generation: plan + model + data set -> committed shards. One shard is one pure unit of work.

    for micro-batch (source, do, seed) of the shard:  x' = model.act(do).predict(model.abduct(x, attributes, seed))
    stored image = round((x' + 1) * 127.5)  in uint8,  with  x = source / 127.5 - 1  in [-1, 1]

Micro-batches are consecutive rows of one shard, the last one padded to full size by repeating its last row, on one
thread: worker count, restarts and order change no byte. A model with a ``canvas`` gets every source padded to that size
(last row and column repeated), whatever is in its batch; the result is cropped back and the record says by how much. It promises the same bytes only for the same environment
(batch size, threads, device type, dtype, versions), which the manifest records and a later run must match.
"""

from __future__ import annotations

import importlib.metadata
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from cfaug.causal.graph import CausalGraph, refuse_if_ancestor, refuse_unconfirmed
from cfaug.causal.intervention import Intervention
from cfaug.data import AttributeDataset, Schema, pixel_digest
from cfaug.errors import CfaugError, DataError, UsageError, generating
from cfaug.offline.card import card
from cfaug.offline.engines import make_engine
from cfaug.offline.format import CARD, FORMAT, ManifestRow, Sample
from cfaug.offline.plan import Plan, PlanRow
from cfaug.offline.staging import Staged, stage_shard
from cfaug.offline.writer import ShardDirectory

log = logging.getLogger(__name__)
Environment = dict[str, str | int]


class ActedModel(Protocol):
    """A model under interventions: exogenous noise of B rows -> (images (B, C, H, W) in [-1, 1], table of B rows)."""

    def predict(self, noise: Any) -> tuple[Any, pd.DataFrame]: ...


class Model(Protocol):
    """What generation knows of a model: abduct, act, predict, a digest, a fitted schema. Picklable for workers > 0.

    It may have ``canvas: tuple[int, int] | None``, (height, width) that sources of different sizes are padded to, and must
    then have it in its digest; without one all sources have one size.
    """

    @property
    def schema(self) -> Schema: ...

    @property
    def digest(self) -> str: ...

    def abduct(self, images: Any, attributes: pd.DataFrame, seed: Any) -> Any: ...

    def act(self, interventions: Any) -> ActedModel: ...


@dataclass(frozen=True)
class GenerateReport:
    """What a run did: `shards` in the plan, of which `written` now and `skipped` (committed before); `images` made."""

    directory: Path
    shards: int
    written: int
    skipped: int
    images: int
    seconds: float

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
) -> GenerateReport:
    """Make the images of `plan` and commit them to ``out/shards``; the same call again does what is missing.

    `dataset` holds the sources of the plan's split. `workers` processes (0: this one) on `engine`; `batch_size` rows go
    through the model at once. A committed shard whose file is missing or of the wrong size is made again and must come
    out the same. `on_shard` is called with each manifest row as it is committed. `overwrite` drops what `out` has.

    :class:`UsageError` before anything is written: wrong split, an intervention outside the schema, on the target or on a
    cause of it, a graph with edges that nobody confirmed, shards of another run, another process writing. :class:`DataError` for a source the data set does not have. :class:`CfaugError` for a
    full disk, a dead worker, a model that returns the wrong shape or non-finite pixels.
    """
    if type(batch_size) is not int or batch_size < 1:
        raise UsageError(f"expected batch_size of at least 1, got {batch_size!r}")
    runner = make_engine(engine, workers)
    positions = _positions(dataset, plan)
    _check_interventions(model, plan)
    environment = environment_of(model, batch_size)
    started = time.perf_counter()
    with ShardDirectory(Path(out) / "shards") as shards:
        if overwrite:
            _forget(shards)
        for row in shards.load().values():
            _check_same_run(shards.directory, row, plan, model, environment)
        todo = [number for number in plan.shards() if not shards.intact(plan.shard_name(number))]
        planned = sum(len(plan.rows_of(number)) for number in todo)
        work = ShardWork(model, dataset, plan, positions, shards.directory, batch_size, environment)
        with _bar(len(plan), len(plan) - planned, progress) as bar, closing(runner.map(work, todo)) as results:
            for outcome in results:
                if outcome.error is not None:
                    raise outcome.error
                assert outcome.result is not None
                row = shards.commit(outcome.result)
                bar.update(row.count)
                if on_shard is not None:
                    on_shard(row)
        shards.write_text(CARD, card(plan, model.schema, padded=_canvas(model) is not None))
    seconds = time.perf_counter() - started
    log.info("generated %d images in %d shards in %.1f s", planned, len(todo), seconds)
    return GenerateReport(
        shards.directory, len(plan.shards()), len(todo), len(plan.shards()) - len(todo), planned, seconds
    )


@dataclass(frozen=True)
class ShardWork:
    """The pure unit of work: called with a shard number, it stages that shard in `directory`."""

    model: Model
    dataset: AttributeDataset
    plan: Plan
    positions: dict[str, int]
    directory: Path
    batch_size: int
    environment: Environment

    def __call__(self, shard: int) -> Staged:
        name = self.plan.shard_name(shard)
        with _one_thread():
            return stage_shard(
                self.directory, name, self._samples(shard), self.plan.digest, self.model.digest, self.environment
            )

    def _samples(self, shard: int) -> Iterator[Sample]:
        rows = self.plan.rows_of(shard)
        for start in range(0, len(rows), self.batch_size):
            with generating(self.batch_size, self.batch_size):  # here, so that a worker's error is explained too
                yield from self._batch(rows[start : start + self.batch_size])

    def _batch(self, rows: Sequence[PlanRow]) -> Iterator[Sample]:
        import torch

        from cfaug.data.loading import pad_to  # needs torch

        schema = self.model.schema
        padded = [*rows, *[rows[-1]] * (self.batch_size - len(rows))]
        places = [self.positions[row.source_key] for row in padded]
        sources = [self.dataset.image(place) for place in places[: len(rows)]]
        canvas = _canvas(self.model)
        _check_images(sources, rows, canvas)
        framed = sources if canvas is None else [pad_to(source, canvas) for source in sources]
        images = np.stack([*framed, *[framed[-1]] * (len(padded) - len(rows))])
        table = schema.canonical(self.dataset.table.iloc[places])
        table.index = pd.Index([f"{row.key}~{i}" if i >= len(rows) else row.key for i, row in enumerate(padded)])
        x = torch.from_numpy(images).permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1
        with torch.inference_mode():
            noise = self.model.abduct(x.contiguous(), table, seed=[row.seed for row in padded])
            made, attributes = self.model.act([row.do for row in padded]).predict(noise)
        if tuple(made.shape) != tuple(x.shape) or len(attributes) != len(padded):
            raise CfaugError(
                f"expected {tuple(x.shape)} images and {len(padded)} attribute rows from the model, "
                f"got {tuple(made.shape)} and {len(attributes)}: its predict must keep the source's shape"
            )
        pixels = _uint8(made, rows)
        records = zip(rows, sources, pixels, _plain(table), _plain(schema.canonical(attributes)))
        for row, source, image, factual, counterfactual in records:
            height, width = source.shape[:2]
            yield self._sample(row, source, image[:height, :width], factual, counterfactual)

    def _sample(
        self,
        row: PlanRow,
        source: npt.NDArray[np.uint8],
        image: npt.NDArray[np.uint8],
        factual: dict[str, str | float | None],
        attributes: dict[str, str | float | None],
    ) -> Sample:
        schema = self.model.schema
        change = np.abs(image.astype(np.int16) - source.astype(np.int16)).mean() / 255
        quality: dict[str, float] = {"change_l1": round(float(change), 6)}
        canvas = _canvas(self.model)
        if canvas is not None:  # in every sample or in none: readers infer the fields from the first few
            quality["padding_bottom"] = canvas[0] - source.shape[0]
            quality["padding_right"] = canvas[1] - source.shape[1]
        asked = row.do.assignments
        record = {
            "schema": FORMAT,
            "key": row.key,
            "source_key": row.source_key,
            "source_digest": pixel_digest(source),
            "split": self.plan.split,
            "do": {name: schema.check_value(name, asked[name]) for name in schema.names if name in asked},
            "attributes": attributes,
            "factual": factual,
            "target": None if schema.target is None else attributes[schema.target],
            "seed": row.seed,
            "replica": row.replica,
            "model": self.model.digest,
            "quality": quality,
        }
        return Sample(row.key, image, record)


def environment_of(model: Model, batch_size: int) -> Environment:
    """What the bytes depend on beside plan and model; no path, no worker count, no engine."""
    versions = {
        name: importlib.metadata.version(name)
        for name in ("diffusers", "numpy", "pillow", "torch", "webdataset", "zuko")
    }
    device = str(getattr(model, "device", "cpu")).split(":")[0]
    canvas = _canvas(model)
    return {
        **({} if canvas is None else {"canvas": f"{canvas[0]}x{canvas[1]}"}),
        "batch_size": batch_size,
        "threads": 1,
        "device": device,
        "dtype": str(getattr(model, "dtype", "float32")),
        **versions,
    }


def _positions(dataset: AttributeDataset, plan: Plan) -> dict[str, int]:
    """Source key -> position in the data set, for the plan's sources."""
    if dataset.split != plan.split:
        raise UsageError(f"expected a data set of the plan's split {plan.split!r}, got {dataset.split!r}: plan for it")
    if not len(plan):
        raise UsageError("expected a plan with rows, got an empty one")
    wanted = {row.source_key for row in plan}
    positions = {key: i for i in range(len(dataset)) if (key := dataset.key(i)) in wanted}
    absent = sorted(wanted - positions.keys())
    if absent:
        raise DataError(f"source {absent[0]!r} of the plan ({len(absent)} in all) is not in the data set: plan again")
    return positions


def _check_interventions(model: Model, plan: Plan) -> None:
    """UsageError for a value that is none, a label that would have to change, and a graph nobody has confirmed."""
    schema, graph = model.schema, getattr(model, "graph", None)
    distinct: set[Intervention] = {row.do for row in plan}
    for intervention in sorted(distinct, key=str):
        for name, value in intervention.assignments.items():
            schema.check_value(name, value)
    names = sorted({name for intervention in distinct for name in intervention.names})
    if schema.target in names:
        raise UsageError(
            f"the plan sets the target {schema.target!r}, but training keeps a source's label: plan for other attributes"
        )
    if isinstance(graph, CausalGraph):
        refuse_unconfirmed(graph)
        if schema.target is not None:
            refuse_if_ancestor(graph, schema.target, names)


def _check_same_run(directory: Path, row: ManifestRow, plan: Plan, model: Model, environment: Environment) -> None:
    ours: Environment = {"plan": plan.digest, "model": model.digest, **environment}
    theirs: Environment = {"plan": row.plan, "model": row.model, **row.environment}
    for name in [*ours, *theirs]:
        if ours.get(name) != theirs.get(name):
            raise UsageError(
                f"{directory} holds shards with {name}={theirs.get(name)!s:.16}, this run has {name}="
                f"{ours.get(name)!s:.16}: use another --out, or --overwrite to drop them"
            )


def _forget(shards: ShardDirectory) -> None:
    try:
        shards.load()
    except CfaugError as error:  # a damaged manifest is no reason to keep it
        log.warning("overwriting: %s", error)
    shards.clear()


def _uint8(made: Any, rows: Sequence[PlanRow]) -> npt.NDArray[np.uint8]:
    """(B, C, H, W) in [-1, 1] -> uint8 (B, H, W, C); non-finite pixels would turn into zeros unseen."""
    import torch

    finite = torch.isfinite(made).flatten(1).all(dim=1)[: len(rows)]
    if not bool(finite.all()):
        key = rows[int((~finite).nonzero()[0, 0])].key
        raise CfaugError(f"the model made non-finite pixels for plan row {key!r}: fit it again, or check its sampler")
    pixels = ((made.to(torch.float32) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    array: npt.NDArray[np.uint8] = pixels.permute(0, 2, 3, 1).cpu().contiguous().numpy()
    return array


def _canvas(model: Model) -> tuple[int, int] | None:
    """(height, width) that the model wants its sources padded to; None: they have one size."""
    canvas = getattr(model, "canvas", None)
    return None if canvas is None else (int(canvas[0]), int(canvas[1]))


def _check_images(
    sources: Sequence[npt.NDArray[np.uint8]], rows: Sequence[PlanRow], canvas: tuple[int, int] | None
) -> None:
    first = sources[0]
    for image, row in zip(sources, rows):
        same = image.shape[2] == first.shape[2] if canvas else image.shape == first.shape
        if image.dtype != np.uint8 or not same:
            expected = f"with {first.shape[2]} channels" if canvas else f"of shape {first.shape}"
            raise DataError(
                f"source {row.source_key!r}: expected a uint8 image {expected} as "
                f"{rows[0].source_key!r}, got {image.dtype} {image.shape}: resize or convert the images first"
            )
        if canvas and (image.shape[0] > canvas[0] or image.shape[1] > canvas[1]):
            raise DataError(
                f"source {row.source_key!r}: expected at most {canvas[1]}x{canvas[0]} px, the largest that the model was fitted "
                f"on, got {image.shape[1]}x{image.shape[0]}: resize it, or fit the model again with it"
            )


def _plain(table: pd.DataFrame) -> list[dict[str, str | float | None]]:
    """The rows as plain values; a missing one is None, since JSON has no NaN."""
    columns = [
        [None if pd.isna(v) else v if isinstance(v, str) else float(v) for v in table[name].tolist()] for name in table
    ]
    return [dict(zip(map(str, table.columns), values)) for values in zip(*columns)]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Torch as every worker has it: one thread, full float32 products; the caller's settings come back afterwards."""
    import torch

    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)


def _bar(total: int, done: int, progress: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, initial=done, desc="generate", unit="img", disable=not progress)
