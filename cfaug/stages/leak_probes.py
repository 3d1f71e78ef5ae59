"""The leak probes of :mod:`cfaug.judge.probes` on a run's images; of a model of layers on its masks' outlines and rims too.

The original-attribute probe reads counterfactuals of unconfounded sources, so that the target does not reveal the original
value. Where a data set cannot be made unconfounded, the figure stands beside the accuracy that the target alone gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cfaug.config import Recipe
from cfaug.data import AttributeDataset
from cfaug.judge import probes as leaks
from cfaug.judge.axioms import Model
from cfaug.offline import ShardReader
from cfaug.stages.attribute_classifiers import probe_of
from cfaug.stages.checked_inputs import Inputs
from cfaug.stages.generated_sets import Pool, exchanged_acts, make_pool


def leak_figures(recipe: Recipe, inputs: Inputs, model: Model, pool: Pool | None, progress: bool) -> dict[str, Any]:
    """The probes of original attributes and of provenance, on a pool of unconfounded sources (confounded without an oracle).

    Without a pool, or with too few sources in it, every figure is None. So are those of provenance where images are imported: there are
    none whose attributes are distributed as the sources' are, and a null intervention is the source itself.
    """
    seed, names = recipe.seed, inputs.schema.spurious
    imported = bool(getattr(getattr(model, "capabilities", None), "imported", False))
    clean = inputs.clean is not None and not imported
    found: dict[str, Any] = {
        "sources": "unconfounded" if clean else "confounded",
        "original_attribute": dict.fromkeys(names),
        "provenance": {"counterfactual_or_reconstruction": None, "reconstruction_or_real": None},
    }
    if pool is None or len(pool.sources) < leaks.LEAST_SOURCES:
        return found
    fit = probe_of(recipe, inputs, seed)
    targets = None if clean else [str(value) for value in pool.table[inputs.target]]
    shown = {"original_attribute": pool.counterfactual}
    if pool.masks is not None:
        shown |= {"outline": (pool.masks * 255).round().byte(), "rim": rims(pool.counterfactual, pool.masks)}
    for what, images in shown.items():
        found[what] = {}
        for name in names:
            levels = inputs.grouper.levels(pool.table, name, missing=True)
            known = np.flatnonzero(levels.notna())  # a missing original value cannot leak
            found[what][name] = leaks.original_attribute(
                fit,
                images[known],
                [str(value) for value in levels.iloc[known]],
                [pool.sources[i] for i in known],
                seed,
                None if targets is None else [targets[i] for i in known],
            )
    if imported:
        return found
    alike = pool.counterfactual
    if not clean:  # balanced counterfactuals would differ from confounded reconstructions in their attributes, not only in their origin
        acts = exchanged_acts(pool.table, inputs.schema, seed)
        alike = make_pool(model, inputs.sources, acts, seed, recipe.generate.batch_size, progress).counterfactual
    found["provenance"] = {
        "counterfactual_or_reconstruction": leaks.provenance(fit, alike, pool.reconstruction, pool.sources, seed),
        "reconstruction_or_real": leaks.provenance(fit, pool.reconstruction, pool.factual, pool.sources, seed),
    }
    return found


RIM = 3
"""Pixels on each side of an object's outline that count as its rim."""


def rims(images: Tensor, masks: Tensor) -> Tensor:
    """The images, uint8 (N, C, H, W), with everything but the rims of their masks (N, 1, H, W) made grey."""
    wide = functional.max_pool2d(masks, 2 * RIM + 1, 1, RIM)
    narrow = -functional.max_pool2d(-masks, 2 * RIM + 1, 1, RIM)
    return torch.where((wide > 0.5) & (narrow < 0.5), images, torch.full_like(images, 127))


def shortcut_probe(inputs: Inputs, shards: ShardReader, seed: int, most: int = 2000) -> dict[str, float | None]:
    """Balanced accuracy with which colour statistics alone reveal the target; chance is one over the number of classes.

    Up to ``most`` images of each kind are drawn at random; the counterfactuals are those in the shards.
    """
    generator = np.random.default_rng(seed)
    generated = np.flatnonzero(~shards.nulls).tolist()
    count = min(most, len(generated), len(inputs.train))

    def drawn(rows: Sequence[int]) -> list[int]:
        return [int(i) for i in generator.choice(np.asarray(rows), count, replace=False)]

    def of(dataset: AttributeDataset) -> float | None:
        rows = drawn(range(len(dataset)))
        targets = dataset.table[inputs.target].iloc[rows].tolist()
        return leaks.told_by_colour([dataset.image(i) for i in rows], targets, [dataset.key(i) for i in rows], seed)

    rows = drawn(generated)
    records = [shards.record(i) for i in rows]
    found: dict[str, float | None] = {
        "chance": 1 / len(inputs.schema[inputs.target].categories),
        "factual": of(inputs.train),
        "counterfactual": leaks.told_by_colour(
            [shards.image(i) for i in rows],
            [str(record["target"]) for record in records],
            [str(record["source_key"]) for record in records],
            seed,
        ),
    }
    if inputs.oracle is not None:
        found["unconfounded"] = of(inputs.oracle)
        found["above_unconfounded"] = leaks.above(found["counterfactual"], found["unconfounded"])
    return found
