"""The masks of a run: the training images as an image mechanism takes them, and how good their masks look."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from cfaug.config import Recipe
from cfaug.data import AttributeDataset
from cfaug.decode.layered.mask_quality import quality
from cfaug.decode.layered.mask_sources import GrabCut, Heat, mask_source
from cfaug.decode.layered.masked import MaskedDataset
from cfaug.stages.attribution import Attributed
from cfaug.stages.checked_inputs import Inputs
from cfaug.stages.image_mechanism import needs_masks

LOOKED_AT = 200
"""Masks whose quality is measured, at most: a share is then known to 3 points."""


def mask_figures(inputs: Inputs, seed: int) -> dict[str, Any] | None:
    """Quality of some of the training images' masks, beside GrabCut's where these are not GrabCut's; None where no masks are used."""
    sources = inputs.sources
    if not isinstance(sources, MaskedDataset):
        return None
    rows = np.sort(np.random.default_rng([seed, 7]).permutation(len(sources))[:LOOKED_AT]).tolist()
    masks = [sources.mask(i) for i in rows]
    second = GrabCut()
    others = None if isinstance(sources.source, GrabCut) else [second.mask(sources.image(i), None) for i in rows]
    found = quality(masks, others)
    worst = [sources.key(rows[i]) for i in found.worst(8)]
    return {"source": sources.mask_digest.split()[0], **found.summary(), "worst": worst}


def with_masks(recipe: Recipe, inputs: Inputs, directory: Path | None) -> Inputs:
    """The inputs whose ``sources`` and ``clean`` have the masks of ``decoder.mask``, kept in ``directory``; as they are without need."""
    if not needs_masks(recipe):
        return inputs

    def heat() -> tuple[Heat, str]:
        found = Attributed(recipe, inputs)
        return found, found.name

    source = mask_source(recipe.decoder.mask, heat)

    def masked(dataset: AttributeDataset) -> MaskedDataset:
        return MaskedDataset(dataset, source, directory)

    oracle = inputs.oracle
    lacking = oracle is None or (recipe.decoder.mask.get("from", "given") == "given" and oracle.mask(0) is None)
    clean = None if lacking or oracle is None else masked(oracle)
    return dataclasses.replace(inputs, sources=masked(inputs.train), clean=clean)
