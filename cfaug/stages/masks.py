"""The masks of a run: the training images as an image mechanism takes them, and how good their masks look."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cfaug.config import Recipe
from cfaug.data import AttributeDataset
from cfaug.decode.layered.mask_quality import quality
from cfaug.decode.layered.mask_sources import GrabCut, Heat, mask_source
from cfaug.decode.layered.masked import MaskedDataset
from cfaug.judge.report import Example
from cfaug.judge.sentences import percent
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


def mask_grid(inputs: Inputs, figures: Mapping[str, Any]) -> dict[str, list[Example]]:
    """The masks that look worst, each beside its image and what the mask cuts out."""
    found = figures.get("masks")
    if not found:
        return {}
    sources = inputs.sources
    place = {sources.key(i): i for i in range(len(sources))}
    examples = []
    for key in found["worst"]:
        image, mask = sources.image(place[key]), sources.mask(place[key])
        if mask is not None:
            cut = np.where(mask[..., None] > 127, image, np.uint8(127))
            examples.append(
                Example(image, key, [np.repeat(mask[..., None], image.shape[2], 2), cut], ["mask", "what it cuts out"])
            )
    return {"The masks that look worst": examples}


def mask_notes(figures: Mapping[str, Any]) -> list[str]:
    found = figures.get("masks")
    if not found:
        return []
    low, middle, high = found["area"]
    agreement = (
        ""
        if "agreement" not in found
        else f" They agree with GrabCut's in {percent(found['agreement'])} (intersection over union)."
    )
    return [
        f"Masks ({found['source']}), {found['masks']} looked at: the object covers {percent(middle)} of an image (5 to 95 % of them: "
        f"{percent(low)} to {percent(high)}); {found['empty']} are empty, {found['full']} cover nearly all, and {percent(found['border'])} of the "
        f"border is object.{agreement}"
    ]
