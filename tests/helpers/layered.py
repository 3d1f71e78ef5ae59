"""Objects on textured grounds, with their masks: sources for mechanisms that work on regions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from cfaug.data import ArrayDataset, Attribute, Schema

COLOURS = {"red": (220, 40, 40), "blue": (40, 60, 220)}
SHAPES, GROUNDS = ("disc", "square"), ("lines", "dots")


def schema() -> Schema:
    return Schema(
        [Attribute("shape", "categorical"), Attribute("ground", "categorical"), Attribute("colour", "categorical")],
        target="shape",
        spurious=["ground", "colour"],
    )


def scenes(n: int = 24, side: int = 24, rho: float = 0.8, seed: int = 0, split: str = "train") -> ArrayDataset:
    """A disc or a square, red or blue, on lines or dots; ground and colour follow the shape with probability ``rho``."""
    rng = np.random.default_rng([seed, n, side])
    shape = np.arange(n) % 2
    ground, colour = (np.where(rng.random(n) < rho, shape, 1 - shape) for _ in range(2))
    images, masks = np.empty((n, side, side, 3), np.uint8), np.zeros((n, side, side), np.uint8)
    y, x = np.mgrid[:side, :side]
    phase = np.random.default_rng([seed, n, side, 1]).integers(
        4, size=n
    )  # with i in its place, it would tell the shape
    for i in range(n):
        pattern = (y + phase[i]) % 4 < 2 if ground[i] == 0 else ((y + phase[i]) % 4 < 2) & (x % 4 < 2)
        images[i] = np.where(pattern[..., None], (200, 200, 120), (60, 110, 60)) + rng.integers(-8, 8, (side, side, 3))
        cy, cx, r = side // 2 + rng.integers(-3, 4), side // 2 + rng.integers(-3, 4), side // 4
        inside = (y - cy) ** 2 + (x - cx) ** 2 <= r * r if shape[i] == 0 else (abs(y - cy) < r) & (abs(x - cx) < r)
        masks[i] = np.where(inside, 255, 0)
        tint = np.array(list(COLOURS.values())[colour[i]]) + rng.integers(-15, 15, (side, side, 3))
        images[i] = np.where(inside[..., None], np.clip(tint, 0, 255), images[i])
    table = pd.DataFrame(
        {
            "shape": [SHAPES[k] for k in shape],
            "ground": [GROUNDS[k] for k in ground],
            "colour": [list(COLOURS)[k] for k in colour],
        },
        index=pd.Index([f"{split}{i:03d}" for i in range(n)], dtype=object),
    )
    return ArrayDataset(images, table, schema(), split, masks=masks)


def write_folder(root: Path, train: int = 32, rho: float = 0.8) -> Path:
    """The same as a folder with ``metadata.csv`` and a column ``mask``; validation and test are unconfounded."""
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    rows = []
    for split, n, seed in (("train", train, 0), ("val", 16, 1), ("test", 16, 2)):
        data = scenes(n, rho=rho if split == "train" else 0.5, seed=seed, split=split)
        table = data.table.copy()
        if split != "train":  # every group occurs
            table["ground"] = [GROUNDS[(i // 2) % 2] for i in range(n)]
            table["colour"] = [list(COLOURS)[(i // 4) % 2] for i in range(n)]
        for i in range(n):
            name = f"{split}{i:03d}.png"
            Image.fromarray(data.images[i]).save(root / "images" / name)
            Image.fromarray(data.masks[i]).save(root / "masks" / name)  # type: ignore[index]
            rows.append((f"images/{name}", split, *table.iloc[i], f"masks/{name}"))
    columns = ["file_name", "split", "shape", "ground", "colour", "mask"]
    pd.DataFrame(rows, columns=columns).to_csv(root / "metadata.csv", index=False)
    return root
