"""Regeneration: N random samples are made again from plan and model and compared with the committed ones byte by byte.

    samples drawn uniformly from the manifest -> their micro-batches -> png or webp and json bytes, against the shard's

Each micro-batch is made whole, in the size that the manifest states, because the bytes depend on what is in it. The same bytes
are promised only for the same environment (versions, threads, device). Where it differs, the report says how, and different
samples then prove nothing about the shards. Only shards that samples are drawn from are read; ``verify`` reads all.
"""

from __future__ import annotations

import json
import random
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cfaug.data import AttributeDataset
from cfaug.errors import ShardError, UsageError, shown
from cfaug.offline.commit import open_destination
from cfaug.offline.decoders import decode_image
from cfaug.offline.environment import environment_of, working_size_of
from cfaug.offline.format import IMAGES, IndexRow, ManifestRow, Sample, planned
from cfaug.offline.gate import Gate
from cfaug.offline.make_shard import Model, ShardWork
from cfaug.offline.plan import Plan, PlanRow
from cfaug.offline.read_committed import Committed
from cfaug.offline.verify import VerifyReport
from cfaug.offline.write_shard import encode_sample

_FIELDS = 3  # of a record, that a line names


@dataclass(frozen=True)
class RegenerateReport(VerifyReport):
    """`ok` when every drawn sample came out again, byte by byte.

    `counts`: samples (drawn), identical, different, batches (made). `environment`: what differs from the environment in
    which the shards were made, "name before then, after now".
    """

    environment: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"environment differs: {', '.join(self.environment)}"] if self.environment else []
        if self.environment and self.problems:
            lines.append(
                "different bytes were therefore to be expected and prove nothing; regenerate in the old environment"
            )
        return "\n".join([super().__str__(), *lines])


def regenerate(
    model: Model,
    dataset: AttributeDataset,
    plan: Plan,
    place: str | Path,
    n: int = 10,
    seed: int = 0,
    progress: bool = False,
    gate: Gate | None = None,
    tolerance: float = 0.0,
) -> RegenerateReport:
    """Make `n` random samples of `place` (a run, its shards, or a URL) again and compare their bytes.

    With a `tolerance`, in grey levels of 255, images may differ by as much on average, and records in their `quality`: for GPUs, whose
    arithmetic is not the same bit by bit.

    The report names each difference by shard and key. It also names damaged shards, and a different plan or model, with which
    nothing is made.

    Raises:
        UsageError: `n` is below 1, or a tolerance outside [0, 255].
        ShardError: nothing is committed.
        DataError: a source is not in `dataset`.
    """
    from tqdm import tqdm

    if type(n) is not int or n < 1:
        raise UsageError(f"expected at least 1 sample to regenerate, got {n!r}")
    if not 0 <= tolerance <= 255:
        raise UsageError(
            f"--tolerance: expected grey levels from 0 to 255, got {tolerance:g}; 0 asks for the same bytes"
        )
    shards = Committed(place)
    first = shards.manifest[0]
    strangers = _strangers(first, plan, model)
    if strangers:
        return RegenerateReport(tuple(strangers), {"samples": 0, "identical": 0, "different": 0, "batches": 0})
    size = first.environment.get("batch_size")
    if type(size) is not int or size < 1:
        raise ShardError(
            f"{shards.storage.url}: expected a batch size in the manifest, on which the bytes depend, got none; "
            "regenerate only what cfaug generate made"
        )
    # nothing is written: the work only needs a destination
    work = ShardWork(model, dataset, plan, open_destination(place), size, dict(first.environment), gate=gate)
    picked = draw_samples(shards.manifest, n, seed)
    drawn, batches = sum(len(positions) for _, positions in picked), 0
    problems: list[str] = []
    different: set[str] = set()  # samples; all drawn from a shard where that cannot be read
    with tqdm(total=drawn, desc="regenerate", unit=" img", disable=not progress) as bar:
        for shard, positions in picked:
            try:
                kept, rows = _kept(shards, shard, positions), _rows(plan, shard)
            except ShardError as error:
                problems.append(str(error))
                different.update(f"{shard.name} {position}" for position in positions)
                bar.update(len(positions))
                continue
            for start in range(0, len(rows), size):
                batch = rows[start : start + size]  # consecutive rows, as generation takes them
                wanted = [row.key for row in batch if row.key in kept]
                if not wanted:
                    continue
                batches += 1
                made = {sample.key: sample for sample in work.batch(batch)}
                for key in wanted:
                    where = f"{shard.name}, sample {key!r}"
                    if found := _compare(where, kept[key], made.get(key), tolerance):
                        problems += found
                        different.add(where)
                    bar.update(1)
            for key in sorted(kept.keys() - {row.key for row in rows}):
                problems.append(
                    f"{shard.name}, sample {key!r}: expected a row of the plan in this shard, got none with this key; give its own plan"
                )
                different.add(problems[-1])
    counts = {
        "samples": drawn, "identical": drawn - len(different), "different": len(different), "batches": batches
    }  # fmt: skip
    return RegenerateReport(tuple(problems), counts, environment=tuple(_environment(first, model, gate, size, dataset)))


