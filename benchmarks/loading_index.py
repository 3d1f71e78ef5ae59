"""Random access to counterfactuals beside a folder of the same files, and the index of ten million of them.

    python benchmarks/loading_index.py [--quick] [--results PATH]       full size: about ten minutes, 6 GB of disk

- `random access`: one picture by number from a shard, checked and decoded, over ``Image.open(path).convert("RGB")`` of the same
  PNG in a folder. The pictures are crops of photographs. The two take turns at 16 pictures each, in random order; the median
  over the turns of the ratio of their processor seconds. `xxh3`: whether the index rows have the quick hashes. 256 pictures (64
  from 200 px on), all in the page cache: this compares work of the processor, not disks.
- `index`: 10 000 shards of 1000 samples whose tars are sparse files of the right size, four samples a source. Bytes a sample of
  index.npy; seconds, and processor seconds (the machine may be busy), to build it from the indices and to open the shards in
  a fresh process (page cache warm; imports apart); and that process's memory before and after opening and after 200 000
  random lookups of sources and rows: private (anonymous) and shared (pages of files, one for all processes).
- `opening`: of the same set by what a training loop opens, in fresh processes (imports apart, page cache warm): RandomCounterfactual,
  CounterfactualStream, and CounterfactualDataset over a base of a million images that knows their keys. Each opens the reader
  too. The tars are empty, so the 16 sources and 256 records that CounterfactualDataset compares are read and then believed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1] / "tests")]

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402
from rows import cpu, forget, record  # noqa: E402

from cfaug.offline import ShardReader, write_shard  # noqa: E402
from cfaug.offline.format import INDEX_FILE, ManifestRow, Sample, SourceHashes, tar_size  # noqa: E402
from cfaug.offline.index import publish_index, published_index  # noqa: E402
from cfaug.offline.read import key_hash  # noqa: E402
from cfaug.offline.storage import LocalStorage  # noqa: E402

RESULTS = HERE.parent / "results" / "loading.jsonl"
PIXELS = (32, 64, 128, 224, 512)
BLOCK = 16  # pictures in a turn
LOOKUPS = 200_000
JSON_BYTES, IMAGE_BYTES = 700, 3000  # of a sample of the large set; in the tar 1536 and 3584
PER_SOURCE = 4
BASE = 1_000_000  # images of the data set that is wrapped
USERS = ("RandomCounterfactual", "CounterfactualStream", "CounterfactualDataset")


def measure(out: Path, quick: bool) -> None:
    """Write the rows of the three measurements to `out`, in place of those that are there."""
    forget(out, _command(quick))
    for pixels in PIXELS[:3] if quick else PIXELS:
        for xxh3 in (True, False):
            record(out, random_access(pixels, xxh3, 40 if quick else 200), command=_command(quick), cpu=cpu())
    for row in index(100 if quick else 10_000, 1000, BASE // (100 if quick else 1)):
        record(out, row, command=_command(quick), cpu=cpu())


def random_access(pixels: int, xxh3: bool, turns: int) -> dict[str, Any]:
    """One row; as many pictures as fill a few turns."""
    from reading import photographs

    turns = turns if pixels < 200 else max(20, turns // 4)
    made = photographs(pixels, 256 if pixels < 200 else 64)
    samples = [Sample(one.key, one.image, one.record, SourceHashes(0, 0) if xxh3 else None) for one in made]
    with tempfile.TemporaryDirectory() as place:
        write_shard(Path(place, "shards"), "cf-train-000000.tar", samples, "p", "m")
        files = [Path(place, f"{sample.key}.png") for sample in samples]
        for path, sample in zip(files, samples):
            Image.fromarray(sample.image).save(path, compress_level=6)
        reader, shuffled = ShardReader(Path(place, "shards")), random.Random(0)
        bytes_each = statistics.mean(row.image.size for row in reader.index)
        ours: list[float] = []
        theirs: list[float] = []
        for turn in range(turns + 2):
            chosen = shuffled.sample(range(len(samples)), BLOCK)
            for side in (0, 1) if turn % 2 else (1, 0):
                began = time.process_time()
                if side:
                    for i in chosen:
                        reader.picture(i)
                    ours.append(time.process_time() - began)
                else:
                    for i in chosen:
                        Image.open(files[i]).convert("RGB")
                    theirs.append(time.process_time() - began)
        ours, theirs = ours[2:], theirs[2:]  # the first turns warm up
    ratios = sorted(a / b for a, b in zip(ours, theirs))
    return {
        "what": "random access", "pixels": pixels, "xxh3": xxh3, "turns": turns, "bytes_each": round(bytes_each),
        "over_folder": round(statistics.median(ratios), 3),
        "quartiles": [round(ratios[len(ratios) // 4], 3), round(ratios[3 * len(ratios) // 4], 3)],
        "ours_us": round(statistics.median(ours) / BLOCK * 1e6, 1),
        "folder_us": round(statistics.median(theirs) / BLOCK * 1e6, 1),
    }  # fmt: skip


def synthetic(directory: Path, shards: int, per_shard: int) -> None:
    """Manifest and indices of `shards` shards; their tars are holes of the right size."""
    place, lines = 512, []
    for _ in range(per_shard):
        lines.append((place, place + 1024 + 512))
        place += 1024 + 512 + 3072 + 512
    size = tar_size(place - 512)
    rng = np.random.default_rng(0)
    manifest = []
    for shard in range(shards):
        first, hexes = shard * per_shard, rng.bytes(72 * per_shard).hex()
        content = "".join(_row(first + i, at, hexes[144 * i : 144 * i + 144]) for i, at in enumerate(lines)).encode(
            "ascii"
        )
        name = f"cf-train-{shard:06d}"
        (directory / f"{name}.index.jsonl").write_bytes(content)
        with (directory / f"{name}.tar").open("wb") as tar:
            tar.truncate(size)
        row = ManifestRow(
            f"{name}.tar", per_shard, size, hexes[:64], f"{name}.index.jsonl", len(content),
            hashlib.sha256(content).hexdigest(), "p" * 64, "m" * 64, {"batch_size": 64, "device": "cuda", "image": "png"},
        )  # fmt: skip
        manifest.append(row.line())
    (directory / "manifest.jsonl").write_bytes(b"".join(manifest))


def _row(number: int, at: tuple[int, int], hexes: str) -> str:
    """One index line, as cfaug writes it; every fourth sample of a source is a null intervention."""
    source = number // PER_SOURCE
    pixels = f"{(source + 1) * 0x9E3779B97F4A7C15 % (1 << 64):016x}"
    null = "true" if number % PER_SOURCE == PER_SOURCE - 1 else "false"
    return (
        f'{{"key":"train-{number:09d}","source_key":"n{source % 1000:08d}/n{source:08d}.JPEG","source_digest":"{pixels * 4}",'
        f'"split":"train","null":{null},"json":[{at[0]},{JSON_BYTES},"{hexes[:64]}"],"png":[{at[1]},{IMAGE_BYTES},'
        f'"{hexes[64:128]}"],"xxh3":["{hexes[128:]}","{pixels}","{pixels}"]}}\n'
    )


def index(shards: int, per_shard: int, images: int, repeats: int = 5) -> list[dict[str, Any]]:
    """The rows about a set of `shards` times `per_shard` samples, and what opens them for a base of `images`."""
    with tempfile.TemporaryDirectory(dir=".") as place:
        directory = Path(place)
        synthetic(directory, shards, per_shard)
        built = _apart("build", directory)
        size = (directory / INDEX_FILE).stat().st_size
        opened = [_apart("open", directory) for _ in range(repeats)]
        used = {name: [_apart(f"use={name}:{images}", directory) for _ in range(3)] for name in USERS}
        indices = sum(path.stat().st_size for path in directory.glob("*.index.jsonl"))
    seconds = [one["seconds"] for one in opened]
    samples = shards * per_shard
    middle = sorted(opened, key=lambda one: one["seconds"])[repeats // 2]
    about = {"samples": samples, "page_cache": "warm"}
    users = [
        {
            "what": "opening", "of": name, **about, **({"base_images": images} if name == "CounterfactualDataset" else {}),
            "open_median_s": statistics.median(one["seconds"] for one in found),
            "open_cpu_s": statistics.median(one["cpu"] for one in found),
            "private_mb": statistics.median(one["private_mb"] for one in found),
            "peak_rise_mb": statistics.median(one["peak_rise_mb"] for one in found),
        }
        for name, found in used.items()
    ]  # fmt: skip
    row = {
        "what": "index", **about, "shards": shards, "index_bytes_a_sample": round(indices / samples, 1),
        "bytes_a_sample": round(size / samples, 4), "build_s": built["seconds"],
        "build_cpu_s": built["cpu"], "build_peak_mb": built["peak_mb"],
        "open_median_s": statistics.median(seconds), "open_best_s": min(seconds),
        "open_cpu_s": statistics.median(one["cpu"] for one in opened), "parts_s": middle["parts"],
        "imports_s": middle["imports"], "memory_mb": middle["memory"], "lookup_us": middle["lookup_us"],
    }  # fmt: skip
    return [row, *users]


def _apart(what: str, directory: Path) -> dict[str, Any]:
    """What a process of its own finds."""
    option, _, how = what.partition("=")
    command = [sys.executable, str(HERE), f"--{option}", str(directory), *([how] if how else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _build(directory: Path) -> dict[str, Any]:
    from cfaug.offline.read_committed import read_manifest

    manifest, began, spent = read_manifest(LocalStorage(directory)), time.perf_counter(), time.process_time()
    publish_index(LocalStorage(directory), manifest)
    seconds, spent = time.perf_counter() - began, time.process_time() - spent
    return {"seconds": round(seconds, 1), "cpu": round(spent, 1), "peak_mb": round(_peak())}


class Holes(ShardReader):
    """Shards whose tars are holes: the few records and sources that an opening compares are read, and told to be right."""

    def _record(self, i: int, entry: Any, data: bytes) -> Any:
        return {"key": self.index[i].key, "target": "a"}

    def confirms(self, i: int, image: Any) -> bool:
        super().confirms(i, image)
        return True


class Keyed:
    """A base that knows its images' keys, as one that was listed in a table does."""

    def __init__(self, images: int) -> None:
        self.images, self.image = images, Image.fromarray(np.zeros((8, 8, 3), np.uint8))

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        return self.image, 0

    def key(self, i: int) -> str:
        return f"n{i % 1000:08d}/n{i:08d}.JPEG"


