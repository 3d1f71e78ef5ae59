"""Tiny runs through the command line, in this process: a folder of 60 images, a recipe of seconds, and what came back."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from PIL import Image

from cfaug.cli import main

SMALL = {
    "decoder": {
        "structure": "layout", "channels": [8, 16], "max_steps": 5, "batch_size": 16, "sampler": "reversible_euler", "steps": 2,
    },
    "plan": {"per_image": 1, "null_fraction": 0.3},
    "generate": {"workers": 0, "samples_per_shard": 20, "batch_size": 16},
    "train": {"methods": ["erm", "cfaug"], "seeds": [0], "epochs": 1},
    "evaluate": {"images": 12, "cycles": 2},
}  # fmt: skip


def folder(root: Path, n: int = 60) -> Path:
    """Birds on land or water (a disc on a ground), brighter or darker; metadata.csv with the three splits."""
    root.mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    for i in range(n):
        split = "train" if i < n * 3 // 5 else "val" if i < n * 4 // 5 else "test"
        species, glow = ("land", "water")[i % 2], round(float(rng.uniform(0, 40)), 2)
        ground = species if split != "train" or rng.random() < 0.8 else ("water", "land")[i % 2]
        if split != "train":
            ground = ("land", "water")[(i // 2) % 2]
        image = np.empty((8, 8, 3), np.uint8)
        image[:] = np.array((90, 160, 60) if ground == "land" else (50, 90, 200)) + int(glow)
        image[2:6, 2 + (species == "water") : 6] = (200, 30, 30)
        image[-1, -1] = (i % 256, 3 + i // 256, 7)  # no two images are the same
        Image.fromarray(image).save(root / f"bird-{i:02d}.png")
        rows.append((f"bird-{i:02d}.png", split, species, ground, glow, "ignored"))
    columns = ["file_name", "split", "species", "background", "glow", "remark"]
    pd.DataFrame(rows, columns=columns).to_csv(root / "metadata.csv", index=False)
    return root


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``changes`` laid over ``base``, mapping by mapping."""
    found = dict(base)
    for key, value in changes.items():
        found[key] = (
            merged(found[key], value) if isinstance(value, dict) and isinstance(found.get(key), dict) else value
        )
    return found


def folder_recipe(path: Path, root: Path, **changes: Any) -> Path:
    """Write a recipe for :func:`folder`; returns its path."""
    recipe = {
        "name": "birds",
        "data": {"source": "folder", "root": str(root)},
        "attributes": {"target": "species", "spurious": ["background"], "kinds": {"glow": "continuous"}},
        "graph": "species <-> background; species -> image; background -> image; glow -> image",
        **SMALL,
    }
    recipe = merged(recipe, changes)
    if "glow" in recipe["graph"] and recipe["attributes"]["kinds"]["glow"] == "continuous":
        recipe.setdefault("scm", {"mechanisms": {"glow": "linear"}})  # a flow takes seconds to fit
    path.write_text(yaml.safe_dump(recipe))
    return path


@dataclass(frozen=True)
class Answer:
    """What one command returned, printed and complained."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line of error; fails when there is more, less, or a traceback."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("cfaug: ")
        assert self.code in (1, 2)
        assert len(lines[0]) < 700
        return lines[0]


def call(capsys: Any, *words: str | Path) -> Answer:
    """``cfaug words...``; progress bars off for the commands that have them."""
    arguments: Sequence[str] = [str(word) for word in words]
    if arguments and arguments[0] in (
        "run",
        "demo",
        "diagnose",
        "discover",
        "fit",
        "plan",
        "generate",
        "train",
        "evaluate",
        "report",
    ):
        arguments = [*arguments, "--no-progress"]
    capsys.readouterr()
    code = main(arguments)
    out, err = capsys.readouterr()
    return Answer(code, out, err)


def contents(directory: Path) -> dict[str, str]:
    """Relative path -> sha256 of every file but the lock; {} where there is no directory."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != "run.lock"
    }


def shard_bytes(out: Path) -> dict[str, str]:
    """sha256 of what a run's shards consist of, the lock file apart."""
    return {name: digest for name, digest in contents(out / "shards").items() if name != ".lock"}
