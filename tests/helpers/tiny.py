"""A deterministic stand-in for a counterfactual model: a function of image, do and seed, and of nothing else."""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from cfaug.causal.intervention import Intervention
from cfaug.data import ArrayDataset, Attribute, Schema

COLOURS = ("blue", "green", "red")


def schema() -> Schema:
    return Schema(
        [
            Attribute("digit", values=("0", "1", "2")),
            Attribute("colour", values=COLOURS),
            Attribute("ground", values=("dark", "light")),
            Attribute("thickness", kind="continuous", mean=0.0, std=1.0),
        ],
        target="digit",
        spurious=("colour", "ground", "thickness"),
    )


def dataset(n: int = 24, size: int = 8, channels: int = 3, split: str = "train", seed: int = 0) -> ArrayDataset:
    """`n` random images whose colour goes with the digit."""
    rng = np.random.default_rng(seed)
    digit = np.arange(n) % 3
    table = pd.DataFrame(
        {
            "digit": digit.astype(str),
            "colour": [COLOURS[d] for d in digit],
            "ground": rng.choice(["dark", "light"], n),
            "thickness": rng.normal(size=n),
        },
        index=[f"source {i}.png" for i in range(n)],
    )
    images = rng.integers(0, 256, (n, size, size, channels), dtype=np.uint8)
    return ArrayDataset(images, table, schema(), split=split)


@dataclass(frozen=True)
class _Acted:
    model: TinyModel
    interventions: Sequence[Intervention]

    def predict(self, noise: Any) -> tuple[torch.Tensor, pd.DataFrame]:
        images, table, seeds = noise
        table = table.copy()
        made = images.clone()
        for i, intervention in enumerate(self.interventions):
            for name, value in intervention.assignments.items():
                table.iloc[i, table.columns.get_loc(name)] = value
                shift = int(hashlib.sha256(f"{name}={value}".encode()).hexdigest()[:6], 16) / 0xFFFFFF
                texture = torch.from_numpy(np.random.default_rng([seeds[i], 1]).normal(size=tuple(made[i].shape)))
                made[i] = (made[i] + shift + 0.05 * texture.float()).clamp(-1, 1)
        if self.model.broken == "nan":
            made[-1, 0, 0, 0] = float("nan")
        if self.model.broken == "shape":
            made = made[..., :-1]
        return made, table


@dataclass(frozen=True)
class TinyModel:
    """abduct keeps the image; act shifts it by a hash of each assignment, with texture from the row's own seed."""

    schema: Schema
    digest: str = "tiny-model-1"
    broken: str = ""
    mark: str | None = None  # a directory where each batch leaves a file with the process that made it
    pause: float = 0.0
    batch: int = 0  # the batch size to insist on

    def abduct(self, images: torch.Tensor, attributes: pd.DataFrame, seed: Sequence[int], **_: Any) -> Any:
        assert images.dtype == torch.float32
        assert float(images.abs().max()) <= 1.0
        assert len(images) == len(attributes) == len(seed)
        assert attributes.index.is_unique
        assert torch.get_num_threads() == 1
        assert not self.batch or len(images) == self.batch
        if self.mark is not None:
            Path(self.mark, f"{os.getpid()}-{attributes.index[0]}").touch()
        time.sleep(self.pause)
        if self.broken == "memory":
            torch.empty(10**17)
        if self.broken == "random":
            images = images * random.SystemRandom().random()
        return images, attributes, list(seed)

    def act(self, interventions: Sequence[Intervention]) -> _Acted:
        return _Acted(self, interventions)


def model(**options: Any) -> TinyModel:
    return TinyModel(schema(), **options)


def digests(out: Path) -> dict[str, str]:
    """Name -> sha256 of every file below ``out/shards``, except the manifest and the lock file (it holds a process number)."""
    shards = out / "shards"
    files = sorted(
        path for path in shards.rglob("*") if path.is_file() and path.name not in (".lock", "manifest.jsonl")
    )
    return {path.relative_to(shards).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def manifest_lines(out: Path) -> list[bytes]:
    """The manifest's lines; their order is the order of committing, which workers may change."""
    return sorted((out / "shards" / "manifest.jsonl").read_bytes().splitlines())