def _strangers(row: ManifestRow, plan: Plan, model: Model) -> list[str]:
    return [
        f"expected the {what} that the shards were made from, {theirs:.16}, got {ours:.16}; give that {what}, nothing was compared"
        for what, theirs, ours in (("plan", row.plan, plan.digest), ("model", row.model, model.digest))
        if theirs != ours
    ]


def _environment(
    row: ManifestRow, model: Model, gate: Gate | None, batch_size: int, dataset: AttributeDataset
) -> Iterator[str]:
    then: Mapping[str, Any] = {"image": "png", **row.environment}
    now: Mapping[str, Any] = environment_of(model, batch_size, str(then["image"]), gate, working_size_of(dataset))
    for name in sorted({*now, *then}):
        before, here = then.get(name, "none"), now.get(name, "none")
        if before != here:
            yield f"{name} {before} then, {here} now"


def draw_samples(manifest: Sequence[ManifestRow], n: int, seed: int) -> list[tuple[ManifestRow, list[int]]]:
    """Shards, each with the positions of the drawn samples in it. All samples are equally likely, and none is drawn twice."""
    starts = [0, *accumulate(row.count for row in manifest)]
    found: dict[int, list[int]] = {}
    for number in sorted(random.Random(seed).sample(range(starts[-1]), min(n, starts[-1]))):
        shard = bisect_right(starts, number) - 1
        found.setdefault(shard, []).append(number - starts[shard])
    return [(manifest[shard], positions) for shard, positions in found.items()]


class _Kept(NamedTuple):
    """A sample as it is in its shard. `stored` is how its image is stored, one of IMAGES."""

    row: IndexRow
    json: bytes
    image: bytes
    stored: str


def _kept(shards: Committed, shard: ManifestRow, positions: Sequence[int]) -> dict[str, _Kept]:
    wanted, said = set(positions), str(shard.environment.get("image"))
    found = {}
    for number, sample in enumerate(shards.samples(shard)):
        if number in wanted:
            row = sample.row
            stored = said if IMAGES.get(said) == row.image_field else row.image_field
            found[row.key] = _Kept(row, sample.read(row.json), sample.read(row.image), stored)
    return found


def _rows(plan: Plan, shard: ManifestRow) -> tuple[PlanRow, ...]:
    split, number = planned(shard.name) or ("", -1)
    if split != plan.split:
        raise ShardError(
            f"{shard.name}: expected a shard of the plan, such as {plan.shard_name(plan.shards()[0])}; give its own plan"
        )
    try:
        return tuple(plan.rows_of(number))
    except UsageError as error:
        raise ShardError(f"{shard.name}: {error}") from None


def _compare(where: str, kept: _Kept, made: Sample | None, tolerance: float) -> list[str]:
    if made is None:
        return [f"{where}: expected the model to make this sample again, got none: the gate rejects it now"]
    name = kept.row.image_field
    fields = encode_sample(made, image=kept.stored)
    problems = []
    if tolerance > 0:
        old, new = decode_image(kept.image, where, name), made.image
        near = old.shape == new.shape and np.abs(old.astype(np.int16) - new.astype(np.int16)).mean() <= tolerance
        then, now = ({**json.loads(one), "quality": None} for one in (kept.json, fields["json"]))
        if near and then == now:
            return []
    if fields["json"] != kept.json:
        problems.append(f"{where}: the record comes out differently: {_record_difference(kept.json, fields['json'])}")
    if fields[name] != kept.image:
        problems.append(f"{where}: the image comes out differently: {_pixel_difference(where, kept, made)}")
    return problems


def _record_difference(then: bytes, now: bytes) -> str:
    old, new = _flat(json.loads(then)), _flat(json.loads(now))
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    if not names:
        return "the same values, written in different bytes"
    said = [f"{name} {shown(old.get(name))} then, {shown(new.get(name))} now" for name in names[:_FIELDS]]
    return "; ".join([*said, *([f"and {len(names) - _FIELDS} more"] if len(names) > _FIELDS else [])])


def _flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in record.items():
        found.update(_flat(value, f"{name}.") if isinstance(value, dict) else {prefix + name: value})
    return found


def _pixel_difference(where: str, kept: _Kept, made: Sample) -> str:
    old, new = decode_image(kept.image, where, kept.row.image_field), made.image
    if old.shape != new.shape:
        return f"{'x'.join(map(str, old.shape))} then, {'x'.join(map(str, new.shape))} now"
    apart = np.abs(old.astype(np.int16) - new.astype(np.int16))
    pixels = int(apart.any(axis=2).sum())
    if not pixels:
        return "the same pixels, encoded in different bytes"
    return f"{pixels} of {old.shape[0] * old.shape[1]} pixels, by {int(apart.max())} of 255 at most, {apart.mean():.3g} on average"
