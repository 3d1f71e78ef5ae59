"""`cfaug suspect` on shortcuts that are planted and on labels of chance.

    python benchmarks/suspect.py planted --data DIR      DIR/garments/: the test images, with labels drawn by chance

Six shortcuts follow the label of 960 photographs in 95 % of them; twenty other draws of labels follow nothing. Rows go to results/suspect.jsonl.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from PIL import Image
from rows import cpu, record

from cfaug.data.images import Pixels, read_image
from cfaug.judge.properties import file_properties, pixel_properties, suspicions

RESULTS = Path(__file__).resolve().parent / "results" / "suspect.jsonl"
ALPHA, LEAST, CLEAN, RHO = 0.05, 0.05, 20, 0.95


def _patch(image: Pixels) -> Pixels:
    made = image.copy()
    made[4:14, -14:-4] = (230, 60, 200)
    return made


def _frame(image: Pixels) -> Pixels:
    made = image.copy()
    made[:2] = made[-2:] = made[:, :2] = made[:, -2:] = 10
    return made


PLANTS: dict[str, tuple[Callable[[Pixels], Pixels], str, int]] = {
    "brightness": (lambda x: np.clip(x.astype(int) + 25, 0, 255).astype(np.uint8), "brightness", 95),
    "blur": (lambda x: np.asarray(cv2.GaussianBlur(x, (0, 0), 1.0)), "sharpness", 95),
    "corner patch": (_patch, "top right", 95),
    "frame": (_frame, "border", 95),
    "text": (
        lambda x: np.asarray(cv2.putText(x.copy(), "AP", (90, 120), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (255, 255, 255), 1)),
        "bottom right",
        95,
    ),
    "JPEG quality": (lambda x: x, "JPEG coarseness", 70),
}
"""Name -> what is done to an image, the property that is meant to find it, the quality of the file."""


def table_of(images: list[Pixels], qualities: list[int]) -> dict[str, np.ndarray]:
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for image, quality in zip(images, qualities):
            path = Path(place) / "image.jpg"
            Image.fromarray(image).save(path, quality=quality)
            rows.append({**pixel_properties(read_image(path)), **file_properties(path)})
    frame = pd.DataFrame(rows)
    return {str(name): frame[name].to_numpy(dtype=np.float64) for name in frame}


def planted(given: argparse.Namespace) -> None:
    root = given.data / "garments"
    table = pd.read_csv(root / "metadata.csv")
    images = [read_image(root / name) for name in table.loc[table["split"] == "test", "file_name"]]
    command, hits = "python benchmarks/suspect.py planted --data DIR", 0
    plain = table_of(images, [95] * len(images))
    for k, (name, (plant, meant, quality)) in enumerate(PLANTS.items()):
        rng = np.random.default_rng([k, 41])
        labels = rng.integers(0, 2, len(images))
        shown = rng.random(len(images)) < np.where(labels == 1, RHO, 1 - RHO)
        made = table_of([plant(x) if s else x for x, s in zip(images, shown)], [quality if s else 95 for s in shown])
        found = suspicions(made, labels, ALPHA, LEAST)
        ranks = [i + 1 for i, one in enumerate(found) if meant in one.name]
        hits += bool(ranks)
        record(RESULTS, {"what": "planted", "shortcut": name, "found": [one.name for one in found[:4]], "told": round(found[0].told, 4) if found else None, "rank": ranks[:1]}, cpu=cpu(), command=command)  # fmt: skip
    alarms = significant = 0
    for i in range(CLEAN):
        labels = np.random.default_rng([i, 43]).integers(0, 2, len(images))
        found = suspicions(plain, labels, ALPHA, least=-1.0)
        significant += bool(found)
        alarms += any(one.told - one.chance >= LEAST for one in found)
    record(
        RESULTS, {"what": "clean", "sets": CLEAN, "alpha": ALPHA, "sets_with_an_alarm": alarms, "with_any_significant_property": significant, "planted_found": hits},
        cpu=cpu(), command=command,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=["planted"])
    parser.add_argument("--data", type=Path, required=True)
    planted(parser.parse_args())


if __name__ == "__main__":
    main()
