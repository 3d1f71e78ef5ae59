"""Whether the order of a training run depends on who loads it, and what a resumed run repeats: exact counts, no timings.

    python benchmarks/loading.py order            # about two minutes

    draws    what the ranks are given, put back into one order, against one process without workers: pixels, item by item;
             workers {0, 1, 2, 4} x world {1, 2, 3} x 3 seeds, real DataLoaders, ranks one after another
    resume   stop after every k-th batch, go on with another worker count (and another world): the order of both parts against
             that of a run that was not stopped; samples delivered twice; delivered samples that the second run decoded
             again. What the workers of the stopped run had read ahead is lost and decoded once more: counted beside it.

A CounterfactualDataset is resumed as torch's samplers are: its state, and the rest of the epoch's indices.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rows import cpu, forget, record
from samples import record_of
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2
from writing import photograph

from cfaug.learn import CounterfactualDataset
from cfaug.learn.stream import CounterfactualStream
from cfaug.offline import write_shard
from cfaug.offline.read import Sample, ShardReader

COMMAND = "python benchmarks/loading.py order"
IMAGES, SHARDS, PIXELS, BATCH, EPOCH = 90, 6, 32, 8, 1
WORKERS, WORLDS, SEEDS = (0, 1, 2, 4), (1, 2, 3), (0, 1, 2)
CLASSES = ("a", "b")


def write(place: Path) -> None:
    """A folder of PNGs in two classes; two counterfactuals and a null intervention of each, in six shards."""
    rng = np.random.default_rng(0)
    samples: list[Sample] = []
    for i in range(IMAGES):
        source, name = photograph(PIXELS, rng), f"{CLASSES[i % 2]}/{i:06d}.png"
        path = place / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        v2.functional.to_pil_image(source).save(path)
        for replica in range(3):
            key = f"train-{i:06d}-{replica}"
            colour = {"colour": f"c{replica}"}
            row = record_of(
                i, name, source, key=key, do=colour if replica else {}, attributes=colour, factual={"colour": "c0"},
                target=CLASSES[i % 2], replica=replica,
            )  # fmt: skip
            samples.append(Sample(key, photograph(PIXELS, rng), row))
    each = len(samples) // SHARDS
    for shard in range(SHARDS):
        part = samples[shard * each : (shard + 1) * each]
        write_shard(place / "shards", f"cf-train-{shard:06d}.tar", part, "0" * 64, "0" * 64)


class CountedReader(ShardReader):
    """Counts in shared memory how often each sample is decoded, in whatever process."""

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        self.decoded = torch.zeros(len(self), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def sample(self, i: int) -> Sample:
        self.decoded[i] += 1
        return super().sample(i)


class CountedDataset(CounterfactualDataset):
    """Counts the items made; an item is (index, image), so that what is delivered says what it is."""

    def counted(self) -> CountedDataset:
        self.made = torch.zeros(len(self), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        return self

    def __getitem__(self, i: int) -> Any:
        self.made[i] += 1
        return i, super().__getitem__(i)[0]


class Given(NamedTuple):
    """A delivered item: which, and its pixels."""

    which: int
    pixels: bytes


def items(batches: Sequence[Any]) -> list[list[Given]]:
    return [[Given(int(w), x.numpy().tobytes()) for w, x in zip(*batch, strict=True)] for batch in batches]


def flat(batches: Sequence[list[Given]]) -> list[Given]:
    return list(itertools.chain.from_iterable(batches))


def mixture(place: Path, seed: int) -> CountedDataset:
    base = ImageFolder(str(place / "images"), transform=v2.PILToTensor())
    mixed = CountedDataset(base, place / "shards", p=0.5, null_p=0.2, seed=seed).counted()
    mixed.set_epoch(EPOCH)
    return mixed


def shares(dataset: Dataset[Any], world: int, workers: int, seed: int) -> list[Given]:
    """What a DistributedSampler deals to the ranks, put back: item j was rank j mod world's number j // world."""
    per_rank = []
    for rank in range(world):
        sampler: DistributedSampler[Any] = DistributedSampler(dataset, world, rank, shuffle=True, seed=seed)
        sampler.set_epoch(EPOCH)
        per_rank.append(flat(items(list(DataLoader(dataset, BATCH, sampler=sampler, num_workers=workers)))))
    found = [item for turn in zip(*per_rank, strict=True) for item in turn]
    return found[: len(dataset)]  # type: ignore[arg-type]  # the sampler fills the last turn up


def indexed(sample: Sample) -> tuple[int, torch.Tensor]:
    _, image, replica = sample.key.split("-")
    return 3 * int(image) + int(replica), torch.from_numpy(sample.image).permute(2, 0, 1).contiguous()


def stream_of(reader: ShardReader, seed: int, world: int = 1, rank: int = 0) -> CounterfactualStream:
    stream = CounterfactualStream(reader, BATCH, item=indexed, seed=seed, window=2, world=world, rank=rank)
    stream.set_epoch(EPOCH)
    return stream


