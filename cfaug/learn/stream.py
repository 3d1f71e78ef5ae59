"""CounterfactualStream: batches of shards in an order that knows neither workers nor ranks, and resumes where it stopped.

    stream = CounterfactualStream("OUT/shards", batch_size=64, transform=transform, classes=["landbird", "waterbird"])
    for images, targets in stream.loader(num_workers=4):

For jobs that already read WebDataset. The order of an epoch is a pure function of (seed, epoch) over the N samples of the
chosen kinds: the shards are permuted, ``window`` consecutive ones make a window, and the samples of a window are permuted
among themselves. Batch g is positions g B to (g + 1) B of that order and goes to rank g mod world; of a rank's batches,
number b comes from worker b mod W, which is how a DataLoader asks for them. So the dataset yields whole batches, and which
process makes one changes nothing in it.

Equally many batches for every rank: the last batch may be short, and the fewer than ``world`` batches left when every rank
has had the same number are dropped, in every epoch others (world 1 drops nothing). Not promised: that a ``transform`` that
draws at random draws the same in another worker; that samples of shards far apart in the order meet in one batch: a window is all
that is mixed, and all that is read at a time. Of a remote shard each sample is one request, a batch's side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, IterableDataset, default_collate, get_worker_info

from cfaug.data.images import to_pil
from cfaug.errors import CfaugError, DataError, UsageError, one_line
from cfaug.learn.checks import same_state, whole
from cfaug.learn.epochs import Epochs
from cfaug.learn.guard import open_training_shards
from cfaug.offline.read import Sample, ShardReader

StreamKind = Literal["counterfactual", "null"]
STREAM_KINDS: tuple[StreamKind, ...] = ("counterfactual", "null")
# a DataLoader's arguments that the stream decides, and the one value of each that says so
DECIDED = {
    "batch_size": None, "in_order": True, "shuffle": None, "drop_last": False, "sampler": None, "batch_sampler": None,
}  # fmt: skip
REQUESTS = 16  # at a time, to shards on no local disk: each takes a round trip


class EpochOrder:
    """The N chosen rows in the order of one epoch: a function of (seed, epoch), read at any position.

    ``starts``: (S + 1,) the first row of every shard, and how many rows there are; ``chosen``: bool, one a row. Memory: numbers
    of S shards, and the rows of one window.
    """

    def __init__(
        self, starts: npt.NDArray[np.int64], chosen: npt.NDArray[np.bool_], seed: int, epoch: int, window: int
    ) -> None:
        self._starts, self._chosen, self._key, self._window = starts, chosen, (seed, epoch), window
        self._shards = np.random.default_rng(self._key).permutation(len(starts) - 1)
        ends = np.cumsum([np.count_nonzero(chosen[starts[s] : starts[s + 1]]) for s in self._shards])
        self._ends = np.append(ends[window - 1 : -1 : window], ends[-1])  # position behind each window
        self._held: tuple[int, npt.NDArray[np.int64]] = (-1, np.zeros(0, np.int64))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def rows(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """The rows at positions ``start`` to ``stop``, 0 <= start <= stop <= N."""
        parts = [np.zeros(0, np.int64)]
        while start < stop:
            window = int(np.searchsorted(self._ends, start, side="right"))
            first = int(self._ends[window - 1]) if window else 0
            end = min(stop, int(self._ends[window]))
            parts.append(self._permuted(window)[start - first : end - first])
            start = end
        return np.concatenate(parts)

    def _permuted(self, window: int) -> npt.NDArray[np.int64]:
        if self._held[0] != window:
            shards = self._shards[window * self._window : (window + 1) * self._window]
            rows = [
                self._starts[s] + np.flatnonzero(self._chosen[self._starts[s] : self._starts[s + 1]]) for s in shards
            ]
            # 1 + window: an entropy that ends in 0 is that of the shards' permutation
            rng = np.random.default_rng((*self._key, 1 + window))
            self._held = (window, rng.permutation(np.concatenate(rows)))
        return self._held[1]


def rounds(total: int, batch_size: int, world: int, first: int) -> int:
    """How many batches every rank is given from position ``first`` on (a multiple of ``batch_size``, or ``total``)."""
    return (-(-total // batch_size) - -(-first // batch_size)) // world


def dealt(
    total: int, batch_size: int, world: int, rank: int, first: int, worker: int, workers: int
) -> Iterator[tuple[int, int]]:
    """(start, stop) positions of the batches that one worker of one rank makes, in its order."""
    for step in range(worker, rounds(total, batch_size, world, first), workers):
        lowest = -(-first // batch_size) + step * world  # the ranks take these world batches side by side
        start = (lowest + (rank - lowest) % world) * batch_size
        yield start, min(start + batch_size, total)


class CounterfactualStream(Epochs, IterableDataset[Any]):
    """An IterableDataset over shards that yields collated batches of (image, target code).

    ``shards``: OUT, OUT/shards, a URL or a reader; ``batch_size``: samples a batch of one rank. ``classes``: the class names in
    the order of their codes, or name -> code. ``transform``: of a PIL image; without it an item's image is a uint8 tensor
    (C, H, W). ``item``: in place of ``transform`` and ``classes``, what becomes of a :class:`~cfaug.offline.read.Sample`;
    ``collate``: what becomes of a list of items (torch's default_collate). As WebDataset gives them::

        CounterfactualStream(shards, 64, item=lambda s: {"__key__": s.key, "png": s.image, "json": s.record}, collate=list)

    ``kinds``: which samples, "counterfactual" or "null" interventions or both. ``world``, ``rank``: this process among those that
    share the epoch, else those of torch.distributed once it is initialised. ``guard``, ``held_out``: as in
    :func:`cfaug.learn.guard.open_training_shards`.

    ``set_epoch(e)`` changes the order, in persistent workers too; when :meth:`loader` has given a whole epoch the next begins by
    itself. ``state_dict`` is what every rank would save after the same number of batches; another worker count, another world
    size and another batch size whose batches end where those did continue it exactly.

    Raises UsageError for arguments out of range, DataError for shards without the kinds asked for, for a target that is not
    among the classes (naming the sample) and from the leak guard; reading raises what ShardReader does.
    """

    def __init__(
        self,
        shards: str | Path | ShardReader,
        batch_size: int,
        *,
        transform: Callable[[Any], Any] | None = None,
        classes: Sequence[str] | Mapping[str, int] | None = None,
        kinds: Sequence[StreamKind] = ("counterfactual",),
        seed: int = 0,
        window: int = 4,
        item: Callable[[Sample], Any] | None = None,
        collate: Callable[[list[Any]], Any] | None = None,
        world: int | None = None,
        rank: int | None = None,
        guard: bool = True,
        held_out: Iterable[Any] = (),
    ) -> None:
        super().__init__()
        self.batch_size, self.window = whole("batch_size", batch_size, 1), whole("window", window, 1)
        self.seed = whole("seed", seed)
        placed = None if world is None or rank is None else (whole("world", world, 1), whole("rank", rank))
        if (world is None) != (rank is None) or (placed and placed[1] >= placed[0]):
            raise UsageError(f"rank: expected 0 to world - 1, both given or neither, came rank {rank} of world {world}")
        if isinstance(kinds, str) or not kinds or not set(kinds) <= set(STREAM_KINDS):
            raise UsageError(f'kinds: expected "counterfactual" or "null" or both, in a list, came {kinds!r}')
        if item is None and classes is None:
            raise UsageError("classes: expected the class names in the order of their codes, came none; or give item=")
        if item is not None and (classes is not None or transform is not None):
            raise UsageError("item: expected it in place of transform and classes, came both; do in item what they do")
        self.reader = open_training_shards(shards, guard=guard, held_out=held_out)
        self.kinds: tuple[StreamKind, ...] = tuple(kind for kind in STREAM_KINDS if kind in kinds)
        self._item, self._transform, self._collate = item, transform, collate
        self._codes = _codes(classes)
        null = self.reader.nulls
        self._chosen = null == ("null" in kinds) if len(self.kinds) == 1 else np.ones(len(null), bool)
        self._starts = np.cumsum([0, *(row.count for row in self.reader.manifest)], dtype=np.int64)
        self._total = int(np.count_nonzero(self._chosen))
        if not self._total:
            raise DataError(
                f"{self.reader.directory}: expected {' or '.join(self.kinds)} samples, it has none; plan them"
            )
        self._placed = placed
        # shared memory as the epoch is (first position, whether somebody iterates): workers see what is set later
        self._at = torch.zeros(2, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._given: int | None = None  # positions of the epoch that the loader has handed out, all ranks together

    def __getstate__(self) -> dict[str, Any]:
        # a spawned worker has no process group: it gets world and rank with the stream
        return {**super().__getstate__(), "_placed": self._place()}

    def _place(self) -> tuple[int, int]:
        """(world, rank), asked for late: the process group may be initialised after the stream was made."""
        if self._placed is not None:
            return self._placed
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_world_size(), torch.distributed.get_rank()
        return 1, 0

    def set_epoch(self, epoch: int) -> None:
        """Read epoch ``epoch`` next, from its beginning; the present epoch again changes nothing, also where it was resumed."""
        if whole("epoch", epoch) != self.epoch:
            self._begin(int(epoch), 0)

    def _begin(self, epoch: int, first: int) -> None:
        super().set_epoch(epoch)
        self._at.copy_(torch.tensor([first, 0]))
        self._given = None

    def __len__(self) -> int:
        """Batches that this rank is given in a whole epoch."""
        return self._rounds(0)

    def _rounds(self, first: int) -> int:
        """Batches that each rank is given from position ``first`` on."""
        world, _ = self._place()
        if not rounds(self._total, self.batch_size, world, 0):
            raise UsageError(
                f"batch_size: expected a batch for each of {world} ranks, {self._total} samples do not make as many of "
                f"{self.batch_size}; take a smaller one"
            )
        return rounds(self._total, self.batch_size, world, first)

    def order(self, epoch: int | None = None) -> EpochOrder:
        """The order of an epoch (the present one unless said otherwise), of rows of ``reader``."""
        return EpochOrder(self._starts, self._chosen, self.seed, self.epoch if epoch is None else epoch, self.window)

    def __iter__(self) -> Iterator[Any]:
        # read at once, not with the first batch: what is set while an epoch is being read is meant for the next
        self._at[1] = 1
        return self._batches(self.order(), int(self._at[0]))

    def _batches(self, order: EpochOrder, first: int) -> Iterator[Any]:
        world, rank = self._place()
        self._rounds(first)  # refuses an epoch without a batch for every rank
        worker = get_worker_info()
        mine, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for start, stop in dealt(self._total, self.batch_size, world, rank, first, mine, workers):
            rows = order.rows(start, stop).tolist()
            self._serve(len(rows), self._total)
            yield self._collated([self._made(row, sample) for row, sample in zip(rows, self._read(rows), strict=True)])

    def _read(self, rows: list[int]) -> Iterable[Sample]:
        if "://" not in str(self.reader.directory):
            return map(self.reader.sample, rows)
        with ThreadPoolExecutor(min(REQUESTS, len(rows))) as pool:
            return list(pool.map(self.reader.sample, rows))

    def _made(self, row: int, sample: Sample) -> Any:
        if self._item is not None:
            return self._item(sample)
        target = sample.record["target"]
        if target not in self._codes:
            raise DataError(
                f"{self.reader.where(row)}: expected a target among the classes {', '.join(map(str, self._codes))}, came "
                f"{target!r}; add it to classes="
            )
        if self._transform is None:
            return torch.from_numpy(sample.image).permute(2, 0, 1).contiguous(), self._codes[target]
        return self._transform(to_pil(sample.image)), self._codes[target]

    def _collated(self, items: list[Any]) -> Any:
        if self._collate is not None:
            return self._collate(items)
        try:
            return default_collate(items)
        except (RuntimeError, TypeError) as error:
            raise UsageError(
                f"items: expected such as torch's default_collate can stack, came others ({one_line(error, 120)}); give a transform "
                "that makes tensors of one size, or collate="
            ) from None

    def loader(self, **arguments: Any) -> StreamLoader:
        """The DataLoader whose batches ``state_dict`` counts; ``arguments``: num_workers, pin_memory, persistent_workers, ..."""
        return StreamLoader(self, **arguments)

    def state_dict(self) -> dict[str, Any]:
        """Where the consumer stands: plain numbers and texts. UsageError when batches were taken past :meth:`loader`."""
        if self._given is None and int(self._at[1]):
            raise UsageError(
                "state_dict: expected batches from stream.loader(), they were taken from the stream itself, where workers "
                "read ahead; use loader()"
            )
        consumed = int(self._at[0]) if self._given is None else self._given
        return {"epoch": self.epoch, "consumed": consumed, **self._identity()}

    def _identity(self) -> dict[str, Any]:
        return {
            "seed": self.seed, "fingerprint": self.reader.fingerprint, "batch_size": self.batch_size, "window": self.window,
            "kinds": list(self.kinds),
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue behind the samples that ``state`` counts. UsageError where the order would be another one."""
        mine = {"epoch": 0, "consumed": 0, **self._identity()}
        same_state(state, mine, frozenset({"epoch", "consumed", "batch_size"}), "CounterfactualStream")
        epoch, consumed = whole("state: epoch", state["epoch"]), whole("state: consumed", state["consumed"])
        if consumed > self._total:
            raise UsageError(f"state: expected at most {self._total} consumed, came {consumed}; start anew")
        if consumed % self.batch_size and consumed != self._total:
            raise UsageError(
                f"state: expected whole batches of {self.batch_size}, it was saved after {consumed} samples in batches of "
                f"{state['batch_size']}: make the stream with batch_size={state['batch_size']}, or start anew"
            )
        self._begin(epoch, consumed)


class StreamLoader(DataLoader[Any]):
    """A DataLoader over a CounterfactualStream that counts what it hands out; made by :meth:`CounterfactualStream.loader`.

    Errors of a worker come as the one line that they are; a worker that is killed, as torch's RuntimeError.
    """

    def __init__(self, stream: CounterfactualStream, **arguments: Any) -> None:
        for name, only in DECIDED.items():
            if arguments.pop(name, only) not in (only, None):
                raise UsageError(
                    f"{name}: expected none in loader(), the stream makes the batches and their order; leave it out"
                )
        super().__init__(stream, batch_size=None, **{"collate_fn": _as_it_is, **arguments})
        self.stream = stream

    def state_dict(self) -> dict[str, Any]:
        """The stream's, which counts what this loader has handed out: :meth:`CounterfactualStream.state_dict`."""
        return self.stream.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where it was saved: :meth:`CounterfactualStream.load_state_dict`."""
        self.stream.load_state_dict(state)

    def __iter__(self) -> Any:
        # held here: when the interpreter ends in mid-epoch, modules are gone first
        stream, ours = self.stream, CfaugError
        first = int(stream._at[0])
        world, _ = stream._place()
        stream._given = first
        lowest = -(-first // stream.batch_size)
        try:
            for step, batch in enumerate(super().__iter__(), 1):
                stream._given = min((lowest + step * world) * stream.batch_size, stream._total)
                yield batch
        except ours as error:
            raise _as_raised(error) from None
        stream._begin(stream.epoch + 1, 0)


def _as_it_is(batch: Any) -> Any:
    return batch


def _as_raised(error: CfaugError) -> CfaugError:
    """The error as the worker raised it: a DataLoader puts a worker's whole traceback into the message."""
    kind = type(error)
    last = str(error).rstrip().rpartition("\n")[2]
    name = f"{kind.__module__}.{kind.__qualname__}: "
    return kind(last.removeprefix(name)) if last.startswith(name) else error


def _codes(classes: Sequence[str] | Mapping[str, int] | None) -> dict[Any, int]:
    if isinstance(classes, str):
        raise UsageError(f"classes: expected a list of names or name -> code, came the text {classes!r}")
    codes = dict(classes) if isinstance(classes, Mapping) else {name: code for code, name in enumerate(classes or ())}
    if classes is not None and not isinstance(classes, Mapping) and len(codes) != len(classes):
        raise UsageError(f"classes: expected every name once, came {list(classes)!r}")
    return codes
