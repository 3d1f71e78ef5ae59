"""Axioms that a counterfactual image must obey (Monteiro et al. 2023; Melistas et al. 2024), measured per image.

    composition(k)   d(x, x_k),       x_0 = x, x_j = predict(abduct(x_{j-1}, a)): k null cycles
    reversibility    d(x, x''),       x' = cf(x, do(a -> a')), x'' = cf(x', do(a' -> a)), each abducting anew
    effectiveness    share of images whose intervened attribute an independent reader finds as intended
    preservation     the same reading for attributes that the intervention should have left alone

d is the mean absolute difference over pixels and channels, in [0, 1] units (half of that of [-1, 1] images); 0 is
perfect. Images are float tensors (N, C, H, W) in [-1, 1]. A *predictor* is any callable from such a tensor to int64
codes (N,); train it on unconfounded images, and never use the net that filtered or fine-tuned anything.
Not promised: that small numbers prove a counterfactual right. A model that ignores the causes can have them too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from cfaug.causal.intervention import Intervention, do
from cfaug.data.loading import Images
from cfaug.data.schema import Schema
from cfaug.errors import UsageError

Predictor = Callable[[Images], Tensor]


class Acted(Protocol):
    """A model under an intervention."""

    def predict(self, noise: Any, /) -> tuple[Tensor, pd.DataFrame]: ...


class Model(Protocol):
    """The part of ``CounterfactualModel`` that the axioms use."""

    def abduct(self, images: Tensor, attributes: pd.DataFrame, /, seed: Any, *, masks: Tensor | None = ...) -> Any: ...

    def act(self, interventions: Sequence[Intervention], /) -> Acted: ...


def l1(first: Tensor, second: Tensor) -> npt.NDArray[np.float64]:
    """(N,) mean absolute difference per image of two tensors (N, C, H, W) in [-1, 1], in [0, 1] units."""
    if first.shape != second.shape:
        raise UsageError(
            f"expected images of one shape, got {tuple(first.shape)} and {tuple(second.shape)}; make them the same"
        )
    difference = (first.double() - second.double()).abs().flatten(1).mean(1) / 2
    return np.asarray(difference.numpy(), dtype=np.float64)


def counterfactuals(
    model: Model,
    images: Tensor,
    table: pd.DataFrame,
    interventions: Sequence[Intervention],
    seed: int = 0,
    batch: int = 128,
    masks: Tensor | None = None,
) -> tuple[Tensor, pd.DataFrame]:
    """(images, attributes) after the interventions, one per row; row i abducts with seed ``seed + i``.

    ``masks``: (N, 1, H, W) in [0, 1], for a mechanism that needs them.
    """
    if not len(images) == len(table) == len(interventions) or not len(images):
        raise UsageError(
            f"expected as many images as rows and interventions, at least one; got {len(images)}, {len(table)}, "
            f"{len(interventions)}"
        )
    pictures, tables = [], []
    for start in range(0, len(images), batch):
        part = slice(start, start + batch)
        rows = table.iloc[part]
        more = {} if masks is None else {"masks": masks[part]}
        noise = model.abduct(images[part], rows, seed=[seed + start + i for i in range(len(rows))], **more)
        picture, attributes = model.act(list(interventions[part])).predict(noise)
        pictures.append(picture)
        tables.append(attributes)
    return torch.cat(pictures), pd.concat(tables)


def composition(
    model: Model, images: Tensor, table: pd.DataFrame, cycles: int = 1, seed: int = 0, masks: Tensor | None = None
) -> npt.NDArray[np.float64]:
    """(N,) L1 in [0, 1] between the images and themselves after ``cycles`` null interventions; 0 is perfect."""
    if cycles < 1:
        raise UsageError(f"cycles: expected 1 or more, got {cycles}; write 1")
    current = images
    for _ in range(cycles):
        current, _ = counterfactuals(model, current, table, [do()] * len(images), seed, masks=masks)
    return l1(images, current)


def reversibility(
    model: Model,
    images: Tensor,
    table: pd.DataFrame,
    interventions: Sequence[Intervention],
    seed: int = 0,
    masks: Tensor | None = None,
) -> npt.NDArray[np.float64]:
    """(N,) L1 in [0, 1] between the images and themselves after the intervention and its undoing; 0 is perfect.

    NaN where the value before the intervention is not known, because it cannot be restored.
    """
    there, attributes = counterfactuals(model, images, table, interventions, seed, masks=masks)
    before = [{name: table.iloc[i][name] for name in act.names} for i, act in enumerate(interventions)]
    back = [do({name: value for name, value in row.items() if not pd.isna(value)}) for row in before]
    again, _ = counterfactuals(model, there, attributes, back, seed, masks=masks)
    known = [len(undone.assignments) == len(row) for undone, row in zip(back, before, strict=True)]
    return np.where(known, l1(images, again), np.nan)


def effectiveness(
    predictor: Predictor, images: Images, expected: Sequence[int] | npt.ArrayLike
) -> npt.NDArray[np.bool_]:
    """(N,) whether the predictor reads the expected code off each image; its mean is the effectiveness."""
    said = predictor(images).cpu().numpy()
    wanted = np.asarray(expected)
    if said.shape != wanted.shape:
        raise UsageError(
            f"effectiveness: expected one code per image, got {wanted.shape} for {said.shape}; pass equal lengths"
        )
    agrees: npt.NDArray[np.bool_] = said == wanted
    return agrees


def read_attributes(
    predictors: Mapping[str, Predictor], images: Images, table: pd.DataFrame, schema: Schema
) -> dict[str, npt.NDArray[np.bool_]]:
    """attribute -> (N,) whether its predictor finds the value that ``table`` (the counterfactual attributes) states.

    For an intervened attribute this is effectiveness; for one that should not have changed, preservation. False where
    ``table`` has no value; such rows are not to be counted.
    """
    found = {}
    for name, predictor in predictors.items():
        known = table[name].notna().to_numpy()
        codes = np.full(len(table), -1, dtype=np.int64)
        codes[known] = schema.index(name, table[name][known])
        found[name] = effectiveness(predictor, images, codes)
    return found


def worst_rows(score: npt.NDArray[np.floating[Any]] | npt.NDArray[np.bool_], count: int) -> list[int]:
    """Indices of the ``count`` greatest scores (largest error first; ties by index), for the worst rows of the report."""
    return [int(i) for i in np.argsort(-np.asarray(score, dtype=np.float64), kind="stable")[:count]]
