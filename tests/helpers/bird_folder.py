"""A small directory of images with metadata.csv."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from cfaug.data import FolderDataset

ROWS: list[tuple[Any, ...]] = [
    ("a.png", "train", "land", "sand", 1.0),
    ("b.png", "train", "water", "sea", 3.0),
    ("c.png", "val", "land", "sea", 100.0),
    ("sub/d.png", "test", "water", "ice", 50.0),
]


def write(root: Path, rows: list[tuple[Any, ...]] = ROWS, mode: str = "RGB") -> Path:
    """Flat images of 6x4 pixels, each of its own colour; RGBA is half transparent."""
    root.mkdir(exist_ok=True)
    for i, (name, *_) in enumerate(rows):
        path = root / str(name)
        path.parent.mkdir(exist_ok=True)
        colour = {"L": i * 20, "RGB": (i * 20, 1, 2), "RGBA": (i * 20, 1, 2, 128)}[mode]
        Image.new(mode, (6, 4), colour).save(path)
    table = pd.DataFrame(rows, columns=["file_name", "split", "species", "place", "age"])
    table.assign(ignored="x").to_csv(root / "metadata.csv", index=False)
    return root


def open_folder(root: Path, split: str = "train", **more: Any) -> FolderDataset:
    options = {"target": "species", "spurious": ["place"], "kinds": {"age": "continuous"}} | more
    return FolderDataset(root, split, **options)
