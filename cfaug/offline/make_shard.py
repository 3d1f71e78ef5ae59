"""The unit of work: one shard of a plan, made and committed. A pure function of plan, model and data set.

    for micro-batch (source, do, seed) of the shard:  x' = model.act(do).predict(model.abduct(x, attributes, seed))
    stored image = round((x' + 1) * 127.5)  in uint8,  with  x = source / 127.5 - 1  in [-1, 1]

Micro-batches are consecutive rows of one shard, the last one padded to full size by repeating its last row, on one
thread: worker count, engine, restarts and order change no byte. A model with a ``canvas`` gets every source padded to that
size (last row and column repeated), whatever is in its batch; the result is cropped back and the record says by how much.
"""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import features

from cfaug.data import AttributeDataset, Schema, pixel_digest
from cfaug.data.images import to_float, to_uint8
from cfaug.data.lookup import pixels_hash, sample_hash
from cfaug.errors import CfaugError, DataError, UsageError, generating
from cfaug.offline.commit import Destination
from cfaug.offline.format import FORMAT, ManifestRow, Record, Sample, SourceHashes
from cfaug.offline.plan import Plan, PlanRow
from cfaug.offline.write_shard import stage_shard

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


class Gate(Protocol):
    """A filter of counterfactuals: which of B images, each uint8 (H, W, C), to keep, given their records. Picklable.

    It must be a function of its arguments alone, and its `digest` names it: it is part of what the shards' bytes depend on.
    An image is judged in its micro-batch; null interventions are judged like the others.
    """

    @property
    def digest(self) -> str: ...

    def __call__(self, images: Sequence[npt.NDArray[np.uint8]], records: Sequence[Record]) -> Sequence[bool]: ...


@dataclass(frozen=True)
class ShardDone:
    """A shard that is committed: its manifest `row`, the `images` made for it, how many were `rejected`, and the seconds."""

    row: ManifestRow
    images: int
    rejected: int
    seconds: float


@dataclass(frozen=True)
class ShardWork:
    """Called with a shard number, it makes that shard and commits it at `destination`. Picklable where its parts are."""

    model: Model
    dataset: AttributeDataset
    plan: Plan
    destination: Destination
    batch_size: int
    environment: Environment
    image: str = "png"
    gate: Gate | None = None

    @cached_property
    def positions(self) -> dict[str, int]:
        """Source key -> position in the data set; made once a process."""
        return {self.dataset.key(i): i for i in range(len(self.dataset))}

    @cached_property
    def model_digest(self) -> str:
        """The model's digest: every weight is hashed for it, so it is asked for once and sent to the workers."""
        return self.model.digest

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "positions"}

    def __call__(self, shard: int) -> ShardDone:
        started, name = time.perf_counter(), self.plan.shard_name(shard)
        rows = self.plan.rows_of(shard)
        with self.destination.staging() as folder:
            staged = stage_shard(
                folder,
                name,
                self._samples(name, rows),
                self.plan.digest,
                self.model_digest,
                self.environment,
                image=self.image,
            )
            row = self.destination.commit(staged)
        return ShardDone(row, row.count, len(rows) - row.count, time.perf_counter() - started)

    def _samples(self, name: str, rows: Sequence[PlanRow]) -> Iterator[Sample]:
        kept = 0
        for start in range(0, len(rows), self.batch_size):
            for sample in self.batch(rows[start : start + self.batch_size]):
                kept += 1
                yield sample
        if not kept:
            raise CfaugError(
                f"{name}: the gate rejected all of its {len(rows)} images: loosen it, or fit a better model"
            )

    def batch(self, rows: Sequence[PlanRow]) -> list[Sample]:
        """The samples of one micro-batch: at most `batch_size` consecutive rows of a shard, from its beginning or a multiple."""
        with _one_thread(), generating(self.batch_size, self.batch_size):  # here: a worker's error is explained too
            samples = list(self._made(rows))
            if self.gate is None:
                return samples
            kept = list(self.gate([sample.image for sample in samples], [sample.record for sample in samples]))
            if len(kept) != len(samples):
                raise UsageError(f"expected {len(samples)} answers from the gate, one an image, got {len(kept)}")
            return [sample for sample, keep in zip(samples, kept) if keep]

    def _made(self, rows: Sequence[PlanRow]) -> Iterator[Sample]:
        import torch

        from cfaug.data.loading import pad_to  # needs torch

        schema = self.model.schema
        padded = [*rows, *[rows[-1]] * (self.batch_size - len(rows))]
        try:
            places = [self.positions[row.source_key] for row in padded]
        except KeyError as missing:
            raise DataError(f"source {missing} of the plan is not in the data set: plan again") from None
        sources = [self.dataset.image(place) for place in places[: len(rows)]]
        canvas = canvas_of(self.model)
        _check_images(sources, rows, canvas)
        framed = sources if canvas is None else [pad_to(source, canvas) for source in sources]
        images = np.stack([*framed, *[framed[-1]] * (len(padded) - len(rows))])
        table = schema.canonical(self.dataset.table.iloc[places])
        table.index = pd.Index([f"{row.key}~{i}" if i >= len(rows) else row.key for i, row in enumerate(padded)])
        x = to_float(torch.from_numpy(images).permute(0, 3, 1, 2))
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
        canvas = canvas_of(self.model)
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
            "model": self.model_digest,
            "quality": quality,
        }
        return Sample(row.key, image, record, SourceHashes(sample_hash(source), pixels_hash(source)))


def environment_of(model: Model, batch_size: int, image: str = "png", gate: Gate | None = None) -> Environment:
    """What the bytes depend on beside plan and model; no path, no worker count, no engine."""
    versions = {name: importlib.metadata.version(name) for name in ("diffusers", "numpy", "pillow", "torch", "zuko")}
    codec = {"png": "zlib", "webp": "webp"}.get(image)  # stored PNGs need none
    device = str(getattr(model, "device", "cpu")).split(":")[0]
    canvas = canvas_of(model)
    return {
        **({} if canvas is None else {"canvas": f"{canvas[0]}x{canvas[1]}"}),
        **({} if gate is None else {"gate": gate.digest}),
        "batch_size": batch_size,
        "image": image,
        "threads": 1,
        "device": device,
        "dtype": str(getattr(model, "dtype", "float32")),
        **versions,
        **({} if codec is None else {codec: str(features.version(codec))}),
    }


def _uint8(made: Any, rows: Sequence[PlanRow]) -> npt.NDArray[np.uint8]:
    """(B, C, H, W) in [-1, 1] -> uint8 (B, H, W, C); non-finite pixels would turn into zeros unseen."""
    import torch

    finite = torch.isfinite(made).flatten(1).all(dim=1)[: len(rows)]
    if not bool(finite.all()):
        key = rows[int((~finite).nonzero()[0, 0])].key
        raise CfaugError(f"the model made non-finite pixels for plan row {key!r}: fit it again, or check its sampler")
    pixels = to_uint8(made)
    array: npt.NDArray[np.uint8] = pixels.permute(0, 2, 3, 1).cpu().contiguous().numpy()
    return array


def canvas_of(model: Model) -> tuple[int, int] | None:
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
