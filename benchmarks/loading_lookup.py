"""What recognising an image costs beside decoding it, and what albumentations' workers draw: parts of loading.md.

    python benchmarks/loading.py lookup           # about three minutes on one core

`lookup`, JPEG photographs of 500 x 375 pixels, quality 90, decoded as ImageFolder does; each freshly decoded image is
looked up at once, in a table of 100 000 and of a million sources: so the caches are as decoding leaves them, and a part
costs two or three times what it does in a loop of its own. Shares are of the decoding in the same turns; of each image
the median over the turns counts.

    find       its hash and its place in the table
    confirm    the comparison of all its pixels, which happens only where an image is swapped: counted half at p = 0.5
    compose    a v2.Compose with RandomCounterfactual at p = 0, over the same without it, decoding included (minus 1)

`streams`: a dataset of 512 in a DataLoader, three epochs; duplicated are the numbers that an epoch or a worker had
already drawn, for bare albumentations and for SeededAugmentation.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
from PIL import Image
from rows import cpu, forget, record
from samples import counterfactual
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets.folder import default_loader
from torchvision.transforms import v2
from writing import photograph

from cfaug.learn import RandomCounterfactual
from cfaug.learn.albumentations import SeededAugmentation, reseed
from cfaug.offline import write_shard
from cfaug.offline.read import ShardReader, SourceTable

SIZE, HEIGHT, QUALITY = 500, 375, 90
SOURCES = (100_000, 1_000_000)
WORKERS, EPOCHS, ITEMS = (0, 1, 2, 4), 3, 512
COMMAND = "python benchmarks/loading.py lookup"


def measure(out: Path, quick: bool) -> None:
    """Write the rows of `lookup`, `reseeding` and `streams` to `out`, in place of those that are there."""
    about = {"command": COMMAND + (" --quick" if quick else ""), "cpu": cpu()}
    forget(out, about["command"])
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        files = write(place, 8 if quick else 48)
        for sources in SOURCES[: 1 if quick else None]:
            record(out, lookup(files, place / "shards", sources, turns=5 if quick else 30), **about)
    record(out, reseeding(200 if quick else 3000), **about)
    for workers in WORKERS[: 2 if quick else None]:
        record(out, streams(workers), **about)


def write(directory: Path, images: int) -> list[str]:
    """`images` JPEGs, and one counterfactual each in a shard; the JPEGs' paths."""
    rng, files, samples = np.random.default_rng(0), [], []
    for i in range(images):
        path = directory / f"{i:06d}.jpg"
        Image.fromarray(photograph(SIZE, rng)[:HEIGHT]).save(path, quality=QUALITY)
        source = np.asarray(default_loader(str(path)))
        samples.append(counterfactual(i, path.name, source, 255 - source))
        files.append(str(path))
    write_shard(directory / "shards", "cf-train-000000.tar", samples, "0" * 64, "0" * 64)
    return files


class Among(ShardReader):
    """Shards whose sources stand in a table with many others (of which nothing but the hash exists)."""

    def __init__(self, place: Path, files: list[str], sources: int) -> None:
        super().__init__(place)
        hashes = np.random.default_rng(1).integers(0, 2**64, sources, dtype=np.uint64)
        hashes[: len(files)] = [self.lookup(default_loader(path)) for path in files]
        order = np.argsort(hashes)
        self.among = SourceTable(hashes[order], order.astype(np.uint32), np.zeros(sources, np.uint8))

    @property
    def by_pixels(self) -> SourceTable:
        return self.among


