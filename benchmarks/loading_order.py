"""Whether the order of a training run depends on who loads it, and what a resumed run repeats: exact counts, no timings.

    python benchmarks/loading.py order            # about two minutes

    draws    what the ranks are given, put back into one order, against one process without workers: pixels, item by item;
             workers {0, 1, 2, 4} x world {1, 2, 3} x 3 seeds, real DataLoaders, ranks one after another
    resume   stop after every k-th batch, go on with a different worker count: the order of both parts against
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
from cfaug.offline import write_shard
from cfaug.offline.read import Sample

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


def draws(place: Path, seeds: Sequence[int]) -> dict[str, Any]:
    same = cases = compared = 0
    for seed in seeds:
        mixed = mixture(place, seed)
        sampler: DistributedSampler[Any] = DistributedSampler(mixed, 1, 0, shuffle=True, seed=seed)
        sampler.set_epoch(EPOCH)
        one = [Given(*pair) for pair in ((i, mixed[i][1].numpy().tobytes()) for i in sampler)]
        for world, workers in itertools.product(WORLDS, WORKERS):
            given = shares(mixed, world, workers, seed)
            same, cases, compared = same + (given == one), cases + 1, compared + len(given)
    return {
        "what": "draws",
        "of": "CounterfactualDataset",
        "identical": same,
        "cases": cases,
        "items_compared": compared,
    }


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
        record(out, {**draws(place, seeds), **about}, command=command, cpu=cpu())
        record(out, {**resumed_dataset(place, quick), "images": IMAGES, "batch": BATCH}, command=command, cpu=cpu())
