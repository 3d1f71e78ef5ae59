"""What checking costs on reading: sha256 and checks, as a share of reading and decoding; and reading beside other readers.

    python benchmarks/reading.py [--pixels 32,64,128,224,512] [--image webp]        about a minute on one core

The pictures are crops of the two photographs that scikit-learn ships, so that they compress as photographs do. The same
samples are in one shard (PNG, or lossless WebP with `--image webp`) and in a folder of files. In each round every way of
reading goes over all samples once, so all see the same machine; processor seconds of the quietest round.

- `verification`: our random reader with everything it checks over the same reader that trusts everything (no hash, no
  check of the record, of the image's header, of the JSON's form), minus 1. `sha256`: the hashing alone, likewise; of rows without
  `xxh3`, which generation writes now and which costs less.
- `random`, `scan`, `verify`: microseconds a sample for image and record, by number in random order; by the strict scan
  without a manifest; by `cfaug verify`.
- `over_webdataset`: our random reading over webdataset's sequential reading of the same shard (image and record).
- `over_folder`: our random reading of images over Pillow's reading of the same images from a folder of files.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[1] / "tests")]

import numpy as np  # noqa: E402
from helpers import damages  # noqa: E402
from PIL import Image  # noqa: E402
from rows import cpu, record  # noqa: E402

from cfaug.offline import ShardReader, verify  # noqa: E402
from cfaug.offline.commit import open_destination  # noqa: E402
from cfaug.offline.format import Sample  # noqa: E402
from cfaug.offline.scan import scan  # noqa: E402
from cfaug.offline.write_shard import stage_shard  # noqa: E402

RESULTS = HERE.parent / "results" / "offline.jsonl"


def photographs(pixels: int, count: int) -> list[Sample]:
    """Square crops of the photographs, each a third to all of their height, made `pixels` wide and high."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(array) for array in load_sample_images().images]
    made = []
    for i in range(count):
        picture = pictures[i % 2]
        side = int(rng.integers(picture.height // 3, picture.height + 1))
        x, y = (int(rng.integers(0, edge - side + 1)) for edge in picture.size)
        crop = picture.crop((x, y, x + side, y + side)).resize((pixels, pixels), Image.Resampling.LANCZOS)
        made.append(Sample(f"train-{i:09d}", np.asarray(crop), damages.sample(i, 1).record))
    return made


@contextmanager
def trusting(everything: bool) -> Iterator[None]:
    """Our reader without hashing; with `everything`, also without any other check: what reading and decoding alone take."""
    with mock.patch("cfaug.offline.read.agrees", return_value=True):
        if not everything:
            yield
            return
        with (
            mock.patch("cfaug.offline.decoders.check_record", lambda found, where: found),
            mock.patch("cfaug.offline.decoders.parse_object", lambda data, most, where: json.loads(data)),
            mock.patch("cfaug.offline.read.picture_of", opened),
        ):
            yield


def opened(data: bytes, where: Any, field: str = "png", vouched: bool = True) -> Any:
    return Image.open(io.BytesIO(data), formats=[field.upper()])


def prepare(directory: Path, samples: list[Sample], image: str) -> None:
    """The same samples as a committed shard in `shards` and as files in `folder`."""
    destination = open_destination(directory)
    with destination.session(), destination.staging() as staging:
        row = destination.commit(stage_shard(staging, damages.NAME, samples, "p", "m", image=image))
        destination.publish([row.name], {})
    (directory / "folder").mkdir()
    options: dict[str, Any] = {"lossless": True} if image == "webp" else {"compress_level": 6}
    for sample in samples:
        Image.fromarray(sample.image).save(directory / "folder" / f"{sample.key}.{image}", **options)


def ways(directory: Path, image: str) -> dict[str, Callable[[list[int]], Any]]:
    """Name -> reading every sample once; the argument is a random order, where order matters."""
    import webdataset

    reader = ShardReader(directory)
    tar = directory / "shards" / damages.NAME
    files = [directory / "folder" / f"{key}.{image}" for key in reader.keys]

    def ours(order: list[int]) -> None:
        for i in order:
            reader.sample(i)

    def images(order: list[int]) -> None:
        for i in order:
            reader.image(i)

    def folder(order: list[int]) -> None:
        for i in order:
            with Image.open(files[i], formats=[image.upper()]) as picture:
                np.array(picture)

    def peer(_: list[int]) -> None:
        for found in webdataset.WebDataset([str(tar)], shardshuffle=False).decode("rgb8"):
            found[image], found["json"]

    def strict(_: list[int]) -> None:
        for _sample in scan(tar):
            pass

    def whole(_: list[int]) -> None:
        if not verify(directory).ok:
            raise SystemExit("the shard is not sound")

    return {
        "random": ours, "images": images, "folder": folder, "webdataset": peer, "scan": strict, "verify": whole,
    }  # fmt: skip


def checking(reader: ShardReader, repeats: int, block: int = 16) -> dict[str, float]:
    """Seconds over all samples with every check, without hashing, and without any check.

    The three take turns on a few samples at a time, many times, and the quickest turn of each counts: the difference is
    a few microseconds, and others work on the machine.
    """
    modes = {"checked": None, "unhashed": False, "trusted": True}
    total = dict.fromkeys(modes, 0.0)
    for first in range(0, len(reader) - block + 1, block):
        best = dict.fromkeys(modes, float("inf"))
        for _ in range(repeats):
            for mode, everything in modes.items():
                with nullcontext() if everything is None else trusting(everything):
                    began = time.process_time()
                    for i in range(first, first + block):
                        reader.sample(i)
                    best[mode] = min(best[mode], time.process_time() - began)
        for mode in modes:
            total[mode] += best[mode]
    return total


def measure(pixels: int, image: str, rounds: int, seconds: float) -> dict[str, Any]:
    """One row; as many samples as ours reads in about `seconds`, 16 to 256."""
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        count = int(min(256, max(16, seconds / (1e-4 + 2.5e-8 * pixels * pixels))))
        samples = photographs(pixels, count)
        prepare(directory, samples, image)
        size = ShardReader(directory).manifest[0].bytes / count
        cost = checking(ShardReader(directory), repeats=20)
        readings = ways(directory, image)
        spent: dict[str, list[float]] = {name: [] for name in readings}
        rng = np.random.default_rng(1)
        for number in range(rounds + 1):
            order = rng.permutation(count).tolist()
            names = list(readings) if number % 2 else list(readings)[::-1]
            for name in names:
                began = time.process_time()
                readings[name](order)
                if number:  # the first round warms up
                    spent[name].append((time.process_time() - began) / count * 1e6)

        micros = {name: min(times) for name, times in spent.items()}  # the quietest round of each

        def over(name: str, other: str) -> float:
            return round(micros[name] / micros[other], 3)

        return {
            "what": "reading", "image": image, "pixels": pixels, "samples": count, "rounds": rounds,
            "bytes_per_sample": round(size), "verification": round(cost["checked"] / cost["trusted"] - 1, 4),
            "sha256": round(cost["checked"] / cost["unhashed"] - 1, 4), "microseconds": {name: round(took, 1) for name, took in micros.items()},
            "over_webdataset": over("random", "webdataset"), "over_folder": over("images", "folder"),
            "scan_over_webdataset": over("scan", "webdataset"),
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pixels", default="32,64,128,224,512")
    parser.add_argument("--image", default="png", choices=["png", "webp"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.03, help="of reading in one round, about")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    for pixels in map(int, options.pixels.split(",")):
        found = measure(pixels, options.image, options.rounds, options.seconds)
        command = "python benchmarks/reading.py " + " ".join(sys.argv[1:])
        record(options.results, found, command=command.strip(), cpu=cpu())


if __name__ == "__main__":
    main()
