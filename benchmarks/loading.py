"""What cfaug costs in a training loop, and whether what it shows is exact: the tables of loading.md.

    python benchmarks/loading.py                  # everything; about fifteen minutes on two quiet cores
    python benchmarks/loading.py wrapper          # one part: wrapper, lookup, index, order or stored
    python benchmarks/loading.py --quick --out F  # the same on less, to see that it runs

A part that is run again replaces its rows in results/loading.jsonl.

`wrapper`, here: an ImageFolder of 224 px JPEG photographs with PILToTensor, read by a DataLoader with 0 and 2 workers. Both sides
are read in turns of one epoch each, so both see the same machine; the figure is the median over the turns of the ratio of
the seconds.

    p0      CounterfactualDataset at p = 0 over the bare ImageFolder
    p0.5    CounterfactualDataset at p = 0.5 over a dataset that is told which images to show and decodes them from files:
            the same JPEGs, and the same PNGs of the counterfactuals in a folder
    p0.5_over_bare
            CounterfactualDataset at p = 0.5 over the bare ImageFolder, for each way in which shards store images
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rows import cpu, forget, record
from samples import counterfactual
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import default_loader
from torchvision.transforms import v2
from writing import photograph

from cfaug.learn import CounterfactualDataset
from cfaug.offline import write_shard
from cfaug.offline.format import IMAGES

RESULTS = Path(__file__).parent / "results" / "loading.jsonl"
OTHERS = {"lookup": "loading_lookup", "index": "loading_index", "order": "loading_order", "stored": "loading_stored"}
PIXELS, BATCH = 224, 32


def write(directory: Path, images: int) -> None:
    """`images` JPEGs in two classes, one counterfactual each in a shard, and the counterfactuals as files too."""
    rng = np.random.default_rng(0)
    samples = []
    for i in range(images):
        name = f"{'ab'[i % 2]}/{i:06d}.jpg"
        path = directory / "photographs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph(PIXELS, rng)).save(path, quality=90)
        source = np.asarray(default_loader(str(path)))
        samples.append(counterfactual(i, name, source, photograph(PIXELS, rng), target="ab"[i % 2]))
    (directory / "made").mkdir()
    for image in IMAGES:
        write_shard(directory / image, "cf-train-000000.tar", samples, "0" * 64, "0" * 64, image=image)
    for i, sample in enumerate(samples):
        Image.fromarray(sample.image).save(directory / "made" / f"{i:06d}.png", compress_level=6)


class Mix(Dataset[Any]):
    """Decodes the mixture directly: it is told which images are counterfactuals, and reads files."""

    def __init__(self, real: ImageFolder, made: Path, chosen: np.ndarray) -> None:
        self.real, self.made, self.chosen = real, made, chosen.tolist()

    def __len__(self) -> int:
        return len(self.real)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        path, label = self.real.samples[i]
        picture = self.real.loader(str(self.made / f"{Path(path).stem}.png") if self.chosen[i] else path)
        return self.real.transform(picture), label


def epoch(loader: DataLoader[Any]) -> float:
    """Seconds of one epoch."""
    began = time.perf_counter()
    for _ in loader:
        pass
    return time.perf_counter() - began


def loader_of(dataset: Dataset[Any], workers: int) -> DataLoader[Any]:
    sampler = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0)).tolist()  # type: ignore[arg-type]
    return DataLoader(
        dataset, BATCH, sampler=sampler, num_workers=workers, persistent_workers=workers > 0, worker_init_fn=one_thread
    )


def one_thread(_: int) -> None:
    torch.set_num_threads(1)


def compared(ours: Dataset[Any], theirs: Dataset[Any], workers: int, turns: int) -> dict[str, Any]:
    """Median, lowest and highest ratio of an epoch of ours to one of theirs, in `turns` turns."""
    pair = [loader_of(dataset, workers) for dataset in (ours, theirs)]
    for loader in pair:
        epoch(loader)  # files are in the page cache, workers are up
    ratios, seconds = [], []
    for turn in range(turns):
        first = turn % 2
        times = {side: epoch(pair[side]) for side in (first, 1 - first)}
        ratios.append(times[0] / times[1])
        seconds.append(times[1] / len(theirs))  # type: ignore[arg-type]
    return {
        "ratio": round(float(np.median(ratios)), 4), "ratio_quartiles": np.quantile(ratios, [0.25, 0.75]).round(4).tolist(),
        "theirs_us_a_sample": round(1e6 * float(np.median(seconds)), 1), "turns": turns,
    }  # fmt: skip


def wrapper(out: Path, quick: bool) -> None:
    """Write the rows of `wrapper` to `out`, in place of those that are there."""
    command = "python benchmarks/loading.py wrapper" + (" --quick" if quick else "")
    forget(out, command)
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        write(place, 96 if quick else 640)
        bare = ImageFolder(str(place / "photographs"), transform=v2.PILToTensor())
        for workers in (0, 2):
            turns = 4 if quick else 40
            untouched = CounterfactualDataset(bare, place / "png", p=0.0)
            same = compared(bare, bare, workers, turns)
            stored = {image: CounterfactualDataset(bare, place / image, p=0.5) for image in IMAGES}
            mixed = stored["png"]
            for dataset in (untouched, *stored.values()):
                dataset.set_epoch(0)  # the one draw that Mix is told
            direct = Mix(bare, place / "made", mixed.draws(0)[0] == 1)
            for what, found in (
                ("bare_over_bare", same),
                ("p0", compared(untouched, bare, workers, turns)),
                ("p0.5", compared(mixed, direct, workers, turns)),
            ):
                row = {"what": what, "pixels": PIXELS, "images": len(bare), "workers": workers, **found}
                record(out, row, command=command, cpu=cpu())
            for image, dataset in stored.items():
                size = sum(row.bytes for row in dataset.reader.manifest) / len(dataset.reader)
                row = {
                    "what": "p0.5_over_bare", "image": image, "bytes_an_image": round(size), "pixels": PIXELS,
                    "images": len(bare), "workers": workers, **compared(dataset, bare, workers, turns),
                }  # fmt: skip
                record(out, row, command=command, cpu=cpu())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=["wrapper", *OTHERS])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    parts: dict[str, Callable[[Path, bool], None]] = {"wrapper": wrapper}
    sys.path.insert(0, str(Path(__file__).parent))
    for name, module in OTHERS.items():
        if chosen.part in (None, name):
            parts[name] = importlib.import_module(module).measure
    for name, part in parts.items():
        if chosen.part in (None, name):
            part(chosen.out, chosen.quick)


if __name__ == "__main__":
    main()
