"""Photographs with a frozen backbone: tables, minutes, memory, and what features cost beside a bare torch loop.

    python benchmarks/photos.py table OUT --photos DIR --weights FILE       garments and x-rays, five seeds: minutes
    python benchmarks/photos.py speed OUT --photos DIR --weights FILE       5 000 photographs of 224 px to a table, and a second run
    python benchmarks/photos.py overhead OUT --photos DIR --weights FILE    features against a bare loop over the same files
    python benchmarks/photos.py large OUT --photos DIR --weights FILE       162 770 images of 178 x 218: the peak of memory

DIR holds garments/, garments_oracle/, xray_marker/ and xray_marker_oracle/ (folders in cfaug's own format); FILE is torchvision's
mobilenet_v2. Rows go to results/photos.jsonl. Timings are of one run on the machine that the row names.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from rows import cpu, mean_of_groups, record
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from cfaug.data import FolderDataset
from cfaug.judge.accuracy import read_results
from cfaug.judge.tables import summarise
from cfaug.train.features import FeatureStore
from cfaug.train.models import build_model

RESULTS = Path(__file__).parent / "results" / "photos.jsonl"
RECIPE = Path(__file__).parents[1] / "recipes" / "photos_frozen.yaml"
SETS = {"garments": ("garment", "scene", 128), "xray_marker": ("finding", "marker", 128)}
METHODS = ["erm", "class_resampling", "group_resampling", "subg", "group_dro", "jtt", "lisa", "dfr"]


def run(out: Path, root: Path, weights: Path, options: list[str]) -> dict[str, Any]:
    """One `cfaug run` of the recipe: seconds, the peak of its memory, and its rows."""
    command = [
        sys.executable,
        "-m",
        "cfaug",
        "run",
        str(RECIPE),
        f"--data.root={root}",
        f"--train.weights={weights}",
        "--out",
        str(out),
    ]
    before = time.perf_counter()
    subprocess.run([*command, "--no-progress", *options], check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    return {
        "seconds": round(time.perf_counter() - before, 1),
        "peak_gb": round(peak, 2),
        "rows": read_results(out / "results.jsonl"),
    }


def table(given: argparse.Namespace) -> None:
    for name, (target, spurious, size) in SETS.items():
        out = given.out / name
        options = [
            f"--attributes.target={target}", f"--attributes.spurious=[{spurious}]", f"--data.size={size}", "--train.threads=1",
            f"--graph={target} <-> {spurious}; {target} -> image; {spurious} -> image",
            f"--data.oracle={given.photos / (name + '_oracle')}", f"--train.methods=[{', '.join([*METHODS, 'oracle'])}]",
        ]  # fmt: skip
        found = run(out, given.photos / name, given.weights, options)
        for item in summarise(found["rows"]):
            record(
                RESULTS,
                {
                    "what": "frozen", "data": name, "method": item.method, "seeds": len(item.seeds),
                    "worst_group": [round(v, 4) for v in item.worst], "mean_of_groups": round(mean_of_groups(found["rows"], item.method), 4),
                    "average": round(item.average[0], 4), "seconds": found["seconds"], "peak_gb": found["peak_gb"],
                },
                cpu=cpu(), command="python benchmarks/photos.py table OUT --photos DIR --weights FILE",
            )  # fmt: skip


def made(root: Path, source: Path, count: int, size: tuple[int, int]) -> Path:
    """`count` different photographs (width, height) from those of a folder, cut and mirrored at random; the folder's own attributes."""
    if (root / "metadata.csv").exists():
        return root
    (root / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    with (source / "metadata.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    with (root / "metadata.csv").open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["file_name", "split", "garment", "scene"])
        for i in range(count):
            row = rows[i % len(rows)]
            with Image.open(source / row["file_name"]) as picture:
                left, top = rng.integers(0, 12, 2)
                cut = picture.crop((left, top, left + 116, top + 116)).resize(size, Image.Resampling.BICUBIC)
            cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else cut
            cut.save(root / "images" / f"{i:06d}.jpg", quality=90)
            writer.writerow([f"images/{i:06d}.jpg", row["split"], row["garment"], row["scene"]])
    return root


def speed(given: argparse.Namespace) -> None:
    root, out = made(given.out / "five_thousand", given.photos / "garments", 5000, (224, 224)), given.out / "speed"
    shutil.rmtree(out, ignore_errors=True)
    first = run(out, root, given.weights, ["--data.size=224", "--train.seeds=[0, 1, 2]", "--train.threads=2"])
    second = run(
        out, root, given.weights,
        ["--data.size=224", "--train.seeds=[0, 1, 2, 3]", "--train.threads=2", "--train.methods=[erm, group_resampling, subg, dfr]"],
    )  # fmt: skip
    record(
        RESULTS,
        {
            "what": "speed", "images": 5000, "pixels": 224, "methods": len(METHODS), "first_seconds": first["seconds"],
            "second_seconds": second["seconds"], "peak_gb": first["peak_gb"],
        },
        cpu=cpu(), command="python benchmarks/photos.py speed OUT --photos DIR --weights FILE",
    )  # fmt: skip


class Bare(Dataset[torch.Tensor]):
    """What a torch user writes: decode, to a tensor, normalise."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self.transform = v2.Compose(
            [
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
            ]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> torch.Tensor:
        with Image.open(self.files[i]) as picture:
            shown: torch.Tensor = self.transform(picture.convert("RGB"))
        return shown


def overhead(given: argparse.Namespace, turns: int = 10, images: int = 256) -> None:
    root = made(given.out / "five_thousand", given.photos / "garments", 5000, (224, 224))
    data = FolderDataset(root, "train", "garment", ["scene"], size=224)
    data.digests = tuple(map(str, range(len(data))))  # known after the check of all images
    torch.set_num_threads(1)
    net = build_model("mobilenet_v2", 3, (224, 224), 4, weights=str(given.weights))
    bare = torchvision.models.mobilenet_v2().eval()
    bare.classifier = torch.nn.Identity()
    files = [root / data.key(i) for i in range(images)]
    data._keys, data.table = data._keys[:images], data.table.iloc[:images]

    def theirs() -> None:
        with torch.inference_mode():
            for batch in DataLoader(Bare(files), 64, num_workers=1):
                bare(batch.contiguous(memory_format=torch.channels_last))

    def ours() -> None:
        FeatureStore(None, net, (224, 224), 1, threads=1, progress=False).of_dataset(data)

    bare = bare.to(memory_format=torch.channels_last)
    theirs(), ours()
    ratios = []
    for _ in range(turns):
        seconds = []
        for call in (theirs, ours):
            began = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - began)
        ratios.append(seconds[1] / seconds[0])
    record(
        RESULTS,
        {
            "what": "overhead", "pixels": 224, "images": images, "turns": turns, "ratio": round(float(np.median(ratios)), 4),
            "ratio_quartiles": [round(float(q), 4) for q in np.quantile(ratios, [0.25, 0.75])],
        },
        cpu=cpu(), command="python benchmarks/photos.py overhead OUT --photos DIR --weights FILE",
    )  # fmt: skip


def large(given: argparse.Namespace) -> None:
    root = made(given.out / "large", given.photos / "garments", 162_770, (178, 218))
    found = run(
        given.out / "large_run", root, given.weights,
        ["--data.size=[64, 64]", "--train.methods=[erm, group_resampling]", "--train.seeds=[0]", "--train.threads=2"],
    )  # fmt: skip
    record(
        RESULTS,
        {"what": "large", "images": 162_770, "pixels": [178, 218], "working": 64, "seconds": found["seconds"], "peak_gb": found["peak_gb"]},
        cpu=cpu(), command="python benchmarks/photos.py large OUT --photos DIR --weights FILE",
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=["table", "speed", "overhead", "large"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    {"table": table, "speed": speed, "overhead": overhead, "large": large}[given.part](given)
    print(json.dumps({"done": given.part}))


if __name__ == "__main__":
    main()