def lookup(files: list[str], shards: Path, sources: int, turns: int) -> dict[str, Any]:
    """Shares of the decoding, in a table of `sources`."""
    reader = Among(shards, files, sources)
    swap = RandomCounterfactual(reader, p=0.0)
    bare, ours = v2.Compose([v2.PILToTensor()]), v2.Compose([swap, v2.PILToTensor()])
    parts = np.zeros((turns + 1, len(files), 5))
    for turn in range(turns + 1):
        for number, path in enumerate(files):
            clock = [time.perf_counter()]
            image = default_loader(path)
            clock.append(time.perf_counter())
            found = reader.by_pixels.find(reader.lookup(image))
            clock.append(time.perf_counter())
            confirmed = reader.confirms(int(reader.by_pixels.rows[found.start]), image)
            clock.append(time.perf_counter())
            if not confirmed:
                raise RuntimeError(f"{path}: expected to be recognised")
            parts[turn, number, :3] = np.diff(clock)
            for side in (turn % 2, 1 - turn % 2):
                began = time.perf_counter()
                (bare, ours)[side](default_loader(path))
                parts[turn, number, 3 + side] = time.perf_counter() - began
    if not swap.seen == swap.matched == len(files) * (turns + 1):
        raise RuntimeError("expected every image to be recognised")
    # the first turn is for the page cache; a median an image, for other work on the machine interrupts some
    decode, find, confirm, without, with_it = 1e6 * np.median(parts[1:], axis=0).mean(axis=0)
    return {
        "what": "lookup", "sources": sources, "pixels": [SIZE, HEIGHT], "quality": QUALITY, "images": len(files), "turns": turns,
        "load_average": round(os.getloadavg()[0], 1),  # other processes empty the caches too: above 2 or so, run it again
        "find_of_decode": round(find / decode, 4), "confirm_of_decode": round(confirm / decode, 4),
        "find_and_half_confirm_of_decode": round((find + confirm / 2) / decode, 4),
        "compose_p0_added": round(with_it / without - 1, 4), "decode_us": round(decode, 1), "find_us": round(find, 1),
        "confirm_us": round(confirm, 1), "compose_p0_added_us": round(with_it - without, 1),
    }  # fmt: skip


def reseeding(times: int) -> dict[str, Any]:
    """Microseconds to make a pipeline of five transforms start from (seed, epoch, index), by turns."""
    pipeline = A.Compose(
        [A.RandomCrop(200, 200), A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5), A.RandomBrightnessContrast(p=0.5),
         A.GaussNoise(p=0.5)]
    )  # fmt: skip
    python, found = random.Random(), []
    for turn in range(20):
        began = time.perf_counter()
        for i in range(times // 20):
            pipeline.set_random_seed(i)
        middle = time.perf_counter()
        for i in range(times // 20):
            reseed(pipeline, python, 0, turn, i)
        found.append(np.diff([began, middle, time.perf_counter()]) / (times // 20))
    theirs, ours = 1e6 * np.median(found, axis=0)
    return {
        "what": "reseeding", "transforms": 5, "set_random_seed_us": round(theirs, 1), "reseed_us": round(ours, 1),
        "reseed_over_set_random_seed": round(ours / theirs, 3),
    }  # fmt: skip


class Shown(A.ImageOnlyTransform):  # type: ignore[misc]
    """The image becomes the bytes of what the transform draws."""

    def get_params(self) -> dict[str, Any]:
        return {"drawn": np.array([self.py_random.random(), self.random_generator.random()])}

    def apply(self, img: Any, *args: Any, drawn: Any = None, **params: Any) -> Any:
        return drawn.view(np.uint8).reshape(img.shape)


class Applying(Dataset[Any]):
    """How people's data sets use albumentations."""

    def __init__(self, transform: Any) -> None:
        self.transform, self.image = transform, np.zeros((4, 4), np.uint8)

    def __len__(self) -> int:
        return ITEMS

    def __getitem__(self, i: int) -> Any:
        return self.transform(image=self.image)["image"], i


def drawn(data: Any, workers: int) -> list[bytes]:
    """What was drawn, by (epoch, index)."""
    found = []
    for epoch in range(EPOCHS):
        if hasattr(data, "set_epoch"):
            data.set_epoch(epoch)
        for images, indices in DataLoader(data, batch_size=16, num_workers=workers):
            found += [(epoch, i, image.tobytes()) for i, image in zip(indices.tolist(), images.numpy(), strict=True)]
    return [numbers for _, _, numbers in sorted(found)]


def streams(workers: int) -> dict[str, Any]:
    """How many of the numbers drawn are repetitions, bare and repaired."""
    compose = A.Compose([Shown(p=1.0)])
    bare = drawn(Applying(compose), workers)
    repaired = drawn(SeededAugmentation(Applying(compose), compose, inside=True), workers)
    alone = drawn(SeededAugmentation(Applying(compose), compose, inside=True), 0)
    shared = [sum(numbers.count(one) > 1 for one in set(numbers)) for numbers in (bare, repaired)]
    return {
        "what": "streams", "albumentations": A.__version__, "workers": workers, "epochs": EPOCHS, "drawn": len(bare),
        "bare_duplicated": len(bare) - len(set(bare)), "bare_numbers_shared": shared[0], "bare_numbers": len(set(bare)),
        "repaired_duplicated": len(repaired) - len(set(repaired)), "repaired_as_without_workers": repaired == alone,
    }  # fmt: skip


__all__ = ["measure"]
