"""A small coloured source with a categorical, a second categorical and a continuous attribute, and tiny decoders on it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch

from cfaug.causal import SCM, CausalGraph
from cfaug.config import DecoderConfig
from cfaug.data import ArrayDataset, Attribute, Schema
from cfaug.data.images import to_float
from cfaug.data.micro_batch import Sources
from cfaug.decode import DiffusionDecoder

GRAPH = "shape <-> colour; shape -> image; colour -> image; glow -> image"
COLOURS = {"red": (230, 40, 40), "blue": (40, 60, 220), "green": (40, 200, 60)}


def source(n: int = 48, size: tuple[int, int] = (8, 8), channels: int = 3) -> ArrayDataset:
    """A square or a bar in one of three colours on a ground as bright as ``glow`` says; the colour goes with the shape."""
    rng = np.random.default_rng([n, *size, channels])
    shape = np.arange(n) % 2
    names = [list(COLOURS)[int(k)] for k in np.where(rng.random(n) < 0.8, shape, rng.integers(0, 3, n))]
    glow = rng.uniform(0, 60, n)
    images = np.repeat(glow.round().astype(np.uint8), size[0] * size[1] * 3).reshape(n, *size, 3)
    for i in range(n):
        rows = slice(1, size[0] - 1) if shape[i] else slice(2, 5)
        images[i, rows, 2:5] = COLOURS[names[i]]
    if channels == 1:
        images = images.mean(axis=3, keepdims=True).astype(np.uint8)
    table = pd.DataFrame(
        {"shape": np.where(shape, "bar", "square"), "colour": names, "glow": glow},
        index=pd.Index([f"s{i:03d}" for i in range(n)], dtype=object),
    )
    schema = Schema([Attribute("shape"), Attribute("colour"), Attribute("glow", "continuous")], "shape", ["colour"])
    return ArrayDataset(images, table, schema.fit(table), "train")


def small(data: ArrayDataset, seed: int = 0, **settings: Any) -> DiffusionDecoder:
    """A decoder of a few thousand weights, trained for five steps on ``data``."""
    chosen = {"channels": [8, 16], "max_steps": 5, "batch_size": 16, **settings}
    decoder = DiffusionDecoder(data.schema, CausalGraph(GRAPH).parents("image"), DecoderConfig(), **chosen)
    return decoder.fit(data, seed=seed, progress=False)


def floats(data: ArrayDataset, n: int = 8) -> torch.Tensor:
    """The first n images, (n, C, H, W), in [-1, 1]."""
    return to_float(torch.from_numpy(data.images[:n]).permute(0, 3, 1, 2))


def sources(images: torch.Tensor, table: pd.DataFrame) -> Sources:
    """A micro-batch as the model makes it, with seeds that are all zero."""
    return Sources(images, table, list(map(str, table.index)), [0] * len(table))


def fitted(data: ArrayDataset) -> SCM:
    """An SCM of the source's attributes in which do(colour) moves glow."""
    return SCM(CausalGraph(f"{GRAPH}; colour -> glow"), data.schema, {"glow": "linear"}).fit(data.table, seed=0)


class Constant(torch.nn.Module):
    """v(x, t, c, s) = the inner product of the condition with fixed weights: flows that can be integrated by hand."""

    multiple = 4

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weights = torch.linspace(-0.1, 0.13, width)

    def shift(self, condition: torch.Tensor) -> torch.Tensor:
        return (condition * self.weights).sum(1).view(-1, 1, 1, 1)

    def forward(self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return self.shift(condition).expand_as(x)
