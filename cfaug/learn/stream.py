"""CounterfactualStream: counterfactuals alone, as a webdataset pipeline, for loops that read no data set of real images.

    stream = CounterfactualStream("OUT/shards", 64, transform=transform, classes=["landbird", "waterbird"])
    for images, targets in DataLoader(stream, batch_size=None, num_workers=4): ...

The pipeline is order -> split_by_node -> split_by_worker -> map -> batched. The order of an epoch is a permutation that (seed, epoch) alone
determine; of it every rank, and of a rank's part every worker, takes each n-th sample, so all have equally many (the fewer than
``world`` samples that are left are dropped). Which samples meet in a batch depends on the number of ranks and workers. Not promised:
to resume within an epoch; :class:`cfaug.learn.CounterfactualDataset` does that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch.utils.data import IterableDataset, default_collate

from cfaug.data.images import to_pil
from cfaug.errors import DataError, UsageError, near
from cfaug.learn.epochs import Epochs, whole
from cfaug.learn.guard import lacking, open_training_shards
from cfaug.offline.read import Sample, ShardReader

StreamKind = Literal["counterfactual", "null"]
STREAM_KINDS: tuple[StreamKind, ...] = ("counterfactual", "null")


class EpochStream(IterableDataset[Any]):
    """What can be done with the stream beside iterating; for type checkers, as webdataset, whose pipeline it is, has no types."""

    reader: ShardReader

    def set_epoch(self, epoch: int) -> None:
        """Show the order of this epoch from now on, in persistent workers too."""

    def compose(self, *stages: Any) -> EpochStream:
        """The stream with more of webdataset's stages behind it."""
        raise NotImplementedError


def CounterfactualStream(  # a name of the public API
    shards: str | Path | ShardReader,
    batch_size: int | None,
    *,
    transform: Callable[[Any], Any] | None = None,
    classes: Sequence[str] | Mapping[str, int] | None = None,
    kinds: Sequence[StreamKind] = ("counterfactual",),
    seed: int = 0,
    item: Callable[[Sample], Any] | None = None,
    guard: bool = True,
    held_out: Iterable[Any] = (),
) -> EpochStream:
    """A ``webdataset.DataPipeline`` of batches of (image, target code), to be read by ``DataLoader(stream, batch_size=None)``.

    ``shards``: OUT, OUT/shards, a URL or a reader; ``batch_size``: samples per batch, None for single samples. ``classes``: the class names in
    the order of their codes, or name -> code. ``transform``: of a PIL image; without it an image is a uint8 tensor (C, H, W).
    ``item``: in place of ``transform`` and ``classes``, what becomes of a :class:`~cfaug.offline.read.Sample`. ``kinds``: which
    samples, "counterfactual" or "null" interventions or both. ``guard``, ``held_out``: as in
    :func:`cfaug.learn.guard.open_training_shards`. ``stream.set_epoch(e)`` changes the order, in persistent workers too.

    Raises UsageError for arguments out of range, DataError for shards without the kinds asked for, for a target that is not
    among the classes (naming the sample) and from the leak guard; reading raises what ShardReader does.
    """
    import webdataset

    if isinstance(kinds, str) or not kinds or not set(kinds) <= set(STREAM_KINDS):
        raise UsageError(f'kinds: expected "counterfactual" or "null" or both, in a list, got {kinds!r}')
    if (item is None) == (classes is None) or (item is not None and transform is not None):
        raise UsageError(
            "classes: expected the class names in the order of their codes, or else item= alone, without transform="
        )
    reader = open_training_shards(shards, guard=guard, held_out=held_out)
    order = _Order(reader, kinds, whole("seed", seed))
    read = _Read(reader, item, transform, _codes(classes))
    stages = [order, webdataset.split_by_node, webdataset.split_by_worker, webdataset.map(read)]
    if batch_size is not None:
        stages.append(webdataset.batched(whole("batch_size", batch_size, 1), collation_fn=default_collate))
    stream: Any = webdataset.DataPipeline(*stages)
    stream.set_epoch, stream.reader = order.set_epoch, reader
    return cast(EpochStream, stream)


class _Order(Epochs, IterableDataset[int]):
    """The rows of the chosen kinds in the order of an epoch, as many as every rank can be given."""

    def __init__(self, reader: ShardReader, kinds: Sequence[StreamKind], seed: int) -> None:
        super().__init__()
        self.seed = seed
        chosen = np.isin(reader.nulls, [kind == "null" for kind in kinds])
        if not chosen.any():
            raise lacking(reader, " or ".join(kinds))
        self.rows = np.flatnonzero(chosen)

    def __iter__(self) -> Iterator[int]:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        world = torch.distributed.get_world_size() if distributed else 1
        rows = np.random.default_rng([self.seed, self.epoch]).permutation(self.rows)
        yield from rows[: len(rows) // world * world].tolist()


class _Read:
    """A row of the shards as an item of the stream."""

    def __init__(self, reader: ShardReader, item: Any, transform: Any, codes: Mapping[str, int]) -> None:
        self.reader, self.item, self.transform, self.codes = reader, item, transform, codes

    def __call__(self, row: int) -> Any:
        sample = self.reader.sample(row)
        if self.item is not None:
            return self.item(sample)
        target = sample.record["target"]
        if target not in self.codes:
            raise DataError(
                f"{self.reader.where(row)}: expected a target among the classes, got {target!r}; {near(str(target), self.codes)}"
            )
        code = self.codes[str(target)]
        if self.transform is None:
            return torch.from_numpy(sample.image).permute(2, 0, 1).contiguous(), code
        return self.transform(to_pil(sample.image)), code


def _codes(classes: Sequence[str] | Mapping[str, int] | None) -> dict[str, int]:
    if isinstance(classes, str) or (classes is not None and len(set(classes)) != len(classes)):
        raise UsageError(f"classes: expected a list of different names, or name -> code, got {classes!r}")
    return dict(classes) if isinstance(classes, Mapping) else {name: code for code, name in enumerate(classes or ())}