def _use(directory: Path, name: str, images: int) -> dict[str, Any]:
    """What opening costs for what a training loop opens."""
    from cfaug import learn

    of, base = getattr(learn, name), Keyed(images)
    arguments: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
        "RandomCounterfactual": ((), {"p": 0.5}),
        "CounterfactualStream": ((64,), {"classes": ["a"]}),
        "CounterfactualDataset": ((), {"p": 0.5}),
    }
    rest, named = arguments[name]
    before, peak = _resident()["private"], _peak()
    began, spent = time.perf_counter(), time.process_time()
    first = (base,) if name == "CounterfactualDataset" else ()
    opened = of(*first, Holes(directory), *rest, **named)
    seconds, spent = time.perf_counter() - began, time.process_time() - spent
    found = {
        "seconds": round(seconds, 3),
        "cpu": round(spent, 3),
        "private_mb": round(_resident()["private"] - before, 1),
    }
    if name == "CounterfactualDataset" and int(opened.matches.total.sum()) != PER_SOURCE * images:
        raise SystemExit("expected all samples of every image")
    return {**found, "peak_rise_mb": round(_peak() - peak, 1)}


def _peak() -> float:
    """MB that this process had at most."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1024


def _open(directory: Path, imports: float) -> dict[str, Any]:
    from cfaug.offline.read_committed import read_manifest

    storage, count = LocalStorage(directory), len(np.load(directory / INDEX_FILE, mmap_mode="r"))
    numbers = np.random.default_rng(0).integers(0, count, LOOKUPS).tolist()
    keys = [key_hash(f"n{n // PER_SOURCE % 1000:08d}/n{n // PER_SOURCE:08d}.JPEG") for n in numbers]
    memory = {"before": _resident()}
    began, spent = time.perf_counter(), time.process_time()
    reader = ShardReader(directory)
    seconds, spent = time.perf_counter() - began, time.process_time() - spent
    memory["opened"] = _resident()
    began = time.perf_counter()
    for n, key in zip(numbers, keys):
        if sum(reader.by_key.find(key)[1:]) != PER_SOURCE:
            raise SystemExit("a source was not found")
        reader._index.entry(n)
    lookup = (time.perf_counter() - began) / LOOKUPS * 1e6
    memory["after lookups"] = _resident()
    parts = {}
    for name, do in {
        "listing": storage.sizes,
        "manifest": lambda: read_manifest(storage),
        "index": lambda: published_index(storage, reader.manifest),
    }.items():
        began = time.perf_counter()
        do()
        parts[name] = round(time.perf_counter() - began, 3)
    return {
        "seconds": round(seconds, 3), "cpu": round(spent, 3), "imports": round(imports, 3), "memory": memory, "lookup_us": round(lookup, 2),
        "parts": parts,
    }  # fmt: skip


def _resident() -> dict[str, float]:
    """MB of this process: its own pages, and those of files, which all processes that map them share."""
    fields = {line.split(":")[0]: line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()}
    resident, own = (int(fields[name][1]) / 1024 for name in ("Rss", "Anonymous"))
    return {"private": round(own, 1), "shared": round(resident - own, 1)}


def _command(quick: bool) -> str:
    return "python benchmarks/loading_index.py" + (" --quick" if quick else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--build", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--use", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.build:
        print(json.dumps(_build(options.build)))
    elif options.open:
        print(json.dumps(_open(options.open, IMPORTED)))
    elif options.use:
        name, images = options.use[1].split(":")
        print(json.dumps(_use(Path(options.use[0]), name, int(images))))
    else:
        measure(options.results, options.quick)


IMPORTED = time.process_time()  # seconds of this process so far: Python's start and imports

if __name__ == "__main__":
    main()