def streamed(
    reader: ShardReader,
    world: int,
    workers: int,
    seed: int,
    state: dict[str, Any] | None = None,
    steps: int | None = None,
) -> tuple[list[Given], dict[str, Any]]:
    """What the ranks are given (at most ``steps`` batches each), put back by the batches' numbers; and their state."""
    per_rank, states = [], []
    for rank in range(world):
        stream = stream_of(reader, seed, world, rank)
        if state is not None:
            stream.load_state_dict(state)
        loader = stream.loader(num_workers=workers)
        per_rank.append(items(list(itertools.islice(loader, steps))))
        states.append(stream.state_dict())
    assert all(other == states[0] for other in states)
    first = 0 if state is None else state["consumed"] // BATCH
    numbers = range(first, first + world * len(per_rank[0]))
    return flat([per_rank[g % world][(g - first) // world] for g in numbers]), states[0]


def draws(place: Path, seeds: Sequence[int]) -> list[dict[str, Any]]:
    reader = ShardReader(place / "shards")
    found = {"CounterfactualDataset": [0, 0, 0], "CounterfactualStream": [0, 0, 0]}
    for seed in seeds:
        mixed = mixture(place, seed)
        sampler: DistributedSampler[Any] = DistributedSampler(mixed, 1, 0, shuffle=True, seed=seed)
        sampler.set_epoch(EPOCH)
        one = [Given(*pair) for pair in ((i, mixed[i][1].numpy().tobytes()) for i in sampler)]
        chosen = stream_of(reader, seed)
        whole = flat(items(list(chosen)))
        for world, workers in itertools.product(WORLDS, WORKERS):
            given = shares(mixed, world, workers, seed)
            tally = found["CounterfactualDataset"]
            tally[0] += given == one
            tally[1] += 1
            tally[2] += len(given)
            given, _ = streamed(reader, world, workers, seed)
            kept = len(whole) if world == 1 else -(-len(whole) // BATCH) // world * world * BATCH
            tally = found["CounterfactualStream"]
            tally[0] += given == whole[:kept]
            tally[1] += 1
            tally[2] += len(given)
    return [
        {"what": "draws", "of": name, "identical": same, "cases": cases, "items_compared": compared}
        for name, (same, cases, compared) in found.items()
    ]


def resumed_stream(place: Path, quick: bool) -> dict[str, Any]:
    reader = CountedReader(place / "shards")
    whole = flat(items(list(stream_of(reader, 0))))
    found = {"cases": 0, "order_equal": 0, "delivered_twice": 0, "decoded_again": 0, "read_ahead": 0}
    for before, after in ((1, 1), (2, 1), (1, 3), (3, 2)):
        steps = range(1, -(-len(whole) // BATCH) // before + 1)
        for step, (workers, others) in itertools.product(steps, ((2, 0), (0, 1), (1, 2))):
            if quick and (step + workers) % 4:
                continue
            reader.decoded.zero_()
            rows, state = streamed(reader, before, workers, 0, steps=step)
            delivered = torch.tensor([item.which for item in rows])
            found["read_ahead"] += int(reader.decoded.sum()) - len(rows)
            reader.decoded.zero_()
            rest, _ = streamed(reader, after, others, 0, state)
            found["decoded_again"] += int(reader.decoded[delivered].sum())
            both = rows + rest
            found["cases"] += 1
            found["order_equal"] += both == whole[: len(both)] and len(whole) - len(both) < after * BATCH
            found["delivered_twice"] += len(both) - len({item.which for item in both})
    return {"what": "resume", "of": "CounterfactualStream", **found}


def resumed_dataset(place: Path, quick: bool) -> dict[str, Any]:
    mixed = mixture(place, 0)
    order = torch.randperm(len(mixed), generator=torch.Generator().manual_seed(0)).tolist()
    whole = [Given(i, mixed[i][1].numpy().tobytes()) for i in order]
    found = {"cases": 0, "order_equal": 0, "delivered_twice": 0, "decoded_again": 0, "read_ahead": 0}
    for step, (workers, others) in itertools.product(range(1, len(mixed) // BATCH + 1), ((2, 0), (0, 1), (1, 2))):
        if quick and (step + workers) % 4:
            continue
        mixed.made.zero_()
        loader: DataLoader[Any] = DataLoader(mixed, BATCH, sampler=order, num_workers=workers)
        rows = flat(items(list(itertools.islice(loader, step))))
        state = mixed.state_dict()
        found["read_ahead"] += int(mixed.made.sum()) - len(rows)
        again = mixture(place, 0)
        again.set_epoch(0)
        again.load_state_dict(state)
        rest = flat(items(list(DataLoader(again, BATCH, sampler=order[len(rows) :], num_workers=others))))
        found["decoded_again"] += int(again.made[[item.which for item in rows]].sum())
        found["cases"] += 1
        found["order_equal"] += rows + rest == whole
        found["delivered_twice"] += len(rows + rest) - len({item.which for item in rows + rest})
    return {"what": "resume", "of": "CounterfactualDataset", **found}


def measure(out: Path, quick: bool) -> None:
    """The rows of this module, written to ``out`` in place of those that are there."""
    command = COMMAND + (" --quick" if quick else "")
    forget(out, command)
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        write(place)
        seeds = SEEDS[:1] if quick else SEEDS
        about = {
            "workers": list(WORKERS),
            "worlds": list(WORLDS),
            "seeds": len(seeds),
            "images": IMAGES,
            "batch": BATCH,
        }
        for row in draws(place, seeds):
            record(out, {**row, **about}, command=command, cpu=cpu())
        for resumed in (resumed_stream, resumed_dataset):
            record(out, {**resumed(place, quick), "images": IMAGES, "batch": BATCH}, command=command, cpu=cpu())
