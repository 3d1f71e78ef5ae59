"""The unit of work: one shard of a plan is made and committed. It is a pure function of plan, model and data set.

    for micro-batch (source, do, seed) of the shard:  x' = model.act(do).predict(model.abduct(x, attributes, seed))
    stored image = to_uint8(x'),  with  x = to_float(source)  in [-1, 1]

A micro-batch holds consecutive rows of one shard and is made on one thread; the last one is padded to full size by repeating its
last row. So the number of workers, the engine, restarts and the order of shards change no byte. A model with a ``canvas``
gets every source padded to that size (by repeating the last row and column), whatever else is in its batch. The result is
cropped back, and the record says by how much.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd

from cfaug.causal.intervention import check_value
from cfaug.data import AttributeDataset, Schema, pixel_digest
from cfaug.data.images import Pixels, to_float
from cfaug.data.micro_batch import Sources
from cfaug.data.pixel_hashes import pixels_hash, sample_hash
from cfaug.errors import CfaugError, DataError, UsageError, generating
from cfaug.offline.batch_pixels import check_images, masks_of_sources, pixels_of
from cfaug.offline.commit import Destination
from cfaug.offline.environment import Environment, canvas_of, source_type_of, stored_image, working_size_of
from cfaug.offline.format import FORMAT, MAX_SEED, ManifestRow, Sample, SourceHashes
from cfaug.offline.gate import Gate
from cfaug.offline.plan import Plan, PlanRow
from cfaug.offline.write_shard import stage_shard

if TYPE_CHECKING:
    pass

Values = dict[str, str | float | None]

REMEMBERED = 50_000  # sources whose digests a process keeps, at 400 bytes each


class Model(Protocol):
    """The protocol by which generation knows a model. It must be picklable for workers > 0.

    ``abduct`` gets float images (B, C, H, W) in [-1, 1], a canonical table of B rows, and one seed, source key and mask per
    row; ``act([do, ...]).predict(noise)`` returns images of the same shape and a table of B rows. It may have
    ``canvas: tuple[int, int] | None``, (height, width) that sources of different sizes are padded to, and must then have it
    in its digest; without one all sources have one size.
    """

    @property
    def schema(self) -> Schema: ...

    @property
    def digest(self) -> str: ...

    def abduct(self, images: Any, attributes: pd.DataFrame, /, seed: Any, *, keys: Any, masks: Any) -> Any: ...

    def act(self, interventions: Any, /) -> Any: ...


@dataclass(frozen=True)
class ShardDone:
    """A committed shard: its manifest `row`, how many `images` it has, how many were `rejected`, and the `seconds` it took.

    `reasons`: key of each rejected row -> why.
    """

    row: ManifestRow
    images: int
    rejected: int
    seconds: float
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ShardWork:
    """Called with a shard number, it makes that shard and commits it at `destination`. It is picklable where its parts are."""

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
        """Source key -> position in the data set. The mapping is made once per process."""
        return {self.dataset.key(i): i for i in range(len(self.dataset))}

    @cached_property
    def table(self) -> pd.DataFrame:
        """The factual attributes of all sources, canonical in the model's schema. The table is made once per process."""
        return self.model.schema.canonical(self.dataset.table)

    @cached_property
    def model_digest(self) -> str:
        """The model's digest. Every weight is hashed for it, so it is computed once and sent to the workers."""
        return self.model.digest

    @cached_property
    def _identities(self) -> dict[int, tuple[str, SourceHashes]]:
        return {}

    def __getstate__(self) -> dict[str, Any]:
        own = ("positions", "table", "_identities")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __call__(self, shard: int) -> ShardDone:
        started, name = time.perf_counter(), self.plan.shard_name(shard)
        rows, lost = self.plan.rows_of(shard), dict[str, str]()
        with self.destination.staging() as folder:
            staged = stage_shard(
                folder, name, self._samples(name, rows, lost), self.plan.digest, self.model_digest, self.environment,
                image=self.image,
            )  # fmt: skip
            row = self.destination.commit(staged)
        return ShardDone(row, row.count, len(rows) - row.count, time.perf_counter() - started, lost)

    def _samples(self, name: str, rows: Sequence[PlanRow], lost: dict[str, str]) -> Iterator[Sample]:
        """The samples of a shard; rows that the gate rejects for good are added to `lost`, with the reason."""
        kept = 0
        for start in range(0, len(rows), self.batch_size):
            for sample in self.batch(rows[start : start + self.batch_size], lost):
                kept += 1
                yield sample
        if not kept:
            (reason, count), *_ = Counter(lost.values()).most_common(1)
            why = f" ({count} for: {reason})" if reason else ""
            raise CfaugError(
                f"{name}: expected the gate to keep an image, got all {len(rows)} rejected{why}; loosen it, or fit a better model"
            )

    def batch(self, rows: Sequence[PlanRow], lost: dict[str, str] | None = None) -> list[Sample]:
        """The samples of one micro-batch: at most `batch_size` consecutive rows of a shard, from its beginning or a multiple.

        What the gate rejects is drawn again with a seed that follows from the row's, where that can change the image, and at last
        with another source of the batch and of the same class. What it rejects for good is left out, and added to `lost` with the
        reason.

        Raises:
            DataError: a source that is not in the data set, or whose size or mask does not fit.
            CfaugError: the model's images are not finite or not of the sources' shape; too little memory.
        """
        rows = self._with_images(rows, {} if lost is None else lost)
        if not rows:
            return []
        if self.gate is None:
            return self._made(rows, self.batch_size)[0]
        retries = int(getattr(self.gate, "retries", 0))
        kept: dict[str, Sample] = {}
        why: dict[str, str] = {}
        left, size = list(rows), self.batch_size
        for attempt in self._attempts(retries):
            asked = [_redrawn(row, attempt) for row in left]
            if attempt > retries:  # another source stands in, so that each cell gets the count that the plan asked for
                asked = self._stood_in(asked, [row for row in rows if row.key in kept])
            if not asked:
                break
            samples, answers = self._made(asked, size)
            for sample, answer in zip(samples, answers):
                if answer is not True:
                    why.setdefault(sample.key, str(answer or ""))
                    continue
                if retries:  # in every sample or in none: readers infer the fields from the first few
                    quality = {**sample.record["quality"], "attempt": attempt}
                    sample = replace(sample, record={**sample.record, "quality": quality})
                kept[sample.key] = sample
            left = [row for row in rows if row.key not in kept and not row.do.is_null]
            size = len(left)  # few rows: their number follows from the plan, so they need not be padded
        if lost is not None:
            lost.update({key: reason for key, reason in why.items() if key not in kept})
        return [kept[row.key] for row in rows if row.key in kept]

    def _with_images(self, rows: Sequence[PlanRow], lost: dict[str, str]) -> Sequence[PlanRow]:
        """The rows that the model has an image of; a model of images that were made elsewhere may lack some, which are added to `lost`."""
        makes = getattr(self.model, "makes", None)
        if makes is None:
            return rows
        found = [row for row in rows if makes(row.source_key, row.seed, row.do)]
        if len(found) < len(rows):
            here = {row.key for row in found}
            lost.update({row.key: "no image of it was imported" for row in rows if row.key not in here})
        return found

    def _attempts(self, retries: int) -> list[int]:
        """The numbers of the attempts: those in between only where another seed makes another image, the last with other sources."""
        capabilities = getattr(self.model, "capabilities", None)
        if is_imported(self.model):  # there is no other image of the source, and none of another source
            return [0]
        again = range(1, retries + 1) if getattr(capabilities, "stochastic", False) else ()
        return [0, *again, *([retries + 1] if retries else [])]

    def _stood_in(self, rows: Sequence[PlanRow], kept: Sequence[PlanRow]) -> list[PlanRow]:
        """`rows` with other sources of the same class, of those whose own rows were `kept`; rows without one are left out."""
        target = str(self.model.schema.target)
        labels = self.table[target]
        found = []
        for row in rows:
            spare = [
                one.source_key
                for one in kept
                if one.source_key != row.source_key
                and labels.iloc[self.positions[one.source_key]] == labels.iloc[self.positions[row.source_key]]
            ]
            if spare:
                found.append(replace(row, source_key=spare[row.seed % len(spare)]))
        return found

    def _made(self, rows: Sequence[PlanRow], size: int) -> tuple[list[Sample], Sequence[bool | str]]:
        """The samples of `rows`, made in a batch of `size`, and the gate's answers."""
        import torch

        with _one_thread(), generating(size, size), torch.inference_mode():
            places = self._places(rows)
            pixels = {place: self.dataset.image(place) for place in dict.fromkeys(places)}
            sources = self._sources(rows, places, pixels, size)
            noise = self.model.abduct(
                sources.images, sources.table, seed=sources.seeds, keys=sources.keys, masks=sources.masks
            )
            acts = [row.do for row in rows]
            made, attributes = self.model.act(acts + acts[-1:] * (size - len(rows))).predict(noise)
            images = pixels_of(made, attributes, sources, rows)
            factual = plain_rows(sources.table)
            counterfactual = plain_rows(self.model.schema.canonical(attributes))
            samples = []
            for i, (row, place) in enumerate(zip(rows, places)):
                height, width = pixels[place].shape[:2]
                image = images[i, :height, :width]
                samples.append(self._sample(row, place, pixels[place], image, factual[i], counterfactual[i]))
            return samples, () if self.gate is None else self._answers(self.gate, samples, sources)

    def _answers(self, gate: Gate, samples: list[Sample], sources: Sources) -> Sequence[bool | str]:
        n = len(samples)
        mine = replace(
            sources, images=sources.images[:n], table=sources.table.iloc[:n], keys=sources.keys[:n],
            seeds=sources.seeds[:n], masks=None if sources.masks is None else sources.masks[:n],
        )  # fmt: skip
        answers = list(gate([sample.image for sample in samples], [sample.record for sample in samples], mine))
        if len(answers) != n:
            raise UsageError(f"expected {n} answers from the gate, one per image, got {len(answers)}; correct it")
        return [answer if isinstance(answer, str) else bool(answer) for answer in answers]

    def _places(self, rows: Sequence[PlanRow]) -> list[int]:
        try:
            return [self.positions[row.source_key] for row in rows]
        except KeyError as missing:
            raise DataError(f"source {missing} of the plan is not in the data set; plan again") from None

    def _sources(
        self, rows: Sequence[PlanRow], places: Sequence[int], pixels: Mapping[int, Pixels], size: int
    ) -> Sources:
        """The micro-batch, padded to `size` by its last row: the bytes of a row may depend on the batch's size."""
        import torch

        from cfaug.data.loading import pad_to  # needs torch

        canvas = canvas_of(self.model)
        check_images(pixels, self.dataset, canvas)
        framed = {place: image if canvas is None else pad_to(image, canvas) for place, image in pixels.items()}
        rows = [*rows, *[rows[-1]] * (size - len(rows))]
        places = [*places, *[places[-1]] * (len(rows) - len(places))]
        table = self.table.iloc[places]
        table.index = pd.Index([f"{row.key}~{i}" for i, row in enumerate(rows)])  # unique, as a table's keys must be
        images = torch.from_numpy(np.stack([framed[place] for place in places])).permute(0, 3, 1, 2)
        masks = masks_of_sources(self.dataset, pixels, canvas)
        return Sources(
            images=to_float(images).contiguous(),
            table=table,
            keys=[row.source_key for row in rows],
            seeds=[row.seed for row in rows],
            masks=None if masks is None else torch.stack([masks[place] for place in places]),
        )

    def _identity(self, place: int, source: Pixels) -> tuple[str, SourceHashes]:
        """Digest and hashes of a source as it is stored, computed once while it is remembered: a plan has many rows per source."""
        if place not in self._identities:
            if len(self._identities) >= REMEMBERED:
                self._identities.clear()
            stored = stored_image(self.dataset, place, source)
            hashes = SourceHashes(sample_hash(stored), pixels_hash(stored))
            self._identities[place] = pixel_digest(stored), hashes
        return self._identities[place]

    def _sample(
        self, row: PlanRow, place: int, source: Pixels, image: Pixels, factual: Values, attributes: Values
    ) -> Sample:
        schema, canvas = self.model.schema, canvas_of(self.model)
        change = np.abs(image.astype(np.int16) - source.astype(np.int16)).mean() / 255
        quality: dict[str, float] = {"change_l1": round(float(change), 6)}
        if canvas is not None:  # in every sample or in none: readers infer the fields from the first few
            quality["padding_bottom"] = canvas[0] - source.shape[0]
            quality["padding_right"] = canvas[1] - source.shape[1]
        digest, hashes = self._identity(place, source)
        asked = row.do.assignments
        record = {
            "schema": FORMAT,
            "key": row.key,
            "source_key": row.source_key,
            "source_digest": digest,
            "split": self.plan.split,
            "do": {name: check_value(schema, name, asked[name]) for name in schema.names if name in asked},
            "attributes": attributes,
            "factual": factual,
            "target": None if schema.target is None else attributes[schema.target],
            "seed": row.seed,
            "replica": row.replica,
            "model": self.model_digest,
            "quality": quality,
        }
        if (
            working_size_of(self.dataset) is not None
        ):  # source_digest is of the image before it was resized, this of the one after
            record["working_digest"] = pixel_digest(source)
        if is_imported(self.model):
            record["mechanism"] = "imported"
        return Sample(row.key, image, record, hashes, source_type_of(self.model))


def is_imported(model: Model) -> bool:
    """Whether the model has images that were made elsewhere, of rows of one plan alone."""
    return bool(getattr(getattr(model, "capabilities", None), "imported", False))


def _redrawn(row: PlanRow, attempt: int) -> PlanRow:
    """The row with the seed of an attempt, which follows from the row's own; the first attempt has that."""
    if not attempt:
        return row
    content = hashlib.sha256(f"{row.seed} {attempt}".encode()).digest()
    return replace(row, seed=int.from_bytes(content[:8], "big") % MAX_SEED)


def plain_rows(table: pd.DataFrame) -> list[Values]:
    """The rows of a table as plain values. A missing value is None, because JSON has no NaN."""
    columns = [
        [None if pd.isna(v) else v if isinstance(v, str) else float(v) for v in table[name].tolist()] for name in table
    ]
    return [dict(zip(map(str, table.columns), values)) for values in zip(*columns)]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Set torch as in every worker: one thread, full float32 products. The caller's settings are restored afterwards."""
    import torch

    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
