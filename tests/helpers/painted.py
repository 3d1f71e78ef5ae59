"""Painted shapes whose confounding is known, and a model of them whose defects are known too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cfaug.causal import CausalGraph, Intervention
from cfaug.config import AttributesConfig, EvaluateConfig, Recipe, TrainConfig
from cfaug.data import ArrayDataset, Attribute, Grouper, Schema
from cfaug.stages.checked_inputs import Inputs

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 230)}
SHAPES = ("left", "middle", "right")
GRAPH = CausalGraph("shape <-> colour; shape -> image; colour -> image")


def schema() -> Schema:
    return Schema([Attribute("shape", values=SHAPES), Attribute("colour", values=tuple(COLOURS))], "shape", ["colour"])


def masks(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(shape codes, (n, 8, 8) masks): a bar whose place is the class, in a few stray pixels."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 3, n)
    found = rng.random((n, 8, 8)) < 0.12
    for i, code in enumerate(codes):
        top = rng.integers(1, 5)
        found[i, top : top + 3, 1 + 2 * code : 3 + 2 * code] = True
    return codes, found


def paint(mask: np.ndarray, colour: str) -> np.ndarray:
    """uint8 (8, 8, 3)."""
    image = np.full((8, 8, 3), 20, np.uint8)
    image[mask] = COLOURS[colour]
    return image


def split(name: str, n: int, seed: int, rho: float) -> ArrayDataset:
    """Shapes in a colour that follows them with probability ``rho``; the same seed gives the same shapes."""
    codes, shapes = masks(n, seed)
    rng = np.random.default_rng([seed, 1])
    colour = np.where(rng.random(n) < rho, codes, rng.integers(0, 3, n))
    names = np.array(list(COLOURS), dtype=object)[colour]
    images = np.stack([paint(mask, name) for mask, name in zip(shapes, names)])
    table = pd.DataFrame(
        {"shape": np.array(SHAPES, dtype=object)[codes], "colour": names}, index=[f"{name}-{i}" for i in range(n)]
    )
    return ArrayDataset(images, table, schema(), name)


def inputs(n: int = 240, rho: float = 1.0, oracle: bool = True) -> Inputs:
    train = split("train", n, 0, rho)
    clean = split("train", n, 0, 0.0) if oracle else None
    val, test = split("val", 60, 1, 0.0), split("test", 240, 2, 0.0)
    return Inputs(train, val, test, clean, GRAPH, Grouper.fit(train.table, train.schema), "digest")


def recipe(**evaluate: int) -> Recipe:
    return Recipe(
        attributes=AttributesConfig("shape", ["colour"]),
        train=TrainConfig(epochs=10, batch_size=48),
        evaluate=EvaluateConfig(**evaluate),
    )


@dataclass(frozen=True)
class Noise:
    images: Tensor
    table: pd.DataFrame


@dataclass
class PaintedModel:
    """Recolours exactly, but for its defects.

    ``codec``: whatever it renders loses its shape, null interventions too. ``mechanism``: so does a counterfactual.
    ``leak``: a counterfactual has an edge in the original colour. ``mark``: a counterfactual has one white corner.
    """

    defects: set[str] = field(default_factory=set)

    def abduct(self, images: Tensor, attributes: pd.DataFrame, seed: Sequence[int]) -> Noise:
        return Noise(images, attributes)

    def act(self, interventions: Sequence[Intervention]) -> Painting:
        return Painting(self.defects, interventions)


@dataclass(frozen=True)
class Painting:
    defects: set[str]
    interventions: Sequence[Intervention]

    def predict(self, noise: Noise) -> tuple[Tensor, pd.DataFrame]:
        made, table = [], noise.table.copy()
        for i, act in enumerate(self.interventions):
            image = ((noise.images[i].permute(1, 2, 0).numpy() + 1) * 127.5).round().astype(np.uint8)
            mask = image.max(2) > 128
            if "codec" in self.defects or ("mechanism" in self.defects and not act.is_null):
                # the bar is smeared over the row, so the class is gone
                mask = mask.copy()
                mask[2:6] = np.roll(mask[2:6], i % 8, axis=1)
            colour = str(act.assignments.get("colour", table["colour"].iloc[i]))
            image = paint(mask, colour)
            if "leak" in self.defects and not act.is_null:
                image[0] = COLOURS[str(table["colour"].iloc[i])]
            if "mark" in self.defects and not act.is_null:
                image[-1, -1] = 255
            made.append(image)
            table.iloc[i, table.columns.get_loc("colour")] = colour  # type: ignore[index]
        images = torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).float() / 127.5 - 1
        return images, table
